"""Bad minima: a deep ReLU network at a minimum no better than a linear classifier; and starts that end badly."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from mithridate.core.ensemble import in_mode
from mithridate.landscape.curvature import eigenvalues
from mithridate.landscape.losses import Loss, Score

# --- the shallow minimum ---------------------------------------------------------------------------------------------


class Linear(NamedTuple):
    """A linear classifier at the minimum of its loss."""

    weight: Tensor
    """[K, D] float64."""
    bias: Tensor
    """[K] float64."""
    loss: float
    """Mean cross-entropy on the images it was fitted to."""
    gradient_norm: float


def linear_minimum(features: Tensor, labels: Tensor, *, tolerance: float = 1e-10, iterations: int = 500) -> Linear:
    """Fits a linear classifier to the minimum of its mean cross-entropy (trust-region Newton), in float64.

    Args:
        features: [N, D].
        labels: [N] int64, 0..K-1.
        tolerance: Norm of the gradient at which the minimum counts as found.
        iterations: At most.

    Raises:
        ValueError: Other shapes, or no minimum found, as where a plane separates the classes: then the loss falls for
            ever and there is no minimum.

    >>> features = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    >>> round(linear_minimum(features, torch.tensor([0, 1, 1, 0])).loss, 4)  # nothing to learn: log 2
    0.6931
    """
    if features.ndim != 2 or labels.shape != (len(features),) or not len(features):
        raise ValueError(f"features {list(features.shape)} and labels {list(labels.shape)}; expected [N, D] and [N]")
    classes = int(labels.max()) + 1
    inputs = np.concatenate([features.detach().cpu().double().numpy(), np.ones((len(features), 1))], axis=1)
    hot = np.eye(classes)[labels.cpu().numpy()]

    def shares(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = inputs @ flat.reshape(classes, -1).T
        logits -= logits.max(1, keepdims=True)
        return logits, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def loss(flat: np.ndarray) -> float:
        logits, _ = shares(flat)
        return float((np.log(np.exp(logits).sum(1)) - (logits * hot).sum(1)).mean())

    def slope(flat: np.ndarray) -> np.ndarray:
        return ((shares(flat)[1] - hot).T @ inputs / len(inputs)).ravel()

    def curved(flat: np.ndarray, way: np.ndarray) -> np.ndarray:
        share = shares(flat)[1]
        along = share * (inputs @ way.reshape(classes, -1).T)
        return ((along - share * along.sum(1, keepdims=True)).T @ inputs / len(inputs)).ravel()

    start = np.zeros(classes * inputs.shape[1])
    settings: dict[str, Any] = {"gtol": tolerance, "maxiter": iterations}
    found = minimize(loss, start, jac=slope, hessp=curved, method="trust-ncg", options=settings).x
    steepness = float(np.linalg.norm(slope(found)))
    right = (shares(found)[1].argmax(1) == labels.cpu().numpy()).mean()
    if right == 1 or steepness > 100 * tolerance:
        why = "a plane separates the classes, so that" if right == 1 else f"the gradient is still {steepness:.1e}:"
        raise ValueError(
            f"{why} there is no minimum of {len(inputs)} images with {inputs.shape[1] - 1} features; give more images "
            "or fewer features (principal components, say)"
        )
    both = torch.from_numpy(found.reshape(classes, -1).copy())
    return Linear(both[:, :-1].contiguous(), both[:, -1].contiguous(), loss(found), steepness)


# --- the deep one ----------------------------------------------------------------------------------------------------


def embedded(
    minimum: Linear, features: Tensor, *, hidden: int = 2, width: int | None = None, margin: float = 1.0
) -> nn.Sequential:
    """Builds a deep ReLU network that computes what a linear classifier does, at a local minimum of its own loss.

    The first layer adds a constant that makes every input positive, so that no ReLU does anything; the last one takes
    it away again. Near these weights the network is a product of matrices, so that every network around is a linear
    classifier, and none of them is better than the best one.

    Reference: Goldblum et al. arXiv 1910.00359, section 3.

    Args:
        minimum: Of `linear_minimum` on these features.
        features: [N, D] that the loss is measured on: the ReLUs must be active on all of them.
        hidden: Hidden layers, 1 or more.
        width: Of the hidden layers; by default D. Units beyond D are constants.
        margin: Least input of a ReLU.

    Returns:
        A network in float64.

    Raises:
        ValueError: No hidden layer, a width below D, or a margin that is not positive.
    """
    inputs = minimum.weight.shape[1]
    width = inputs if width is None else width
    if hidden < 1 or width < inputs or not margin > 0:
        raise ValueError(
            f"{hidden} hidden layers of {width} units and a margin of {margin:g}; give 1 or more layers of at least "
            f"{inputs} units (the features), and a margin above 0"
        )
    lift = margin - min(0.0, float(features.min()))
    sizes = [inputs, *[width] * hidden]
    layers: list[nn.Module] = []
    for number, (seen, made) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(seen, made, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.eye(made, seen))
            layer.bias.fill_(0.0 if number else lift)
        layers += [layer, nn.ReLU()]
    last = nn.Linear(width, len(minimum.bias), dtype=torch.float64)
    with torch.no_grad():
        last.weight.zero_()
        last.weight[:, :inputs] = minimum.weight
        last.bias.copy_(minimum.bias - lift * minimum.weight.sum(1))
    return nn.Sequential(*layers, last)


@dataclass(frozen=True)
class Certificate:
    """What was looked at to tell whether weights are a local minimum."""

    loss: float
    accuracy: float
    gradient_norm: float
    smallest: float
    """Smallest eigenvalue of the Hessian."""
    largest: float
    """Largest eigenvalue of the Hessian."""
    rises: dict[float, float]
    """By radius, the least change of the loss in random directions."""
    descended: float
    """How far gradient descent from weights nearby went below the loss: above 0 it is no minimum."""
    directions: int

    def holds(self, tolerance: float = 1e-6) -> bool:
        """Returns whether nothing speaks against a local minimum, up to rounding."""
        scale = tolerance * max(1.0, self.largest)
        flat = self.gradient_norm <= scale and self.smallest >= -scale
        return flat and min(self.rises.values()) >= -tolerance and self.descended <= tolerance


def certify(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    radii: Sequence[float] = (1e-4, 1e-3, 1e-2),
    directions: int = 100,
    steps: int = 200,
    seed: int = 0,
) -> Certificate:
    """Looks for every sign that weights are no local minimum: slope, negative curvature, descent around them.

    Args:
        model: Any module; float64, if the last digits are to count.
        inputs: What it takes.
        labels: [N] int64.
        radii: Euclidean lengths of the random changes of all weights together.
        directions: Random changes of each length.
        steps: Of gradient descent from weights at the smallest radius, of one over the largest eigenvalue each.
        seed: Of the directions.

    Raises:
        ValueError: No radii or no directions.
    """
    if not radii or directions < 1 or min(radii) <= 0:
        raise ValueError(f"radii {list(radii)} and {directions} directions; give lengths above 0 and 1 or more")
    loss = Loss(model, inputs, labels)
    here, point = loss.score(), loss.point
    rng = torch.Generator().manual_seed(seed)
    ways = [torch.nn.functional.normalize(_drawn(point, rng), dim=0) for _ in range(directions)]
    rises = {radius: min(loss.score(point + radius * way).loss for way in ways) - here.loss for radius in radii}
    largest = float(eigenvalues(loss))
    place = point + min(radii) * ways[0]
    lowest = loss.score(place).loss
    for _ in range(steps):
        place = place - loss.gradient(place) / max(largest, 1e-12)
        lowest = min(lowest, loss.score(place).loss)
    return Certificate(
        loss=here.loss,
        accuracy=here.accuracy,
        gradient_norm=float(loss.gradient().norm()),
        smallest=float(eigenvalues(loss, which="smallest")),
        largest=largest,
        rises=rises,
        descended=here.loss - lowest,
        directions=directions,
    )


def _drawn(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=rng, dtype=torch.float64).to(like)


def continued(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int = 50,
    momentum: float = 0.9,
    seed: int = 0,
) -> tuple[nn.Module, list[Score]]:
    """Trains a copy by SGD from where it is; returns it and its score before and after each epoch.

    Raises:
        ValueError: No epochs.
    """
    if epochs < 1:
        raise ValueError(f"{epochs} epochs; give 1 or more")
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
    rng = torch.Generator().manual_seed(seed)
    scores = [Loss(model, inputs, labels).score()]
    for _ in range(epochs):
        with in_mode(model, train=True):
            for rows in torch.randperm(len(inputs), generator=rng).to(inputs.device).split(batch_size):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
                optimizer.step()
        scores.append(Loss(model, inputs, labels).score())
    return model, scores


# --- starts that end badly -------------------------------------------------------------------------------------------

Bias = Literal["default", "zero", "low", "high", "equal", "variance"]
LEVEL = {"low": -20.0, "high": 20.0}
"""What is added to all biases."""
EQUAL = 0.001
"""What all weights are, and no biases."""


def set_biases(model: nn.Module, how: Bias, *, level: float | None = None, spread: float = 0.1, seed: int = 0) -> None:
    """Changes the weights that training starts from, in place.

    Reference: Goldblum et al. arXiv 1910.00359, section 3 and its appendix.

    Args:
        model: Freshly initialised; biases of its Linears, convolutions and norms but those of the last Linear change.
        how: default: nothing. zero: no biases. low, high: biases of -20 or 20 (`level`): ReLUs that never or always let
            through. equal: all weights 0.001, no biases. variance: biases uniform in -spread .. spread.
        level: Instead of -20 or 20.
        spread: Of variance.
        seed: Of variance.

    Raises:
        ValueError: Another way.
    """
    ways = ("default", "zero", "low", "high", "equal", "variance")
    if how not in ways:
        raise ValueError(f"no start is called {how!r}; these are: {', '.join(ways)}")
    if how == "default":
        return
    rng = torch.Generator().manual_seed(seed)
    layers = [layer for layer in model.modules() if isinstance(getattr(layer, "bias", None), Tensor)]
    with torch.no_grad():
        if how == "equal":
            for parameter in model.parameters():
                parameter.fill_(EQUAL)
        for layer in layers if how in ("zero", "equal") else layers[:-1]:
            bias: Tensor = layer.bias  # pyright: ignore[reportAssignmentType]
            if how in LEVEL:
                bias.fill_(LEVEL[how] if level is None else level)
            elif how == "variance":
                bias.copy_(spread * (2 * torch.rand(bias.shape, generator=rng) - 1))
            else:
                bias.zero_()


def dead_share(model: nn.Module, inputs: Tensor) -> float:
    """Returns the share of inputs of ReLUs that are below zero, in eval mode; NaN without ReLU modules.

    >>> dead_share(nn.Sequential(nn.ReLU()), torch.tensor([[-1.0, 1.0, 2.0, 3.0]]))
    0.25
    """
    below, seen = 0, 0

    def note(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal below, seen
        below += int((arguments[0] < 0).sum())
        seen += arguments[0].numel()

    with _hooked(model, nn.ReLU, note), torch.no_grad(), in_mode(model, train=False):
        for part in inputs.split(250):
            model(part)
    return below / seen if seen else math.nan


@contextmanager
def _hooked(model: nn.Module, kind: type[nn.Module], note: Any) -> Iterator[None]:
    handles = [part.register_forward_pre_hook(note) for part in model.modules() if isinstance(part, kind)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
