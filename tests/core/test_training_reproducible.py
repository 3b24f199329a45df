"""Training is reproducible to the bit: in this process and another, alone and beside others."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.core.training_cases import data, digest, digests, dropout_net, quick

MODELS = pytest.mark.parametrize("model", ["convnet:width=4", dropout_net], ids=["convnet", "dropout"])


@MODELS
def test_the_same_seed_gives_the_same_bits_whatever_the_global_generators_say(model: object) -> None:
    recipe = quick(model=model)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        found += digests(recipe)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
    assert found[0] == found[1]


def test_another_process_gives_the_same_bits() -> None:
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from tests.core import training_cases as here\n"
        "for model in ('convnet:width=4', here.dropout_net):\n"
        "    print(*here.digests(here.quick(model=model), here.data(), here.data(1), seeds=(3, 4)))"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = [digests(quick(model=m), data(), data(1), seeds=(3, 4)) for m in ("convnet:width=4", dropout_net)]
    assert [line.split() for line in done.stdout.splitlines()] == expected


@MODELS
def test_a_member_does_not_depend_on_the_others(model: object) -> None:
    recipe, first, second = quick(model=model), data(), data(1)
    together = digests(recipe, first, second, first, seeds=(0, 1, 2))
    pairs = [(first, 0), (second, 1), (first, 2)]
    assert together == [digests(recipe, given, seeds=(seed,))[0] for given, seed in pairs]
    assert len(set(together)) == 3


def test_different_seeds_differ_in_weights_and_in_batches() -> None:
    states = [quick().start(data(), seed) for seed in (0, 1)]
    assert digest(states[0].module) != digest(states[1].module)
    assert not torch.equal(next(states[0].batches()).rows, next(states[1].batches()).rows)


def test_dropout_is_fresh_in_every_step_and_off_at_the_end() -> None:
    state = quick(model=dropout_net, learning_rate=0.0, transforms=()).start(data(), 0)
    batch = next(state.batches())
    losses = {float(state.advance(batch)) for _ in range(5)}
    assert len(losses) == 5
    module = quick(model=dropout_net).fit([data()], [0]).models[0]
    images = data().images / 255
    assert torch.equal(module(images), module(images))


def test_a_poison_of_nothing_changes_no_bit() -> None:
    given = data()
    rows = torch.tensor([4, 9])
    empty = given.replace([], torch.zeros(0, 1, 8, 8, dtype=torch.uint8))
    same_pixels = given.replace(rows, given.pixels(rows))
    other = given.replace(rows, 255 - given.pixels(rows))
    clean, *found = (digests(quick(), variant)[0] for variant in (given, empty, same_pixels, other))
    assert found[:2] == [clean, clean]
    assert found[2] != clean
