"""A whole trial as one writes it first: train a surrogate, craft poisons, train victims on them, evaluate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.reference.matching import Brew, Brewing, brew_plain
from benchmarks.reference.pixels import mean_and_std, ordinary
from benchmarks.reference.schooling import Schooling, train_plain

PHASES = ("surrogates", "craft", "victims", "evaluate")


class Normalized(nn.Module):
    """Images in [0, 1] to logits."""

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


@dataclass(frozen=True, eq=False, kw_only=True)
class Flow:
    """A trial: data, case and counts."""

    build: Callable[[int], nn.Module]
    """A new network on the device, from a seed."""
    images: Tensor
    """Training images [N, C, H, W] uint8, NCHW."""
    labels: Tensor
    test_images: Tensor
    """[N', C, H, W] uint8."""
    test_labels: Tensor
    rows: Tensor
    """Training rows to poison [P]."""
    target: Tensor
    """[1, C, H, W] in [0, 1]."""
    intended: Tensor
    """Class the target shall get, [1]."""
    school: Schooling
    brewing: Brewing
    victims: int = 1


@dataclass
class Outcome:
    """What a flow comes to."""

    success: list[bool] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """Wall seconds of each phase."""


def run_plain(flow: Flow) -> Outcome:
    """Float32, NCHW, one thing after the other."""
    outcome = Outcome()
    mean, std = mean_and_std(flow.images)
    with _phase(outcome, "surrogates", flow.images.device):
        network = ordinary(flow.build(0))
        train_plain(network, flow.images, flow.labels, flow.school)
    with _phase(outcome, "craft", flow.images.device):
        model = Normalized(network, mean, std)
        brew = Brew(flow.images[flow.rows].float() / 255, flow.labels[flow.rows], flow.target, flow.intended)
        poisons, _ = brew_plain(model, brew, flow.brewing)
        poisoned = flow.images.clone()
        poisoned[flow.rows] = (poisons * 255).round().to(torch.uint8)
    for number in range(flow.victims):
        with _phase(outcome, "victims", flow.images.device):
            network = ordinary(flow.build(1 + number))
            train_plain(network, poisoned, flow.labels, flow.school)
        with _phase(outcome, "evaluate", flow.images.device), torch.no_grad():
            model = Normalized(network, mean, std).eval()
            outcome.success.append(bool(model(flow.target).argmax(1) == flow.intended))
            right = [
                (model(images.float() / 255).argmax(1) == labels).float()
                for images, labels in zip(flow.test_images.split(1000), flow.test_labels.split(1000), strict=True)
            ]
            outcome.accuracy.append(float(torch.cat(right).mean()))
    return outcome


@contextmanager
def _phase(outcome: Outcome, name: str, device: torch.device) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize()
    outcome.seconds[name] += time.perf_counter() - start
