"""Manuals say what can be set, and what they say can be typed."""

from __future__ import annotations

import dataclasses

import pytest

import mithridate as mi
from mithridate.core.manuals import manual
from mithridate.core.schema import choices, parse

FAMILIES = (mi.Attack, mi.Defense, mi.Inversion, mi.LeakDefense, mi.Evasion)
METHODS = [(family, name) for family in FAMILIES for name in choices(family)]


@pytest.mark.parametrize(("family", "name"), METHODS, ids=lambda one: getattr(one, "__name__", one))
def test_every_method_has_a_manual(family: type, name: str) -> None:
    one = manual(choices(family)[name])
    assert one.name == name
    assert one.summary.endswith(".")
    assert [setting.name for setting in one.settings if not setting.text.endswith((".", ")"))] == []


@pytest.mark.parametrize(("family", "name"), METHODS, ids=lambda one: getattr(one, "__name__", one))
def test_what_a_manual_spells_can_be_typed(family: type, name: str) -> None:
    one = manual(choices(family)[name])
    typed = ",".join(f"{setting.name}={setting.default}" for setting in one.settings)
    assert parse(family, f"{name}:{typed}" if typed else name) == choices(family)[name]()


def test_settings_that_are_inherited_are_explained() -> None:
    said = {setting.name: setting.text for setting in manual(mi.SecureRelease).settings}
    assert said["chunk"].startswith("Images perturbed together")


def test_a_class_without_a_file_has_a_manual() -> None:
    namespace: dict = {"dataclasses": dataclasses, "Defense": mi.Defense}
    exec("@dataclasses.dataclass(frozen=True)\nclass Own(Defense):\n    'Mine.'\n    x: float = 0.5", namespace)
    one = manual(namespace["Own"])
    assert (one.summary, one.settings[0][:2]) == ("Mine.", ("x", "0.5"))
