"""Trials on a Ray cluster, of one machine or of many: again something with the signature of ``map``.

A task whose worker is killed is tried again elsewhere, at most two tasks per slot are under way, and large tensors go
into the object store once: all tasks of a machine read them in the same memory. Tasks read and write files under the
paths that the calling process uses, so machines share its folders.

Reference: Moritz et al. "Ray: A Distributed Framework for Emerging AI Applications". OSDI, 2018. arXiv:1712.05889.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mithridate import __version__
from mithridate.core.extras import extra
from mithridate.core.sending import Packer, Parcel, check_sendable, unpack
from mithridate.core.workers import WorkerDied, answer

PATIENCE = 10.0
"""Seconds that an address has to answer; Ray itself waits for two minutes and then ends the process."""
AHEAD = 2
"""Tasks under way per slot: one that runs and one that is there when it ends."""
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2 says first (RFC 9113, 3.4); Ray answers with a frame of settings."""
NO_WAITING = "RAY_prestart_worker_first_driver"
"""A setting of a cluster that starts, in Ray 2.60; versions that do not know it take no notice."""

_held: ContextVar[contextlib.ExitStack | None] = ContextVar("held", default=None)


@dataclass(frozen=True)
class Ray:
    """Has the signature of ``map``, over the tasks of a Ray cluster. Made by ``ray_workers``.

    Results come in the order of the items. Where the function raises, or its worker dies more than `retries` times, the
    *exception* takes the place of the result, and the others go on. What is under way is cancelled when the caller
    stops.
    """

    address: str | None = None
    """host:port, ray://host:port, or auto: the cluster of this machine. None: what RAY_ADDRESS says, else a cluster of
    this machine alone, which ends with the work."""
    gpus: float = 0.0
    """GPUs of each task: 0.25 lets four tasks share one."""
    retries: int = 2
    """How often a task whose worker died is tried again."""
    threads: int = 1
    """Torch threads and CPUs of each task; a result is bit-identical only for an equal number of threads."""

    def __post_init__(self) -> None:
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ValueError(f"gpus is {self.gpus:g}; a task takes a fraction of one GPU, like 0.25, or whole ones")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; at least 1 is needed")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}; 0 means that a task whose worker died is not tried again")

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yields ``function(item)`` for each item, in order.

        Raises:
            ValueError: Something cannot be sent to another process; no cluster can be reached; it has too few GPUs; or
                a machine of it has other versions or folders.
            MissingExtra: Ray is not installed.
        """
        items = list(items)
        check_sendable(function, items)
        return self._results(function, items)

    def _results(self, function: Callable[[Any], Any], items: list[Any]) -> Iterator[Any]:
        if not items:
            return
        with self.connected() as ray:
            tasks = _Tasks(ray, self, function, items)
            try:
                for turn in range(len(items)):
                    yield tasks.result(turn)
            finally:
                tasks.cancel()

    def slots(self) -> int:
        """Returns how many tasks run at once on the cluster as it is now; one of this machine alone is not started.

        Raises:
            ValueError: It cannot be reached, or has too few GPUs.
        """
        if self._where() == "local" and not _ray().is_initialized():
            return max(1, (os.cpu_count() or 1) // self.threads)
        with self.connected() as ray:
            return self._slots(ray)

    def _slots(self, ray: Any) -> int:
        have = ray.cluster_resources()
        if have.get("GPU", 0) < self.gpus:
            raise ValueError(
                f"each task asks for {self.gpus:g} GPUs, and the Ray cluster has {have.get('GPU', 0):g}; ask for less "
                "(--gpus-per-trial), run on the CPU (--device cpu), or add a machine with a GPU to the cluster"
            )
        slots = have.get("CPU", 0) / self.threads
        return max(1, int(min(slots, have["GPU"] / self.gpus) if self.gpus else slots))

    def _where(self) -> str:
        return self.address or os.environ.get("RAY_ADDRESS") or "local"

    @contextlib.contextmanager
    def connected(self) -> Iterator[Any]:
        """Gives the module `ray`, connected; at the end closes a connection that was opened here.

        Raises:
            ValueError: No cluster can be reached there.
            MissingExtra: Ray is not installed.
        """
        ray = _ray()
        with contextlib.ExitStack() as here:
            if not ray.is_initialized():
                _connect(ray, self._where())
                (_held.get() or here).callback(_disconnect, ray)
            yield ray


def ray_workers(address: str | None = None, gpus: float = 0.0, retries: int = 2, threads: int = 1) -> Ray:
    """Runs a study's trials on a Ray cluster: ``study(trials, folder, map=ray_workers("head:6379"))``.

    Needs the extra `ray`. All machines need the same versions of mithridate and torch, and the folders that the study
    reads and writes under the same paths. A cluster to which a program is connected already is used as it is. Tensors
    of a task that came with it (`Arrays`) are read-only memory: code that writes into its images clones them first.

    Args:
        address: Of the cluster, as ``ray.init`` takes it; None: what RAY_ADDRESS says, else this machine alone.
        gpus: GPUs of each task; 0.25 lets four tasks share one.
        retries: How often a task whose worker died is tried again.
        threads: Torch threads and CPUs of each task.

    Raises:
        ValueError: A number of GPUs that no task can have, fewer than one thread.

    >>> ray_workers("head:6379", gpus=0.25)
    Ray(address='head:6379', gpus=0.25, retries=2, threads=1)
    """
    return Ray(address, gpus, retries, threads)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Lets several calls in this block share one connection, so that a cluster is started once."""
    if _held.get() is not None:
        yield
        return
    with contextlib.ExitStack() as stack:
        token = _held.set(stack)
        try:
            yield
        finally:
            _held.reset(token)


# --- the caller's side -----------------------------------------------------------------------------------------------


def _ray() -> Any:
    extra("ray.exceptions", "ray", "--workers ray")  # any folder called ray can be imported; one without this is not it
    return importlib.import_module("ray")


class _Tasks:
    """The tasks of one call: which wait, are under way, are done."""

    def __init__(self, ray: Any, settings: Ray, function: Callable[[Any], Any], items: list[Any]) -> None:
        self.ray, self.settings, self.function, self.items = ray, settings, function, items
        options = {"num_cpus": settings.threads, "num_gpus": settings.gpus, "max_retries": 0}
        self.remote = ray.remote(_by_value()).options(**options)
        self.packer = Packer(ray.put, ray.cloudpickle.CloudPickler)
        self.setup = ray.put(_setup(settings.threads))
        self.waiting = deque(range(len(items)))
        self.under_way: dict[Any, int] = {}
        self.done: dict[int, Any] = {}
        self.deaths: Counter[int] = Counter()

    def result(self, turn: int) -> Any:
        """Returns what came of an item, and keeps the cluster busy until it is there."""
        while turn not in self.done:
            most = AHEAD * self.settings._slots(self.ray)
            while self.waiting and len(self.under_way) < most:
                index = self.waiting.popleft()
                pickled, places = self.packer.pack((self.function, self.items[index]))
                self.under_way[self.remote.remote(self.setup, pickled, places)] = index
            for found in self.ray.wait(list(self.under_way), num_returns=1)[0]:
                self._take(found, self.under_way.pop(found))
        return self.done.pop(turn)

    def _take(self, found: Any, index: int) -> None:
        try:
            fits, content = self.ray.get(found)
        except self.ray.exceptions.RayError as error:  # the worker or its machine is gone; trials' own errors come back
            self.deaths[index] += 1
            if self.deaths[index] <= self.settings.retries:
                self.waiting.appendleft(index)
            else:
                self.done[index] = WorkerDied(_obituary(error, self.deaths[index]))
            return
        if not fits:
            raise ValueError(content)
        self.done[index] = self.ray.cloudpickle.loads(content)

    def cancel(self) -> None:
        """Ends what is under way."""
        for task in self.under_way:
            with contextlib.suppress(Exception):  # the connection may be what failed
                self.ray.cancel(task, force=True)


def _obituary(error: Exception, times: int) -> str:
    again = f", {times} times in a row" if times > 1 else ""
    return f"the Ray worker died ({type(error).__name__}){again}; the usual reason is too little memory"


def _setup(threads: int) -> dict[str, Any]:
    """What a worker has to be like."""
    return {"versions": _versions(), "folder": str(Path.cwd()), "path": list(sys.path), "threads": threads}


def _versions() -> dict[str, str]:
    torch = importlib.import_module("torch")
    python = ".".join(platform.python_version_tuple()[:2])
    return {"mithridate": __version__, "torch": str(torch.__version__), "Python": python}


def _connect(ray: Any, where: str) -> None:
    """Connects to a cluster, or starts one of this machine alone.

    Raises:
        ValueError: It cannot be reached, or refuses this process.
    """
    settings: dict[str, Any] = {"address": where, "log_to_driver": False, "logging_level": "ERROR"}
    how = "start one with `ray start --head`, or leave the address out to use this machine alone: --workers ray"
    if where == "local":
        settings |= {"include_dashboard": False}
    elif where != "auto":
        _reach(where, how)
        how = "it answers, but lets nobody in: does the cluster ask for a token (then set RAY_AUTH_MODE=token)?"
    _listen(False)
    try:
        with _workers_start_later() if where == "local" else contextlib.nullcontext():
            ray.init(**settings)
    except (Exception, SystemExit) as error:  # a cluster that hangs up ends with SystemExit
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"no connection to Ray at {where} ({said}); {how}") from error


@contextlib.contextmanager
def _workers_start_later() -> Iterator[None]:
    """Lets Ray not wait for its first workers: if one of them is killed while it starts, Ray waits for ever."""
    before = os.environ.get(NO_WAITING)
    os.environ[NO_WAITING] = before or "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NO_WAITING]


def _disconnect(ray: Any) -> None:
    ray.shutdown()
    _listen(True)


def _reach(where: str, how: str) -> None:
    """Asks whether something at an address speaks as Ray does.

    Raises:
        ValueError: Nothing does.
    """
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{where!r} is no address of Ray; write host:port, ray://host:port or auto, as in ray:auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PATIENCE) as line:
            line.settimeout(PATIENCE)
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            line.sendall(GREETING)
            if line.recv(9)[3:4] != b"\x04":
                raise OSError("what listens there is not Ray")
    except (OSError, OverflowError) as error:
        raise ValueError(f"no Ray answers at {where} ({error}); {how}") from error


def _listen(aloud: bool) -> None:
    """Whether messages of the cluster's machines are printed: they go to standard output, where results belong."""
    worker: Any = sys.modules.get("ray._private.worker")
    if hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = aloud


# --- the worker's side -----------------------------------------------------------------------------------------------


def _by_value() -> Callable[..., tuple[bool, Any]]:
    """Makes the task. It is sent as code, so that a machine without this package can say so."""

    def trial(setup: dict[str, Any], pickled: bytes, places: list[Any]) -> tuple[bool, Any]:
        import importlib
        import socket
        import sys

        sys.path += [folder for folder in setup["path"] if folder not in sys.path]
        try:
            module = importlib.import_module("mithridate.core.ray_workers")
            return module.serve(setup, pickled, places)
        except (ImportError, AttributeError) as error:
            return False, (
                f"the Ray worker on {socket.gethostname()} cannot use mithridate ({error}); install "
                f"{setup['versions']['mithridate']} there"
            )

    return trial


def serve(setup: dict[str, Any], pickled: bytes, places: list[Any]) -> tuple[bool, Any]:
    """Does a task in a worker of Ray.

    Returns:
        True and the pickled result, or False and what makes this worker unfit.
    """
    here = _versions()
    other = [
        f"{name} {here[name]} (here {wanted})" for name, wanted in setup["versions"].items() if here[name] != wanted
    ]
    if other:
        return False, (
            f"the Ray worker on {socket.gethostname()} has {', '.join(other)}; results would depend on who computed "
            "them: install the same versions on all machines of the cluster"
        )
    try:
        os.chdir(setup["folder"])
    except OSError as error:
        return False, (
            f"the Ray worker on {socket.gethostname()} does not see the folder {setup['folder']} ({error.strerror}); "
            "start from a folder that all machines of the cluster share"
        )
    ray = importlib.import_module("ray")
    importlib.import_module("torch").set_num_threads(setup["threads"])  # a worker that is used again keeps its number
    return True, answer(lambda: unpack(Parcel(pickled, places), ray.get))
