"""Training code of the user's own in an audit: it is called once with few images, and what fits around it is kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mithridate.core.learners import TrainFunction, TrainingImages, learner
from mithridate.core.sources import Arrays
from mithridate.experiments import own_code
from mithridate.experiments.own_code import Rehearsed, fitting
from mithridate.experiments.panels import plan_audit
from mithridate.experiments.plan import plan
from mithridate.experiments.presets import digits_audit, small_audit
from mithridate.experiments.rehearsal import rehearse
from mithridate.experiments.trial import WRAPPING, Trial
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from tests.core.training_cases import data

SEEN: list[list[int]] = []


def net(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def train(dataset: TrainingImages, seed: int) -> nn.Module:
    SEEN.append([label for _, label in dataset])
    return net(len(dataset.classes))


def fails(dataset: TrainingImages, seed: int) -> nn.Module:
    helper = {"lr": 0.1}
    return helper["momentum"]  # type: ignore[return-value]


class Code:
    """Training code that is an object."""

    def __call__(self, dataset: TrainingImages, seed: int) -> nn.Module:
        raise OSError("no space left")


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


def trial(how: TrainFunction, images: Arrays | None = None, **settings: object) -> Trial:
    (first, *_) = plan_audit(fitting(small_audit(), how), images or Arrays(data(), data(1)))
    return Trial(**(vars(first) | {"defenses": ()} | settings))  # type: ignore[arg-type]


def test_the_images_of_the_first_call_are_spread_over_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_code, "REHEARSED", 20)
    sorted_by_class = data().select(data().labels.argsort(stable=True))
    found = Rehearsed(learner(train), sorted_by_class)
    assert SEEN == [[0] * 7 + [1] * 7 + [2] * 6]
    assert found.seconds > 0
    assert len(found.fit([data()] * 3, [1, 2, 3]).models) == 3
    assert len(SEEN) == 1
    with pytest.raises(TypeError, match="trains with code of its own, so nobody can follow"):
        found.begin([data()], [0])


def test_few_images_are_all_given() -> None:
    Rehearsed(learner(train), data())
    assert len(SEEN[0]) == 60


def test_what_the_code_raises_is_shown_with_its_line() -> None:
    with pytest.raises(ValueError, match=r"fails, called with 60 .*test_own_code.py, line \d+ in fails, raised KeyErr"):
        Rehearsed(learner(fails), data())
    with pytest.raises(ValueError, match=r"Code, called with 60 .* raised OSError: no space left"):
        Rehearsed(learner(Code()), data())
    with pytest.raises(TypeError, match="returned NoneType"):
        Rehearsed(learner(lambda dataset, seed: None), data())  # type: ignore[arg-type, return-value]


def test_code_is_rehearsed_once_for_all_trials_and_attacks_take_a_step_through_it() -> None:
    images = Arrays(data(), data(1))
    brew = trial(learner(train), images, attack=WitchesBrew(surrogates=3), threat=WitchesBrew.threat)
    rehearse([brew, trial(learner(train), images), trial(learner(train), images, seed=5)])
    assert len(SEEN) == 1

    class Blind(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 3)

    with pytest.raises((ValueError, RuntimeError)):
        rehearse([trial(learner(lambda dataset, seed: Blind()), attack=WitchesBrew())])


def test_a_plan_estimates_the_time_of_code() -> None:
    found = plan([trial(learner(train), attack=BadNets(), threat=BadNets.threat)])
    assert found.minutes is not None
    assert found.minutes > 0


def test_what_fits_around_code_is_from_scratch_and_wraps() -> None:
    how = learner(train)
    panels = fitting([*digits_audit(), *small_audit()], how)
    assert [type(panel.attack) for panel in panels] == [BadNets, WitchesBrew, WitchesBrew]
    assert all(panel.scenario.learner == how and panel.scenario.pretrain is None for panel in panels)
    assert [len(panel.defenses) for panel in panels] == [2, 0, 1]
    assert {one.kind for panel in panels for stack in panel.defenses for one in stack} <= set(WRAPPING)
