"""Images attacked per second: PGD of 20 steps, ours beside foolbox's and beside a loop written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import (
    Arm,
    Claim,
    Report,
    Row,
    Setup,
    environment,
    faster_than_straightforward,
    near_the_best,
    race,
)
from mithridate.core.balls import Linf
from mithridate.core.data import ImageData
from mithridate.core.seeds import stream
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.evasion.attacks.pgd import PGD

IMAGES = 250
STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network at one strength."""

    name: str
    model: str
    eps: float
    least: float | None = None
    """Times as fast as foolbox that is asked for; None: shown alone."""


CASES = (
    Case(name="convnet, most images fooled", model="convnet", eps=48 / 255, least=1.5),
    Case(name="convnet, some images fooled", model="convnet", eps=16 / 255, least=1.5),
    Case(name="convnet, few images fooled", model="convnet", eps=1 / 255),
    Case(name="resnet18:width=16, most images fooled", model="resnet18:width=16", eps=48 / 255, least=1.5),
    Case(name="resnet18:width=16, few images fooled", model="resnet18:width=16", eps=0.5 / 255),
)


def larger(data: ImageData) -> ImageData:
    """The same with four pixels for one in both directions."""
    images = data.pixels(data.ids).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return ImageData(images, data.labels_of(data.ids), data.classes)


def victim(setup: Setup, model: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained on digits of 32 x 32 pixels, and test images that it gets right."""
    train, test = (larger(part) for part in Digits(train=100 if setup.small else 1000).load(setup.device))
    recipe = Recipe(model=model, epochs=1 if setup.small else 6, batch_size=50, learning_rate=0.05, precision="fp32")
    network = recipe.fit([train], [0]).models[0].eval()
    images, labels = test.floats(test.ids), test.labels_of(test.ids)
    with torch.no_grad():
        right = torch.cat([network(part).argmax(1) for part in images.split(250)]) == labels
    rows = right.nonzero()[: 10 if setup.small else IMAGES, 0]
    return network, images[rows].contiguous(), labels[rows]


def ours(network: nn.Module, images: Tensor, labels: Tensor, eps: float, *, stop: bool) -> Callable[[], str]:
    """Our PGD; without a stop every image takes every step, as everywhere else."""
    attack = PGD(ball=Linf(eps=eps), steps=STEPS, step=eps / 4, stop=stop)

    def work() -> str:
        found = attack.perturb(network, images, labels, stream(0, "pgd"))
        return f"{int(found.fooled.sum())} of {len(images)} fooled"

    return work


def by_hand(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Callable[[], str]:
    """The loop that one writes first, with gradients of the images alone."""

    def work() -> str:
        torch.manual_seed(0)
        moved = (images + (2 * torch.rand_like(images) - 1) * eps).clamp(0, 1)
        for _ in range(STEPS):
            moved.requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(network(moved), labels), moved)
            moved = moved.detach() + eps / 4 * slope.sign()
            moved = torch.minimum(torch.maximum(moved, images - eps), images + eps).clamp(0, 1)
        with torch.no_grad():
            return f"{int((network(moved).argmax(1) != labels).sum())} of {len(images)} fooled"

    return work


def foolbox(network: nn.Module, images: Tensor, labels: Tensor, eps: float, *, frozen: bool) -> Callable[[], str]:
    """Foolbox's PGD, with the network as it is, or with weights that ask for no gradient, as it does not do itself."""

    def work() -> str:
        library = import_module("foolbox")
        torch.manual_seed(0)
        network.requires_grad_(not frozen)
        try:
            model = library.PyTorchModel(network, bounds=(0, 1), device=images.device)
            attack = library.attacks.LinfPGD(abs_stepsize=eps / 4, rel_stepsize=None, steps=STEPS, random_start=True)
            _, _, fooled = attack(model, images, labels, epsilons=eps)
            return f"{int(fooled.sum())} of {len(images)} fooled"
        finally:
            network.requires_grad_(True)
            network.zero_grad()

    return work


def run(setup: Setup) -> Report:
    """Time every case."""
    rows: list[Row] = []
    claims: list[Claim] = []
    victims = {model: victim(setup, model) for model in dict.fromkeys(case.model for case in CASES)}
    for case in CASES:
        network, images, labels = victims[case.model]
        given = (network, images, labels, case.eps)
        arms = [
            Arm(name="mithridate", role="mithridate", work=ours(*given, stop=True)),
            Arm(name="mithridate, every image to the end", role="control", work=ours(*given, stop=False)),
            Arm(name="foolbox", role="straightforward", work=foolbox(*given, frozen=False)),
            Arm(name="foolbox, weights frozen", role="variant", work=foolbox(*given, frozen=True)),
            Arm(name="by hand", role="variant", work=by_hand(*given)),
        ]
        found = race(
            setup,
            case.name,
            arms,
            unit=f"images per {setup.clock} second",
            value=lambda seconds, count=len(images): count / seconds,
        )
        rows += found
        claims += faster_than_straightforward(found, None if setup.small else case.least)
        claims += near_the_best(found, None if setup.small else 0.9)
    settings = {
        "images": f"{IMAGES} digits of 32 x 32 pixels that the network gets right",
        "network": "trained for 6 epochs on 1,000 digits, float32",
        "attack": f"PGD in Linf, {STEPS} steps of a quarter of eps, one random start",
        "early stop": "mithridate leaves an image alone once it is fooled; the others do not",
    }
    return Report(name="evasion", settings=settings, rows=rows, claims=claims, environment=environment(setup.device))
