"""Robust accuracy over a set of attacks, and the doubts that a model earns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mithridate.core.balls import Linf
from mithridate.core.data import ImageData
from mithridate.evasion.attack import Attacked, Evasion
from mithridate.evasion.attacks.pgd import PGD
from mithridate.evasion.attacks.square import Square
from mithridate.evasion.robustness import robustness
from tests.evasion.test_evasion_attacks import Net

BALL = Linf(eps=10 / 255)


def data(model: nn.Module, count: int = 80, wrong: int = 8) -> ImageData:
    pixels = torch.randint(60, 196, (count, 3, 4, 4), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    with torch.no_grad():
        labels = model(pixels / 255).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % 5
    return ImageData(pixels, labels, tuple("abcde"))


def test_only_what_is_right_is_attacked_and_the_worst_case_is_of_each_image() -> None:
    model = Net()
    found = robustness(model, data(model), [PGD(ball=BALL, steps=3), Square(ball=BALL, queries=30)])
    assert not found.right[:8].any()
    assert found.right[8:].all()
    first, second = found.judged
    assert torch.equal(found.stands, first.stands & second.stands)
    assert first.gradients <= 3 * 72
    assert torch.equal(first.images[:8], data(model).floats(torch.arange(8)))
    assert found.doubts == () or all("black" not in doubt for doubt in found.doubts)


def test_the_size_of_a_batch_and_other_attacks_change_little_or_nothing() -> None:
    model = Net()
    sets = data(model)
    alone = robustness(model, sets, [PGD(ball=BALL, steps=3, random_start=False)], batch=7)
    beside = robustness(model, sets, [Square(ball=BALL, queries=5), PGD(ball=BALL, steps=3, random_start=False)])
    assert torch.equal(alone.judged[0].stands, beside.judged[1].stands)


def test_an_attack_cannot_judge_itself() -> None:
    class Liar(Evasion):
        def perturb(
            self,
            model: nn.Module,
            images: Tensor,
            labels: Tensor,
            rng: torch.Generator,
            *,
            wanted: Tensor | None = None,
        ) -> Attacked:
            return Attacked(torch.rand(images.shape, generator=rng), torch.ones(len(images), dtype=torch.bool), 0, 0)

    model = Net()
    found = robustness(model, data(model), [Liar(ball=BALL)])
    assert torch.equal(found.stands, found.right)  # what lies outside the ball fools nobody


class Noisy(Net):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits + 0.01 * torch.randn_like(logits)


class Likely(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(1)


class Stepped(Net):
    """Pixels in 8 steps: no gradient comes through."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((8 * images).round() / 8 + 0 * images)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Noisy(), "answers differently when asked twice"),
        (Likely(), "probabilities, not logits"),
        (Stepped(), "have no gradient at all"),
        (Stepped(), "stand even where every pixel may change"),
        (Stepped(), "fools"),
    ],
)
def test_doubts(model: nn.Module, says: str) -> None:
    attacks = [PGD(ball=Linf(eps=40 / 255), steps=5, random_start=False), Square(ball=Linf(eps=40 / 255), queries=100)]
    assert any(says in doubt for doubt in robustness(model, data(model), attacks).doubts)


def test_an_honest_model_earns_none() -> None:
    model = Net()
    assert robustness(model, data(model), [PGD(ball=BALL)]).doubts == ()


def test_nothing_to_do_is_an_error() -> None:
    model = Net()
    with pytest.raises(ValueError, match="no attack is given"):
        robustness(model, data(model), [])
    with pytest.raises(ValueError, match="no images to attack"):
        robustness(model, data(model).select([]), [PGD()])
