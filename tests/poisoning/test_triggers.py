"""Triggers: patches against slices by hand, pictures against Pillow, blends by formula, warps against scipy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates
from torch import Tensor

from mithridate.core.balls import Linf, Patch, to_bytes, to_floats
from mithridate.core.moved import Moved
from mithridate.core.schema import choices, from_json, identity, parse, to_json
from mithridate.core.seeds import stream
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.triggers import BlendTrigger, ImageTrigger, PatchTrigger, Trigger, WarpTrigger, carried

CORNERS = {
    "top-left": (slice(0, 2), slice(0, 2)),
    "top-right": (slice(0, 2), slice(6, 8)),
    "bottom-left": (slice(6, 8), slice(0, 2)),
    "bottom-right": (slice(6, 8), slice(6, 8)),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_the_patch_is_in_its_corner_and_nowhere_else(corner) -> None:
    images = torch.full((5, 3, 8, 8), 0.5)
    marked = PatchTrigger(corner=corner, pattern="white")(images)
    expected = images.clone()
    expected[:, :, *CORNERS[corner]] = 1.0
    assert torch.equal(marked, expected)
    assert bool((images == 0.5).all()), "the input was changed"


def test_the_checkerboard_starts_white_and_alternates() -> None:
    patch = PatchTrigger(share=0.5)(torch.full((1, 1, 8, 8), 0.5))[0, 0, 4:, 4:]
    assert patch.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]


def test_the_random_pattern_comes_from_its_seed() -> None:
    images = torch.full((2, 3, 32, 32), 0.5)
    first, again, other = (PatchTrigger(pattern="random", seed=seed)(images) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert set(first[:, :, 24:, 24:].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("share", "shape", "pixels"),
    [(0.25, (3, 32, 32), 64), (0.01, (1, 8, 8), 4), (0.5, (1, 8, 20), 16), (1.0, (1, 4, 6), 16)],
)
def test_the_area_is_what_is_touched(share: float, shape: tuple[int, int, int], pixels: int) -> None:
    trigger = PatchTrigger(share=share, pattern="white")
    touched = int((trigger(torch.zeros(1, *shape)) > 0).any(1).sum())
    assert touched == pixels
    assert trigger.area(shape) == pytest.approx(pixels / (shape[1] * shape[2]))


@pytest.mark.parametrize("pattern", ["checker", "white", "random"])
def test_a_triggered_8_bit_image_stays_an_8_bit_image(pattern) -> None:
    images = torch.randint(0, 256, (3, 3, 16, 16)) / 255
    marked = PatchTrigger(pattern=pattern)(images) * 255
    assert torch.allclose(marked, marked.round(), atol=1e-4)


def test_a_share_beyond_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share is 4; it is a fraction of the image side"):
        PatchTrigger(share=4)


# --- anywhere --------------------------------------------------------------------------------------------------------


def drawn(count: int, side: int = 8, channels: int = 3, seed: int = 0) -> Tensor:
    """8-bit images as floats."""
    bytes_ = torch.randint(0, 256, (count, channels, side, side), generator=stream(seed, "images"))
    return to_floats(bytes_.to(torch.uint8))


def corners(marked: Tensor, images: Tensor, side: int) -> list[tuple[int, int]]:
    """First row and column of each patch, after making sure that nothing else changed."""
    found = []
    for one, clean in zip(marked, images, strict=True):
        places = (one != clean).any(0).nonzero()
        top, left = places.amin(0).tolist()
        outside = one.clone()
        outside[:, top : top + side, left : left + side] = clean[:, top : top + side, left : left + side]
        assert torch.equal(outside, clean)
        found.append((top, left))
    return found


def test_a_patch_anywhere_is_always_at_the_same_place_of_an_image() -> None:
    images, trigger = drawn(6), PatchTrigger(corner="anywhere")
    together = trigger(images)
    assert torch.equal(together, torch.cat([trigger(one[None]) for one in images]))
    assert torch.equal(together.flip(0), trigger(images.flip(0)))
    assert torch.equal(to_bytes(together), to_bytes(trigger((images + 0.3 / 255).clamp(0, 1))))
    assert not torch.equal(together, PatchTrigger(corner="anywhere", seed=1)(images))


def test_places_are_spread_evenly() -> None:
    images = torch.full((4000, 1, 8, 8), 0.5)
    images[:, 0, 4, 4] = torch.arange(4000) % 256 / 255
    images[:, 0, 3, 2] = torch.arange(4000) // 256 / 255
    found = np.array(corners(PatchTrigger(corner="anywhere", pattern="white")(images), images, 2))
    counts = np.zeros((7, 7))
    np.add.at(counts, (found[:, 0], found[:, 1]), 1)
    expected = 4000 / 49
    assert ((counts - expected) ** 2 / expected).sum() < 100  # 48 degrees of freedom: more is one case in 10,000


# --- limits ----------------------------------------------------------------------------------------------------------


def sticker(home: Path) -> Path:
    picture = Image.new("RGBA", (20, 10), (255, 0, 0, 128))
    picture.paste((0, 255, 0, 255), (0, 0, 10, 10))
    picture.save(home / "my sticker.png")
    return home / "my sticker.png"


EVERY: dict[str, Callable[[Path], Trigger]] = {
    "patch": lambda home: PatchTrigger(),
    "patch anywhere": lambda home: PatchTrigger(corner="anywhere", share=0.3),
    "large patch": lambda home: PatchTrigger(share=0.45),
    "noise": lambda home: BlendTrigger(),
    "faint noise": lambda home: BlendTrigger(alpha=0.0213),
    "blended picture": lambda home: BlendTrigger(alpha=0.25, pattern=sticker(home)),
    "warp": lambda home: WarpTrigger(),
    "strong warp": lambda home: WarpTrigger(grid=3, strength=3, seed=4),
    "sticker": lambda home: ImageTrigger(path=sticker(home), share=0.5),
    "sticker anywhere": lambda home: ImageTrigger(path=sticker(home), corner="anywhere"),
}
every = pytest.mark.parametrize("name", EVERY)


def test_every_trigger_is_tested(tmp_path: Path) -> None:
    assert {type(make(tmp_path)) for make in EVERY.values()} == set(choices(Trigger).values())


@every
@pytest.mark.parametrize(("side", "channels"), [(8, 3), (8, 1), (12, 3), (19, 3), (32, 3)])
def test_a_trigger_respects_its_limit_in_8_bits(name: str, side: int, channels: int, tmp_path: Path) -> None:
    trigger, images = EVERY[name](tmp_path), drawn(40, side, channels)
    images[0], images[1] = 0, 1
    copy = images.clone()
    marked = trigger(images)
    assert torch.equal(images, copy)
    assert torch.equal(to_floats(to_bytes(marked)), marked)
    assert trigger.limit().contains(images, marked).all()
    touched = (marked != images).any(1).float().mean((1, 2))
    assert float(touched.max()) <= trigger.area((channels, side, side)) + 1e-6
    assert float(touched[2:].min()) > 0
    assert torch.equal(to_floats(trigger.limit().rounded(images, marked)), marked)  # what is trained on is what is seen


@every
def test_settings_round_trip_and_are_content_addressed(name: str, tmp_path: Path) -> None:
    trigger = EVERY[name](tmp_path)
    assert from_json(to_json(trigger), Trigger) == trigger
    assert from_json(to_json(BadNets(trigger=trigger)), Attack) == BadNets(trigger=trigger)
    if isinstance(trigger, ImageTrigger):
        other = tmp_path / "copy.png"
        other.write_bytes(trigger.path.read_bytes())
        assert identity(ImageTrigger(path=other, share=0.5, corner=trigger.corner)) == identity(
            ImageTrigger(path=trigger.path, share=0.5, corner=trigger.corner)
        )


def test_triggers_are_typed_inside_attacks() -> None:
    text = "badnets:trigger=image-trigger(path=~/my pictures/a(1).png,share=1/8,corner=anywhere),clean_label=true"
    attack = parse(Attack, text)
    path = Path("~/my pictures/a(1).png").expanduser()
    trigger = ImageTrigger(path=path, share=0.125, corner="anywhere")
    assert attack == BadNets(trigger=trigger, clean_label=True)
    blend = parse(Attack, "badnets:trigger=blend-trigger(alpha=0.1,pattern=kitty.png)")
    assert blend == BadNets(trigger=BlendTrigger(alpha=0.1, pattern=Path("kitty.png")))
    assert parse(Trigger, "warp-trigger:grid=5") == WarpTrigger(grid=5)


def test_goals_get_the_limit_of_a_trigger() -> None:
    assert carried(PatchTrigger()) == Backdoor()
    assert carried(PatchTrigger(share=0.5), Backdoor(sources="drawn")).area == pytest.approx(0.5625**2)
    assert carried(WarpTrigger()).limit == WarpTrigger().limit()
    assert PatchTrigger().limit() == Patch(area=0.1)
    assert BlendTrigger(alpha=0.1).limit() == Linf(eps=0.1)


# --- pictures, blends, warps -----------------------------------------------------------------------------------------


def test_a_picture_is_pasted_by_its_opacity(tmp_path: Path) -> None:
    images = drawn(3, 16)
    marked = ImageTrigger(path=sticker(tmp_path), share=0.5, corner="top-right")(images)
    small = np.asarray(Image.open(tmp_path / "my sticker.png").resize((8, 4), Image.Resampling.BICUBIC)) / 255
    expected = images.numpy().transpose(0, 2, 3, 1).copy()
    part = expected[:, :4, 8:]
    part[:] = (1 - small[..., 3:]) * part + small[..., 3:] * small[..., :3]
    np.testing.assert_allclose(marked.numpy().transpose(0, 2, 3, 1), np.rint(expected * 255) / 255, atol=1.01 / 255)
    assert torch.equal(marked[:, :, 4:], images[:, :, 4:])
    assert torch.equal(marked[:, :, :, :8], images[:, :, :, :8])


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png is not there"):
        ImageTrigger(path=tmp_path / "gone.png")(drawn(1))
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        BlendTrigger(pattern=tmp_path / "gone.png")(drawn(1))


@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.2])
def test_a_blend_is_the_formula_next_to_8_bits(alpha: float) -> None:
    images = drawn(5, 16)
    pattern = BlendTrigger(alpha=1)(images[:1])[0].double()
    assert 0.4 < float(pattern.mean()) < 0.6
    exact = (1 - alpha) * images.double() + alpha * pattern
    marked = BlendTrigger(alpha=alpha)(images).double()
    assert float((marked - exact).abs().max()) * 255 < 1
    assert float(((marked - exact).abs() * 255 <= 0.5 + 1e-3).double().mean()) > 0.8
    assert not torch.equal(BlendTrigger(alpha=alpha, seed=1)(images).double(), marked)


def test_a_blended_picture_fills_the_image(tmp_path: Path) -> None:
    Image.new("L", (5, 7), 200).save(tmp_path / "grey.png")
    marked = BlendTrigger(alpha=0.25, pattern=tmp_path / "grey.png")(torch.zeros(1, 3, 8, 8))
    assert (marked * 255).unique().tolist() == [50.0]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (10, 17)])
def test_a_warp_is_what_scipy_makes_of_its_field(height: int, width: int) -> None:
    images, trigger = torch.rand(2, 1, height, width, generator=stream(3)), WarpTrigger(strength=1.5, seed=2)
    images = to_floats(to_bytes(images))
    field = trigger.displacements(height, width).double().numpy()
    y, x = np.mgrid[:height, :width].astype(float)
    places = np.stack([(y + field[0]).clip(0, height - 1), (x + field[1]).clip(0, width - 1)])
    for found, image in zip(trigger(images), images, strict=True):
        expected = map_coordinates(image[0].double().numpy(), places, order=1, mode="nearest")
        np.testing.assert_allclose(found[0].numpy(), expected, atol=1.01 / 255)


def test_a_warp_is_as_long_as_it_says() -> None:
    for seed in range(5):
        trigger = WarpTrigger(strength=0.5, seed=seed)
        limit = trigger.limit()
        assert isinstance(limit, Moved)
        furthest = max(float(trigger.displacements(side, side).abs().max()) for side in (8, 32, 64, 100))
        assert limit.pixels - 0.1 - 1e-6 <= furthest <= limit.pixels
        corners = trigger.displacements(4, 4)  # the control points themselves
        assert float(corners.abs().mean()) == pytest.approx(0.25, rel=1e-4)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha is 20; it is the opacity"):
        BlendTrigger(alpha=20)
    with pytest.raises(ValueError, match="grid is 1"):
        WarpTrigger(grid=1)
    with pytest.raises(ValueError, match="strength is 0"):
        WarpTrigger(strength=0)
    with pytest.raises(ValueError, match="share is 25"):
        ImageTrigger(path=Path("a.png"), share=25)
