"""Every doubt is raised where it should be, nowhere else, and is explained in docs/warnings.md in the same words."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any

import pytest

from mithridate.experiments import cautions as said, leak_cautions
from mithridate.experiments.cautions import FROM_NUMBERS, FROM_TRIALS, KINDS, OTHER, cautions, kind_of
from mithridate.experiments.table import table
from tests.experiments import grids, synthetic as made

ROOT = Path(__file__).parents[2]


def study(*arms: tuple[str, list[dict[str, Any]], int], cases: int = 10, **more: Any) -> list[str]:
    """Names of the cautions about some arms: (attack, defences, hits)."""
    pairs = []
    for attack, defenses, hits in arms:
        for seed in range(cases):
            settings = made.trial(attack, made.TARGETED, *defenses, seed=seed, **more)
            accuracy = 0.62 if not defenses else 0.60
            pairs.append((settings, made.result(settings, [[int(seed < hits)]], [[0.0]], [accuracy])))
    return [caution.kind.name for caution in cautions(table(pairs).rows)]


FULL = [("witches-brew", [], 9), ("random-noise", [], 0), ("no-attack", [], 0)]
MIXED = [("witches-brew", [made.MIXUP], 9), ("random-noise", [made.MIXUP], 0), ("no-attack", [made.MIXUP], 0)]


def test_a_study_with_all_controls_and_cases_raises_nothing():
    assert study(*FULL) == []


def test_controls_that_are_missing():
    assert study(("witches-brew", [], 9)) == ["no-control"]
    assert study(("witches-brew", [], 9), ("no-attack", [], 0)) == ["no-noise-control"]


def test_static_only_is_one_caution_per_attack_and_ends_when_the_adaptive_cell_is_there():
    found = study(*FULL, *MIXED)
    assert found == ["static-only", "many-comparisons"]
    rows = table(grids.grid_pairs(targets=4, adaptive=False)).rows
    assert len(_static_only(rows)) == 3
    assert any("mixup" in text and "partition-vote" in text and "badnets" in text for text in _static_only(rows))
    found = _static_only(table(grids.grid_pairs(targets=4)).rows)
    assert [sorted(re.findall(r"noise|partition-vote|maxup|badnets|poison-frogs", text)) for text in found] == [
        ["badnets", "noise", "partition-vote"],
        ["maxup", "poison-frogs"],
    ]


def _static_only(rows) -> list[str]:
    return [caution.text for caution in cautions(rows) if caution.kind.name == "static-only"]


def test_too_few_cases_for_any_test_and_for_many_tests():
    assert study(*FULL, cases=5) == ["few-cases"]
    found = study(*FULL, *MIXED, cases=6)  # 0.5 ** 6 * 2 is above the level
    assert "few-for-many" in found
    assert "few-cases" not in found
    assert "few-for-many" not in study(*FULL, *MIXED, cases=7)


def test_loud_controls_are_gathered_by_name():
    pairs = []
    for defenses in ([], [made.MIXUP]):
        for attack, hits in (("witches-brew", 9), ("random-noise", 8), ("no-attack", 0)):
            for seed in range(10):
                settings = made.trial(attack, made.TARGETED, *defenses, seed=seed)
                pairs.append((settings, made.result(settings, [[int(seed < hits)]], [[0.0]], [0.62])))
    texts = [c.text for c in cautions(table(pairs).rows) if c.kind.name == "loud-control"]
    assert texts == ["random-noise moves targets by itself: 80 % with no defence, 80 % with mixup."]


def test_cases_without_their_control_are_counted():
    pairs = []
    for attack, cases in (("witches-brew", 10), ("random-noise", 7), ("no-attack", 10)):
        for seed in range(cases):
            settings = made.trial(attack, made.TARGETED, seed=seed)
            pairs.append((settings, made.result(settings, [[0]], [[0.0]], [0.62])))
    (caution,) = cautions(table(pairs).rows)
    assert caution.kind.name == "unpaired-cases"
    assert caution.text == "witches-brew, Linf 16/255: 7 of 10 cases have a random-noise control."


def test_weak_models_and_costly_defences():
    pairs = []
    for attack in ("witches-brew", "random-noise", "no-attack"):
        for defenses, accuracy in (([], 0.58), ([made.PARTS], 0.40)):
            for seed in range(10):
                settings = made.trial(attack, made.TARGETED, *defenses, seed=seed)
                pairs.append((settings, made.result(settings, [[0]], [[0.0]], [accuracy])))
    found = {caution.kind.name: caution.text for caution in cautions(table(pairs).rows)}
    assert found["weak-model"].startswith("Clean models are right on 58.0 %, guessing 20 %")  # of 5 classes: below 60 %
    assert found["costly-defense"] == "partition-vote costs 18.0 points of accuracy."


def test_access_and_trusted_rows():
    assert study(*FULL, pretrain=made.RECIPE) == ["white-box"]
    assert study(*FULL, trusted=50) == ["trusted-rows"]
    texts = {c.kind.name: c.text for c in cautions(table(grids.transfer_pairs()).rows)}
    assert "crafted on convnet" in texts["black-box"]


def test_a_guarantee_that_excludes_nothing():
    def private(epsilon: float) -> list[str]:
        settings = made.trial("no-attack", made.TARGETED, {"type": "dp-instahide"})
        proven = {"kind": "differential-privacy", "statement": "", "values": {"epsilon": epsilon}}
        done = made.result(settings, [[0]], [[0.0]], [0.62], guarantees=[proven])
        return [c.text for c in cautions(table([(settings, done)]).rows) if c.kind.name == "empty-guarantee"]

    assert private(2.0) == []
    assert private(123456.0) == ["dp-instahide is private with epsilon 1.235e+05 only."]


def test_warnings_of_trials_are_shown_once_with_their_attacks():
    pairs = []
    for attack in ("witches-brew", "badnets"):
        for seed in range(2):
            settings = made.trial(attack, made.TARGETED, seed=seed)
            warned = ["training diverged in epoch 3 (loss nan); lower learning_rate from 0.1"]
            pairs.append((settings, made.result(settings, [[0]], [[0.0]], [0.62], warnings=warned)))
    found = [caution for caution in cautions(table(pairs).rows) if caution.kind.name == "diverged"]
    assert [caution.text for caution in found] == [
        "training diverged in epoch 3 (loss nan); lower learning_rate from 0.1 (badnets, witches-brew)"
    ]


# --- explained -------------------------------------------------------------------------------------------------------


def test_the_document_explains_every_kind_in_the_same_words_and_no_other():
    text = (ROOT / "docs" / "warnings.md").read_text(encoding="utf-8")
    before, _, text = text.partition("## Cautions about inverted gradients\n")
    leaks, _, after = text.partition("\n## ")
    for part, kinds in ((before + after, KINDS), (leaks, leak_cautions.KINDS)):
        rows = re.findall(r"^\| `([a-z-]+)` \| (.+?) \| (.+?) \|$", part, re.MULTILINE)
        assert rows == [(kind.name, kind.meaning, kind.action) for kind in kinds]


def test_every_kind_of_the_inversion_report_can_be_raised():
    assert set(leak_cautions._LOOKS) == {kind.name for kind in leak_cautions.KINDS}
    assert len({kind.name for kind in leak_cautions.KINDS}) == len(leak_cautions.KINDS)
    assert all(kind.meaning.endswith(".") and kind.action.endswith(".") for kind in leak_cautions.KINDS)


def test_every_kind_has_a_name_of_its_own_and_can_be_raised():
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert set(said._LOOKS) == {kind.name for kind in FROM_NUMBERS}
    assert all(kind.meaning.endswith((".", ")")) and kind.action.endswith(".") for kind in KINDS)


@functools.cache
def _raised() -> list[tuple[str, str]]:
    """(file, constant text) of every warnings.warn in the package."""
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
                message = node.args[0]
                if isinstance(message, ast.Name) and message.id not in names:
                    continue  # said by another process, and passed on
                message = names[message.id] if isinstance(message, ast.Name) else message
                parts = [p.value for p in ast.walk(message) if isinstance(p, ast.Constant) and isinstance(p.value, str)]
                found.append((path.name, " ".join(parts)))
    return found


def test_every_warning_in_the_code_is_of_an_explained_kind():
    raised = _raised()
    assert len(raised) >= len({kind.name for kind in FROM_TRIALS}) - 1
    unexplained = [(name, text) for name, text in raised if kind_of(text) is OTHER and "training it again" not in text]
    assert unexplained == []


@pytest.mark.parametrize("kind", FROM_TRIALS, ids=lambda kind: kind.name)
def test_every_explained_warning_is_in_the_code(kind):
    texts = [text for _, text in _raised()]
    if kind.name == "damaged":  # its words come with the error
        texts = [(ROOT / "src/mithridate/experiments/store.py").read_text(encoding="utf-8")]
    assert any(kind_of(text) is kind or (kind.name == "damaged" and "is damaged (" in text) for text in texts)
