"""Every transform, and the two that look at the model: maxup and adversarial."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mithridate.core.balls import L2, Linf
from mithridate.core.batch import Batch, BatchTransform
from mithridate.core.schema import choices
from mithridate.core.seeds import stream
from mithridate.core.transforms import Adversarial, Cutmix, Cutout, Flip, Maxup, Mixup
from mithridate.core.updates import SignStep
from tests.core.transform_cases import batch, net


@pytest.mark.parametrize("name", choices(BatchTransform))
class TestEveryTransform:
    def test_the_same_generator_replays_the_same_draws(self, name: str) -> None:
        transform, given = choices(BatchTransform)[name](), batch()
        model = net((3, 8, 8), 40)
        first, again = (transform(given, model, stream(6)) for _ in range(2))
        assert torch.equal(first.images, again.images)
        assert torch.equal(first.targets, again.targets)
        drawn = name not in {"grayscale", "jpeg"}
        assert torch.equal(first.images, transform(given, model, stream(7)).images) != drawn

    def test_it_changes_neither_its_input_nor_the_global_generators(self, name: str) -> None:
        given = batch()
        copies = given.images.clone(), given.targets.clone()
        states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        result = choices(BatchTransform)[name]()(given, net((3, 8, 8), 40), stream(8))
        assert torch.equal(given.images, copies[0])
        assert torch.equal(given.targets, copies[1])
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
        assert torch.equal(result.rows, given.rows)
        assert result.progress == given.progress

    def test_a_row_depends_on_other_rows_only_where_it_says_so(self, name: str) -> None:
        transform, given = choices(BatchTransform)[name](), batch(16)
        changed = given.images.clone()
        changed[0] = 1 - changed[0]
        model = net((3, 8, 8), 16)
        first, second = (
            transform(given._replace(images=images), model, stream(10)).images for images in (given.images, changed)
        )
        same = torch.equal(first[1:], second[1:])
        assert same or transform.mixes_rows

    def test_it_leaves_the_model_as_it_is(self, name: str) -> None:
        model, given = net((3, 8, 8), 40), batch()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        choices(BatchTransform)[name]()(given, model, stream(11))
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(part.training for part in model.modules())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", sorted(set(choices(BatchTransform)) - {"adversarial", "jpeg", "poisoned"}))
def test_it_is_linear_and_differentiable_in_the_images(name: str) -> None:
    """What adversarial and poisoned add counts as a constant, though it depends on the images, and jpeg is a step
    function: tests of their own."""
    transform, given = choices(BatchTransform)[name](), batch(3, (3, 4, 4))
    images, model = given.images.double().requires_grad_(), net((3, 4, 4), 3).double()

    def run(x: Tensor) -> Tensor:
        return transform(given._replace(images=x), model, stream(9)).images

    assert torch.autograd.gradcheck(run, (images,))


# --- maxup -----------------------------------------------------------------------------------------------------------


def loss_of(model: nn.Module, image: Tensor, target: Tensor) -> float:
    """Cross-entropy of one image in eval mode, in numpy."""
    was = model.training
    with torch.no_grad():
        logits = model.eval()(image[None])[0].double().numpy()
    model.train(was)
    return float(np.log(np.exp(logits).sum()) - (target.double().numpy() * logits).sum())


@pytest.mark.parametrize("inner", [Cutout(side=0.6), Mixup(k=3), Cutmix(probability=1.0), Flip()])
def test_maxup_keeps_of_each_image_the_draw_with_the_largest_loss(inner: BatchTransform) -> None:
    given, model = batch(12, (3, 8, 8), classes=4), net((3, 8, 8), 4)
    rng = stream(20)
    draws = [inner(given, model, rng) for _ in range(5)]
    result = Maxup(inner=inner, draws=5)(given, model, stream(20))
    chosen = []
    for i in range(12):
        losses = [loss_of(model, draw.images[i], draw.targets[i]) for draw in draws]
        best = draws[int(np.argmax(losses))]
        chosen.append(int(np.argmax(losses)))
        assert torch.equal(result.images[i], best.images[i])
        assert torch.equal(result.targets[i], best.targets[i])
    assert len(set(chosen)) > 1, "images differ in their worst draw"


def test_maxup_is_one_plain_draw_in_the_first_share_of_training() -> None:
    given, model = batch(12, (3, 8, 8), classes=4), net((3, 8, 8), 4)
    maxup = Maxup(inner=Cutout(), warmup=0.25)
    for progress, plain in ((0.0, True), (0.249, True), (0.25, False), (1.0, False)):
        now = given._replace(progress=progress)
        assert torch.equal(maxup(now, model, stream(21)).images, Cutout()(now, model, stream(21)).images) == plain


@pytest.mark.parametrize("inner", [Cutout(), Mixup(), Cutmix()])
def test_maxup_mixes_rows_where_what_it_draws_does(inner: BatchTransform) -> None:
    maxup = Maxup(inner=inner)
    for one in (maxup, replace(maxup, draws=3), pickle.loads(pickle.dumps(maxup)), Maxup(inner=maxup)):
        assert one.mixes_rows == inner.mixes_rows


def test_maxup_builds_no_graph_for_its_choice() -> None:
    """What a training step keeps in memory is the chosen draw alone."""
    given, model = batch(6, (3, 8, 8), classes=4), net((3, 8, 8), 4)
    assert Maxup()(given, model, stream(22)).images.grad_fn is None
    leaf = given.images.clone().requires_grad_()
    result = Maxup(inner=Flip())(given._replace(images=leaf), model, stream(22)).images
    (gradient,) = torch.autograd.grad(result.sum(), leaf)
    assert torch.equal(gradient, torch.ones_like(gradient)), "each pixel once: the draws not chosen get nothing"


@pytest.mark.parametrize(
    ("settings", "message"), [({"draws": 1}, "draws is 1; a choice needs"), ({"warmup": 5}, "share of the training")]
)
def test_maxup_settings_that_choose_nothing(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Maxup(**settings)


# --- adversarial -----------------------------------------------------------------------------------------------------


def linear(weight: Tensor) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], 2, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(weight)
    return module


def test_on_a_linear_model_adversarial_finds_the_corner_of_the_ball() -> None:
    """The loss of two classes falls along one direction everywhere, so its maximum in the ball is known."""
    given = batch(10, (1, 4, 4), classes=2)
    weight = torch.randn(2, 16, generator=stream(23))
    moved = Adversarial(ball=Linf(eps=0.1), steps=12, step=0.05)(given, linear(weight), stream(24)).images
    away = (weight[0] - weight[1]).sign().view(1, 4, 4)
    sign = torch.where(given.targets[:, 0].bool(), -1.0, 1.0)[:, None, None, None]
    torch.testing.assert_close(moved, (given.images + 0.1 * sign * away).clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("ball", [Linf(eps=8 / 255), L2(eps=0.4)])
def test_adversarial_raises_the_loss_of_nearly_every_image_inside_its_ball(ball) -> None:
    given, model = batch(30, (3, 8, 8), classes=4), net((3, 8, 8), 4)
    moved = Adversarial(ball=ball)(given, model, stream(25))
    assert bool(ball.contains(given.images, moved.images).all())
    assert torch.equal(moved.targets, given.targets)
    control = ball.sample(given.images, stream(26))
    gains = [
        loss_of(model, moved.images[i], given.targets[i]) - loss_of(model, control[i], given.targets[i])
        for i in range(30)
    ]
    assert np.mean(np.array(gains) > 0) > 0.9


def test_adversarial_moves_by_any_update() -> None:
    given, model = batch(6, (3, 8, 8), classes=4), net((3, 8, 8), 4)
    plain = Adversarial(steps=3, step=1 / 255)(given, model, stream(3)).images
    same, drawn = (
        Adversarial(steps=3, update=SignStep(low=low / 255, high=(2 - low) / 255))(given, model, stream(3)).images
        for low in (1, 0)
    )
    assert torch.equal(plain, same)
    assert not torch.equal(plain, drawn)
    assert Adversarial().ball.contains(given.images, drawn).all()


def test_the_gradient_passes_an_adversarial_change_as_if_it_were_not_there() -> None:
    given, model = batch(6, (3, 8, 8), classes=4), net((3, 8, 8), 4)
    leaf = given.images.clone().requires_grad_()
    result = Adversarial(steps=2)(given._replace(images=leaf), model, stream(27)).images
    weights = torch.rand(result.shape, generator=stream(28))
    (gradient,) = torch.autograd.grad((weights * result).sum(), leaf)
    assert torch.equal(gradient, weights)
    with torch.no_grad():
        assert torch.equal(Adversarial(steps=2)(given, model, stream(27)).images, result)


@pytest.mark.parametrize(
    ("settings", "message"), [({"steps": 0}, "steps is 0; a search needs"), ({"step": 0.0}, "step is 0.0; it must be")]
)
def test_adversarial_settings_that_search_nothing(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adversarial(**settings)


def test_what_looks_at_the_model_ignores_its_mode() -> None:
    given, model = batch(8, (3, 8, 8), classes=4), net((3, 8, 8), 4)
    for transform in (Maxup(), Adversarial(steps=2)):
        results: list[Batch] = [transform(given, model.train(mode), stream(29)) for mode in (True, False)]
        assert torch.equal(results[0].images, results[1].images)
