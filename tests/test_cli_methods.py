"""The list of methods and their manuals, as a newcomer meets them."""

from __future__ import annotations

import json

import mithridate as mi
from mithridate.core.schema import choices
from tests.command_line import Run


def test_all_methods_are_listed(run: Run) -> None:
    said = run("methods")
    assert said.code == 0, said.err
    for family in (mi.Attack, mi.Defense, mi.Inversion, mi.LeakDefense, mi.Evasion):
        assert [name for name in choices(family) if f"  {name} " not in said.out] == []


def test_a_manual_tells_settings_paper_and_dose(run: Run) -> None:
    said = run("methods", "witches-brew")
    words = " ".join(said.out.split())
    assert "restarts=1 Independent starts" in words
    assert "arXiv 2009.02276" in words
    assert "Dose, unless it is given: 1 % of the training images; every pixel value moves by at most 16/255" in words
    assert "badnets" not in words


def test_manuals_as_json(run: Run) -> None:
    found = json.loads(run("methods", "mixup", "pgd", "--json").out)
    assert [one["name"] for group in found.values() for one in group] == ["mixup", "pgd"]
    assert found["defences"][0]["settings"][0]["name"] == "k"


def test_an_unknown_method_is_refused(run: Run) -> None:
    said = run("methods", "witchs-brew")
    assert said.code == 2
    assert "no method is called 'witchs-brew'; did you mean witches-brew?" in said.err


def test_settings_with_several_parts_can_be_typed_in_a_stack(run: Run) -> None:
    stack = "adversarial-training:ball=linf(eps=4/255),steps=1+adversarial-poisoning:patch=0.2..0.3"
    said = run("audit", "--attacks", "badnets", "--defenses", stack, "--trials", "1", "--plan")
    assert said.code == 0, said.err
