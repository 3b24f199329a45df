"""Audit a model and images of your own. Here: a two-layer net on a few hundred digits, so that it runs in seconds."""

from __future__ import annotations

import torch

import mithridate as mi


def my_net(classes: int) -> torch.nn.Module:
    """Any function from the number of classes to a module: images [B, C, H, W] in [0, 1] -> logits [B, classes]."""
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.LazyLinear(64), torch.nn.ReLU(), torch.nn.Linear(64, classes)
    )


def main() -> None:
    train, test = mi.Digits(train=300).load()  # yours: mi.ImageData.from_folder("data/train"), ...("data/test")
    recipe = mi.Recipe(model=my_net, epochs=15, batch_size=50, transforms=())
    result = mi.audit(
        recipe,
        train,
        test,
        attacks=[mi.BadNets()],
        defenses=[mi.Mixup()],
        trials=6,  # the fewest that can show anything; take 20
        clean_victims=2,
        out="runs/audit-your-model",  # the same call goes on where it stopped
    )
    print(result)


if __name__ == "__main__":
    main()
