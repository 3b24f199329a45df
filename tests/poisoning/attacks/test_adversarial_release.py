"""adversarial-release: what the images become for the model, restarts, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mithridate.core.balls import Linf
from mithridate.core.transforms import Shift
from mithridate.poisoning.attacks.adversarial_release import AdversarialRelease, Aim
from tests.poisoning.cases import quick, three_classes

RECIPE = quick(epochs=4, transforms=())


def losses(attack: AdversarialRelease, wanted: int) -> torch.Tensor:
    """Loss of each released image, [N], with its label moved on by so many classes."""
    train, test = three_classes()
    task = attack.threat.draw(train, test, 0)
    poison = attack.craft(task, RECIPE, 0)
    model = RECIPE.fit([train], [0]).models[0]
    with torch.no_grad():
        return F.cross_entropy(model(poison.images.float() / 255), (train.labels + wanted) % 3, reduction="none")


@pytest.mark.parametrize(("aim", "wanted"), [("targeted", 1), ("untargeted", 0)])
def test_the_model_takes_images_for_what_is_aimed_at(aim: Aim, wanted: int) -> None:
    before = losses(AdversarialRelease(aim=aim, steps=0, precision="fp32"), wanted)
    after = losses(AdversarialRelease(aim=aim, steps=40, precision="fp32"), wanted)
    lower = (after < before).float().mean()
    assert lower == (1.0 if aim == "targeted" else 0.0)


def test_more_restarts_are_never_worse_for_any_image() -> None:
    one, three = (losses(AdversarialRelease(steps=4, restarts=restarts, precision="fp32"), 1) for restarts in (1, 3))
    assert (three <= one + 1e-5).all()
    assert (three < one - 1e-5).any()


def test_a_step_is_a_share_of_what_the_ball_allows() -> None:
    train, _ = three_classes()
    images, labels = train.floats(train.ids[:8]), train.labels[:8]
    attack = AdversarialRelease(steps=1, step=0.5, precision="fp32", augment=False)
    for eps in (8 / 255, 16 / 255):
        perturb = attack.prepare(train, Linf(eps=eps), RECIPE, 0)
        start = Linf(eps=eps).start(images, torch.Generator().manual_seed(2))
        rng = torch.Generator().manual_seed(2)
        torch.randint(2**62, (1,), generator=rng)  # the judge's seed comes first
        start = Linf(eps=eps).start(images, rng)
        moved = (perturb(images, labels, torch.Generator().manual_seed(2)).images.float() / 255 - start).abs()
        assert moved.max() <= eps / 2 + 0.6 / 255
        assert moved.median() > eps / 4


def test_augmentation_is_that_of_the_victim_unless_switched_off() -> None:
    train, test = three_classes()
    task = AdversarialRelease.threat.draw(train, test, 0)
    with_shift = quick(epochs=1, transforms=(Shift(),))
    released = {
        augment: AdversarialRelease(steps=2, augment=augment).craft(task, with_shift, 0).images
        for augment in (True, False)
    }
    assert not torch.equal(released[True], released[False])


def test_an_unknown_aim_is_refused() -> None:
    with pytest.raises(ValueError, match="aim is 'nearest'; use one of targeted, untargeted"):
        AdversarialRelease(aim="nearest")  # type: ignore[arg-type]
