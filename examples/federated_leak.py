"""One round of federated averaging, inverted. The client is written as for Flower: arrays in, arrays out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import mithridate as mi
from mithridate.inversion.similarity import psnr

MEAN, STD = [0.3], [0.38]  # of the digits; client and server agree on them
ROUND = {"local_steps": 3, "rate": 0.05}


def net() -> nn.Module:
    layers = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Sigmoid(), nn.Flatten(), nn.Linear(1024, 10)
    return nn.Sequential(*layers).eval()


def state(model: nn.Module) -> list[np.ndarray]:
    return [value.numpy().copy() for value in model.state_dict().values()]


class Client:
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = (images - MEAN[0]) / STD[0]  # outside the model, as most clients do
        self.labels = labels

    def fit(self, parameters: list[np.ndarray], config: dict) -> tuple[list[np.ndarray], int, dict]:
        model = net()
        model.load_state_dict({k: torch.tensor(v) for k, v in zip(model.state_dict(), parameters, strict=True)})
        optimizer = torch.optim.SGD(model.parameters(), lr=config["rate"])
        for _ in range(config["local_steps"]):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(self.images), self.labels).backward()
            optimizer.step()
        return state(model), len(self.images), {}


def main() -> None:
    _, test = mi.Digits().load()
    truth, labels = test.floats(test.ids[:1]), test.labels[:1]
    torch.manual_seed(0)
    before = state(net())
    after, count, _ = Client(truth, labels).fit(before, ROUND)

    model = nn.Sequential(mi.Normalize(MEAN, STD), net())  # maps pixels in [0, 1] to logits
    sharing = mi.Update(steps=ROUND["local_steps"], rate=ROUND["rate"])
    leak = mi.Leak.from_weights(model, before, after, sharing=sharing, count=count, shape=(1, 8, 8), classes=10)
    leak = mi.Leak.load(leak.save("runs/federated-leak.safetensors"), model)  # or later, on another machine
    found = mi.invert_leak(leak, mi.InvertingGradients(steps=200), out="runs/federated-leak")
    print(f"label {found.labels.item()}, in truth {labels.item()}; PSNR {psnr(found.images, truth).item():.1f} dB")
    print("the picture: runs/federated-leak/all.png")


if __name__ == "__main__":
    main()
