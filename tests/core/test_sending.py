"""Large tensors leave the pickle: once for all tasks, in every memory layout, and nobody else's copy is written to."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

from mithridate.core.data import ImageData
from mithridate.core.sending import LEAST, Packer, Shelf, check_sendable, unpack
from mithridate.core.sources import Arrays
from mithridate.core.workers import processes


class Places:
    """A list of arrays as a place that tasks share."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def put(self, array: np.ndarray) -> int:
        self.arrays.append(array.copy())
        return len(self.arrays) - 1

    def sent(self, value: Any) -> Any:
        return unpack(Packer(self.put).pack(value), self.arrays.__getitem__)


def pixels(count: int = 60) -> torch.Tensor:
    return torch.arange(count * 3 * 32 * 32).remainder(251).to(torch.uint8).view(count, 3, 32, 32)


def in_memory() -> Arrays:
    labels = torch.arange(60) % 2
    return Arrays(*(ImageData(pixels() + shift, labels, ("a", "b")) for shift in (0, 1)))


def fingerprints(source: Arrays) -> tuple[str, str, int]:
    """A task for a worker: what it was sent, before it writes into it."""
    found = source.train._fingerprint, source.test._fingerprint
    assert "_fingerprint" in vars(source.train)
    source.train.images.zero_()
    return *found, int(source.train.images.sum())


LAYOUTS = {
    "contiguous": pixels(),
    "channels last": pixels().contiguous(memory_format=torch.channels_last),
    "a view with an offset": pixels(100)[30:90],
    "transposed": torch.arange(60000).view(300, 200).T,
    "labels": torch.arange(LEAST // 8),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_tensor_comes_back_with_its_bits_and_its_layout(name: str) -> None:
    tensor, places = LAYOUTS[name], Places()
    again = places.sent({"of": [tensor]})["of"][0]
    assert torch.equal(again, tensor)
    assert (again.dtype, again.shape, again.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    assert [array.nbytes for array in places.arrays] == [tensor.nbytes]


OTHERS = {
    "small": torch.arange(LEAST // 8 - 1),
    "spread out": pixels()[:, :, ::2],
    "repeated": torch.zeros(1, dtype=torch.int64).expand(LEAST),
    "weights, which training writes into": torch.zeros(LEAST),
    "a parameter": torch.nn.Parameter(torch.zeros(LEAST)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_stay_in_the_pickle(name: str) -> None:
    places = Places()
    again = places.sent(OTHERS[name])
    assert torch.equal(again, OTHERS[name])
    assert type(again) is type(OTHERS[name])
    assert places.arrays == []


def test_tasks_with_the_same_pixels_share_them() -> None:
    places, source = Places(), in_memory()
    packer = Packer(places.put)
    parcels = [packer.pack((number, source)) for number in range(20)]
    assert len(places.arrays) == 2
    assert sum(len(parcel.pickled) for parcel in parcels) < source.train.images.nbytes
    number, last = unpack(parcels[-1], places.arrays.__getitem__)
    assert number == 19
    assert torch.equal(last.test.images, source.test.images)


def test_what_was_written_to_in_between_is_sent_again() -> None:
    places, tensor = Places(), pixels()
    packer = Packer(places.put)
    before = packer.pack(tensor)
    tensor.zero_()
    after = packer.pack(tensor)
    assert int(unpack(before, places.arrays.__getitem__).sum()) > 0
    assert int(unpack(after, places.arrays.__getitem__).sum()) == 0


def test_no_room_for_sharing_means_copying() -> None:
    tensor = pixels()
    parcel = Packer(lambda array: None).pack(tensor)
    assert parcel.places == []
    assert torch.equal(unpack(parcel, [].__getitem__), tensor)


def test_a_shelf_on_a_full_disk_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with Shelf() as shelf:
        first = shelf.put(np.arange(7, dtype=np.uint8))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            assert shelf.put(np.arange(9, dtype=np.uint8)) is None
        second = shelf.put(np.arange(3, dtype=np.uint8))
        assert first is not None
        assert second is not None
        assert shelf.take(first).tolist() == list(range(7))
        assert shelf.take(second).tolist() == list(range(3))


def test_workers_map_what_the_tasks_share_and_write_to_copies_of_their_own() -> None:
    source = in_memory()
    names = source.train.fingerprint(), source.test.fingerprint()
    assert list(processes(2)(fingerprints, [source] * 4)) == [(*names, 0)] * 4
    assert source.train.fingerprint() == ImageData(source.train.images, source.train.labels, ("a", "b")).fingerprint()


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(ValueError, match="item 1 cannot be sent to a worker process"):
        check_sendable(len, [1, lambda: 2])
