"""A whole trial - surrogate, poisons, victims, evaluation - beside the same counts done straightforwardly."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from benchmarks.cases import data_of
from benchmarks.crafting import flops_per_poison
from benchmarks.measure import (
    Arm,
    Claim,
    Report,
    Row,
    Setup,
    at_most,
    environment,
    faster_than_straightforward,
    race,
    row_of,
)
from benchmarks.reference.flow import PHASES, Flow, run_plain
from benchmarks.reference.matching import Brewing
from benchmarks.reference.pixels import CLASSES
from benchmarks.reference.schooling import Schooling
from benchmarks.training import flops_per_image
from mithridate.core.data import ImageData
from mithridate.core.models import build
from mithridate.core.sources import Arrays
from mithridate.core.training import Recipe
from mithridate.experiments.presets import fast_recipe
from mithridate.experiments.store import Store
from mithridate.experiments.trial import Trial, run as run_trial
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work a trial is."""

    model: str
    train: int
    test: int
    poisons: int
    epochs: int
    steps: int
    victims: int
    restarts: int = 1
    batch_size: int = 125


SMALL = tuple(
    Size(model=model, train=1000, test=500, poisons=20, epochs=6, steps=60, victims=2)
    for model in ("convnet-wide", "convnet")
)
"""Small enough for a CPU; training takes most of it, as in any trial."""
LARGE = Size(
    model="resnet18",
    train=50_000,
    test=10_000,
    poisons=500,
    epochs=40,
    steps=250,
    victims=8,
    restarts=8,
    batch_size=128,
)
"""The paper's counts on a set of CIFAR-10's size."""
TINY = Size(model="convnet", train=60, test=20, poisons=4, epochs=1, steps=2, victims=1, batch_size=20)
LARGE_BARS = {"mithridate": 300.0, "mithridate, fast recipe": 120.0}
"""Seconds asked of `LARGE` on a GPU, by arm."""


def run(setup: Setup) -> Report:
    """The small trials beside the straightforward flow; the large one on a GPU alone (and tiny in the small form)."""
    rows: list[Row] = []
    claims: list[Claim] = []
    sizes = (TINY,) if setup.small else SMALL
    for size in sizes:
        train, test = _halves(setup, size)
        found = race(
            setup,
            f"small trial on {size.model}",
            [
                Arm(name="mithridate", role="mithridate", work=_ours(setup, size, train, test, _recipe(setup, size))),
                Arm(name="plain fp32 NCHW", role="straightforward", work=_plain(setup, size, train, test)),
            ],
            unit=f"{setup.clock} seconds",
            value=lambda seconds: seconds,
            flops=_flops(setup, size, train),
        )
        rows += found
        claims += faster_than_straightforward(found, 2.3 if setup.claims_bf16 else None)
    if setup.small or setup.device.startswith("cuda"):
        more, bars = _large(setup, TINY if setup.small else LARGE)
        rows, claims = rows + more, claims + bars
    settings = {
        "images": "32x32x3 synthetic",
        "small trials": [asdict(size) for size in sizes],
        "large trial": asdict(TINY if setup.small else LARGE),
        "attack": "witches-brew, eps 16/255",
        "counted": "everything from images in memory to the outcome; mithridate's also goes to a results folder",
        "note": "wall seconds of each part",
        "flops": "convolutions and matrix products of training and crafting",
    }
    return Report(name="trial", settings=settings, rows=rows, claims=claims, environment=environment(setup.device))


def _large(setup: Setup, size: Size) -> tuple[list[Row], list[Claim]]:
    """The trial of the paper, once with its recipe and once with the fast one."""
    train, test = _halves(setup, size)
    recipe = _recipe(setup, size)
    recipes = dict(zip(LARGE_BARS, (recipe, fast_recipe(recipe)), strict=True))
    rows: list[Row] = []
    claims: list[Claim] = []
    for name, chosen in recipes.items():
        arm = Arm(name=name, role="mithridate", work=_ours(setup, size, train, test, chosen))
        flops = _flops(setup, size, train, chosen.epochs)
        case = f"large trial on {size.model}, {chosen.epochs} epochs" + (" (tiny form)" if setup.small else "")
        unit = f"{setup.clock} seconds"
        found = race(setup, case, [arm], unit=unit, value=lambda s: s, flops=flops, once=True)
        rows += found
        if (row := row_of(found, "mithridate")) is not None:
            claims.append(at_most(case, row, LARGE_BARS[name]))
    return rows, claims


def _halves(setup: Setup, size: Size) -> tuple[ImageData, ImageData]:
    """Training and test images, each a set of its own."""
    data = data_of(setup, size.train + size.test)
    parts = (slice(0, size.train), slice(size.train, None))
    train, test = (ImageData(data.images[part], data.labels[part], data.classes) for part in parts)
    return train, test


def _recipe(setup: Setup, size: Size) -> Recipe:
    return Recipe(model=setup.spec(size.model), epochs=size.epochs, batch_size=size.batch_size)


def _threat(size: Size) -> ThreatModel:
    return ThreatModel(budget=size.poisons / size.train)


def _ours(setup: Setup, size: Size, train: ImageData, test: ImageData, recipe: Recipe) -> Callable[[], str]:
    trial = Trial(
        data=Arrays(train, test),
        threat=_threat(size),
        attack=WitchesBrew(steps=size.steps, restarts=size.restarts, surrogates=1),
        learner=recipe,
        victims=size.victims,
    )

    def work() -> str:
        with tempfile.TemporaryDirectory(prefix="mithridate-benchmark-") as folder:
            return _split(run_trial(trial, Store(folder), setup.device).seconds)

    return work


def _plain(setup: Setup, size: Size, train: ImageData, test: ImageData) -> Callable[[], str]:
    task = _threat(size).draw(train, test, seed=0)
    flow = Flow(
        build=lambda seed: build(setup.spec(size.model), CLASSES, train.shape, seed).to(setup.device),
        images=train.images,
        labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        rows=task.choose(0),
        target=task.targets.contiguous(),
        intended=task.intended,
        school=Schooling(epochs=size.epochs, batch_size=size.batch_size),
        brewing=Brewing(steps=size.steps),
        victims=size.victims,
    )
    return lambda: _split(run_plain(flow).seconds)


def _split(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{phase} {seconds[phase]:.1f} s" for phase in PHASES)


def _flops(setup: Setup, size: Size, train: ImageData, epochs: int | None = None) -> float:
    """Of training and crafting; evaluation is left out."""
    trained = size.train * (size.epochs if epochs is None else epochs) * (1 + size.victims)
    network = build(setup.spec(size.model), CLASSES, train.shape, seed=0).to(setup.device).eval()
    images, labels = train.floats(train.ids[:2]), train.labels_of(train.ids[:2])
    crafted = size.poisons * size.steps * size.restarts * flops_per_poison(network, images, labels)
    return trained * flops_per_image(setup, size.model, train) + crafted
