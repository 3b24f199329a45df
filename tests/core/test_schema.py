"""Settings to JSON and back, names people type, errors that name the nearest, and content addresses."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mithridate.core import schema
from mithridate.core.balls import L2, AnyImage, Ball, Linf, Patch, Sum
from mithridate.core.batch import BatchTransform, RowRule
from mithridate.core.gradient_rules import Mean
from mithridate.core.moved import Moved
from mithridate.core.recolor import Recolor
from mithridate.core.sampling import Shuffled
from mithridate.core.schedules import Cosine, OneCycle, Schedule, StepDecay
from mithridate.core.schema import (
    choices,
    from_json,
    identity,
    name_of,
    nearest,
    parse,
    resumable,
    to_json,
)
from mithridate.core.training import Learner, Recipe
from mithridate.core.transforms import Flip, Mixup, Shift
from mithridate.core.updates import Adam, ForwardBackward, SignedAdam, SignStep, Update
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.defense import Defense
from mithridate.poisoning.defenses.adversarial_poisoning import AdversarialPoisoning
from tests.core.schema_cases import HERE, EveryOther, Maker, Paint, net, other_net

# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        (L2(eps=1.0), "l2"),
        (Linf, "linf"),
        (AnyImage(), "any-image"),
        (OneCycle, "one-cycle"),
        (SignedAdam(), "signed-adam"),
        (Recipe(), "recipe"),
        (EveryOther(), f"{HERE}:EveryOther"),
    ],
)
def test_names(choice: object, name: str) -> None:
    assert name_of(choice) == name


def test_members_of_a_folder_are_named_by_their_file() -> None:
    assert {"witches-brew", "poison-frogs", "badnets", "no-attack", "random-noise"} <= set(choices(Attack))
    assert {"mixup", "spectral-signatures", "partition-vote"} <= set(choices(Defense))
    assert all(cls.__module__.endswith(name.replace("-", "_")) for name, cls in choices(Attack).items())


def test_families_hold_their_concrete_members_by_name() -> None:
    pixelwise = {"any-image": AnyImage, "l2": L2, "linf": Linf, "patch": Patch}
    assert choices(Ball) == pixelwise | {"moved": Moved, "recolor": Recolor, "sum": Sum}
    assert choices(Schedule) == {"cosine": Cosine, "one-cycle": OneCycle, "step-decay": StepDecay}
    assert choices(Recipe) == {"recipe": Recipe}
    assert "every-other" not in choices(RowRule)  # a test's own class is no part of the package


def test_plug_ins_announce_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "every-other"

        def load(self) -> type:
            return EveryOther

    def entry_points(*, group: str) -> list[Entry]:
        return [Entry()] if group == "mithridate.rowrule" else []

    monkeypatch.setattr(schema.importlib.metadata, "entry_points", entry_points)
    assert choices(RowRule)["every-other"] is EveryOther
    assert parse(RowRule, "every-other:offset=1") == EveryOther(offset=1)
    assert "every-other" not in choices(Ball)


def test_the_nearest_name_comes_first() -> None:
    assert nearest("linff", ["l2", "linf"]) == "did you mean linf? known: l2, linf"
    assert nearest("zzzz", ["l2", "linf"]) == "known: l2, linf"
    assert nearest("a", []) == "known: none"


# --- there and back --------------------------------------------------------------------------------------------------

RECIPES = [
    Recipe(),
    Recipe(schedule=Cosine(), transforms=(), precision="bf16", nesterov=False, normalize="none"),
    Recipe(schedule=OneCycle(peak=0.4), transforms=(Flip(probability=0.3), Shift(share=0.2), Mixup(k=4, alpha=0.5))),
    Recipe(model=net, row_rule=EveryOther(offset=1), sampler=Shuffled(), gradient=Mean()),
    Recipe(start_from=Path("some/weights.safetensors"), trainable="head", learning_rate=1 / 3),
]
CHOICES = [
    *((Learner, recipe) for recipe in RECIPES),
    *((Recipe, recipe) for recipe in RECIPES),
    (Update, Adam(betas=(0.5, 0.7), decay=True)),
    (Update, ForwardBackward(lr=1e-3, beta=0.0)),
    (Update, SignStep(low=1 / 255, high=3 / 255)),
    (Ball, Patch(area=0.3)),
    (Paint, Paint(ball=L2(eps=2.0), several=(AnyImage(), Linf(eps=0.1)), size=3, finish="smooth", matt=True)),
    (tuple[Ball, ...], (AnyImage(), L2(eps=2.0))),
]


@pytest.mark.parametrize(("kind", "value"), CHOICES, ids=lambda value: str(value)[:30])
def test_json_reads_back_as_an_equal_value(kind: Any, value: Any) -> None:
    written = json.dumps(to_json(value))
    again = from_json(json.loads(written), kind)
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize("family", [Attack, Defense, Ball, Schedule, Update, BatchTransform], ids=lambda f: f.__name__)
def test_every_default_reads_back(family: type) -> None:
    needed = {Linf: {"eps": 0.1}, L2: {"eps": 0.1}, Sum: {"balls": (Linf(eps=0.1), Patch())}}
    for name, cls in choices(family).items():
        value = cls(**needed.get(cls, {}))
        assert from_json(json.loads(json.dumps(to_json(value))), family) == value
        assert to_json(value)["type"] == name


def test_json_is_what_it_says() -> None:
    found = to_json(Recipe(schedule=OneCycle(peak=0.5), transforms=(Flip(),), start_from=Path("a/b")))
    assert found["type"] == "recipe"
    assert found["schedule"] == {"type": "one-cycle", "peak": 0.5}
    assert found["transforms"] == [{"type": "flip", "probability": 0.5}]
    assert found["start_from"] == "a/b"
    assert found["row_rule"] is None
    assert set(found) == {"type"} | {field.name for field in dataclasses.fields(Recipe)}


def test_what_is_no_setting_is_an_error() -> None:
    for value in (torch.zeros(1), {1, 2}, b"bytes"):
        with pytest.raises(TypeError, match="is no setting"):
            to_json(value)


def test_settings_that_are_left_out_have_their_defaults() -> None:
    assert from_json({"type": "recipe", "epochs": 3}, Learner) == Recipe(epochs=3)
    assert from_json({"epochs": 3}, Recipe) == Recipe(epochs=3)
    assert from_json("cosine", Schedule) == Cosine()


# --- functions as settings -------------------------------------------------------------------------------------------


def test_a_function_is_stored_by_name_and_by_its_source() -> None:
    written = to_json(Recipe(model=net))["model"]
    assert written["function"] == f"{HERE}:net"
    assert len(written["source"]) == 16
    assert from_json(to_json(Recipe(model=net)), Learner).model is net  # type: ignore[attr-defined]
    assert written["source"] != to_json(Recipe(model=other_net))["model"]["source"]


def test_only_what_has_a_name_can_be_read_in_another_process() -> None:
    def local(classes: int) -> nn.Module:
        return net(classes)

    assert all(resumable(Recipe(model=model)) for model in ("convnet", net, Maker))
    unnamed = [lambda classes: net(classes), local, functools.partial(net), Maker(3), Maker(3).make]
    assert not any(resumable(Recipe(model=model)) for model in unnamed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no"):
        from_json(to_json(Recipe(model=local)), Learner)


# --- identities ------------------------------------------------------------------------------------------------------

OTHER = {
    "model": "resnet18",
    "normalize": "none",
    "epochs": 7,
    "batch_size": 64,
    "learning_rate": 0.2,
    "momentum": 0.5,
    "nesterov": False,
    "weight_decay": 0.0,
    "schedule": Cosine(),
    "precision": "fp32",
    "sampler": None,
    "transforms": (Flip(),),
    "gradient": None,
    "row_rule": EveryOther(),
    "start_from": Path(__file__),
    "trainable": "head",
    "fresh_head": True,
}


def test_an_identity_changes_with_every_field_of_a_recipe() -> None:
    variants = [{**to_json(Recipe()), field.name: to_json(OTHER[field.name])} for field in dataclasses.fields(Recipe)]
    found = {identity(variant) for variant in [to_json(Recipe()), *variants]}
    assert len(found) == len(dataclasses.fields(Recipe)) + 1


def test_an_identity_changes_with_nested_settings_and_their_order() -> None:
    recipes = [
        Recipe(),
        Recipe(transforms=(Shift(), Flip())),
        Recipe(transforms=(Flip(), Shift(share=0.25))),
        Recipe(transforms=(Flip(probability=0.4), Shift())),
        Recipe(schedule=OneCycle()),
        Recipe(schedule=OneCycle(peak=0.3)),
        Recipe(model=net),
        Recipe(model=other_net),
    ]
    assert len({identity(recipe) for recipe in recipes}) == len(recipes)


def test_an_identity_is_16_hex_characters_and_depends_on_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(Recipe())
    assert len(before) == 16
    assert int(before, 16) >= 0
    assert identity(Recipe()) == before
    monkeypatch.setattr(schema, "SCHEMA", schema.SCHEMA + 1)
    assert identity(Recipe()) != before


def test_an_identity_looks_into_files_and_not_at_their_paths(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("a", "b", "c"))
    first.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    other.write_bytes(b"others")
    ids = [identity(Recipe(start_from=path)) for path in (first, copy, other)]
    assert ids[0] == ids[1] != ids[2]
    with pytest.raises(FileNotFoundError):
        identity(Recipe(start_from=tmp_path / "none"))


def test_tuples_are_typed_with_two_dots() -> None:
    typed = parse(Defense, "adversarial-poisoning:patch=0.2..0.3")
    assert typed == AdversarialPoisoning(patch=(0.2, 0.3))
    assert from_json(to_json(typed), Defense) == typed
    with pytest.raises(ValueError, match=r"patch: expected 2 values, typed with two dots .*, got '0.2'"):
        parse(Defense, "adversarial-poisoning:patch=0.2")
