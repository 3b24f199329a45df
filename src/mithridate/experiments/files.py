"""Files that are whole or absent, and locks that a dead process cannot hold."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: two workers may then do the same work twice; the results are the same
    fcntl = None

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""How a system says that no more can be written."""


class DiskFull(OSError):
    """Nothing more can be written where results go; what is finished stays."""


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, a line per key, so that a reader sees all of it or nothing, even if the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as handle:
            handle.write(_text(value))
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def clear(folder: Path, files: str = "*") -> None:
    """Removes what processes that were killed left half-written; for who holds the lock on these files."""
    for partial in folder.glob(f"{files}.partial") if fcntl else ():
        partial.unlink(missing_ok=True)


def no_room(error: BaseException | None) -> bool:
    """Tells whether an error, or what caused it, is a disk without room, as Python or safetensors report it.

    >>> (
    ...     no_room(OSError(errno.ENOSPC, "No space left on device")),
    ...     no_room(OSError(errno.EACCES, "Permission denied")),
    ... )
    (True, False)
    """
    while error is not None:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if (isinstance(error, OSError) and error.errno in FULL) or (code and int(code[1]) in FULL):
            return True
        error = error.__cause__
    return False


def _text(value: Any) -> str:
    """Lays out a mapping with one key a line, its value compact: easy to read, and long lists stay on one line."""
    if not isinstance(value, dict):
        return json.dumps(value) + "\n"
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()) + "\n}\n"


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: The file is damaged; the message names it.
        FileNotFoundError: There is no such file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and the next run makes it again") from error


def publish(partial: Path, final: Path) -> None:
    """Gives a complete folder its name."""
    for path in partial.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    if final.exists():  # damaged, or made at the same time where there are no locks
        shutil.rmtree(final)
    partial.replace(final)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock file while the block runs; yields whether this process got it.

    Args:
        path: The lock file; it is removed at the end.
        wait: Wait for whoever holds it, instead of yielding False.
    """
    handle = _acquire(path, wait)
    if isinstance(handle, bool):
        yield handle
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        handle.close()


def _acquire(path: Path, wait: bool) -> Any:
    """Returns the open, locked file; False if another holds it; True where the system or file system has no locks."""
    if fcntl is None:
        return True
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                return handle  # and not a file that the last holder has just removed
        except BlockingIOError:
            handle.close()
            return False
        except FileNotFoundError:
            pass
        except OSError:
            handle.close()
            return True
        handle.close()


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def making(final: Path, last: str, *, wait: bool = True) -> Iterator[Path | None]:
    """Gives a folder to fill, which gets its final name when the block ends; None if there is nothing to do.

    Args:
        final: The folder to make, by this process or another.
        last: A file that is in it when it is complete.
        wait: Wait for another process that is making it, instead of yielding None at once.
    """
    if (final / last).exists():
        yield None
        return
    with locked(final.with_name(f"{final.name}.lock"), wait=wait) as mine:
        if not mine or (final / last).exists():
            yield None
            return
        partial = final.with_name(f"{final.name}.partial" if fcntl else f"{final.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was stopped
        partial.mkdir(parents=True)
        try:
            yield partial
            publish(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
