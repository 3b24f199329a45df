"""PNG folder: one file per training row and no labels, as adversarial_poisons and APBench read poison of all data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

from mithridate.core.safe_images import files_below, new_place, png, read_image, refusing
from mithridate.poisoning.exchange.checks import Row, known_rows, parcel_of, poisoned_set, rows_of
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference

_NAME = re.compile(r"(\d{1,12})\.png", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PngFolder(Format):
    """`data/<training row>.png`.

    Read by adversarial_poisons (Fowl et al., "Adversarial Examples Make Strong Poisons", NeurIPS 2021,
    arXiv:2106.10807; `poison_evaluation/main.py --load_path`, commit a1d58d8) and by APBench (Qin et al.,
    "APBench: A Unified Benchmark for Availability Poisoning Attacks and Defenses", TMLR 2024, arXiv:2308.03258;
    commit 9a6fb91, where the folder is `dataset/<type>_poisons/<data set>`).

    Traps: labels are not kept, readers take those of the clean set at the row; both readers ask for as many files as
    the training set has, so `rest` writes the clean images as well. Where a folder holds every row, poison are those
    that differ from the clean set; where it holds some, all of them are.
    """

    carries: ClassVar[frozenset[str]] = frozenset({"images", "rows"})
    rest: bool = True
    """Whether the clean images of all other rows are written too, as both readers need."""

    def write(self, parcel: Parcel, path: Path, data: Reference) -> list[Path]:
        whole = poisoned_set(parcel, data.train, relabel=False)
        assert parcel.rows is not None
        folder = new_place(path) / "data"
        folder.mkdir(parents=True)
        files = []
        for item in rows_of(whole if self.rest else whole.select(parcel.rows.sort().values)):
            files.append(folder / f"{item.row}.png")
            files[-1].write_bytes(png(item.image))
        return files

    def read(self, path: Path, data: Reference) -> Parcel:
        folder = path / "data" if (path / "data").is_dir() else path
        files = files_below(folder)
        rows = known_rows([_row(file, folder) for file in files], data.train, folder)
        if not len(rows):
            raise ValueError(f"{folder} holds no PNG files; expected data/<training row>.png")
        shape = data.train.shape

        def items() -> Iterator[Row]:
            for file, row in zip(files, rows.tolist(), strict=True):
                yield Row(row, read_image(file, shape), where=str(file))

        with refusing(folder):
            return parcel_of(items(), data.train, folder, whole=len(rows) == len(data.train))

    def recognises(self, path: Path) -> bool:
        try:
            names = [file.name for file in islice((path / "data").iterdir(), 20)]
        except OSError:
            return False
        return bool(names) and all(_NAME.fullmatch(name) or name.startswith(".") for name in names)


def _row(file: Path, folder: Path) -> int:
    found = _NAME.fullmatch(file.name) if file.parent == folder else None
    if found is None:
        raise ValueError(f"{str(file)[:300]} is not named after a training row; expected data/<training row>.png")
    return int(found[1])
