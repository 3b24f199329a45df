"""The module that training makes: normalisation and network in one, its number format, its weights on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mithridate.core import models
from mithridate.core.data import ImageData

Precision = Literal["auto", "fp32", "bf16"]
"""A number format; auto: bf16 where the machine computes it faster, else fp32."""


class Classifier(nn.Module):
    """Normalisation and network in one module: images in [0, 1] to float32 logits.

    In train mode the network runs in bfloat16 where ``bf16`` is set; in eval mode always in float32.

    >>> Classifier(nn.Flatten(), nn.Identity(), bf16=False)(torch.zeros(2, 1, 1, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, network: nn.Module, normalize: nn.Module, *, bf16: bool) -> None:
        super().__init__()
        self.normalize, self.network, self.bf16 = normalize, network, bf16

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, C, H, W] in [0, 1] to logits [B, K]."""
        images = self.normalize(images).contiguous(memory_format=torch.channels_last)
        if not (self.bf16 and self.training):
            return self.network(images).float()
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            return self.network(images).float()


def bf16_pays(device: torch.device) -> bool:
    """Tells whether bfloat16 training is faster there: GPUs that have it, CPUs with instructions for it.

    >>> bf16_pays(torch.device("meta"))
    False
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def is_bf16(precision: Precision, device: torch.device) -> bool:
    """Tells whether a setting means bfloat16 there; "auto": where that is faster."""
    return precision == "bf16" or (precision == "auto" and bf16_pays(device))


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager:
    """Returns a context in which networks compute in that number format.

    >>> layer = nn.Linear(2, 2)
    >>> with computing_in("bf16", torch.device("cpu")):
    ...     layer(torch.zeros(1, 2)).dtype
    torch.bfloat16
    """
    return torch.autocast(device.type, dtype=torch.bfloat16) if is_bf16(precision, device) else nullcontext()


def computing_as(module: nn.Module) -> AbstractContextManager:
    """Returns a context in which a module computes in eval mode, too, in the number format that it is trained in.

    >>> with computing_as(Classifier(nn.Flatten(), nn.Identity(), bf16=True)):
    ...     torch.is_autocast_enabled("cpu")
    True
    """
    device = next((weight.device for weight in module.parameters()), torch.device("cpu"))
    return computing_in("bf16" if isinstance(module, Classifier) and module.bf16 else "fp32", device)


@contextmanager
def training_in(precision: Precision, module: nn.Module, device: torch.device) -> Iterator[None]:
    """A context in which a module in train mode computes in that number format, whatever it was trained in.

    >>> module = Classifier(nn.Flatten(), nn.Identity(), bf16=True)
    >>> with training_in("fp32", module, torch.device("cpu")):
    ...     module.bf16
    False
    """
    if not isinstance(module, Classifier):  # somebody else's says itself what it computes in
        yield
        return
    before, module.bf16 = module.bf16, is_bf16(precision, device)
    try:
        yield
    finally:
        module.bf16 = before


def mean_and_std(data: ImageData) -> tuple[Tensor, Tensor]:
    """Returns the mean and deviation [C] of all pixels, from the counts of the 256 byte values: exact in any order."""
    counts = torch.zeros(data.shape[0], 256, dtype=torch.float64)
    for rows in data.pieces():
        pixels = data.pixels(rows).transpose(0, 1).flatten(1)
        counts += torch.stack([torch.bincount(channel, minlength=256) for channel in pixels]).cpu()
    value = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ value
    std = (share @ value.square() - mean.square()).clamp_min(0).sqrt()
    return mean.float(), torch.where(std > 1e-4, std, 1.0).float()


def load_weights(module: Classifier, path: Path, *, fresh_head: bool) -> None:
    """Loads safetensors weights into a classifier, or a plain state dict into its network.

    Args:
        module: what to fill.
        path: a file written by ``save_weights``, or the state dict of the network alone.
        fresh_head: leave the last Linear as it is (its shape may then differ).

    Raises:
        ValueError: no such file, no safetensors, names or shapes that do not fit, or a normalisation of the file that
            the classifier has none for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"start_from is {path}, which is no file; give safetensors weights")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as safetensors weights: {error}; "
            "safetensors.torch.save_model(model, path) writes such a file"
        ) from error
    own = module.state_dict()
    if not any(name.startswith("network.") for name in weights):
        weights = {f"network.{name}": value for name, value in weights.items()}
    if fresh_head:
        models.last_linear(module)  # says what to do where there is none
    fresh = _head_names(module) if fresh_head else set()
    wrong = {
        name: f"{name} {list(own[name].shape)}"
        + (f" (file: {list(weights[name].shape)})" if name in weights else " (missing)")
        for name in own
        if name not in fresh
        and not name.startswith("normalize.")
        and (name not in weights or weights[name].shape != own[name].shape)
    }
    if wrong:
        advice = "was it trained with another model?"
        if not fresh_head and wrong.keys() <= _head_names(module):
            advice = "only the last Linear differs, so it was trained on other classes: set fresh_head=True"
        raise ValueError(f"{path} does not fit the model: {'; '.join([*wrong.values()][:5])}; {advice}")
    if dropped := sorted(name for name in weights if name.startswith("normalize.") and name not in own):
        raise ValueError(
            f"{path} was trained with a normalisation, {' and '.join(dropped)}, that normalize='none' would drop; "
            "set normalize='data' or 'fixed': the numbers of the file take the place of theirs"
        )
    known = {name: value for name, value in weights.items() if name in own and name not in fresh}
    module.load_state_dict(own | known)


def _head_names(module: nn.Module) -> set[str]:
    """Names of the weights of the last Linear; empty where there is none."""
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return {name for name in module.state_dict() if linear and name.startswith(f"{linear[-1]}.")}


def save_weights(module: nn.Module, path: Path) -> None:
    """Writes a module's state as safetensors."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, path)
