"""Victims that we did not write: training code as users of scikit-learn and of the transformers Trainer write it.

Each is a function of a training set and a seed. It returns a module whose answers are those of the library's own model;
nothing of it can be differentiated by an attacker.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Answers(nn.Module):
    """A scikit-learn classifier of flat pixels, asked for logarithms of probabilities."""

    def __init__(self, classifier: Any, classes: int) -> None:
        super().__init__()
        self.classifier, self.classes = classifier, classes

    def forward(self, images: Tensor) -> Tensor:
        found = torch.full((len(images), self.classes), -30.0)
        chances = self.classifier.predict_proba(images.flatten(1).cpu().numpy())
        found[:, torch.as_tensor(self.classifier.classes_)] = torch.as_tensor(chances).clamp_min(1e-12).log().float()
        return found.to(images.device)


def _arrays(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*(dataset[row] for row in range(len(dataset))), strict=True)  # type: ignore[arg-type]
    return torch.stack(images).flatten(1).numpy(), np.array(labels)


def logistic_regression(dataset: Any, seed: int) -> nn.Module:
    """Logistic regression on pixels."""
    from sklearn.linear_model import LogisticRegression

    return Answers(LogisticRegression(C=10.0, max_iter=300, random_state=seed).fit(*_arrays(dataset)), 10)


def support_vectors(dataset: Any, seed: int) -> nn.Module:
    """A support vector machine on 30 principal components."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    model = make_pipeline(PCA(30, random_state=seed), SVC(C=10.0, probability=True, random_state=seed))
    return Answers(model.fit(*_arrays(dataset)), 10)


class Logits(nn.Module):
    """A transformers model of images alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits


def _batch(rows: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    images, labels = zip(*rows, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def _trained(model: Any, dataset: Any, seed: int, *, epochs: int, rate: float) -> nn.Module:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=50,
            learning_rate=rate,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model, settings, train_dataset=dataset, data_collator=_batch)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return Logits(model)


def trainer_vit(dataset: Any, seed: int) -> nn.Module:
    """A small vision transformer from scratch, by the transformers Trainer: patches of 2 x 2 pixels."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    torch.manual_seed(seed)
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes))
    return _trained(model, dataset, seed, epochs=15, rate=2e-3)


def trainer_resnet(dataset: Any, seed: int) -> nn.Module:
    """A small ResNet from scratch, by the transformers Trainer."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    torch.manual_seed(seed)
    model = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **sizes))
    return _trained(model, dataset, seed, epochs=8, rate=1e-2)


VICTIMS = (logistic_regression, support_vectors, trainer_vit, trainer_resnet)
