from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from mithridate.core.classifier import mean_and_std
from mithridate.core.data import ImageData, Patch, check_labels

ROWS, CLASSES = 9, ("cat", "dog", "ship")


def make(seed: int = 0, channels: int = 3, channels_last: bool = False) -> ImageData:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (ROWS, channels, 5, 4), dtype=np.uint8))
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return ImageData(images, torch.arange(ROWS) % 3, CLASSES)


def noise(count: int, seed: int, channels: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(1000 + seed)
    return torch.from_numpy(rng.integers(0, 256, (count, channels, 5, 4), dtype=np.uint8))


def plain(data: ImageData) -> ImageData:
    """The same visible content in another store: a dense copy without a patch."""
    everything = torch.arange(len(data.images))
    return ImageData(data.pixels(everything), data.labels_of(everything), data.classes, data.rows)


some_rows = st.lists(st.integers(0, ROWS - 1), unique=True, max_size=ROWS)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_apply_the_patch_like_a_slow_loop(channels: int, channels_last: bool) -> None:
    data = make(1, channels, channels_last)
    replaced = {7: noise(1, 7, channels)[0], 2: noise(1, 2, channels)[0]}
    poisoned = data.replace(list(replaced), torch.stack(list(replaced.values())), torch.tensor([0, 1]))
    rows = torch.tensor([2, 0, 7, 7, 8, 2])
    expected = torch.stack([replaced.get(int(r), data.images[int(r)]) for r in rows])
    labels = torch.tensor([{7: 0, 2: 1}.get(int(r), int(r) % 3) for r in rows])
    assert torch.equal(poisoned.pixels(rows), expected)
    assert torch.equal(poisoned.labels_of(rows), labels)
    floats = poisoned.floats(rows)
    assert torch.equal(floats, expected.to(torch.float32) / 255)
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert poisoned.pixels(torch.empty(0, dtype=torch.int64)).shape == (0, channels, 5, 4)


def test_pixels_of_another_set_are_untouched_by_what_is_done_to_them() -> None:
    data = make()
    poisoned = data.replace([1], noise(1, 0))
    before = (data.images.clone(), poisoned.patch.images.clone())
    data.pixels(torch.tensor([1])).zero_()
    poisoned.pixels(torch.tensor([0, 1])).zero_()
    poisoned.floats(torch.tensor([1])).zero_()
    assert torch.equal(data.images, before[0])
    assert torch.equal(poisoned.patch.images, before[1])


def test_memory_is_kept_as_given() -> None:
    data = make()
    poisoned = data.replace([3], noise(1, 0)).drop([0]).select([3, 4]).to("cpu")
    assert poisoned.images.data_ptr() == data.images.data_ptr()
    assert data.to("cpu") is data


def test_a_patch_makes_its_lookup_once_for_every_selection() -> None:
    poisoned = make().replace([3], noise(1, 0))
    first, second = poisoned.select([0, 3]), poisoned.drop([0])
    assert first.patch.lookup(ROWS) is second.patch.lookup(ROWS)


def test_it_survives_pickling_as_worker_processes_need() -> None:
    data = make().replace([3], noise(1, 0)).drop([0])
    again = pickle.loads(pickle.dumps(data))
    assert again.fingerprint() == data.fingerprint()


# --- selecting and replacing -----------------------------------------------------------------------------------------


@given(kept=some_rows, dropped=some_rows)
def test_select_and_drop_are_list_operations(kept: list[int], dropped: list[int]) -> None:
    data = make().select(kept)
    assert data.ids.tolist() == kept
    assert len(data) == len(kept)
    assert data.drop(dropped).ids.tolist() == [row for row in kept if row not in dropped]


@given(steps=st.lists(st.tuples(some_rows, st.booleans()), max_size=4))
def test_replace_is_assignment_and_the_later_one_wins(steps: list[tuple[list[int], bool]]) -> None:
    data, images, labels = make(), make().images.clone(), make().labels.clone()
    for seed, (rows, relabel) in enumerate(steps):
        new = noise(len(rows), seed)
        data = data.replace(rows, new, torch.full((len(rows),), seed % 3) if relabel else None)
        images[rows] = new
        if relabel:
            labels[rows] = seed % 3
    assert torch.equal(data.pixels(data.ids), images)
    assert torch.equal(data.labels_of(data.ids), labels)
    assert torch.equal(data.images, make().images)


def test_a_replaced_row_can_be_hidden_and_keeps_its_id() -> None:
    data = make().select([4, 2]).replace([7, 2], noise(2, 0))
    assert data.ids.tolist() == [4, 2]
    assert torch.equal(data.pixels(data.ids)[1], noise(2, 0)[1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([9], "row 9 does not exist; the set has rows 0..8"),
        ([-1], "row -1 does not exist"),
        ([1, 2, 1], "row 1 is named 2 times"),
        ([0.5], r"float\d\d of shape \[1\]"),
        ([[1]], "shape \\[1, 1\\]"),
        (torch.ones(ROWS, dtype=torch.bool), r"data.ids\[mask\]"),
    ],
)
def test_wrong_rows(rows: object, message: str) -> None:
    data = make()
    for verb in (data.select, data.drop, lambda r: data.replace(r, noise(len(r), 0))):
        with pytest.raises(ValueError, match=message):
            verb(rows)
    with pytest.raises(ValueError, match=message):
        ImageData(data.images, data.labels, CLASSES, rows=torch.as_tensor(rows))


def test_select_does_not_bring_hidden_rows_back() -> None:
    with pytest.raises(ValueError, match="row 3 is not visible"):
        make().drop([3]).select([2, 3])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (noise(1, 0), None, r"shape \[1, 3, 5, 4\]; expected \[2, 3, 5, 4\]"),
        (noise(2, 0, channels=1), None, r"expected \[2, 3, 5, 4\]"),
        (noise(2, 0) / 255, None, "float32; expected uint8"),
        (noise(2, 0), torch.tensor([0, 3]), "new label of row 6 is 3; the 3 classes allow 0..2"),
        (noise(2, 0), torch.tensor([0, -1]), "new label of row 6 is -1"),
        (noise(2, 0), torch.tensor([0]), r"expected int64 of shape \[2\]"),
        (noise(2, 0), torch.tensor([0.0, 1.0]), "float32"),
    ],
)
def test_wrong_replacement(images: torch.Tensor, labels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().replace([5, 6], images, labels)


def test_a_patch_elsewhere_than_the_images() -> None:
    data, row = make(), torch.tensor([0])
    with pytest.raises(ValueError, match="the patch does not lie on cpu"):
        ImageData(data.images, data.labels, CLASSES, patch=Patch(row, noise(1, 0).to("meta"), row))


def test_an_empty_patch_is_no_patch() -> None:
    data = make()
    assert data.replace([], noise(0, 0)) is data
    nothing = torch.empty(0, dtype=torch.int64)
    assert ImageData(data.images, data.labels, CLASSES, patch=Patch(nothing, noise(0, 0), nothing)).patch is None


# --- construction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": make().images.float()}, "float32; expected uint8"),
        ({"images": make().images[0]}, r"shape \[3, 5, 4\]; expected \[N, C, H, W\]"),
        ({"images": make().images[:0], "labels": torch.empty(0, dtype=torch.int64)}, "images are empty"),
        ({"labels": torch.arange(ROWS)[1:]}, r"shape \[8\]; expected int64 of shape \[9\]"),
        ({"labels": torch.arange(ROWS, dtype=torch.int32)}, "int32"),
        ({"labels": torch.arange(ROWS)}, r"row 3 has label 3, but 3 classes allow 0..2"),
        ({"labels": torch.arange(ROWS) % 3 - 1}, "row 0 has label -1"),
        ({"labels": torch.ones(ROWS, dtype=torch.int64)}, "all 9 rows have label 1; .* at least two classes"),
        ({"classes": ("a", "b", "a")}, "two classes have the same name: a, b, a"),
    ],
)
def test_wrong_construction(changes: dict, message: str) -> None:
    settings = {"images": make().images, "labels": make().labels, "classes": CLASSES} | changes
    with pytest.raises(ValueError, match=message):
        ImageData(**settings)


def test_a_class_without_rows_is_no_error_and_a_selection_may_have_one_class() -> None:
    data = ImageData(make().images, make().labels, (*CLASSES, "plane"))
    assert len(data.select([0, 3, 6]).labels_of(torch.tensor([0, 3, 6])).unique()) == 1


def test_check_labels_names_where() -> None:
    with pytest.raises(ValueError, match="here: row 2 has label 5"):
        check_labels(torch.tensor([0, 1, 5]), 3, "here")


# --- fingerprint -----------------------------------------------------------------------------------------------------


@given(kept=st.permutations(range(ROWS)), replaced=some_rows)
def test_fingerprint_does_not_depend_on_the_store(kept: list[int], replaced: list[int]) -> None:
    count = len(replaced)
    images, labels = noise(count, 3), torch.arange(count) % 3
    data = make().replace(replaced, images, labels).select(kept[:5])
    dense = plain(data)
    last = ImageData(dense.images.contiguous(memory_format=torch.channels_last), dense.labels, CLASSES, dense.rows)
    in_steps = make().select(kept[:5]).replace(replaced, noise(count, 4))
    for k in reversed(range(count)):
        in_steps = in_steps.replace([replaced[k]], images[k : k + 1], labels[k : k + 1])
    assert data.fingerprint() == dense.fingerprint() == last.fingerprint() == in_steps.fingerprint()


@given(row=st.integers(0, ROWS - 1), column=st.integers(0, 3), bit=st.integers(0, 7))
def test_fingerprint_sees_every_bit_of_visible_rows_only(row: int, column: int, bit: int) -> None:
    data = make()
    image = data.images[row : row + 1].clone()
    image[0, 2, 4, column] ^= 1 << bit
    changed = data.replace([row], image)
    assert changed.fingerprint() != data.fingerprint()
    assert changed.drop([row]).fingerprint() == data.drop([row]).fingerprint()


def test_fingerprint_sees_labels_names_ids_and_order() -> None:
    data = make()
    twins = ImageData(data.images[[0, 1, 0]], torch.tensor([0, 1, 0]), CLASSES)
    variants = [
        data,
        data.replace([0], data.images[:1], torch.tensor([1])),
        ImageData(data.images, data.labels, ("cat", "dog", "boat")),
        data.select(list(range(ROWS))[::-1]),
        data.drop([0]),
        twins.select([0, 1]),
        twins.select([2, 1]),  # the same pixels under another id
        ImageData(data.images.permute(0, 1, 3, 2).contiguous(), data.labels, CLASSES),
        ImageData(data.images.view(ROWS, 3, 4, 5), data.labels, CLASSES),  # the same bytes in another shape
    ]
    prints = [variant.fingerprint() for variant in variants]
    assert len(set(prints)) == len(prints)
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in prints)


def test_fingerprint_stays_the_same_between_versions() -> None:
    """Results on disk carry it; change this value only together with the schema version."""
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    assert ImageData(images, torch.tensor([0, 1]), ("a", "b")).fingerprint() == "b2f330666b21c315"


def test_fingerprint_names_the_decoder_and_every_change_keeps_it() -> None:
    data = dataclasses.replace(make(), decoder="pillow")
    assert data.fingerprint() != make().fingerprint() != dataclasses.replace(make(), decoder="other").fingerprint()
    changed = data.replace([1], noise(1, 0)).drop([0]).select([1, 2]).to("cpu")
    assert changed.decoder == "pillow"


@pytest.mark.parametrize("limit", [1, 60, 61, 130, 10**6])
def test_pieces_hold_every_visible_row_once_and_few_bytes(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make().drop([4]).replace([2], noise(1, 0))
    expected = data.fingerprint(), mean_and_std(data)
    again = dataclasses.replace(data)
    monkeypatch.setattr("mithridate.core.data._PIECE", limit)
    pieces = list(again.pieces())
    assert torch.cat(pieces).tolist() == data.ids.tolist()
    assert all(len(rows) == 1 or len(rows) * 60 <= limit for rows in pieces)
    assert again.fingerprint() == expected[0]
    assert all(map(torch.equal, mean_and_std(again), expected[1]))


def test_mean_and_deviation_are_those_of_all_pixels() -> None:
    data = make().drop([4]).replace([2], noise(1, 0))
    values = data.pixels(data.ids).double().div(255).transpose(0, 1).flatten(1)
    for found, expected in zip(mean_and_std(data), (values.mean(1), values.std(1, correction=0)), strict=True):
        torch.testing.assert_close(found, expected.float())


def test_an_empty_selection_has_a_fingerprint() -> None:
    assert make().select([]).fingerprint() != make().fingerprint()


@pytest.mark.gpu
def test_on_a_gpu_reading_does_not_wait_and_gives_the_same() -> None:
    data = dataclasses.replace(make(channels_last=True), decoder="pillow").replace([2, 5], noise(2, 0))
    moved, rows = data.to("cuda"), torch.tensor([5, 0, 2], device="cuda")
    moved.pixels(rows)  # makes the lookup
    torch.cuda.set_sync_debug_mode("error")
    try:
        pixels, floats, labels = moved.pixels(rows), moved.floats(rows), moved.labels_of(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(pixels.cpu(), data.pixels(rows.cpu()))
    assert torch.equal(floats.cpu(), data.floats(rows.cpu()))
    assert torch.equal(labels.cpu(), data.labels_of(rows.cpu()))
    assert moved.fingerprint() == data.fingerprint()
