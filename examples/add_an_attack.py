"""An attack of your own: a frozen dataclass with one method. Here: fade the target into images of another class."""

from __future__ import annotations

from dataclasses import dataclass

import mithridate as mi


@dataclass(frozen=True, kw_only=True)
class Fade(mi.Attack):
    """Blend the target into every poison, as far as the threat model allows."""

    opacity: float = 0.3
    """Of the target, 0..1."""

    def craft(self, task: mi.Task, surrogate: mi.Learner, seed: int) -> mi.Poison:
        rows = task.choose(seed)
        base = task.images(rows)
        faded = (1 - self.opacity) * base + self.opacity * task.targets[:1]
        return mi.Poison(rows, task.ball.rounded(base, task.ball.project(base, faded)))


def main() -> None:
    recipe = mi.Recipe(model="convnet:width=8", epochs=10, batch_size=50, transforms=())
    result = mi.audit(
        recipe, mi.Digits(train=300), attacks=[Fade()], defenses=(), eps=64 / 255, budget=0.05, trials=6,
        clean_victims=2, out="runs/add-an-attack",
    )  # fmt: skip
    print(result.table)  # the controls run beside it; whether it beats them is for the table to say


if __name__ == "__main__":
    main()
