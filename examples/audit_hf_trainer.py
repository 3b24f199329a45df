"""Audit a run of the transformers Trainer. Needs `pip install 'mithridate[transformers]'`."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import mithridate as mi


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits  # what a processor does to images belongs here, too


def batch(rows: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    images, labels = zip(*rows, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def train(dataset: Dataset, seed: int) -> nn.Module:
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **sizes))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=6, per_device_train_batch_size=50, learning_rate=1e-2, seed=seed,
            save_strategy="no", report_to="none", disable_tqdm=True, log_level="error", dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(model, settings, train_dataset=dataset, data_collator=batch)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return Logits(model)


def main() -> None:
    result = mi.audit(
        mi.learner(train), mi.Digits(train=300), attacks=[mi.BadNets()], defenses=[mi.SpectralSignatures()],
        trials=2, clean_victims=2, out="runs/audit-hf-trainer",
    )  # fmt: skip
    print(result)


if __name__ == "__main__":
    main()
