from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mithridate.core.data import ImageData
from mithridate.poisoning.exchange.metapoison import Metapoison
from mithridate.poisoning.exchange.parcel import Parcel, Reference
from mithridate.poisoning.exchange.verification import verify
from tests.poisoning.cases import CLASSES
from tests.poisoning.exchange.exchange_cases import (
    equal,
    of_one_class,
    parcels,
    poison_of,
    reference,
    returned,
    survives_damage,
)

FORM = Metapoison()
NAME = "poisondataset-60.pkl"
KINDS = ("float32", "uint8")
PER_CLASS = 8
"""Of the 24 training images."""


def form(dtype: Any) -> Metapoison:
    return Metapoison(dtype=dtype)


def loaded(folder: Path) -> dict[str, np.ndarray]:
    with (folder / NAME).open("rb") as file:
        return pickle.load(file)


def dumped(folder: Path, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_bytes(pickle.dumps(content))
    return folder


def slight(data: Reference, *, count: int = 3, levels: float = 4) -> Parcel:
    """Poison of class 1, moved by a few levels, aimed at one image of class 2."""
    parcel = of_one_class(data, count=count)
    assert parcel.base is not None
    signs = torch.where(parcel.base < 128, 1.0, -1.0)
    return dataclasses.replace(parcel, images=(parcel.base + levels * signs).round().to(torch.uint8))


# --- round trips -----------------------------------------------------------------------------------------------------


@given(parcels(relabel=False), st.sampled_from(KINDS))
@settings(max_examples=30)
def test_round_trip(case: tuple[Parcel, Reference], dtype: str) -> None:
    parcel, data = case
    if not parcel.targets:
        with pytest.raises(ValueError, match="needs intended"):
            form(dtype).write(parcel, Path("nowhere"), data)
        return
    back = returned(form(dtype), parcel, data)
    assert equal(parcel, back, {"images", "labels", "rows"})
    for name in ("target_images", "target_labels", "intended"):  # in the order in which they were
        assert torch.equal(getattr(parcel, name), getattr(back, name)), name
    assert back.notes == {"rounded_by": 0.0}
    assert back.target_rows is None


@given(st.permutations(range(24)), st.integers(0, 99))
@settings(max_examples=20)
def test_the_order_of_the_data_does_not_matter(order: list[int], seed: int) -> None:
    data = reference()
    labels = torch.tensor(order) % 3
    mixed = Reference(ImageData(data.train.images[order], labels, CLASSES), data.test)
    parcel = poison_of([5, 9, 0, 17], seed, mixed, targets=1)
    assert equal(parcel, returned(FORM, parcel, mixed), {"images", "labels", "rows"})


def test_the_name_says_the_steps(tmp_path: Path) -> None:
    data = reference()
    (file,) = Metapoison(steps=240).write(slight(data), tmp_path / "a", data)
    assert file.name == "poisondataset-240.pkl"
    for path in (file, tmp_path / "a"):
        assert FORM.recognises(path)
        assert equal(slight(data), FORM.read(path, data), {"images", "rows"})
    file.with_name(NAME).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="holds 2 files"):
        FORM.read(tmp_path / "a", data)


# --- as the peers read it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", KINDS)
def test_the_arrays_are_those_of_the_peer(tmp_path: Path, dtype: str) -> None:
    data, parcel = reference(), slight(reference())
    form(dtype).write(parcel, tmp_path, data)
    found = loaded(tmp_path)
    assert list(found) == ["xtrain", "ytrain", "xtarget", "ytarget", "ytargetadv", "xvalid", "yvalid"]
    assert {name: found[name].shape for name in found} == {
        "xtrain": (24, 8, 8, 3),
        "ytrain": (24,),
        "xtarget": (1, 8, 8, 3),
        "ytarget": (1,),
        "ytargetadv": (1,),
        "xvalid": (9, 8, 8, 3),
        "yvalid": (9,),
    }
    assert {found[name].dtype for name in found if name[0] == "x"} == {np.dtype(dtype)}
    assert {found[name].dtype for name in found if name[0] == "y"} == {np.dtype(np.int64)}
    assert found["ytrain"].tolist() == sorted(found["ytrain"].tolist())
    assert found["yvalid"].tolist() == sorted(found["yvalid"].tolist())
    assert (found["ytarget"].tolist(), found["ytargetadv"].tolist()) == ([2], [1])
    assert found["xtrain"].max() > 1  # 0 to 255, not 0 to 1


def test_the_readers_find_the_poison_in_its_class(tmp_path: Path) -> None:
    """data-poisoning takes the whole intended class, EPIC a number of images from where that class begins."""
    data = reference()
    parcel = dataclasses.replace(poison_of([1, 4, 7], 0, data), **aimed(data))
    FORM.write(parcel, tmp_path, data)
    found = loaded(tmp_path)
    whole = np.arange(24)[found["ytrain"] == found["ytargetadv"]]
    assert whole.tolist() == list(range(PER_CLASS, 2 * PER_CLASS))
    begin = PER_CLASS * int(found["ytargetadv"][0])
    seen = found["xtrain"].astype(np.uint8)[begin : begin + 3]
    assert np.array_equal(seen, parcel.images.permute(0, 2, 3, 1).numpy())
    assert found["ytrain"][begin : begin + 3].tolist() == [1, 1, 1]


def aimed(data: Reference) -> dict[str, Any]:
    """The fields of a parcel that say what is aimed at."""
    one = of_one_class(data)
    return {name: getattr(one, name) for name in ("target_images", "target_rows", "target_labels", "intended")}


# --- which row is which ----------------------------------------------------------------------------------------------


def test_a_row_of_the_file_is_no_row_of_the_data(tmp_path: Path) -> None:
    """The trap: classes alternate in the data and follow each other in the file."""
    data, parcel = reference(), slight(reference())
    FORM.write(parcel, tmp_path, data)
    found = loaded(tmp_path)["xtrain"]
    assert parcel.rows is not None
    expected = parcel.images.permute(0, 2, 3, 1).numpy()
    places = [PER_CLASS * 1 + row // 3 for row in parcel.rows.tolist()]  # class 1, and which one of it
    assert np.array_equal(found[places], expected)
    assert sorted(places) != sorted(parcel.rows.tolist())
    back = FORM.read(tmp_path, data)
    assert equal(parcel, back, {"rows"})
    naive = dataclasses.replace(parcel.with_rows(torch.tensor(places)), base=None, labels=None)
    assert {one.what for one in verify(naive, data) if one.standing == "fails"} == {"base"}


def test_25000_is_right_for_one_class_only(tmp_path: Path) -> None:
    """The place of the first poison moves with its class, whatever a README says."""
    data = reference()
    for label in range(3):
        parcel = of_one_class(data, label=label, count=1)
        FORM.write(parcel, tmp_path / str(label), data)
        clean = data.train.pixels(data.train.ids[data.train.labels.argsort(stable=True)]).permute(0, 2, 3, 1).numpy()
        changed = (loaded(tmp_path / str(label))["xtrain"] != clean).any((1, 2, 3)).nonzero()[0]
        assert changed.tolist() == [PER_CLASS * label + 7]  # the last of its class


def brewed(data: Reference, *, per_class: int = PER_CLASS, poisons: int = 2, levels: float = 4.4) -> dict[str, Any]:
    """As metapoison itself makes it: the first few of each class, sorted, floats, the first poisons of a class."""
    sides = {}
    for name, known, count in (("train", data.train, per_class), ("valid", data.test, 3)):
        chosen = [row for label in range(3) for row in (known.labels == label).nonzero()[:count, 0].tolist()]
        sides[f"x{name}"] = known.images[chosen].permute(0, 2, 3, 1).numpy().astype("float32")
        sides[f"y{name}"] = np.array(known.labels[chosen].tolist())
    begin = int(1 / (max(sides["ytrain"]) + 1) * len(sides["xtrain"]))
    base = sides["xtrain"][begin : begin + poisons]
    sides["xtrain"][begin : begin + poisons] = np.where(base < 128, base + levels, base - levels)
    return {**sides, "xtarget": sides["xvalid"][6:7], "ytarget": np.array([2]), "ytargetadv": np.array([1])}


@pytest.mark.parametrize("per_class", [PER_CLASS, 5])
def test_what_metapoison_writes_is_read(tmp_path: Path, per_class: int) -> None:
    data = reference()
    content = brewed(data, per_class=per_class)
    back = FORM.read(dumped(tmp_path, content), data)
    assert back.rows is not None
    assert back.rows.tolist() == [1, 4]  # the first two of class 1 in the data
    assert (back.labels.tolist(), back.intended.tolist(), back.target_labels.tolist()) == ([1, 1], [1], [2])  # type: ignore[union-attr]
    assert (back.images.int() - data.train.pixels(back.rows).int()).abs().unique().tolist() == [4]
    assert back.notes["rounded_by"] == pytest.approx(0.4, abs=1e-4)
    assert torch.equal(back.target_images, data.test.pixels(torch.tensor([2])))  # type: ignore[arg-type]


def test_classes_in_columns_and_other_types(tmp_path: Path) -> None:
    """keras gives classes as [N, 1]; others keep float64 or whole numbers."""
    data = reference()
    content = brewed(data, levels=4)
    for kind in (np.float64, np.uint8, np.int16):
        changed = {name: value.astype(kind) if name[0] == "x" else value[:, None] for name, value in content.items()}
        assert FORM.read(dumped(tmp_path, changed), data).rows.tolist() == [1, 4]  # type: ignore[union-attr]


def other_order(data: Reference, seed: int = 0) -> tuple[Reference, torch.Tensor]:
    """The same data with the training rows in another order, and which old row each is."""
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    train = ImageData(data.train.images[order], data.train.labels[order], CLASSES)
    return Reference(train, data.test), order


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_found_by_content_in_data_of_another_order(tmp_path: Path, seed: int) -> None:
    data, parcel = reference(), slight(reference())
    FORM.write(parcel, tmp_path, data)
    other, order = other_order(data, seed)
    back = FORM.read(tmp_path, other)
    assert back.rows is not None
    assert parcel.rows is not None
    assert sorted(order[back.rows].tolist()) == sorted(parcel.rows.tolist())
    moved = (back.images.int() - other.train.pixels(back.rows).int()).abs()
    assert int(moved.max()) == 4


def test_rows_that_cannot_be_told_are_not_guessed(tmp_path: Path) -> None:
    data = reference()
    FORM.write(of_one_class(data), tmp_path, data)  # changed without a bound
    assert equal(of_one_class(data), FORM.read(tmp_path, data), {"rows"})
    with pytest.raises(ValueError, match="which rows the poisons replace cannot be told"):
        FORM.read(tmp_path, other_order(data)[0])


def test_hidden_rows_keep_their_numbers(tmp_path: Path) -> None:
    data = reference()
    few = Reference(data.train.drop([1, 2, 9]), data.test)
    parcel = slight(few)
    FORM.write(parcel, tmp_path, few)
    assert len(loaded(tmp_path)["xtrain"]) == 21
    assert equal(parcel, FORM.read(tmp_path, few), {"images", "rows", "labels"})


# --- planted faults --------------------------------------------------------------------------------------------------


def test_what_cannot_be_written(tmp_path: Path) -> None:
    data = reference()
    parcel = slight(data)
    for change, said in (
        ({"intended": None}, "needs intended"),
        ({"rows": None}, "needs rows"),
        ({"labels": torch.tensor([2, 2, 2])}, "has other labels than its rows"),
        ({"rows": torch.tensor([1, 4, 24])}, "training row 24 is not in"),
        ({"rows": torch.tensor([1, 4, 4])}, "more than once"),
        ({"intended": torch.tensor([3])}, "intended class 3 is none of"),
        ({"target_images": None, "target_rows": None}, "needs target_images or target_rows"),
    ):
        with pytest.raises(ValueError, match=said):
            FORM.write(dataclasses.replace(parcel, **change), tmp_path / "a", data)
    assert not (tmp_path / "a").exists()
    FORM.write(parcel, tmp_path / "a", data)
    with pytest.raises(FileExistsError):
        FORM.write(parcel, tmp_path / "a", data)


class Call:
    """Would leave a file behind if it were unpickled freely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_is_run(tmp_path: Path) -> None:
    data, trace = reference(), tmp_path / "trace"
    for content in (Call(trace), brewed(data) | {"xvalid": Call(trace)}, brewed(data) | {"more": Call(trace)}):
        with pytest.raises(ValueError, match="asks for"):
            FORM.read(dumped(tmp_path / "a", content), data)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("xtrain", lambda a: a / 255 * 300, "outside 0 to 255"),
        ("xtrain", lambda a: a - 100, "outside 0 to 255"),
        ("xtrain", lambda a: a * np.nan, "outside 0 to 255"),
        ("xtrain", lambda a: a.transpose(0, 3, 1, 2), r"xtrain is \[24, 3, 8, 8\]; expected images"),
        ("xtrain", lambda a: a[:-1], "xtrain has 23 entries, ytrain 24"),
        ("xtrain", lambda a: np.concatenate([a, a[:1]]), "xtrain has 25 entries, the set at hand 24"),
        ("xtrain", lambda a: a.astype(object), "plain numbers"),
        ("xtrain", lambda a: a.astype(bool), "xtrain is no array of numbers"),
        ("xtrain", lambda a: a.tolist(), "xtrain is no array of numbers"),
        ("xtrain", lambda a: a[0, 0, 0, 0], "xtrain is no array of numbers"),
        ("ytrain", lambda a: a + 1, "classes hold 3"),
        ("ytrain", lambda a: a - 1, "classes hold -1"),
        ("ytrain", lambda a: a + 0.5, "classes hold 0.5"),
        ("ytrain", lambda a: np.eye(24), r"ytrain is \[24, 24\]"),
        (
            "ytrain",
            lambda a: np.where(np.arange(24) == 9, 2, a),
            "holds 9 images of class 2, the training set at hand 8",
        ),
        ("xtarget", lambda a: a + 300, "outside 0 to 255"),
        ("xtarget", lambda a: a[:, :4], "xtarget is"),
        ("ytarget", lambda a: a + 1, "classes hold 3"),
        ("ytargetadv", lambda a: np.array([1, 1]), "xtarget has 1 entries, ytargetadv 2"),
    ],
)
def test_planted_faults(tmp_path: Path, name: str, change: Any, said: str) -> None:
    data = reference()
    content = brewed(data)
    assert len(FORM.read(dumped(tmp_path, content), data)) == 2
    with pytest.raises(ValueError, match=said) as error:
        FORM.read(dumped(tmp_path, content | {name: change(content[name])}), data)
    assert NAME in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [([1, 2], "is a list; expected a dictionary"), ({"xtrain": 1}, "has no ytrain, xtarget, ytarget, ytargetadv")],
)
def test_another_pickle(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FORM.read(dumped(tmp_path, content), reference())


def test_two_labels_that_were_exchanged(tmp_path: Path) -> None:
    """As many of each class as before, so that only the contents can tell."""
    data = reference()
    content = brewed(data)
    content["ytrain"][[8, 20]] = content["ytrain"][[20, 8]]  # the first poison, and a clean image of class 2
    with pytest.raises(ValueError, match="which rows the poisons replace cannot be told"):
        FORM.read(dumped(tmp_path, content), data)


def test_other_data_are_not_taken_for_these(tmp_path: Path) -> None:
    data = reference()
    other = Reference(dataclasses.replace(data.train, images=255 - data.train.images), data.test)
    FORM.write(slight(data), tmp_path, data)
    back = FORM.read(tmp_path, other)
    assert len(back) == 24  # all differ
    with pytest.raises(ValueError, match="expected images"):
        FORM.read(tmp_path, reference(3, 4))


def test_nothing_there(tmp_path: Path) -> None:
    assert not FORM.recognises(tmp_path)
    for path in (tmp_path, tmp_path / "none", tmp_path / NAME):
        with pytest.raises(FileNotFoundError):
            FORM.read(path, reference())


@given(st.sampled_from(KINDS), st.integers(0, 10**6))
@settings(max_examples=100)
def test_damaged_files(dtype: str, seed: int) -> None:
    survives_damage(form(dtype), "out", seed)


@given(st.binary(max_size=300))
@settings(max_examples=40)
def test_random_bytes(garbage: bytes) -> None:
    assert survives_damage(FORM, "out", 0, garbage)
