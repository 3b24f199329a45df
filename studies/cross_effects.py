"""Does one defence help against the other's attack? Privacy, adversarial training and mixing, each against both.

    mithridate study studies.cross_effects:poisons
    mithridate study studies.cross_effects:leaks
    python -m studies.cross_effects                  # writes the tables of docs/cross-effects.md

One network, one data set: `mlp` on the digits, which trains privately (no BatchNorm), leaks its images, and learns
a backdoor. Three questions: does the noise that stops the inversion of gradients also stop poison, does adversarial
training change the dose that moves half, does mixing hide gradients (and of which model).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mithridate as mi
from mithridate.core.transforms import Adversarial, Mixup
from mithridate.experiments.compare import against
from mithridate.experiments.leak_table import LeakRow, leak_table
from mithridate.experiments.panels import Panel, plan_audit, stepped
from mithridate.experiments.presets import digits_recipe
from mithridate.experiments.scenarios import scenario, usual_threat
from mithridate.experiments.statistics import Mean
from mithridate.experiments.study import load_results
from mithridate.experiments.table import Row, table

CASES, PAIRS = 20, 20
"""Poisons at each dose; pairs of images in each cell of leaks."""
NOISES = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0)
"""Deviation of the noise on a sum of gradients that are clipped to 1, in training and in a message alike."""
LARGEST = 0.04
"""Of the backdoor's doses."""
RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "cross-effects.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def recipe() -> mi.Recipe:
    """The network of all of it: 97 % accurate on the digits."""
    return replace(digits_recipe(), model="mlp", epochs=30, transforms=())


def poisons() -> list[mi.Trial]:
    """Returns a patch backdoor against DP-SGD, adversarial training and mixup, by dose; a quarter of an hour."""
    attack = mi.BadNets()
    marked = Panel(
        attack=attack,
        threat=replace(usual_threat(attack), budget=LARGEST),
        scenario=scenario("from-scratch", recipe()),
        defenses=((mi.AdversarialTraining(ball=mi.Linf(eps=32 / 255), steps=3, step=16 / 255),), (mi.Mixup(),)),
        trials=CASES,
        clean_victims=3,
    )
    private = replace(
        marked,
        threat=replace(marked.threat, budget=LARGEST / 2),
        defenses=tuple((mi.DPSGD(noise=noise),) for noise in NOISES),
    )
    return plan_audit([*stepped(marked, "budget"), private], mi.Digits())


def leaks() -> list[mi.LeakTrial]:
    """Returns pairs of digits inverted from gradients of every kind of model and message; half an hour."""
    plain = recipe()
    robust = Adversarial(ball=mi.Linf(eps=32 / 255), steps=3, step=16 / 255)
    trained = {
        "plain": plain,
        "mixup": replace(plain, transforms=(*plain.transforms, Mixup())),
        "adversarial": replace(plain, transforms=(*plain.transforms, robust)),
    }
    messages: list[tuple[mi.Recipe, tuple[mi.LeakDefense, ...]]] = [(one, ()) for one in trained.values()]
    messages += [(plain, (mi.ClipAndNoise(noise=noise),)) for noise in NOISES]
    messages += [(one, (mi.Mixing(),)) for one in trained.values()]
    return [
        mi.LeakTrial(
            data=mi.Digits(),
            recipe=model,
            attack=mi.InvertingGradients(steps=1000),
            client=mi.Client(batch=2),
            defenses=defenses,
            adaptive=bool(defenses),
            seed=seed,
        )
        for model, defenses in messages
        for seed in range(PAIRS)
    ]


# --- the page --------------------------------------------------------------------------------------------------------


def tables(poisoned: Path, leaked: Path) -> Iterator[str]:
    """Yields the lines of the page's tables, from results folders."""
    rows = [row for row in table(load_results(poisoned)).rows if not row.adaptive]
    leaks = leak_table(load_results(leaked)).rows
    yield "## Noise: privacy against both"
    yield ""
    yield (
        "| noise (times the clip) | epsilon of the training | backdoor, 20 poisons | strictest control | accuracy | "
        "epsilon of one message | pairs of images picked out of 1,000 | PSNR |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for noise in (None, *NOISES):
        row, leak = _private(rows, noise), _noisy(leaks, noise)
        yield _line(
            "no clip, no noise" if noise is None else f"{noise:g}",
            _epsilon(row.guarantees),
            str(row.success),
            _shown(row),
            _accuracy(row.accuracy),
            "none" if leak.epsilon is None else f"{leak.epsilon:.3g}",
            str(leak.found.identified),
            _decibels(leak.found.psnr),
        )
    yield ""
    yield "## Adversarial training and mixup: the dose that moves half"
    yield ""
    for response in table(load_results(poisoned)).doses():
        yield from (f"- {sentence}" for sentence in response.sentences())
    yield ""
    yield "| defence | " + " | ".join(f"{dose:g} poisons" for dose in _doses(rows)) + " | accuracy at the largest |"
    yield "|---|" + "---|" * (len(_doses(rows)) + 1)
    for defense in ("none", "adversarial-training", "mixup"):
        found = [row for row in rows if row.attack == "badnets" and row.defense == defense]
        found.sort(key=lambda row: row.budget.count or 0)
        yield _line(defense, *(str(row.success) for row in found), _accuracy(found[-1].accuracy))
    yield ""
    yield "## Mixing and adversarial training: what gradients give away"
    yield ""
    yield "| model trained | what is shared | pairs of images picked out of 1,000 | PSNR | against the plain message |"
    yield "|---|---|---|---|---|"
    for leak in leaks:
        if leak.defense.startswith("clip-and-noise"):
            continue
        loss = (
            ""
            if leak.loss is None
            else f"{-leak.loss.psnr.difference.value:+.1f} dB (Holm p = {leak.loss.psnr_holm:.2g})"
        )
        shared = "gradient" if leak.defense == "none" else f"gradient of mixed images ({leak.defense})"
        yield _line(_trained(leak), shared, str(leak.found.identified), _decibels(leak.found.psnr), loss)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _private(rows: Sequence[Row], noise: float | None) -> Row:
    """The backdoor at the middle dose, without a defence or under DP-SGD with that noise."""
    return next(
        row for row in rows if row.attack == "badnets" and row.budget.limit == LARGEST / 2 and _noise(row) == noise
    )


def _noise(row: Row) -> float | None:
    defenses = row.cell.setting.get("defenses") or []
    if any(one["type"] != "dp-sgd" for one in defenses):
        return -1.0
    return defenses[0]["noise"] if defenses else None


def _noisy(rows: Sequence[LeakRow], noise: float | None) -> LeakRow:
    """The plain model's message, without noise or with that much."""
    for row in rows:
        defenses: list[dict[str, Any]] = row.settings.get("defenses") or []
        if _trained(row) == "plainly" and [one.get("noise") for one in defenses] == ([] if noise is None else [noise]):
            return row
    raise ValueError(f"no leak with noise {noise} is stored")


def _trained(row: LeakRow) -> str:
    transforms = [one["type"] for one in row.settings["recipe"]["transforms"]]
    return next((f"with {name}" for name in transforms if name in ("mixup", "adversarial")), "plainly")


def _doses(rows: Sequence[Row]) -> list[int]:
    return sorted({row.budget.count for row in rows if row.attack == "badnets" and row.defense == "mixup"})


def _epsilon(guarantees: Sequence[dict[str, Any]]) -> str:
    return next((f"{one['values']['epsilon']:.3g}" for one in guarantees if "epsilon" in one["values"]), "none")


def _shown(row: Row) -> str:
    control = against(row.versus)
    return "" if control is None else f"{control.success}, Holm p = {control.holm:.2g}"


def _accuracy(value: Mean) -> str:
    return f"{100 * value.value:.1f} %"


def _decibels(value: Mean) -> str:
    ends = "" if value.low is None or value.high is None else f" ({value.low:.1f} to {value.high:.1f})"
    return f"{value.value:.1f} dB{ends}"


def written(page: str) -> str:
    """Returns the page with its tables made anew from what is stored."""
    lines = "\n".join(tables(RESULTS / "cross-effects-poisons", RESULTS / "cross-effects-leaks"))
    before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
    return f"{page[:before]}\n{lines}\n{page[after:]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")
