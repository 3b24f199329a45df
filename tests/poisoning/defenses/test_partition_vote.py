"""Partition vote: the parts, the votes, the certificate, and an attacker who tries every deletion."""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mithridate.core.data import ImageData
from mithridate.core.seeds import stream
from mithridate.core.sources import Digits
from mithridate.core.training import Fitted, Recipe
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.defenses.partition_vote import PartitionVote
from mithridate.poisoning.voting import Voting, content_hashes, vote_radius
from tests.poisoning.cases import CLASSES, NearestMean, equal, images_of, quick, three_classes

TRAIN, TEST = three_classes()


def part_of(image: Tensor, parts: int) -> int:
    digest = hashlib.sha256(bytes(image.flatten().tolist())).digest()
    return int.from_bytes(digest, "big") % parts


def small(count: int, seed: int = 0) -> ImageData:
    """2x2 images of two classes (of three) that overlap, so that a row can decide what a part answers."""
    labels = torch.arange(count) % 2
    return ImageData(images_of(labels, seed, channels=1, side=2, noise=25), labels, CLASSES)


def answers(fitted: Fitted, images: Tensor) -> tuple[Tensor, Tensor]:
    prediction = fitted.predictor(images)
    assert prediction.radius is not None
    return prediction.scores.argmax(2)[0], prediction.radius[0]


# --- parts -----------------------------------------------------------------------------------------------------------


def test_hashes_are_sha256_of_the_visible_8_bit_pixels() -> None:
    poisoned = TRAIN.replace(torch.tensor([5]), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).drop(torch.tensor([0]))
    digests = content_hashes(poisoned)
    assert len(digests) == 59
    assert digests[4] == hashlib.sha256(bytes(192)).digest()
    assert digests[0] == hashlib.sha256(bytes(TRAIN.images[1].flatten().tolist())).digest()


def test_rows_go_to_the_part_their_pixels_say_whatever_their_label_or_layout() -> None:
    shards = Voting(NearestMean(), 4)._split(TRAIN)
    for number, shard in enumerate(shards):
        assert all(part_of(TRAIN.images[row], 4) == number for row in shard.ids.tolist())
    relabelled = TRAIN.replace(TRAIN.ids, TRAIN.images, (TRAIN.labels + 1) % 3)
    stored = ImageData(TRAIN.images.contiguous(memory_format=torch.channels_last), TRAIN.labels, CLASSES)
    for other in (relabelled, stored):
        assert [shard.ids.tolist() for shard in Voting(NearestMean(), 4)._split(other)] == [
            s.ids.tolist() for s in shards
        ]


def test_equal_images_share_a_part_even_with_other_labels() -> None:
    images = TRAIN.images[:6].repeat(3, 1, 1, 1)
    data = ImageData(images, torch.arange(18) // 6, CLASSES)
    for shard in Voting(NearestMean(), 5)._split(data):
        rows = shard.ids.tolist()
        assert {row % 6 for row in rows} == {row % 6 for row in rows if row < 6}
        assert len(rows) % 3 == 0


def test_a_part_does_not_depend_on_where_its_rows_are_stored() -> None:
    order = torch.randperm(60, generator=stream(3, "order"))
    moved = ImageData(TRAIN.images[order], TRAIN.labels[order], CLASSES)
    for a, b in zip(Voting(NearestMean(), 4)._split(TRAIN), Voting(NearestMean(), 4)._split(moved), strict=True):
        assert torch.equal(a.pixels(a.ids), b.pixels(b.ids))
        assert torch.equal(a.labels_of(a.ids), b.labels_of(b.ids))


@pytest.mark.parametrize("change", ["delete", "insert", "relabel", "move"])
def test_one_row_moves_no_other_model_by_a_bit(change: str) -> None:
    recipe, parts, row = quick(epochs=1, batch_size=8), 4, 17
    data = {
        "delete": lambda: TRAIN.drop(torch.tensor([row])),
        "insert": lambda: ImageData(
            torch.cat([TEST.images[:1], TRAIN.images]), torch.cat([TEST.labels[:1], TRAIN.labels]), CLASSES
        ),
        "relabel": lambda: TRAIN.replace([row], TRAIN.images[row : row + 1], (TRAIN.labels[row : row + 1] + 1) % 3),
        "move": lambda: ImageData(TRAIN.images.flip(0), TRAIN.labels.flip(0), CLASSES),
    }[change]()
    touched = {
        "delete": {part_of(TRAIN.images[row], parts)},
        "insert": {part_of(TEST.images[0], parts)},
        "relabel": {part_of(TRAIN.images[row], parts)},
        "move": set(),
    }[change]
    before, after = (Voting(recipe, parts).fit([d], [0]).models for d in (TRAIN, data))
    for number, (a, b) in enumerate(zip(before, after, strict=True)):
        same = equal(list(a.state_dict().values()), list(b.state_dict().values()))
        assert same == (number not in touched)


# --- votes -----------------------------------------------------------------------------------------------------------


def test_votes_equal_a_slow_count() -> None:
    parts, images = 7, TEST.floats(TEST.ids)
    fitted = Voting(NearestMean(tilt=20.0), parts).fit([TRAIN, TRAIN.drop([0, 1, 2])], [3, 4])
    prediction = fitted.predictor(images)
    for member in range(2):
        for b in range(len(images)):
            count = [0, 0, 0]
            for model in fitted.models[member * parts : (member + 1) * parts]:
                count[int(model(images[b : b + 1]).argmax())] += 1
            assert prediction.scores[member, b].tolist() == count
    assert prediction.scores.shape == (2, 30, 3)
    assert not bool(prediction.abstained.any())
    assert prediction.scores.unique().numel() > 3, "the parts agree too well to show anything"


def test_radius_equals_the_worst_case_by_enumeration() -> None:
    """An attacker who controls r votes moves each to any class; the radius is the largest r that changes nothing."""

    def reachable(votes: tuple[int, ...], moves: int) -> set[tuple[int, ...]]:
        states = {votes}
        for _ in range(moves):
            states |= {
                tuple(v - (c == a) + (c == b) for c, v in enumerate(state))
                for state in states
                for a, b in itertools.permutations(range(3), 2)
                if state[a] > 0
            }
        return states

    def winner(votes: tuple[int, ...]) -> int:
        return votes.index(max(votes))

    for votes in [v for v in itertools.product(range(8), repeat=3) if sum(v) == 7]:
        exact = next(r for r in range(8) if any(winner(s) != winner(votes) for s in reachable(votes, r + 1)))
        assert int(vote_radius(torch.tensor(votes))) == exact
        assert int(vote_radius(torch.tensor(votes).float())) == exact


def test_parts_with_one_class_or_no_rows_answer_with_a_constant() -> None:
    rows = [row for row in range(60) if part_of(TRAIN.images[row], 3) == 1 or TRAIN.labels[row] == 2]
    data = TRAIN.select([row for row in rows if part_of(TRAIN.images[row], 3) != 0])
    fitted = Voting(quick(epochs=1), 3).fit([data], [0])
    images = TEST.floats(TEST.ids)
    with torch.no_grad():
        answered = [model(images).argmax(1).unique().tolist() for model in fitted.models]
    assert answered[0] == [0]  # empty
    assert answered[2] == [2]  # one class
    assert len(fitted.models) == 3
    assert fitted.predictor(images).scores.sum(2).unique().tolist() == [3.0]


def test_a_set_whose_parts_are_all_constant_still_predicts() -> None:
    data = small(3)
    fitted = Voting(quick(), 50).fit([data], [0])
    assert fitted.predictor(data.floats(data.ids)).scores[0].sum(1).tolist() == [50.0] * 3


def test_parts_that_abstain_cast_no_vote() -> None:
    class Guarded(NearestMean):
        def fit(self, *args, **kwargs) -> Fitted:
            fitted = NearestMean.fit(self, *args, **kwargs)

            def predict(images: Tensor):
                prediction = fitted.predictor(images)
                refused = prediction.abstained.clone()
                refused[0] = True
                return prediction._replace(abstained=refused)

            return fitted._replace(predictor=predict)

    assert Voting(Guarded(), 4).fit([TRAIN], [0]).predictor(TEST.floats(TEST.ids)).scores.sum(2).unique().tolist() == [
        3.0
    ]


def test_the_guarantee_names_both_radii_and_what_it_rests_on() -> None:
    (guarantee,) = PartitionVote(parts=9)(quick(epochs=1)).fit([TRAIN], [0]).guarantees
    assert "floor(r / 2) replaced rows" in guarantee.statement
    assert guarantee.values == {"parts": 9, "largest_radius": 4, "largest_replaced": 2}
    assert any("bit-exact" in assumption for assumption in guarantee.assumptions)
    assert any("9 parts" in assumption for assumption in guarantee.assumptions)


def test_fewer_than_two_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="parts is 1"):
        PartitionVote(parts=1)


# --- the certificate, by brute force ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("tilt", "seed"), [(0.0, 0), (0.0, 4), (0.1, 2)])
def test_no_deletion_of_r_rows_flips_a_certified_answer(tilt: float, seed: int) -> None:
    """Every set of one or two of 22 rows is deleted and the vote trained again from the rest."""
    data, learner = small(22, seed), Voting(NearestMean(tilt=tilt), 7)
    images = small(40, seed + 50).floats(torch.arange(40))
    answer, radius = answers(learner.fit([data], [seed]), images)
    assert int(radius.max()) >= 2, "too little is certified to test much"
    flipped_at = torch.full_like(radius, 99)
    for size in (1, 2):
        for rows in itertools.combinations(range(22), size):
            after, _ = answers(learner.fit([data.drop(list(rows))], [seed]), images)
            assert bool((after == answer)[radius >= size].all()), rows
            flipped_at = torch.where(after != answer, flipped_at.clamp(max=size), flipped_at)
    assert bool((flipped_at == radius + 1).any()), "no attack came close: the test could not fail"


@pytest.mark.parametrize("seed", range(3))
def test_no_mix_of_insertions_and_deletions_within_the_radius_flips_an_answer(seed: int) -> None:
    data, learner, chance = small(22, seed), Voting(NearestMean(tilt=0.3), 7), random.Random(seed)
    images = small(40, seed + 50).floats(torch.arange(40))
    answer, radius = answers(learner.fit([data], [seed]), images)
    flips = 0
    for _ in range(120):
        deleted = chance.sample(range(22), chance.randint(0, 2))
        kept = data.drop(deleted) if deleted else data
        count = chance.randint(0, 3)
        new = torch.randint(
            0, 256, (count, 1, 2, 2), dtype=torch.uint8, generator=stream(chance.randrange(10**6), "new")
        )
        labels = torch.tensor([chance.randrange(3) for _ in range(count)], dtype=torch.int64)
        changed = ImageData(
            torch.cat([new, kept.pixels(kept.ids)]), torch.cat([labels, kept.labels_of(kept.ids)]), CLASSES
        )
        after, _ = answers(learner.fit([changed], [seed]), images)
        assert bool((after == answer)[radius >= len(deleted) + count].all())
        flips += int((after != answer).sum())
    assert flips > 0


@pytest.mark.parametrize("seed", range(3))
def test_replacing_half_the_radius_of_rows_flips_nothing(seed: int) -> None:
    """This is what the toolkit's poisons do: pixels and labels of rows are replaced, so each counts twice."""
    data, learner = small(24, seed), Voting(NearestMean(), 9)
    images = small(40, seed + 50).floats(torch.arange(40))
    answer, radius = answers(learner.fit([data], [seed]), images)
    assert int(radius.max()) >= 2
    for draw in range(72):
        row = torch.tensor([draw % 24])
        new = torch.randint(0, 256, (1, 1, 2, 2), dtype=torch.uint8, generator=stream(seed, "new", draw))
        after, _ = answers(learner.fit([data.replace(row, new, torch.tensor([draw % 3]))], [seed]), images)
        assert bool((after == answer)[radius // 2 >= 1].all())


def test_a_certificate_of_trained_networks_holds_against_single_deletions() -> None:
    train, test = three_classes(36, 12, channels=1)
    learner = Voting(Recipe(epochs=5, batch_size=8, transforms=(), precision="fp32"), 3)
    images = test.floats(test.ids)
    answer, radius = answers(learner.fit([train], [0]), images)
    assert bool((radius >= 1).any())
    for row in range(0, 36, 4):
        after, _ = answers(learner.fit([train.drop([row])], [0]), images)
        assert bool((after == answer)[radius >= 1].all())


@pytest.mark.effect
def test_certified_answers_survive_a_real_attack_that_moves_the_votes() -> None:
    """BadNets replaces 2 of 1,000 digits, so answers with a radius of 4 or more may not move."""
    train, test = Digits().load()
    recipe = Recipe(epochs=10, batch_size=32, transforms=(), precision="fp32")
    learner, images = PartitionVote(parts=20)(recipe), test.floats(test.ids)
    task = replace(BadNets.threat, budget=0.002).draw(train, test, 0)
    poison = BadNets().craft(task, recipe, 0)
    task.check(poison)
    clean = learner.fit([train], [0]).predictor(images)
    poisoned = learner.fit([poison.apply(train)], [0]).predictor(images)
    assert clean.radius is not None
    certified = clean.radius // 2 >= len(poison)
    assert float(certified.float().mean()) > 0.2
    assert bool((clean.scores.argmax(2) == poisoned.scores.argmax(2))[certified].all())
    assert bool((clean.scores != poisoned.scores).any()), "the attack moved no vote"
    assert int((clean.scores - poisoned.scores).abs().sum(2).max()) <= 2 * 2 * len(poison)
    right = clean.scores.argmax(2)[0] == test.labels_of(test.ids)
    assert float(right.float().mean()) > 0.7
