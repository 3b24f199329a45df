"""One model on several devices: gradients, statistics and trained weights are those of one device."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mithridate.core import models
from mithridate.core.batch import Batch, GradientRule
from mithridate.core.data_parallel import Group, Shared, agreed, batch_norms, shared_out, statistics_of_all, together
from mithridate.core.gradient_rules import Mean, PerSample, RowSum, Shaped

PATIENCE = 20


class Meeting:
    """Sums between threads that stand for devices."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=PATIENCE)
        self.given: list[Tensor | None] = [None] * size

    def group(self, rank: int) -> Group:
        def add(tensor: Tensor) -> None:
            assert tensor.is_contiguous()
            self.given[rank] = tensor.clone()
            self.barrier.wait()
            total = torch.stack(list(self.given)).sum(0)  # type: ignore[arg-type]
            self.barrier.wait()
            tensor.copy_(total)

        return Group(rank, len(self.given), add)


def on_each(size: int, work: Callable[[Group], Any]) -> list[Any]:
    """What `work` returns on each of so many devices at once."""
    meeting, found = Meeting(size), [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = work(meeting.group(rank))
        except BaseException as error:
            found[rank] = error
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outcome in found:
        if isinstance(outcome, BaseException) and not isinstance(outcome, threading.BrokenBarrierError):
            raise outcome
    return found


def batch(rows: int, *, dtype: torch.dtype = torch.float64, seed: int = 0, classes: int = 3) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    targets = torch.rand(rows, classes, generator=rng, dtype=dtype)
    images = torch.rand(rows, 1, 8, 8, generator=rng, dtype=dtype) + torch.arange(rows)[:, None, None, None]
    return Batch(images, targets / targets.sum(1, keepdim=True), torch.arange(rows), 0.0)


def network(name: str = "convnet:width=4", dtype: torch.dtype = torch.float64) -> nn.Module:
    return models.build(name, 3, (1, 8, 8), 0).to(dtype).train()


def close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# --- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnet:width=4", "convnet:width=4,norm=group", "resnet18:width=2", "mlp"])
@pytest.mark.parametrize(("rows", "size"), [(8, 2), (7, 2), (7, 3), (2, 3), (1, 2), (0, 2)])
def test_a_step_on_several_devices_is_the_step_on_one(name: str, rows: int, size: int) -> None:
    if rows == 1 and "norm" not in name and name != "mlp":
        name = "convnet:width=4,norm=group"  # BatchNorm has nothing to compare one image with
    model, some = network(name), batch(rows)
    alone = copy.deepcopy(model)
    expected, loss = Mean()(alone, some, torch.Generator())

    def step(group: Group) -> tuple[Any, Tensor, Any]:
        own = copy.deepcopy(model)
        return *Shared(Mean(), group)(own, some, torch.Generator()), own.state_dict()

    for gradients, mean, state in on_each(size, step):
        close(gradients, expected)
        close(mean, loss)
        close(state, alone.state_dict())


@pytest.mark.parametrize("rule", [Shaped(clip=0.1, noise=0.5), PerSample(clip=0.1, noise=0.5, lot=5)])
@pytest.mark.parametrize("rows", [5, 1, 0])
def test_what_is_clipped_and_noised_is_the_same_on_all(rule: RowSum, rows: int) -> None:
    model, some = network("convnet:width=4,norm=group"), batch(rows)
    expected, loss = rule(copy.deepcopy(model), some, torch.Generator().manual_seed(4))
    for gradients, mean in on_each(2, lambda group: _step(rule, group, model, some)):
        close(gradients, expected)
        close(mean, loss)


def _step(rule: RowSum, group: Group, model: nn.Module, some: Batch) -> tuple[dict[str, Tensor], Tensor]:
    return Shared(rule, group)(copy.deepcopy(model), some, torch.Generator().manual_seed(4))


def test_parameters_of_several_formats_are_added_up_each_in_its_own() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.coarse = nn.Linear(64, 3, dtype=torch.float32)
            self.fine = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, images: Tensor) -> Tensor:
            return self.coarse(images.flatten(1).float()) * self.fine

    model = Both()
    expected, _ = Mean()(model, batch(6), torch.Generator())
    for gradients, _ in on_each(2, lambda group: _step(Mean(), group, model, batch(6))):
        assert [one.dtype for one in gradients.values()] == [one.dtype for one in expected.values()]
        close(gradients, expected, 1e-5)


def test_the_layout_of_a_gradient_stays() -> None:
    model = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    expected, _ = Mean()(model, batch(6), torch.Generator())
    for gradients, _ in on_each(2, lambda group: _step(Mean(), group, model, batch(6))):
        assert {name: one.stride() for name, one in gradients.items()} == {n: g.stride() for n, g in expected.items()}


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm2d(3, dtype=torch.float64), (7, 3, 4, 4)),
        (nn.BatchNorm1d(3, dtype=torch.float64), (7, 3)),
        (nn.BatchNorm1d(3, momentum=None, dtype=torch.float64), (7, 3, 5)),
        (nn.BatchNorm3d(3, affine=False, dtype=torch.float64), (7, 3, 2, 2, 2)),
        (nn.BatchNorm2d(3, track_running_stats=False, dtype=torch.float64).eval(), (7, 3, 4, 4)),
    ],
    ids=["2d", "1d", "cumulative", "3d without weights", "no running statistics, eval"],
)
def test_batchnorm_sees_the_rows_of_all_devices(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Result, gradients and running statistics, against PyTorch's own layer on the whole batch, over two passes."""
    images = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 100
    slope = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def passes(own: nn.Module, some: slice) -> tuple[Any, ...]:
        part = images[some].clone().requires_grad_()
        out = own(own(part) + part)
        wanted = [part, *own.parameters()]
        return out, torch.autograd.grad(out, wanted, slope[some]), own.state_dict()

    out, (on_images, *on_weights), state = passes(copy.deepcopy(layer), slice(None))

    def work(group: Group) -> tuple[Any, ...]:
        own = copy.deepcopy(layer)
        with statistics_of_all(own, group):
            found = passes(own, slice(*group.bounds(len(images))))
        assert "forward" not in vars(own)
        return found

    found = on_each(3, work)
    close(torch.cat([one[0] for one in found]), out)
    close(torch.cat([one[1][0] for one in found]), on_images)
    for number, expected in enumerate(on_weights):
        close(sum(one[1][number + 1] for one in found), expected)
    for _, _, own in found:
        close(dict(own), dict(state))


def test_statistics_in_bfloat16_are_exact_sums() -> None:
    layer = nn.BatchNorm2d(3)
    images = (torch.randn(8, 3, 4, 4) * 3 + 40).to(torch.bfloat16)
    expected = copy.deepcopy(layer)(images)

    def work(group: Group) -> Tensor:
        own = copy.deepcopy(layer)
        with statistics_of_all(own, group):
            return own(images[slice(*group.bounds(8))])

    found = torch.cat(on_each(2, work))
    assert found.dtype == expected.dtype == torch.bfloat16
    close(found.float(), expected.float(), 2e-2)


class Activated(nn.BatchNorm2d):
    """As some libraries have it: BatchNorm with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def test_layers_with_statistics_of_their_own_are_refused() -> None:
    ordinary = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3), nn.GroupNorm(1, 3))
    assert batch_norms(ordinary) == [ordinary[0]]
    assert batch_norms(ordinary.eval()) == []
    for layer in (Activated(3), nn.SyncBatchNorm(3), nn.InstanceNorm2d(3, track_running_stats=True)):
        with pytest.raises(TypeError, match=rf"{type(layer).__name__} \(0\) computes statistics of a batch in a way"):
            batch_norms(nn.Sequential(layer))
        assert batch_norms(nn.Sequential(layer).eval()) == []
    with pytest.raises(ValueError, match=r"expected 3 channels, got images of shape \[4, 2, 8, 8\]"):
        on_each(2, lambda group: _wrong_channels(group))


def _wrong_channels(group: Group) -> None:
    layer = nn.BatchNorm2d(3)
    with statistics_of_all(layer, group):
        layer(torch.zeros(4, 2, 8, 8))


def test_dropout_is_drawn_on_each_device_for_its_own_rows() -> None:
    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.drawn: list[Tensor] = []

        def forward(self, images: Tensor) -> Tensor:
            self.drawn.append(torch.rand(4))
            return self.weight.expand(len(images), 3)

    def work(group: Group) -> Tensor:
        lock.acquire()  # threads share torch's global generator, processes do not
        try:
            torch.manual_seed(5)
            model = Noting()
            Shared(Mean(), group._replace(size=2, add=lambda tensor: None))(model, batch(4), torch.Generator())
            return model.drawn[0]
        finally:
            lock.release()

    lock = threading.Lock()
    first, second = on_each(2, work)
    torch.manual_seed(5)
    assert torch.equal(first, torch.rand(4))
    assert not torch.equal(first, second)


# --- rules -----------------------------------------------------------------------------------------------------------


class Whole(GradientRule):
    """Looks at the batch as a whole."""

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
        return {}, batch.images.mean()


def test_on_one_device_nothing_is_shared() -> None:
    assert shared_out(Mean()) == Mean()
    assert isinstance(shared_out(Whole()), Whole)
    assert agreed(torch.tensor([3, 1])).tolist() == [3, 1]


def test_a_rule_that_looks_at_whole_batches_is_refused() -> None:
    with together(Group(0, 2, lambda tensor: None)), pytest.raises(TypeError, match="Whole looks at a whole batch, so"):
        shared_out(Whole())


def test_rows_are_those_of_the_first_device() -> None:
    def work(group: Group) -> list[int]:
        with together(group):
            return agreed(torch.arange(3 + group.rank)).tolist()

    assert on_each(3, work) == [[0, 1, 2]] * 3
