"""What formats share, on sets that are larger than one piece."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mithridate.core.data import ImageData
from mithridate.poisoning.exchange.checks import (
    PIECE,
    Row,
    known_labels,
    known_rows,
    parcel_of,
    poisoned_set,
    rows_of,
)
from mithridate.poisoning.exchange.data_poisoning import DataPoisoning
from mithridate.poisoning.exchange.hugging_face import HuggingFace
from mithridate.poisoning.exchange.npz import Npz
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from tests.poisoning.exchange.exchange_cases import equal, poison_of, reference

COUNT = 2 * PIECE + 7


@pytest.fixture(scope="module")
def large() -> Reference:
    """More than two pieces of tiny grey images."""
    images = torch.randint(0, 256, (COUNT, 1, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = ImageData(images, torch.arange(COUNT) % 3, ("ant", "bee", "cat"))
    return Reference(data, data.select(range(9)))


EDGES = [0, PIECE - 1, PIECE, 2 * PIECE, COUNT - 1]


@pytest.mark.parametrize("form", [DataPoisoning(mode="numpy"), HuggingFace(), Npz()])
def test_poison_at_the_edges_of_pieces(tmp_path: Path, large: Reference, form: Format) -> None:
    parcel = poison_of(EDGES[::-1], 0, large)
    form.write(parcel, tmp_path / "a.npz", large)
    assert equal(parcel, form.read(tmp_path / "a.npz", large), {"images", "labels", "rows"})


def test_a_whole_set_in_any_order(large: Reference) -> None:
    parcel = poison_of(EDGES, 0, large)
    items = list(rows_of(poisoned_set(parcel, large.train)))
    assert [item.row for item in items] == list(range(COUNT))
    back = parcel_of(reversed(items), large.train, "a", whole=True)
    assert equal(parcel, back, {"images", "labels", "rows"})
    assert len(parcel_of(reversed(items), large.train, "a", whole=False)) == COUNT
    with pytest.raises(ValueError, match="row 5 is named more than once"):
        parcel_of([*items, items[5]], large.train, "a", whole=True)


def test_marks_decide_where_they_are() -> None:
    data = reference().train
    clean = list(rows_of(data))
    marked = [item._replace(poisoned=item.row == 3) for item in clean]
    assert parcel_of(marked, data, "a", whole=True).rows == torch.tensor([3])
    changed = [item._replace(image=255 - item.image) if item.row == 4 else item for item in marked]
    with pytest.raises(ValueError, match="row 4 is said to be clean"):
        parcel_of(changed, data, "a", whole=True)
    relabelled = [item._replace(label=(item.row + 1) % 3) if item.row == 5 else item for item in clean]
    back = parcel_of(relabelled, data, "a", whole=True)
    assert back.rows == torch.tensor([5])
    assert back.labels == torch.tensor([0])


def test_a_format_without_labels_has_none() -> None:
    data = reference().train
    items = [Row(item.row, 255 - item.image) for item in rows_of(data)]
    assert parcel_of(items, data, "a", whole=True).labels is None
    assert parcel_of([], data, "a", whole=False).images.shape == (0, 3, 8, 8)


def test_huge_numbers_are_refused_not_overflowed() -> None:
    data = reference().train
    for row in (2**63, 2**70, -(2**70)):
        with pytest.raises(ValueError, match="is not in the training set"):
            known_rows([row], data, "a")
        with pytest.raises(ValueError, match="is not in the training set"):
            parcel_of([Row(row, data.images[0])], data, "a", whole=False)
    with pytest.raises(ValueError, match="none of the 3 classes"):
        parcel_of([Row(0, data.images[0], 2**70)], data, "a", whole=False)
    with pytest.raises(ValueError, match="label -1"):
        known_labels(torch.tensor([0, -1]), data, "a")


def test_the_clean_set_stays_as_it_is() -> None:
    data = reference().train
    before = data.images.clone()
    poisoned_set(poison_of([1, 2], 0, reference()), data)
    assert torch.equal(data.images, before)
    with pytest.raises(ValueError, match="needs rows"):
        poisoned_set(Parcel(data.images[:1]), data)
