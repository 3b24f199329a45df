"""STRIP against loops over single images, planted entropies with a known distribution, and a backdoor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.seeds import stream
from mithridate.core.states import EVALUATION_BATCH
from mithridate.core.training import Prediction, Predictor
from mithridate.poisoning.defenses.strip import Strip, mean_entropy, shares_of
from mithridate.poisoning.voting import Voting
from tests.poisoning.cases import NearestMean, quick, three_classes
from tests.poisoning.defenses.digits import backdoored

TRAIN, TEST = three_classes()


def answering(scores: Tensor) -> Prediction:
    return Prediction(scores, torch.zeros(scores.shape[:2], dtype=torch.bool), None)


# --- entropies -------------------------------------------------------------------------------------------------------


def entropy_of(predictor: Predictor, member: int, image: np.ndarray) -> float:
    """Entropy of the softmax of one prediction, in numpy."""
    logits = predictor(torch.from_numpy(image).float()[None]).scores[member, 0].double().numpy()
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    return -float((p * np.log(p)).sum())


@pytest.mark.parametrize(
    ("blend", "blended"), [("sum", lambda a, b: np.minimum(a + b, 1)), ("mean", lambda a, b: 0.5 * a + 0.5 * b)]
)
def test_what_it_refuses_equals_a_loop_over_images_and_overlays(blend: str, blended) -> None:
    predictor = quick().fit([TRAIN, TRAIN], [0, 1]).predictor
    rejects = Strip(overlays=7, blend=blend, false_alarms=0.3).calibrated(predictor, TRAIN, seed=4)
    order = torch.randperm(60, generator=stream(4, "strip"))
    overlays, held = TRAIN.floats(order[:7]).numpy(), TRAIN.floats(order[7:]).numpy()
    images = TEST.floats(torch.arange(12))
    refused = 0
    for member in range(2):

        def mean(image: np.ndarray, member: int = member) -> float:
            return float(np.mean([entropy_of(predictor, member, blended(image, overlay)) for overlay in overlays]))

        known = [mean(image) for image in held]
        threshold = np.mean(known) - 0.5244005 * np.std(known, ddof=1)
        found = [mean(image) for image in images.numpy()]
        clear = [abs(entropy - threshold) > 1e-4 for entropy in found]
        answers = rejects(images)[member].tolist()
        for entropy, answer, sure in zip(found, answers, clear, strict=True):
            assert answer == (entropy < threshold) or not sure
        refused += sum(answers)
    assert 0 < refused < 24


def test_mean_entropy_is_of_each_images_own_predictions() -> None:
    probabilities = torch.rand(2, 6, 4, generator=stream(0, "p")).softmax(-1)
    found = mean_entropy(probabilities, 3)
    for member in range(2):
        for image in range(2):
            rows = probabilities[member, 3 * image : 3 * image + 3].double().numpy()
            assert float(found[member, image]) == pytest.approx(-(rows * np.log(rows)).sum(1).mean(), abs=1e-6)


def test_scores_become_probabilities_by_what_they_are() -> None:
    votes = torch.tensor([[[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    assert shares_of(votes)(votes)[0].tolist() == [[0.75, 0.25, 0.0], pytest.approx([1 / 3] * 3)]
    probabilities = torch.tensor([[[0.2, 0.8], [0.5, 0.5]]])
    torch.testing.assert_close(shares_of(probabilities)(probabilities), probabilities)
    for logits in (torch.tensor([[[1.5, -0.5]]]), torch.tensor([[[2.5, 3.0]]])):
        torch.testing.assert_close(shares_of(logits)(logits), logits.softmax(-1))


# --- the threshold ---------------------------------------------------------------------------------------------------

GRID = np.linspace(1e-9, 0.5, 20001)
ENTROPY = -(GRID * np.log(GRID) + (1 - GRID) * np.log1p(-GRID))


def planted(images: Tensor) -> Prediction:
    """Two classes; the entropy of a prediction, in nats, is the mean brightness of its image."""
    p = torch.from_numpy(np.interp(images.double().mean((1, 2, 3)).numpy(), ENTROPY, GRID))
    return answering(torch.stack([p, 1 - p], 1)[None])


def normal(count: int, name: str) -> ImageData:
    """Images of one brightness each, normally distributed: mean 0.35, deviation 0.05."""
    brightness = 0.35 + 0.05 * torch.randn(count, 1, 1, 1, generator=stream(0, name))
    images = (brightness.clamp(0.05, 0.65) * 255).round().to(torch.uint8).expand(-1, 1, 8, 8).contiguous()
    return ImageData(images, torch.arange(count) % 2, ("a", "b"))


@pytest.mark.parametrize("false_alarms", [0.01, 0.2])
def test_the_threshold_refuses_the_asked_for_share_of_clean_images(false_alarms: float) -> None:
    strip = Strip(overlays=50, blend="mean", false_alarms=false_alarms, calibration=2000)
    rejects = strip.calibrated(planted, normal(2050, "clean"), seed=1)
    fresh = normal(8000, "fresh")
    share = float(rejects(fresh.floats(fresh.ids)).float().mean())
    assert 0.7 * false_alarms < share < 1.4 * false_alarms


def test_the_threshold_is_the_quantile_of_a_normal_fit() -> None:
    """The entropy of a blend is here half the brightness of the image plus a constant."""
    clean = normal(300, "clean")
    rejects = Strip(overlays=100, blend="mean", false_alarms=0.05).calibrated(planted, clean, seed=2)
    order = torch.randperm(300, generator=stream(2, "strip"))
    brightness = clean.floats(clean.ids).mean((1, 2, 3)).double().numpy()
    overlay, held = brightness[order[:100]].mean(), brightness[order[100:]]
    entropies = (held + overlay) / 2
    threshold = entropies.mean() - 1.6448536 * entropies.std(ddof=1)
    grid = torch.arange(20, 160).to(torch.uint8)
    shown = (grid.float() / 255)[:, None, None, None].expand(-1, 1, 8, 8)
    expected = (grid.double().numpy() / 255 + overlay) / 2
    clear = np.abs(expected - threshold) > 1e-4
    assert (rejects(shown)[0].numpy() == (expected < threshold))[clear].all()
    assert 0 < int(rejects(shown).sum()) < 140


def test_every_model_has_a_threshold_of_its_own() -> None:
    def two(images: Tensor) -> Prediction:
        return answering(torch.cat([planted(images).scores, planted(0.5 * images).scores]))

    clean = normal(500, "clean")
    both = Strip(overlays=20, blend="mean").calibrated(two, clean, seed=3)(clean.floats(clean.ids))
    first = Strip(overlays=20, blend="mean").calibrated(planted, clean, seed=3)(clean.floats(clean.ids))
    assert both.shape == (2, 500)
    assert torch.equal(both[:1], first)
    assert 0 < int(both[1].sum()) < 25


def test_predictions_are_asked_for_in_bounded_batches() -> None:
    sizes: list[int] = []

    def counted(images: Tensor) -> Prediction:
        sizes.append(len(images))
        return planted(images)

    clean = normal(400, "clean")
    rejects = Strip(overlays=150).calibrated(counted, clean, seed=0)
    assert rejects(clean.floats(clean.ids)).shape == (1, 400)
    assert max(sizes) <= EVALUATION_BATCH
    assert sum(sizes) == 250 + 250 * 150 + 400 * 150


def test_few_clean_images_are_shared_between_overlays_and_threshold() -> None:
    seen: list[int] = []

    def counted(images: Tensor) -> Prediction:
        seen.append(len(images))
        return planted(images)

    Strip(overlays=100).calibrated(counted, normal(10, "clean"), seed=0)
    assert seen == [5, 25]
    with pytest.raises(ValueError, match="strip has 3 clean images; it needs 4 or more"):
        Strip().calibrated(planted, normal(3, "clean"), seed=0)


# --- as a defence ----------------------------------------------------------------------------------------------------


def test_it_guards_a_vote_by_the_shares_of_its_votes() -> None:
    fitted = Strip(overlays=5)(Voting(NearestMean(), 3)).fit([TRAIN], [0])
    answer = fitted.predictor(TEST.floats(TEST.ids))
    assert answer.scores.sum(2).eq(3).all()
    assert answer.abstained.shape == (1, 30)


def test_trusted_rows_take_the_place_of_the_training_rows() -> None:
    images = TEST.floats(TEST.ids)
    strip = Strip(overlays=10, false_alarms=0.3)(quick())
    answers = [strip.fit([TRAIN], [0], trusted=trusted).predictor(images) for trusted in (None, TEST, TEST)]
    assert torch.equal(answers[0].scores, answers[1].scores)
    assert not torch.equal(answers[0].abstained, answers[1].abstained)
    assert torch.equal(answers[1].abstained, answers[2].abstained)


def test_an_adaptive_attacker_crafts_through_the_learner_itself() -> None:
    recipe = quick()
    assert Strip().seen_by_attacker(recipe) is recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlays": 0}, "overlays is 0"),
        ({"blend": "product"}, "blend is 'product'; use one of sum, mean"),
        ({"false_alarms": 1}, r"false_alarms is 1; it is a fraction, so use 0\.01"),
        ({"calibration": 1}, "calibration is 1"),
    ],
)
def test_wrong_settings_are_refused_before_any_training(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Strip(**settings)


@pytest.mark.effect
def test_triggered_images_are_refused_far_more_often_than_clean_ones() -> None:
    """Fifty marked digits of 900, so that the trigger works alone; a hundred clean rows to calibrate on."""
    plain, guarded, halved = backdoored(
        [lambda recipe: recipe, Strip(), Strip(blend="mean")], seeds=4, poisons=50, trusted=100
    )
    assert np.mean(plain.success) > 0.8
    assert np.mean(guarded.detected) > 0.3
    assert np.mean(guarded.detected) > 5 * np.mean(guarded.false_alarms)
    assert np.mean(guarded.success) < np.mean(plain.success) - 0.3
    assert np.mean(halved.detected) < 0.3, "a trigger of half its strength is not noticed"
