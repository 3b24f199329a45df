"""Rank: spectra of convolutions as linear maps, and training that lowers or raises their effective rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mithridate.core.batchnorm import unfolded
from mithridate.core.data import ImageData
from mithridate.core.ensemble import in_mode
from mithridate.core.training import Recipe


class Layer(NamedTuple):
    """A convolution and the grid that it sees."""

    name: str
    module: nn.Conv2d
    grid: tuple[int, int]
    """Height and width of its input, as a forward pass shows."""


def convolutions(model: nn.Module, images: Tensor) -> list[Layer]:
    """Returns the convolutions of a model in the order in which they run on some images [N, C, H, W], each once.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    >>> [(layer.name, layer.grid) for layer in convolutions(model, torch.zeros(1, 1, 8, 8))]
    [('0', (8, 8)), ('2', (4, 4))]
    """
    found: dict[str, Layer] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def note(own: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                assert isinstance(own, nn.Conv2d)
                found.setdefault(name, Layer(name, own, (inputs[0].shape[-2], inputs[0].shape[-1])))

            handles.append(module.register_forward_pre_hook(note))
    try:
        with torch.no_grad(), in_mode(model, train=False), unfolded(model):
            model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


# --- spectra ---------------------------------------------------------------------------------------------------------


def singular_values(weight: Tensor, grid: tuple[int, int], *, dilation: tuple[int, int] = (1, 1)) -> Tensor:
    """Returns the singular values of a convolution of stride 1 with a periodic border, as a map of whole images.

    With a stride only some outputs of that map are kept, and zeros at the border instead of a period change its values:
    they are those of this map all the same.

    Reference: Sedghi, Gupta, Long. "The Singular Values of Convolutional Layers". ICLR 2019. arXiv 1805.10408.

    Args:
        weight: [out, in, h, w].
        grid: Height and width of the input. A kernel that is larger wraps around.
        dilation: Of the kernel.

    Returns:
        [height * width * min(out, in)], falling.

    >>> singular_values(torch.full((1, 1, 1, 1), 3.0), (2, 2))
    tensor([3., 3., 3., 3.])
    """
    return torch.linalg.svdvals(_transfer(weight, grid, dilation)).flatten().sort(descending=True).values


def _waves(weight: Tensor, grid: tuple[int, int], dilation: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What each frequency makes of each tap: rows [H, h] and columns [W, w], complex."""
    kind = torch.complex128 if weight.dtype == torch.float64 else torch.complex64
    rows, columns = (
        torch.exp(
            -2j
            * math.pi
            * torch.outer(torch.arange(side), torch.arange(taps) * step % side).to(weight.device, kind)
            / side
        )
        for side, taps, step in zip(grid, weight.shape[2:], dilation, strict=True)
    )
    return rows, columns


def _transfer(weight: Tensor, grid: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """[H, W, out, in] complex: the matrix of each frequency."""
    rows, columns = _waves(weight, grid, dilation)
    return torch.einsum("oihw,yh,xw->yxoi", weight.to(rows.dtype), rows, columns)


def _kernel(transfer: Tensor, like: Tensor, grid: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """The kernel [out, in, h, w] whose matrices are nearest to these; taps that fall on one place share it."""
    rows, columns = _waves(like, grid, dilation)
    found = torch.einsum("yxoi,yh,xw->oihw", transfer, rows.conj(), columns.conj()).real / (grid[0] * grid[1])
    shared = [
        (places[:, None] == places[None, :]).sum(0)
        for places in (
            torch.arange(taps) * step % side for side, taps, step in zip(grid, like.shape[2:], dilation, strict=True)
        )
    ]
    return (found / torch.outer(shared[0], shared[1]).to(found.device)).to(like.dtype)


def spectra(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Returns the singular values of every convolution and Linear of a model, by name, falling.

    Args:
        model: Any module.
        images: [N, C, H, W]; the first one shows which grid each convolution sees.
    """
    found: dict[str, Tensor] = {}
    for layer in convolutions(model, images):
        parts = layer.module.weight.detach().chunk(layer.module.groups)
        values = [singular_values(part, layer.grid, dilation=_pair(layer.module.dilation)) for part in parts]
        found[layer.name] = torch.cat(values).sort(descending=True).values
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = torch.linalg.svdvals(module.weight.detach())
    return found


def _pair(pair: tuple[int, ...]) -> tuple[int, int]:
    return pair[0], pair[1]


def effective_rank(values: Tensor) -> float:
    """Returns the effective rank of singular values: exp of the entropy of their shares, 1 to their number.

    Reference: Roy, Vetterli. "The Effective Rank: A Measure of Effective Dimensionality". EUSIPCO 2007.

    >>> round(effective_rank(torch.tensor([1.0, 1.0, 0.0])), 4)
    2.0
    """
    shares = values.double() / values.double().sum()
    return float(torch.special.entr(shares).sum().exp())


def stable_rank(values: Tensor) -> float:
    """Returns the sum of squared singular values over the largest square.

    >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
    1.5
    """
    return float((values.double() / values.double().max()).square().sum())


# --- projections -----------------------------------------------------------------------------------------------------

Change = Callable[[Tensor], Tensor]
"""Of singular values, the same shape."""


def rank_min(model: nn.Module, images: Tensor, *, least: float = 0.5) -> None:
    """Sets the singular values below `least` to zero in all convolutions but the first, in place: lower rank.

    The kernel keeps its size: what the changed map needs beyond it is dropped, so that small values come back in part.

    Reference: Goldblum et al. arXiv 1910.00359, section 6.

    Args:
        model: Any module.
        images: [N, C, H, W]; the first one shows which grid each convolution sees.
        least: Smallest singular value that stays.
    """
    _project(model, images, lambda values: torch.where(values < least, 0.0, values))


def rank_max(model: nn.Module, images: Tensor, *, most: float = 1.5) -> None:
    """Lowers the singular values above `most` to it in all convolutions but the first, in place: a flatter spectrum.

    As for `rank_min`.
    """
    _project(model, images, lambda values: values.clamp_max(most))


def _project(model: nn.Module, images: Tensor, change: Change) -> None:
    for layer in convolutions(model, images)[1:]:
        weight, dilation = layer.module.weight, _pair(layer.module.dilation)
        parts = []
        for part in weight.detach().chunk(layer.module.groups):
            left, values, right = torch.linalg.svd(_transfer(part, layer.grid, dilation), full_matrices=False)
            changed = (left * change(values).to(left.dtype)[..., None, :]) @ right
            parts.append(_kernel(changed, part, layer.grid, dilation))
        with torch.no_grad():
            weight.copy_(torch.cat(parts))


def trained(
    recipe: Recipe, data: ImageData, seed: int, *, project: Callable[[nn.Module, Tensor], None], at: Collection[int]
) -> nn.Module:
    """Trains a model and changes it after some epochs, with `rank_min`, `rank_max` or a function of your own.

    Args:
        recipe: What is trained.
        data: On what.
        seed: Of everything drawn.
        project: Changes the model in place; gets it and one image [1, C, H, W].
        at: After which epochs, counted from 1.

    Raises:
        ValueError: An epoch that the recipe does not have.
    """
    if wrong := sorted(epoch for epoch in at if not 1 <= epoch <= recipe.epochs):
        raise ValueError(f"after epochs {wrong}: the recipe has epochs 1 to {recipe.epochs}")
    module: nn.Module | None = None
    for epoch, state in enumerate(recipe.states(data, seed), start=1):
        module = state.module
        if epoch in at:
            project(module, data.floats(data.ids[:1]))
    assert module is not None
    return module.eval()
