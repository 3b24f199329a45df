"""Protected copies: what is stored, that it stays inside the budget, that a killed run goes on, what is refused."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from mithridate.core.balls import Linf
from mithridate.core.copies import copy_of, encoded
from mithridate.core.decoding import decode
from mithridate.core.sources import Digits, Folder, Hub, Parquet
from mithridate.poisoning.protect import Format, Protected, enlarged, fitted, mixed, protect, protected_rows

EPS = 8 / 255
SHAPE = (3, 6, 6)
NAMES = ("bird", "cat")


class Made(NamedTuple):
    images: Tensor
    value: Tensor


def pattern() -> Callable[[Tensor, Tensor, torch.Generator], Made]:
    """One random pattern per class, and a little that depends on the chunk's own stream."""
    known = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).sign() * EPS

    def perturb(images: Tensor, labels: Tensor, rng: torch.Generator) -> Made:
        ball = Linf(eps=EPS)
        signs = (torch.rand(SHAPE, generator=rng) < 0.9).float()
        return Made(ball.rounded(images, ball.project(images, images + known[labels] * signs)), torch.zeros(()))

    return perturb


def picture(seed: int, height: int, width: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def folder(home: Path) -> Path:
    """Class folders with images of many sizes, kinds and files, names that would collide, and other files."""
    for label, name in enumerate(NAMES):
        (home / name / "deep").mkdir(parents=True)
        for i in range(5):
            picture(10 * label + i, 6 + i, 7 + 2 * i, "L" if i == 2 else "RGB").save(home / name / f"{i}.png")
        picture(7, 9, 5).save(home / name / "deep" / "a.jpg", quality=90)
        picture(8, 6, 6).save(home / name / "same.png")
        picture(9, 6, 6).save(home / name / "same.webp", lossless=True)
    (home / "README.md").write_text("as it was")
    lines = [{"file_name": "bird/deep/a.jpg", "note": "ä"}, {"file_name": "gone.png"}, {"other": 1}]
    (home / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (home / "cat" / "metadata.csv").write_text("file_name,note\nsame.webp,1\n3.png,2\n")
    return home


def png(seed: int, height: int = 6, width: int = 6) -> bytes:
    out = io.BytesIO()
    picture(seed, height, width).save(out, "png")
    return out.getvalue()


def parquet(home: Path, struct: bool = True, by_class: bool = False) -> Path:
    """Two shards of five images of two classes: in turns, or all of one before those of the other."""
    home.mkdir()
    for shard in range(2):
        images = [png(10 * shard + i, 6 + i, 6) for i in range(5)]
        table = pa.table(
            {
                "note": [f"{shard}-{i}" for i in range(5)],
                "img": [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)] if struct else images,
                "label": pa.array([shard if by_class else i % 2 for i in range(5)], pa.int64()),
            }
        ).replace_schema_metadata({"owner": "me"})
        pq.write_table(table, home / f"train-{shard:05d}-of-00002.parquet", row_group_size=2)
    return home


def run(source: Any, out: Path, form: Format | None = None, chunk: int = 4, **settings: Any) -> Protected:
    record = out.with_name(f"{out.name}.record")
    record.mkdir(exist_ok=True)
    copy = copy_of(source, out, record / "images.spool", (form or Format()).suffix)
    given = {"eps": EPS, "shape": SHAPE, "record": record, "settings": {"chunk": chunk}, "chunk": chunk} | settings
    return protect(copy, pattern, form=form, **given)


def lines_of(done: Protected) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (done.path.parent / "images.jsonl").read_text().splitlines()]
    return [line for line in found if "row" in line]


def files_of(home: Path) -> dict[str, bytes]:
    return {str(file.relative_to(home)): file.read_bytes() for file in sorted(home.rglob("*")) if file.is_file()}


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_keeps_names_sizes_and_other_files(tmp_path: Path) -> None:
    home = folder(tmp_path / "in")
    done = run(Folder(str(home)), tmp_path / "out")
    made = set(files_of(tmp_path / "out"))
    for name in NAMES:
        assert {f"{name}/{i}.png" for i in range(5)} | {f"{name}/deep/a.png", f"{name}/same.png"} <= made
        assert f"{name}/same.webp.png" in made  # same.png is taken
    assert (tmp_path / "out" / "README.md").read_text() == "as it was"
    assert done.manifest["images"] == len(lines_of(done)) == 16
    assert done.manifest["classes"] == list(NAMES)
    for line in lines_of(done):
        stored = (tmp_path / "out" / line["name"]).read_bytes()
        assert hashlib.sha256(stored).hexdigest() == line["sha256"]
    origins = {hashlib.sha256(data).hexdigest() for data in files_of(home).values()}
    assert {line["of_sha256"] for line in lines_of(done)} <= origins


def test_every_stored_image_is_changed_and_inside_the_budget(tmp_path: Path) -> None:
    home = folder(tmp_path / "in")
    done = run(Folder(str(home)), tmp_path / "out")
    by_hash = {hashlib.sha256(data).hexdigest(): data for data in files_of(home).values()}
    largest = 0
    for line in lines_of(done):
        old = decode("old", by_hash[line["of_sha256"]]).astype(int)
        new = decode("new", (tmp_path / "out" / line["name"]).read_bytes()).astype(int)
        assert old.shape == new.shape
        moved = int(np.abs(new - old).max())
        assert 0 < moved <= 8
        assert moved == line["moved"]
        largest = max(largest, moved)
    assert done.manifest["largest"] == pytest.approx(largest / 255)
    assert done.manifest["images_over_eps"] == 0


def test_metadata_name_the_files_that_are_there(tmp_path: Path) -> None:
    run(Folder(str(folder(tmp_path / "in"))), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert lines == [{"file_name": "bird/deep/a.png", "note": "ä"}, {"file_name": "gone.png"}, {"other": 1}]
    table = list(csv.DictReader((tmp_path / "out" / "cat" / "metadata.csv").read_text().splitlines()))
    assert table == [{"file_name": "same.webp.png", "note": "1"}, {"file_name": "3.png", "note": "2"}]


def test_only_training_images_are_copied(tmp_path: Path) -> None:
    folder(tmp_path / "in" / "train")
    folder(tmp_path / "in" / "test")
    run(Folder(str(tmp_path / "in")), tmp_path / "out")
    assert (tmp_path / "out" / "bird" / "0.png").exists()
    assert not list((tmp_path / "out").rglob("test*"))


# --- parquet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("struct", "by_class"), [(True, False), (False, False), (True, True)])
def test_parquet_keeps_columns_metadata_and_order(tmp_path: Path, struct: bool, by_class: bool) -> None:
    home = parquet(tmp_path / "in", struct, by_class)
    done = run(Parquet(str(home)), tmp_path / "out")
    for file in sorted(home.iterdir()):
        old, new = pq.read_table(file), pq.read_table(tmp_path / "out" / file.name)
        assert old.schema.equals(new.schema, check_metadata=True)
        for column in ("note", "label"):
            assert old[column].equals(new[column])
        for one, other in zip(old["img"].to_pylist(), new["img"].to_pylist(), strict=True):
            first, second = (value["bytes"] if struct else value for value in (one, other))
            change = decode("new", second).astype(int) - decode("old", first).astype(int)
            assert 0 < np.abs(change).max() <= 8
            if struct:
                assert other["path"] == one["path"].replace(".jpg", ".png")
        assert (
            done.manifest["files"][file.name] == hashlib.sha256((tmp_path / "out" / file.name).read_bytes()).hexdigest()
        )
    assert not (tmp_path / "out.record" / "images.spool").exists()


def test_a_data_set_of_the_hub_becomes_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("datasets", reason="needs the extra hub: pip install 'mithridate[hub]'")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "huggingface")
    home = parquet(tmp_path / "in")
    done = run(Hub(str(home)), tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "train.parquet")
    assert table["note"].to_pylist() == [f"{shard}-{i}" for shard in range(2) for i in range(5)]
    assert done.manifest["images"] == 10
    assert len(library.load_dataset("parquet", data_files=str(tmp_path / "out" / "train.parquet"))["train"]) == 10


# --- chunks and resuming ---------------------------------------------------------------------------------------------


def test_a_chunk_does_not_depend_on_what_comes_after(tmp_path: Path) -> None:
    home = parquet(tmp_path / "in")
    run(Parquet(str(home)), tmp_path / "all")
    run(Parquet(str(home / "train-00000-of-00002.parquet")), tmp_path / "some")  # rows 0 to 4
    every, few = (
        list(pq.read_table(next(iter(sorted(out.iterdir()))))["img"]) for out in (tmp_path / "all", tmp_path / "some")
    )
    assert every[:4] == few[:4]  # the first chunk is the same


@pytest.mark.parametrize(("classes", "count", "chunk"), [(10, 1000, 64), (3, 17, 4), (2, 5, 512), (40, 41, 7)])
def test_chunks_of_data_that_lie_class_by_class_are_mixed(classes: int, count: int, chunk: int) -> None:
    labels = np.sort(np.arange(count) % classes)
    order = mixed(labels, chunk)
    assert sorted(order.tolist()) == list(range(count))
    for start in range(0, count, chunk):
        rows = order[start : start + chunk]
        assert (np.diff(rows) > 0).all()
        assert len(np.unique(labels[rows])) >= min(classes, len(rows)) - 1


def test_data_that_are_mixed_stay_in_their_order() -> None:
    shuffled = np.random.default_rng(0).integers(0, 10, 1000)
    in_turns = np.arange(1000) % 10  # dealing these out would give chunks of one class
    for labels in (shuffled, in_turns):
        assert (mixed(labels, 100) == np.arange(1000)).all()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["folder", "parquet", "by class"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "in"
    source = Folder(str(folder(home))) if kind == "folder" else Parquet(str(parquet(home, by_class=kind == "by class")))
    run(source, tmp_path / "whole")
    count = iter(range(1000))

    def failing(pixels: np.ndarray, quality: int | None = None) -> bytes:
        if next(count) == 6:  # in the middle of the second chunk of four
            raise Killed
        return encoded(pixels, quality)

    with monkeypatch.context() as patch:
        patch.setattr("mithridate.poisoning.protect.encoded", failing)
        with pytest.raises(Killed):
            run(source, tmp_path / "out")
    journal = tmp_path / "out.record" / "images.jsonl"
    with journal.open("a") as file:
        file.write('{"row": 6, "na')  # as a machine leaves it that lost its power
    prepared: list[int] = []

    def counted() -> Callable[[Tensor, Tensor, torch.Generator], Made]:
        prepared.append(1)
        return pattern()

    record = tmp_path / "out.record"
    copy = copy_of(source, tmp_path / "out", record / "images.spool", ".png")
    protect(copy, counted, eps=EPS, shape=SHAPE, record=record, settings={"chunk": 4}, chunk=4)
    assert len(prepared) == 1
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert journal.read_bytes() == (tmp_path / "whole.record" / "images.jsonl").read_bytes()
    protect(copy, counted, eps=EPS, shape=SHAPE, record=record, settings={"chunk": 4}, chunk=4)
    assert len(prepared) == 1  # nothing was left to do


def test_other_settings_do_not_go_on(tmp_path: Path) -> None:
    source = Folder(str(folder(tmp_path / "in")))
    run(source, tmp_path / "out")
    with pytest.raises(ValueError, match="was begun with another chunk: 4, now 8"):
        run(source, tmp_path / "out", chunk=8)


def test_a_record_without_its_copy_is_refused(tmp_path: Path) -> None:
    source = Folder(str(folder(tmp_path / "in")))
    run(source, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="is complete, but nothing is there"):
        run(source, tmp_path / "out")


def test_what_the_disk_garbles_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Folder(str(folder(tmp_path / "in")))
    monkeypatch.setattr(
        "mithridate.core.copies.FolderCopy.read", lambda *_: iter([encoded(np.zeros((6, 7, 3), np.uint8))])
    )
    with pytest.raises(ValueError, match="what is stored is not what was written"):
        run(source, tmp_path / "out")


def test_jpeg_is_measured_as_stored(tmp_path: Path) -> None:
    done = run(Folder(str(folder(tmp_path / "in"))), tmp_path / "out", Format(quality=60))
    assert (tmp_path / "out" / "bird" / "0.jpg").exists()
    assert done.manifest["format"] == "jpeg, quality 60"
    assert done.manifest["images_over_eps"] == sum(line["moved"] > 8 for line in lines_of(done)) > 0
    assert done.manifest["largest"] * 255 > 8


def test_sources_without_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="digits has no image files; name an image folder"):
        run(Digits(), tmp_path / "out")


# --- one image -------------------------------------------------------------------------------------------------------


def test_a_perturbation_of_the_same_size_is_added_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    change = torch.randint(-8, 9, (3, 6, 5), generator=torch.Generator().manual_seed(0)).float()
    expected = (image.astype(int) + change.permute(1, 2, 0).numpy().astype(int)).clip(0, 255)
    assert np.array_equal(enlarged(image, change, 8), expected)


def test_a_resized_perturbation_never_exceeds_whole_steps() -> None:
    image = np.full((31, 17, 1), 128, np.uint8)
    change = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0)).sign() * 7.65
    moved = np.abs(enlarged(image, change, 7).astype(int) - 128)
    assert moved.max() <= 7
    assert moved.max() > 0


def test_images_are_fitted_in_size_and_channels() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (12, 12, 1), dtype=np.uint8)
    colour = fitted(grey, (3, 12, 12))
    assert all(torch.equal(colour[c], torch.tensor(grey[:, :, 0])) for c in range(3))
    assert fitted(np.repeat(grey, 3, axis=2), (1, 12, 12)).shape == (1, 12, 12)
    reduced = fitted(grey, (1, 4, 4)).float()
    assert float((reduced.mean() - grey.mean()).abs()) < 3  # antialiased: the mean stays


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_protected_rows_are_read_back(tmp_path: Path, kind: str) -> None:
    source = Folder(str(folder(tmp_path / "in"))) if kind == "folder" else Parquet(str(parquet(tmp_path / "in")))
    done = run(source, tmp_path / "out")
    copy = copy_of(source, tmp_path / "out", tmp_path / "spool", ".png")
    rows = [1, 4, 9]
    data = protected_rows(copy, done.path.parent, rows, SHAPE)
    assert data.labels.tolist() == copy.listing.labels[rows].tolist()
    originals: Iterator[tuple[str, bytes]] = copy.listing.files(np.array(rows))
    for image, (_, old) in zip(data.images, originals, strict=True):
        assert 0 < int((image.int() - fitted(decode("old", old), SHAPE).int()).abs().max()) <= 8
