"""The client and the defences that change it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mithridate.core.schema import choices, name_of, parse
from mithridate.inversion.client import Client, LeakDefense
from mithridate.inversion.defenses.clip_and_noise import ClipAndNoise
from mithridate.inversion.defenses.larger_batch import LargerBatch
from mithridate.inversion.defenses.local_steps import LocalSteps
from mithridate.inversion.defenses.mixing import Mixing
from mithridate.inversion.defenses.quantize import Quantize
from mithridate.inversion.defenses.sparsify import Sparsify
from mithridate.inversion.sharing import Gradient, Update
from tests.inversion.cases import CLASSES, images, labels, leak_of, normed, smooth

DEFENSES = choices(LeakDefense)
every_defense = pytest.mark.parametrize("name", DEFENSES)


def distance(leak) -> float:
    """How far the true images are from fitting a leak, as whoever holds it sees it."""
    from mithridate.inversion.matching import Matching

    with leak.mode():
        value, _ = Matching(leak, leak.targets(labels(leak.count)))(images(leak.count))
    return float(value)


@every_defense
def test_a_defence_is_made_without_settings_and_shares_something(name: str) -> None:
    defense = DEFENSES[name]()
    assert name_of(defense) == name
    assert parse(LeakDefense, name) == defense
    client = defense(Client(batch=2))
    model = smooth()
    before = [p.detach().clone() for p in model.parameters()]
    leak = leak_of(model, client=client)
    assert leak.count == client.batch
    again = leak_of(model, client=client)
    assert all(torch.equal(a, b) for a, b in zip(leak.tensors, again.tensors, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert client != Client(batch=2)


@every_defense
def test_to_an_attacker_who_knows_it_the_true_images_fit_better(name: str) -> None:
    defense, model = DEFENSES[name](), smooth()
    known = leak_of(model, client=defense(Client(batch=4)))
    undefended = leak_of(model, client=Client(batch=known.count))
    assert distance(undefended) < 1e-6
    assert distance(known) <= distance(known.believed(undefended)) + 1e-6
    if name not in ("clip-and-noise", "larger-batch"):  # noise stays noise, and a crowd is no secret
        assert distance(known) < 1e-5


def test_stacks_go_from_left_to_right() -> None:
    client = Quantize(bits=4)(Sparsify(keep=0.5)(LocalSteps(steps=2, rate=0.1)(LargerBatch(factor=3)(Client(batch=2)))))
    assert client.batch == 6
    assert client.sharing == Update(steps=2, rate=0.1)
    assert [name_of(one) for one in client.filters] == ["sparse", "quantized"]


def test_noise_is_measured_in_clips_and_averaged_over_the_batch() -> None:
    client = ClipAndNoise(clip=0.4, noise=2.0)(Client(batch=5))
    assert client.sharing == Gradient(clip=0.4)
    assert client.filters[0].std == pytest.approx(2.0 * 0.4 / 5)
    assert client.guarantees[0].values["epsilon"] == pytest.approx(1.9931, abs=1e-3)
    assert "one image" in client.guarantees[0].statement


def test_for_an_update_the_whole_client_is_protected() -> None:
    client = ClipAndNoise(clip=0.4, noise=2.0)(Client(batch=5, sharing=Update(steps=2, rate=0.1)))
    assert [name_of(one) for one in client.filters] == ["clipped", "noisy"]
    assert client.filters[1].std == pytest.approx(0.8)
    assert "all of a client's data" in client.guarantees[0].statement


def test_without_noise_nothing_is_claimed() -> None:
    assert ClipAndNoise(noise=0.0)(Client()).guarantees == ()


def test_orders_that_would_void_the_clip_are_refused() -> None:
    with pytest.raises(TypeError, match="goes before mixing"):
        ClipAndNoise()(Mixing()(Client(batch=2)))
    with pytest.raises(TypeError, match="goes before clip-and-noise"):
        LocalSteps()(ClipAndNoise()(Client()))
    with pytest.raises(ValueError, match="batch_statistics=False"):
        ClipAndNoise()(Client(sharing=Gradient(batch_statistics=True)))


def test_one_image_cannot_be_mixed() -> None:
    with pytest.raises(ValueError, match="batch of 2 or more"):
        Mixing()(Client())


def test_mixed_images_are_what_the_gradient_is_of() -> None:
    model = smooth()
    leak = leak_of(model, client=Mixing(k=3)(Client(batch=4)))
    assert leak.mixing is not None
    assert torch.allclose(leak.mixing.sum(1), torch.ones(4))
    mixed = torch.einsum("ij,jchw->ichw", leak.mixing, images(4))
    targets = leak.mixing @ F.one_hot(labels(4), CLASSES).float()
    expected = torch.autograd.grad(F.cross_entropy(model(mixed), targets), list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(leak.tensors, expected, strict=True))


def test_statistics_are_those_of_the_batch_before_each_norm() -> None:
    model = normed()
    leak = leak_of(model, client=Client(batch=4, tells_statistics=True))
    with torch.no_grad():
        before = model[0](images(4))
    mean, variance = leak.statistics["1"]
    assert torch.allclose(mean, before.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(variance, before.var((0, 2, 3), correction=0), atol=1e-6)
    assert leak_of(model, 4).statistics == {}


def test_statistics_of_built_in_networks_are_seen_although_eval_mode_folds_them() -> None:
    from mithridate.core.models import build

    model = build("convnet:width=4", CLASSES, (3, 8, 8), 0)
    leak = leak_of(model, client=Client(batch=4, tells_statistics=True))
    first = next(iter(leak.statistics))
    with torch.no_grad():
        before = model.get_submodule(first.replace("norm", "convolution"))(images(4))
    assert torch.allclose(leak.statistics[first][0], before.mean((0, 2, 3)), atol=1e-6)
    assert len(leak.statistics) == 5


def test_another_number_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="shares 2 images, but got 3"):
        Client(batch=2).share(smooth(), images(3), labels(3), seed=0)
    with pytest.raises(ValueError, match="at least one image"):
        Client(batch=0)
