"""Training speed: a mithridate recipe beside the plain float32 loop and beside the fastest loops written by hand."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cases import data_of
from benchmarks.ceiling import flops_of
from benchmarks.measure import (
    Arm,
    Claim,
    Ratio,
    Report,
    Row,
    Setup,
    asked,
    environment,
    faster_than_straightforward,
    near_the_best,
    race,
    row_of,
)
from benchmarks.reference.pixels import CLASSES
from benchmarks.reference.schooling import Schooling, Way, train_by_graph, train_by_hand, train_plain
from mithridate.core.data import ImageData
from mithridate.core.models import build
from mithridate.core.training import Recipe

IMAGES = {"convnet": 1250, "convnet-wide": 750}
"""Training images on a CPU, so that a round lasts seconds; 125 for the larger networks. Whole batches of 125."""
LARGE = ("resnet18", "vgg11", "mobilenet_v2")
"""Networks that on a CPU are trained in fewer ways, since each takes long."""
CEILING_SHARE = 0.35
"""Of the bfloat16 matrix product's speed, asked of resnet18 on a GPU."""

Train = Callable[[nn.Module, Tensor, Tensor, Schooling], float]


def run(setup: Setup) -> Report:
    """Train each network in several ways, interleaved."""
    school = Schooling(epochs=2, batch_size=_batch(setup))
    rows: list[Row] = []
    claims: list[Claim] = []
    for model in setup.models:
        data = data_of(setup, _images(setup, model))
        seen = school.epochs * len(data)
        found = race(
            setup,
            f"training {model}",
            _arms(setup, model, school, data),
            unit=f"images per {setup.clock} second",
            value=lambda seconds, seen=seen: seen / seconds,
            flops=seen * flops_per_image(setup, model, data),
        )
        rows += found
        claims += _claims(setup, model, found)
    settings = {
        "images": "32x32x3 synthetic",
        "batch": school.batch_size,
        "epochs": school.epochs,
        "augmentation": "flip, shift by up to 4 pixels",
        "bf16": setup.bf16,
        "counted": "building the model, normalisation, every epoch",
        "flops": "convolutions and matrix products of a forward and a backward pass",
    }
    return Report(name="training", settings=settings, rows=rows, claims=claims, environment=environment(setup.device))


def _batch(setup: Setup) -> int:
    if setup.small:
        return 10
    return 125 if setup.device == "cpu" else 500


def _images(setup: Setup, model: str) -> int:
    if setup.small:
        return 20
    return IMAGES.get(model, 125) if setup.device == "cpu" else 25_000


def _arms(setup: Setup, model: str, school: Schooling, data: ImageData) -> list[Arm]:
    recipe = Recipe(model=setup.spec(model), epochs=school.epochs, batch_size=school.batch_size)

    def ours() -> str:
        return _note(recipe.fit([data], [0]).history["loss"][0][-1])

    def by_hand(train: Train) -> Callable[[], str]:
        def work() -> str:
            network = build(setup.spec(model), CLASSES, data.shape, seed=0).to(setup.device)
            return _note(train(network, data.images, data.labels, school))

        return work

    arms = [
        Arm(name="mithridate", role="mithridate", work=ours),
        Arm(name="plain fp32 NCHW", role="straightforward", work=by_hand(train_plain)),
    ]
    return [*arms, *(Arm(name=name, role="variant", work=by_hand(way)) for name, way in _ways(setup, model).items())]


def _ways(setup: Setup, model: str) -> dict[str, Train]:
    """The loops by hand that are tried on this machine."""
    fast, on_gpu = setup.bf16, setup.device.startswith("cuda")

    def eager(way: Way) -> Train:
        return lambda network, images, labels, school: train_by_hand(network, images, labels, school, way)

    def graph(*, compiled: bool) -> Train:
        return lambda n, x, y, school: train_by_graph(n, x, y, school, bf16=fast, compiled=compiled)

    kind = "bf16" if fast else "fp32"
    ways = {f"{kind} channels last, one gather, fused SGD": eager(Way(bf16=fast))}
    if model not in LARGE or on_gpu:
        ways[f"{kind} channels last, one gather, foreach SGD"] = eager(Way(bf16=fast, fused=False))
        ways[f"{kind} channels last, two passes, fused SGD"] = eager(Way(bf16=fast, gather=False))
    if fast:
        ways["fp32 channels last, one gather, fused SGD"] = eager(Way(bf16=False))
    if on_gpu:
        ways["torch.compile, bf16"] = eager(Way(bf16=fast, compiled=True))
        ways["one CUDA graph per step, bf16"] = graph(compiled=False)
        ways["torch.compile in one CUDA graph per step, bf16"] = graph(compiled=True)
    return ways


def flops_per_image(setup: Setup, model: str, data: ImageData) -> float:
    """Of a forward and a backward pass, counted on a batch of two."""
    network = build(setup.spec(model), CLASSES, data.shape, seed=0).to(setup.device)
    images, labels = data.floats(data.ids[:2]), data.labels_of(data.ids[:2])
    return flops_of(lambda: functional.cross_entropy(network(images), labels).backward()) / 2


def _note(loss: float) -> str:
    return f"final loss {loss:.2f}"


def _claims(setup: Setup, model: str, rows: list[Row]) -> list[Claim]:
    claims = faster_than_straightforward(rows, 2.0 if setup.claims_bf16 else None) + near_the_best(rows)
    ours = row_of(rows, "mithridate")
    if ours is not None and ours.ceiling_share is not None and model == "resnet18":
        share = ours.ceiling_share
        least = CEILING_SHARE if setup.device.startswith("cuda") else None
        claims.append(asked(f"{ours.case}: share of the measured ceiling", Ratio(share, share, share), least))
    return claims
