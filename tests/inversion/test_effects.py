"""What each attack is for: digits come back from a smooth network's gradient, far nearer than their mean image is."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from mithridate.core.data import ImageData
from mithridate.core.sources import Digits
from mithridate.core.training import Recipe
from mithridate.inversion.attack import Inversion
from mithridate.inversion.attacks.analytic_linear import AnalyticLinear
from mithridate.inversion.attacks.deep_leakage import DeepLeakage
from mithridate.inversion.attacks.gradinversion import GradInversion, running_statistics, statistics_distance
from mithridate.inversion.attacks.inverting_gradients import InvertingGradients
from mithridate.inversion.attacks.inverting_gradients_modern import InvertingGradientsModern
from mithridate.inversion.client import Client
from mithridate.inversion.defenses.clip_and_noise import ClipAndNoise
from mithridate.inversion.defenses.local_steps import LocalSteps
from mithridate.inversion.defenses.sparsify import Sparsify
from mithridate.inversion.similarity import matched, psnr

pytestmark = pytest.mark.effect
STEPS = 400
TRIALS = 2


@pytest.fixture(scope="module")
def data() -> tuple[ImageData, ImageData]:
    return Digits().load()


def model_of(data: tuple[ImageData, ImageData], name: str, epochs: int = 0, rate: float = 0.3) -> nn.Module:
    return Recipe(model=name, epochs=epochs, learning_rate=rate).fit([data[0]], [0]).models[0]


def batch(data: tuple[ImageData, ImageData], start: int, count: int = 1) -> tuple[Tensor, Tensor]:
    rows = data[1].ids[start : start + count]
    return data[1].floats(rows), data[1].labels_of(rows)


def quality(
    data, model: nn.Module, attack: Inversion, client: Client | None = None, believed: Client | None = None
) -> list[float]:
    """Mean PSNR of each batch; the attacker takes their leak for that of another client where one is given."""
    client = client or Client()
    found = []
    for trial in range(TRIALS):
        images, labels = batch(data, 20 + trial * client.batch, client.batch)
        leak = client.share(model, images, labels, seed=trial)
        if believed is not None:
            leak = leak.believed(believed.share(model, images, labels, seed=trial))
        made = attack.reconstruct(leak, seed=trial)
        order = matched(made.images, images)
        found.append(float(psnr(made.images[order], images).mean()))
    return found


def mean_image(data) -> list[float]:
    mean = data[0].floats(data[0].ids).mean(0, keepdim=True)
    return [float(psnr(mean, batch(data, 20 + trial)[0])[0]) for trial in range(TRIALS)]


@pytest.mark.parametrize("epochs", [0, 10])
@pytest.mark.parametrize("attack", [InvertingGradients(steps=STEPS), InvertingGradientsModern(steps=STEPS)])
def test_a_single_image_comes_back(data, epochs: int, attack: Inversion) -> None:
    found = quality(data, model_of(data, "lenet", epochs), attack)
    assert min(found) > 35
    assert max(mean_image(data)) < 15


@pytest.mark.parametrize("epochs", [0, 10])
def test_lbfgs_finds_image_and_label_together(data, epochs: int) -> None:
    model, attack = model_of(data, "lenet", epochs), DeepLeakage(steps=60, line_search=True, restarts=2)
    images, labels = batch(data, 31)
    leak = Client(tells_labels=False).share(model, images, labels, seed=0)
    found = attack.reconstruct(leak, seed=0)
    assert float(psnr(found.images, images)) > 50
    assert torch.equal(found.labels, labels)


@pytest.mark.parametrize("epochs", [0, 10])
@pytest.mark.parametrize("count", [1, 4])
def test_equations_of_linears_are_solved_exactly(data, epochs: int, count: int) -> None:
    model = model_of(data, "mlp", epochs, rate=0.03)
    start = 40
    while len(batch(data, start, count)[1].unique()) < count:
        start += 1
    images, labels = batch(data, start, count)
    leak = Client(batch=count, tells_labels=False).share(model, images, labels, seed=0)
    found = AnalyticLinear().reconstruct(leak, seed=0)
    assert sorted(found.labels.tolist()) == sorted(labels.tolist())
    order = matched(found.images, images)
    assert float((found.images[order] - images).abs().max()) < 1e-6 if count == 1 else 1e-5


def test_an_update_is_inverted_through_its_steps(data) -> None:
    model, attack = model_of(data, "lenet"), InvertingGradients(steps=STEPS)
    client = LocalSteps(steps=4, rate=0.5)(Client())
    through, taken_for_a_gradient = (quality(data, model, attack, client, other) for other in (None, Client()))
    assert min(through) > 35
    assert all(a > b for a, b in zip(through, taken_for_a_gradient, strict=True))


def test_who_knows_that_only_the_largest_were_sent_sees_more(data) -> None:
    model, attack = model_of(data, "lenet"), InvertingGradients(steps=STEPS)
    client = Sparsify(keep=0.1)(Client())
    knowing, naive = (quality(data, model, attack, client, other) for other in (None, Client()))
    assert min(knowing) > max(naive) + 5


def test_noise_hides_images_in_its_own_measure(data) -> None:
    model, attack = model_of(data, "lenet"), InvertingGradients(steps=STEPS)
    levels = [
        sum(quality(data, model, attack, ClipAndNoise(noise=noise)(Client()))) / TRIALS for noise in (0.0, 0.003, 0.1)
    ]
    assert levels[0] > levels[1] + 5 > levels[2] + 10
    assert levels[2] < max(mean_image(data))


def test_gradinversion_brings_the_statistics_home(data) -> None:
    model = model_of(data, "convnet", epochs=8, rate=0.1)
    wanted = running_statistics(model)
    apart: dict[bool, list[float]] = {True: [], False: []}
    for trial in range(2):
        images, labels = batch(data, 60 + 4 * trial, 4)
        leak = Client(batch=4).share(model, images, labels, seed=trial)
        for with_them in apart:
            attack = dataclasses.replace(GradInversion(steps=200), statistics=0.1 if with_them else 0.0)
            found = attack.reconstruct(leak, seed=trial)
            with leak.mode():
                apart[with_them].append(float(statistics_distance(leak, wanted)(found.images)[0]))
    assert all(a < 0.7 * b for a, b in zip(apart[True], apart[False], strict=True))
