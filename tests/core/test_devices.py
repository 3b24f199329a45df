"""One model on two devices, which are two processes here: it becomes what one makes of it, and nothing hangs."""

from __future__ import annotations

import os
import pickle
import signal
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from mithridate.core import crew, devices
from mithridate.core.balls import Linf
from mithridate.core.batch import Batch, GradientRule, RowRule
from mithridate.core.crew import Crew, Parted
from mithridate.core.data import ImageData
from mithridate.core.devices import Devices, check_devices, check_here, chosen_devices, on_devices
from mithridate.core.gradient_rules import PerSample, Shaped
from mithridate.core.learners import Mixed
from mithridate.core.members import members_by
from mithridate.core.models import build
from mithridate.core.sampling import Poisson
from mithridate.core.training import Fitted, Recipe
from mithridate.core.transforms import Adversarial, Flip, Mixup, Shift
from mithridate.core.workers import WorkerDied, processes
from mithridate.experiments.store import Store, Stored
from tests.core.training_cases import data, digest, quick


@pytest.fixture(scope="module")
def two() -> Iterator[Devices]:
    """Two processes, started once for all tests that do not end them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    both = Devices(2)
    yield both
    both.close()
    torch.set_num_threads(before)


@contextmanager
def using(both: Devices) -> Iterator[None]:
    token = devices._chosen.set(both)
    try:
        yield
    finally:
        devices._chosen.reset(token)


def on_both(both: Devices, recipe: Recipe | Mixed, *sets: ImageData, **more: Any) -> Fitted:
    with using(both):
        return recipe.fit(sets or [ODD], range(len(sets) or 1), **more)


def close(found: Fitted, expected: Fitted, tolerance: float = 1e-5) -> None:
    """The same weights and statistics, as vectors, and the same losses."""
    for models in zip(found.models, expected.models, strict=True):
        own, other = (torch.cat([value.flatten() for value in model.state_dict().values()]) for model in models)
        assert float((own - other).norm() / other.norm()) < tolerance
    torch.testing.assert_close(found.history["loss"], expected.history["loss"], rtol=tolerance, atol=tolerance)


ODD = data(count=61)
"""Batches of 20: the last one has one row, fewer than devices."""


@dataclass(frozen=True)
class FewerEachTime(RowRule):
    """Drops the first row after each epoch."""

    def __call__(self, progress: float, model: nn.Module, data: ImageData, rng: torch.Generator) -> Tensor:
        return data.ids[1:]


SGD = {"epochs": 3, "batch_size": 20, "momentum": 0.9, "weight_decay": 1e-2}
RECIPES = {
    "BatchNorm, augmented and mixed": quick(**SGD, transforms=(Flip(), Shift(), Mixup())),
    "GroupNorm": quick(**SGD, model="convnet:width=4,norm=group"),
    "uneven shares": quick(**SGD | {"batch_size": 19}, model="resnet18:width=2"),
    "adversarial": quick(epochs=2, batch_size=20, transforms=(Adversarial(ball=Linf(eps=0.1), steps=1, step=0.05),)),
    "clipped and noised": quick(epochs=2, batch_size=20, gradient=Shaped(clip=0.1, noise=0.1)),
    "private": quick(
        epochs=2, batch_size=4, model="mlp", normalize="fixed", sampler=Poisson(), gradient=PerSample(lot=4)
    ),
    "fewer rows": quick(epochs=3, batch_size=20, row_rule=FewerEachTime()),
    "bfloat16": quick(epochs=1, batch_size=20, precision="bf16"),
}
ROUGH = {"bfloat16": 0.005}


@pytest.mark.parametrize("name", RECIPES)
def test_two_devices_make_the_model_that_one_makes(name: str, two: Devices) -> None:
    found, expected = on_both(two, RECIPES[name]), RECIPES[name].fit([ODD], [0])
    close(found, expected, ROUGH.get(name, 1e-5))
    assert not any(module.training for module in found.models)
    kept = [None if rows is None else rows.tolist() for rows in found.kept]
    assert kept == [None if rows is None else rows.tolist() for rows in expected.kept]


def test_a_rule_that_computes_with_a_share_of_the_rows_really_does(two: Devices) -> None:
    """The two differ in their last bits, as sums in another order do: nobody computed with all rows."""
    recipe = RECIPES["BatchNorm, augmented and mixed"]
    assert digest(on_both(two, recipe).models[0]) != digest(recipe.fit([ODD], [0]).models[0])


def test_models_come_in_their_order_and_repeat_to_the_bit(two: Devices) -> None:
    mixed = Mixed((quick(epochs=1), quick(epochs=1, model="mlp")))
    sets = [data(), data(24), data().replace([3], torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).drop([0, 1])]
    first, again = on_both(two, mixed, *sets), on_both(two, mixed, *sets)
    close(first, mixed.fit(sets, range(3)))
    assert list(map(digest, first.models)) == list(map(digest, again.models))


def test_who_watches_sees_every_epoch_here(two: Devices) -> None:
    seen: list[tuple[int, int, Tensor]] = []

    def watch(member: int, epoch: int, predictor: Any) -> None:
        seen.append((member, epoch, predictor(ODD.floats(ODD.ids[:5])).scores[0]))

    fitted = on_both(two, quick(epochs=2), ODD, ODD, watch=watch)
    assert [each[:2] for each in seen] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert torch.equal(seen[1][2], fitted.models[0](ODD.floats(ODD.ids[:5])))
    assert not torch.equal(seen[0][2], seen[1][2])


def test_a_warning_of_theirs_is_heard_here(two: Devices) -> None:
    with pytest.warns(UserWarning, match="training diverged in epoch 1 .* lower learning_rate from 1e"):
        on_both(two, quick(learning_rate=1e30, momentum=0.0))


def test_a_head_that_is_solved_at_once_needs_no_others(two: Devices, tmp_path: Path) -> None:
    from mithridate.core.classifier import save_weights

    save_weights(quick().module(ODD, 0), tmp_path / "body.safetensors")
    head = quick(start_from=tmp_path / "body.safetensors", trainable="head", transforms=())
    assert digest(on_both(two, head).models[0]) == digest(head.fit([ODD], [0]).models[0])
    drawn = quick(start_from=tmp_path / "body.safetensors", trainable="head", transforms=(Shift(),))
    close(on_both(two, drawn), drawn.fit([ODD], [0]))


def test_stored_models_have_the_id_they_always_had(two: Devices, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with using(two):
        first = Stored(quick(epochs=1), store).fit([ODD], [3])
    (kept,) = tmp_path.glob("fits/*/weights.safetensors")
    made = kept.stat().st_mtime_ns
    again = Stored(quick(epochs=1), Store(tmp_path)).fit([ODD], [3])
    assert kept.stat().st_mtime_ns == made
    assert digest(first.models[0]) == digest(again.models[0])


# --- what cannot be --------------------------------------------------------------------------------------------------


class Whole(GradientRule):
    """Looks at the batch as a whole."""

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        return {}, batch.images.mean()


def test_what_cannot_be_shared_out_or_sent_is_refused_here() -> None:
    with using(Devices(2)):
        with pytest.raises(TypeError, match="Whole looks at a whole batch, so its rows cannot be shared out"):
            quick(gradient=Whole()).fit([ODD], [0])
        with pytest.raises(ValueError, match="use one of the two: the builtin map"), members_by(processes(2)):
            pass
        check_here(map)
        check_here(None)
    check_here(processes(2))


@pytest.mark.parametrize(
    ("count", "device", "says"),
    [
        (0, "cpu", "devices is 0; at least 1"),
        (2, "mps", "several GPUs .cuda. or in several processes .cpu., not on 'mps'"),
        (2, "cuda:1", "cuda:1 names one GPU, and 2 devices are the GPUs from 0 on; write --device cuda"),
        (3, "cuda", "devices is 3, but this machine has 2 GPUs; use no more"),
    ],
)
def test_devices_that_are_not_there(count: int, device: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=says):
        check_devices(count, device)
    check_devices(2, "cuda")
    check_devices(9, "cpu")


def test_one_device_is_nothing_special() -> None:
    with on_devices(1):
        assert chosen_devices() is None
    with pytest.raises(ValueError, match="devices is -1"), on_devices(-1):
        pass
    with on_devices(2):
        assert chosen_devices() is not None
    assert chosen_devices() is None


# --- what goes wrong -------------------------------------------------------------------------------------------------


class Activated(nn.BatchNorm2d):
    """BatchNorm with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def activated(classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), Activated(4), nn.Flatten(), nn.Linear(144, classes))


def test_an_error_of_theirs_is_raised_here(two: Devices) -> None:
    with pytest.raises(ValueError, match=r"cannot be sent to the processes of the devices .*'package.module:function'"):
        on_both(two, quick(model=lambda classes: nn.Linear(64, classes)))
    assert two._crew is not None
    with pytest.raises(TypeError, match=r"Activated \(network.1\) computes statistics of a batch in a way of its own"):
        on_both(two, quick(model=activated))
    assert two._crew is None


def deadly(classes: int) -> nn.Module:
    """Ends the second process; the first waits for it in its first step."""
    if distributed.is_initialized() and distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return build("mlp", classes, (1, 8, 8), 0)


class Sleepy(nn.Module):
    """Never comes back, in the second process."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        if distributed.is_initialized() and distributed.get_rank() == 1 and self.training:
            time.sleep(1000)
        return self.network(images)


def sleepy(classes: int) -> nn.Module:
    return Sleepy(build("mlp", classes, (1, 8, 8), 0))


def test_a_process_that_dies_is_named_and_one_that_hangs_is_not_waited_for() -> None:
    with on_devices(2, patience=1):
        with pytest.raises(WorkerDied, match=r"the process of device 1 was ended by SIGKILL; .* too little memory"):
            quick(model=deadly).fit([ODD], [0])
        with pytest.raises(Parted, match="a device lost the others, or waited for them in vain"):
            quick(model=sleepy).fit([ODD], [0])


class Process:
    """A process that has ended."""

    exitcode = 1

    def join(self, timeout: float) -> None:
        """Is over at once."""

    def is_alive(self) -> bool:
        return False

    def terminate(self) -> None:
        """Has nothing to end."""


def told(*messages: Any) -> crew._Rank:
    """A process that said these things and ended."""
    ours, theirs = Pipe()
    for message in messages:
        theirs.send_bytes(pickle.dumps(message))
    theirs.close()
    return crew._Rank(0, Process(), ours)


@pytest.mark.parametrize(
    ("rank", "says"),
    [
        (told(), "the process of device 0 ended with exit code 1 before it began; .* `if __name__ == '__main__':`"),
        (told(RuntimeError("OSError: no such interface")), "cannot reach each other: OSError: no such interface"),
    ],
)
def test_processes_that_do_not_start_say_why(rank: crew._Rank, says: str) -> None:
    started: Any = types.SimpleNamespace(_ranks=[rank])
    with pytest.raises(RuntimeError, match=says):
        Crew._hear(started, "ready")


def test_processes_that_say_nothing_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "START", 0.01)
    ours, theirs = Pipe()
    started: Any = types.SimpleNamespace(_ranks=[crew._Rank(0, Process(), ours)])
    with pytest.raises(RuntimeError, match="1 of the processes of devices were not ready within"):
        Crew._hear(started, "ready")
    theirs.close()


def test_of_several_errors_the_one_that_tells_most_is_raised() -> None:
    lost, own, died = Parted("lost"), ValueError("own"), WorkerDied("died")
    assert crew._worst([lost, own, died]) is died
    assert crew._worst([lost, own]) is own
    assert crew._worst([lost]) is lost
    ranks = [told(crew.Epoch(0, None), own), told()]
    heard = list(crew._last_words({rank.pipe: rank for rank in ranks}))
    assert sorted(type(error).__name__ for error in heard) == ["ValueError", "WorkerDied"]
