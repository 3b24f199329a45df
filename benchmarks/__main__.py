"""Run the benchmarks, print one table of claims, write ``benchmarks/results/<name>-<device>.json``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import coverage, crafting, memory, startup, training
from benchmarks.measure import Report, Setup, write

BENCHMARKS = {
    "training": training.run,
    "crafting": crafting.run,
    "memory": memory.run,
    "startup": startup.run,
    "coverage": coverage.run,
}
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print, write; the number of claims that do not hold is printed, not returned."""
    parser = _parser()
    given = parser.parse_args(arguments)
    for name in set(given.names) - set(BENCHMARKS):
        parser.error(f"no benchmark is called {name!r}; there are {', '.join(BENCHMARKS)}")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(f"--device {given.device}: this PyTorch sees no CUDA device; use --device cpu")
    torch.set_num_threads(given.threads)
    setup = Setup(device=given.device, small=given.small, threads=given.threads, models=tuple(given.models))
    out = given.out or (None if given.small else RESULTS)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # now: a folder that cannot be made must not cost the measurements
    reports, console = [], Console()
    console = console if console.is_terminal else Console(width=160)  # a file has no width of its own
    for name in given.names or BENCHMARKS:
        console.print(f"running {name} on {setup.device} ...")
        reports.append(BENCHMARKS[name](setup))
        console.print(_rows(reports[-1]))
        if out is not None:
            console.print(f"wrote {write(reports[-1], out, setup)}")
    console.print("small form: it runs; its numbers mean nothing" if given.small else _claims(reports))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="|".join(BENCHMARKS), help="which ones; all unless given")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, one round, nothing written unless --out is given"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch on the CPU")
    parser.add_argument("--models", nargs="+", default=Setup().models, choices=Setup().models)
    parser.add_argument("--out", type=Path, help="folder of the JSON files; benchmarks/results unless given")
    return parser


def _rows(report: Report) -> Table:
    facts = report.environment
    machine = (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, {facts['device']}, torch {facts['torch']}"
    )
    table = Table(title=f"{report.name}: medians; {machine}", title_justify="left")
    for heading in ("case", "arm", "value", "unit", "wall s", "cpu s", "n", "note"):
        table.add_column(heading, justify="right" if heading in ("value", "wall s", "cpu s", "n") else "left")
    for row in report.rows:
        seconds = ["-" if value is None else f"{value:.2f}" for value in (row.wall_seconds, row.cpu_seconds)]
        table.add_row(row.case, row.arm, f"{row.value:.4g}", row.unit, *seconds, str(row.rounds), row.note)
    return table


def _claims(reports: list[Report]) -> Table:
    missed = sum(not claim.holds for report in reports for claim in report.claims)
    table = Table(title=f"claims: {missed} do not hold", title_justify="left")
    for heading in ("claim", "median", "smallest", "largest", "required", "holds"):
        table.add_column(heading, justify="right" if heading in ("median", "smallest", "largest") else "left")
    for claim in (claim for report in reports for claim in report.claims):
        numbers = [f"{number:.3g}" for number in (claim.value, claim.low, claim.high)]
        table.add_row(claim.claim, *numbers, claim.required, "yes" if claim.holds else "NO")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
