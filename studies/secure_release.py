"""Data that are of no use to train on: every method of release, what is left of it, and what takes it away.

    mithridate study studies.secure_release:small
    mithridate study studies.secure_release:medium
    mithridate study studies.secure_release:shares
    mithridate study studies.secure_release:architectures
    mithridate study studies.secure_release:countered
    mithridate study studies.secure_release:identities
    mithridate study studies.secure_release:paper --device cuda

All but `small`, which takes digits, expect CIFAR-10 as `studies.witches_brew` does: 500 images per class, victims of
the fast recipe. In one results folder they share their poisons, surrogates and clean victims.

References: Fowl et al. "Preventing Unauthorized Use of Proprietary Data: Poisoning for Secure Dataset Release". 2021.
arXiv 2103.02683. Fowl et al. "Adversarial Examples Make Strong Poisons". NeurIPS 2021. arXiv 2106.10807. Huang et al.
"Unlearnable Examples". ICLR 2021. arXiv 2101.04898. Liu, Zhao, Larson. "Image Shortcut Squeezing". ICML 2023. arXiv
2301.13838 (what takes it away).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import mithridate as mi
from mithridate.core.transforms import Flip, Shift
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.presets import digits_recipe, fast_recipe, small_recipe
from mithridate.experiments.scenarios import scenario
from studies.witches_brew import cifar10

STEPS = 100
METHODS: tuple[mi.Attack, ...] = (
    mi.ClassWiseNoise(),
    mi.TensorClog(steps=STEPS),
    mi.ErrorMinimizing(steps=STEPS),
    mi.ErrorMinimizing(noise="class-wise"),
    mi.SecureRelease(steps=STEPS),
    mi.AdversarialRelease(aim="untargeted", steps=STEPS),
    mi.AdversarialRelease(steps=STEPS),
)
STRONG = (mi.AdversarialRelease(steps=STEPS), mi.ErrorMinimizing(noise="class-wise"))
"""One method of each kind: noise for each image, and one pattern for each class."""
EPS = 8 / 255
COUNTERS = (
    (mi.Cutout(),),
    (mi.Mixup(),),
    (mi.Jpeg(),),
    (mi.Grayscale(),),
    (mi.AdversarialTraining(ball=mi.Linf(eps=EPS)),),
)
DIGITS_EPS = 64 / 255
"""Digits have 16 shades and no texture: what is small on a photograph does nothing to them."""


def small() -> list[mi.Trial]:
    """Returns every method on digits; five minutes of two cores."""
    return plan_audit(_panels(METHODS, digits_recipe(), eps=DIGITS_EPS), mi.Digits())


def medium() -> list[mi.Trial]:
    """Returns every method on CIFAR-10, all images poisoned; an hour."""
    return plan_audit(_panels(METHODS, fast_recipe(small_recipe())), cifar10(per_class=500))


def paper() -> list[mi.Trial]:
    """Returns every method on all of CIFAR-10 with ResNet-18, 250 steps; a day of a GPU."""
    methods = tuple(replace(attack, steps=250) if hasattr(attack, "steps") else attack for attack in METHODS)
    recipe = mi.Recipe(model="resnet18", epochs=100, batch_size=128, weight_decay=5e-4, transforms=(Flip(), Shift()))
    return plan_audit(_panels(methods, recipe), cifar10())


def shares() -> list[mi.Trial]:
    """Returns two methods with 100, 90 and 80 % of the images poisoned; half an hour."""
    panels = [panel for share in (1.0, 0.9, 0.8) for panel in _panels(STRONG, fast_recipe(small_recipe()), share=share)]
    return plan_audit(panels, cifar10(per_class=500))


def architectures() -> list[mi.Trial]:
    """Returns two methods, crafted on `convnet`, against victims of other architectures; an hour."""
    recipe = fast_recipe(small_recipe())
    panels = [
        panel
        for model in ("resnet18:width=16", "mlp")
        for panel in _panels(STRONG, replace(recipe, model=model), surrogate=recipe)
    ]
    return plan_audit(panels, cifar10(per_class=500))


def countered() -> list[mi.Trial]:
    """Returns two methods against victims that take counter-measures; an hour and a half."""
    panels = _panels(STRONG, fast_recipe(small_recipe()), defenses=COUNTERS)
    return plan_audit(panels, cifar10(per_class=500))


def identities() -> list[mi.Trial]:
    """Returns two methods at two strengths on 200 classes with 20 images each (`studies.exemplars`); 10 minutes."""
    methods = (mi.SecureRelease(steps=STEPS), mi.AdversarialRelease(steps=STEPS))
    panels = [panel for eps in (EPS, 2 * EPS) for panel in _panels(methods, fast_recipe(small_recipe()), eps=eps)]
    return plan_audit(panels, mi.TorchDataset("studies.exemplars:views"))


def _panels(
    attacks: Iterable[mi.Attack],
    recipe: mi.Recipe,
    *,
    surrogate: mi.Recipe | None = None,
    eps: float = EPS,
    share: float = 1.0,
    defenses: tuple[tuple[mi.Defense, ...], ...] = (),
) -> list[Panel]:
    threat = mi.ThreatModel(budget=share, ball=mi.Linf(eps=eps), goal=mi.Availability(), poison_class="any")
    trained = scenario("from-scratch", recipe, surrogate)
    panels = [Panel(attack=attack, threat=threat, scenario=trained, defenses=defenses) for attack in attacks]
    return [panel.sized(None, None, None) for panel in panels]
