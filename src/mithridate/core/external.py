"""Networks of other libraries, by name: ``timm:NAME`` and ``transformers:NAME``, with settings behind commas."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mithridate.core.extras import extra
from mithridate.core.spelling import nearest, split

FROM_THE_DATA = ("num_labels", "num_channels", "id2label", "label2id", "num_classes", "in_chans")
"""Settings that the images and classes decide."""


def timm_network(text: str) -> Callable[..., nn.Module]:
    """Returns a function that builds a network of timm with the right number of classes and channels.

    Args:
        text: ``NAME`` or ``NAME,key=value,...``; the settings are arguments of ``timm.create_model``, such as
            ``img_size=32,patch_size=4`` for a vision transformer on small images, or ``pretrained=true``.

    Raises:
        ValueError: Something that is no setting; when called, a name that timm does not know.
        MissingExtra: When called, timm cannot be imported.

    >>> timm_network("resnet18,pretrained=true").__name__
    'make'
    """
    name, settings = _settings("timm", text)
    arguments = {key: _value(value) for key, value in settings.items()}

    def make(classes: int, *, channels: int) -> nn.Module:
        timm = extra("timm", "timm", f"model timm:{name} (timm itself needs a torchvision that fits the torch here)")
        if ":" not in name and not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}: {nearest(name, timm.list_models())}")
        try:
            return timm.create_model(name, num_classes=classes, in_chans=channels, **arguments)
        except (TypeError, AssertionError, RuntimeError) as error:
            raise ValueError(f"timm cannot build {name} with {arguments or 'its usual settings'}: {error}") from error

    return make


def transformers_network(text: str) -> Callable[..., nn.Module]:
    """Returns a function that builds an image classifier of transformers, from images in [0, 1] to logits.

    Attention is computed step by step ("eager"): the fused kernels cannot be differentiated twice, as
    gradient-matching attacks do.

    Args:
        text: ``NAME`` or ``NAME,key=value,...``. NAME is a model type such as ``vit``, ``resnet``, ``convnext`` (random
            weights; sized to the images), or a local folder or a hub id ``owner/name`` with trained weights (their head
            is replaced where it has other classes). The settings are those of the model's configuration, lists as in
            ``depths=[1,1]``. A folder is known by its name: give changed weights another one.

    Raises:
        ValueError: Something that is no setting; when called, an unknown name or setting, a value of another type than
            the configuration has, or trained weights that do not fit.
        MissingExtra: When called, transformers cannot be imported.

    >>> transformers_network("vit,patch_size=4").__name__
    'make'
    """
    name, settings = _settings("transformers", text)

    def make(classes: int, *, channels: int, size: int) -> nn.Module:
        library = extra("transformers", "transformers", f"model transformers:{name}")
        with _quiet(library):
            if "/" in name or Path(name).is_dir():
                return Logits(_trained(library, name, settings, classes, channels))
            return Logits(_untrained(library, name, settings, classes, channels, size))

    return make


class Logits(nn.Module):
    """An image classifier of transformers that returns its logits [B, K] alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, C, H, W] to logits [B, K]."""
        return self.model(pixel_values=images).logits


def _untrained(library: Any, name: str, settings: dict[str, str], classes: int, channels: int, size: int) -> nn.Module:
    from transformers.models.auto.modeling_auto import (  # pyright: ignore[reportMissingImports]
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as TYPES,
    )

    if name not in TYPES:
        raise ValueError(
            f"transformers has no image classifier {name!r}: {nearest(name, TYPES)}; trained weights are written as a "
            "local folder or a hub id owner/name"
        )
    usual = library.AutoConfig.for_model(name).to_dict()
    sized = {key: value for key, value in (("num_channels", channels), ("image_size", size)) if key in usual}
    try:
        config = library.AutoConfig.for_model(name, **sized | {"num_labels": classes} | _typed(name, settings, usual))
        return library.AutoModelForImageClassification.from_config(config, attn_implementation="eager")
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"transformers cannot build {name} for images of {size} pixels: {error}") from error


def _trained(library: Any, name: str, settings: dict[str, str], classes: int, channels: int) -> nn.Module:
    from mithridate.core.models import last_linear

    settings = dict(settings)
    where = {"revision": settings.pop("revision")} if "revision" in settings else {}
    try:
        config = library.AutoConfig.from_pretrained(name, **where)
        for key, value in _typed(name, settings, config.to_dict()).items():
            setattr(config, key, value)
        if config.num_labels != classes:  # the setter renames all classes, so it is not for equal numbers
            config.num_labels = classes
        model, report = library.AutoModelForImageClassification.from_pretrained(
            name,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            attn_implementation="eager",
            **where,
        )
    except OSError as error:
        raise ValueError(f"transformers finds no weights at {name}: {error}") from error
    head = next(place for place, part in model.named_modules() if part is last_linear(model))
    mismatched = {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
    wrong = sorted(key for key in mismatched | set(report["missing_keys"]) if not key.startswith(f"{head}."))
    if wrong:
        raise ValueError(f"the weights at {name} do not fit the model: {', '.join(wrong[:5])} missing or of other size")
    seen = getattr(config, "num_channels", channels)
    if seen != channels:
        raise ValueError(f"the weights at {name} are for images of {seen} channels; the data have {channels}")
    return model.float()


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Silences the library's bars and reports: what they say of weights is checked here."""
    log = library.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


# --- settings as text ------------------------------------------------------------------------------------------------


def _settings(library: str, text: str) -> tuple[str, dict[str, str]]:
    """Splits ``NAME,key=value,...`` at the commas that are not inside brackets."""
    name, _, rest = (part.strip() for part in text.partition(","))
    settings = {}
    for item in split(rest):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise ValueError(f"{library}:{text}: {item!r} is no setting; write {library}:{name or 'NAME'},key=value")
        if key in FROM_THE_DATA:
            raise ValueError(f"{library}:{text}: {key} comes from the data; leave it out")
        settings[key] = value
    if not name:
        raise ValueError(f"{library}:{text} names no model; write {library}:NAME")
    return name, settings


def _value(text: str) -> Any:
    """Reads a number, true or false, a list; anything else is text."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text


def _typed(name: str, settings: dict[str, str], usual: dict[str, Any]) -> dict[str, Any]:
    """Reads settings in the types that a configuration has."""
    found = {}
    for key, text in settings.items():
        if key not in usual or key.startswith("_"):
            known = [word for word in usual if not word.startswith("_") and word not in FROM_THE_DATA]
            raise ValueError(f"transformers:{name} has no setting {key!r}: {nearest(key, known)}")
        default, value = usual[key], text if isinstance(usual[key], str) else _value(text)
        kinds = {bool: bool, int: (int, list), float: (int, float), list: list, tuple: list}.get(type(default), object)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds not in (bool, object)):
            raise ValueError(f"{key} of transformers:{name} is {text!r}; write it like its usual value, {default!r}")
        found[key] = float(value) if isinstance(default, float) else value
    return found
