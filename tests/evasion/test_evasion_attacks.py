"""Evasion attacks: what each promises, and on models whose worst case is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mithridate.core.balls import L2, Linf, Patch
from mithridate.core.schema import choices, from_json, parse, to_json
from mithridate.core.steps import AutoStep, checkpoints
from mithridate.evasion.attack import Evasion
from mithridate.evasion.attacks.apgd import APGD
from mithridate.evasion.attacks.fgsm import FGSM
from mithridate.evasion.attacks.mi_fgsm import MIFGSM
from mithridate.evasion.attacks.pgd import PGD
from mithridate.evasion.attacks.square import Square
from mithridate.evasion.attacks.standard import Standard
from mithridate.evasion.attacks.witchcraft import WITCHcraft
from mithridate.evasion.search import Climb

EPS = 12 / 255
BALL = Linf(eps=EPS)
QUICK: dict[str, Evasion] = {
    "apgd": APGD(ball=BALL, steps=12),
    "fgsm": FGSM(ball=BALL),
    "mi-fgsm": MIFGSM(ball=BALL),
    "pgd": PGD(ball=BALL, steps=8),
    "square": Square(ball=BALL, queries=300),
    "standard": Standard(ball=BALL, steps=8, targets=2, queries=20),
    "witchcraft": WITCHcraft(ball=BALL, steps=8),
}
every = pytest.mark.parametrize("name", sorted(choices(Evasion)))


class Net(nn.Module):
    """A small network with weights drawn once."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, classes))
        self.grads = self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += len(images)
        self.grads += len(images) * images.requires_grad
        return 4 * self.layers(images)


class Line(nn.Module):
    """Two or more classes that are linear in the pixels."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.weight = torch.randn(classes, 48, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double() @ self.weight.T


def cases(model: nn.Module, count: int = 60, wrong: int = 0) -> tuple[Tensor, Tensor]:
    """Images away from the edges of the pixel range, and labels that the model gives them (but for some)."""
    images = 0.3 + 0.4 * torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % 4
    return images, labels


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_attack_is_tried_here() -> None:
    assert QUICK.keys() == choices(Evasion).keys()


@every
def test_what_an_attack_says_is_so(name: str) -> None:
    model = Net()
    images, labels = cases(model, wrong=5)
    before = images.clone()
    found = QUICK[name].perturb(model, images, labels, rng())
    assert torch.equal(images, before)
    assert BALL.contains(images, found.images).all()
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    with torch.no_grad():
        assert torch.equal(model(found.images).argmax(1) != labels, found.fooled)
    assert found.fooled[:5].all()
    assert torch.equal(found.images[:5], images[:5])  # wrong already: nothing to do
    assert found.fooled[5:].float().mean() > 0.2
    assert found.forwards >= found.gradients


@every
def test_equal_seeds_equal_images(name: str) -> None:
    model = Net()
    images, labels = cases(model)
    one, same = (QUICK[name].perturb(model, images, labels, rng(4)) for _ in range(2))
    assert torch.equal(one.images, same.images)


@every
def test_a_class_that_is_wanted(name: str) -> None:
    model = Net()
    images, labels = cases(model)
    wanted = (labels + 2) % 5
    found = replace(QUICK[name], ball=Linf(eps=0.2)).perturb(model, images, labels, rng(), wanted=wanted)
    with torch.no_grad():
        assert torch.equal(model(found.images).argmax(1) == wanted, found.fooled)
    assert found.fooled.any()


@every
def test_names_and_settings_go_through_text(name: str) -> None:
    attack = QUICK[name]
    assert from_json(to_json(attack), Evasion) == attack
    assert type(parse(Evasion, f"{name}:ball=linf(eps=4/255)")) is type(attack)


@every
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = nn.Sequential(Net(), nn.Dropout(0.5)).train()
    images, labels = cases(model.eval())
    model.train()
    QUICK[name].perturb(model, images[:4], labels[:4], rng())
    assert name == "standard" or model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("length", [1 / 255, 4 / 255])
@pytest.mark.parametrize("ball", [BALL, L2(eps=0.3)])
def test_witchcraft_with_one_length_is_pgd(length: float, ball: Linf | L2) -> None:
    model = Net()
    images, labels = cases(model)
    settings = {"ball": ball, "steps": 9, "restarts": 2, "stop": False}
    plain = PGD(step=length, **settings).perturb(model, images, labels, rng(7))
    drawn = WITCHcraft(low=length, high=length, **settings).perturb(model, images, labels, rng(7))
    assert torch.equal(plain.images, drawn.images)
    assert not torch.equal(plain.images, WITCHcraft(**settings).perturb(model, images, labels, rng(7)).images)


def test_witchcraft_draws_one_length_per_image_or_per_batch() -> None:
    images, slope = torch.full((50, 1, 2, 2), 0.5), torch.ones(50, 1, 2, 2)
    for shared, kinds in ((False, 50), (True, 1)):
        stepper = WITCHcraft(per_batch=shared, low=0.01, high=0.03).update().begin(images, rng())
        moved = images - stepper.step(images, torch.zeros(50), slope, 0.0)
        lengths = moved.flatten(1)[:, 0]
        assert len(lengths.unique()) == kinds
        assert 0.01 - 1e-6 <= lengths.min() <= lengths.max() <= 0.03 + 1e-6


def test_fgsm_is_one_step_of_eps() -> None:
    model = Net()
    images, labels = cases(model)
    leaf = images.clone().requires_grad_()
    nn.functional.cross_entropy(model(leaf), labels, reduction="sum").backward()
    assert leaf.grad is not None
    expected = (images + EPS * leaf.grad.sign()).clamp(0, 1)
    assert torch.allclose(FGSM(ball=BALL).perturb(model, images, labels, rng()).images, expected, atol=1e-6)


def test_mi_fgsm_sums_gradients() -> None:
    model = Net()
    images, labels = cases(model)
    moved, mean = images.clone(), torch.zeros_like(images)
    for _ in range(5):
        leaf = moved.clone().requires_grad_()
        nn.functional.cross_entropy(model(leaf), labels, reduction="sum").backward()
        assert leaf.grad is not None
        mean = 0.9 * mean + leaf.grad / leaf.grad.abs().sum((1, 2, 3), keepdim=True)
        moved = (images + (moved + EPS / 5 * mean.sign() - images).clamp(-EPS, EPS)).clamp(0, 1)
    attack = MIFGSM(ball=BALL, steps=5, decay=0.9, stop=False)
    assert torch.allclose(attack.perturb(model, images, labels, rng()).images, moved, atol=1e-6)


@pytest.mark.parametrize(
    "attack", [PGD(loss="cw", steps=40), APGD(loss="cw", steps=40), PGD(loss="cw", steps=40, targets=3)]
)
@pytest.mark.parametrize("ball", [Linf(eps=0.01), L2(eps=0.05)])
def test_the_worst_case_of_a_linear_model_is_found(attack: Climb, ball: Linf | L2) -> None:
    """Inside the pixel range an image can be fooled if, and only if, some class's margin is less than eps times the
    dual norm of the difference of weights."""
    model = Line()
    images, labels = cases(model, 200)
    logits = model(images)
    difference = model.weight[None] - model.weight[labels][:, None]
    reach = ball.eps * (difference.abs().sum(2) if isinstance(ball, Linf) else difference.norm(dim=2))
    gap = logits.gather(1, labels[:, None]) - logits
    possible = (reach - gap).scatter(1, labels[:, None], -torch.inf).amax(1)
    found = replace(attack, ball=ball).perturb(model, images, labels, rng())
    clear = possible.abs() > 0.02 * reach.amax(1)
    assert 20 < possible[clear].gt(0).sum() < 190
    if attack.targets or isinstance(attack, APGD):
        assert torch.equal(found.fooled[clear], possible[clear] > 0)
    else:  # one class, the likeliest at each step: may lead elsewhere
        assert (found.fooled[clear] <= (possible[clear] > 0)).all()
        assert (found.fooled[clear] == (possible[clear] > 0)).float().mean() > 0.97


def test_images_that_are_fooled_cost_nothing_more_and_change_no_other() -> None:
    model = Net()
    images, labels = cases(model)
    going = PGD(ball=BALL, steps=10, stop=False).perturb(model, images, labels, rng())
    stopping = PGD(ball=BALL, steps=10).perturb(model, images, labels, rng())
    assert stopping.gradients < 0.8 * going.gradients
    assert going.gradients == 10 * len(images)
    assert torch.equal(going.fooled, stopping.fooled)
    stands = ~stopping.fooled
    assert torch.allclose(going.images[stands], stopping.images[stands], atol=1e-6)


def test_a_black_box_asks_for_no_gradient() -> None:
    model = Net()
    images, labels = cases(model)
    found = QUICK["square"].perturb(model, images, labels, rng())
    assert found.gradients == model.grads == 0
    assert not Square.sees_gradients


def test_squares_only_get_better() -> None:
    model = Net()
    images, labels = cases(model)
    fooled = [Square(ball=BALL, queries=n).perturb(model, images, labels, rng()).fooled.sum() for n in (5, 40, 160)]
    assert fooled == sorted(fooled)
    assert fooled[0] < fooled[-1]


def test_the_best_iterate_or_the_last() -> None:
    model = Net()
    images, labels = cases(model)
    settings = {"ball": Linf(eps=2 / 255), "steps": 10, "step": 8 / 255}  # jumps from corner to corner

    def loss(found: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(found), labels, reduction="none")

    last, best = (PGD(keep=keep, **settings).perturb(model, images, labels, rng()) for keep in ("last", "best"))
    stands = ~best.fooled
    assert (loss(best.images)[stands] >= loss(last.images)[stands] - 1e-6).all()


def test_the_ratio_of_logits_moves_what_a_large_scale_hides() -> None:
    class Sure(Net):
        def forward(self, images: Tensor) -> Tensor:
            return 1e4 * super().forward(images)

    model = Sure()
    images, labels = cases(model)
    entropy, ratio = (
        PGD(ball=BALL, loss=loss).perturb(model, images, labels, rng()).fooled.sum() for loss in ("ce", "dlr")
    )
    assert ratio > entropy


# --- the schedule of APGD --------------------------------------------------------------------------------------------


def test_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_steps_halve_where_nothing_is_gained() -> None:
    base = torch.full((2, 1, 1, 1), 0.5)
    stepper = AutoStep(ball=Linf(eps=0.1), steps=100).begin(base, rng())
    params = base
    for count in range(60):  # the first image falls at every step, the second stands still
        value = torch.tensor([-float(count), 0.0])
        params = stepper.step(params, value, torch.ones_like(base), count / 100).clamp(0.4, 0.6)
    assert stepper.length.tolist() == pytest.approx([0.2, 0.2 / 8])  # type: ignore[attr-defined]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: PGD(steps=0), ValueError, "pgd steps is 0"),
        (lambda: PGD(restarts=0), ValueError, "pgd restarts is 0"),
        (lambda: PGD(targets=-1), ValueError, "pgd targets is -1"),
        (lambda: PGD(ball=Patch()), TypeError, "pgd knows the balls linf and l2, and not patch"),
        (lambda: MIFGSM(ball=L2(eps=1)), TypeError, "mi-fgsm knows the ball linf, and not l2"),
        (lambda: APGD(ball=Patch()), TypeError, "automatic steps know the balls linf and l2"),
        (lambda: Square(ball=L2(eps=1)), TypeError, "square knows the ball linf, and not l2"),
        (lambda: Square(queries=0), ValueError, "square queries is 0"),
        (lambda: WITCHcraft(low=0.2, high=0.1), ValueError, "draws from 0.2 to 0.1"),
    ],
)
def test_what_cannot_be(make, error, says) -> None:
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(("classes", "attack"), [(2, PGD(loss="dlr")), (3, PGD(loss="dlr", targets=2))])
def test_too_few_classes_for_a_ratio(classes: int, attack: PGD) -> None:
    model = Net(classes)
    images, labels = cases(model, 4)
    with pytest.raises(ValueError, match="use ce or cw"):
        attack.perturb(model, images, labels.clamp(max=classes - 1), rng())


@pytest.mark.parametrize("classes", [2, 3])
def test_the_standard_set_knows_what_to_do_with_few_classes(classes: int) -> None:
    model = Net(classes)
    images, labels = cases(model, 10)
    found = Standard(ball=BALL, steps=5, queries=5).perturb(model, images, labels, rng())
    assert len(found.fooled) == 10
