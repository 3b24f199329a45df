"""What the parts of a network put out: the features, every block before them, both through dropout where asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mithridate.core.ensemble import in_mode
from mithridate.core.models import last_linear
from mithridate.core.seeds import seeded

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def blocks(module: nn.Module) -> list[nn.Module]:
    """Returns the ordered parts of a network that an end-to-end feature attack looks at.

    They are what the outermost container that has several parts with parameters is made of, without the part that ends
    in the last Linear: the blocks or stages of the built-in networks. A list of modules counts as its members.

    Raises:
        ValueError: the module has no final Linear.

    >>> from mithridate.core.networks import convnet, resnet18
    >>> len(blocks(convnet(10))), len(blocks(nn.Sequential(nn.Identity(), resnet18(10, width=4))))
    (5, 5)
    """
    last = last_linear(module)
    parts = _parts(module)
    while len(parts) == 1:
        parts = _parts(parts[0])
    return [part for part in parts if last not in part.modules()]


def _parts(module: nn.Module) -> list[nn.Module]:
    """The direct children that hold parameters."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):  # they have no output of their own
            found += _parts(child)
        elif next(child.parameters(), None) is not None:
            found.append(child)
    return found


def activations(
    module: nn.Module,
    images: Tensor,
    *,
    dropout: float = 0.0,
    rng: torch.Generator | None = None,
    every_block: bool = False,
) -> list[Tensor]:
    """Returns the flattened outputs [B, D] of the blocks, in order, and last the features: what the last Linear reads.

    BatchNorm is in eval mode whatever the module's. With dropout, the output of every block is thinned out, and so are
    those of the dropout layers that the module has, at their own rates. Differentiable in the images.

    Args:
        module: a classifier that ends in a Linear.
        images: [B, C, H, W] in [0, 1].
        dropout: share of each block's outputs that is set to zero; 0 draws nothing.
        rng: a CPU generator, where dropout draws from; the global one is left alone.
        every_block: also return the blocks, not only the features.

    Raises:
        ValueError: no final Linear, a part that does not run once, or dropout that is no share or has no generator.
        TypeError: the output of a block is wanted or thinned out, but is no tensor.

    >>> from mithridate.core.networks import convnet
    >>> images = torch.rand(2, 1, 8, 8)
    >>> [found.shape[1] for found in activations(convnet(10, channels=1, size=8), images, every_block=True)]
    [256, 128, 128, 256, 256, 64]
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it is the share that is set to zero, so use 0.2 for 20 %")
    if dropout and rng is None:
        raise ValueError("dropout draws at random; give it a torch.Generator as rng")
    caught: list[list[Tensor]] = []
    with ExitStack() as stack:
        stack.enter_context(in_mode(module, train=False))
        if dropout and rng is not None:
            stack.enter_context(_thinning(module, dropout, rng, images.device))
        for part in blocks(module) if every_block else []:
            caught.append(stack.enter_context(_catching(part)))
        caught.append(stack.enter_context(_catching(last_linear(module), inputs=True)))
        module(images)
    counts = [len(seen) for seen in caught]
    if set(counts) != {1}:
        raise ValueError(
            f"the blocks and the last Linear of {type(module).__name__} ran {counts} times in one forward pass; "
            "each must run once"
        )
    return [seen[0].float().flatten(1) for seen in caught]


@contextmanager
def _catching(part: nn.Module, *, inputs: bool = False) -> Iterator[list[Tensor]]:
    """Collects what a part puts out, or takes in, inside the block."""
    seen: list[Tensor] = []

    def catch(part: nn.Module, taken: tuple[Any, ...], output: Any) -> None:
        seen.append(_tensor(part, taken[0] if inputs else output))

    handle = part.register_forward_hook(catch)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _thinning(module: nn.Module, rate: float, rng: torch.Generator, device: torch.device) -> Iterator[None]:
    """Inside the block, dropout acts on every block's output, and in the module's own dropout layers."""

    def thin(part: nn.Module, taken: tuple[Any, ...], output: Any) -> Tensor:
        found = _tensor(part, output)
        kept = torch.rand(found.shape, generator=rng) >= rate
        return found * kept.to(found.device, found.dtype, non_blocking=True).div_(1 - rate)

    own = [part for part in module.modules() if isinstance(part, DROPOUT)]
    seed = int(torch.randint(2**62, (1,), generator=rng)) if own else 0
    handles = [part.register_forward_hook(thin) for part in blocks(module)]
    try:
        for part in own:
            part.training = True
        with seeded(device, seed) if own else nullcontext():
            yield
    finally:
        for part in own:
            part.training = False
        for handle in handles:
            handle.remove()


def _tensor(part: nn.Module, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the block {type(part).__name__} puts out {type(value).__name__}, not one tensor; use the features alone, "
            "without dropout"
        )
    return value
