"""Evade: one trained model under evasion attacks at several strengths, stored as it goes, with intervals and a page."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mithridate.core.balls import L2, Ball, Linf
from mithridate.core.data import ImageData
from mithridate.core.schema import from_json, identity, name_of, to_json
from mithridate.core.seeds import stream
from mithridate.evasion.attack import Evasion
from mithridate.evasion.judges import spoken
from mithridate.evasion.robustness import black_box, robustness
from mithridate.experiments.facts import environment
from mithridate.experiments.files import read_json, write_json
from mithridate.experiments.rates import rate
from mithridate.experiments.statistics import Rate
from mithridate.experiments.store import UNREADABLE

SHOWN = 8
"""Images kept of each attack, for the page."""


@dataclass(frozen=True)
class Level:
    """One attack at one strength."""

    attack: str
    """Its name."""
    settings: dict[str, Any]
    eps: float
    """Radius of the ball: largest change of a pixel (linf), or length of an image's change (l2)."""
    ball: str
    stands: Rate
    """Images that are still right, of all images."""
    standing: tuple[bool, ...]
    """Image by image."""
    sees_gradients: bool
    forwards: float
    """Images through the model, per image that was attacked; 0 where another library does not count them."""
    gradients: float
    seconds: float
    doubts: tuple[str, ...]
    examples: Path
    """Tensors: images before and after, rows."""


@dataclass(frozen=True)
class Evaluation:
    """A model under all of them."""

    accuracy: Rate
    levels: tuple[Level, ...]

    def worst(self) -> list[tuple[str, float, Rate]]:
        """(ball, strength, images that stand under every attack of that strength), the weakest first."""
        found: dict[tuple[str, float], list[tuple[bool, ...]]] = {}
        for level in self.levels:
            found.setdefault((level.ball, level.eps), []).append(level.standing)
        return [
            (ball, eps, rate([[all(one)] for one in zip(*columns, strict=True)]))
            for (ball, eps), columns in sorted(found.items())
        ]

    def doubts(self) -> list[str]:
        """Every reason to doubt, once."""
        found = [doubt for level in self.levels for doubt in level.doubts]
        found += black_box([(from_json(one.settings, Evasion), torch.tensor(one.standing)) for one in self.levels])
        return list(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        levels = [
            {
                **{
                    f.name: getattr(one, f.name)
                    for f in dataclasses.fields(one)
                    if f.name not in ("standing", "examples")
                },
                "stands": dataclasses.asdict(one.stands),
            }
            for one in self.levels
        ]
        worst = [{"ball": ball, "eps": eps, "stands": dataclasses.asdict(found)} for ball, eps, found in self.worst()]
        return {
            "accuracy": dataclasses.asdict(self.accuracy),
            "levels": levels,
            "worst": worst,
            "doubts": self.doubts(),
        }


def sized(attack: Evasion, eps: float) -> Evasion:
    """Returns the attack with another radius.

    Raises:
        TypeError: Its ball has none.
    """
    if not isinstance(attack.ball, (Linf, L2)):
        raise TypeError(f"{name_of(attack)} has no eps to change: its ball is {name_of(attack.ball)}")
    return replace(attack, ball=replace(attack.ball, eps=eps))


def eps_of(ball: Ball) -> float:
    """Radius of a ball; 0 where it has none."""
    return ball.eps if isinstance(ball, (Linf, L2)) else 0.0


def drawn(data: ImageData, count: int | None, seed: int) -> ImageData:
    """Returns so many test images, drawn once; None: all of them."""
    if count is None or count >= len(data):
        return data
    rows = torch.randperm(len(data), generator=stream(seed, "evaded images"))[:count].sort().values
    return data.select(data.ids[rows.to(data.device)])


def evaluate(
    model: nn.Module,
    data: ImageData,
    attacks: Sequence[Evasion],
    folder: str | Path,
    *,
    seed: int = 0,
    batch: int = 250,
) -> Evaluation:
    """Attacks a model; what was done before is taken from the folder.

    Args:
        model: Images [P, C, H, W] in [0, 1] -> logits [P, K].
        data: Test images.
        attacks: Each as it stands; `sized` gives other strengths.
        folder: Where results go; the same call resumes.
        seed: Of everything drawn.
        batch: Images at a time.

    Raises:
        ValueError: The model does not take such images; no attack; no image.
    """
    place = Path(folder) / "evasions"
    described = {"model": fingerprint(model), "data": data.fingerprint(), "rows": data.ids.tolist(), "seed": seed}
    levels: list[Level] = []
    right: list[bool] = []
    for attack in attacks:
        home = place / identity(described | {"attack": to_json(attack), "batch": batch})
        found = _stored(home) or _done(home, model, data, attack, seed, batch, probe=not levels)
        right = found["right"]
        levels.append(_level(found, attack, home))
    return Evaluation(rate([[one] for one in right]), tuple(levels))


def fingerprint(model: nn.Module) -> str:
    """Hash of a model: its class and everything in it."""
    made = hashlib.sha256(repr(model).encode())
    for name, value in sorted(model.state_dict().items()):
        made.update(name.encode())
        made.update(
            value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if value.ndim
            else repr(value.item()).encode()
        )
    return made.hexdigest()[:16]


def _stored(home: Path) -> dict[str, Any] | None:
    try:
        return read_json(home / "result.json")
    except UNREADABLE:
        return None


def _done(
    home: Path, model: nn.Module, data: ImageData, attack: Evasion, seed: int, batch: int, *, probe: bool
) -> dict[str, Any]:
    found = robustness(model, data, [attack], seed=seed, batch=batch, probe=probe)
    (one,) = found.judged
    attacked = max(1, int(found.right.sum()))
    fell = (found.right & ~one.stands).nonzero()[:SHOWN, 0]
    home.mkdir(parents=True, exist_ok=True)
    shown = {"before": data.floats(data.ids[fell]), "after": one.images[fell], "rows": data.ids[fell]}
    with torch.no_grad():
        shown["answers"] = model(shown["after"]).argmax(1) if len(fell) else torch.zeros(0, dtype=torch.int64)
    save_file({name: value.cpu().contiguous() for name, value in shown.items()}, home / "examples.safetensors")
    content = {
        "attack": to_json(attack),
        "right": found.right.tolist(),
        "standing": one.stands.tolist(),
        "forwards": one.forwards / attacked,
        "gradients": one.gradients / attacked,
        "seconds": one.seconds,
        "doubts": list(found.doubts),
        "environment": environment(str(data.device)),
    }
    write_json(home / "result.json", content)
    return content


def _level(found: dict[str, Any], attack: Evasion, home: Path) -> Level:
    return Level(
        attack=spoken(attack),
        settings=found["attack"],
        eps=eps_of(attack.ball),
        ball=name_of(attack.ball),
        stands=rate([[one] for one in found["standing"]]),
        standing=tuple(found["standing"]),
        sees_gradients=attack.sees_gradients,
        forwards=found["forwards"],
        gradients=found["gradients"],
        seconds=found["seconds"],
        doubts=tuple(found["doubts"]),
        examples=home / "examples.safetensors",
    )


def examples(level: Level) -> dict[str, torch.Tensor]:
    """The images kept of one attack: before, after, rows, answers."""
    return load_file(level.examples)
