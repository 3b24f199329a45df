"""The processes that train one model together, a device each, and the one that waits for them.

All run the same training; `data_parallel` is what they share out. Whoever asked for it takes no part: whatever becomes
of one of them, the others are ended, and an error says which it was.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from mithridate.core.data import ImageData, Patch
from mithridate.core.data_parallel import Group, together
from mithridate.core.progress import quiet
from mithridate.core.sending import Packer, Shelf, unpack
from mithridate.core.states import Member
from mithridate.core.workers import WorkerDied, answer

if TYPE_CHECKING:
    from mithridate.core.training import Recipe

START = 300.0
"""Seconds in which the processes have to find each other."""
GRACE = 2.0
"""Seconds in which other processes may say more about what went wrong, before all are ended."""
SOON, PATIENT_END = 0.5, 5.0
"""Seconds until a process that closed its pipe has ended, and until one that was told to end is stopped."""


class Epoch(NamedTuple):
    """An epoch of a training that is over."""

    number: int
    module: nn.Module | None
    """The model after it, in eval mode on the CPU, where it was asked for."""


# --- this process ----------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """What a process is told when it starts."""

    rank: int
    count: int
    kind: str
    store: str
    """The file through which they find each other."""
    patience: float
    threads: int

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.rank) if self.kind == "cuda" else torch.device(self.kind)


class _Trained(NamedTuple):
    """The last message about a training."""

    member: Member | None
    """Of the first process."""
    warned: list[tuple[type[Warning], str]]


class Parted(RuntimeError):
    """A process did not hear from the others: they have ended, or hang."""


class _Rank(NamedTuple):
    """One process and the pipe to it."""

    number: int
    process: Any
    pipe: Connection

    def send(self, message: bytes) -> None:
        """Sends a message; that the process has ended is what it answers."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send_bytes(message)

    def receive(self) -> Any:
        """Returns the next message; the error that the process met; or that it ended."""
        try:
            return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return WorkerDied(f"the process of device {self.number} {self.ending()}")

    def ending(self) -> str:
        """Says how the process ended."""
        self.process.join(SOON)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"was ended by {name}{'; the usual reason is too little memory' if name == 'SIGKILL' else ''}"


class Crew:
    """The processes of several devices; they find each other through a file.

    Args:
        count: Devices.
        kind: Of device: cpu or cuda.
        patience: Seconds for which a device waits for the others in the middle of a step.

    Raises:
        RuntimeError: They do not start, or do not find each other.
    """

    def __init__(self, count: int, kind: str, patience: float) -> None:
        self.kind = kind
        self._shelf = Shelf()
        self._packer = Packer(self._shelf.put)
        self._folder = tempfile.TemporaryDirectory(prefix="mithridate-", ignore_cleanup_errors=True)
        self._moved: tuple[Any, ...] = ()
        self.busy = False
        """Whether some of them may be in the middle of a training."""
        self._ranks: list[_Rank] = []
        store, threads = str(Path(self._folder.name) / "devices"), max(1, torch.get_num_threads() // count)
        try:
            for rank in range(count):
                self._start(_Place(rank, count, kind, store, patience, threads))
            self._meet()
        except BaseException:
            self.busy = True
            self.close()
            raise

    def _start(self, place: _Place) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, place, self._shelf), daemon=True)
        process.start()
        theirs.close()
        self._ranks.append(_Rank(place.rank, process, ours))

    def _meet(self) -> None:
        self._hear("ready")  # only then do they look for each other: none has to wait for one that still starts
        for rank in self._ranks:
            rank.send(pickle.dumps("go"))
        self._hear("connected")

    def _hear(self, expected: str) -> None:
        """Waits until all have said a word."""
        left, end = {rank.pipe: rank for rank in self._ranks}, time.monotonic() + START
        while left:
            ready: list[Any] = wait(list(left), timeout=max(0.0, end - time.monotonic()))
            if not ready:
                raise RuntimeError(f"{len(left)} of the processes of devices were not {expected} within {START:g} s")
            for pipe in ready:
                rank = left.pop(pipe)
                message = rank.receive()
                if isinstance(message, WorkerDied):
                    raise RuntimeError(
                        f"{message} before it began; a script that uses on_devices() must do its work under "
                        "`if __name__ == '__main__':`, because each process imports the script"
                    )
                if isinstance(message, Exception):
                    raise RuntimeError(f"the processes of devices cannot reach each other: {message}") from message

    def train(self, recipe: Recipe, data: ImageData, seed: int, watched: bool) -> Iterator[Epoch | Member]:
        """Has a model trained by all; yields what the first of them says, at last the model.

        Raises:
            ValueError: The recipe cannot be sent.
            Exception: What a process raised, or that it ended.
        """
        job = self._packed((recipe, self._on_cpu(data), seed, watched))
        self.busy = True
        for rank in self._ranks:
            rank.send(job)
        left: dict[Any, _Rank] = {rank.pipe: rank for rank in self._ranks}
        found: list[_Trained] = []
        while left:
            for pipe in wait(list(left)):
                message = left[pipe].receive()
                if isinstance(message, Exception):
                    del left[pipe]
                    raise _worst([message, *_last_words(left)])
                if isinstance(message, Epoch):
                    yield message
                else:
                    found.append(message)
                    del left[pipe]
        self.busy = False
        for category, text in dict.fromkeys(warned for one in found for warned in one.warned):
            warnings.warn(text, category, stacklevel=4)
        module, losses, kept = next(one.member for one in found if one.member is not None)
        yield Member(module.to(data.device), losses, None if kept is None else kept.to(data.device))

    def _packed(self, job: Any) -> bytes:
        try:
            return pickle.dumps(self._packer.pack(job))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"the recipe cannot be sent to the processes of the devices ({error}); name your model as "
                "'package.module:function' instead of a lambda or a local function, or use one device"
            ) from error

    def _on_cpu(self, data: ImageData) -> ImageData:
        """The data as they are sent; images that lie on a GPU are copied once, whatever of them is visible."""
        if self.kind == "cpu":
            return data
        if not self._moved or self._moved[0] is not data.images or self._moved[1] is not data.labels:
            self._moved = data.images, data.labels, data.images.cpu(), data.labels.cpu()
        rows, patch = data.rows, data.patch
        return ImageData(
            self._moved[2],
            self._moved[3],
            data.classes,
            None if rows is None else rows.cpu(),
            None if patch is None else Patch(patch.rows.cpu(), patch.images.cpu(), patch.labels.cpu()),
            data.decoder,
        )

    def close(self) -> None:
        """Ends the processes; those that hold a GPU and wait for work end by themselves."""
        for rank in self._ranks:
            rank.pipe.close()
            if self.busy or self.kind == "cpu":
                rank.process.terminate()
        for rank in self._ranks:
            rank.process.join(PATIENT_END)
            for stop in (rank.process.terminate, rank.process.kill):
                if rank.process.is_alive():
                    stop()
                    rank.process.join(PATIENT_END)
        self._shelf.close()
        self._folder.cleanup()


def _last_words(left: dict[Any, _Rank]) -> Iterator[Exception]:
    """What other processes say soon after the first error: one may tell more than that it lost the others."""
    left, end = dict(left), time.monotonic() + GRACE
    while left and (ready := wait(list(left), timeout=max(0.0, end - time.monotonic()))):
        for pipe in ready:
            message = left[pipe].receive()
            if not isinstance(message, Epoch):
                del left[pipe]
            if isinstance(message, Exception):
                yield message


def _worst(errors: list[Exception]) -> Exception:
    return min(errors, key=lambda error: (not isinstance(error, WorkerDied), isinstance(error, Parted)))


# --- their side ------------------------------------------------------------------------------------------------------


def _serve(pipe: Connection, place: _Place, shelf: Shelf) -> None:
    """Trains what the parent asks for, until it is gone. Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what libraries say while they connect is no result
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(place.threads)
    pipe.send_bytes(pickle.dumps("ready"))
    try:
        pipe.recv_bytes()
        _join(place)
    except Exception as error:  # a library or a driver that is missing, say
        pipe.send_bytes(pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}")))
        return
    pipe.send_bytes(pickle.dumps("connected"))
    with together(Group(place.rank, place.count, _add)), quiet():
        while True:
            try:
                task = pipe.recv_bytes()
            except (EOFError, OSError):
                break
            work = partial(_train, pipe, place)
            pipe.send_bytes(answer(lambda work=work, task=task: (work, unpack(pickle.loads(task), shelf.take))))
    distributed.destroy_process_group()


def _join(place: _Place) -> None:
    more: dict[str, Any] = {}
    if place.kind == "cuda":
        torch.cuda.set_device(place.rank)
        more["device_id"] = place.device
    else:  # they are on one machine: nobody else has to reach them
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    distributed.init_process_group(
        "nccl" if place.kind == "cuda" else "gloo",
        init_method=f"file://{place.store}",
        rank=place.rank,
        world_size=place.count,
        timeout=timedelta(seconds=place.patience),
        **more,
    )


def _add(tensor: Tensor) -> None:
    try:
        distributed.all_reduce(tensor)
    except RuntimeError as error:
        raise Parted(f"a device lost the others, or waited for them in vain ({str(error).splitlines()[0]})") from error


def _train(pipe: Connection, place: _Place, job: tuple[Recipe, ImageData, int, bool]) -> _Trained:
    """Trains a model as one process would; the first process tells of it."""
    recipe, data, seed, watched = job
    first, state = place.rank == 0, None
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        for number, state in enumerate(recipe.states(data.to(place.device), seed)):
            if first:
                seen = copy.deepcopy(state.module).eval().cpu() if watched else None
                pipe.send_bytes(pickle.dumps(Epoch(number, seen)))
        assert state is not None
        member = state.member()
    if not first:
        return _Trained(None, [])
    kept = None if member.kept is None else member.kept.cpu()
    warned = [(warning.category, str(warning.message)) for warning in noted]
    return _Trained(Member(member.module.cpu(), member.losses, kept), warned)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
    os._exit(1)
