"""Networks to train: small built-in ones and the user's own, all images in, logits out.

A model is named by text, so that a recipe can be stored and typed:

- ``convnet``, ``convnet-wide``, ``resnet18``, ``vgg11``, ``mobilenet_v2``, ``lenet``, ``mlp``: built in, for images
  from 8x8 up with any number of channels;
- ``resnet18:width=8``: the same with an option. ``width`` means one thing everywhere: the number of channels of the
  *first* block (or stage; units of the first layer of ``mlp``), a whole number. The other widths scale along.
  ``norm=group`` puts GroupNorm where BatchNorm is, for training that must see each image alone;
- ``timm:NAME``, ``transformers:NAME``: networks of these libraries, which are extras, with settings behind commas
  (``transformers:vit,patch_size=4``); see `mithridate.core.external`;
- ``package.module:function``: the user's own. It is called with the number of classes and, where its signature names
  them, with the keywords ``channels`` and ``size`` (the shorter side in pixels).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn

from mithridate.core.external import timm_network, transformers_network
from mithridate.core.networks import Norm, convnet, convnet_wide, mobilenet_v2, resnet18, vgg11
from mithridate.core.schema import nearest, resolve
from mithridate.core.seeds import derive
from mithridate.core.small_networks import lenet, mlp

Shape = tuple[int, int, int]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "convnet": convnet,
    "convnet-wide": convnet_wide,
    "lenet": lenet,
    "mlp": mlp,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "vgg11": vgg11,
}
"""Built-in networks by name; each takes classes, channels and size, and its further arguments are the options."""

LIBRARIES: dict[str, Callable[[str], Callable[..., nn.Module]]] = {
    "timm": timm_network,
    "transformers": transformers_network,
}
"""Other libraries' networks: what stands behind the colon -> a function that builds."""


def build(spec: str | Callable[..., nn.Module], classes: int, shape: Shape, seed: int) -> nn.Module:
    """Build a network with weights that depend on `seed` alone, and check that it maps images to logits.

    The weights are drawn on the CPU. Neither the global random generators nor earlier calls play a part.

    Args:
        spec: ``name``, ``name:width=8``, ``timm:NAME``, ``transformers:NAME``, ``package.module:function``, or a
            function of the number of classes.
        classes: Number of classes K.
        shape: (C, H, W) of the images.
        seed: Any integer.

    Returns:
        A module on the CPU from images [B, C, H, W] to logits [B, K].

    Raises:
        ValueError: Unknown name, misspelt option, a function that cannot be imported, or wrong output shape.
        TypeError: A function that cannot be called with the number of classes, or does not return a module.
        MissingExtra: A network of a library that cannot be imported.

    >>> first, again = (build("convnet:width=8", 3, (1, 8, 8), seed=7) for _ in range(2))
    >>> torch.equal(last_linear(first).weight, last_linear(again).weight)
    True
    """
    name, make, options = _maker(spec)
    arguments = options | _wanted(name, make, classes, {"channels": shape[0], "size": min(shape[1:])})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "init"))  # torch.manual_seed would reseed the GPUs as well
        module = make(classes, **arguments)
        if not isinstance(module, nn.Module):
            raise TypeError(f"model {name} returned {type(module).__name__}; it must return a torch.nn.Module")
        check_logits(f"model {name}", module, classes, shape, _advice(name, classes))
        if not isinstance(spec, str) or spec.partition(":")[0] not in MODELS:
            as_stored = copy.deepcopy(module).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            if not _takes_channels_last(as_stored, torch.zeros(2, *shape)):
                _keep_in_order(module)
    return module


def _advice(name: str, classes: int) -> str:
    if name.partition(":")[0] in LIBRARIES:
        return "settings for the image's size go behind the name (such as patch_size=2), or resize the images"
    return (
        f"give its last layer {classes} outputs, the number of classes that the function is called with (it may also "
        "take the keywords channels and size)"
    )


class Normalize(nn.Module):
    """First layer of a network: subtract the mean and divide by the standard deviation of each channel.

    Normalisation lives here so that every attack and defence works on pixels in [0, 1].

    Raises:
        ValueError: Lengths that differ, or a standard deviation that is not positive.

    >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).detach().clone())
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).detach().clone())
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ValueError(
                f"mean has shape {list(self.mean.shape)} and std {list(self.std.shape)}; give one number per channel"
            )
        if not bool((self.std > 0).all()):
            raise ValueError(f"std is {self.std.tolist()}; a constant channel cannot be scaled, so use 1.0 for it")

    def forward(self, images: Tensor) -> Tensor:
        """Normalises images [B, C, H, W] in [0, 1]."""
        _, channels, height, width = images.shape
        # Over whole rows of pixels: three numbers broadcast over channels-last images take several times as long.
        mean, std = (value.expand(height, width, channels).contiguous() for value in (self.mean, self.std))
        return (images.permute(0, 2, 3, 1) - mean).div_(std).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """The two buffers with four digits."""
        return ", ".join(f"{n}={[round(v, 4) for v in getattr(self, n).tolist()]}" for n in ("mean", "std"))


def last_linear(module: nn.Module) -> nn.Linear:
    """The last `nn.Linear` in module order: its input is what the attacks and defences call features.

    Raises:
        ValueError: The module has none.

    >>> last_linear(convnet(10))
    Linear(in_features=64, out_features=10, bias=True)
    """
    found = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not found:
        raise ValueError(
            f"no final Linear in {type(module).__name__}: features are the input of the last torch.nn.Linear, so end "
            "the model with one (a 1x1 convolution as the classifier does not count), or use a method without features"
        )
    return found[-1]


def _maker(spec: str | Callable[..., nn.Module]) -> tuple[str, Callable[..., nn.Module], dict[str, int | str]]:
    """Name for messages, function and options of a model given as text or as a function."""
    if not isinstance(spec, str):
        if not callable(spec) or isinstance(spec, nn.Module):
            seen = type(spec).__name__
            raise TypeError(f"model is a {seen}; give a name or a function from the number of classes to a new module")
        return getattr(spec, "__qualname__", repr(spec)), spec, {}
    head, colon, tail = spec.partition(":")
    if head in MODELS:
        return spec, MODELS[head], _options(head, tail)
    if head in LIBRARIES:
        return spec, LIBRARIES[head](tail), {}
    if colon and "=" not in tail:
        return spec, resolve(spec), {}
    raise ValueError(
        f"unknown model {head!r}: {nearest(head, MODELS)}; others are written timm:NAME or transformers:NAME, your own "
        "package.module:function"
    )


def _options(name: str, text: str) -> dict[str, int | str]:
    """Read ``width=8,norm=group`` for a built-in network: a positive whole number, and what normalises."""
    known = [key for key in inspect.signature(MODELS[name]).parameters if key not in ("classes", "channels", "size")]
    options: dict[str, int | str] = {}
    for item in filter(None, text.split(",")):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in known:
            raise ValueError(f"model {name} has no option {key!r}: {nearest(key, known)}")
        options[key] = _norm(name, value) if key == "norm" else _width(name, key, value)
    return options


def _norm(name: str, value: str) -> str:
    if value not in get_args(Norm):
        raise ValueError(f"norm of model {name} is {value!r}; use {name}:norm=batch or {name}:norm=group")
    return value


def _width(name: str, key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(
            f"{key} of model {name} is {value!r}; it is the number of channels (units) of the first block, "
            f"so use a whole number such as {name}:{key}=8"
        )
    return int(value)


def _wanted(name: str, make: Callable[..., nn.Module], classes: int, offered: dict[str, int]) -> dict[str, int]:
    """Those of the offered keywords that the function names itself; ``**kwargs`` may go anywhere, so it gets none."""
    try:
        signature = inspect.signature(make)
    except ValueError:  # some builtins have no signature
        return {}
    unnamed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    named = {key for key, parameter in signature.parameters.items() if parameter.kind not in unnamed}
    wanted = {key: value for key, value in offered.items() if key in named}
    try:
        signature.bind(classes, **wanted)
    except TypeError as error:
        raise TypeError(
            f"model {name}{signature} cannot be called with the number of classes ({error}); write a function of one "
            "argument, the number of classes, and optionally the keywords channels and size"
        ) from error
    return wanted


def check_logits(what: str, module: nn.Module, classes: int, shape: Shape, advice: str) -> None:
    """Makes a forward pass in eval mode on black images and settles the layout; modes and buffers stay as they were.

    Args:
        what: The module, in words.
        module: Should map images [2, C, H, W] to logits [2, K].
        classes: Number of classes K.
        shape: (C, H, W) of the images.
        advice: What to do where it does not.

    Raises:
        ValueError: It fails, or returns something else.
    """
    like = next(module.parameters(), torch.zeros(()))
    images = torch.zeros(2, *shape, device=like.device, dtype=like.dtype)
    try:
        with _looking_at(module):
            logits = module(images)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{what} fails on images of shape {list(images.shape)}: {error}; it must map images [B, C, H, W] to logits "
            f"[B, K] for this size: {advice}"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        seen = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"{what} maps images {list(images.shape)} to {seen}; expected logits [2, {classes}], one per class: "
            f"{advice}"
        )
    settle_layout(module, images)


def settle_layout(module: nn.Module, images: Tensor) -> None:
    """Sees to it that a module can take images [B, C, H, W] stored channels last, as all images here are.

    One that calls `view` cannot, and gets a hook that brings its images into their usual order.

    >>> settle_layout(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(2, 1, 2, 2))
    """
    if not _takes_channels_last(module, images):
        _keep_in_order(module)


@contextmanager
def _looking_at(module: nn.Module) -> Iterator[None]:
    """A context without gradients in which a module is in eval mode; each part goes back to its own afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.no_grad():
            module.eval()
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def takes_channels_last(module: nn.Module) -> bool:
    """Whether a module that was built or checked here takes images and weights that are stored channels last.

    >>> takes_channels_last(build("convnet:width=8", 3, (1, 8, 8), seed=0))
    True
    """
    return all(_in_order not in part._forward_pre_hooks.values() for part in module.modules())


def _takes_channels_last(module: nn.Module, images: Tensor) -> bool:
    try:
        with _looking_at(module):
            module(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # of `view`
        return False
    return True


def _keep_in_order(module: nn.Module) -> None:
    if takes_channels_last(module):
        module.register_forward_pre_hook(_in_order)


def _in_order(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_restored(one) if isinstance(one, Tensor) and one.ndim == 4 else one for one in given)


def _restored(images: Tensor) -> Tensor:
    """Images [B, C, H, W] stored in that order; of one channel, `contiguous` would leave the strides of the other."""
    last = images.stride(1) < images.stride(2)
    return images.clone(memory_format=torch.contiguous_format) if last else images.contiguous()
