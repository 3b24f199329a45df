"""Reads hostile files in a process of its own and writes how much memory each took at most, as JSON lines.

Args: a folder that `test_hostile_memory.py` filled with `plan.json` and the contents.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from mithridate.core.safe_images import read_image
from mithridate.core.stand_ins import EVERYTHING
from mithridate.core.unpickling import load_pickle, load_torch
from tests.poisoning.exchange.hostile_cases import FORMS, data, fitted

STATUS = Path("/proc/self/status")


def memory(name: str) -> int:
    """Bytes that this process has in memory (VmRSS), or has had at most since it was last asked to forget (VmHWM)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forget() -> None:
    """Makes VmHWM what it is now."""
    Path("/proc/self/clear_refs").write_text("5")


def main(home: Path) -> None:
    sets = data()
    readers = {
        "pickle": lambda path: load_pickle(path, EVERYTHING),
        "torch": lambda path: load_torch(path, EVERYTHING),
        "image": lambda path: read_image(path, sets.train.shape),
    }
    plan = json.loads((home / "plan.json").read_text())
    for item in plan:  # what every read needs is loaded before anything is measured
        if item["reader"] in FORMS:
            FORMS[item["reader"]].read(home / item["path"], sets)
    for item in plan:
        path, file = home / item["path"], home / item["file"]
        kept = file.read_bytes() if file.is_file() else b""
        if item["reader"] in FORMS:
            fitted(file, (home / item["content"]).read_bytes())
        else:
            shutil.copyfile(home / item["content"], file)
        forget()
        before = memory("VmRSS")
        try:
            reader = FORMS[item["reader"]].read if item["reader"] in FORMS else readers[item["reader"]]
            reader(path, sets) if item["reader"] in FORMS else reader(path)  # type: ignore[call-arg]
            said = "read"
        except (ValueError, FileNotFoundError) as error:
            said = str(error)
        sys.stdout.write(json.dumps({**item, "grew": memory("VmHWM") - before, "said": said[-200:]}) + "\n")
        file.write_bytes(kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
