"""Training speed: a mithridate recipe beside the plain float32 loop and beside the fastest loop written by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measure import Claim, Report, Row, Setup, Timing, environment, interleaved, median, speedup
from benchmarks.reference import Schooling, synthetic, train_best, train_plain
from mithridate.core.classifier import bf16_pays
from mithridate.core.data import ImageData
from mithridate.core.models import build
from mithridate.core.training import Recipe

CLASSES = 10


def images_for(setup: Setup, model: str) -> int:
    """Training images: enough that a round lasts seconds, an epoch is whole batches of 125."""
    if setup.small:
        return 60
    if setup.device != "cpu":
        return 25_000
    return 250 if model == "resnet18" else 2_500


def run(setup: Setup) -> Report:
    """Train each network in three ways, interleaved."""
    school = Schooling(epochs=2, batch_size=20 if setup.small else 125)
    rows: list[Row] = []
    claims: list[Claim] = []
    for model in setup.models:
        count = images_for(setup, model)
        losses: dict[str, float] = {}
        arms = _arms(setup, model, school, count, losses)
        found = interleaved(arms, setup.rounds(model), setup.device)
        rows += [_row(model, arm, times, setup, school.epochs * count, losses[arm]) for arm, times in found.items()]
        claims += _claims(setup, model, found)
    settings = {
        "images": "32x32x3 synthetic",
        "batch": school.batch_size,
        "epochs": school.epochs,
        "augmentation": "flip, shift by up to 4 pixels",
        "bf16": bf16_pays(torch.device(setup.device)),
        "counted": "building the model, normalisation, every epoch",
    }
    return Report(name="training", settings=settings, rows=rows, claims=claims, environment=environment(setup.device))


def _arms(
    setup: Setup, model: str, school: Schooling, count: int, losses: dict[str, float]
) -> dict[str, Callable[[], object]]:
    images, labels = (tensor.to(setup.device) for tensor in synthetic(count, CLASSES))
    data = ImageData(images, labels, tuple(f"class {number}" for number in range(CLASSES)))
    recipe = Recipe(model=setup.spec(model), epochs=school.epochs, batch_size=school.batch_size)
    bf16 = bf16_pays(torch.device(setup.device))

    def ours() -> None:
        losses["mithridate"] = recipe.fit([data], [0]).history["loss"][0][-1]

    def by_hand(name: str, train: Callable[[nn.Module, Tensor, Tensor], float]) -> Callable[[], None]:
        def work() -> None:
            network = build(setup.spec(model), CLASSES, data.shape, seed=0).to(setup.device)
            losses[name] = train(network, images, labels)

        return work

    return {
        "mithridate": ours,
        "best by hand": by_hand("best by hand", lambda n, x, y: train_best(n, x, y, school, bf16=bf16)),
        "plain fp32 NCHW": by_hand("plain fp32 NCHW", lambda n, x, y: train_plain(n, x, y, school)),
    }


def _row(model: str, arm: str, times: list[Timing], setup: Setup, images: int, loss: float) -> Row:
    return Row(
        case=model,
        arm=arm,
        value=images / median(times, setup.clock),
        unit=f"images per {setup.clock} second",
        wall_seconds=median(times, "wall"),
        cpu_seconds=median(times, "cpu"),
        rounds=len(times),
        note=f"{images} images seen, final loss {loss:.2f}",
    )


def _claims(setup: Setup, model: str, found: dict[str, list[Timing]]) -> list[Claim]:
    ours, best, plain = (found[arm] for arm in ("mithridate", "best by hand", "plain fp32 NCHW"))
    fast_bf16 = setup.device == "cpu" and bf16_pays(torch.device("cpu"))
    return [
        speedup(f"{model}: mithridate over the best loop by hand", best, ours, setup.clock, 0.95),
        speedup(f"{model}: mithridate over plain fp32 NCHW", plain, ours, setup.clock, 2.0 if fast_bf16 else None),
    ]
