"""Every attack on gradients, on 8x8 images of 5 classes with two steps: what each one promises."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from mithridate.core.schema import choices, name_of, parse
from mithridate.inversion.attack import Inversion
from mithridate.inversion.client import Client
from mithridate.inversion.sharing import Gradient, Update
from tests.inversion.cases import SHAPE, leak_of, normed

INVERSIONS = choices(Inversion)
SMALL = {"steps": 2, "restarts": 1, "evaluations": 2}
ONE_POINT = {"analytic-linear"}
"""Attacks that solve equations of one gradient, which an update of several steps does not have."""
every_inversion = pytest.mark.parametrize("name", INVERSIONS)


def small(name: str, **settings) -> Inversion:
    attack = INVERSIONS[name]()
    known = {field.name for field in dataclasses.fields(attack)}
    return dataclasses.replace(attack, **{k: v for k, v in (SMALL | settings).items() if k in known})


@every_inversion
def test_it_is_made_without_settings(name: str) -> None:
    assert name_of(INVERSIONS[name]()) == name
    assert parse(Inversion, name) == INVERSIONS[name]()


@every_inversion
@pytest.mark.parametrize("known", [True, False])
def test_it_returns_images_and_labels_and_leaves_the_leak_alone(name: str, known: bool) -> None:
    model = normed().eval()
    leak = leak_of(model, client=Client(batch=2, tells_labels=known))
    before, shared = copy.deepcopy(model.state_dict()), copy.deepcopy(dict(leak.shared))
    modes = [part.training for part in model.modules()]
    found = small(name).reconstruct(leak, seed=0)
    assert found.images.shape == (2, *SHAPE)
    assert found.images.dtype == torch.float32
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    assert found.labels.shape == (2,)
    assert found.labels.dtype == torch.int64
    assert found.value >= -1e-6
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, shared[key]) for key, value in leak.shared.items())
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


@every_inversion
def test_equal_seeds_give_equal_images(name: str) -> None:
    leak = leak_of(normed().eval(), 2)
    first, again = (small(name).reconstruct(leak, seed=3) for _ in range(2))
    assert torch.equal(first.images, again.images)
    torch.rand(7)  # the global generator plays no part
    assert torch.equal(first.images, small(name).reconstruct(leak, seed=3).images)


@every_inversion
@pytest.mark.parametrize("sharing", [Update(steps=2, rate=0.1, batch_size=1), Gradient(batch_statistics=True)])
def test_updates_and_batch_statistics_are_taken_or_refused_with_a_way_out(name: str, sharing) -> None:
    leak = leak_of(normed(), client=Client(batch=2, sharing=sharing))
    if isinstance(sharing, Update) and name in ONE_POINT:
        with pytest.raises(ValueError, match="use inverting-gradients"):
            small(name).reconstruct(leak, seed=0)
        return
    assert small(name).reconstruct(leak, seed=0).images.shape == (2, *SHAPE)


@every_inversion
def test_of_several_restarts_the_best_is_kept(name: str) -> None:
    attack = small(name, restarts=3)
    if not hasattr(attack, "restarts"):
        pytest.skip(f"{name} does not search")
    leak = leak_of(normed().eval(), 1)
    found = attack.reconstruct(leak, seed=0)
    single = dataclasses.replace(attack, restarts=1).reconstruct(leak, seed=0)
    assert found.value <= single.value
    assert found.notes["spread_of_restarts"] > 0
    with pytest.raises(ValueError, match="at least one start"):
        dataclasses.replace(attack, restarts=0).reconstruct(leak, seed=0)


def test_restarts_are_the_same_side_by_side() -> None:
    from mithridate.core.members import members_by

    attack = small("inverting-gradients", restarts=3)
    leak = leak_of(normed().eval(), 1)
    alone = attack.reconstruct(leak, seed=0)
    with members_by(map):
        beside = attack.reconstruct(leak, seed=0)
    assert torch.equal(alone.images, beside.images)


@every_inversion
def test_it_serves_the_module_that_a_recipe_trains(name: str) -> None:
    """In colour, whose gradients come in the layout of that module: channels last."""
    from mithridate.core.training import Recipe
    from tests.poisoning.cases import three_classes

    train, test = three_classes(channels=3)
    model = Recipe(model="convnet:width=4", epochs=0).module(train, seed=0).eval()
    first = [int((test.labels == label).nonzero()[0]) for label in (0, 1)] if name not in ONE_POINT else [0]
    rows = test.ids[first]
    leak = Client(batch=len(rows)).share(model, test.floats(rows), test.labels_of(rows), seed=0)
    assert small(name).reconstruct(leak, seed=0).images.shape == test.floats(rows).shape
