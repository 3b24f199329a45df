"""Help texts are joined before they are wrapped: the lines of the source are not the lines of the terminal."""

from __future__ import annotations

import os
import subprocess
import sys


def test_the_lines_of_a_docstring_are_joined() -> None:
    command = [sys.executable, "-m", "mithridate.cli", "lift", "stereo", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "120"})
    text = " ".join(part.strip(" │") for part in done.stdout.splitlines())
    assert "several are measured side by side, each in a process of its own" in " ".join(text.split())
    lines = [line.strip(" │") for line in done.stdout.splitlines()]
    starts = [line for line in lines if line.startswith("each in a process of its own")]
    assert not starts  # a line of the source, whose break was kept
