"""The leaderboard: made from the stored results, and checks of entries that others submit.

    python -m studies.leaderboard make                 # docs/leaderboard: one JSON per entry, and the page
    python -m studies.leaderboard from runs/mine me    # entries of a results folder of your own, into docs/leaderboard
    python -m studies.leaderboard check FILE...        # what is wrong with submitted entries

An entry of your own: measure, `from`, `make`, look at the page, and open a pull request with the JSON files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mithridate.experiments.files import read_json
from mithridate.experiments.leaderboard import check_file, entries_of, read_entries, write_entries
from mithridate.experiments.leaderboard_page import write_leaderboard

RESULTS = Path(__file__).parent / "results"
BOARD = Path(__file__).parent.parent / "docs" / "leaderboard"
OURS, THEIRS = "ours", "submitted"


def poisoning(folder: Path) -> bool:
    """Whether a folder of stored results holds poisoning trials."""
    study = folder / "study.json"
    return study.is_file() and read_json(study).get("kind", "poison") == "poison"


def make(board: Path = BOARD, results: Path = RESULTS) -> int:
    """Makes our entries anew and the page of all; returns how many there are."""
    (board / OURS).mkdir(parents=True, exist_ok=True)
    for old in (board / OURS).glob("*.json"):
        old.unlink()
    for folder in sorted(results.iterdir()):
        if poisoning(folder):
            source = f"studies/results/{folder.name}"
            write_entries(entries_of(folder, source=source, submitted_by="mithridate"), board / OURS)
    entries = read_entries(board)
    write_leaderboard(entries, board / "index.html")
    return len(entries)


def check(paths: Sequence[str]) -> int:
    """Says what is wrong with entries; 1 if anything is."""
    wrong = {path: problems for path in paths if (problems := check_file(path))}
    for path, problems in wrong.items():
        print(*(f"{path}: {problem}" for problem in problems), sep="\n")
    print(f"{len(paths) - len(wrong)} of {len(paths)} entries are in order")
    return int(bool(wrong))


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says."""
    match arguments:
        case ["make"]:
            print(f"{make():,} entries: {BOARD / 'index.html'}")
        case ["from", folder, name]:
            print(*write_entries(entries_of(folder, submitted_by=name), BOARD / THEIRS), sep="\n")
        case ["check", *paths] if paths:
            return check(paths)
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
