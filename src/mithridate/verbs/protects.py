"""What protect does."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mithridate.core.balls import Linf
from mithridate.core.copies import Copy, copy_of
from mithridate.core.data import ImageData
from mithridate.core.decoding import decode
from mithridate.core.listings import stratified_split
from mithridate.core.members import members_by
from mithridate.core.schema import choices, parse, to_json
from mithridate.core.seeds import stream
from mithridate.core.sources import source
from mithridate.core.training import Recipe
from mithridate.experiments.files import write_json
from mithridate.experiments.presets import RECIPES, preset
from mithridate.experiments.protection import check
from mithridate.experiments.store import Store, Stored
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.protect import (
    MANIFEST,
    SPOOL,
    Format,
    Protected,
    fitted,
    protect as protected,
    protected_rows,
)
from mithridate.poisoning.release import Release
from mithridate.verbs.terminal import say, start_torch

if TYPE_CHECKING:
    from mithridate.cli.data import ProtectOptions

LOOKED_AT = 64
"""Images whose size decides at what size the surrogate sees all of them."""
LARGEST = 64
"""Side of the surrogate's images, unless all have one size that is not larger."""


def protect(options: ProtectOptions, command: str) -> int:
    """Does what `mithridate protect` says."""
    workers = start_torch(options.device, options.workers)
    method, form = _method(options), Format(quality=options.jpeg)
    record = options.record or options.out.with_name(f"{options.out.name}.record")
    if options.out.exists() and not record.exists():
        raise FileExistsError(
            f"{options.out} exists already, and nothing at {record} says that it is ours; name another"
        )
    record.mkdir(parents=True, exist_ok=True)
    copy = copy_of(source(options.data), options.out, record / SPOOL, form.suffix)
    rows = _sample(copy, options.train_on, options.seed)
    shape = _shape(copy, rows, options.size)
    recipe = _recipe(options)
    train = ImageData(_images(copy, rows, shape), torch.from_numpy(copy.listing.labels[rows]), copy.listing.classes)
    learner = Stored(recipe, Store(record / "surrogates"))
    settings = {
        "method": to_json(method),
        "surrogate": to_json(recipe),
        "shape": list(shape),
        "trained_on": len(rows),
        "chunk": options.chunk,
        "jpeg": options.jpeg,
        "eps": options.eps,
        "seed": options.seed,
        "data": copy.listing.state(np.arange(len(copy.listing.labels))),
    }
    with members_by(workers):
        done = protected(
            copy,
            lambda: method.prepare(train.to(options.device), Linf(eps=options.eps), learner, options.seed),
            eps=options.eps,
            shape=shape,
            record=record,
            settings=settings,
            chunk=options.chunk,
            form=form,
            seed=options.seed,
            device=options.device,
        )
    found = _check(options, copy, train, rows, recipe, record) if options.check else None
    if found is not None:
        write_json(done.path, done.manifest | {"check": found.to_json()})
    if options.json:
        manifest = json.loads(done.path.read_text())
        say(json.dumps(manifest | {"out": str(options.out), "record": str(record), "command": command}))
        return 0
    _print(done, options, record)
    if found is not None:
        say(str(found))
    say(f"again:  {command}")
    return 0


def _method(options: ProtectOptions) -> Release:
    method = parse(Attack, options.method)
    if not isinstance(method, Release):
        known = sorted(name for name, kind in choices(Attack).items() if issubclass(kind, Release))
        raise ValueError(f"{options.method} is no way to protect a release; name one of {', '.join(known)}")
    if options.steps is None:
        return method
    if "steps" not in {field.name for field in fields(method)}:
        raise ValueError(f"{options.method} takes no steps; leave --steps out")
    changes: dict[str, Any] = {"steps": options.steps}
    return replace(method, **changes)


def _recipe(options: ProtectOptions) -> Recipe:
    recipe = replace(RECIPES[options.recipe](preset("general").recipe()), model=options.model)
    return recipe if options.epochs is None else replace(recipe, epochs=options.epochs)


def _sample(copy: Copy, count: int, seed: int) -> np.ndarray:
    """Rows that the surrogate is trained on, ascending."""
    if count < 2:
        raise ValueError(f"train_on is {count}; a surrogate needs images of two classes at least")
    total = len(copy.listing.labels)
    order = torch.randperm(total, generator=stream(seed, "protect", "sample"))[:count]
    return order.sort().values.numpy()


def _shape(copy: Copy, rows: np.ndarray, size: int | None) -> tuple[int, int, int]:
    """(C, H, W) that the surrogate sees: grey only if all that are looked at are."""
    looked = [decode(name, data).shape for name, data in copy.listing.files(rows[:LOOKED_AT])]
    channels = max(shape[2] for shape in looked)
    same = len({shape[:2] for shape in looked}) == 1 and max(looked[0][:2]) <= LARGEST
    height, width = (size, size) if size is not None else looked[0][:2] if same else (LARGEST, LARGEST)
    return channels, height, width


def _images(copy: Copy, rows: np.ndarray, shape: tuple[int, int, int]) -> torch.Tensor:
    """uint8 [n, C, H, W], one after the other: none is held at its full size."""
    images = torch.empty((len(rows), *shape), dtype=torch.uint8)
    for place, (name, data) in enumerate(copy.listing.files(rows)):
        images[place] = fitted(decode(name, data), shape)
    return images


def _check(
    options: ProtectOptions, copy: Copy, train: ImageData, rows: np.ndarray, recipe: Recipe, record: Path
) -> Any:
    kept, held = (torch.from_numpy(part) for part in stratified_split(train.labels.numpy()))
    published = protected_rows(copy, record, rows[kept.numpy()].tolist(), train.shape).to(options.device)
    data = train.to(options.device)
    return check(recipe, data.select(kept), published, data.select(held), models=options.models, seed=options.seed)


def _print(done: Protected, options: ProtectOptions, record: Path) -> None:
    manifest = done.manifest
    allowed, largest = 255 * options.eps, 255 * manifest["largest"]
    say(
        f"{manifest['images']:,} images protected in {options.out} ({manifest['format']}); as stored, no pixel value "
        f"moved by more than {largest:.0f}/255 (allowed {allowed:.3g}/255)"
        if not manifest["images_over_eps"]
        else f"{manifest['images']:,} images in {options.out} ({manifest['format']}), which changes pixels besides: "
        f"{manifest['images_over_eps']:,} of them have a pixel value that moved by more than {allowed:.3g}/255, the "
        f"largest by {largest:.0f}/255, and what protects may be lost; --check measures that"
    )
    say(f"record: {record / MANIFEST} (keep it to yourself: it says what was done to which image)")
