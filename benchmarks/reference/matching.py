"""Gradient matching by hand.

Reference: Geiping, Fowl et al. "Witches' Brew". ICLR 2021. arXiv 2009.02276, one restart, one surrogate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reference.pixels import augment_plain, mirrored_and_moved, moves_of, padded_pixels


@dataclass(frozen=True, kw_only=True)
class Brewing:
    """Settings that all gradient-matching loops share."""

    steps: int
    eps: float = 16 / 255
    learning_rate: float = 0.025

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return self.learning_rate * 0.1 ** sum(step >= share * self.steps for share in (3 / 8, 5 / 8, 7 / 8))


@dataclass(frozen=True, eq=False)
class Brew:
    """What is to be matched."""

    base: Tensor
    """Poisons to be [P, C, H, W] in [0, 1]."""
    labels: Tensor
    """Their labels [P]."""
    target: Tensor
    """[1, C, H, W] in [0, 1]."""
    intended: Tensor
    """Class the target shall get, [1]."""


def brew_plain(network: nn.Module, brew: Brew, brewing: Brewing) -> tuple[Tensor, float]:
    """Gradient matching as one writes it first: float32, NCHW, ``loss.backward()`` through the gradient.

    Args:
        network: Trained, from images in [0, 1] to logits.
        brew: What is to be matched.
        brewing: Settings.

    Returns:
        Poisoned images and the last matching loss.
    """
    network, base = network.eval(), brew.base
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    wanted = torch.autograd.grad(functional.cross_entropy(network(brew.target), brew.intended), parameters)
    rng, last = torch.Generator().manual_seed(0), 0.0
    delta = _start(base, brewing, rng)
    optimizer = torch.optim.Adam([delta], lr=brewing.learning_rate)
    for step in range(brewing.steps):
        optimizer.param_groups[0]["lr"] = brewing.rate(step)
        loss = functional.cross_entropy(network(augment_plain(base + delta, rng)), brew.labels, reduction="sum")
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        mismatch = mismatch_of(gradient, wanted)
        network.zero_grad()
        optimizer.zero_grad()
        mismatch.backward()
        assert delta.grad is not None
        delta.grad.sign_()
        optimizer.step()
        delta.data = _inside(delta.data, base, brewing.eps)
        last = mismatch.item()
    return (base + delta).detach(), last


Pass = Callable[[nn.Module, Tensor, Tensor, Sequence[Tensor], bool], tuple[Tensor, Tensor]]
"""Network, augmented images, labels, wanted gradient, bf16 -> mismatch [], its gradient for the images."""


def brew_by_hand(network: nn.Module, brew: Brew, brewing: Brewing, derive: Pass, *, bf16: bool) -> tuple[Tensor, float]:
    """Channels last, one gather for mirror and move, gradients of the poisons alone, no waiting for the loss.

    Args:
        network: As for `brew_plain`.
        brew: What is to be matched.
        brewing: Settings.
        derive: `double_backward` or `forward_over_reverse`.
        bf16: Number format of its passes.
    """
    network = network.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    base = brew.base.contiguous(memory_format=torch.channels_last)
    rows = torch.arange(len(base), device=base.device)
    wanted = torch.autograd.grad(
        functional.cross_entropy(network(brew.target), brew.intended), list(network.parameters())
    )
    rng, mismatch = torch.Generator().manual_seed(0), torch.zeros(())
    delta = _start(base, brewing, rng)
    optimizer = torch.optim.Adam([delta], lr=brewing.learning_rate)
    for step in range(brewing.steps):
        optimizer.param_groups[0]["lr"] = brewing.rate(step)
        moved = mirrored_and_moved(padded_pixels(base + delta), rows, moves_of(len(base), rng).to(base.device))
        mismatch, slope = derive(network, moved.detach(), brew.labels, wanted, bf16)
        delta.grad = torch.autograd.grad(moved, delta, slope)[0].sign_()
        optimizer.step()
        delta.data = _inside(delta.data, base, brewing.eps)
    return (base + delta).detach(), float(mismatch)


def double_backward(
    network: nn.Module, images: Tensor, labels: Tensor, wanted: Sequence[Tensor], bf16: bool
) -> tuple[Tensor, Tensor]:
    """The usual way: differentiate the parameter gradient, for the images alone."""
    images.requires_grad_()
    loss = _loss(network, images, labels, bf16)
    gradient = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    value, slopes = _value_and_slopes(gradient, wanted)
    (towards,) = torch.autograd.grad(gradient, images, slopes)
    return value, towards


def forward_over_reverse(
    network: nn.Module, images: Tensor, labels: Tensor, wanted: Sequence[Tensor], bf16: bool
) -> tuple[Tensor, Tensor]:
    """The image gradient, differentiated forwards along the derivative of the mismatch for the parameter gradient."""
    parameters = dict(network.named_parameters())
    loss = _loss(network, images, labels, bf16)
    value, slopes = _value_and_slopes(torch.autograd.grad(loss, list(parameters.values())), wanted)

    def image_gradient(given: dict[str, Tensor]) -> Tensor:
        def total(seen: Tensor) -> Tensor:
            with torch.autocast(seen.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
                logits = torch.func.functional_call(network, given, (seen,))
            return functional.cross_entropy(logits.float(), labels, reduction="sum")

        return torch.func.grad(total)(images)

    held = {name: parameter.detach() for name, parameter in parameters.items()}
    towards = torch.func.jvp(image_gradient, (held,), (dict(zip(held, slopes, strict=True)),))[1]
    return value, towards.detach()


def mismatch_of(gradient: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """One minus the cosine of the whole parameter vectors."""
    product = torch.stack([(a * b).sum() for a, b in zip(gradient, wanted, strict=True)]).sum()
    lengths = [torch.stack([part.square().sum() for part in parts]).sum().sqrt() for parts in (gradient, wanted)]
    return 1 - product / (lengths[0] * lengths[1])


def _value_and_slopes(gradient: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The mismatch and its derivative for the gradient, by the closed form."""
    a, b = [part.detach() for part in gradient], list(wanted)
    length_a, length_b = (torch.stack(torch._foreach_norm(parts)).norm() for parts in (a, b))
    cosine = torch.stack([x.flatten() @ y.flatten() for x, y in zip(a, b, strict=True)]).sum() / (length_a * length_b)
    slopes = torch._foreach_mul(a, cosine / length_a.square())
    torch._foreach_sub_(slopes, torch._foreach_mul(b, 1 / (length_a * length_b)))
    return 1 - cosine, list(slopes)


def _loss(network: nn.Module, images: Tensor, labels: Tensor, bf16: bool) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits = network(images)
    return functional.cross_entropy(logits.float(), labels, reduction="sum")


def _start(base: Tensor, brewing: Brewing, rng: torch.Generator) -> Tensor:
    noise = torch.randn(base.shape, generator=rng).to(base) * brewing.eps
    return _inside(noise, base, brewing.eps).requires_grad_()


def _inside(delta: Tensor, base: Tensor, eps: float) -> Tensor:
    return (base + delta.clamp(-eps, eps)).clamp(0, 1) - base
