"""Sleeper Agent and EPIC: poison for a trigger, with the triggered images beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mithridate.core.safe_images import refusing
from mithridate.poisoning.exchange.checks import pasted
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from mithridate.poisoning.exchange.pickled import (
    POISONS,
    ROWS,
    labelled,
    one_class,
    picture,
    poison_pickles,
    read_pickle,
    read_poisons,
    target_images,
    write_pickles,
)

_SOURCE = "source.pickle"


@dataclass(frozen=True, kw_only=True)
class SleeperAgent(Format):
    """`poisons.pickle` and `base_indices.pickle` as poisoning-benchmark has them, and `source.pickle` for the targets.

    Written by the `benchmark` mode of hsouri/Sleeper-Agent at 9a5fdd2 (Souri, Fowl, Chellappa, Goldblum, Goldstein,
    "Sleeper Agent: Scalable Hidden Trigger Backdoors for Neural Networks Trained from Scratch", NeurIPS 2022,
    arXiv:2106.08970), where `source.pickle` is one (Pillow image, true class); read by `train_poison_epic.py
    --backdoor` of YuYang0901/EPIC at 0973f95 (Yang, Liu, Mirzasoleiman, "Not All Poisons are Created Equal: Robust
    Training against Data Poisoning", ICML 2022, arXiv:2210.09671), where it is a list of them. Both are read; without
    `--backdoor` EPIC reads poisoning-benchmark's own three files, or metapoison's.

    Traps: the trigger is drawn on these images already, so patch and place do not come back and target images are not
    those of the test set. poisoning-benchmark looks for `target.pickle`: to have such a poison judged there, write that
    format; its limit of 9/255 refuses the default of Sleeper Agent, 16/255. One class is common to all poisons: it is
    the intended one. EPIC takes the true class of the first image for that of all.
    """

    carries: ClassVar[frozenset[str]] = frozenset({"images", "labels", "rows", "target_labels", "intended"})
    layout: Literal["sleeper-agent", "epic"] = "sleeper-agent"
    """What is written: one triggered image, or a list of them; what is read is told by its contents."""

    def write(self, parcel: Parcel, path: Path, data: Reference) -> list[Path]:
        content, _ = poison_pickles(parcel, data)
        images, labels = target_images(parcel, data)
        if not len(images):
            raise ValueError("the poison aims at no test image; this format needs one")
        if self.layout == "sleeper-agent" and len(images) != 1:
            raise ValueError(
                f"the poison aims at {len(images)} test images; Sleeper Agent writes one, so use layout=epic"
            )
        if self.layout == "epic" and len(set(labels)) > 1:
            raise ValueError(
                f"targets are of the classes {', '.join(map(str, sorted(set(labels))[:5]))}; EPIC counts all of them "
                "as of the first one's, so write one folder for each class"
            )
        sources = [(picture(image), label) for image, label in zip(pasted(images, parcel), labels, strict=True)]
        return write_pickles(path, {**content, _SOURCE: sources if self.layout == "epic" else sources[0]})

    def read(self, path: Path, data: Reference) -> Parcel:
        with refusing(path):
            parcel = read_poisons(path, data)
            intended = one_class(parcel)
            if intended is None:
                raise ValueError(f"{path / POISONS} holds poisons of several classes; one of them is intended")
            pairs = _sources(read_pickle(path / _SOURCE, data), str(path / _SOURCE), data)
            return replace(
                parcel,
                target_images=torch.stack([image for image, _ in pairs]),
                target_labels=torch.tensor([label for _, label in pairs]),
                intended=torch.full((len(pairs),), intended),
                notes={"trigger": "drawn on the target images"},
            )

    def recognises(self, path: Path) -> bool:
        try:
            names = (POISONS, ROWS, _SOURCE)
            return all((path / name).is_file() for name in names) and not (path / "target.pickle").exists()
        except OSError:
            return False


def _sources(found: Any, where: str, data: Reference) -> list[tuple[Tensor, int]]:
    """Image and class of each triggered image: of one pair, or of a list of pairs."""
    several = isinstance(found, (list, tuple)) and len(found) > 0 and isinstance(found[0], (list, tuple))
    entries = found if several else [found]
    if len(entries) > len(data.test):
        raise ValueError(f"{where} holds {len(entries):,} images; the test set has {len(data.test):,}")
    return [labelled(entry, f"{where}: entry {place}", data.test) for place, entry in enumerate(entries)]
