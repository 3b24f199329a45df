"""Every choice of every family: it is a frozen setting, it survives JSON, and people can type its name."""

from __future__ import annotations

import dataclasses
import inspect
import pickle

import pytest

from mithridate.core.balls import Ball
from mithridate.core.batch import BatchTransform, GradientRule, RowRule, Sampler
from mithridate.core.schedules import Schedule
from mithridate.core.schema import Choice, choices, from_json, identity, name_of, parse, resumable, to_json
from mithridate.core.sources import Arrays, DataSource
from mithridate.core.updates import Update
from mithridate.lifting.discretisations import Discretisation
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.defense import Defense
from mithridate.poisoning.goals import Goal
from mithridate.poisoning.triggers import Trigger

FAMILIES = (
    Attack,
    Ball,
    BatchTransform,
    DataSource,
    Defense,
    Discretisation,
    Goal,
    GradientRule,
    RowRule,
    Sampler,
    Schedule,
    Trigger,
    Update,
)
NEEDED = {
    "balls": "linf(eps=1/255)+patch(area=0.1)",
    "datasets": "tests.core.image_files:torch_pair",
    "eps": "8/255",
    "name": "owner/name",
    "path": "data",
}
"""Settings without a default, as people type them."""
MEMBERS = [(family, name) for family in FAMILIES for name, cls in choices(family).items() if cls is not Arrays]
every_choice = pytest.mark.parametrize("family, name", MEMBERS, ids=lambda value: getattr(value, "__name__", value))


def typed(family: type[Choice], name: str) -> str:
    """The choice as it is typed, with the settings it cannot do without."""
    cls = choices(family)[name]
    needed = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return name + (":" + ",".join(f"{setting}={NEEDED[setting]}" for setting in needed) if needed else "")


def test_the_families_are_not_empty() -> None:
    assert {"badnets", "no-attack", "poison-frogs", "random-noise", "witches-brew"} <= set(choices(Attack))
    assert {"mixup", "partition-vote", "spectral-signatures"} <= set(choices(Defense))
    assert {"availability", "backdoor", "misclassify"} == set(choices(Goal))
    assert {"linf", "l2", "any-image", "patch"} <= set(choices(Ball))


@every_choice
def test_it_survives_json_and_pickle(family: type[Choice], name: str) -> None:
    choice = parse(family, typed(family, name))
    data = to_json(choice)
    assert data["type"] == name == name_of(choice)
    back = from_json(data, family)
    assert back == choice
    assert type(back) is type(choice)
    assert identity(back) == identity(choice) if "path" not in data else True
    assert pickle.loads(pickle.dumps(choice)) == choice
    assert resumable(choice)


@every_choice
def test_it_is_a_frozen_value_with_keyword_settings(family: type[Choice], name: str) -> None:
    choice = parse(family, typed(family, name))
    assert hash(choice) == hash(parse(family, typed(family, name)))
    for field in dataclasses.fields(choice):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(choice, field.name, None)
    if family is not DataSource:  # a path needs no name
        assert all(p.kind is p.KEYWORD_ONLY for p in inspect.signature(type(choice)).parameters.values())


@every_choice
def test_it_is_documented(family: type[Choice], name: str) -> None:
    cls = choices(family)[name]
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), "the text that dataclasses make is no documentation"
    if family in (Attack, Defense):
        assert "Reference:" in cls.__doc__
        assert "eviation" in cls.__doc__
    source = inspect.getsource(cls)
    for field in dataclasses.fields(cls):
        if field.name in vars(cls).get("__annotations__", {}):
            after = source.split(f"    {field.name}: ", 1)[1].splitlines()[1:3]
            assert any('"""' in line for line in after) or len(dataclasses.fields(cls)) == 1, field.name


@every_choice
def test_a_misspelt_setting_is_answered_with_the_nearest(family: type[Choice], name: str) -> None:
    cls = choices(family)[name]
    for field in dataclasses.fields(cls):
        with pytest.raises(ValueError, match=rf"no setting '{field.name}x'; did you mean {field.name}\?"):
            from_json({"type": name, f"{field.name}x": 1}, family)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(family: type[Choice]) -> None:
    with pytest.raises(ValueError, match=r"'nosuchthing'.*known"):
        parse(family, "nosuchthing")
