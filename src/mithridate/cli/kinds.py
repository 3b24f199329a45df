"""Kinds of options: how what is typed becomes a value, and how help shows it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

Numbers = Annotated[
    tuple[float, ...] | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="NUMBER ...",
        instance_from_str=lambda texts: tuple(float(Fraction(text)) for text in texts),
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: [f"{number:g}" for number in value or ()],
    ),
    arg(help_behavior_hint=""),
]
Share = Annotated[
    float,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="NUMBER",
        instance_from_str=lambda texts: float(Fraction(texts[0])),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [f"{Fraction(value).limit_denominator(255)}"],
    ),
]
"""A number that may be typed as a fraction, like 8/255."""
Names = Annotated[tuple[str, ...] | None, arg(metavar="NAME ...", help_behavior_hint="")]
Count = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Text = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
Place = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
Device = Annotated[str, arg(metavar="NAME")]
Devices = Annotated[int, arg(metavar="N")]
Number = Annotated[int, arg(metavar="N")]
Workers = Annotated[str | None, arg(metavar="WHERE", help_behavior_hint="")]
Gpus = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
Conditions = Annotated[
    tuple[tuple[str, ...], ...], UseAppendAction, arg(metavar="CONDITION ...", help_behavior_hint="")
]
"""Conditions, several after one option or the option several times: none may be lost."""
Formats = Annotated[
    tuple[Literal["json", "csv", "parquet", "junit", "sarif", "tensorboard"], ...],
    arg(metavar="NAME ...", help_behavior_hint=""),
]
