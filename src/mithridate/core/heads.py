"""Transfer learning's last layer: a linear classifier on frozen features, trained to convergence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fit_head(
    features: Tensor, targets: Tensor, head: nn.Linear, weight_decay: float, steps: int = 500
) -> tuple[nn.Linear, float]:
    """Returns a copy of the head that minimises cross-entropy + weight_decay/2 |weight|^2, and its final loss.

    The problem is convex; L-BFGS with a strong-Wolfe line search runs until the gradient is small (or for ``steps``
    iterations), in float64. Features are scaled to unit mean square first and the scale is folded back into the
    weights.

    Args:
        features: [N, D].
        targets: [N, K], rows sum to one.
        head: gives the shape and the starting point.
        weight_decay: strength of the penalty on the weights of the scaled problem.
        steps: most L-BFGS iterations.

    >>> head, loss = fit_head(
    ...     torch.tensor([[-1.0], [1.0]]), torch.eye(2), nn.Linear(1, 2), weight_decay=0.01
    ... )
    >>> head(torch.tensor([[-1.0], [1.0]])).argmax(1).tolist(), loss < 0.1
    ([0, 1], True)
    """
    features, targets = features.detach().double(), targets.double()
    scale = features.square().mean().sqrt().clamp_min(1e-12)
    features = features / scale
    weight = (head.weight.detach().double() * scale).requires_grad_()
    bias = (head.bias.detach().double() if head.bias is not None else targets.new_zeros(len(weight))).requires_grad_()
    solved = [weight, bias] if head.bias is not None else [weight]
    optimizer = torch.optim.LBFGS(
        solved,
        max_iter=steps,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight.T + bias, targets) + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    loss = float(closure().detach())
    fitted = nn.Linear(weight.shape[1], weight.shape[0], bias=head.bias is not None, device=weight.device)
    with torch.no_grad():
        fitted.weight.copy_(weight / scale)
        if head.bias is not None:
            fitted.bias.copy_(bias)
    return fitted, loss
