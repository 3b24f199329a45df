"""Named random streams: the derivation by hand, no dependence on order, no overlap."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from mithridate.core.seeds import derive, stream


@pytest.mark.parametrize(
    ("seed", "names", "text"), [(0, (), "0"), (3, ("craft", 0), "3/craft/0"), (-1, ("init",), "-1/init")]
)
def test_a_seed_is_the_head_of_a_hash(seed: int, names: tuple[str | int, ...], text: str) -> None:
    expected = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) >> 1
    assert derive(seed, *names) == expected
    assert 0 <= expected < 2**63


def test_seeds_of_numpy_and_torch_are_taken_as_whole_numbers() -> None:
    assert derive(np.int64(5), "init") == derive(torch.tensor(5), "init") == derive(5, "init")  # type: ignore[arg-type]


def test_neighbouring_seeds_and_names_differ() -> None:
    found = {derive(seed, name, number) for seed in range(20) for name in ("init", "batches") for number in range(20)}
    assert len(found) == 20 * 2 * 20


def test_a_stream_does_not_depend_on_the_streams_opened_before() -> None:
    alone = torch.rand(5, generator=stream(1, "batches"))
    other = stream(1, "transforms")
    torch.rand(7, generator=other)
    assert torch.equal(torch.rand(5, generator=stream(1, "batches")), alone)


def test_streams_live_on_the_cpu_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    rng = stream(0, "any")
    torch.rand(3, generator=rng)
    assert rng.device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), before)


def test_first_draws_of_many_streams_look_uniform_and_uncorrelated() -> None:
    draws = np.array([[torch.rand((), generator=stream(s, name)).item() for name in "ab"] for s in range(300)])
    assert stats.kstest(draws[:, 0], "uniform").pvalue > 0.001
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.2
