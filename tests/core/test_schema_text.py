"""What people type and write into files: values, errors that name the nearest, and text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mithridate.core import schema
from mithridate.core.balls import L2, AnyImage, Ball, Linf, Patch, Sum
from mithridate.core.batch import RowRule
from mithridate.core.schedules import OneCycle, Schedule
from mithridate.core.schema import (
    class_of,
    from_json,
    parse,
    resolve,
    to_json,
)
from mithridate.core.training import Learner, Recipe
from mithridate.core.transforms import Flip, Shift
from mithridate.core.updates import Adam, SignStep, Update
from mithridate.poisoning.attack import Attack
from tests.core.schema_cases import HERE, EveryOther, Paint, paint

# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "given", "expected"),
    [
        ("count", 3, 3),
        ("count", "3", 3),
        ("count", 3.0, 3),
        ("count", "1e3", 1000),
        ("count", "9007199254740993", 9007199254740993),  # more digits than a float has
        ("share", "8/255", 8 / 255),
        ("share", 1, 1.0),
        ("share", "0.1", 0.1),
        ("share", "-2.5e-3", -0.0025),
        ("matt", "yes", True),
        ("matt", "False", False),
        ("matt", True, True),
        ("name", "blue", "blue"),
        ("finish", "smooth", "smooth"),
        ("size", None, None),
        ("size", "4", 4),
        ("pair", ["1/2", 2], (0.5, 2.0)),
        ("several", ["any-image", {"type": "l2", "eps": 1}], (AnyImage(), L2(eps=1.0))),
        ("several", "any-image+l2(eps=1)", (AnyImage(), L2(eps=1.0))),
        ("several", "l2:eps=1", (L2(eps=1.0),)),
        ("ball", "linf(eps=8/255)", Linf(eps=8 / 255)),
        ("ball", None, None),
        ("make", "pkg:function", "pkg:function"),
    ],
)
def test_values_are_read(field: str, given: Any, expected: Any) -> None:
    found = getattr(paint(**{field: given}), field)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("field", "given", "message"),
    [
        ("count", 2.5, "whole number"),
        ("count", "5/2", "5/2 is not a whole number"),
        ("count", True, "True is not a number"),
        ("count", float("nan"), "whole number"),
        ("count", float("inf"), "whole number"),
        ("count", "inf", "not a number"),
        ("share", "8/0", "not a number"),
        ("share", "eight", "'eight' is not a number"),
        ("share", None, "None is not a number"),
        ("share", False, "not a number"),
        ("matt", 1, "neither true nor false"),
        ("matt", "maybe", "neither true nor false"),
        ("name", 3, "not text"),
        ("finish", "smoth", "did you mean smooth"),
        ("size", "big", "not a number"),
        ("pair", [1, 2, 3], "expected 2 values"),
        ("pair", "1..2..3", "expected 2 values, typed with two dots"),
        ("several", ["linff"], "did you mean linf"),
        ("ball", {"eps": 1}, "needs its 'type'"),
        ("ball", {"type": 3}, "needs its 'type'"),
        ("ball", 7, "by name or with its settings"),
    ],
)
def test_values_of_the_wrong_kind_are_errors_that_name_the_field(field: str, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"Paint: {field}: .*{message}"):
        paint(**{field: given})


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=10_000))
def test_fractions_are_the_nearest_float(value: Any) -> None:
    assert paint(share=str(value)).share == value.numerator / value.denominator


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive_text_and_json(value: float) -> None:
    assert paint(share=repr(value)).share == value
    assert from_json(json.loads(json.dumps(to_json(Paint(share=value)))), Paint).share == value


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"type": "linff", "eps": 1}, Ball, "no ball is called 'linff'; did you mean linf.*any-image"),
        ({"type": "linf", "epss": 1}, Ball, "linf has no setting 'epss'; did you mean eps"),
        ({"type": "linf"}, Ball, "linf needs eps"),
        ({"type": "recipe", "schedul": "cosine"}, Learner, "did you mean schedule"),
        ({"type": "recipe", "schedule": {"type": "cosin"}}, Learner, "recipe: schedule: .*did you mean cosine"),
        ({"type": "recipe", "schedule": {"type": "one-cycle", "peek": 1}}, Learner, "one-cycle has no setting 'peek'"),
        ({"type": "recipe", "precision": "fp16"}, Learner, "recipe: precision: 'fp16' is no option"),
        ({"type": "recipe", "epochs": -1}, Learner, "epochs is -1; it must be at least 0"),
        ({"type": "witchs-brew"}, Attack, "no attack is called 'witchs-brew'; did you mean witches-brew"),
        ([1], Recipe, "by name or with its settings"),
        ({"type": f"{HERE}:Maker"}, Ball, "is no ball; it must name a subclass of Ball"),
        ({"type": f"{HERE}:EveryOther"}, Ball, "is no ball"),
    ],
)
def test_errors_say_where_and_what_is_nearest(given: Any, kind: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(given, kind)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("os", "names nothing to import; write package.module:name"),
        (":path", "names nothing to import"),
        ("os:", "names nothing to import"),
        ("no_such_package.nets:make", "no module 'no_such_package'.*installed"),
        ("os:pathh", "os has no 'pathh'; did you mean path"),
        ("os:path.joinn", "has no 'joinn'; did you mean join"),
        (f"{HERE}:<lambda>", "has no '<lambda>'"),
    ],
)
def test_what_cannot_be_imported(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(text)


def test_imports_reach_attributes_of_attributes_and_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_of_this_folder.py").write_text("class Nets:\n    best = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert resolve("nets_of_this_folder:Nets.best") == 3
    assert class_of(RowRule, f"{HERE}:EveryOther") is EveryOther


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "text", "expected"),
    [
        (Ball, "any-image", AnyImage()),
        (Ball, " linf:eps=8/255 ", Linf(eps=8 / 255)),
        (Ball, "linf(eps=8/255)", Linf(eps=8 / 255)),
        (Ball, "linf:eps=8/255+patch:area=0.1", Linf(eps=8 / 255) + Patch()),
        (Ball, "linf(eps=0.1) + l2(eps=1) + l2(eps=2)", Sum(balls=(Linf(eps=0.1), L2(eps=1), L2(eps=2)))),
        (Ball, "sum:balls=linf(eps=8/255)+patch(area=0.1)", Linf(eps=8 / 255) + Patch()),
        (Learner, "recipe:transforms=flip+shift(share=0.1)", Recipe(transforms=(Flip(), Shift(share=0.1)))),
        (Schedule, "one-cycle:", OneCycle()),
        (Schedule, "one-cycle()", OneCycle()),
        (Update, "sign-step: low = 1/255 , high=2/255", SignStep(low=1 / 255)),
        (Update, "adam:decay=yes,lr=1e-2", Adam(decay=True, lr=0.01)),
        (Learner, "recipe:schedule=one-cycle(peak=0.3),epochs=3", Recipe(schedule=OneCycle(peak=0.3), epochs=3)),
        (Learner, "recipe:schedule=one-cycle:peak=0.3,epochs=3", Recipe(schedule=OneCycle(peak=0.3), epochs=3)),
        (Learner, "recipe(batch-size=7,model=resnet18:width=8)", Recipe(batch_size=7, model="resnet18:width=8")),
        (Learner, "recipe:row_rule=none,start_from=none", Recipe()),
        (
            Recipe,
            "recipe:start-from=a/b.safetensors,trainable=head",
            Recipe(start_from=Path("a/b.safetensors"), trainable="head"),
        ),
        (RowRule, f"{HERE}:EveryOther", EveryOther()),
    ],
)
def test_text(base: type, text: str, expected: Any) -> None:
    assert parse(base, text) == expected


def test_parentheses_nest() -> None:
    text = "witches-brew:steps=7"
    assert parse(Attack, text).steps == 7  # type: ignore[attr-defined]
    found = from_json({"ball": "linf(eps=1/10)", "make": "a(b,c)"}, Paint)
    assert (found.ball, found.make) == (Linf(eps=0.1), "a(b,c)")
    assert schema._split("a=b(c=d(e=1,f=2),g=3),h=(4,5)") == ["a=b(c=d(e=1,f=2),g=3)", "h=(4,5)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linf:0.1", "'0.1' is no setting; write linf:setting=value"),
        ("linf:epps=0.1", "did you mean eps"),
        ("lnif:eps=0.1", "did you mean linf"),
        ("", "no ball is called ''"),
        ("linf(eps=0.1", "no ball is called"),
        ("linf:eps=0.1+pach", "no ball is called 'pach'; did you mean patch"),
        ("patch+patch", "the sum of patch and patch cannot be told exactly"),
    ],
)
def test_text_that_says_nothing(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(Ball, text)
