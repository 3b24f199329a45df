"""Poison: the 8-bit pixels that replace training rows, and how they are kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load as tensors_from_bytes, save as tensors_to_bytes
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.distrust import distrusting
from mithridate.core.safe_images import LIMITS, read_limited, refusing
from mithridate.core.schema import SCHEMA, from_json, to_json
from mithridate.poisoning.triggers import Trigger

if TYPE_CHECKING:
    from mithridate.poisoning.task import Task

TENSORS, MANIFEST = "poison.safetensors", "manifest.json"
_MANIFEST_BYTES = 2**22
"""Of a manifest at most: the value of a few bytes of JSON can take a hundred."""


@dataclass(frozen=True, eq=False)
class Poison:
    """Rows of the training set and the pixels that replace them: applying it is an assignment, nothing is appended.

    >>> from mithridate.core.data import ImageData
    >>> train = ImageData.from_arrays(
    ...     torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    ... )
    >>> poison = Poison(torch.tensor([2]), torch.full((1, 1, 8, 8), 9, dtype=torch.uint8))
    >>> poison.apply(train).pixels(torch.tensor([1, 2])).amax(dim=(1, 2, 3)).tolist()
    [0, 9]
    """

    rows: Tensor
    """[P] int64 row ids of the training set, sorted, without repeats."""
    images: Tensor
    """[P, C, H, W] uint8, the pixels that replace those rows."""
    labels: Tensor | None = None
    """[P] int64 new labels, or None where the labels stay."""
    trigger: Trigger | None = None
    """What is put on test images; only for a backdoor."""
    notes: dict[str, float] = field(default_factory=dict)
    """Numbers the attack wants to keep, for example its final objective."""

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def empty(cls, task: Task, trigger: Trigger | None = None) -> Poison:
        """Returns the poison that changes nothing, for the clean control."""
        return cls(
            torch.zeros(0, dtype=torch.int64), torch.zeros(0, *task.train.shape, dtype=torch.uint8), trigger=trigger
        )

    def apply(self, train: ImageData) -> ImageData:
        """Returns `train` with the rows replaced; `train` itself stays as it is."""
        return train.replace(self.rows, self.images, self.labels) if len(self) else train

    def save(
        self,
        folder: Path,
        *,
        base: Tensor | None = None,
        target: Tensor | None = None,
        patch: Tensor | None = None,
        **meta: Any,
    ) -> None:
        """Writes `manifest.json` and `poison.safetensors`; the manifest comes last and by rename.

        Args:
            folder: Made where it does not exist.
            base: [P, C, H, W] uint8, the clean images of the rows, so that the folder can be looked at on its own.
            target: [T, C, H, W] uint8, the test images aimed at.
            patch: [C, h, w] float in [0, 1], what marks test images where nobody knows the trigger as such.
            meta: JSON-able entries for the manifest, for example settings, versions and the data fingerprint.

        Raises:
            ValueError: If a name in `meta` is one that the manifest already uses.
        """
        optional = {"labels": self.labels, "base": base, "target": target, "patch": patch}
        tensors = {"rows": self.rows, "images": self.images} | {k: v for k, v in optional.items() if v is not None}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = tensors_to_bytes(tensors)
        manifest = {
            "schema": SCHEMA,
            "count": len(self),
            "sha256": hashlib.sha256(content).hexdigest(),
            "tensors": {name: _described(tensor) for name, tensor in tensors.items()},
            "trigger": None if self.trigger is None else to_json(self.trigger),
            "notes": dict(self.notes),
        }
        if taken := sorted(manifest.keys() & meta.keys()):
            raise ValueError(f"the manifest already has {', '.join(taken)}; give the extra entries other names")
        written = json.loads(json.dumps(manifest | meta))  # as it will be read
        written["seal"] = {name: _digest(value) for name, value in written.items()}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TENSORS).write_bytes(content)
        draft = folder / f"{MANIFEST}.tmp"
        draft.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
        draft.replace(folder / MANIFEST)

    @classmethod
    def load(cls, folder: Path, **expected: Any) -> Poison:
        """Reads a saved poison after comparing it with its manifest.

        Args:
            folder: What `save` wrote.
            expected: Manifest entries that must be as given, for example the fingerprint of the data at hand.

        Raises:
            ValueError: Names the first field that differs, what was found and what was expected.
        """
        manifest, tensors = read_manifest(folder), load_tensors(folder)
        for name, value in {"count": len(tensors["rows"]), **expected}.items():
            _same(folder, name, manifest.get(name), value)
        with refusing(folder / MANIFEST), distrusting():
            trigger = None if manifest.get("trigger") is None else from_json(manifest["trigger"], Trigger)
            notes = dict(manifest.get("notes") or {})
        return cls(tensors["rows"], tensors["images"], tensors.get("labels"), trigger, notes)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a saved poison, without the seal of its entries.

    The seal is a digest of each entry, so that an edit is noticed and named. It keeps honest people from mistakes; who
    wants to deceive makes a new one.

    Raises:
        ValueError: If it was written by another schema version, is not a manifest at all, or an entry was changed.
    """
    with refusing(folder / MANIFEST):
        try:
            manifest = json.loads(read_limited(folder / MANIFEST, _MANIFEST_BYTES))
        except json.JSONDecodeError as error:
            raise ValueError(f"{folder / MANIFEST} is not JSON ({error}); craft the poison again") from error
    seal = manifest.pop("seal", {}) if isinstance(manifest, dict) else None
    if not isinstance(seal, dict):
        raise ValueError(f"{folder / MANIFEST} holds no manifest; craft the poison again")
    _same(folder, "schema", manifest.get("schema"), SCHEMA)
    if seal:  # folders of before it have none
        _same(folder, "the entries", sorted(manifest), sorted(seal))
        for name, value in manifest.items():
            if _digest(value) != seal[name]:
                raise ValueError(
                    f"poison in {folder}: {name} was changed after it was written, it is now {str(value)[:80]!r}; take "
                    "the folder from where it came, or craft the poison again"
                )
    return manifest


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns every saved tensor by name: rows, images and, where given, labels, base, target and patch.

    Raises:
        ValueError: If the tensor file is not the one the manifest describes.
    """
    manifest, content = read_manifest(folder), read_limited(folder / TENSORS, LIMITS.table_bytes)
    _same(folder, "sha256", hashlib.sha256(content).hexdigest(), manifest.get("sha256"))
    with refusing(folder / TENSORS):
        tensors = tensors_from_bytes(content)
    _same(folder, "tensors", {name: _described(tensor) for name, tensor in tensors.items()}, manifest.get("tensors"))
    _check_tensors(folder, tensors)
    return tensors


def _check_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Checks that a poison is in them: rows that ascend, images of 8 bits, as many as rows."""
    kinds = {"rows": (torch.int64, 1), "images": (torch.uint8, 4), "labels": (torch.int64, 1)}
    kinds |= {"base": (torch.uint8, 4), "target": (torch.uint8, 4), "patch": (torch.float32, 3)}
    for name in {"rows", "images", *tensors}:
        found = None if name not in tensors else (tensors[name].dtype, tensors[name].ndim)
        if found is None or kinds.get(name) != found:
            seen = "is missing" if found is None else f"is {_described(tensors[name])}"
            raise ValueError(f"{folder / TENSORS} is no poison: {name} {seen}; take it from where it came")
        if name not in ("target", "patch") and len(tensors[name]) != len(tensors["rows"]):
            raise ValueError(f"{folder / TENSORS} has {len(tensors[name])} {name} of {len(tensors['rows'])} rows")
    rows = tensors["rows"]
    if len(rows) and (int(rows[0]) < 0 or bool((rows[1:] <= rows[:-1]).any())):
        raise ValueError(f"{folder / TENSORS} is no poison: rows do not ascend")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _described(tensor: Tensor) -> Mapping[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _same(folder: Path, name: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise ValueError(
            f"poison in {folder}: {name} differs, found {found!r}, expected {expected!r}; "
            "the folder belongs to other data or was changed, so craft the poison again in another folder"
        )
