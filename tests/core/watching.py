"""Sees what a reader does besides reading: processes, sockets, files that it writes, code that it runs or imports."""

from __future__ import annotations

import builtins
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

Image.init()  # what it imports on first use is no deed of a reader
_TOLD = """
ctypes.dlopen ftplib.connect http.client.connect os.chmod os.exec os.fork os.forkpty os.kill os.link os.mkdir
os.posix_spawn os.putenv os.remove os.rename os.rmdir os.spawn os.symlink os.system os.truncate pickle.find_class
shutil.copyfile shutil.move shutil.rmtree shutil.unpack_archive signal.pthread_kill socket.__new__ socket.bind
socket.connect socket.getaddrinfo subprocess.Popen tempfile.mkdtemp tempfile.mkstemp urllib.Request webbrowser.open
"""
_DEEDS = frozenset(_TOLD.split())
"""What Python itself tells of (PEP 578). `pickle.find_class`: somebody's pickle was believed."""
_OURS = {"PIL", "encodings", "mithridate", "numpy", "pyarrow", "torch"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_RUNS = (builtins.eval, builtins.exec)
_seen: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    strange = (
        event == "import"
        and arguments[0].partition(".")[0] not in _OURS
        and arguments[0] not in sys.stdlib_module_names
    )
    if event in _DEEDS or writes or strange:
        _seen.append(f"{event} {str(arguments)[:200]}")


@functools.cache
def _installed() -> None:
    sys.addaudithook(_hook)  # stays until the end, and is quiet outside of `watched`


class Hangs(BaseException):
    """No reader catches it."""


def _hangs(*_: object) -> None:
    raise Hangs("nothing came back after 20 s")


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Yields a list to which every deed inside is added; what takes 20 s ends in `Hangs`."""
    global _seen
    _installed()
    found: list[str] = []

    def told(name: str, plain: Any) -> Any:
        def called(*arguments: Any, **named: Any) -> Any:
            if plain in _RUNS and not isinstance(arguments[0], str | bytes):
                return plain(*arguments, **named)  # an import of ours, or an annotation
            return found.append(f"{name} {str(arguments)[:200]}")

        return called

    known = ((os, "system"), (subprocess, "Popen"), (socket, "socket"), (builtins, "exec"), (builtins, "eval"))
    with pytest.MonkeyPatch.context() as patch:
        for module, name in known:
            patch.setattr(module, name, told(name, getattr(module, name)))
        before = signal.signal(signal.SIGALRM, _hangs)
        signal.setitimer(signal.ITIMER_REAL, 20)
        _seen = found
        try:
            yield found
        finally:
            _seen = None
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
