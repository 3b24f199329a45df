"""Guarantees are plain values."""

from __future__ import annotations

import dataclasses

import pytest

from mithridate.core.guarantees import Guarantee, weakest


def test_a_guarantee_is_a_frozen_value_with_its_own_numbers() -> None:
    first = Guarantee(kind="vote", statement="holds")
    second = Guarantee(kind="vote", statement="holds")
    assert first == second
    assert first.assumptions == ()
    first.values["radius"] = 3.0
    assert second.values == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.kind = "other"  # type: ignore[misc]


def test_a_guarantee_needs_a_statement() -> None:
    with pytest.raises(TypeError, match="statement"):
        Guarantee(kind="vote")  # type: ignore[call-arg]


def test_the_weakest_of_several_holds_for_all_of_them() -> None:
    claims = [Guarantee(kind="dp", statement="", values={"epsilon": epsilon}) for epsilon in (1.0, 3.0, 2.0)]
    assert weakest(claims) is claims[1]
    assert weakest([*claims, None]) is None
    assert weakest([]) is None
