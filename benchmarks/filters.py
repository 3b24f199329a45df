"""Filters and a guard, features given: seconds beside the ways by hand, and the memory of deep k-NN on a large set."""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.cases import Ready, data_of, in_folding_layers, in_ordinary_layers
from benchmarks.ceiling import ceiling, flops_of
from benchmarks.measure import (
    Arm,
    Claim,
    Report,
    Row,
    Setup,
    environment,
    faster_than_straightforward,
    near_the_best,
    race,
    timed,
)
from benchmarks.reference import filtering
from mithridate.core.seeds import stream
from mithridate.core.training import Recipe
from mithridate.poisoning.defense import Evidence, Filter
from mithridate.poisoning.defenses.deep_knn import DeepKNN
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from mithridate.poisoning.defenses.strip import Strip

CLASSES = 10
CONTAMINATION = 0.01
"""Share of the rows that carry another label than their features, and that the filters expect."""
LARGE = (50_000, 512)
"""Rows and features of the memory measurement: CIFAR-10 in the features of resnet18."""
ALLOWED = 2048
"""Megabytes that the whole process may take at its peak."""
STATUS = Path("/proc/self/status")


def run(setup: Setup) -> Report:
    """Race each filter, then measure memory in a fresh process."""
    rows: list[Row] = []
    claims: list[Claim] = []
    for case, least in ((spectral, 1.5), (deep_knn, 3.0), (strip, 1.0)):
        found = case(setup)
        rows += found
        claims += faster_than_straightforward(found, least) + near_the_best(found)
    large_rows, large_claim = _large(setup)
    settings = {
        "features": f"synthetic, one cluster per class, {CLASSES} classes, {CONTAMINATION:.0%} mislabelled",
        "counted": "marking the rows, features given; of strip, threshold and answers for new images",
        "flops": "deep-knn: one product of all pairs; spectral-signatures, strip: matrix products and convolutions",
        "memory": "VmHWM of a fresh process with the import of torch and the features in it; on a GPU: allocated",
    }
    return Report(
        name="filters",
        settings=settings,
        rows=rows + large_rows,
        claims=[*claims, large_claim],
        environment=environment(setup.device),
    )


def features_of(rows: int, columns: int, device: str) -> tuple[Tensor, Tensor]:
    """Float32 features [rows, columns] around one mean per class, and labels: as many of each, some of them wrong."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % CLASSES
    means = 12 / columns**0.5 * torch.randn(CLASSES, columns, generator=rng)
    features = torch.randn(rows, columns, generator=rng)
    for label in range(CLASSES):
        features[label::CLASSES] += means[label]
    wrong = slice(CLASSES * round(CONTAMINATION * rows / CLASSES))  # as many of each class
    labels[wrong] = (labels[wrong] + 1) % CLASSES
    return features.to(device), labels.to(device)


def marked_by(one: Filter, features: Tensor, labels: Tensor) -> Tensor:
    """What a filter would drop, [n] bool; those timed here do not look at logits."""
    return one.judge(Evidence(features, features[:, :0], labels)).marked


def spectral(setup: Setup) -> list[Row]:
    """Spectral signatures."""
    rows, columns = (1_000, 16) if setup.small else (20_000, 512)
    features, labels = features_of(rows, columns, setup.device)
    defense = SpectralSignatures(contamination=CONTAMINATION)
    count = round(defense.multiplier * CONTAMINATION * rows)
    plain = partial(filtering.spectral_plain, features, labels, count)
    expected = plain()
    ours = partial(marked_by, defense, features, labels)
    covariance = partial(filtering.spectral_by_covariance, features, labels, count)
    arms = [
        _arm("mithridate", ours, expected),
        _arm("svd of each class", plain, expected),
        _arm("all eigenvectors, float64", partial(covariance, torch.float64), expected),
    ]
    single = _arm("all eigenvectors, float32", partial(covariance, torch.float32), expected)
    arms.append(replace(single, role="control"))  # rounding may decide which of two rows near the threshold goes
    case = f"spectral-signatures, {rows} rows of {columns} features"
    return _raced(setup, case, arms, "seconds", 1.0, flops_of(ours), torch.float64)


def deep_knn(setup: Setup) -> list[Row]:
    """Deep k-NN."""
    rows, columns = (1_000, 16) if setup.small else (8_000, 512)
    features, labels = features_of(rows, columns, setup.device)
    k = round(2 * CONTAMINATION * rows)
    plain = partial(filtering.knn_plain, features, labels, k)
    expected = plain()
    arms = [
        _arm("mithridate", partial(marked_by, DeepKNN(contamination=CONTAMINATION), features, labels), expected),
        _arm("all distances, sorted, a loop", plain, expected),
        _arm("all distances, topk", partial(filtering.knn_whole, features, labels, k), expected),
        _arm("blocks of rows, topk", partial(filtering.knn_blocks, features, labels, k), expected),
        _arm("tiles, running merge", partial(filtering.knn_tiles, features, labels, k), expected),
    ]
    case = f"deep-knn, {rows} rows of {columns} features"
    return _raced(setup, case, arms, "seconds", 1.0, 2.0 * rows**2 * columns, torch.float32)


def strip(setup: Setup) -> list[Row]:
    """STRIP sets its threshold on as many images as it then judges."""
    count, overlays = (8, 4) if setup.small else (100, 50)
    data = data_of(setup, 2 * count + overlays)
    recipe = Recipe(model=setup.spec("convnet"), epochs=1)
    surrogate = Ready(inner=recipe, fitted=recipe.fit([data], [0]))
    guard = Strip(overlays=overlays, calibration=count)
    clean, images = data.select(data.ids[: count + overlays]), data.floats(data.ids[count + overlays :])
    order = clean.ids[torch.randperm(len(clean), generator=stream(0, "strip")).to(setup.device)]  # as the guard draws
    blended, held = clean.floats(order[:overlays]), clean.floats(order[overlays:])
    folding = in_folding_layers(surrogate).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def ours() -> Tensor:
        with torch.no_grad():
            return guard.calibrated(surrogate.fitted.predictor, clean, 0)(images)[0]

    def by_hand(entropies: Callable[[nn.Module, Tensor, Tensor], Tensor], network: nn.Module) -> Tensor:
        known = entropies(network, held, blended)
        return filtering.refused(entropies(network, images, blended), known, guard.false_alarms)

    plain = partial(by_hand, filtering.entropies_plain, in_ordinary_layers(surrogate))
    expected = plain()
    arms = [_arm("mithridate", ours, expected), _arm("one image after the other, fp32 NCHW", plain, expected)]
    for blends in (200, 1000):
        chunks = partial(filtering.entropies_in_chunks, blends=blends)
        arms.append(_arm(f"{blends} blends at a time, channels last", partial(by_hand, chunks, folding), expected))
    if setup.bf16:  # a control, since predictions are float32 in mithridate
        chunks = partial(filtering.entropies_in_chunks, blends=200)
        work = partial(by_hand, chunks, copy.deepcopy(folding).to(torch.bfloat16))
        arms.append(replace(_arm("200 blends at a time, bfloat16", work, expected), role="control"))
    case = f"strip on convnet, {overlays} blends of each image"
    flops = flops_of(plain)
    return _raced(setup, case, arms, "seconds per 100 images", 100 / (2 * count), flops, torch.float32)


def _arm(name: str, work: Callable[[], Tensor], expected: Tensor) -> Arm:
    """An arm whose note says what it marks, beside what the form that one writes first marks."""

    def noted() -> str:
        marked = work()
        return f"marks {int(marked.sum())}, {int((marked != expected).sum())} differently"

    role = "mithridate" if name == "mithridate" else "variant"
    return Arm(name=name, role=role, work=noted)


def _raced(
    setup: Setup, case: str, arms: Sequence[Arm], unit: str, factor: float, flops: float, dtype: torch.dtype
) -> list[Row]:
    """The rows of a race whose second arm is the straightforward form, with a product in the case's own format.

    Args:
        setup: Device, rounds, clock.
        case: What is done.
        arms: mithridate, the straightforward form, variants.
        unit: Of a row's value, without the clock.
        factor: Value of a row per second.
        flops: Of one run.
        dtype: Number format of most of them.
    """
    multiply, operations = ceiling(setup.device, dtype, small=setup.small)
    product = Arm(name=f"product of large {str(dtype).removeprefix('torch.')} matrices", role="control", work=multiply)
    arms = [arms[0], replace(arms[1], role="straightforward"), *arms[2:], product]
    found = race(setup, case, arms, unit=f"{setup.clock} {unit}", value=lambda seconds: factor * seconds)
    top = [operations / seconds for seconds in found[-1].by_round]
    rows = []
    for row in found[:-1]:
        shares = [flops / seconds / peak for seconds, peak in zip(row.by_round, top, strict=False)]
        rows.append(replace(row, flops=flops, ceiling_share=statistics.median(shares) if shares else None))
    speed = statistics.median(top) / 1e9
    return [*rows, replace(found[-1], value=speed, unit=f"GFLOP per {setup.clock} second", flops=operations)]


# --- memory ----------------------------------------------------------------------------------------------------------


def _large(setup: Setup) -> tuple[list[Row], Claim]:
    """Memory and seconds of deep k-NN on many rows, in a fresh process."""
    rows, columns = (1_000, 16) if setup.small else LARGE
    found = _probe(setup, rows, columns)
    case, seconds = f"deep-knn, {rows} rows of {columns} features, fresh process", found[setup.clock]
    row = Row(
        case=case,
        arm="mithridate",
        role="mithridate",
        value=seconds,
        unit=f"{setup.clock} seconds",
        wall_seconds=found["wall"],
        cpu_seconds=found["cpu"],
        rounds=1,
        by_round=[seconds],
        flops=2.0 * rows**2 * columns,
        ceiling_share=2.0 * rows**2 * columns / seconds / found["product"],
        note=f"{found['megabytes']:.0f} MB at the peak, marks {found['marked']:.0f}",
    )
    memory = replace(
        row,
        value=found["megabytes"],
        unit="MB at the peak",
        by_round=(),
        ceiling_share=None,
        flops=None,
        note=f"all distances would take {4 * rows**2 / 2**20:.0f} MB",
    )
    megabytes = found["megabytes"]
    claim = Claim(
        claim=f"{case}: MB at the peak",
        value=megabytes,
        low=megabytes,
        high=megabytes,
        required=f"at most {ALLOWED} MB",
        holds=megabytes <= ALLOWED,
    )
    return [row, memory], claim


def _probe(setup: Setup, rows: int, columns: int) -> dict[str, float]:
    """As `_measure`, in a fresh process."""
    given = [setup.device, str(rows), str(columns), str(setup.threads), *(["small"] if setup.small else [])]
    command = [sys.executable, "-m", "benchmarks.filters", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(setup: Setup, rows: int, columns: int) -> dict[str, float]:
    """Seconds, peak megabytes, rows marked, and operations per second of a large float32 product before and after."""
    features, labels = features_of(rows, columns, setup.device)
    multiply, operations = ceiling(setup.device, torch.float32, small=setup.small)
    multiply()
    before = timed(multiply, setup.device)
    marked: list[Tensor] = []
    work = timed(lambda: marked.append(marked_by(DeepKNN(contamination=CONTAMINATION), features, labels)), setup.device)
    megabytes = peak(setup.device)
    after = timed(multiply, setup.device)
    products = getattr(before, setup.clock) + getattr(after, setup.clock)
    return {
        "wall": work.wall,
        "cpu": work.cpu,
        "megabytes": megabytes,
        "product": 2 * operations / products,
        "marked": float(marked[0].sum()),
    }


def peak(device: str) -> float:
    """Largest memory of this process so far in megabytes: resident on a CPU, allocated on a GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def _main() -> None:
    parser = argparse.ArgumentParser(description="one memory measurement; `python -m benchmarks filters` calls this")
    parser.add_argument("device")
    for name in ("rows", "columns", "threads"):
        parser.add_argument(name, type=int)
    parser.add_argument("small", nargs="?")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    setup = Setup(device=given.device, small=given.small is not None, threads=given.threads)
    print(json.dumps(_measure(setup, given.rows, given.columns)))


if __name__ == "__main__":
    _main()
