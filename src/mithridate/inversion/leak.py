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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core import models
from mithridate.core.classifier import Classifier
from mithridate.core.gradient_rules import trainable
from mithridate.core.schema import SCHEMA, from_json, to_json
from mithridate.inversion.arrays import (
    Arrays,
    as_tensors,
    check_labels,
    check_shared,
    listed,
    load_into,
    named,
    orders_of,
    tensor_of,
)
from mithridate.inversion.filters import Filter
from mithridate.inversion.sharing import Gradient, Sharing, Update


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
        check_shared(self.model, self.shared)
        models.check_logits("the model", self.model, self.classes, self.shape, "give shape and classes of the client")
        if self.labels is not None:
            check_labels(self.labels, self.count, self.classes)
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
        shared = named(gradients, [list(trainable(model))], "gradients")
        known = None if labels is None else torch.as_tensor(labels)
        return cls(model, as_tensors(model, shared), count, shape, classes, sharing, known)

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
        orders = orders_of(model)
        first, last = (named(arrays, orders, "weights") for arrays in (before, after))
        started = copy.deepcopy(model)
        load_into(started, first)
        wanted = list(trainable(model))
        missing = [name for name in wanted if name not in last]
        if missing:
            raise ValueError(f"the weights after the round lack {listed(missing)}; send all trained parameters")
        moved = {name: tensor_of(first[name]).double() - tensor_of(last[name]).double() for name in wanted}
        known = None if labels is None else torch.as_tensor(labels)
        return cls(started, as_tensors(model, moved), count, shape, classes, sharing, known)

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
        state = _below(tensors, "model/")
        module = _built(model, classes, shape, state) if isinstance(model, str) else copy.deepcopy(model)
        load_into(module, state)
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


def _built(model: str, classes: int, shape: tuple[int, int, int], state: Mapping[str, Tensor]) -> nn.Module:
    """The named network, as it is or, where the stored names say so, within the module that a recipe trains."""
    network = models.build(model, classes, shape, 0)
    if not any(name.startswith("network.") for name in state):
        return network
    normalised = "normalize.mean" in state
    normalize = models.Normalize([0.0] * shape[0], [1.0] * shape[0]) if normalised else nn.Identity()
    return Classifier(network, normalize, bf16=False)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
