"""Gradient inversion as one call: the grid of attacks, batch sizes and defences; or one leak of the user's own."""

from __future__ import annotations

import builtins
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mithridate.core.data import ImageData
from mithridate.core.engines import Workers, engine, is_local
from mithridate.core.members import members_by
from mithridate.core.pixels import to_bytes
from mithridate.core.progress import quiet
from mithridate.core.ray_workers import held
from mithridate.core.schema import SCHEMA, to_json
from mithridate.core.sources import DataSource
from mithridate.core.training import Recipe
from mithridate.experiments.audit import source_of
from mithridate.experiments.facts import environment
from mithridate.experiments.files import write_json
from mithridate.experiments.leak_report import write_leak_report
from mithridate.experiments.leak_table import LeakTable, leak_table
from mithridate.experiments.leaks import LeakTrial
from mithridate.experiments.pictures import contact_sheet
from mithridate.experiments.store import DataSets
from mithridate.experiments.study import Pair, check_folder, load_results, run_study
from mithridate.inversion.attack import Inversion, Reconstruction
from mithridate.inversion.attacks.inverting_gradients import InvertingGradients
from mithridate.inversion.client import Client, LeakDefense
from mithridate.inversion.defenses.clip_and_noise import ClipAndNoise
from mithridate.inversion.leak import Leak
from mithridate.inversion.sharing import Gradient

FOLDER = Path("runs/invert")
"""Where results go unless told otherwise."""
ATTACKS = (InvertingGradients(steps=1000),)
"""Run unless others are named."""
DEFENSES = tuple((ClipAndNoise(noise=noise),) for noise in (0.001, 0.01, 0.1))
"""Measured unless others are named: one defence in three strengths, for a curve."""
BATCHES = (1, 4)
CASES = 10
"""Batches of images per cell."""

Stack = LeakDefense | Sequence[LeakDefense]
"""One defence, or several that are applied in that order."""


@dataclass(frozen=True, eq=False)
class Inverted:
    """Finished inversions: print them, or look into `table`."""

    table: LeakTable
    """One row per cell, with intervals and comparisons."""
    report: Path
    """The HTML report."""
    folder: Path
    """All raw results; the same call into the same folder resumes."""

    def __str__(self) -> str:
        return f"{self.table}\nreport: {self.report}"


def invert(
    recipe: Recipe,
    data: ImageData | DataSource,
    test: ImageData | None = None,
    *,
    batches: Sequence[int] = BATCHES,
    attacks: Sequence[Inversion] = ATTACKS,
    defenses: Sequence[Stack] = DEFENSES,
    adaptive: bool = False,
    client: Client | None = None,
    distinct: bool = False,
    cases: int = CASES,
    seed: int = 0,
    out: str | Path = FOLDER,
    workers: Workers = 1,
    device: str = "cpu",
    command: str | None = None,
) -> Inverted:
    """Measures what the gradients of a model give away of the images behind them; writes a report.

    Args:
        recipe: The model: trained; untrained with epochs=0; a checkpoint with start_from and epochs=0.
        data: Training images, or a data source that brings test images too. Clients' images are test images.
        test: Test images.
        batches: Images behind one gradient; several are several cells.
        attacks: What reconstructs the images.
        defenses: Each alone (a sequence inside is applied together), beside no defence.
        adaptive: Measure every defence against an attacker who knows it as well.
        client: What else is true of the client: whether the server knows the labels, batch statistics, local steps.
        distinct: Whether the images of a batch have different labels.
        cases: Batches per cell, the same ones in every cell of equal size.
        seed: First seed of the cases; case i uses seed + i.
        out: Results folder. The same call resumes.
        workers: Worker processes of one thread each, 1: this process, with the threads it has; "ray" and what else
            `--workers` takes; or something with the signature of ``map``. They share out the cases; of a single case,
            the restarts.
        device: Where models run.
        command: What to run to repeat this, for the report.

    Raises:
        ValueError: Something that no case could run with; found before any training.
        TypeError: Defences that do not fit the client or each other.
        StudyErrors: Some cases failed; the others are finished.

    >>> import tempfile
    >>> from mithridate import Digits
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = invert(
    ...         Recipe(model="mlp", epochs=0),
    ...         Digits(train=100),
    ...         batches=[1],
    ...         attacks=[InvertingGradients(steps=2)],
    ...         defenses=[],
    ...         cases=1,
    ...         out=folder,
    ...     )
    >>> [row.attack for row in done.table.rows]
    ['inverting-gradients']
    """
    trials = plan_invert(
        source_of(data, test),
        [recipe],
        batches=batches,
        attacks=attacks,
        defenses=defenses,
        adaptive=adaptive,
        client=client,
        distinct=distinct,
        cases=cases,
        seed=seed,
    )
    return run_invert(trials, out, workers=workers, device=device, command=command)


def plan_invert(
    data: DataSource,
    recipes: Sequence[Recipe],
    *,
    batches: Sequence[int] = BATCHES,
    attacks: Sequence[Inversion] = ATTACKS,
    defenses: Sequence[Stack] = DEFENSES,
    adaptive: bool = False,
    client: Client | None = None,
    distinct: bool = False,
    cases: int = CASES,
    seed: int = 0,
) -> list[LeakTrial]:
    """Returns the grid: every model x attack x batch size, without defence and with each; arguments as for `invert`.

    >>> from mithridate.core.sources import Digits
    >>> len(plan_invert(Digits(), [Recipe(epochs=0)], batches=(1, 4), cases=5))
    40
    """
    if cases < 1:
        raise ValueError(f"cases is {cases}; at least one batch of images is needed")
    if not attacks or not batches:
        raise ValueError(f"no {'batch size' if attacks else 'attack'} is named; name one or more, or leave them out")
    stacks = [(), *((one,) if isinstance(one, LeakDefense) else tuple(one) for one in defenses)]
    cells = [
        LeakTrial(
            data=data,
            recipe=recipe,
            attack=attack,
            client=replace(client or Client(), batch=batch),
            defenses=stack,
            adaptive=knowing,
            distinct=distinct or any(one.distinct_labels for one in attacks),  # the same images for all attacks
        )
        for recipe in recipes
        for attack in attacks
        for batch in batches
        for stack in stacks
        for knowing in ((False, True) if adaptive and stack else (False,))
    ]
    return [replace(trial, seed=seed + case) for trial in cells for case in range(cases)]


def run_invert(
    trials: Sequence[LeakTrial],
    out: str | Path = FOLDER,
    *,
    workers: Workers = 1,
    device: str = "cpu",
    command: str | None = None,
) -> Inverted:
    """Rehearses the trials, runs those that are not finished, writes the report.

    Raises:
        ValueError, TypeError: Something that no trial could run with; found before any training.
        StudyErrors: Some trials failed; the others are finished, and the report is written.
    """
    folder = Path(out)
    rehearse_leaks(trials, device)
    work = engine(workers, device=device)
    alone = len(trials) == 1 and not is_local(work)  # then workers share out its restarts
    try:
        with members_by(work) if alone else held():
            pairs = run_study(trials, folder, map=builtins.map if alone else work, device=device, command=command)
    except RuntimeError:  # of failed trials: what is finished is worth a report
        if (folder / "trials").is_dir() and load_results(folder):
            write_leak_report(folder)
        raise
    return finished_inversions(folder, pairs)


def finished_inversions(folder: Path, pairs: Sequence[Pair]) -> Inverted:
    """Writes the report of a folder and returns it with the table of some of its results."""
    return Inverted(leak_table(pairs), write_leak_report(folder), folder)


def rehearse_leaks(trials: Iterable[LeakTrial], device: str = "cpu") -> None:
    """Finds what no trial could run with, in seconds: every attack takes one step against a model before its training.

    Raises:
        ValueError, TypeError: What a trial would raise.
    """
    each_cell_once(trials, lambda trial, data: one_step(trial, data, steps=1), device)


def one_step(trial: LeakTrial, data: DataSets, steps: int) -> None:
    """Inverts a leak of the model that training starts from, with few steps."""
    model = trial.recipe.module(data.train, 0).eval()
    rows = trial.rows(data.test)
    _, known = trial.leaks(model, data.test.floats(rows), data.test.labels_of(rows))
    brief: Any = trial.attack
    for setting, value in {"steps": steps, "restarts": 1, "evaluations": 1}.items():
        if hasattr(brief, setting):
            brief = replace(brief, **{setting: value})
    brief.reconstruct(known, 0)


def each_cell_once(trials: Iterable[LeakTrial], do: Callable[[LeakTrial, DataSets], None], device: str) -> None:
    """Calls a function with the first trial of every cell and its data."""
    loaded: dict[Any, DataSets] = {}
    seen: set[Any] = set()
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rehearsal searches too briefly not to be warned about
        for trial in trials:
            cell = replace(trial, seed=0)
            if cell in seen:
                continue
            seen.add(cell)
            if trial.data not in loaded:
                loaded[trial.data] = DataSets(*trial.data.load(device), "")
            do(trial, loaded[trial.data])


# --- one leak of the user's own --------------------------------------------------------------------------------------


def invert_leak(
    leak: Leak,
    attack: Inversion = ATTACKS[0],
    *,
    out: str | Path = "runs/invert-leak",
    seed: int = 0,
    workers: Workers = 1,
) -> Reconstruction:
    """Reconstructs the images behind one leak and writes them as PNG files, beside safetensors and a manifest.

    Args:
        leak: Of a client of yours, or loaded from disk.
        attack: What reconstructs the images.
        out: Folder for the images; made if it does not exist.
        seed: Where the search starts.
        workers: As for `invert`; they share out the attack's restarts.

    Raises:
        ValueError: A leak that does not hold what the attack needs, or a folder of other things.

    >>> import tempfile
    >>> import torch
    >>> from torch import nn
    >>> from mithridate.inversion.client import Client
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    >>> leak = Client().share(model, torch.rand(1, 1, 4, 4), torch.tensor([2]), seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = invert_leak(leak, InvertingGradients(steps=2), out=folder)
    >>> found.images.shape
    torch.Size([1, 1, 4, 4])
    """
    folder = check_leak_folder(Path(out))
    work = engine(workers, device=leak.device.type)
    with members_by(None if is_local(work) else work):
        found = attack.reconstruct(leak, seed)
    write_reconstruction(folder, leak, attack, found, seed)
    return found


def check_leak_folder(folder: Path) -> Path:
    """Returns the folder if a reconstruction may go there.

    Raises:
        ValueError: A file, or a folder of other things.
    """
    if (folder / "reconstruction.json").exists():
        return folder
    return check_folder(folder)


def write_reconstruction(folder: Path, leak: Leak, attack: Inversion, found: Reconstruction, seed: int) -> None:
    """Writes images, labels and how they came about."""
    from PIL import Image
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    pixels = to_bytes(found.images).cpu().contiguous()
    for old in folder.glob("image-*-class-*.png"):  # of an earlier reconstruction, perhaps with other labels
        old.unlink()
    for number, image in enumerate(pixels):
        plane = image[0] if len(image) != 3 else image.permute(1, 2, 0)
        Image.fromarray(plane.contiguous().numpy()).save(
            folder / f"image-{number:03d}-class-{int(found.labels[number])}.png"
        )
    Image.fromarray(contact_sheet(pixels.numpy())).save(folder / "all.png")
    save_file(
        {"images": found.images.cpu().contiguous(), "labels": found.labels.cpu()}, folder / "reconstruction.safetensors"
    )
    facts = {
        "schema": SCHEMA,
        "attack": to_json(attack),
        "sharing": to_json(leak.sharing),
        "filters": to_json(leak.filters),
        "labels": found.labels.tolist(),
        "labels_known": leak.labels is not None,
        "distance": found.value,
        "notes": found.notes,
        "seed": seed,
        "environment": environment(str(leak.device)),
    }
    write_json(folder / "reconstruction.json", facts)


def usual_client(*, knows_labels: bool = True, batch_statistics: bool = False) -> Client:
    """Returns the client that the command line speaks of."""
    return Client(sharing=Gradient(batch_statistics=batch_statistics), tells_labels=knows_labels)
