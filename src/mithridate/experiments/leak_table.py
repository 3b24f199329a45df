"""The table of a study of gradient inversion: one row per cell, with intervals, control and comparisons."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from mithridate.experiments import leak_cells as leaks, leak_words as words
from mithridate.experiments.cells import Cell, Pair
from mithridate.experiments.columns import plain, spreadsheet
from mithridate.experiments.labels import Labels, model_of
from mithridate.experiments.rates import rate
from mithridate.experiments.statistics import (
    LEVEL,
    Mean,
    PairedMargin,
    PairedSuccess,
    Rate,
    holm,
    mean,
    paired_exact,
    paired_margin,
)
from mithridate.experiments.words import tied

if TYPE_CHECKING:
    from rich.console import Console

CONTROL = "mean image"
"""The mean of the candidates: it knows nothing of the leak, and every attack has to beat it."""
UNDEFENDED = "no defence"
_NAMES = ("data", "model", "sharing", "knowledge", "attack", "batch", "defense", "adaptive", "trials", "images")


@dataclass(frozen=True)
class Likeness:
    """How near images come to the true ones."""

    psnr: Mean
    """In dB: over trials, of the mean over a trial's images."""
    quartiles: tuple[float, float, float]
    """Lower quartile, median and upper quartile of the PSNR of single images."""
    ssim: Mean
    identified: Rate
    """Share of images whose true one is the nearest of all candidates."""
    rank: float
    """Median rank of the true image among the candidates; 1 is best."""


@dataclass(frozen=True)
class Against:
    """A comparison with the control, or with the same attack on the undefended client, trial by trial.

    Against the control, tests ask whether the attack comes nearer (PSNR, paired with the mean image) and whether it
    picks out more than chance would (see `by_chance`: among a thousand candidates a few hits say more than pairs
    could), and more than the mean image where that picks out any. Against the undefended client, they ask whether the
    defence makes it do worse, and the difference is what it takes away. p-values are adjusted in three families: all
    undefended cells of the table against the control, all defended ones, and all defended ones against undefended ones;
    in each, PSNR and identification for themselves.
    """

    name: str
    rate: Rate
    """Identification by the other one, on all its images."""
    psnr: PairedMargin
    """In dB."""
    identified: PairedSuccess
    psnr_holm: float
    """p of `psnr`, adjusted."""
    identified_holm: float
    """p of `identified`, adjusted."""
    comparisons: int = 1

    @property
    def shown(self) -> bool:
        """Whether the difference in identification is shown."""
        return self.identified_holm <= LEVEL

    @property
    def psnr_shown(self) -> bool:
        """Whether the difference in PSNR is shown."""
        return self.psnr_holm <= LEVEL


@dataclass(frozen=True)
class LeakRow:
    """One cell: everything but the seed equal."""

    attack: str
    """Name, with the settings that tell it from other cells of the same attack."""
    defense: str
    """Names joined by " + ", or "none"."""
    adaptive: bool
    """Whether the attacker knew the defences."""
    data: str
    model: str
    """Architecture, and whether its weights are untrained, trained or a checkpoint's."""
    sharing: str
    """What the client sends: a gradient, or an update of local training."""
    knowledge: str
    """What the server knows beside it."""
    batch: int
    """Images of the undefended client."""
    cell: Cell = dataclasses.field(repr=False)
    trials: int
    """Independent units: messages that were attacked."""
    images: int
    candidates: int
    """Images among which the true one was looked for; the smallest number of any trial."""
    found: Likeness
    """Of the reconstructions."""
    control: Likeness
    """Of the mean image of the candidates."""
    gain: Against
    """Over the control."""
    loss: Against | None
    """What the defence takes away; None without one, or where the undefended cell was not run."""
    label_accuracy: Mean
    feature_distance: Mean | None
    epsilon: float | None
    """Of one message."""
    guarantees: tuple[dict[str, Any], ...]
    seconds: float
    """Per trial."""
    warnings: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The trial's settings."""
        return self.cell.setting


@dataclass(frozen=True)
class LeakTable:
    """Rows of a study of gradient inversion.

    >>> print(LeakTable(()))
    no finished trials
    """

    rows: tuple[LeakRow, ...]

    def verdict(self) -> list[str]:
        """One sentence per row: what was reconstructed, what the control reaches, and whether that is shown."""
        return [words.verdict(row, self.rows) for row in self.rows]

    def defenses(self) -> list[str]:
        """One line per defence: what it takes away from each attack."""
        return words.defense_lines(self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: rows with all their numbers, and the sentences."""
        rows = [plain(row) | {"standing": words.standing(row)} for row in self.rows]
        headline = words.headline(self.rows)
        return {"headline": headline, "rows": rows, "verdict": self.verdict(), "defenses": self.defenses()}

    def records(self) -> list[dict[str, Any]]:
        """The columns of a spreadsheet, row by row. Shares and p-values are plain numbers; None = not measured."""
        return [_record(row) for row in self.rows]

    def to_csv(self) -> str:
        """One line per row, for a spreadsheet. Shares and p-values are plain numbers; empty = not measured."""
        return spreadsheet(self.records())

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        print_leak_table(self, Console(file=out, width=120, force_terminal=False, color_system=None))
        return out.getvalue().rstrip("\n")


def leak_table(pairs: Iterable[Pair]) -> LeakTable:
    """Build the table of some finished trials of gradient inversion.

    Args:
        pairs: (trial.json, result.json) of each, read; trials without a result are left out by the caller.

    >>> leak_table([]).rows
    ()
    """
    made = leaks.leak_cells(pairs)
    labels = Labels.of([_as_poisoning(cell.setting) for cell in made])
    senders = Labels.of([{"attack": cell.setting["client"]["sharing"]} for cell in made])
    gains = _adjusted([_gain(cell) for cell in made], [bool(cell.defenses) for cell in made])
    found = [_loss(cell, made) for cell in made]
    losses = iter(_adjusted([loss for loss in found if loss], [False] * len(found)))
    kept = [next(losses) if loss else None for loss in found]
    return LeakTable(tuple(_row(*one, labels, senders) for one in zip(made, gains, kept, strict=True)))


def _row(cell: Cell, gain: Against, loss: Against | None, labels: Labels, senders: Labels) -> LeakRow:
    named, client = _as_poisoning(cell.setting), cell.setting["client"]
    apart = [values for values in leaks.measured(cell, "feature_distance").values() if values]
    results = cell.results
    return LeakRow(
        attack=labels.attack(named),
        defense=labels.defense(named),
        adaptive=cell.setting["adaptive"],
        data=labels.data(named),
        model=f"{labels.model(named)}, {leaks.state_of(cell.setting)}",
        sharing=senders.attack({"attack": client["sharing"]}),
        knowledge=_knowledge(cell.setting),
        batch=leaks.batch_of(cell.setting),
        cell=cell,
        trials=len(cell.trials),
        images=sum(len(values) for values in leaks.measured(cell, "psnr").values()),
        candidates=min(int(result["outcome"]["candidates"]) for result in results),
        found=_likeness(cell, "outcome"),
        control=_likeness(cell, "control"),
        gain=gain,
        loss=loss,
        label_accuracy=mean([result["outcome"].get("label_accuracy") for result in results]),
        feature_distance=mean([fmean(values) for values in apart]) if apart else None,
        epsilon=max(filter(None, map(leaks.epsilon_of, results)), default=None),
        guarantees=tuple(results[0].get("guarantees") or ()),
        seconds=fmean(sum(value or 0.0 for value in (result.get("seconds") or {}).values()) for result in results),
        warnings=tuple(sorted({text for result in results for text in result.get("warnings") or ()})),
    )


def _as_poisoning(trial: dict[str, Any]) -> dict[str, Any]:
    """The settings under the names that `Labels` knows; the training of a model that is not trained tells nothing."""
    recipe = trial["recipe"]
    if leaks.state_of(trial) != "trained":
        recipe = {
            "type": recipe.get("type", "recipe"),
            "model": model_of(recipe),
            "start_from": recipe.get("start_from"),
        }
    names = ("data", "attack", "defenses")
    return {name: trial[name] for name in names} | {"learner": recipe | {"model": recipe.get("model")}}


def _knowledge(trial: dict[str, Any]) -> str:
    client = trial["client"]
    known = ["labels known" if client.get("tells_labels", True) else "labels not known"]
    known += ["batch statistics known"] if client.get("tells_statistics") else []
    known += ["different labels in a batch"] if trial["distinct"] else []
    return ", ".join(known)


# --- numbers ---------------------------------------------------------------------------------------------------------


def _likeness(cell: Cell, part: str) -> Likeness:
    decibels, alike = leaks.measured(cell, "psnr", part), leaks.measured(cell, "ssim", part)
    low, middle, high = np.quantile([value for values in decibels.values() for value in values], [0.25, 0.5, 0.75])
    return Likeness(
        psnr=mean([fmean(values) for values in decibels.values()]),
        quartiles=(float(low), float(middle), float(high)),
        ssim=mean([fmean(values) for values in alike.values()]),
        identified=rate(list(leaks.identified(cell, part).values())),
        rank=float(median(rank for ranks in leaks.measured(cell, "rank", part).values() for rank in ranks)),
    )


def _gain(cell: Cell) -> Against:
    """The attack against the mean image in PSNR, and against chance in picking images out.

    Where the mean image picks out some itself, the attack has to pick out more than it, too: the larger p counts.
    """
    seeds = list(cell.trials)
    other = rate(list(leaks.identified(cell, "control").values()))
    found = _against(CONTROL, other, (cell, "outcome", seeds), (cell, "control", seeds))
    chance = by_chance(list(leaks.identified(cell).values()), leaks.candidates(cell))
    p = max(chance, found.identified.p) if any(map(any, leaks.identified(cell, "control").values())) else chance
    return dataclasses.replace(found, identified=dataclasses.replace(found.identified, p=p), identified_holm=p)


def by_chance(hits: Sequence[Sequence[float]], candidates: int) -> float:
    """How likely a reconstruction that does not depend on the true image picks images out in as many trials.

    The true image is one of N exchangeable candidates, so such a reconstruction is nearest to it with probability 1/N,
    and to at least one of a batch of B with at most B/N, whatever else it is. Trials are independent, so the number of
    those with a hit is at most binomial.

    >>> round(by_chance([[1.0], [0.0]], 10), 3)  # 1 - 0.9 ** 2
    0.19
    """
    from scipy.stats import binom

    successes = sum(any(trial) for trial in hits)
    most = min(1.0, max((len(trial) for trial in hits), default=1) / candidates)
    return float(binom.sf(successes - 1, len(hits), most))


def _loss(cell: Cell, others: Sequence[Cell]) -> Against | None:
    """The undefended client against the defended one."""
    bare = leaks.undefended(cell, others)
    seeds = list(leaks.paired(cell, bare)) if bare else []
    if bare is None or not seeds:
        return None
    other = rate(list(leaks.identified(bare).values()))
    return _against(UNDEFENDED, other, (bare, "outcome", seeds), (cell, "outcome", seeds))


Arm = tuple[Cell, str, list[int]]
"""A cell, the part of its results, and the seeds that are compared."""


def _against(name: str, other: Rate, more: Arm, less: Arm) -> Against:
    """Compares two arms; `more` is the one that is expected to come nearer to the true images."""
    decibels, hits = [], []
    for cell, part, seeds in (more, less):
        values, known = leaks.measured(cell, "psnr", part), leaks.identified(cell, part)
        decibels.append([fmean(values[seed]) for seed in seeds])
        hits.append([known[seed] for seed in seeds])
    psnr, identified = paired_margin(*decibels), paired_exact(*hits)
    return Against(name, other, psnr, identified, psnr.p, identified.p)


def _adjusted(found: Sequence[Against], families: Sequence[bool]) -> list[Against]:
    """The same comparisons with p-values adjusted within their families."""
    made = list(found)
    for family in (False, True):
        places = [place for place in range(len(found)) if families[place] == family]
        psnr = holm([found[place].psnr.p for place in places])
        hits = holm([found[place].identified.p for place in places])
        for place, a, b in zip(places, psnr, hits, strict=True):
            own = {"psnr_holm": a, "identified_holm": b, "comparisons": len(places)}
            made[place] = dataclasses.replace(found[place], **own)
    return made


# --- out -------------------------------------------------------------------------------------------------------------


def _record(row: LeakRow) -> dict[str, Any]:
    line: dict[str, Any] = {name: getattr(row, name) for name in _NAMES}
    line |= {"candidates": row.candidates, "epsilon": row.epsilon, "standing": words.standing(row)}
    for prefix, like in (("", row.found), ("control ", row.control)):
        line |= {
            f"{prefix}psnr": like.psnr.value,
            f"{prefix}psnr low": like.psnr.low,
            f"{prefix}psnr high": like.psnr.high,
        }
        line |= dict(zip((f"{prefix}psnr {name}" for name in ("q1", "median", "q3")), like.quartiles, strict=True))
        line |= {
            f"{prefix}ssim": like.ssim.value,
            f"{prefix}ssim low": like.ssim.low,
            f"{prefix}ssim high": like.ssim.high,
        }
        line |= {f"{prefix}identified": like.identified.share, f"{prefix}identified low": like.identified.low}
        line |= {f"{prefix}identified high": like.identified.high, f"{prefix}median rank": like.rank}
    for name, other in (("gain", row.gain), ("loss", row.loss)):
        line[f"{name} psnr"] = other.psnr.difference.value if other else None
        line[f"{name} psnr p"] = other.psnr.p if other else None
        line[f"{name} psnr p (Holm)"] = other.psnr_holm if other else None
        line[f"{name} identified p"] = other.identified.p if other else None
        line[f"{name} identified p (Holm)"] = other.identified_holm if other else None
    line |= {"label_accuracy": row.label_accuracy.value}
    line |= {"feature_distance": row.feature_distance.value if row.feature_distance else None}
    line |= {"seconds": row.seconds, "warnings": "; ".join(row.warnings)}
    return plain(line)


def print_leak_table(table: LeakTable, console: Console) -> None:
    """Print one grid per place and attack, then the sentences. It fits into 100 columns."""
    from rich.table import Table as Grid
    from rich.text import Text

    if not table.rows:
        console.print("no finished trials")
        return
    for scene in words.scenes(table.rows):
        columns = words.columns(scene.rows)
        drawn = Grid(box=None, padding=(0, 1, 0, 0))
        for name in columns:
            left = name in ("defence", "batch")
            drawn.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=name != "defence")
        for texts in zip(*columns.values(), strict=True):
            drawn.add_row(*(Text(tied(text)) for text in texts))
        console.print(Text(scene.title, style="bold"))
        console.print(drawn)
        console.print()
    console.print("Gain: PSNR over the mean image; *: shown after Holm's correction.\n")
    console.print(Text(words.headline(table.rows), style="bold"))
    for sentence in (*table.verdict(), *table.defenses()):
        console.print(Text(f"* {sentence}"))
