"""Blocks and their outputs, against the network taken apart by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mithridate.core.activations import activations, blocks
from mithridate.core.classifier import Classifier
from mithridate.core.ensemble import features
from mithridate.core.networks import convnet, convnet_wide, mobilenet_v2, resnet18, vgg11
from mithridate.core.seeds import stream

IMAGES = torch.rand(3, 3, 8, 8, generator=stream(0, "images"))
NETWORKS: dict[str, tuple[Callable[..., nn.Sequential], int]] = {
    "convnet": (convnet, 5),
    "convnet-wide": (convnet_wide, 4),
    "resnet18": (resnet18, 5),
    "vgg11": (vgg11, 8),
    "mobilenet_v2": (mobilenet_v2, 9),
}


def net(name: str = "convnet") -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name][0](4, size=8, width=4).eval()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(*between: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 50), *between, nn.Linear(50, 4)).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_built_in_networks_have_their_blocks(name: str) -> None:
    network = net(name)
    whole = Classifier(network, nn.Identity(), bf16=False)
    parts = list(network)[: NETWORKS[name][1]]
    assert blocks(network) == blocks(whole) == parts


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_parts_one_after_the_other(name: str) -> None:
    network, now, expected = net(name), IMAGES, []
    for part in list(network)[: NETWORKS[name][1]]:
        now = part(now)
        expected.append(now.flatten(1))
    expected.append(features(network, IMAGES))
    found = activations(network, IMAGES, every_block=True)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(activations(network, IMAGES), expected[-1:])


def test_batchnorm_is_in_eval_mode_and_modes_and_hooks_come_back() -> None:
    network = net()
    expected = activations(network, IMAGES, every_block=True)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.testing.assert_close(activations(network, IMAGES, every_block=True), expected)
    activations(network, IMAGES, dropout=0.5, rng=rng())
    assert all(part.training for part in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(part._forward_hooks for part in network.modules())


def test_they_are_differentiable_in_the_images() -> None:
    images = IMAGES.clone().requires_grad_()
    for found in activations(net(), images, dropout=0.2, rng=rng(), every_block=True):
        (slope,) = torch.autograd.grad(found.square().sum(), images, retain_graph=True)
        assert slope.abs().sum() > 0


def test_parts_of_other_networks() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Flatten()
            self.layers = nn.ModuleList([nn.Linear(192, 7), nn.Linear(7, 6)])
            self.head = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))

        def forward(self, images: Tensor) -> Tensor:
            images = self.flat(images)
            for layer in self.layers:
                images = layer(images)
            return self.head(images)

    other = Other()
    assert blocks(other) == list(other.layers)
    assert [found.shape[1] for found in activations(other, IMAGES, every_block=True)] == [7, 6, 5]
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    assert blocks(linear) == []
    assert [found.shape[1] for found in activations(linear, IMAGES, every_block=True)] == [192]


def test_dropout_sets_that_share_to_zero_and_keeps_the_mean() -> None:
    network = small(nn.Identity())
    images = IMAGES[:1].expand(2000, -1, -1, -1)
    (plain,) = activations(network, images)
    (thinned,) = activations(network, images, dropout=0.3, rng=rng())
    kept = thinned != 0
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(thinned[kept], plain[kept] / 0.7)


def test_dropout_acts_on_every_block() -> None:
    network = net()
    images = torch.ones_like(IMAGES)
    plain = activations(network, images, every_block=True)
    thinned = activations(network, images, dropout=0.5, rng=rng(), every_block=True)
    zeros = [((b == 0) & (a != 0)).any() for a, b in zip(plain[:-1], thinned[:-1], strict=True)]
    assert all(zeros)


def test_dropout_draws_repeat_by_seed_and_leave_the_global_state_alone() -> None:
    network = small(nn.Dropout(0.5))
    state = torch.get_rng_state()
    first, again, other = (activations(network, IMAGES, dropout=0.2, rng=rng(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_networks_own_dropout_is_on_only_with_dropout() -> None:
    network = small(nn.Dropout(0.9))
    (plain,) = activations(network, IMAGES)
    (thinned,) = activations(network, IMAGES, dropout=0.01, rng=rng())
    assert (plain != 0).all()
    assert float((thinned == 0).float().mean()) > 0.7
    assert not network[2].training


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"dropout is 20.*0\.2 for 20 %"):
        activations(net(), IMAGES, dropout=20, rng=rng())
    with pytest.raises(ValueError, match=r"give it a torch\.Generator"):
        activations(net(), IMAGES, dropout=0.2)
    with pytest.raises(ValueError, match="no final Linear"):
        activations(nn.Flatten(), IMAGES)
    shared = nn.Linear(192, 192)
    with pytest.raises(ValueError, match=r"ran \[2, 1\] times"):
        activations(nn.Sequential(nn.Flatten(), shared, shared, nn.Linear(192, 4)), IMAGES, every_block=True)


def test_a_block_that_puts_out_no_tensor() -> None:
    class Pair(nn.Linear):
        def forward(self, input: Tensor) -> tuple[Tensor, int]:  # type: ignore[override]
            return super().forward(input), 0

    class First(nn.Module):
        def forward(self, pair: tuple[Tensor, int]) -> Tensor:
            return pair[0]

    network = nn.Sequential(nn.Flatten(), Pair(192, 5), First(), nn.Linear(5, 4))
    assert activations(network, IMAGES)[0].shape == (3, 5)
    for settings in ({"every_block": True}, {"dropout": 0.2, "rng": rng()}):
        with pytest.raises(TypeError, match=r"block Pair puts out tuple.*features alone, without dropout"):
            activations(network, IMAGES, **settings)  # type: ignore[arg-type]
