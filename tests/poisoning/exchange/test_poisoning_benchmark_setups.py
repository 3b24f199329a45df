"""Setups of poisoning-benchmark: each becomes a case like any other."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mithridate.core.balls import Linf
from mithridate.poisoning.exchange.poisoning_benchmark import setups
from mithridate.poisoning.threat import FixedCase, ThreatModel
from tests.poisoning.exchange.exchange_cases import damaged, reference, refused


def setup(target: int = 2, bases: Any = (1, 4, 7), **more: Any) -> dict[str, Any]:
    """One entry as it is in the benchmark's own files: numbers of numpy and an array."""
    entry = {"target class": 2, "target index": np.int64(target), "base class": 1, "base indices": np.array(bases)}
    return entry | {name.replace("_", " "): value for name, value in more.items()}


def kept(home: Path, entries: Any, protocol: int = 4) -> Path:
    (home / "setups.pickle").write_bytes(pickle.dumps(entries, protocol))
    return home / "setups.pickle"


def test_setups_become_cases(tmp_path: Path) -> None:
    data = reference()
    file = kept(tmp_path, [setup(), setup(5, [10, 13])])
    for known in (None, data):
        assert setups(file, known) == [
            FixedCase(target_rows=(2,), intended="1", poison_rows=(1, 4, 7)),
            FixedCase(target_rows=(5,), intended="1", poison_rows=(10, 13)),
        ]


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 7), min_size=1, unique=True)), max_size=4))
@settings(max_examples=30)
def test_every_setup_comes_back(drawn: list[tuple[int, list[int]]]) -> None:
    """Targets of class 2 and bases of class 1, which alternate in the data."""
    entries = [setup(3 * target + 2, [3 * base + 1 for base in bases]) for target, bases in drawn]
    with tempfile.TemporaryDirectory() as home:
        found = setups(kept(Path(home), entries), reference())
    assert [case.target_rows for case in found] == [(3 * target + 2,) for target, _ in drawn]
    assert [case.poison_rows for case in found] == [tuple(3 * base + 1 for base in bases) for _, bases in drawn]


def test_a_setup_is_a_case_like_any_other(tmp_path: Path) -> None:
    data = reference()
    (case,) = setups(kept(tmp_path, [setup()]), data)
    task = ThreatModel(budget=0.125, ball=Linf(eps=8 / 255), case=case).draw(data.train, data.test, seed=0)
    assert task.candidates.tolist() == [1, 4, 7]
    assert (task.limit, task.target_rows.tolist(), task.intended.tolist()) == (3, [2], [1])
    assert int(data.test.labels_of(task.target_rows)) == 2


def test_setups_of_an_old_numpy(tmp_path: Path) -> None:
    """The files are of 2020: numpy 1 called its modules otherwise."""
    file = kept(tmp_path, [setup()], protocol=2)
    content = file.read_bytes().replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in content
    file.write_bytes(content)
    assert setups(file)[0].poison_rows == (1, 4, 7)


def test_a_row_that_a_setup_names_twice_counts_once(tmp_path: Path) -> None:
    (case,) = setups(kept(tmp_path, [setup(bases=[4, 1, 4, 7])]), reference())
    assert case.poison_rows == (4, 1, 7)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"setups": []}, "expected a list of setups"),
        ([[1]], "setup 0 does not have the entries target class"),
        ([setup(), {**setup(), "note": 1}], "setup 1 does not have the entries"),
        ([{name: value for name, value in setup().items() if name != "base class"}], "does not have the entries"),
        ([setup(target_class="2")], "target class is a str"),
        ([setup(target_class=2.0)], "target class is a float"),
        ([setup(bases=[1.0])], "base indices: entry 0 is a float"),
        ([setup(base_indices=4)], "base indices: holds a int"),
        ([setup(bases=[1, -4])], "negative"),
        ([setup(bases=[])], "poison_rows is empty"),
        ([setup(bases=[1, 24])], "training row 24 is not in"),
        ([setup(9)], "test row 9 is not in"),
        ([setup(3)], "row 3 is not of class 2: the data at hand are in another order than torchvision has them"),
        ([setup(bases=[1, 5])], "row 5 is not of class 1: the data at hand are in another order"),
    ],
)
def test_faults_in_setups(tmp_path: Path, entries: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        setups(kept(tmp_path, entries), reference())
    assert "setups.pickle" in str(error.value)


def test_no_setups(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        setups(tmp_path / "none.pickle")
    assert setups(kept(tmp_path, [])) == []


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_damaged_setups(seed: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        file = kept(Path(home), [setup()])
        file.write_bytes(damaged(file.read_bytes(), seed))
        refused(lambda: setups(file, reference()))


class Call:
    """Would leave a file behind if it were unpickled freely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_is_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="asks for"):
        setups(kept(tmp_path, [setup(), Call(tmp_path / "trace")]))
    assert not (tmp_path / "trace").exists()
