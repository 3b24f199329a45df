"""Conditions of the command line: read before anything is trained, judged when all is done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mithridate.core.schema import name_of
from mithridate.experiments.cells import CONTROLS
from mithridate.experiments.entries import AnyTable, entries
from mithridate.experiments.gates import Condition, check_places, conditions, judge
from mithridate.experiments.job import Job
from mithridate.experiments.leaks import LeakTrial
from mithridate.experiments.trial import Trial
from mithridate.verbs.terminal import say

CLOSED = 3
"""Exit code of a study for which a condition holds, or could not be judged."""


def read_gates(given: Sequence[Sequence[str]], kind: str) -> list[Condition]:
    """Reads what was typed after --fail-if, as often as it was.

    Raises:
        ValueError: No condition, or one that cannot be read.
    """
    texts = [text for group in given for text in group]
    if given and not texts:
        raise ValueError("--fail-if names no condition; write one in quotes, like --fail-if 'success>0.2'")
    return conditions(texts, kind)


def check_gates(gates: Sequence[Condition], trials: Iterable[Job]) -> None:
    """Looks whether what conditions are about will be run.

    Raises:
        ValueError: It will not.
    """
    known = [trial for trial in trials if isinstance(trial, Trial | LeakTrial)]
    attacks = {name_of(trial.attack) for trial in known} - {*CONTROLS}
    stacks = {"+".join(map(name_of, trial.defenses)) or "none" for trial in known}
    check_places(gates, attacks, stacks)


def gate(gates: Sequence[Condition], table: AnyTable, unfinished: Sequence[str] = ()) -> int:
    """Judges a table, says on standard error what came of each condition, and returns the exit code.

    Args:
        gates: Conditions; without any, nothing is judged.
        table: What was measured.
        unfinished: Trials that failed or did not finish, a line each: a study without them is not judged whole.
    """
    if not gates:
        return 0
    rows = entries(table)
    breaches = judge(gates, rows)
    for condition in gates:
        broken = [breach for breach in breaches if breach.condition is condition]
        for breach in broken:
            say(f"failed: {breach}", aside=True)
        if not broken:
            judged = sum(condition.about(entry) and condition.name in entry.numbers for entry in rows)
            say(f"passed: {condition} holds for none of {judged} row{'s' * (judged != 1)}", aside=True)
    for line in unfinished:
        say(f"failed: not measured: {line}", aside=True)
    return CLOSED if breaches or unfinished else 0
