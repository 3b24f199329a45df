"""What to be careful about in a study of gradient inversion: doubts that follow from its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mithridate.experiments import leak_words as words
from mithridate.experiments.cautions import Caution, Kind, kind_of
from mithridate.experiments.leak_cells import state_of
from mithridate.experiments.power import fewest_pairs
from mithridate.experiments.statistics import LEVEL

if TYPE_CHECKING:
    from mithridate.experiments.leak_table import LeakRow

USUAL_CANDIDATES = 1000
SSIM_WINDOW = 11
"""Pixels."""
KINDS = (
    Kind(
        "few-cases",
        "Whether images come nearer than the mean image, and whether a defence helps, is asked by paired tests. With "
        f"so few cases they cannot reach {LEVEL} even if all cases agree.",
        f"Take {fewest_pairs()} cases or more.",
    ),
    Kind(
        "few-for-many",
        "The more settings are compared, the smaller a p-value has to be. With so few cases a paired test is not small "
        "enough even if all cases agree, so “not shown” says nothing of PSNR and of defences here.",
        "Take more cases or compare fewer settings at once.",
    ),
    Kind(
        "control-not-beaten",
        "Without a defence the attack is not shown to come nearer to the images than their mean, which knows nothing "
        "of the leak. Nothing that a defence does to such an attack speaks for the defence.",
        "Give it more steps and restarts, or take another attack, before reading its defended rows.",
    ),
    Kind(
        "static-only",
        "The attacker did not know the defence. That is the defence's easiest day: it usually looks better than "
        "against an attacker who matches noise, sparsity or local steps by the same rule.",
        "Add adaptive cells before trusting the defence. Until then read its numbers as an upper bound of its use.",
    ),
    Kind(
        "one-message",
        "Epsilon holds for one message. A client that answers in many rounds spends more, and so does one whose labels "
        "the server is told.",
        "Account for all rounds of the training before stating a guarantee.",
    ),
    Kind(
        "labels-known",
        "The attacker was told the labels. A server usually has to recover them first, which is exact for single "
        "images and less so for batches.",
        "Run it without (the client does not tell its labels), and read the two together.",
    ),
    Kind(
        "different-labels",
        "Batches were drawn so that no label comes twice. Labels are then easier to recover, and images to tell apart.",
        "Say so beside the numbers, or draw batches freely.",
    ),
    Kind(
        "few-candidates",
        "Being picked out depends on the number of images to pick from: guessing finds 1 in N.",
        "Compare such rates only with those among equally many candidates.",
    ),
    Kind(
        "loud-control",
        "The mean image picks out more than guessing would: some of these images are nearer to it than all others.",
        "Compare attacks with this rate, not with guessing.",
    ),
    Kind(
        "untrained-only",
        "Gradients of untrained networks usually give away more than those of trained ones.",
        "Attack a trained model as well, at the point of training where your clients begin.",
    ),
    Kind(
        "small-windows",
        f"SSIM looks through a window of {SSIM_WINDOW} pixels. In smaller images the window is smaller, and values do "
        "not compare with those of larger images.",
        "Compare SSIM only within this study.",
    ),
    Kind(
        "unpaired-cases",
        "Only cases that were also run without the defence are compared with it; the others count for the means alone.",
        "Run the missing cases: the same command runs only what is missing.",
    ),
    Kind(
        "many-comparisons",
        "Of many idle attacks some seem to work by chance. “Shown” is therefore judged after Holm's correction, which "
        "keeps the chance of even one false “shown” among all of one kind at the level of a single test. The headline "
        "names the strongest attack and the strongest defence: picked from many, both look a little better than they "
        "are.",
        "Judge by “shown”. A setting picked for its number needs a new study of its own.",
    ),
)
_KIND = {kind.name: kind for kind in KINDS}


def leak_cautions(rows: Sequence[LeakRow]) -> list[Caution]:
    """Doubts that follow from the numbers first, then what the trials warned of.

    >>> leak_cautions([])
    []
    """
    found = [Caution(text, _KIND[name]) for name, look in _LOOKS.items() for text in (look(rows) if rows else [])]
    raised: dict[str, set[str]] = {}
    for row in rows:
        for text in row.warnings:
            raised.setdefault(text, set()).add(row.attack)
    return found + [Caution(f"{text} ({', '.join(sorted(by))})", kind_of(text)) for text, by in sorted(raised.items())]


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _settings(rows: Sequence[LeakRow]) -> str:
    """Rows by attack and batch, in short."""
    sizes: dict[str, list[str]] = {}
    for row in rows:
        sizes.setdefault(row.attack, []).append(words.batches(row.batch))
    return "; ".join(f"{attack} on {_listed(found)}" for attack, found in sizes.items())


def _few(rows: Sequence[LeakRow]) -> list[str]:
    few = [row for row in rows if row.trials < fewest_pairs()]
    return [f"Fewer than {fewest_pairs()} cases for {_settings(few)}."] if few else []


def _few_for_many(rows: Sequence[LeakRow]) -> list[str]:
    few = [row for row in rows if fewest_pairs() <= row.trials < fewest_pairs(row.gain.comparisons)]
    if not few:
        return []
    total = few[0].gain.comparisons
    fewest = f"With {total} settings compared, {fewest_pairs(total)} cases are the fewest for which a paired test"
    return [f"{fewest} can show anything on its own: too few for {_settings(few)}."]


def _not_beaten(rows: Sequence[LeakRow]) -> list[str]:
    weak = [row for row in rows if row.defense == "none" and words.standing(row) == "open"]
    return [f"Not shown to beat the mean image even without a defence: {_settings(weak)}."] if weak else []


def _static(rows: Sequence[LeakRow]) -> list[str]:
    known = {row.cell.static for row in rows if row.adaptive}
    met: dict[str, list[str]] = {}
    for row in rows:
        if not words.informed(row) and row.cell.static not in known:
            met.setdefault(row.attack, []).append(row.defense)
    return [
        f"{attack} did not know of {_listed(names)}, and no adaptive run is beside it." for attack, names in met.items()
    ]


def _one_message(rows: Sequence[LeakRow]) -> list[str]:
    met = sorted({row.epsilon for row in rows if row.epsilon is not None})
    return [f"Epsilon of {_listed([words.epsilon(value) for value in met])} is that of one message."] if met else []


def _labels(rows: Sequence[LeakRow]) -> list[str]:
    known = [row for row in rows if "labels known" in row.knowledge]
    everywhere = " everywhere" if len(known) == len(rows) else f" in {len(known)} of {len(rows)} settings"
    return [f"The labels were known to the attacker{everywhere}."] if known else []


def _distinct(rows: Sequence[LeakRow]) -> list[str]:
    met = [row for row in rows if row.settings.get("distinct") and row.batch > 1]
    return [f"Batches hold different labels: {_settings(met)}."] if met else []


def _candidates(rows: Sequence[LeakRow]) -> list[str]:
    few = sorted({row.candidates for row in rows if row.candidates < USUAL_CANDIDATES})
    return (
        [f"Images were picked out among {_listed([f'{n:,}' for n in few])}: guessing finds 1 in as many."]
        if few
        else []
    )


def _loud(rows: Sequence[LeakRow]) -> list[str]:
    loud = [row for row in rows if row.control.identified.low > 1 / row.candidates and row.control.identified.n]
    said = [f"{words.counted(row.control.identified)} in {words.batches(row.batch)}" for row in loud]
    return [f"The mean image alone picks out {_listed(said)}."] if loud else []


def _untrained(rows: Sequence[LeakRow]) -> list[str]:
    return ["Only untrained models were attacked."] if {state_of(r.settings) for r in rows} == {"untrained"} else []


def _windows(rows: Sequence[LeakRow]) -> list[str]:
    shapes = {tuple((result.get("data") or {}).get("shape") or ()) for row in rows for result in row.cell.results}
    small = sorted(f"{shape[1]} x {shape[2]}" for shape in shapes if len(shape) == 3 and min(shape[1:]) < SSIM_WINDOW)
    return [f"Images of {_listed(small)} pixels are smaller than the window of SSIM."] if small else []


def _unpaired(rows: Sequence[LeakRow]) -> list[str]:
    return [
        f"{row.attack}, {words.batches(row.batch)}, {words.protection(row)}: "
        f"{row.loss.identified.pairs if row.loss else 0} of {row.trials} cases have an undefended run."
        for row in rows
        if row.defense != "none" and (row.loss is None or row.loss.identified.pairs < row.trials)
    ]


def _many(rows: Sequence[LeakRow]) -> list[str]:
    return [f"{len(rows)} settings were compared with the mean image."] if len(rows) > 1 else []


_LOOKS: dict[str, Callable[[Sequence[LeakRow]], list[str]]] = {
    "control-not-beaten": _not_beaten,
    "static-only": _static,
    "few-cases": _few,
    "few-for-many": _few_for_many,
    "unpaired-cases": _unpaired,
    "one-message": _one_message,
    "labels-known": _labels,
    "different-labels": _distinct,
    "few-candidates": _candidates,
    "loud-control": _loud,
    "untrained-only": _untrained,
    "small-windows": _windows,
    "many-comparisons": _many,
}
"""In the order in which a report gives them."""
