"""What a scan leaves: a ranked list as CSV, the rows to drop, and a page with the top suspects."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mithridate.core.originals import Originals
from mithridate.core.schema import to_json
from mithridate.experiments import pages, pictures
from mithridate.experiments.facts import environment
from mithridate.experiments.files import write_json
from mithridate.poisoning.scan import Scan

SUSPECTS, DROP, PAGE, SUMMARY = "suspects.csv", "drop.txt", "scan.html", "scan.json"
SIDE = 160
"""Longest side of a picture on the page, in pixels of the file."""


@dataclass(frozen=True)
class Suspect:
    """One row of the ranked list."""

    rank: int
    row: int
    """Row id of the training images, from 0."""
    name: str
    """File, or file and row in it."""
    label: str
    expected: float
    """False alarms expected if this row and all ranked before it were dropped."""
    drop: bool
    filters: tuple[str, ...]
    """Filters that would drop it on their own."""
    reason: str
    """What the filter says that speaks most against it."""
    scores: tuple[float, ...]
    """One per filter."""


def suspects(scan: Scan, given: Originals, allowed: float) -> list[Suspect]:
    """Every row of a scan, the most suspicious first."""
    dropped = set(scan.suspects(allowed).tolist())
    found = []
    for rank, position in enumerate(scan.order().tolist(), start=1):
        row = int(scan.data.ids[position])
        finding = scan.findings[int(scan.by[position])]
        found.append(
            Suspect(
                rank=rank,
                row=row,
                name=given.name(row),
                label=scan.data.classes[int(scan.data.labels_of(torch.tensor([row]))[0])],
                expected=float(scan.expected[position]),
                drop=row in dropped,
                filters=tuple(one.name for one in scan.findings if bool(one.marked[position])),
                reason=finding.reason,
                scores=tuple(float(one.scores[position]) for one in scan.findings),
            )
        )
    return found


def as_csv(found: Sequence[Suspect], scan: Scan) -> str:
    """The list for a spreadsheet; one column of scores per filter."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = ["rank", "file", "row", "label", "expected_false_alarms", "drop", "dropped_by", "reason"]
    writer.writerow([*columns, *(f"score {one.name}" for one in scan.findings)])
    for one in found:
        said = [one.rank, one.name, one.row, one.label, f"{one.expected:.6g}", int(one.drop)]
        writer.writerow([*said, "; ".join(one.filters), one.reason, *(f"{score:.6g}" for score in one.scores)])
    return out.getvalue()


def summary(scan: Scan, found: Sequence[Suspect], allowed: float) -> dict[str, Any]:
    """What a scan found, in plain values."""
    return {
        "rows": len(found),
        "fingerprint": scan.data.fingerprint(),
        "allowed_false_alarms": allowed,
        "suspects": sum(one.drop for one in found),
        "filters": [
            {"filter": one.name, "reason": one.reason, "marked": int(one.marked.sum()), "marked_by_chance": one.chance}
            for one in scan.findings
        ],
    }


def write_scan(
    folder: Path,
    scan: Scan,
    given: Originals,
    *,
    allowed: float,
    top: int,
    settings: Sequence[pages.Part],
    command: str | None,
) -> dict[str, Any]:
    """Writes the list, the rows to drop, a summary and the page; returns the summary."""
    found = suspects(scan, given, allowed)
    said = summary(scan, found, allowed)
    pages.write(as_csv(found, scan), folder / SUSPECTS)
    pages.write("".join(f"{one.name}\n" for one in found if one.drop), folder / DROP)
    write_json(folder / SUMMARY, said | {"command": command, "environment": environment(str(scan.data.device))})
    shown = found[:top]
    pixels = scan.data.pixels(torch.tensor([one.row for one in shown])).cpu().numpy()
    images = [pictures.png(pictures.reduced(image, SIDE)) for image in pixels]
    page = pages.environment().get_template("scan.html.j2")
    text = page.render(
        title=str(getattr(given.source, "path", given.files[0])),
        said=said,
        shown=list(zip(shown, images, strict=True)),
        classes=_by_class(found),
        machine=environment(str(scan.data.device)),
        methods=pages.methods([(what, to_json(choice)) for what, choice in settings], ("filter", "model")),
        command=command,
    )
    pages.write(text, folder / PAGE)
    return said


def _by_class(found: Sequence[Suspect]) -> list[tuple[str, int, int]]:
    """(class, rows, suspects), the class with most suspects first; those without any are left out."""
    rows = Counter(one.label for one in found)
    dropped = Counter(one.label for one in found if one.drop)
    return [(name, rows[name], count) for name, count in dropped.most_common()]
