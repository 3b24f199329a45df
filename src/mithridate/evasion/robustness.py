"""How many images a model still gets right under a set of attacks, and reasons to doubt the answer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.balls import Linf
from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.progress import track
from mithridate.core.schema import name_of
from mithridate.core.seeds import stream
from mithridate.evasion.attack import Attacked, Evasion
from mithridate.evasion.attacks.pgd import PGD

PROBED = 64
"""Images on which a model's habits are looked at."""
VANISHED = 0.05
"""Share of images without a gradient from which on attacks that follow it say little."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One attack on all images that the model gets right."""

    attack: Evasion
    stands: Tensor
    """[P] bool: right before and after the attack."""
    images: Tensor
    """[P, C, H, W] what the attack made of each; images that were wrong already as they are."""
    forwards: int
    gradients: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Robustness:
    """A model under a set of attacks, image by image."""

    right: Tensor
    """[P] bool: right without an attack."""
    judged: tuple[Judged, ...]
    doubts: tuple[str, ...]
    """Reasons why the true robustness may be lower than it looks."""

    @property
    def stands(self) -> Tensor:
        """[P] bool: right under every attack."""
        return torch.stack([self.right, *(one.stands for one in self.judged)]).all(0)


def robustness(
    model: nn.Module,
    data: ImageData,
    attacks: Sequence[Evasion],
    *,
    batch: int = 250,
    seed: int = 0,
    probe: bool = True,
) -> Robustness:
    """Attacks every image that a model gets right, with each attack on its own.

    Args:
        model: Images [P, C, H, W] in [0, 1] -> logits [P, K], asked in eval mode.
        data: Test images; of a selection only these.
        attacks: In any order; none knows what the others found.
        batch: Images at a time. What an attack draws depends on it.
        seed: Of everything that attacks draw.
        probe: Whether to look for reasons to doubt the model's gradients, which takes some steps on 64 images.

    Raises:
        ValueError: No attack, or no image.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> data = ImageData(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b", "c"))
    >>> found = robustness(network, data, [PGD(steps=2)])
    >>> bool((found.stands <= found.right).all())
    True
    """
    if not attacks:
        raise ValueError("no attack is given; name at least one")
    images, labels = data.floats(data.ids), data.labels_of(data.ids)
    if not len(images):
        raise ValueError("there are no images to attack")
    model = model.eval()
    right = torch.cat([_answers(model, part) for part in images.split(batch)]) == labels
    judged = tuple(_judged(model, images, labels, right, attack, batch, seed) for attack in attacks)
    doubts = _habits(model, images, labels, right, seed) if probe else []
    return Robustness(right, judged, (*doubts, *black_box([(one.attack, one.stands) for one in judged])))


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return Ensemble([model]).logits(images)[0].argmax(1)


def _judged(
    model: nn.Module, images: Tensor, labels: Tensor, right: Tensor, attack: Evasion, batch: int, seed: int
) -> Judged:
    start, found, stands = time.perf_counter(), images.clone(), right.clone()
    forwards = gradients = 0
    parts = right.nonzero()[:, 0].split(batch)
    for number, rows in enumerate(track(parts, name_of(attack))):
        rng = stream(seed, "evasion", number)
        one: Attacked = attack.perturb(model, images[rows], labels[rows], rng)
        # the harness judges, not the attack: what is stored is in the ball, and the model is asked again
        inside = attack.ball.contains(images[rows], one.images)
        wrong = _answers(model, one.images) != labels[rows]
        found[rows], stands[rows] = one.images, ~(wrong & inside)
        forwards, gradients = forwards + one.forwards, gradients + one.gradients
    return Judged(attack, stands, found, forwards, gradients, time.perf_counter() - start)


# --- doubts ----------------------------------------------------------------------------------------------------------


def _habits(model: nn.Module, images: Tensor, labels: Tensor, right: Tensor, seed: int) -> list[str]:
    """Reasons to doubt that lie in the model, in the manner of AutoAttack's own checks."""
    rows = right.nonzero()[:PROBED, 0]
    if not len(rows):
        return []
    probe, theirs = images[rows], labels[rows]
    found = []
    with torch.no_grad():
        first, second = (Ensemble([model]).logits(probe)[0] for _ in range(2))
    if not torch.equal(first, second):
        found.append(
            "the model answers differently when asked twice: attacks that follow its gradient need many draws each"
        )
    if bool((first >= 0).all()) and bool(((first.sum(1) - 1).abs() < 1e-4).all()):
        found.append("the model returns probabilities, not logits: gradients vanish where it is sure")
    gone = _without_gradient(model, probe, theirs)
    if gone > VANISHED:
        found.append(f"{100 * gone:.0f} % of the images have no gradient at all: attacks that follow it stand still")
    if (left := _unbounded(model, probe, theirs, seed)) > 0:
        found.append(f"{left} of {len(probe)} images stand even where every pixel may change: gradients lead nowhere")
    return found


def _without_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose cross-entropy has gradient 0 in every pixel."""
    leaf = images.clone().requires_grad_()
    loss = F.cross_entropy(Ensemble([model]).logits(leaf)[0], labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    return float((gradient.flatten(1).abs().amax(1) == 0).float().mean())


def black_box(judged: Sequence[tuple[Evasion, Tensor]]) -> list[str]:
    """Says which black boxes found what no attack with gradients found in the same ball.

    Args:
        judged: Each attack and the images [P] that stand under it.
    """
    found = []
    for attack, stands in judged:
        seeing = [theirs for other, theirs in judged if other.sees_gradients and other.ball == attack.ball]
        if attack.sees_gradients or not seeing:
            continue
        if missed := int((torch.stack(seeing).all(0) & ~stands).sum()):
            found.append(
                f"{name_of(attack)}, which sees no gradient, fools {missed} images that no attack with gradients "
                "did: they are masked, or the steps too few"
            )
    return found


def _unbounded(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> int:
    """Images that stand where any other would do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so large an eps, which is meant here
        attack = PGD(ball=Linf(eps=1.0), steps=50, step=0.05)
    return int((~attack.perturb(model, images, labels, stream(seed, "unbounded")).fooled).sum())
