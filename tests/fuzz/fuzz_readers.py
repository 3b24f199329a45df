"""Fuzzes the readers of strangers' files with atheris, which is led by the code that an input reaches.

    pip install atheris
    python -m tests.fuzz.fuzz_readers pickle -max_total_time=300    # or torch, image, or a format: npz, png-folder

The first word says what is read, everything after it goes to libFuzzer. An input that makes a reader raise anything but
its two errors, run anything, or take more than 2 GiB or 10 seconds ends the run and is written down.
Seeds are the corpus of `tests.core.hostile` and what the formats themselves write.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

atheris = pytest.importorskip("atheris", reason="fuzzing is run by hand, with atheris")

with atheris.instrument_imports(include=["mithridate.core", "mithridate.poisoning.exchange"]):
    from mithridate.core.safe_images import read_image
    from mithridate.core.stand_ins import EVERYTHING
    from mithridate.core.unpickling import load_pickle, load_torch
    from tests.core import hostile, hostile_files
    from tests.core.watching import watched
    from tests.poisoning.exchange.hostile_cases import FORMS, data, kinds, written

LIMITS = ["-rss_limit_mb=2048", "-timeout=10", "-max_len=20000"]


def target(what: str, home: Path) -> tuple[Callable[[bytes], object], list[bytes]]:
    """Returns what reads an input, and the first inputs."""
    sets, canary, file = data(), home / "canary", home / "file"
    simple: dict[str, tuple[Callable[[Path], object], list[bytes]]] = {
        "pickle": (lambda path: load_pickle(path, EVERYTHING), list(hostile.pickles(canary).values())),
        "torch": (lambda path: load_torch(path, EVERYTHING), list(hostile.torch_files(canary).values())),
        "image": (lambda path: read_image(path, sets.train.shape), list(hostile_files.image_files().values())),
    }
    if what in simple:
        read, seeds = simple[what]

        def once(content: bytes) -> object:
            file.write_bytes(content)
            return read(file)

        return once, [seed for seed in seeds if len(seed) < 20_000]
    form = FORMS[what]
    path = written(form, home / "home")
    parts = kinds(path)
    kept = {part: part.read_bytes() for part in parts}

    def changed(content: bytes) -> object:
        part = parts[content[0] % len(parts)] if content else parts[0]
        part.write_bytes(content[1:])
        try:
            return form.read(path, sets)
        finally:
            part.write_bytes(kept[part])

    return changed, [bytes([number]) + content for number, content in enumerate(kept.values()) if len(content) < 20_000]


def main() -> None:
    """Reads the command line and fuzzes until libFuzzer stops."""
    if len(sys.argv) < 2 or sys.argv[1] not in ("pickle", "torch", "image", *FORMS):
        raise SystemExit(f"say what is read: pickle, torch, image, {', '.join(FORMS)}")
    what = sys.argv.pop(1)
    home = Path(tempfile.mkdtemp())
    (home / "home").mkdir()
    (home / "seeds").mkdir()
    read, seeds = target(what, home)
    for number, seed in enumerate(seeds):
        (home / "seeds" / str(number)).write_bytes(seed)

    def once(content: bytes) -> None:
        with watched() as deeds, contextlib.suppress(ValueError, FileNotFoundError):
            read(content)
        strange = [deed for deed in deeds if not deed.startswith(("open", "os.mkfifo"))]
        if strange or (home / "canary").exists():
            raise RuntimeError(f"reading did something: {strange[:3]}")

    atheris.Setup([*sys.argv, *LIMITS, str(home / "seeds")], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
