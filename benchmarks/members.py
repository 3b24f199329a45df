"""The members of one fit: one after another, or side by side on all cores; the wall is the clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from benchmarks.cases import data_of
from benchmarks.measure import (
    Arm,
    Claim,
    Report,
    Row,
    Setup,
    environment,
    faster_than_straightforward,
    near_the_best,
    race,
)
from benchmarks.reference.pixels import CLASSES
from benchmarks.reference.schooling import Schooling, Way, train_by_graph, train_by_hand, train_plain
from benchmarks.reference.together import on_streams, train_stacked
from benchmarks.training import flops_per_image
from mithridate.core.data import ImageData
from mithridate.core.members import members_by
from mithridate.core.models import build
from mithridate.core.training import Recipe
from mithridate.core.workers import processes

MEMBERS = 4
MODEL = "convnet"
LEAST = 1.15
"""Times as fast as one after another with one thread, which makes the same bits: asked of two cores or more."""


def run(setup: Setup) -> Report:
    """Train four members, on a CPU or on a GPU."""
    on_gpu = setup.device.startswith("cuda")
    count, epochs, size = (20, 1, 10) if setup.small else ((25_000, 2, 500) if on_gpu else (2_500, 6, 125))
    data, school = data_of(setup, count), Schooling(epochs=epochs, batch_size=size)
    seen = MEMBERS * count * epochs
    rows: list[Row] = []
    claims: list[Claim] = []

    def add(arms: list[Arm], flops: float | None, least: float | None) -> None:
        name = f"{MEMBERS} members of {MODEL}" + (", ways of a GPU" if setup.small and arms[0].name == "fit" else "")
        found = race(
            setup,
            name,
            arms,
            unit="images per wall second",
            value=lambda seconds: seen / seconds,
            flops=flops,
            clock="wall",
            once=setup.small,  # worker processes start slowly
        )
        rows.extend(found)
        claims.extend(faster_than_straightforward(found, least) + near_the_best(found))

    if not on_gpu:
        add(_cpu_arms(setup, data, school), None, LEAST if cores() > 1 else None)
    if on_gpu or setup.small:
        add(_gpu_arms(setup, data, school), seen * flops_per_image(setup, MODEL, data), None)
    settings = {
        "images": f"{count} of 32x32x3, synthetic",
        "members": MEMBERS,
        "epochs": epochs,
        "batch": size,
        "cores": cores(),
        "counted": "building the models, training, starting the worker processes",
    }
    return Report(name="members", settings=settings, rows=rows, claims=claims, environment=environment(setup.device))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _recipe(setup: Setup, school: Schooling) -> Recipe:
    return Recipe(model=setup.spec(MODEL), epochs=school.epochs, batch_size=school.batch_size)


def _cpu_arms(setup: Setup, data: ImageData, school: Schooling) -> list[Arm]:
    recipe, workers = _recipe(setup, school), min(MEMBERS, cores())

    def in_turn(threads: int) -> str:
        with _threads(threads):
            return _note(recipe.fit([data] * MEMBERS, range(MEMBERS)).history["loss"])

    def side_by_side() -> str:
        with members_by(processes(workers)):
            return _note(recipe.fit([data] * MEMBERS, range(MEMBERS)).history["loss"])

    return [
        Arm(name=f"{workers} processes of one thread", role="mithridate", work=side_by_side),
        Arm(name="one after another, 1 thread", role="straightforward", work=lambda: in_turn(1)),
        Arm(name=f"one after another, {cores()} threads", role="variant", work=lambda: in_turn(cores())),
        Arm(name="starting the processes, no work", role="control", work=lambda: _start(workers)),
    ]


def _gpu_arms(setup: Setup, data: ImageData, school: Schooling) -> list[Arm]:
    recipe, fast = _recipe(setup, school), setup.bf16

    def networks() -> list[nn.Module]:
        return [build(setup.spec(MODEL), CLASSES, data.shape, seed).to(setup.device) for seed in range(MEMBERS)]

    def in_turn(train: Callable[[nn.Module], float]) -> Callable[[], str]:
        return lambda: _note([[train(network)] for network in networks()])

    def by_hand(network: nn.Module, *, compiled: bool = False) -> float:
        way = Way(bf16=fast, compiled=compiled)
        return train_by_hand(network, data.images, data.labels, school, way)

    def by_graph(network: nn.Module) -> float:
        return train_by_graph(network, data.images, data.labels, school, bf16=fast)

    def by_plain(network: nn.Module) -> float:
        return train_plain(network, data.images, data.labels, school)

    def fit() -> str:
        return _note(recipe.fit([data] * MEMBERS, range(MEMBERS)).history["loss"])

    def streams() -> str:
        return _note([[loss] for loss in on_streams(by_hand, networks(), data.device)])

    def stacked() -> str:
        return _note([[loss] for loss in train_stacked(networks(), data.images, data.labels, school, bf16=fast)])

    ways: dict[str, Callable[[], str]] = {
        "one after another, by hand": in_turn(by_hand),
        "one after another, torch.compile": in_turn(partial(by_hand, compiled=True)),
        "one after another, one CUDA graph per step": in_turn(by_graph),
        "a stream each": streams,
        "stacked, vmap": stacked,
    }
    if setup.small:
        del ways["one after another, torch.compile"]  # needs a compiler, and longer than all the rest
    return [
        Arm(name="fit", role="mithridate", work=fit),
        Arm(name="one after another, plain fp32 NCHW", role="straightforward", work=in_turn(by_plain)),
        *(Arm(name=name, role="variant", work=work) for name, work in ways.items()),
    ]


def _start(workers: int) -> str:
    """How long it takes until worker processes have answered; the images per second of this row mean nothing."""
    list(processes(workers)(abs, range(workers)))
    return "see its seconds: no image is trained on"


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _note(losses: list[list[float]]) -> str:
    return "final losses " + ", ".join(f"{loss[-1]:.2f}" for loss in losses)
