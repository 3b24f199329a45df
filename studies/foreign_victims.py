"""Black-box victims of other libraries: poisons crafted on our own network, without knowing who will train on them.

    mithridate study studies.foreign_victims:digits

The local stand-in for the cloud services that the papers poisoned: scikit-learn on pixels and on features, the
transformers Trainer with a small vision transformer and a small ResNet from scratch (`studies.strangers`). Needs
`pip install 'mithridate[transformers]'`.

References: Geiping, Fowl et al. "Witches' Brew". ICLR 2021. arXiv 2009.02276 (Google AutoML); Gu, Dolan-Gavitt, Garg.
"BadNets". 2017. arXiv 1708.06733; Huang, Ma, Erfani, Bailey, Wang. "Unlearnable Examples". ICLR 2021. arXiv 2101.04898.
"""

from __future__ import annotations

from dataclasses import replace

import mithridate as mi
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import digits_audit, digits_recipe
from mithridate.experiments.scenarios import scenario

CASES = 9
DIGITS_EPS = 64 / 255


def digits() -> list[mi.Trial]:
    """Returns a backdoor, gradient matching and class-wise noise against each victim; half an hour."""
    backdoor, _, brew = digits_audit()
    useless = mi.ThreatModel(
        budget=1.0, ball=mi.Linf(eps=DIGITS_EPS), goal=mi.Availability(), poison_class="any", relabel=False
    )
    panels: list[Panel] = []
    for name in ("logistic_regression", "support_vectors", "trainer_vit", "trainer_resnet"):
        place = scenario("from-scratch-black-box", mi.learner(f"studies.strangers:{name}"), digits_recipe())
        known = replace(backdoor, scenario=place, defenses=(), clean_victims=1)
        panels += [
            replace(known, trials=CASES),
            replace(known, attack=brew.attack, threat=brew.threat, trials=CASES),
            replace(known, attack=mi.ErrorMinimizing(noise="class-wise"), threat=useless).sized(1, 3, 3),
        ]
    return plan_audit(panels, mi.Digits())
