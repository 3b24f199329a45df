"""BackdoorBench: the record of an attack, on which its defences run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.safe_images import folder_name, inside, new_place, png, read_image, refusing
from mithridate.core.stand_ins import EVERYTHING, TENSORS, Picture
from mithridate.core.unpickling import Limits, load_torch
from mithridate.poisoning.exchange.checks import (
    Row,
    known_labels,
    known_rows,
    needed,
    parcel_of,
    pasted,
    patch_between,
    poisoned_set,
    rows_of,
)
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from mithridate.poisoning.exchange.pickled import Pickler, limits_for

_FILE = "attack_result.pt"
_WEIGHTS = 2**32
"""Bytes of a model at most."""


@dataclass(frozen=True, kw_only=True)
class BackdoorBench(Format):
    """`record/<name>/attack_result.pt`, and the images beside it as PNG files.

    Read by `utils/save_load_attack.py` of BackdoorBench at f02e353 (Wu, Chen, Zhang, Zhu, Wei, Yuan, Shen,
    "BackdoorBench: A Comprehensive Benchmark of Backdoor Learning", NeurIPS 2022, arXiv:2206.12654); put the folder
    `record` into its root, and run `python defense/<d>.py --result_file <name>` there, as paths of images are relative
    to it. Files that keep images in the pickle, as it writes them itself, are read too.

    Traps: its reader wants the weights of a trained model in the order of its own, and stops where there are none:
    give them in `weights`, or train one there. Training rows are those of the whole training set. With torch 2.6 or
    later its `torch.load` needs `weights_only=False`. Its ANP chooses the threshold by the success on test images
    unless `--pruning_number` is given. Its code is not for commercial use (CC BY-NC 4.0).

    A trigger comes back where it is one patch at one place, as far as the test images show it.
    """

    carries: ClassVar[frozenset[str]] = frozenset(
        {"images", "labels", "rows", "target_rows", "target_labels", "intended"}
    )
    name: str = "mithridate"
    """Of the record; what `--result_file` asks for."""
    dataset: str = "cifar10"
    """What BackdoorBench calls the data set."""
    model: str = "preactresnet18"
    """What BackdoorBench calls the model."""
    weights: Path | None = None
    """Torch file of the model's state dict; None: left out, for who reads the images alone."""

    def __post_init__(self) -> None:
        folder_name(self.name)
        folder_name(self.dataset)

    def write(self, parcel: Parcel, path: Path, data: Reference) -> list[Path]:
        needed(parcel, "rows", "target_rows", "intended")
        assert parcel.rows is not None
        if len(data.train) != len(data.train.images) or len(data.test) != len(data.test.images):
            raise ValueError("some rows of the data at hand are hidden; BackdoorBench knows whole data sets only")
        train = poisoned_set(parcel, data.train).select(parcel.rows.sort().values)
        weights = self._weights()
        home = new_place(path) / "record" / self.name
        home.mkdir(parents=True)
        true = data.train.labels_of(train.ids).tolist()
        states, files = {}, []
        for part, items, labels, whole in (
            ("bd_train", list(rows_of(train)), true, data.train),
            ("bd_test", *_triggered(parcel, data), data.test),
        ):
            written, states[part] = self._side(home, part, items, labels, len(whole))
            files += written
        channels, height, width = data.train.shape
        torch.save(
            {
                "model_name": self.model,
                "num_classes": len(data.train.classes),
                "model": weights,
                "data_path": f"./data/{self.dataset}",
                "img_size": [height, width, channels],
                "clean_data": self.dataset,
                **states,
            },
            home / _FILE,
            pickle_module=SimpleNamespace(__name__="pickle", Pickler=Pickler),
        )
        return [home / _FILE, *files]

    def read(self, path: Path, data: Reference) -> Parcel:
        file = _found(path)
        with refusing(file):
            limits = limits_for(data)
            record = load_torch(file, EVERYTHING, limits=replace(limits, file_bytes=limits.file_bytes + _WEIGHTS))
            if not isinstance(record, dict) or not isinstance(record.get("bd_train"), dict):
                raise ValueError(f"{file} holds no poisoned training set (bd_train)")
            items = (image.row() for image in _images(record["bd_train"], file, data.train, "training"))
            more: dict[str, Any] = {}
            if isinstance(record.get("bd_test"), dict):
                more = _targets(list(_images(record["bd_test"], file, data.test, "test")), file, data.test)
            more["notes"] = more.get("notes", {}) | {
                name: record[name] for name in ("model_name", "clean_data") if isinstance(record.get(name), str)
            }
            return parcel_of(items, data.train, file, whole=False, **more)

    def recognises(self, path: Path) -> bool:
        try:
            here = path.name == _FILE or (path / _FILE).is_file()
            return here or any(path.glob(f"record/*/{_FILE}"))
        except OSError:
            return False

    def _weights(self) -> dict[str, Tensor]:
        if self.weights is None:
            return {}
        found = load_torch(self.weights, TENSORS, limits=Limits(file_bytes=_WEIGHTS))
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise ValueError(f"{self.weights} is no state dict; save one with torch.save(model.state_dict(), FILE)")
        return dict(found)

    def _side(
        self, home: Path, part: str, items: list[Row], true: list[int], size: int
    ) -> tuple[list[Path], dict[str, Any]]:
        """Writes the images of the training or the test set; returns their files, and the state of the set."""
        folder, files, entries = f"{part}_dataset", [], {}
        for item, label in zip(items, true, strict=True):
            name = f"{folder}/{label}/{item.row}.png"
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(png(item.image))
            files.append(home / name)
            entries[item.row] = {"path": f"./record/{self.name}/{name}", "other_info": [item.label, label]}
        chosen, place = np.zeros(size, np.int64), f"./record/{self.name}/{folder}"
        chosen[list(entries)] = 1
        return files, {
            "bd_data_container": {"save_folder_path": place, "data_dict": entries, "save_file_format": ".png"},
            "getitem_all": True,
            "getitem_all_switch": False,
            "original_index_array": np.arange(size) if part == "bd_train" else np.flatnonzero(chosen),
            "poison_indicator": chosen,
            "save_folder_path": place,
        }


# --- writing ---------------------------------------------------------------------------------------------------------


def _triggered(parcel: Parcel, data: Reference) -> tuple[list[Row], list[int]]:
    """The test images aimed at, as a model is shown them, in the order of their rows, and their true classes."""
    assert parcel.target_rows is not None
    assert parcel.intended is not None
    rows = known_rows(parcel.target_rows, data.test, "the poison", "test")
    images = data.test.pixels(rows).cpu() if parcel.target_images is None else parcel.target_images.cpu()
    images = pasted(images, parcel)
    order = rows.argsort().tolist()
    intended = known_labels(parcel.intended, data.test, "the poison", "intended class").tolist()
    true = data.test.labels_of(rows).tolist()
    return [Row(int(rows[i]), images[i], intended[i]) for i in order], [true[i] for i in order]


# --- reading ---------------------------------------------------------------------------------------------------------


class _Image(NamedTuple):
    """One image of a record."""

    number: int
    """Its row."""
    image: Tensor
    given: int
    """The class that it is labelled with."""
    true: int

    def row(self) -> Row:
        return Row(self.number, self.image, self.given)


def _found(path: Path) -> Path:
    if path.is_dir():
        files = [path / _FILE] if (path / _FILE).is_file() else sorted(path.glob(f"record/*/{_FILE}"))
        if len(files) != 1:
            raise FileNotFoundError(f"{path} holds {len(files)} files called {_FILE}; name one of them")
        return files[0]
    if not path.exists():
        raise FileNotFoundError(f"nothing is at {path}")
    return path


def _images(state: dict, file: Path, data: ImageData, what: str) -> Iterator[_Image]:
    """The poisoned images of one side of a record, compared with the clean set as far as it says what that was."""
    marks, order = (_numbers(state.get(name), file, name) for name in ("poison_indicator", "original_index_array"))
    entries = state.get("bd_data_container", {}).get("data_dict")
    if len(marks) != len(data.images):
        raise ValueError(
            f"{file} is of a {what} set of {len(marks):,} images, the one at hand has {len(data.images):,}"
        )
    if not isinstance(entries, dict):
        raise ValueError(f"{file} has no images of its {what} set (data_dict)")
    order = known_rows(order, data, file, what).tolist()
    for row in (row for row in order if marks[row] == 1):
        where = f"{file}: {what} row {row}"
        if row not in entries:
            raise ValueError(f"{where} is said to be poisoned, but has no image")
        entry = entries[row]
        if isinstance(entry, dict):
            home, info = file.parent, entry.get("other_info", ())
            parts = PurePosixPath(str(entry.get("path", "")).replace("\\", "/")).parts[-3:]
            image = read_image(inside(home, "/".join(parts)), data.shape)
        else:
            picture, *info = entry
            if not isinstance(picture, Picture):
                raise ValueError(f"{where} has no image, but a {type(picture).__name__}")
            with refusing(where):
                image = picture.tensor(data.shape)
        if len(info) < 2 or any(type(label) is not int for label in info[:2]):
            raise ValueError(f"{where} has the labels {str(info)[:60]}; expected the new class and the true one")
        if info[1] != int(data.labels_of(torch.tensor([row]))[0]):
            raise ValueError(f"{where} is said to be of class {info[1]}, but is not: the record is of other data")
        yield _Image(row, image, info[0], info[1])


def _numbers(value: Any, file: Path, name: str) -> list[int]:
    found = value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(found, list) or any(type(one) not in (int, float) or one != int(one) for one in found):
        raise ValueError(f"{file}: {name} is no array of whole numbers")
    return [int(one) for one in found]


def _targets(images: list[_Image], file: Path, test: ImageData) -> dict[str, Any]:
    """The fields of a parcel that say what is aimed at."""
    if not images:
        return {}
    rows = torch.tensor([image.number for image in images])
    intended = known_labels(torch.tensor([image.given for image in images]), test, file, "intended class")
    found = {"target_rows": rows, "target_labels": torch.tensor([i.true for i in images]), "intended": intended}
    shown, clean = torch.stack([image.image for image in images]), test.pixels(rows).cpu()
    if torch.equal(shown, clean):
        return found
    one = patch_between(clean, shown)
    if one is None:
        return found | {"notes": {"trigger": "not one patch: test images are changed in other ways"}}
    return found | {"patch": one[0], "place": one[1]}
