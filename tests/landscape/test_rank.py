"""Spectra against dense matrices of circular convolutions; projections lower and raise the effective rank."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import mithridate as mi
from mithridate.landscape.rank import (
    convolutions,
    effective_rank,
    rank_max,
    rank_min,
    singular_values,
    spectra,
    stable_rank,
    trained,
)


def dense(weight: Tensor, height: int, width: int, dilation: int = 1) -> Tensor:
    """The matrix of a circular convolution, one column per input pixel."""
    columns = []
    for channel in range(weight.shape[1]):
        for place in range(height * width):
            image = torch.zeros(1, weight.shape[1], height, width, dtype=weight.dtype)
            image.view(1, weight.shape[1], -1)[0, channel, place] = 1
            reach = [dilation * (size - 1) for size in weight.shape[2:]]
            rows, sides = (
                torch.arange(-reach[0], height) % height,
                torch.arange(-reach[1], width) % width,
            )
            padded = image[:, :, rows][:, :, :, sides]
            columns.append(nn.functional.conv2d(padded, weight, dilation=dilation).flatten())
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize(
    ("shape", "grid", "dilation"),
    [
        ((4, 3, 3, 3), (6, 6), 1),
        ((2, 5, 3, 3), (5, 7), 1),
        ((3, 3, 3, 3), (6, 5), 2),
        ((3, 2, 1, 1), (4, 4), 1),
        ((2, 3, 3, 3), (2, 2), 1),
    ],
)
def test_singular_values_are_those_of_the_dense_matrix(
    shape: tuple[int, ...], grid: tuple[int, int], dilation: int
) -> None:
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.svdvals(dense(weight, *grid, dilation))
    found = singular_values(weight, grid, dilation=(dilation, dilation))
    assert torch.allclose(found, expected[: len(found)], atol=1e-10)
    assert float(expected[len(found) :].abs().sum()) < 1e-9


def test_every_convolution_is_seen_on_its_own_grid() -> None:
    from mithridate.core.models import build

    model = build("resnet18:width=4", 10, (3, 32, 32), 0)
    images = torch.rand(1, 3, 32, 32)
    found = convolutions(model, images)
    assert [layer.grid[0] for layer in found][:5] == [32] * 5
    assert sorted({layer.grid for layer in found}) == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert len(found) == sum(isinstance(part, nn.Conv2d) for part in model.modules())
    values = spectra(model, images)
    assert set(values) == {layer.name for layer in found} | {
        name for name, part in model.named_modules() if isinstance(part, nn.Linear)
    }
    assert all(bool((one.diff() <= 0).all()) for one in values.values())


def test_groups_are_maps_of_their_own() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)).double()
    whole = nn.Conv2d(4, 6, 3, padding=1, bias=False).double()
    with torch.no_grad():
        whole.weight.zero_()
        for group in range(2):
            whole.weight[3 * group : 3 * group + 3, 2 * group : 2 * group + 2] = model[0].weight[
                3 * group : 3 * group + 3
            ]
    images = torch.rand(1, 4, 5, 5, dtype=torch.float64)
    one, other = spectra(model, images)["0"], spectra(nn.Sequential(whole), images)["0"]
    assert torch.allclose(one, other[: len(one)], atol=1e-10)


def test_ranks_of_known_spectra() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(1)
    assert stable_rank(torch.ones(7)) == pytest.approx(7)


def pair() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten()
    )
    return model.double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)


def test_rank_min_lowers_and_rank_max_raises_the_effective_rank() -> None:
    model, images = pair()
    before = spectra(model, images)
    middle = float(before["2"].median())
    low, high = copy.deepcopy(model), copy.deepcopy(model)
    rank_min(low, images, least=middle)
    rank_max(high, images, most=middle)
    assert effective_rank(spectra(low, images)["2"]) < effective_rank(before["2"])
    assert effective_rank(spectra(high, images)["2"]) > effective_rank(before["2"])
    assert float(spectra(high, images)["2"].max()) < float(before["2"].max())
    for changed in (low, high):
        assert torch.equal(changed[0].weight, model[0].weight)
        assert torch.equal(changed[2].bias, model[2].bias)


def test_projections_that_have_nothing_to_do_change_nothing() -> None:
    model, images = pair()
    for project in (lambda one: rank_min(one, images, least=0.0), lambda one: rank_max(one, images, most=1e9)):
        same = copy.deepcopy(model)
        project(same)
        assert torch.allclose(same[2].weight, model[2].weight, atol=1e-12)
    wrapped = copy.deepcopy(model)
    rank_max(wrapped, images[:, :, :2, :2], most=1e9)  # the kernel is larger than the grid
    once = spectra(model, images[:, :, :2, :2])["2"]
    assert torch.allclose(spectra(wrapped, images[:, :, :2, :2])["2"], once, atol=1e-10)


def test_a_full_kernel_is_projected_exactly() -> None:
    """A kernel as large as the grid can be any circular convolution, so that nothing is dropped."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 5, padding=2), nn.Conv2d(3, 3, 5, padding=2)).double()
    images = torch.rand(1, 3, 5, 5, dtype=torch.float64)
    most = 0.5 * float(spectra(model, images)["1"].max())
    rank_max(model, images, most=most)
    assert float(spectra(model, images)["1"].max()) == pytest.approx(most, abs=1e-10)


def test_projections_during_training() -> None:
    train, _ = mi.Digits(train=200).load()
    recipe = mi.Recipe(model="convnet:width=4", epochs=3, learning_rate=0.05)
    seen: list[int] = []
    plain = recipe.fit([train], [0]).models[0]
    watched = trained(recipe, train, 0, project=lambda model, images: seen.append(len(images)), at=(1, 3))
    assert seen == [1, 1]
    ours, theirs = (list(one.parameters()) for one in (watched, plain))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    low = trained(recipe, train, 0, project=lambda model, images: rank_min(model, images, least=1.0), at=(3,))
    images = train.floats(train.ids[:1])
    ranks = [effective_rank(list(spectra(one, images).values())[2]) for one in (low, plain)]
    assert ranks[0] < ranks[1]
    with pytest.raises(ValueError, match=r"after epochs \[4\]: the recipe has epochs 1 to 3"):
        trained(recipe, train, 0, project=rank_min, at=(4,))
