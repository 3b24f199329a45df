"""Audit training code of your own: a function from a data set and a seed to a trained module. Here: a plain loop."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, Dataset

import mithridate as mi


def train(dataset: Dataset, seed: int) -> torch.nn.Module:
    """Items are (image [C, H, W] in [0, 1], label); the module maps images [B, C, H, W] to logits."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(15):
        for images, labels in DataLoader(dataset, batch_size=50, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model


def main() -> None:
    result = mi.audit(
        mi.learner(train),
        mi.Digits(train=300),
        attacks=[mi.BadNets()],
        defenses=[mi.SpectralSignatures()],  # one that wraps: nothing can be changed inside your code
        trials=2,  # enough to see it run; take 20
        clean_victims=2,
        out="runs/audit-plain-loop",
    )
    print(result)


if __name__ == "__main__":
    main()
