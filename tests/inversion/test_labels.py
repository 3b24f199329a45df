"""Labels from gradients that networks really have, untrained and trained, and from gradients written by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mithridate.core.models import build, last_linear
from mithridate.core.seeds import stream
from mithridate.core.sources import Digits
from mithridate.inversion.labels import (
    bias_corrected,
    by_sign,
    idlg,
    label_accuracy,
    minimum_entry,
    recover,
)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    train = Digits().load()[0]
    return train.images.float() / 255, train.labels


def network(kind: str, steps: int, digits: tuple[Tensor, Tensor]) -> nn.Module:
    """Some network for digits, after some steps of Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        body = {
            "relu": lambda: [nn.Linear(64, 48), nn.ReLU()],
            "tanh": lambda: [nn.Linear(64, 48), nn.Tanh()],  # features of both signs
        }
        module = (
            build("convnet:width=8", 10, (1, 8, 8), seed=3)
            if kind == "convnet"
            else nn.Sequential(nn.Flatten(), *body[kind](), nn.Linear(48, 10))
        )
    images, labels = digits
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    rng = stream(0, "batches")
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=rng)
        optimizer.zero_grad()
        functional.cross_entropy(module(images[rows]), labels[rows]).backward()
        optimizer.step()
    return module.eval()


def last_gradients(module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    layer = last_linear(module)
    loss = functional.cross_entropy(module(images), labels)
    weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias])
    return weight, bias


def by_counts(*counts: int) -> Tensor:
    return torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])


# --- one image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 5, 60])
@pytest.mark.parametrize("kind", ["relu", "tanh", "convnet"])
def test_idlg_is_right_on_every_single_image(kind: str, steps: int, digits: tuple[Tensor, Tensor]) -> None:
    module = network(kind, steps, digits)
    images, labels = (part[:100] for part in digits)
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        weight, bias = last_gradients(module, image, label)
        assert idlg(weight, bias).equal(label)
        assert idlg(weight).equal(label)
        assert recover("idlg", weight, None, 1).equal(label)


def test_idlg_is_right_where_the_model_is_certain_of_another_class() -> None:
    """All but two predictions underflow; the two rows are equally long and differ by their sign alone."""
    feature = torch.tensor([0.5, 2.0, 0.0])
    logits = torch.tensor([0.0, 200.0, -60.0, -80.0], requires_grad=True)
    functional.cross_entropy(logits[None], torch.tensor([3])).backward()
    assert logits.grad is not None
    assert idlg(logits.grad[:, None] * feature).tolist() == [3]


def test_idlg_needs_no_sign_of_the_features_from_three_classes_on() -> None:
    apart = torch.tensor([0.2, 0.3, -0.6, 0.1])
    rng = stream(0, "features")
    for _ in range(50):
        assert idlg(apart[:, None] * torch.randn(7, generator=rng)).tolist() == [2]


def test_idlg_with_two_classes_takes_features_as_non_negative() -> None:
    for label in (0, 1):
        apart = torch.tensor([0.3, 0.3])
        apart[label] = -0.3
        assert idlg(apart[:, None] * torch.tensor([1.0, 0.0, 2.0])).tolist() == [label]
        assert idlg(apart[:, None] * torch.tensor([-1.0, 0.0, -2.0]), apart).tolist() == [label]


def test_a_gradient_that_says_nothing_is_refused() -> None:
    for weight, bias in ((torch.zeros(4, 3), None), (torch.zeros(4, 3), torch.zeros(4))):
        with pytest.raises(ValueError, match="no negative class"):
            idlg(weight, bias)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 60])
@pytest.mark.parametrize("kind", ["relu", "convnet"])
def test_negative_classes_are_always_there(kind: str, steps: int, digits: tuple[Tensor, Tensor]) -> None:
    module = network(kind, steps, digits)
    images, labels = digits
    for rows in torch.randint(len(images), (20, 6), generator=stream(0, "rows")):
        weight, bias = last_gradients(module, images[rows], labels[rows])
        for found in (by_sign(weight, bias), by_sign(weight)):
            assert set(found.tolist()) <= set(labels[rows].tolist())
            assert len(set(found.tolist())) == len(found) > 0


def distinct(digits: tuple[Tensor, Tensor], count: int, seed: int) -> Tensor:
    """Rows of images with labels that differ."""
    labels = digits[1]
    classes = torch.randperm(10, generator=stream(seed, "classes"))[:count]
    return torch.stack([(labels == label).nonzero()[seed, 0] for label in classes])


@pytest.mark.parametrize("count", [1, 4, 8])
def test_distinct_labels_are_found_by_their_minimum_entries(count: int, digits: tuple[Tensor, Tensor]) -> None:
    module = network("convnet", 0, digits)
    images, labels = digits
    for seed in range(10):
        rows = distinct(digits, count, seed)
        weight, bias = last_gradients(module, images[rows], labels[rows])
        assert recover("minimum-entry", weight, bias, count).equal(labels[rows].sort().values)
        assert minimum_entry(3 * weight, count).equal(minimum_entry(weight, count))


@pytest.mark.parametrize("count", [2, 8, 16])
@pytest.mark.parametrize("kind", ["relu", "convnet"])
def test_repeated_labels_are_counted_for_an_untrained_model(
    kind: str, count: int, digits: tuple[Tensor, Tensor]
) -> None:
    module = network(kind, 0, digits)
    images, labels = digits
    noise = torch.rand(64, 1, 8, 8, generator=stream(0, "noise"))
    prior = module(noise).softmax(1).mean(0).detach()
    exact, plain, without = [], [], []
    for rows in torch.randint(len(images), (20, count), generator=stream(count, "rows")):
        weight, bias = last_gradients(module, images[rows], labels[rows])
        exact.append(label_accuracy(recover("bias-corrected", weight, bias, count, prior), labels[rows]))
        plain.append(label_accuracy(bias_corrected(weight, bias, count), labels[rows]))
        without.append(label_accuracy(bias_corrected(weight, None, count, prior), labels[rows]))
    assert sum(exact) / 20 > 0.99
    assert sum(plain) / 20 > 0.97
    assert sum(without) / 20 > 0.9


@pytest.mark.parametrize("counts", [(1, 0, 0, 0), (4, 0, 0, 0), (3, 1, 0, 4), (1, 2, 3, 4), (2, 2, 2, 2), (0, 0, 9, 1)])
def test_counts_are_exact_where_the_prediction_is_the_prior(counts: tuple[int, ...]) -> None:
    """Also without a single negative class but the one: (2, 2, 2, 2) differs from the prior by little."""
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4]) if counts != (1, 2, 3, 4) else torch.tensor([0.4, 0.3, 0.2, 0.1])
    truth = by_counts(*counts)
    bias = prior - torch.tensor(counts) / len(truth)
    assert bias_corrected(torch.zeros(4, 1), bias, len(truth), prior).equal(truth)


@pytest.mark.parametrize("counts", [(1, 0, 0, 0), (4, 0, 0, 0), (3, 1, 0, 4), (2, 0, 0, 2), (0, 0, 9, 1)])
@pytest.mark.parametrize("factor", [1e-3, 0.2, 7.0])
def test_a_factor_plays_no_part_when_the_gradient_is_said_to_be_scaled(counts: tuple[int, ...], factor: float) -> None:
    prior, truth = torch.tensor([0.1, 0.2, 0.3, 0.4]), by_counts(*counts)
    bias = factor * (prior - torch.tensor(counts) / len(truth))
    weight = bias[:, None] * torch.tensor([1.0, 0.0, 2.0])
    assert bias_corrected(weight, bias, len(truth), prior, scaled=True).equal(truth)
    assert bias_corrected(weight, None, len(truth), prior).equal(truth)
    assert recover("bias-corrected", weight, bias, len(truth), prior, scaled=True).equal(truth)


def test_a_uniform_prior_is_the_default() -> None:
    bias = torch.tensor([0.1, -0.3, 0.05, 0.15])
    expected = bias_corrected(torch.zeros(4, 1), bias, 5, torch.full((4,), 0.25))
    assert bias_corrected(torch.zeros(4, 1), bias, 5).equal(expected)


def test_more_negative_classes_than_images_are_cut_to_the_most_negative() -> None:
    """Noise on a gradient can do that."""
    bias = torch.tensor([-0.1, -0.5, 0.9, -0.3])
    assert bias_corrected(torch.zeros(4, 1), bias, 2).tolist() == [1, 3]


def test_accuracy_is_that_of_multisets() -> None:
    rng = stream(0, "labels")
    for _ in range(20):
        found, truth = torch.randint(0, 4, (2, 9), generator=rng)
        expected = sum((Counter(found.tolist()) & Counter(truth.tolist())).values()) / 9
        assert label_accuracy(found, truth) == pytest.approx(expected)


# --- bad input -------------------------------------------------------------------------------------------------------

WEIGHT, BIAS = torch.tensor([[0.1, 0.2], [-0.4, -0.1], [0.3, -0.1]]), torch.tensor([0.2, -0.5, 0.3])


@pytest.mark.parametrize("method", ["idlg", "sign", "minimum-entry", "bias-corrected"])
def test_bad_gradients_are_refused(method) -> None:
    with pytest.raises(ValueError, match=r"shape \[3, 2, 1\]; expected \[classes, features\]"):
        recover(method, WEIGHT[..., None], BIAS, 1)
    with pytest.raises(ValueError, match="weight holds NaN"):
        recover(method, WEIGHT * torch.nan, BIAS, 1)
    with pytest.raises(ValueError, match="count is 0"):
        recover(method, WEIGHT, BIAS, 0)


@pytest.mark.parametrize("method", ["idlg", "sign", "bias-corrected"])
def test_a_bad_bias_is_refused(method) -> None:
    with pytest.raises(ValueError, match=r"bias has shape \[2\], but its weight has 3 rows"):
        recover(method, WEIGHT, BIAS[:2], 1)
    with pytest.raises(ValueError, match="bias holds NaN"):
        recover(method, WEIGHT, BIAS * torch.inf, 1)


def test_batches_that_a_method_is_not_made_for_are_refused() -> None:
    with pytest.raises(ValueError, match="one image, but the batch has 2; use bias-corrected"):
        recover("idlg", WEIGHT, BIAS, 2)
    with pytest.raises(ValueError, match="4 images and 3 classes"):
        recover("minimum-entry", WEIGHT, BIAS, 4)
    with pytest.raises(ValueError, match=r"finds 1 labels \(\[1\]\) for 3 images.*use bias-corrected"):
        recover("sign", WEIGHT, BIAS, 3)
    with pytest.raises(ValueError, match="finds 2 labels"):
        recover("sign", WEIGHT, torch.tensor([-0.1, -0.2, 0.3]), 1)
    with pytest.raises(ValueError, match="unknown way to recover labels 'dlg'; known: idlg"):
        recover("dlg", WEIGHT, BIAS, 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no class has a negative gradient"):
        recover("bias-corrected", WEIGHT.abs(), None, 2)


def test_bad_priors_and_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prior has shape \[2\]; expected \[3\]"):
        bias_corrected(WEIGHT, BIAS, 2, torch.tensor([0.5, 0.5]))
    for prior in ([0.5, 0.9, -0.4], [1.0, 2.0, 3.0], [0.5, 0.5, float("nan")]):
        with pytest.raises(ValueError, match="shares that sum to 1"):
            bias_corrected(WEIGHT, BIAS, 2, torch.tensor(prior))
    with pytest.raises(ValueError, match=r"\[2\] and true ones \[3\]"):
        label_accuracy(torch.tensor([0, 1]), torch.tensor([0, 1, 2]))
