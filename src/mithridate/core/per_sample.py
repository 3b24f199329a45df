"""The sum of the gradients of single images, each clipped to a norm, without a pass over the network for each image.

One forward and one backward pass over the batch give, for every layer, what came in and the slope of what went out.
From these follow the norm of each image's gradient and then the weighted sum, layer by layer. What is not made of the
layers known here, or uses a parameter twice, is differentiated image by image in vectorised form, or in a loop where
that fails too; the result is the same. How a model can be handled is found out at its first batch.

Reference: Goodfellow. "Efficient Per-Example Gradient Computations". 2015. arXiv 1510.01799; Bu, Wang, Zha, Karypis.
"Differentially Private Optimization on Large Model at Small Cost". ICML 2023. arXiv 2210.00038.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from mithridate.core.batch import Batch
from mithridate.core.classifier import Classifier
from mithridate.core.memory import out_of_memory

KEPT = 2**23
"""Most numbers of the gradients of single images, per layer, that are kept from their norms to the sum (32 MiB)."""
MAPPED = 2**25
"""Most numbers of the gradients of single images that are computed at once where layers are not known."""

Way = Literal["layers", "mapped", "loop"]
_ways: WeakKeyDictionary[nn.Module, Way] = WeakKeyDictionary()
"""What works for a model: found at its first batch of two images or more, or after a failure."""


class Share(NamedTuple):
    """What one parameter has of the gradients of the images of a batch."""

    squares: Tensor
    """[B] squared norms."""
    weighted: Callable[[Tensor], Tensor]
    """Weights [B] -> weighted sum of the gradients, of the parameter's shape."""


def clipped_sum(
    model: nn.Module, batch: Batch, parameters: Mapping[str, Tensor], clip: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the sum over a batch of each image's gradient, clipped to a norm, and the mean loss [] without clipping.

    Args:
        model: Images [B, C, H, W] to logits [B, K], each image for itself.
        batch: Any number of images, none included: the sum is then zero.
        parameters: Those to differentiate for, by name; the norm is over all of them together.
        clip: Largest norm of the gradient of one image.

    Raises:
        ValueError: An image's logits depend on other images of the batch (BatchNorm, for one).

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> batch = Batch(torch.rand(3, 1, 2, 2), torch.eye(2)[[0, 1, 0]], torch.arange(3), 0.0)
    >>> total, _ = clipped_sum(model, batch, dict(model.named_parameters()), clip=0.1)
    >>> bool(sum(part.square().sum() for part in total.values()).sqrt() <= 0.3001)
    True
    """
    refuse_batch_statistics(model)
    if not len(batch.images):
        zeros = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        return zeros, batch.images.new_zeros(())
    if _ways.get(model, "layers") == "layers":
        found = _by_layers(model, batch, parameters, clip)
        if found is not None:
            return found
        _ways[model] = "mapped"
    if _ways[model] == "mapped":
        try:
            return _mapped(model, batch, parameters, clip)
        except RuntimeError as error:  # whatever the model does that cannot be vectorised
            if out_of_memory(error):
                raise
            _ways[model] = "loop"
    return _in_a_loop(model, batch, parameters, clip)


def refuse_batch_statistics(model: nn.Module) -> None:
    """Makes sure that no layer will compute statistics of the batch, or keep some of the images in its buffers.

    Raises:
        ValueError: One will; the message says which, and what to train instead.
    """
    for name, part in model.named_modules():
        if not part.training or not isinstance(part, nn.modules.batchnorm._NormBase):
            continue
        own_alone = isinstance(part, nn.modules.instancenorm._InstanceNorm) and not part.track_running_stats
        if not own_alone:
            raise ValueError(
                f"{type(part).__name__} ({name}) computes with all images of a batch, so the gradient of one image "
                "cannot be told from the others'; use a model without it (model='convnet:norm=group', 'lenet' or "
                "'mlp'), or train the head alone (trainable='head' with start_from)"
            )


def _factors(squares: Tensor, clip: float) -> Tensor:
    """What each gradient is multiplied with, [B]."""
    return (clip / squares.sqrt().clamp_min(torch.finfo(squares.dtype).tiny)).clamp_max(1)


# --- layer by layer --------------------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """One call of a layer."""

    inputs: Tensor
    output: GradientEdge
    rows: int


def _by_layers(
    model: nn.Module, batch: Batch, parameters: Mapping[str, Tensor], clip: float
) -> tuple[dict[str, Tensor], Tensor] | None:
    """The sum by the layers' own formulas; None where the model is not made of known layers, each called once."""
    layers = _known_layers(model, parameters)
    if layers is None:
        return None
    new = model not in _ways and len(batch.images) > 1
    images = batch.images.detach().requires_grad_() if new else batch.images
    with _recorded(layers) as calls:
        losses = F.cross_entropy(model(images), batch.targets, reduction="none")
    fits = all(len(calls.get(name, ())) == 1 and calls[name][0].rows == len(losses) for name in layers)
    if not fits or any(uses != 1 for uses in _uses(losses, parameters).values()):
        return None
    outputs = [calls[name][0].output for name in layers]
    if new:
        if not _apart(losses, images, outputs):
            return None
        _ways[model] = "layers"
    slopes = torch.autograd.grad(losses.sum(), outputs)
    shares: dict[str, Share] = {}
    with torch.no_grad():
        for (name, layer), slope in zip(layers.items(), slopes, strict=True):
            own = _SHARES[type(layer)](layer, calls[name][0].inputs, slope)
            shares |= {f"{name}.{part}".lstrip("."): share for part, share in own.items()}
        factors = _factors(torch.stack([shares[name].squares for name in parameters]).sum(0).clamp_min(0), clip)
        total = {name: shares[name].weighted(factors).reshape(p.shape) for name, p in parameters.items()}
    return total, losses.detach().mean()


def _known_layers(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, nn.Module] | None:
    """The layers that hold the parameters, by name; None where one of them is not known here."""
    layers: dict[str, nn.Module] = {}
    for name in parameters:
        owner, _, own = name.rpartition(".")
        layer = model.get_submodule(owner)
        hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
        if type(layer) not in _SHARES or own not in ("weight", "bias") or hooked:
            return None
        if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            return None
        layers[owner] = layer
    return layers


@contextlib.contextmanager
def _recorded(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[_Call]]]:
    """Fills the dictionary with the calls of each layer inside the block."""
    calls: dict[str, list[_Call]] = {}

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows = len(output) if output.ndim and inputs[0].ndim > 1 and len(inputs[0]) == len(output) else -1
        calls.setdefault(name, []).append(_Call(inputs[0].detach(), get_gradient_edge(output), rows))

    handles = [layer.register_forward_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _uses(losses: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, int]:
    """How often each parameter is used on the way to the losses: what a layer's formula cannot know."""
    counts: Counter[int] = Counter()
    seen, waiting = {losses.grad_fn}, [losses.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        for after, _ in node.next_functions:
            if after is None:
                continue
            if hasattr(after, "variable"):
                counts[id(after.variable)] += 1
            elif after not in seen:
                seen.add(after)
                waiting.append(after)
    return {name: counts[id(parameter)] for name, parameter in parameters.items()}


def _apart(losses: Tensor, images: Tensor, outputs: list[GradientEdge]) -> bool:
    """Whether row i of every layer's output belongs to image i: then the loss of image 0 reaches no other row.

    Raises:
        ValueError: It reaches other images.
    """
    inputs: Any = [images, *outputs]
    slopes = torch.autograd.grad(losses[0], inputs, retain_graph=True, allow_unused=True)
    reached, *inside = (slope is not None and bool(slope[1:].any()) for slope in slopes)
    if reached:
        raise ValueError(_TOGETHER)
    return not any(inside) and all(slope is not None for slope in slopes[1:])


_TOGETHER = (
    "the logits of one image depend on other images of the batch, so its gradient cannot be told from the others'; use "
    "a model that sees each image alone (model='convnet:norm=group', 'lenet' or 'mlp')"
)


def _linear(layer: nn.Linear, inputs: Tensor, slopes: Tensor) -> dict[str, Share]:
    rows = len(inputs)
    inputs, slopes = inputs.reshape(rows, -1, layer.in_features), slopes.reshape(rows, -1, layer.out_features)

    def fused(factors: Tensor) -> Tensor:
        return (slopes * factors[:, None, None]).flatten(0, 1).T @ inputs.flatten(0, 1)

    weight = _product(slopes.transpose(1, 2)[:, None], inputs.transpose(1, 2)[:, None], fused)
    return _trained(layer, weight, slopes.sum(1))


def _conv2d(layer: nn.Conv2d, inputs: Tensor, slopes: Tensor) -> dict[str, Share]:
    shape = list(layer.weight.shape)
    settings: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def fused(factors: Tensor) -> Tensor:
        return conv2d_weight(inputs, shape, slopes * factors[:, None, None, None], *settings)

    if layer.groups > 1:
        patches = F.unfold(inputs, (shape[2], shape[3]), layer.dilation, settings[1], layer.stride)
        patches = patches.unflatten(1, (layer.groups, -1))
        weight = _product(slopes.flatten(2).unflatten(1, (layer.groups, -1)), patches, fused)
        return _trained(layer, weight, slopes.sum((2, 3)))
    patches = _patches(layer, inputs, slopes.shape[2:])
    places = slopes.permute(0, 2, 3, 1).flatten(1, 2)
    share = _product(places.transpose(1, 2)[:, None], patches.transpose(1, 2)[:, None], fused)
    order = (shape[0], *shape[2:], shape[1])  # as patches have it: channels last
    weight = share._replace(weighted=lambda factors: _channels_second(share.weighted(factors), order))
    return _trained(layer, weight, places.sum(1))


def _patches(layer: nn.Conv2d, inputs: Tensor, size: torch.Size) -> Tensor:
    """What each place of the result sees, [B, places, kernel * channels]: pixels are copied, not single numbers."""
    padding: Any = layer.padding
    (top, left), (down, right) = padding, layer.stride
    pixels = F.pad(inputs.permute(0, 2, 3, 1), (0, 0, left, left, top, top)).contiguous()
    image, row, pixel, _ = pixels.stride()
    shape = (len(inputs), *size, *layer.kernel_size, inputs.shape[1])
    steps = (image, down * row, right * pixel, layer.dilation[0] * row, layer.dilation[1] * pixel, 1)
    return pixels.as_strided(shape, steps).reshape(len(inputs), size.numel(), -1)


def _channels_second(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    return weight if weight.ndim == 4 else weight.view(order).permute(0, 3, 1, 2)


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, slopes: Tensor) -> dict[str, Share]:
    normal = F.group_norm(inputs, layer.num_groups, eps=layer.eps)
    weight = (slopes * normal).flatten(2).sum(2) if slopes.ndim > 2 else slopes * normal
    return _trained(layer, _own(weight), slopes.flatten(2).sum(2) if slopes.ndim > 2 else slopes)


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, slopes: Tensor) -> dict[str, Share]:
    normal, size = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps), layer.weight.numel()
    rows = len(inputs)
    return _trained(
        layer, _own((slopes * normal).reshape(rows, -1, size).sum(1)), slopes.reshape(rows, -1, size).sum(1)
    )


_SHARES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], dict[str, Share]]] = {
    nn.Conv2d: _conv2d,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Linear: _linear,
}
"""Layer, what came in [B, ...], slope of what went out [B, ...] -> the shares of weight and bias."""


def _trained(layer: nn.Module, weight: Share, biases: Tensor) -> dict[str, Share]:
    """The shares of both parameters; asked for are those that are trained."""
    return {"weight": weight, "bias": _own(biases)}


def _own(gradients: Tensor) -> Share:
    """The share of a parameter from the gradients [B, ...] of all images."""
    flat = gradients.flatten(1)
    return Share(flat.square().sum(1), lambda factors: factors @ flat)


def _product(slopes: Tensor, inputs: Tensor, fused: Callable[[Tensor], Tensor]) -> Share:
    """The share of a weight whose gradient is ``slopes @ inputs.T`` for each image and group.

    Args:
        slopes: [B, groups, outputs, T] for T places of the image.
        inputs: [B, groups, inputs, T].
        fused: Computes the weighted sum at once.
    """
    rows, _, outputs, places = slopes.shape
    size = outputs * inputs.shape[1] * inputs.shape[2]
    if rows * size <= KEPT and size <= 8 * places * places:
        return _own(slopes @ inputs.transpose(2, 3))
    if 2 * places * places <= size:  # the norm of a product is cheaper than the product
        grams = (inputs.transpose(2, 3) @ inputs) * (slopes.transpose(2, 3) @ slopes)
        return Share(grams.flatten(1).sum(1), fused)
    parts = zip(*(x.split(max(1, KEPT // size)) for x in (slopes, inputs)), strict=True)
    squares = [(a @ b.transpose(2, 3)).flatten(1).square().sum(1) for a, b in parts]
    return Share(torch.cat(squares), fused)


# --- image by image --------------------------------------------------------------------------------------------------


def _mapped(
    model: nn.Module, batch: Batch, parameters: Mapping[str, Tensor], clip: float
) -> tuple[dict[str, Tensor], Tensor]:
    """The sum by a vectorised map over the images, so many at once as `MAPPED` allows."""
    network, start, images = model, "", batch.images
    if isinstance(model, Classifier):  # its change of memory format cannot be vectorised, and comes before any weight
        network, start, images = model.network, "network.", model.normalize(images)
    own = {name.removeprefix(start): parameter.detach() for name, parameter in parameters.items()}
    fixed = {name: value for name, value in (*network.named_parameters(), *network.named_buffers()) if name not in own}

    def loss(weights: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, fixed | weights, (image[None],)), target[None])

    per_image = vmap(grad_and_value(loss), in_dims=(None, 0, 0), randomness="different")
    count = max(1, MAPPED // max(1, sum(parameter.numel() for parameter in own.values())))
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    losses = []
    for some, targets in zip(images.split(count), batch.targets.split(count), strict=True):
        gradients, values = per_image(own, some, targets)
        flat = {name: gradients[name.removeprefix(start)].flatten(1) for name in total}
        factors = _factors(torch.stack([part.square().sum(1) for part in flat.values()]).sum(0), clip)
        for name, part in flat.items():
            total[name] += (factors @ part).view_as(total[name])
        losses.append(values)
    return total, torch.cat(losses).mean()


def _in_a_loop(
    model: nn.Module, batch: Batch, parameters: Mapping[str, Tensor], clip: float
) -> tuple[dict[str, Tensor], Tensor]:
    """The sum by a forward and a backward pass for each image."""
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    losses = []
    for image, target in zip(batch.images.split(1), batch.targets.split(1), strict=True):
        loss = F.cross_entropy(model(image), target)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        factor = _factors(torch.stack([part.square().sum() for part in gradients]).sum(), clip)
        for name, part in zip(total, gradients, strict=True):
            total[name] += factor * part
        losses.append(loss.detach())
    return total, torch.stack(losses).mean()
