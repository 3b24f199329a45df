"""Noisy means against arithmetic by hand, and the guarantee: only where it is true, with the numbers it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from mithridate.core.batch import RowRule
from mithridate.core.data import ImageData
from mithridate.core.privacy import mixing_epsilon, shuffled_epsilon
from mithridate.core.sampling import Groups, Poisson, Shuffled
from mithridate.core.seeds import stream
from mithridate.core.training import Recipe
from mithridate.core.transforms import Adversarial, Flip, Mixup, Noise, NoisyMix
from tests.core.training_cases import data, digest, quick
from tests.core.transform_cases import MODEL, batch


def test_groups_are_averaged_with_their_labels() -> None:
    given = batch(6, (1, 2, 2))
    mixed = NoisyMix(k=3, scale=0.0, grouped=True)(given, MODEL, stream(0))
    for number in range(2):
        part = slice(3 * number, 3 * number + 3)
        torch.testing.assert_close(mixed.images[number], given.images[part].mean(0))
        torch.testing.assert_close(mixed.targets[number], given.targets[part].mean(0))
    assert mixed.rows.tolist() == [100, 103]
    assert mixed.progress == given.progress


def test_a_mixture_inside_a_batch_gives_every_image_the_same_weight() -> None:
    """Targets are the mixing matrix: its rows and columns add up to one, so no image counts for more than one."""
    given = batch(8, (1, 2, 2))
    mixed = NoisyMix(k=4, scale=0.0)(given, MODEL, stream(0))
    torch.testing.assert_close(mixed.images, torch.einsum("ij,jchw->ichw", mixed.targets, given.images))
    torch.testing.assert_close(mixed.targets.sum(0), torch.ones(8))
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(8))
    assert set((4 * mixed.targets).unique().tolist()) <= {0, 1, 2, 3, 4}
    assert bool((mixed.targets.diagonal() >= 0.25).all())


def test_noise_is_laplace_and_the_result_stays_in_the_range_of_pixels() -> None:
    grey = batch(200, (1, 8, 8))._replace(images=torch.full((200, 1, 8, 8), 0.5))
    noise = NoisyMix(k=2, scale=0.02)(grey, MODEL, stream(1)).images - 0.5
    assert stats.kstest(noise.flatten().numpy(), stats.laplace(scale=0.02).cdf).pvalue > 0.001
    wide = NoisyMix(k=2, scale=1.0)(grey, MODEL, stream(1)).images
    assert (wide.min().item(), wide.max().item()) == (0.0, 1.0)


def test_pixels_are_clipped_before_they_are_mixed() -> None:
    """Otherwise one image far outside moves a mean by more than the diameter that is counted."""
    given = batch(2, (1, 2, 2))._replace(images=torch.tensor([50.0, -50.0])[:, None, None, None].expand(2, 1, 2, 2))
    mixed = NoisyMix(k=2, scale=0.0, grouped=True)(given, MODEL, stream(0))
    assert torch.equal(mixed.images, torch.full((1, 1, 2, 2), 0.5))


def test_what_is_no_whole_number_of_groups_is_refused() -> None:
    with pytest.raises(ValueError, match=r"each 4 neighbours.* 6 images; draw batches by Groups\(k=4\)"):
        NoisyMix(grouped=True)(batch(6), MODEL, stream(0))
    with pytest.raises(ValueError, match="k is 0"):
        NoisyMix(k=0)
    with pytest.raises(ValueError, match="scale is -1"):
        NoisyMix(scale=-1)


# --- the guarantee ---------------------------------------------------------------------------------------------------


def grouped(**settings: object) -> Recipe:
    mix = NoisyMix(k=4, scale=0.5, grouped=True)
    return quick(**({"transforms": (Flip(), mix), "sampler": Groups(k=4), "normalize": "fixed"} | settings))


def shuffled(**settings: object) -> Recipe:
    return grouped(**({"transforms": (Flip(), NoisyMix(k=4, scale=0.5)), "sampler": Shuffled()} | settings))


def uneven() -> ImageData:
    """Classes of 30, 20 and 9 rows, and one that has none."""
    given = data(count=59)
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 9)
    return ImageData(given.images, labels, (*given.classes, "dog"))


def test_groups_are_counted_inside_the_smallest_class() -> None:
    """2 epochs of 4 batches of 16 mixtures, all of them full, of 64 pixels in [0, 1]."""
    (claim,) = grouped().guarantees([uneven()])
    assert claim.values == {
        "samples": 128.0, "mixed": 4.0, "scale": 0.5, "diameter": 64.0, "smallest_class": 9.0,
        "epsilon_per_sample": mixing_epsilon(1, 4, 0.5, 64.0, 9), "epsilon": mixing_epsilon(128, 4, 0.5, 64.0, 9),
    }  # fmt: skip
    assert claim.values["epsilon"] == pytest.approx(128 * math.log(1 + 4 / 9 * math.expm1(64 / (4 * 0.5))))
    assert "one image" in claim.statement
    assert "same label" in claim.statement
    said = " ".join(claim.assumptions)
    expected = ("label kept", "labels are public", "64 apart", "9 in the smallest", "seed", "not explained")
    assert [words for words in expected if words not in said] == []


def test_shuffled_batches_are_counted_by_epochs() -> None:
    (claim,) = shuffled(epochs=3).guarantees([uneven()])
    assert claim.values == {
        "samples": 177.0, "mixed": 4.0, "scale": 0.5, "diameter": 64.0,
        "epsilon_per_sample": 128.0, "epsilon": shuffled_epsilon(3, 0.5, 64.0),
    }  # fmt: skip
    assert claim.values["epsilon"] == 3 * 64 / 0.5


def test_visible_rows_count_and_the_weakest_of_several_data_sets_is_claimed() -> None:
    whole, part = uneven(), uneven().drop(range(50, 57))
    claims = [grouped().guarantees([one])[0] for one in (whole, part)]
    assert [claim.values["smallest_class"] for claim in claims] == [9.0, 2.0]
    assert grouped().guarantees([whole, part]) == (claims[1],)
    assert claims[1].values["epsilon"] > claims[0].values["epsilon"]


@dataclass(frozen=True, kw_only=True)
class Everything(RowRule):
    """Keeps all rows, having seen them."""

    def __call__(self, progress: float, model: nn.Module, data: ImageData, rng: torch.Generator) -> Tensor:
        return data.ids


MIX = NoisyMix(k=4, scale=0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"normalize": "data"},
        {"row_rule": Everything()},
        {"transforms": (Mixup(), MIX)},
        {"transforms": (NoisyMix(k=2, scale=0.5), MIX), "normalize": "data"},
        {"transforms": (replace(MIX, scale=0.0),)},
        {"sampler": Groups(k=4)},
        {"sampler": Poisson()},
    ],
)
def test_nothing_is_claimed_where_more_than_the_mixture_is_seen(change: dict) -> None:
    assert shuffled(**change).guarantees([uneven()]) == ()


def test_groups_of_another_size_or_drawn_otherwise_claim_nothing() -> None:
    assert grouped(sampler=Groups(k=8)).guarantees([uneven()]) == ()
    assert grouped(sampler=Shuffled()).guarantees([uneven()]) == ()


def test_what_looks_at_one_image_before_or_at_the_mixture_after_changes_nothing() -> None:
    plain = shuffled().guarantees([uneven()])
    before = shuffled(transforms=(Noise(), Adversarial(), MIX)).guarantees([uneven()])
    after = shuffled(transforms=(MIX, Mixup(), Adversarial())).guarantees([uneven()])
    assert plain == before == after
    assert len(plain) == 1


@pytest.mark.parametrize("make", [grouped, shuffled])
def test_a_fit_carries_the_claim(make) -> None:
    fitted = make(epochs=1).fit([data()], [0])
    assert fitted.guarantees == make(epochs=1).guarantees([data()])
    assert len(fitted.guarantees) == 1
    again = make(epochs=1).fit([data()], [0])
    assert digest(fitted.models[0]) == digest(again.models[0])
    assert np.isfinite(fitted.history["loss"][0][0])
