"""What a trial leaves: raw outcomes, measurements of the poison, and the machine they were made on."""

from __future__ import annotations

import contextlib
import functools
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mithridate import __version__
from mithridate.core.data import ImageData
from mithridate.core.decoding import decoder_version
from mithridate.core.devices import chosen_devices
from mithridate.core.schema import SCHEMA, resumable
from mithridate.core.training import Fitted
from mithridate.poisoning.poison import Poison


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Raw outcomes of a trial; rates and intervals are computed later, so a new statistic needs no new run.

    >>> import tempfile
    >>> from mithridate import Digits, NoAttack, Recipe, Store, ThreatModel, Trial, run
    >>> control = Trial(
    ...     data=Digits(train=100), threat=ThreatModel(), attack=NoAttack(), learner=Recipe(epochs=1)
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = run(control, Store(folder))
    >>> len(result.outcome["accuracy"]), result.poison["count"]
    (1, 0)
    """

    trial: str
    """Id of the trial."""
    outcome: dict[str, Any]
    """``success``, ``margin``, ``abstained``, ``correct``, ``radius`` [victim][target]; ``accuracy`` [victim];
    ``certified`` [victim][radius]."""
    case: dict[str, Any]
    """What was drawn: goal, target rows and classes, intended classes, class of the poisons."""
    data: dict[str, Any]
    """Fingerprint, sizes, class names, shape, decoder; with pretraining what the features were trained on."""
    poison: dict[str, Any]
    """Id, number, share, largest Linf and mean L2 change on the 8-bit pixels, relabelled rows, the attack's notes."""
    defense: dict[str, Any]
    """Rows and poisons that were removed, per victim."""
    guarantees: list[dict[str, Any]]
    """What the whole training procedure proves."""
    models: list[str]
    """Ids of the victims' fits, where they were stored."""
    seconds: dict[str, float]
    """Time of each phase that this run paid; shared work that was there already costs nothing."""
    peak_memory_mb: float | None
    """Largest resident memory of the process so far; None where the system does not say."""
    threads: int
    """Torch threads; results are bit-identical for an equal number."""
    environment: dict[str, str]
    """Versions and machine."""
    warnings: list[str]
    """Python warnings, each once."""
    schema: int = SCHEMA
    """Version of this format."""

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``result.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TrialResult:
        """Reads the content of ``result.json``.

        Raises:
            ValueError: Another schema version.
        """
        if content.get("schema") != SCHEMA:
            raise ValueError(
                f"result has schema {content.get('schema')!r}; this version reads {SCHEMA}: run the trial again"
            )
        return cls(**content)


def data_facts(fingerprint: str, train: ImageData, test: ImageData, features: dict[str, Any] | None) -> dict[str, Any]:
    """Describes the data a trial ran on."""
    return {
        "fingerprint": fingerprint,
        "train": len(train),
        "test": len(test),
        "classes": list(train.classes),
        "shape": list(train.shape),
        "decoder": decoder_version() if train.decoder else None,
        **({} if features is None else {"features": features}),
    }


def poison_facts(poison: Poison, train: ImageData) -> dict[str, Any]:
    """Measures a poison on its 8-bit pixels against the clean ones; changes have the unit of pixels in [0, 1]."""
    change = (poison.images.to(train.device).float() - train.pixels(poison.rows).float()).flatten(1) / 255
    old = train.labels_of(poison.rows).cpu()
    return {
        "count": len(poison),
        "share": len(poison) / len(train),
        "max_linf": float(change.abs().max()) if len(poison) else 0.0,
        "mean_l2": float(change.norm(dim=1).mean()) if len(poison) else 0.0,
        "relabelled": 0 if poison.labels is None else int((poison.labels.cpu() != old).sum()),
        "notes": dict(poison.notes),
    }


def removed(fitted: Fitted, train: ImageData, poison: Poison) -> dict[str, Any]:
    """Counts rows and poisons that the defences left out of the final fit, per victim; None where none could be."""
    if all(rows is None for rows in fitted.kept):
        return {"removed": None, "removed_poisons": None}
    all_rows = train.ids.cpu()
    kept = [all_rows if rows is None else rows.cpu() for rows in fitted.kept]
    gone = [all_rows[~torch.isin(all_rows, rows)] for rows in kept]
    poisons = [int(torch.isin(poison.rows.cpu(), rows).sum()) for rows in gone]
    return {"removed": [len(rows) for rows in gone], "removed_poisons": poisons}


@contextlib.contextmanager
def caught_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collects the Python warnings of the block, whatever the filters say."""
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        yield messages


def versions() -> dict[str, str]:
    """Returns the versions that results depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "mithridate": __version__,
    }


def environment(device: str) -> dict[str, str]:
    """Returns versions and machine."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
    several = chosen_devices()
    name = name if several is None else f"{several.count} x {name}"
    return {**versions(), "platform": platform.platform(), "device": name, "cpu": _cpu()}


@functools.cache
def _cpu() -> str:
    """Returns the name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_mb() -> float | None:
    """Returns the largest resident memory of this process so far; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def plain(value: Tensor | None) -> Any:
    """Turns an outcome into numbers: booleans become 0 and 1."""
    if value is None:
        return None
    return (value.to(torch.int64) if value.dtype == torch.bool else value).tolist()


def check_resumable(work: Any) -> None:
    """Warns where settings cannot be read back in another process."""
    if not resumable(work):
        warnings.warn(
            "a setting is a lambda or a local function, which has no name in another process: these results are not "
            "resumable; write it as package.module:function",
            stacklevel=3,
        )
