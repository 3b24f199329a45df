"""Leak: everything a server holds of one client's round, from which its images are to be reconstructed."""

from __future__ import annotations

import copy
import errno
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core import models
from mithridate.core.gradient_rules import trainable
from mithridate.core.schema import SCHEMA, from_json, to_json
from mithridate.inversion.filters import Filter
from mithridate.inversion.sharing import Gradient, Sharing, Update

Arrays = Mapping[str, Any] | Sequence[Any]
"""Tensors or numpy arrays: by parameter name, or in the order of the model."""


@dataclass(frozen=True, eq=False)
class Leak:
    """What a client shared, the model it was computed with, and what else the server knows.

    `shared` is a gradient of the mean loss, or for an `Update` the weights before minus the weights after. The model is
    the client's own, with the weights it was sent, and maps images in [0, 1] to logits: a client that normalises
    outside its model is ``nn.Sequential(Normalize(mean, std), model)`` (names then begin with ``1.``).

    >>> from mithridate.inversion.client import Client
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> leak = Client().share(model, torch.rand(1, 1, 2, 2), torch.tensor([2]), seed=0)
    >>> sorted(leak.shared), leak.count, leak.labels.tolist()
    (['1.bias', '1.weight'], 1, [2])

    Raises:
        ValueError: Gradients that are missing, superfluous, of another shape or not finite; labels that are no classes
            or of another number.
        TypeError: A model that is no module.
    """

    model: nn.Module
    """Maps images [B, C, H, W] in [0, 1] to logits [B, K]."""
    shared: Mapping[str, Tensor]
    """One tensor per trained parameter of the model, by its name."""
    count: int
    """Number B of images behind it."""
    shape: tuple[int, int, int]
    """(C, H, W) of the images."""
    classes: int
    """Number K of classes."""
    sharing: Sharing = Gradient()
    """How the client computed it."""
    labels: Tensor | None = None
    """[B] int64 labels in the order of the images; None: not known."""
    statistics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Mean and variance [C] of the client's batch before each BatchNorm, by the layer's name, where they were sent."""
    filters: tuple[Filter, ...] = ()
    """What was done to the shared numbers before they were sent, as far as the server knows."""
    mixing: Tensor | None = None
    """[B, B] weights with which the client mixed its images, where the server knows them."""

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model is {type(self.model).__name__}; a leak needs the torch.nn.Module it comes from")
        if self.count < 1:
            raise ValueError(f"count is {self.count}; at least one image is behind a gradient")
        _check_shared(self.model, self.shared)
        models.check_logits("the model", self.model, self.classes, self.shape, "give shape and classes of the client")
        if self.labels is not None:
            _check_labels(self.labels, self.count, self.classes)
        if isinstance(self.sharing, Update):
            list(self.sharing.rows(self.count))

    @property
    def tensors(self) -> list[Tensor]:
        """What was shared, in the order of the model's parameters."""
        return [self.shared[name] for name in trainable(self.model)]

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights: reconstructions are made in it."""
        return next(self.model.parameters()).dtype

    def mode(self) -> AbstractContextManager[None]:
        """A context in which `compute` may be called many times."""
        return self.sharing.mode(self.model)

    def compute(self, images: Tensor, targets: Tensor, *, graph: bool = True) -> list[Tensor]:
        """Computes what the client would have shared of other images, before any filter; call it within `mode`."""
        if self.mixing is not None:
            images, targets = self.mixed(images), self.mixing.to(targets.dtype) @ targets
        return self.sharing.compute(self.model, images, targets, graph=graph)

    def mixed(self, images: Tensor) -> Tensor:
        """Returns images [B, C, H, W] as the client mixed them, as far as the server knows."""
        return images if self.mixing is None else (self.mixing @ images.flatten(1)).view_as(images)

    def targets(self, labels: Tensor) -> Tensor:
        """Turns labels [B] into targets [B, K]."""
        return F.one_hot(labels.to(self.device), self.classes).to(self.dtype)

    def believed(self, other: Leak) -> Leak:
        """Returns this leak as a server takes it that knows no more of the client than that of another leak."""
        sharing = other.sharing
        return replace(self, sharing=sharing, filters=other.filters, mixing=other.mixing)

    def to(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Leak:
        """Returns the leak on a device, in a number format; the model is copied."""
        target = dtype or self.dtype
        model = copy.deepcopy(self.model).to(device, target)
        shared = {name: value.to(device, target) for name, value in self.shared.items()}
        statistics = {n: (m.to(device, target), v.to(device, target)) for n, (m, v) in self.statistics.items()}
        labels = None if self.labels is None else self.labels.to(device)
        mixing = None if self.mixing is None else self.mixing.to(device, target)
        return replace(self, model=model, shared=shared, labels=labels, statistics=statistics, mixing=mixing)

    # --- from what a client sent ---

    @classmethod
    def from_gradients(
        cls,
        model: nn.Module,
        gradients: Arrays,
        *,
        count: int,
        shape: tuple[int, int, int],
        classes: int,
        labels: Sequence[int] | Tensor | None = None,
        sharing: Gradient = Gradient(),
    ) -> Leak:
        """Builds a leak from the gradients that a client sent.

        Args:
            model: The client's model with the weights the gradients were computed at.
            gradients: Arrays by parameter name, or a list in the order of the model's trained parameters.
            count: Images behind them.
            shape: (C, H, W) of an image.
            classes: Number of classes.
            labels: Where they are known.
            sharing: How they were computed.

        Raises:
            ValueError: Names, numbers or shapes that are not those of the model.
        """
        shared = _named(gradients, [list(trainable(model))], "gradients")
        known = None if labels is None else torch.as_tensor(labels)
        return cls(model, _like(model, shared), count, shape, classes, sharing, known)

    @classmethod
    def from_weights(
        cls,
        model: nn.Module,
        before: Arrays,
        after: Arrays,
        *,
        sharing: Update | None,
        count: int,
        shape: tuple[int, int, int],
        classes: int,
        labels: Sequence[int] | Tensor | None = None,
    ) -> Leak:
        """Builds a leak from the weights before and after a round of local training: federated averaging.

        Args:
            model: The client's architecture; a copy of it gets the weights before.
            before: Arrays by name as in ``state_dict()``, or a list in that order (as federated frameworks send them),
                without what a `Normalize` holds if the client has none, or in that of the parameters.
            after: The same, after local training.
            sharing: Steps, learning rate and batch size of the client.
            count: Images the client trained on.
            shape: (C, H, W) of an image.
            classes: Number of classes.
            labels: Where they are known.

        Raises:
            ValueError: No `sharing`; names, numbers or shapes that are not those of the model.
        """
        if sharing is None:
            raise ValueError(
                "an update comes from local training, and without the number of its steps nobody can compute what "
                "images would have made of it; give sharing=Update(steps=..., rate=..., batch_size=...)"
            )
        orders = _orders(model)
        first, last = (_named(arrays, orders, "weights") for arrays in (before, after))
        started = copy.deepcopy(model)
        _load(started, first)
        wanted = list(trainable(model))
        missing = [name for name in wanted if name not in last]
        if missing:
            raise ValueError(f"the weights after the round lack {_listed(missing)}; send all trained parameters")
        moved = {name: _tensor(first[name]).double() - _tensor(last[name]).double() for name in wanted}
        known = None if labels is None else torch.as_tensor(labels)
        return cls(started, _like(model, moved), count, shape, classes, sharing, known)

    # --- on disk ---

    def save(self, path: str | Path) -> Path:
        """Writes the leak as one safetensors file: what was shared, the model's state, what the server knows."""
        from safetensors.torch import save_file

        tensors = {f"shared/{name}": value for name, value in self.shared.items()}
        tensors |= {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for name, (mean, variance) in self.statistics.items():
            tensors |= {f"statistics/{name}/mean": mean, f"statistics/{name}/variance": variance}
        tensors |= {} if self.labels is None else {"labels": self.labels}
        tensors |= {} if self.mixing is None else {"mixing": self.mixing}
        facts = {
            "schema": SCHEMA,
            "count": self.count,
            "shape": self.shape,
            "classes": self.classes,
            "sharing": to_json(self.sharing),
            "filters": to_json(self.filters),
        }
        stored = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(stored, path, metadata={"mithridate.leak": json.dumps(facts)})
        return path

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | str) -> Leak:
        """Reads a leak that `save` wrote.

        Args:
            path: The safetensors file.
            model: The client's architecture: a module, of which a copy gets the stored weights, or its name as in a
                recipe (`convnet`, `package.module:function`).

        Raises:
            FileNotFoundError: No such file.
            ValueError: No leak, or one of another model.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(errno.ENOENT, "there is no such file; Leak.save writes one", str(path))
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is no mapping)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read as safetensors ({error}); Leak.save writes such a file") from error
        facts = _facts(path, metadata)
        shape, classes = tuple(facts["shape"]), facts["classes"]
        module = models.build(model, classes, shape, 0) if isinstance(model, str) else copy.deepcopy(model)
        _load(module, _below(tensors, "model/"))
        pairs = _below(tensors, "statistics/")
        layers = dict.fromkeys(name.rpartition("/")[0] for name in pairs)
        return cls(
            module,
            _below(tensors, "shared/"),
            facts["count"],
            shape,
            classes,
            from_json(facts["sharing"], Sharing),
            tensors.get("labels"),
            {name: (pairs[f"{name}/mean"], pairs[f"{name}/variance"]) for name in layers},
            tuple(from_json(one, Filter) for one in facts["filters"]),
            tensors.get("mixing"),
        )


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_shared(model: nn.Module, shared: Mapping[str, Tensor]) -> None:
    wanted = trainable(model)
    if not wanted:
        raise ValueError("the model has no parameter that requires a gradient, so nothing of it can be shared")
    missing = [name for name in wanted if name not in shared]
    unknown = [name for name in shared if name not in wanted]
    if missing or unknown:
        lacking = f"no gradient for {_listed(missing)}" if missing else ""
        odd = f"gradients for {_listed(unknown)}, which the model does not train" if unknown else ""
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


def _check_labels(labels: Tensor, count: int, classes: int) -> None:
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {labels.dtype} of shape {list(labels.shape)}; expected int64 [{count}], one for each image"
        )
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise ValueError(f"label {int(outside[0])} is none of the {classes} classes 0..{classes - 1}")


def _facts(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        facts = json.loads(metadata["mithridate.leak"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} holds tensors but no leak; Leak.save writes one, and Leak.from_gradients or Leak.from_weights "
            "makes one from plain tensors"
        ) from error
    if facts.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {facts.get('schema')}; this version reads {SCHEMA}")
    return facts


def _tensor(array: Any) -> Tensor:
    return array if isinstance(array, Tensor) else torch.as_tensor(np.asarray(array))


def _like(model: nn.Module, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arrays as tensors of the model's device and number format."""
    first = next(model.parameters())
    return {name: _tensor(array).to(first.device, first.dtype) for name, array in arrays.items()}


def _orders(model: nn.Module) -> list[list[str]]:
    """The orders in which clients list a model's weights: its state, that of a client that normalises outside its
    model, its parameters."""
    state = list(model.state_dict())
    ours = {
        f"{name}.{buffer}" if name else buffer
        for name, part in model.named_modules()
        if isinstance(part, models.Normalize)
        for buffer, _ in part.named_buffers()
    }
    return [state, [name for name in state if name not in ours], [name for name, _ in model.named_parameters()]]


def _named(arrays: Arrays, orders: Sequence[Sequence[str]], what: str) -> dict[str, Any]:
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


def _load(module: nn.Module, weights: Mapping[str, Any]) -> None:
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
            f"the weights are not those of this model: {_listed(wrong)}; give the client's own architecture"
        )
    known = {name: _tensor(value).to(own[name]) for name, value in weights.items() if name in own}
    module.load_state_dict(own | known)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
