"""Where the trials of a study run: anything with the signature of ``map`` will do.

Builtin ``map`` (here also ``local``) runs them one after the other in this process. ``processes(2)`` runs them in
worker processes of one thread each: two such workers beat one process of two threads by 1.1-1.4x, and a result depends
on the number of threads but never on the number of workers. No module imported here loads torch before a worker has set
its number of threads.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from mithridate.core.sending import Packer, Shelf, check_sendable, unpack

local = map
"""Runs trials one after the other in this process: the builtin ``map``."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PATIENCE = 5.0
"""Seconds a worker that was told to stop gets before it is killed."""
STARTS = 3
"""Workers in a row that may be killed while they start."""


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of a task: killed, out of memory, or crashed in native code."""


@dataclass(frozen=True)
class Processes:
    """Has the signature of ``map``, over spawned worker processes. Made by ``processes``.

    Results come in the order of the items. Where the function raises, the *exception* takes the place of the result,
    and the others go on. A task whose worker dies is tried again in a fresh one; if that dies too, the exception takes
    its place.
    """

    workers: int
    """Worker processes."""
    threads: int = 1
    """Threads of each; a result is bit-identical only for an equal number."""
    retries: int = 1
    """How often a task whose worker died is tried again."""

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("threads", self.threads)):
            if value < 1:
                raise ValueError(f"{name} is {value}; at least 1 is needed")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}; 0 means that a task whose worker died is not tried again")

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yields ``function(item)`` for each item, in order.

        Raises:
            ValueError: Something cannot be sent to another process; found before any worker starts.
            RuntimeError: Workers do not start at all.
        """
        items = list(items)
        check_sendable(function, items)
        return self._results(function, items)

    def _results(self, function: Callable[[Any], Any], items: list[Any]) -> Iterator[Any]:
        shelf = Shelf()
        pool = _Pool(min(self.workers, len(items)), self.threads, shelf)
        packer = Packer(shelf.put)
        done: dict[int, Any] = {}
        deaths: Counter[int] = Counter()
        waiting = deque(range(len(items)))
        try:
            for turn in range(len(items)):
                while turn not in done:
                    for worker in pool.idle():
                        if waiting:
                            index = waiting.popleft()
                            worker.send(index, pickle.dumps(packer.pack((function, items[index]))))
                    finished, died = pool.finished()
                    done.update(finished)
                    for index, ending in died.items():
                        deaths[index] += 1
                        if deaths[index] <= self.retries:
                            waiting.appendleft(index)
                        else:
                            done[index] = WorkerDied(_obituary(ending, deaths[index]))
                yield done.pop(turn)
        finally:
            pool.close()
            shelf.close()


def processes(workers: int, threads: int = 1, retries: int = 1) -> Processes:
    """Runs a study's trials in so many worker processes: ``study(trials, folder, map=processes(2))``.

    Args:
        workers: Worker processes; one per core is a good number.
        threads: Threads of each.
        retries: How often a task whose worker died is tried again.

    A script that uses it needs the usual ``if __name__ == "__main__":``, because each worker imports the script.

    Raises:
        ValueError: Fewer than one worker or thread.

    >>> processes(2)
    Processes(workers=2, threads=1, retries=1)
    """
    return Processes(workers, threads, retries)


def _obituary(ending: str, times: int) -> str:
    hint = "; the usual reason is too little memory" if "SIGKILL" in ending else ""
    again = f", {times} times in a row" if times > 1 else ""
    return f"the worker process {ending}{again}{hint}"


# --- the parent's side -----------------------------------------------------------------------------------------------


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, threads: int, shelf: Shelf) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads, shelf), daemon=True)
        with _threads_of_children(threads):
            self.process.start()
        theirs.close()
        self.ready = False
        self.index: int | None = None

    def send(self, index: int, task: bytes) -> None:
        self.index = index
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `receive` notices a worker that just died
            self.pipe.send_bytes(task)

    def receive(self) -> dict[int, Any]:
        """Reads the one message that is there; raises EOFError when the worker is gone."""
        message = pickle.loads(self.pipe.recv_bytes())
        if not self.ready:
            self.ready = True
            return {}
        index, self.index = self.index, None
        return {} if index is None else {index: message}

    def close(self) -> str:
        """Ends the process and says how it ended."""
        self.pipe.close()
        self.process.join(0.5)  # one that died by itself keeps its own exit code
        for stop in (self.process.terminate, self.process.kill):
            if self.process.is_alive():
                stop()
                self.process.join(PATIENCE)
        return _ending(self.process.exitcode)


class _Pool:
    """Workers, replaced as they die."""

    def __init__(self, size: int, threads: int, shelf: Shelf) -> None:
        self.threads, self.shelf = threads, shelf
        self.failed_starts = 0
        self.workers = [_Worker(threads, shelf) for _ in range(size)]

    def idle(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.ready and worker.index is None]

    def finished(self) -> tuple[dict[int, Any], dict[int, str]]:
        """Waits until a worker says something; returns what was finished by then, and how workers ended at what."""
        by_pipe: dict[Any, _Worker] = {worker.pipe: worker for worker in self.workers}
        found: dict[int, Any] = {}
        died: dict[int, str] = {}
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]
            try:
                found.update(worker.receive())
                self.failed_starts = 0
            except (EOFError, OSError):
                died.update(self._replace(worker))
        return found, died

    def _replace(self, worker: _Worker) -> dict[int, str]:
        ending = worker.close()
        if not worker.ready:
            self.failed_starts += 1
            if "exit code" in ending or self.failed_starts == STARTS:
                raise RuntimeError(
                    f"a worker process could not start (it {ending}); a script that uses processes() must do its "
                    "work under `if __name__ == '__main__':`, because each worker imports the script"
                )
        self.workers[self.workers.index(worker)] = _Worker(self.threads, self.shelf)
        return {} if worker.index is None else {worker.index: ending}

    def close(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.close()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


@contextlib.contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Sets the variables that numerical libraries read when a child imports them, and puts them back."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- the worker's side -----------------------------------------------------------------------------------------------


def _serve(pipe: Connection, threads: int, shelf: Shelf) -> None:
    """Answers tasks until the parent is gone. Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    importlib.import_module("torch").set_num_threads(threads)
    pipe.send_bytes(pickle.dumps("ready"))
    while True:
        try:
            task = pipe.recv_bytes()
            pipe.send_bytes(answer(lambda task=task: unpack(pickle.loads(task), shelf.take)))
        except (EOFError, OSError):  # the parent is gone; what was done is stored
            return


def answer(read: Callable[[], tuple[Callable[[Any], Any], Any]]) -> bytes:
    """Does a task and returns its result, or the exception that it raised, pickled.

    Args:
        read: Returns the function and its item.
    """
    try:
        function, item = read()
        return pickle.dumps(function(item))
    except Exception as error:  # reported to the parent, which stores it with the trial
        error.add_note("in a worker process")
        return _sendable_error(error)


def _sendable_error(error: Exception) -> bytes:
    try:
        message = pickle.dumps(error)
        pickle.loads(message)
    except Exception:  # an exception class of the user's that does not survive pickling
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return message
