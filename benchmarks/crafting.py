"""Witches' Brew: speed of a crafting step, and peak memory as the number of poisons grows."""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import Claim, Report, Row, Setup, Timing, environment, interleaved, median, speedup
from benchmarks.reference import Brewing, brew_careful, brew_plain, ordinary, synthetic
from mithridate.core.classifier import bf16_pays
from mithridate.core.data import ImageData
from mithridate.core.models import Normalize
from mithridate.core.training import Fitted, Learner, Recipe, Watch
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.threat import Task, ThreatModel

CLASSES = 10
CLEAR = Path("/proc/self/clear_refs")
ARMS = ("mithridate", "careful fp32", "plain fp32 NCHW")


@dataclass(frozen=True, eq=False, kw_only=True)
class Ready(Learner):
    """A learner whose models are trained already, so that crafting alone is measured."""

    inner: Recipe
    fitted: Fitted

    @property
    def recipe(self) -> Recipe:
        return self.inner

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        return self.fitted


def run(setup: Setup) -> Report:
    """Time a step on each network, then measure memory in fresh processes."""
    rows: list[Row] = []
    claims: list[Claim] = []
    poisons, steps = (4, 2) if setup.small else (50, 4)
    for model in setup.models:
        losses: dict[str, float] = {}
        arms = _arms(setup, model, poisons, steps, losses)
        found = interleaved(arms, setup.rounds(model), setup.device)
        rows += [_row(model, arm, times, setup, poisons, steps, losses[arm]) for arm, times in found.items()]
        claims += _claims(setup, model, found)
    memory_rows, memory_claims = _memory(setup)
    settings = {
        "images": "32x32x3 synthetic",
        "poisons": poisons,
        "steps": steps,
        "eps": "16/255",
        "bf16": bf16_pays(torch.device(setup.device)),
        "counted": "target gradient and every evaluation; one of mithridate's is that of the finished 8-bit poison",
    }
    return Report(
        name="crafting",
        settings=settings,
        rows=rows + memory_rows,
        claims=claims + memory_claims,
        environment=environment(setup.device),
    )


def _case(setup: Setup, model: str, poisons: int, train: int, epochs: int) -> tuple[Task, Ready]:
    """A task with that many poisons, and a surrogate trained on a few images for that many epochs."""
    images, labels = (tensor.to(setup.device) for tensor in synthetic(train + 50, CLASSES))
    data = ImageData(images, labels, tuple(f"class {number}" for number in range(CLASSES)))
    ids = data.ids
    recipe = Recipe(model=setup.spec(model), epochs=epochs, batch_size=125)
    known = data.select(ids[: 30 if setup.small else 250])
    task = ThreatModel(budget=poisons / train).draw(data.select(ids[:train]), data.select(ids[train:]), seed=0)
    return task, Ready(inner=recipe, fitted=recipe.fit([known], [0]))


def _arms(
    setup: Setup, model: str, poisons: int, steps: int, losses: dict[str, float]
) -> dict[str, Callable[[], object]]:
    task, surrogate = _case(setup, model, poisons, train=20 * poisons, epochs=2)
    attack = WitchesBrew(steps=steps - 1, surrogates=1)  # and one evaluation of the finished poison
    careful, plain = _by_hand(surrogate), _by_hand(surrogate)

    def ours() -> None:
        losses[ARMS[0]] = attack.craft(task, surrogate, seed=0).notes["matching_loss"]

    return {
        ARMS[0]: ours,
        ARMS[1]: lambda: losses.update({ARMS[1]: _brew(brew_careful, careful, task, steps)}),
        ARMS[2]: lambda: losses.update({ARMS[2]: _brew(brew_plain, plain, task, steps)}),
    }


def _by_hand(surrogate: Ready) -> nn.Module:
    """The surrogate as one would write it: ordinary layers, NCHW, the same weights."""
    classifier = surrogate.fitted.models[0]
    layer = classifier.get_submodule("normalize")
    return nn.Sequential(Normalize(layer.mean, layer.std), ordinary(classifier.get_submodule("network"))).eval()


def _brew(brew: Callable[..., tuple[Tensor, float]], network: nn.Module, task: Task, steps: int) -> float:
    rows = task.choose(0)
    base, labels = task.images(rows).contiguous(), task.train.labels_of(rows)
    return brew(network, base, labels, task.targets.contiguous(), task.intended, Brewing(steps=steps))[1]


def _row(model: str, arm: str, times: list[Timing], setup: Setup, poisons: int, steps: int, loss: float) -> Row:
    return Row(
        case=f"{model}, {poisons} poisons",
        arm=arm,
        value=1000 * median(times, setup.clock) / steps,
        unit=f"{setup.clock} milliseconds per step",
        wall_seconds=median(times, "wall"),
        cpu_seconds=median(times, "cpu"),
        rounds=len(times),
        note=f"{steps} steps, matching loss {loss:.3f}",
    )


def _claims(setup: Setup, model: str, found: dict[str, list[Timing]]) -> list[Claim]:
    ours, careful, plain = (found[arm] for arm in ARMS)
    fast_bf16 = setup.device == "cpu" and bf16_pays(torch.device("cpu"))
    least = 1.0 if model == "convnet" else (1.9 if fast_bf16 else 1.0)
    return [
        speedup(f"{model}: mithridate over plain fp32 NCHW double backward", plain, ours, setup.clock, least),
        speedup(f"{model}: mithridate over careful fp32 double backward", careful, ours, setup.clock, None),
    ]


# --- memory ----------------------------------------------------------------------------------------------------------


def _memory(setup: Setup) -> tuple[list[Row], list[Claim]]:
    """Peak memory with few and with many poisons, each in a process of its own."""
    few, many = (4, 8) if setup.small else (50, 1000)
    rows: list[Row] = []
    claims: list[Claim] = []
    for model in (name for name in setup.models if name != "resnet18" or setup.device != "cpu"):
        totals: dict[int, float] = {}
        for arm, poisons in product((ARMS[2], ARMS[0]), (few, many)):
            added, totals[poisons] = _probe(setup, model, arm, poisons)
            case, note = f"{model}, {poisons} poisons", f"{added:.0f} MB more than before the step"
            rows.append(Row(case=case, arm=arm, value=totals[poisons], unit="MB at the peak", rounds=1, note=note))
        growth = totals[many] / totals[few]  # of the last arm, mithridate
        claims.append(
            Claim(
                claim=f"{model}: peak memory of {many} poisons over {few} poisons",
                value=growth,
                low=growth,
                high=growth,
                required="flat: at most 1.25x",
                holds=growth <= 1.25,
            )
        )
    return rows, claims


def _probe(setup: Setup, model: str, arm: str, poisons: int) -> tuple[float, float]:
    """As `_measure_peak`, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.crafting", setup.device, model, arm, str(poisons), str(setup.threads)]
    done = subprocess.run([*command, *(["small"] if setup.small else [])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    added, total = json.loads(done.stdout.splitlines()[-1])
    return added, total


def _measure_peak(setup: Setup, model: str, arm: str, poisons: int) -> tuple[float, float]:
    """Megabytes that one step takes at its peak beyond what this process holds before it, and in all."""
    before = 0.0
    for count in (2, poisons):  # the first loads kernels and their buffers, and makes both measurements start alike
        task, surrogate = _case(setup, model, count, train=100 if setup.small else 10_000, epochs=0)
        before = _reset_peak(setup.device)
        if arm == "mithridate":
            WitchesBrew(steps=1, surrogates=1, micro_batch=50).craft(task, surrogate, seed=0)
        else:
            _brew(brew_plain, _by_hand(surrogate), task, 1)
    return _peak(setup.device) - before, _peak(setup.device)


def _reset_peak(device: str) -> float:
    """Forget earlier peaks, where the system can; return the megabytes in use now."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        ctypes.CDLL(None).malloc_trim(0)  # what was freed but kept for later would hide what comes
        CLEAR.write_text("5", encoding="ascii")
    return _peak(device)


def _peak(device: str) -> float:
    """Largest memory since the reset in megabytes: resident on a CPU, allocated on a GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    if not CLEAR.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def _main() -> None:
    parser = argparse.ArgumentParser(description="one memory measurement; `python -m benchmarks crafting` calls this")
    parser.add_argument("device")
    parser.add_argument("model")
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("poisons", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("small", nargs="?")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    setup = Setup(device=given.device, small=given.small is not None, threads=given.threads)
    print(json.dumps(_measure_peak(setup, given.model, given.arm, given.poisons)))


if __name__ == "__main__":
    _main()
