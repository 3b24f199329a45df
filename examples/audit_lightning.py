"""Audit a Lightning training run. Needs `pip install 'mithridate[lightning]'`."""

from __future__ import annotations

import logging
import warnings

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import mithridate as mi


class Net(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def train(dataset: Dataset, seed: int) -> nn.Module:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec)")
    module = Net()
    lightning.Trainer(max_epochs=15, barebones=True).fit(module, DataLoader(dataset, batch_size=50, shuffle=True))
    return module.net  # the network alone, without its trainer


def main() -> None:
    result = mi.audit(
        mi.learner(train), mi.Digits(train=300), attacks=[mi.BadNets()], defenses=[mi.SpectralSignatures()],
        trials=2, clean_victims=2, out="runs/audit-lightning",
    )  # fmt: skip
    print(result)


if __name__ == "__main__":
    main()
