from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from mithridate.core.data import ImageData
from mithridate.core.readers import read_dataset
from mithridate.core.schema import from_json, resumable, to_json
from mithridate.core.sources import Arrays, DataSource, TorchDataset, source
from mithridate.core.torch_datasets import item_pixels
from tests.core.image_files import images_of, pixels, torch_pair

ARRAYS = pixels(8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1])


class Items(Dataset):
    """What a user writes: images in a list, each made by a function when it is asked for."""

    def __init__(self, make: Callable[[np.ndarray], Any] = Image.fromarray, arrays: Any = ARRAYS, labels: Any = LABELS):
        self.make, self.arrays, self.labels = make, arrays, labels

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.make(self.arrays[index]), self.labels[index]


class Named(Items):
    classes = ("cat", "dog", "ship")


def first_channel(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)[:, :, 0]


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


# --- one item --------------------------------------------------------------------------------------------------------

FORMS = {
    "PIL": Image.fromarray,
    "uint8 CHW": chw,
    "uint8 HWC": torch.from_numpy,
    "float CHW": lambda array: chw(array) / 255,
    "double HWC": lambda array: torch.from_numpy(array).double() / 255,
    "numpy HWC": np.copy,
    "numpy float CHW": lambda array: (array / 255).transpose(2, 0, 1),
    "numpy mirrored twice": lambda array: array[:, ::-1].copy()[:, ::-1],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_means_the_same(form: str) -> None:
    data = read_dataset(Items(FORMS[form]))
    assert np.array_equal(images_of(data), ARRAYS)
    assert data.labels.tolist() == LABELS.tolist()
    assert data.decoder == ("pillow" if form == "PIL" else "")
    if form != "PIL":
        assert data.fingerprint() == ImageData.from_arrays(ARRAYS, LABELS).fingerprint()


@pytest.mark.parametrize(
    "make",
    [
        first_channel,
        lambda array: first_channel(array).numpy(),
        lambda array: first_channel(array)[None].float() / 255,
        lambda array: (first_channel(array)[..., None] / 255).to(torch.float64),
        lambda array: Image.fromarray(np.ascontiguousarray(array[..., 0])),
    ],
)
def test_grey_in_every_form(make: Callable) -> None:
    assert np.array_equal(images_of(read_dataset(Items(make))), ARRAYS[..., :1])


def test_modes_and_sizes_of_pil_images_are_those_of_the_decoder() -> None:
    image = Image.fromarray(ARRAYS[0]).convert("RGBA")
    image.putalpha(0)
    assert item_pixels("a", image).min() == 255
    assert item_pixels("a", Image.new("P", (3, 2))).shape == (2, 3, 3)
    with pytest.raises(ValueError, match="item 4: floating-point pixels"):
        item_pixels("item 4", Image.new("F", (3, 2)))


def test_size_resizes_tensors_as_it_does_images() -> None:
    found = [images_of(ImageData.from_dataset(Items(make), size=3)) for make in (Image.fromarray, chw)]
    assert found[0].shape == (8, 3, 3, 3)
    assert np.array_equal(*found)
    assert item_pixels("a", first_channel(ARRAYS[0]), size=9).shape == (9, 9, 1)


def test_grey_items_beside_colour_become_colour() -> None:
    data = read_dataset(ConcatDataset([Items(first_channel), Items(chw)]))
    assert np.array_equal(images_of(data)[:8], np.repeat(ARRAYS[..., :1], 3, axis=3))
    assert np.array_equal(images_of(data)[8:], ARRAYS)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.randn(3, 4, 4) * 3 - 5, r"item 7 has pixel values in .*; expected \[0, 1\]; remove Normalize from"),
        (torch.full((3, 4, 4), 2.6), "remove Normalize from the transforms .* first layer of the model"),
        (torch.full((3, 4, 4), 200.0), "divide by 255"),
        (torch.full((3, 4, 4), torch.nan), "remove or repair this image"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64; expected uint8 in 0..255 or floats"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), "bool; expected uint8"),
        (torch.zeros(4, 5, 6), r"shape \[4, 5, 6\]; expected \[H, W\], \[C, H, W\] or"),
        (np.zeros((3, 4, 3)), "and no side of that length"),
        (np.zeros((2, 3, 4, 4)), r"shape \[2, 3, 4, 4\]"),
        ("cat.png", "type str; expected a PIL image, tensor or array"),
        (None, "type NoneType"),
    ],
)
def test_wrong_images(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        item_pixels("item 7", image)


# --- one set ---------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return iter([(Image.fromarray(ARRAYS[0]), 0)])


class Mappings(Items):
    def __getitem__(self, index: int) -> Any:
        return {"image": ARRAYS[index], "label": 0}


class Mirrored(Items):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        array, label = self.arrays[index], self.labels[index]
        return torch.from_numpy(array.copy()).flip(0 if torch.rand(()) < 0.5 else 1), label


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (Stream(), TypeError, "is a Stream, which has no length or cannot be read by position; .*list"),
        (iter([]), TypeError, "expected a map-style dataset"),
        ([], ValueError, "is empty: 0 items"),
        (Mappings(), ValueError, r"Mappings item 0 is a dict; expected a pair \(image, label\)"),
        (Mirrored(), ValueError, "differs each time it is read; random augmentation belongs into Recipe.transforms"),
        (Items(labels=LABELS / 2), ValueError, "has the label .*0.0.*; expected a whole number"),
        (Items(labels=np.eye(8)), ValueError, "has the label .*; expected a whole number"),
        (Items(labels=["cat"] * 8), ValueError, "has the label 'cat'"),
        (Items(labels=LABELS == 0), ValueError, "has the label .*True.*; expected a whole number"),
        (Items(labels=LABELS - 1), ValueError, "row 0 has label -1"),
        (Items(labels=LABELS * 0), ValueError, "all 8 rows have label 0"),
        (Named(labels=LABELS + 1), ValueError, "row 2 has label 3, but 3 classes"),
        (Items(arrays=[*ARRAYS, np.zeros((5, 6, 3), np.uint8)], labels=[*LABELS, 0]), ValueError, "item 8 is 6x5 "),
    ],
)
def test_wrong_datasets(dataset: Any, error: type[Exception], message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(error, match=message):
        ImageData.from_dataset(dataset)


def test_names_of_classes_come_from_the_argument_the_dataset_or_the_labels() -> None:
    assert read_dataset(Items()).classes == ("0", "1", "2")
    assert read_dataset(Named()).classes == ("cat", "dog", "ship")
    assert read_dataset(Subset(Subset(Named(), range(7)), range(6))).classes == ("cat", "dog", "ship")
    assert ImageData.from_dataset(Named(), ["a", "b", "c", "d"]).classes == ("a", "b", "c", "d")


def test_synonyms_are_joined_and_equal_names_are_an_error() -> None:
    synonyms = Named()
    synonyms.classes = [("cat", "puss"), ("dog",), "ship"]
    assert read_dataset(synonyms).classes == ("cat, puss", "dog", "ship")
    synonyms.classes = ["crane", "dog", "crane"]
    with pytest.raises(ValueError, match=r"Named.classes names crane more than once; give classes="):
        read_dataset(synonyms)
    with pytest.raises(ValueError, match=r"classes names a more than once"):
        read_dataset(Named(), ["a", "a", "b"])


# --- the source ------------------------------------------------------------------------------------------------------


def test_a_function_is_a_source_by_name() -> None:
    chosen = source("tests.core.image_files:torch_pair")
    assert chosen == TorchDataset(torch_pair)
    train, test = chosen.load()
    assert (len(train), len(test), train.classes) == (12, 6, ("0", "1", "2"))
    assert np.array_equal(images_of(train), pixels(12, 5))
    assert np.array_equal(images_of(test), pixels(6, 6))
    written = to_json(chosen)
    assert written["datasets"]["function"] == "tests.core.image_files:torch_pair"
    assert resumable(chosen)
    assert from_json(written, DataSource) == chosen
    assert from_json(written | {"datasets": "tests.core.image_files:torch_pair"}, DataSource) == chosen
    assert not resumable(TorchDataset(lambda: torch_pair()))


@pytest.mark.parametrize("cached", [False, True])
def test_limits_hold_for_training_images(tmp_path: Path, cached: bool) -> None:
    chosen = TorchDataset(torch_pair, per_class=2, size=3, cache=str(tmp_path) if cached else None)
    train, test = chosen.load()
    rows = [0, 1, 2, 3, 4, 5]
    images = pixels(12, 5)[rows]
    expected = [item_pixels("a", Image.fromarray(image), 3) for image in images]
    assert np.array_equal(images_of(train), expected)
    assert (train.labels.tolist(), len(test)) == ([0, 1, 2, 0, 1, 2], 6)


def pair_of(make: Callable, seed: int = 5) -> tuple[Items, Items]:
    return Items(make, pixels(8, seed)), Items(make, pixels(8, seed + 1))


@pytest.mark.parametrize("make", [Image.fromarray, chw, first_channel])
def test_a_cache_holds_the_same_and_is_found_again(tmp_path: Path, make: Callable) -> None:
    plain = TorchDataset(functools.partial(pair_of, make)).load()
    reads: list[int] = []

    def counted() -> tuple[Items, Items]:
        return pair_of(lambda array: reads.append(1) or make(array))

    found = []
    for _ in range(2):
        pair = TorchDataset(counted, cache=tmp_path).load()
        assert [data.fingerprint() for data in pair] == [data.fingerprint() for data in plain]
        found.append(len(reads))
    assert found[1] - found[0] == found[0] - 16  # a sample of the items is read each time, the rest once
    changed = TorchDataset(lambda: pair_of(make, seed=7), cache=tmp_path).load()
    assert changed[0].fingerprint() != plain[0].fingerprint()


class Dogs(Items):
    classes = ("cat", "ship", "dog")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Items(), TypeError, "returned a Items; expected a pair"),
        (lambda: None, TypeError, "returned a NoneType; expected a pair of datasets"),
        (lambda: (Items(), Items(), Items()), TypeError, "returned a tuple"),
        (lambda: (Named(), Dogs()), ValueError, "the classes cat, dog, ship, the test set cat, ship, dog; both need"),
        (lambda: (Items(), Dogs()), ValueError, r"the classes \(unnamed\), the test set cat, ship, dog"),
        (lambda: (Items(), Items(labels=LABELS + 1)), ValueError, "test set: row 2 has label 3"),
        (lambda: (Items(), Items(arrays=pixels(8, side=6))), ValueError, "training set has 4x4, the test set has 6x6"),
        (lambda: (Items(), Stream()), TypeError, "test set is a Stream"),
    ],
)
def test_wrong_pairs(make: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TorchDataset(make).load()


def test_classes_hold_for_both_sets() -> None:
    train, test = TorchDataset(lambda: (Named(), Dogs()), classes=["a", "b", "c"]).load()
    assert train.classes == test.classes == ("a", "b", "c")


def test_grey_beside_colour(tmp_path: Path) -> None:
    for cache in (None, tmp_path):
        train, test = TorchDataset(lambda: (Items(first_channel), Items(chw)), cache=cache).load()
        assert train.shape == test.shape == (3, 4, 4)
        assert np.array_equal(images_of(train), np.repeat(ARRAYS[..., :1], 3, axis=3))
        Arrays(train, test)


def test_no_function() -> None:
    with pytest.raises(TypeError, match="datasets is a TensorDataset; expected a function"):
        TorchDataset(TensorDataset(torch.zeros(2)))
    with pytest.raises(ValueError, match="no 'torch_pear'; did you mean torch_pair"):
        source("tests.core.image_files:torch_pear")
    with pytest.raises(ValueError, match="no module 'nosuch'"):
        source("nosuch.module:data")
