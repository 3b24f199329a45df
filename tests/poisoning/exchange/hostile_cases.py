"""Every format with a small poison of its own, and the hostile contents that each of its files could have."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mithridate.core.schema import choices
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from mithridate.poisoning.poison import MANIFEST, TENSORS
from tests.core import hostile, hostile_files, hostile_texts
from tests.core.hostile import Corpus
from tests.poisoning.exchange.exchange_cases import poison_of, reference

SETTINGS = {"std": "0.25/0.24/0.26", "strict": False}
"""Of formats that cannot do without, or that refuse more than a hostile file needs."""


def data() -> Reference:
    return reference(3, 4)


def poison() -> Parcel:
    """Three rows of one class, aimed at one test image of another: what every format can hold."""
    sets = data()
    rows = (sets.train.labels == 1).nonzero()[:3, 0]
    target = (sets.test.labels == 0).nonzero()[:1, 0]
    return dataclasses.replace(
        poison_of(rows.tolist(), 1, sets),
        target_rows=target,
        target_images=sets.test.pixels(target),
        target_labels=sets.test.labels_of(target),
        intended=torch.tensor([1]),
    )


def forms() -> Iterator[tuple[str, Format]]:
    """Each format in each of its layouts, with a name."""
    for name, cls in choices(Format).items():
        fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        hints = typing.get_type_hints(cls)
        layouts = {
            one: typing.get_args(hints[one]) for one in fields if typing.get_origin(hints[one]) is typing.Literal
        }
        for chosen in itertools.product(*layouts.values()):
            settings = dict(zip(layouts, chosen, strict=True)) | {
                one: SETTINGS[one] for one in fields & SETTINGS.keys()
            }
            yield "-".join([name, *chosen]), typing.cast(Any, cls)(**settings)


FORMS = dict(forms())


def written(form: Format, home: Path) -> Path:
    """Where the poison was written in this format; checks that it is read again."""
    path = home / ("poison.npz" if form.recognises(Path("poison.npz")) else "poison")
    form.write(poison(), path, data())
    assert len(form.read(path, data())) == 3
    return path


def kinds(path: Path) -> list[Path]:
    """One file of each kind that a format has."""
    found: dict[str, Path] = {}
    for file in sorted(one for one in [path, *path.rglob("*")] if one.is_file()):
        found.setdefault(file.name if file.suffix in (".pickle", ".npy") else file.suffix, file)
    return list(found.values())


def corpus_for(file: Path, canary: Path) -> Corpus:
    """Hostile contents of a file, by its name."""
    if file.name == TENSORS:
        return hostile_texts.safetensors()
    if file.name == MANIFEST:
        manifest = json.loads(file.read_text())
        return hostile_texts.manifests({key: value for key, value in manifest.items() if key != "seal"}, file.parent)
    lines = file.read_text().splitlines() if file.suffix in (".jsonl", ".csv") else []
    plain = {f"pickle: {name}": one for name, one in list(hostile.pickles(canary).items())[::40]}
    return {
        ".pickle": lambda: hostile.pickles(canary),
        ".pkl": lambda: hostile.pickles(canary),
        ".pt": lambda: hostile.torch_files(canary) | plain,
        ".pth": lambda: hostile.torch_files(canary) | plain,
        ".npy": lambda: hostile_files.array_files(canary),
        ".npz": lambda: hostile_files.npz_files(canary) | plain,
        ".png": lambda: hostile_files.image_files() | plain,
        ".parquet": lambda: hostile_files.tables(canary),
        ".jsonl": lambda: hostile_texts.json_lines(lines),
        ".csv": lambda: hostile_texts.comma_lines(lines),
    }[file.suffix]()


def fitted(file: Path, content: bytes) -> None:
    """Puts content in place of a file; a manifest beside it is made to say that it is so."""
    file.write_bytes(content)
    if file.name == TENSORS:
        manifest = json.loads((file.parent / MANIFEST).read_text())
        manifest.pop("seal", None)
        manifest["sha256"] = hashlib.sha256(content).hexdigest()
        try:
            size = int.from_bytes(content[:8], "little")
            parts = json.loads(content[8 : 8 + size])
            kinds = {"U8": "uint8", "I64": "int64", "F64": "float64"}
            manifest["tensors"] = {
                name: {"dtype": kinds.get(part["dtype"], "?"), "shape": part["shape"]} for name, part in parts.items()
            }
            manifest["count"] = manifest["tensors"].get("rows", {"shape": [0]})["shape"][0]
        except (ValueError, KeyError, TypeError, RecursionError, AttributeError, MemoryError):
            pass
        (file.parent / MANIFEST).write_text(json.dumps(manifest))
