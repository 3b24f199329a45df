"""The arithmetic of the benchmarks: turns, ratios, shares of the ceiling, counted operations, the one table."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from benchmarks import measure
from benchmarks.ceiling import ceiling, flops_of
from benchmarks.measure import Arm, Ratio, Report, Row, Setup, Timing, at_most, best_of, interleaved, race
from benchmarks.table import lines_of, table_of, write_table

SMALL = Setup(small=True)


def row(role: measure.Role, *seconds: float, arm: str = "", note: str = "") -> Row:
    """A row of one case, its value the sum of its seconds."""
    return Row(
        case="work",
        arm=arm or role,
        role=role,
        value=sum(seconds) if seconds else None,
        unit="s",
        rounds=len(seconds),
        by_round=seconds,
        note=note,
    )


# --- operations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(1, 8, 16), (8, 8, 8), (2, 8, 16)])
@pytest.mark.parametrize("stride", [1, 2])
def test_operations_of_convolutions_are_those_counted_by_hand(
    groups: int, inputs: int, outputs: int, stride: int
) -> None:
    side = 10 // stride
    once = 2 * 3 * side * side * outputs * (inputs // groups) * 9  # a multiplication and an addition at each place
    images = torch.rand(3, inputs, 10, 10, requires_grad=True)
    weight = torch.rand(outputs, inputs // groups, 3, 3, requires_grad=True)

    def forward() -> torch.Tensor:
        return functional.conv2d(images, weight, stride=stride, padding=1, groups=groups)

    def twice() -> None:
        (gradient,) = torch.autograd.grad(forward().square().sum(), weight, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), images)

    assert flops_of(forward) == once
    assert flops_of(lambda: torch.autograd.grad(forward().sum(), images)) == 2 * once
    assert flops_of(lambda: forward().sum().backward()) == 3 * once
    # forward; the weight gradient; its derivative for the output gradient, and for the images two ways
    assert flops_of(twice) == 5 * once


def test_operations_of_matrix_products_are_those_counted_by_hand() -> None:
    a, b = torch.rand(4, 5, requires_grad=True), torch.rand(5, 6)
    assert flops_of(lambda: a @ b) == 2 * 4 * 5 * 6
    assert flops_of(lambda: (a @ b).sum().backward()) == 2 * 2 * 4 * 5 * 6
    multiply, operations = ceiling("cpu", torch.float32, small=True)
    assert flops_of(multiply) == operations


# --- races -----------------------------------------------------------------------------------------------------------


def test_arms_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, "cpu")
    assert calls == ["a", "b"] * 3
    assert [len(times) for times in found.values()] == [2, 2]


def test_a_race_takes_turns_and_keeps_every_round() -> None:
    calls: list[str] = []
    arms = [Arm(name=name, role="variant", work=lambda name=name: calls.append(name)) for name in "ab"]
    rows = race(Setup(seconds=0), "case", arms, unit="s", value=lambda s: s)
    assert calls == ["a", "b"] * 4
    assert [len(row.by_round) for row in rows] == [3, 3]
    calls.clear()
    race(Setup(seconds=0), "case", arms, unit="s", value=lambda s: s, once=True)
    assert calls == ["a", "b"]


@pytest.mark.parametrize("good_calls", [0, 2])
def test_an_arm_that_raises_becomes_a_row_and_ends_nothing(good_calls: int) -> None:
    number = itertools.count()

    def work() -> None:
        if next(number) >= good_calls:
            raise RuntimeError("no such machine\nand more")

    arms = [Arm(name="bad", role="variant", work=work), Arm(name="good", role="mithridate", work=lambda: "a note")]
    bad, good = race(Setup(seconds=0), "case", arms, unit="s", value=lambda s: s)
    assert (bad.note, bad.value, list(bad.by_round)) == ("failed: RuntimeError: no such machine", None, [])
    assert (good.note, good.rounds) == ("a note", 3)
    assert next(number) == good_calls + 1


def test_the_share_of_the_ceiling_compares_operations_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 9.0, 2.0, 4.0])  # uncounted round, then arm and ceiling
    monkeypatch.setattr(measure, "timed", lambda work, device: Timing(cpu=next(seconds), wall=0.0))
    monkeypatch.setattr(measure, "ceiling", lambda device, dtype, small: (lambda: None, 1000.0))
    arms = [Arm(name="ours", role="mithridate", work=lambda: None)]
    ours, top = race(SMALL, "case", arms, unit="s", value=lambda s: s, flops=200.0)
    assert ours.ceiling_share == pytest.approx((200 / 2) / (1000 / 4))
    assert (top.arm, top.value) == ("ceiling", pytest.approx(1000 / 4 / 1e9))


@pytest.mark.parametrize(("first", "rounds"), [(100.0, 3), (10.0, 4), (0.001, 9)])
def test_rounds_follow_from_the_time_of_the_first(first: float, rounds: int) -> None:
    assert Setup(seconds=40).rounds(first) == rounds
    assert SMALL.rounds(first) == 1


def test_seconds_of_a_run_are_cpu_or_wall() -> None:
    timing = measure.timed(lambda: time.sleep(0.05), "cpu")
    assert timing.wall >= 0.05 > timing.cpu


# --- ratios, claims, table -------------------------------------------------------------------------------------------


def test_ratios_compare_within_rounds() -> None:
    assert Ratio.of([2, 8, 9], [1, 2, 3]) == Ratio(3, 2, 4)


def test_claims_compare_with_the_straightforward_and_with_the_best() -> None:
    rows = [
        row("mithridate", 1, 2, 3),
        row("straightforward", 2, 8, 9),
        row("variant", 1, 1, 3),
        row("control", 0, 0, 0),
    ]
    (claim,) = measure.faster_than_straightforward(rows, 3.0)
    assert (claim.low, claim.value, claim.high, claim.holds) == (2, 3, 4, True)
    assert not measure.faster_than_straightforward(rows, 3.1)[0].holds
    (claim,) = measure.near_the_best(rows)
    assert (claim.low, claim.value, claim.high, claim.holds) == (0.5, 1, 1, True)
    assert at_most("case", rows[0], 2).holds
    assert not at_most("case", rows[0], 1.9).holds


def test_the_best_way_may_be_the_straightforward_one_but_no_failed_one() -> None:
    rows = [row("mithridate", 1), row("straightforward", 2), row("variant", 3), row("variant", note="failed: x")]
    best = best_of(rows)
    assert best is not None
    assert best.role == "straightforward"


def test_no_claim_holds_where_our_own_arm_failed() -> None:
    rows = [row("mithridate", note="failed: x"), row("straightforward", 1), row("variant", 1)]
    assert [claim.holds for claim in measure.faster_than_straightforward(rows, 2.0)] == [False]
    assert [claim.holds for claim in measure.near_the_best(rows)] == [False]


def test_the_table_has_one_line_for_each_piece_of_work(tmp_path: Path) -> None:
    rows = [row("mithridate", 1, 2), row("straightforward", 3, 4), row("variant", 1, 1, arm="a trick")]
    failed = [Row(case="other", arm="mithridate", role="mithridate", value=None, unit="s", rounds=0, note="failed: x")]
    control = [Row(case="third", arm="now", value=1.0, unit="s", rounds=1)]
    report = Report(name="name", settings={}, rows=rows + failed + control, claims=[])
    line, other = lines_of([report])
    assert (line.faster, line.best, line.of_best) == (Ratio(2.5, 2, 3), "a trick", Ratio(0.75, 0.5, 1))
    assert (line.tried, line.rounds) == (["a trick"], 2)
    assert (other.mithridate, other.note) == (None, "failed: x")
    assert table_of([line, other], "title").row_count == 2
    path = write_table([report], tmp_path, SMALL, {"cpu": "x"})
    content = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "table-cpu.json"
    assert [one["work"] for one in content["lines"]] == ["work", "other"]
    assert content["lines"][0]["faster"] == {"value": 2.5, "low": 2.0, "high": 3.0}
