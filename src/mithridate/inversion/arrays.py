"""What clients send as plain arrays: named, shaped and checked against the model it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mithridate.core.gradient_rules import trainable
from mithridate.core.models import Normalize

Arrays = Mapping[str, Any] | Sequence[Any]
"""Tensors or numpy arrays: by parameter name, or in the order of the model."""


def check_shared(model: nn.Module, shared: Mapping[str, Tensor]) -> None:
    """Makes sure that tensors are those of a model's trained parameters.

    Raises:
        ValueError: Some are missing, superfluous, of another shape or not finite.
    """
    wanted = trainable(model)
    if not wanted:
        raise ValueError("the model has no parameter that requires a gradient, so nothing of it can be shared")
    missing = [name for name in wanted if name not in shared]
    unknown = [name for name in shared if name not in wanted]
    if missing or unknown:
        lacking = f"no gradient for {listed(missing)}" if missing else ""
        odd = f"gradients for {listed(unknown)}, which the model does not train" if unknown else ""
        raise ValueError(
            f"{' and '.join(filter(None, (lacking, odd)))}; the leak must come from this model: one tensor for each of "
            f"its {len(wanted)} trained parameters, under its name"
        )
    for name, parameter in wanted.items():
        if shared[name].shape != parameter.shape:
            raise ValueError(
                f"the gradient of {name} has shape {list(shared[name].shape)}, the parameter {list(parameter.shape)}; "
                "is it a gradient of another model?"
            )
        if not bool(shared[name].isfinite().all()):
            raise ValueError(
                f"the gradient of {name} holds NaN or infinity; such a round tells nothing, so ask for another one"
            )


def check_labels(labels: Tensor, count: int, classes: int) -> None:
    """Makes sure that labels [B] are classes, one for each image.

    Raises:
        ValueError: They are not.
    """
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {labels.dtype} of shape {list(labels.shape)}; expected int64 [{count}], one for each image"
        )
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise ValueError(f"label {int(outside[0])} is none of the {classes} classes 0..{classes - 1}")


def tensor_of(array: Any) -> Tensor:
    """Returns an array of whatever library as a tensor."""
    return array if isinstance(array, Tensor) else torch.as_tensor(np.asarray(array))


def as_tensors(model: nn.Module, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arrays as tensors of the model's device and number format."""
    first = next(model.parameters())
    return {name: tensor_of(array).to(first.device, first.dtype) for name, array in arrays.items()}


def orders_of(model: nn.Module) -> list[list[str]]:
    """The orders in which clients list a model's weights: its state, that of a client that normalises outside its
    model, its parameters."""
    state = list(model.state_dict())
    ours = {
        f"{name}.{buffer}" if name else buffer
        for name, part in model.named_modules()
        if isinstance(part, Normalize)
        for buffer, _ in part.named_buffers()
    }
    return [state, [name for name in state if name not in ours], [name for name, _ in model.named_parameters()]]


def named(arrays: Arrays, orders: Sequence[Sequence[str]], what: str) -> dict[str, Any]:
    """Gives arrays that come in a list their names: those of the first order that is as long."""
    if isinstance(arrays, Mapping):
        return dict(arrays)
    for order in orders:
        if len(arrays) == len(order):
            return dict(zip(order, arrays, strict=True))
    counts = " or ".join(dict.fromkeys(str(len(order)) for order in orders))
    raise ValueError(
        f"{len(arrays)} {what} came in a list, but the model has {counts}; send all of them in the model's order, or a "
        "mapping from name to array"
    )


def load_into(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Gives a module these weights; buffers that are not named keep their values.

    Raises:
        ValueError: A parameter is missing, or something has another shape.
    """
    own = module.state_dict()
    parameters = {name for name, _ in module.named_parameters()}
    wrong = [
        f"{name} {list(own[name].shape)}"
        + (f" (given: {list(np.shape(weights[name]))})" if name in weights else " (missing)")
        for name in own
        if (name in weights and tuple(np.shape(weights[name])) != tuple(own[name].shape))
        or (name not in weights and name in parameters)
    ]
    if wrong:
        raise ValueError(
            f"the weights are not those of this model: {listed(wrong)}; give the client's own architecture"
        )
    known = {name: tensor_of(value).to(own[name]) for name, value in weights.items() if name in own}
    module.load_state_dict(own | known)


def listed(names: Sequence[str], most: int = 4) -> str:
    """Returns the first names, and how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
