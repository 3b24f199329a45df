"""The four arrows, one at a time: draw a case, craft a poison, defend the learner, train and judge."""

from __future__ import annotations

import mithridate as mi


def main() -> None:
    train, test = mi.Digits(train=300).load()
    recipe = mi.Recipe(model="convnet:width=8", epochs=10, batch_size=50, transforms=())

    threat = mi.ThreatModel(budget=0.1, ball=mi.Linf(eps=32 / 255))
    task = threat.draw(train, test, seed=0)
    print(task.describe())

    poison = mi.WitchesBrew(steps=50, surrogates=1).craft(task, surrogate=recipe, seed=0)
    task.check(poison)  # measured again on the 8-bit pixels; an attack that oversteps is an error
    print(f"{len(poison)} poisons, matching loss {poison.notes['matching_loss']:.2f}")

    for name, learner in {"undefended": recipe, "mixup": mi.Mixup()(recipe)}.items():
        outcome = task.outcome(learner.fit([poison.apply(train)] * 2, seeds=[1, 2]), poison)
        print(f"{name}: margins {outcome['margin'].flatten().tolist()}, accuracy {outcome['accuracy'].tolist()}")


if __name__ == "__main__":
    main()
