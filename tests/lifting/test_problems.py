"""Problems: costs against slow loops, pictures whose answer is known, and energies that superpixels cannot change."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mithridate.core.schema import choices, name_of, parse
from mithridate.experiments.lifting_tasks import read_picture, read_truth
from mithridate.lifting.discretisations import (
    CutPursuit,
    Discretisation,
    Lifted,
    Pixels,
    Slic,
    cell_costs,
    lift,
    pixel_energy,
)
from mithridate.lifting.energy import Potts, TotalVariation, TruncatedVariation
from mithridate.lifting.graph import from_labels, pixel_grid
from mithridate.lifting.problems import (
    Problem,
    brightness,
    census,
    check_image,
    denoising,
    main_colours,
    moved,
    segmentation,
    stereo,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def three_colours(height: int = 36, width: int = 44, noise: float = 0.12) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy picture [H, W, 3], its labels [H, W], its colours [3, 3] (dark to bright)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    labels = torch.zeros(height, width, dtype=torch.int64)
    labels[columns > width // 2] = 1
    labels[(rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (height / 4) ** 2] = 2
    colours = torch.tensor([[0.2, 0.1, 0.4], [0.3, 0.6, 0.3], [0.9, 0.8, 0.7]])
    image = colours[labels] + noise * torch.randn(height, width, 3, generator=rng())
    return image.clamp(0, 1), labels, colours


def stereogram(height: int = 32, width: int = 48, noise: float = 0.02) -> tuple[Tensor, Tensor, Tensor]:
    """Random dots: left and right image [H, W, 1], disparities [H, W]: 2, and 6 in a rectangle."""
    truth = torch.full((height, width), 2)
    truth[8:24, 16:36] = 6
    right = torch.rand(height, width, 1, generator=rng(1))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    left = right[rows, (columns - truth).clamp_min(0)]
    left = left + noise * torch.randn(left.shape, generator=rng(2))
    return left.clamp(0, 1), right, truth


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(4, 4), r"the image is \[4, 4\]; expected \[height, width, 1 or 3\]"),
        (torch.zeros(4, 4, 2), r"\[4, 4, 2\]"),
        (torch.full((4, 4, 3), 255.0), "pixels in 255..255; expected .* divide 8-bit pixels by 255"),
        (torch.full((4, 4, 3), torch.nan), "nan"),
    ],
)
def test_an_image_of_another_kind_is_refused(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_image(image)


def test_grey_is_as_bright_as_it_is() -> None:
    grey = torch.rand(3, 4, 1, generator=rng())
    torch.testing.assert_close(brightness(check_image(grey)), grey[:, :, 0])


# --- problems of costs -----------------------------------------------------------------------------------------------


def test_costs_of_the_users_own_come_back() -> None:
    costs = torch.rand(5, 6, 19, generator=rng())
    problem = Problem.from_costs(costs, Potts(weight=1.0))
    assert torch.equal(problem.costs(), costs)
    assert [first for first, _ in problem.chunks(8)] == [0, 8, 16]
    assert problem.guide.shape == (5, 6, 3)
    assert bool(((problem.guide >= 0) & (problem.guide <= 1)).all())


@pytest.mark.parametrize(
    ("costs", "message"), [(torch.zeros(3, 3), "expected"), (torch.full((2, 2, 2), torch.inf), "not finite")]
)
def test_costs_that_cannot_be_used_are_refused(costs: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Problem.from_costs(costs, Potts(weight=1.0))


# --- segmentation ----------------------------------------------------------------------------------------------------


def test_segmentation_costs_are_squared_distances() -> None:
    image, _, colours = three_colours(5, 7)
    costs = segmentation(image, colours=colours, weight=0.1).costs()
    for row, column, label in itertools.product(range(5), range(7), range(3)):
        distance = sum((float(image[row, column, c]) - float(colours[label, c])) ** 2 for c in range(3))
        assert float(costs[row, column, label]) == pytest.approx(distance, abs=1e-6)


def test_main_colours_are_as_good_as_those_of_scikit_learn() -> None:
    from sklearn.cluster import KMeans

    image, _, _ = three_colours()
    pixels = image.reshape(-1, 3).numpy()
    ours = ((image.reshape(-1, 1, 3) - main_colours(image, 5)) ** 2).sum(-1).amin(1).sum()
    theirs = KMeans(5, n_init=5, random_state=0).fit(pixels).inertia_
    assert float(ours) <= 1.02 * theirs


def test_main_colours_do_not_depend_on_anything_but_the_seed() -> None:
    image, _, truth = three_colours()
    found = main_colours(image, 3)
    assert torch.equal(found, main_colours(image, 3))
    assert float((found - truth).abs().max()) < 0.05  # dark to bright, as these are


def test_more_colours_than_the_image_has_are_refused() -> None:
    image = torch.tensor([[0.0, 0.5, 1.0]])[:, :, None]
    assert len(segmentation(image, colours=3).colours) == 3
    with pytest.raises(ValueError, match="4 colours, but the image has 3; ask for at most 3"):
        segmentation(image, colours=4)
    with pytest.raises(ValueError, match="needs 2 or more"):
        segmentation(image, colours=1)
    with pytest.raises(ValueError, match=r"the colours are \[1, 3\]"):
        segmentation(image, colours=torch.zeros(1, 3))


# --- stereo ----------------------------------------------------------------------------------------------------------


def slow_census(grey: np.ndarray, row: int, column: int) -> list[bool]:
    height, width = grey.shape
    places = [
        (row + down, column + across) for down in range(-2, 3) for across in range(-2, 3) if (down, across) != (0, 0)
    ]
    inside = [(min(max(r, 0), height - 1), min(max(c, 0), width - 1)) for r, c in places]
    return [bool(grey[place] < grey[row, column]) for place in inside]


def test_census_against_a_slow_loop() -> None:
    grey = torch.rand(6, 7, generator=rng())
    bits = census(grey)
    for row, column in itertools.product(range(6), range(7)):
        text = "".join("1" if answer else "0" for answer in slow_census(grey.numpy(), row, column))
        assert int(bits[row, column]) == int(text, 2)


@pytest.mark.parametrize("cost", ["census", "absolute"])
def test_stereo_costs_against_a_slow_loop(cost: str) -> None:
    left, right = (torch.rand(5, 9, 3, generator=rng(seed)) for seed in (0, 1))
    costs = stereo(left, right, disparities=9, cost=cost, truncation=0.35).costs()
    one, other = (brightness(image).numpy() for image in (left, right))
    for row, column, disparity in itertools.product(range(5), range(9), range(9)):
        place = max(column - disparity, 0)  # beyond the edge: the last disparity that is inside
        if cost == "census":
            pairs = zip(slow_census(one, row, column), slow_census(other, row, place), strict=True)
            expected = sum(a != b for a, b in pairs) / 24
        else:
            expected = float((left[row, column] - right[row, place]).abs().mean())
        assert float(costs[row, column, disparity]) == pytest.approx(min(expected, 0.35), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": torch.zeros(4, 9, 1)}, "the left image is 8x4 pixels, the right one 9x4"),
        ({"disparities": 9}, "9 disparities for images of 8 columns; give 2 to 8"),
        ({"disparities": 1}, "1 disparities"),
        ({"cost": "sad"}, "'sad' is not known; census or absolute"),
        ({"truncation": 0.0}, "truncation is 0"),
    ],
)
def test_a_stereo_problem_that_makes_no_sense_is_refused(change: dict, message: str) -> None:
    settings = {"right": torch.zeros(4, 8, 1), "disparities": 4, **change}
    with pytest.raises(ValueError, match=message):
        stereo(torch.zeros(4, 8, 1), settings.pop("right"), **settings)


def test_a_limit_truncates_the_variation() -> None:
    left, right, _ = stereogram()
    assert stereo(left, right, disparities=8, weight=0.1).regulariser == TotalVariation(weight=0.1)
    limited = stereo(left, right, disparities=8, weight=0.1, limit=0.3).regulariser
    assert limited == TruncatedVariation(weight=0.1, limit=0.3)


def test_a_move_is_undone_by_its_opposite_but_for_the_edge() -> None:
    image = torch.rand(3, 8, generator=rng())
    assert torch.equal(moved(image, 3)[:, 3:], image[:, :-3])
    assert torch.equal(moved(image, 3)[:, :3], image[:, :1].expand(3, 3))


# --- denoising -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["squared", "absolute"])
def test_denoising_costs(cost: str) -> None:
    channel = torch.rand(4, 5, generator=rng())
    problem = denoising(channel, levels=7, cost=cost)
    apart = channel[:, :, None] - torch.arange(7) / 6
    torch.testing.assert_close(problem.costs(), apart**2 if cost == "squared" else apart.abs())
    assert problem.values is not None
    torch.testing.assert_close(problem.values, torch.arange(7) / 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 1}, "1 levels"),
        ({"cost": "l3"}, "'l3' is not known"),
        ({"channel": torch.zeros(2, 2, 3)}, "one at a time"),
    ],
)
def test_denoising_that_makes_no_sense_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        denoising(**{"channel": torch.zeros(2, 2), **settings})


# --- discretisations -------------------------------------------------------------------------------------------------


def test_discretisations_by_name() -> None:
    assert list(choices(Discretisation)) == ["cut-pursuit", "pixels", "slic"]
    assert parse(Discretisation, "slic:cells=300,neighbours=8") == Slic(cells=300, neighbours=8)
    assert name_of(CutPursuit(weight=0.1)) == "cut-pursuit"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pixels(neighbours=6), "6 neighbours; a pixel has 4 or 8"),
        (lambda: Slic(compactness=0.0), "compactness is 0"),
        (lambda: CutPursuit(cells=-1), "-1 cells"),
        (lambda: CutPursuit(weight=0.0), "weight is 0"),
        (lambda: Slic(cells=12).graph(torch.zeros(3, 4, 3)), "12 cells for an image of 12 pixels"),
        (lambda: CutPursuit(cells=12).graph(torch.zeros(3, 4, 3)), "12 cells for an image of 12 pixels"),
    ],
)
def test_a_discretisation_that_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_costs_of_cells_are_those_of_all_labels_at_once() -> None:
    left, right, _ = stereogram()
    problem = stereo(left, right, disparities=19)
    cells = torch.arange(32 * 48).reshape(32, 48) // 48 // 4
    graph = from_labels(cells)
    torch.testing.assert_close(cell_costs(problem, graph), graph.mean(problem.costs()))
    grid = pixel_grid(32, 48)
    assert torch.equal(cell_costs(problem, grid), problem.costs().reshape(-1, 19))


@pytest.mark.parametrize(
    "regulariser", [Potts(weight=0.3), TotalVariation(weight=0.2), TruncatedVariation(weight=0.2, limit=0.5)]
)
def test_the_energy_on_pixels_against_a_slow_loop(regulariser: Potts | TotalVariation | TruncatedVariation) -> None:
    costs = torch.rand(4, 5, 11, generator=rng())
    values = torch.arange(11).float() ** 1.5
    problem = Problem.from_costs(costs, regulariser, values=None if isinstance(regulariser, Potts) else values)
    labels = torch.randint(0, 11, (4, 5), generator=rng(3))
    expected = sum(float(costs[r, c, labels[r, c]]) for r, c in itertools.product(range(4), range(5)))
    for r, c in itertools.product(range(4), range(5)):
        for other in [(r + 1, c)] * (r < 3) + [(r, c + 1)] * (c < 4):
            jump = abs(float(values[labels[r, c]]) - float(values[labels[other]]))
            if isinstance(regulariser, Potts):
                expected += 0.3 * (jump > 0)
            else:
                expected += min(0.2 * jump, getattr(regulariser, "limit", float("inf")))
    assert pixel_energy(problem, labels) == pytest.approx(expected, rel=1e-6)


def on_everything() -> list[Discretisation]:
    return [Pixels(), Pixels(neighbours=8), Slic(cells=60), Slic(cells=60, neighbours=8), CutPursuit(cells=60)]


@pytest.mark.parametrize("discretisation", on_everything(), ids=str)
def test_the_energy_of_cells_is_that_of_their_pixels(discretisation: Discretisation) -> None:
    if isinstance(discretisation, Slic):
        pytest.importorskip("skimage", reason="needs scikit-image (extra image)")
    image, _, colours = three_colours(20, 24)
    found = lift(segmentation(image, colours=colours, weight=0.1), discretisation, dtype=torch.float64)
    assert found.energy == pytest.approx(found.cell_energy, rel=1e-12)
    assert found.solution.dual <= found.energy + 1e-6 * abs(found.energy)
    assert found.labels.shape == (20, 24)
    assert set(found.seconds) == {"graph", "costs", "solve"}


# --- answers that are known ------------------------------------------------------------------------------------------


def share_right(found: Lifted, truth: Tensor) -> float:
    return float((found.labels == truth).float().mean())


@pytest.mark.parametrize("discretisation", [Pixels(), Slic(cells=150), CutPursuit(cells=100)], ids=name_of)
def test_three_noisy_colours_are_told_apart(discretisation: Discretisation) -> None:
    if isinstance(discretisation, Slic):
        pytest.importorskip("skimage", reason="needs scikit-image (extra image)")
    image, truth, colours = three_colours()
    problem = segmentation(image, colours=colours, weight=0.15)
    raw = problem.costs().argmin(-1)
    found = lift(problem, discretisation)
    assert float((raw == truth).float().mean()) < 0.995
    assert share_right(found, truth) > (0.99 if isinstance(discretisation, Pixels) else 0.92)
    if isinstance(discretisation, Pixels):
        assert found.energy < pixel_energy(problem, raw)
        assert found.energy <= pixel_energy(problem, truth) + 1e-3 * abs(found.energy)


@pytest.mark.parametrize("cost", ["census", "absolute"])
def test_the_disparities_of_random_dots_are_found(cost: str) -> None:
    left, right, truth = stereogram()
    problem = stereo(left, right, disparities=10, cost=cost, weight=0.02)
    found = lift(problem, Pixels())
    seen = torch.ones_like(truth, dtype=torch.bool)
    seen[8:24, 10:16] = False  # behind the rectangle, in the right image
    seen[:, :2] = False
    assert float((found.labels == truth)[seen].float().mean()) > 0.97
    assert float((problem.costs().argmin(-1) == truth)[seen].float().mean()) < 0.97
    assert found.energy <= pixel_energy(problem, truth) * (1 + 1e-3)


def test_noise_is_removed() -> None:
    clean = torch.full((24, 30), 0.2)
    clean[6:18, 8:22] = 0.8
    noisy = (clean + 0.1 * torch.randn(24, 30, generator=rng())).clamp(0, 1)
    found = lift(denoising(noisy, levels=16, weight=0.2), Pixels())
    before, after = ((one - clean).square().mean() for one in (noisy, found.labels / 15))
    assert float(after) < 0.25 * float(before)


def test_several_problems_share_one_graph() -> None:
    image, _, _ = three_colours(20, 24)
    problems = [denoising(image[:, :, channel], levels=6, guide=image) for channel in range(2)]
    first = lift(problems[0], CutPursuit(cells=50))
    second = lift(problems[1], first.graph)
    assert second.graph is first.graph
    assert second.energy == pytest.approx(second.cell_energy, rel=1e-5)


def test_quarter_size_teddy(shared_stereo: Path) -> None:
    """Bad pixels fall by half or more against the cheapest disparity, on pixels and on superpixels."""
    left, right = (read_picture(shared_stereo / "teddy" / f"im{number}.png", 4) for number in (2, 6))
    truth = read_truth(shared_stereo / "teddy" / "disp2.pgm", 4, 4)
    problem = stereo(left, right, disparities=16)
    known = torch.isfinite(truth)

    def bad(labels: Tensor) -> float:
        return float(((labels - truth).abs() > 1)[known].float().mean())

    raw = bad(problem.costs().argmin(-1))
    on_pixels, on_cells = lift(problem, Pixels()), lift(problem, CutPursuit(cells=1500))
    assert bad(on_pixels.labels) < 0.5 * raw
    assert bad(on_cells.labels) < 0.6 * raw
    assert on_pixels.solution.dual <= on_pixels.energy * (1 + 1e-6) <= 1.02 * on_cells.energy
