"""Run the benchmarks, print one table and the claims, write ``benchmarks/results/<name>-<device>.json``."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Report, Setup, environment, write
from benchmarks.table import lines_of, table_of, write_table

SPEED = ("training", "crafting", "attacks", "inversion", "defenses", "filters", "evasion", "trial", "members")
"""What `make bench` runs: the lines of the one table."""
OTHERS = ("crafting_memory", "memory", "protecting", "startup", "coverage", "stopping", "sending")
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print, write; the number of claims that do not hold is printed, not returned."""
    parser = _parser()
    given = parser.parse_args(arguments)
    known = (*SPEED, *OTHERS)
    for name in set(given.names) - set(known):
        parser.error(f"no benchmark is called {name!r}; there are {', '.join(known)}")
    device, small = given.device, given.small
    if device.startswith("cuda") and not torch.cuda.is_available():
        if not given.or_small:
            raise SystemExit(f"--device {device}: this PyTorch sees no CUDA device; use --device cpu")
        print(f"this PyTorch sees no CUDA device: the small form runs on the CPU instead of {device}")
        device, small = "cpu", True
    torch.set_num_threads(given.threads)
    setup = Setup(device=device, small=small, threads=given.threads, models=tuple(given.models), seconds=given.seconds)
    out = given.out or (None if small else RESULTS)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # now: a folder that cannot be made must not cost the measurements
    names = given.names or (known if given.all else SPEED)
    console = Console()
    console = console if console.is_terminal else Console(width=200)  # a file has no width of its own
    reports = _reports(names, setup, out, console)
    _finish(reports, setup, out, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    listed = f"which ones, of {', '.join((*SPEED, *OTHERS))}; the first {len(SPEED)} unless given"
    parser.add_argument("names", nargs="*", metavar="NAME", help=listed)
    parser.add_argument("--all", action="store_true", help="memory, start-up and coverage as well")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--or-small", action="store_true", help="where there is no such GPU: the small form on the CPU")
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, one round, nothing written unless --out is given"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch on the CPU")
    parser.add_argument(
        "--seconds", type=float, default=Setup().seconds, help="for the counted rounds of a case; never below 3 rounds"
    )
    parser.add_argument("--models", nargs="+", default=Setup().models, choices=Setup().models)
    parser.add_argument("--out", type=Path, help="folder of the JSON files; benchmarks/results unless given")
    return parser


def _reports(names: tuple[str, ...] | list[str], setup: Setup, out: Path | None, console: Console) -> list[Report]:
    reports = []
    for name in names:
        console.print(f"running {name} on {setup.device} ...")
        # Imported here: a worker process of a benchmark imports this module again, and should not wait for them all.
        reports.append(import_module(f"benchmarks.{name}").run(setup))
        console.print(_rows(reports[-1]))
        if out is not None:
            console.print(f"wrote {write(reports[-1], out, setup)}")
    return reports


def _finish(reports: list[Report], setup: Setup, out: Path | None, console: Console) -> None:
    facts = environment(setup.device)
    speed = [report for report in reports if report.name in SPEED]
    if speed:
        console.print(table_of(lines_of(speed), f"speed; {_machine(facts)}"))
    if out is not None and {report.name for report in speed} == set(SPEED):
        console.print(f"wrote {write_table(speed, out, setup, facts)}")
    console.print("small form: it runs; its numbers mean nothing" if setup.small else _claims(reports))


def _machine(facts: dict[str, object]) -> str:
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, {facts['device']}, torch "
        f"{facts['torch']}, mithridate {facts['mithridate']}"
    )


def _rows(report: Report) -> Table:
    table = Table(title=f"{report.name}: medians; {_machine(dict(report.environment))}", title_justify="left")
    numbers = ("value", "wall s", "cpu s", "ceiling", "n")
    for heading in ("case", "arm", "value", "unit", "wall s", "cpu s", "ceiling", "n", "note"):
        table.add_column(heading, justify="right" if heading in numbers else "left")
    for row in report.rows:
        seconds = ["-" if value is None else f"{value:.2f}" for value in (row.wall_seconds, row.cpu_seconds)]
        value = "-" if row.value is None else f"{row.value:.4g}"
        share = "-" if row.ceiling_share is None else f"{row.ceiling_share:.0%}"
        table.add_row(row.case, row.arm, value, row.unit, *seconds, share, str(row.rounds), row.note)
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
