"""Every backdoor beside no attack: which triggers, and which poisons, a fresh victim learns.

    mithridate study studies.backdoors:digits
    mithridate study studies.backdoors:small
    mithridate study studies.backdoors:cleansed

All but `digits` and `cleansed` expect CIFAR-10 in data/cifar10 (train.parquet and test.parquet in Hugging Face layout),
or where the environment variable MITHRIDATE_CIFAR10 says: 500 images per class, victims of the fast recipe.

References: Gu, Dolan-Gavitt, Garg. "BadNets". 2017. arXiv 1708.06733. Chen et al. "Targeted Backdoor Attacks". 2017.
arXiv 1712.05526. Nguyen, Tran. "WaNet". ICLR 2021. arXiv 2102.10369. Turner, Tsipras, Madry. "Label-Consistent Backdoor
Attacks". 2019. arXiv 1912.02771. Saha, Subramanya, Pirsiavash. "Hidden Trigger Backdoor Attacks". AAAI 2020. arXiv
1910.00033. Souri et al. "Sleeper Agent". NeurIPS 2022. arXiv 2106.08970. Wang et al. "Neural Cleanse". S&P 2019.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import digits_recipe, fast_recipe, small_recipe
from mithridate.experiments.scenarios import scenario, usual_threat
from studies.witches_brew import cifar10

CASES = {"digits": 12, "small": 9}
"""Fewer than 9 cannot show an effect among 8 comparisons."""
DIRTY: tuple[mi.Attack, ...] = (
    mi.BadNets(),
    mi.BadNets(all_to_all=True),
    mi.BadNets(trigger=mi.BlendTrigger()),
    mi.BadNets(trigger=mi.WarpTrigger(strength=1)),
)
"""Attacks that change labels."""
CLEAN: tuple[mi.Attack, ...] = (mi.BadNets(clean_label=True), mi.CleanLabelBackdoor())
SHARE = 0.05
TRUSTED = 100
"""Clean rows for neural-cleanse and what it is compared with."""


def digits() -> list[mi.Trial]:
    """Returns every backdoor on digits; half an hour."""
    return plan_audit(_all(digits_recipe(), CASES["digits"]), mi.Digits())


def small() -> list[mi.Trial]:
    """Returns every backdoor on CIFAR-10; two hours."""
    return plan_audit(_all(fast_recipe(small_recipe()), CASES["small"]), cifar10(per_class=500))


def cleansed() -> list[mi.Trial]:
    """Returns patches on digits against neural-cleanse, fine-pruning and STRIP, 12 poisons; half an hour."""
    defenses = ((mi.NeuralCleanse(),), (mi.FinePruning(),), (mi.FineTuning(),), (mi.Strip(),))
    panels = _panels((mi.BadNets(),), digits_recipe(), CASES["digits"])
    return plan_audit([replace(one, defenses=defenses, trusted=TRUSTED) for one in panels], mi.Digits())


def _all(recipe: mi.Recipe, cases: int) -> list[Panel]:
    scratch = _panels((*DIRTY, *CLEAN, mi.SleeperAgent()), recipe, cases)
    return scratch + _panels((mi.HiddenTrigger(),), recipe, cases, "transfer")


def _panels(attacks: Iterable[mi.Attack], recipe: mi.Recipe, cases: int, how: str = "from-scratch") -> list[Panel]:
    return [
        Panel(
            attack=attack,
            threat=replace(usual_threat(attack), budget=SHARE),
            scenario=scenario(how, recipe),
            trials=cases,
            clean_victims=3,
        )
        for attack in attacks
    ]
