"""What export, import and verify do."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mithridate.core.balls import Ball
from mithridate.core.distrust import distrusting
from mithridate.core.members import members_by
from mithridate.core.safe_images import refusing
from mithridate.core.schema import choices, from_json, name_of, parse
from mithridate.core.sources import source
from mithridate.core.training import Recipe
from mithridate.experiments.pages import counts
from mithridate.experiments.presets import RECIPES, preset
from mithridate.experiments.retrial import retrain
from mithridate.poisoning.exchange.artefact import Artefact
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from mithridate.poisoning.exchange.verification import Finding, verify as verified
from mithridate.verbs.terminal import say, start_torch

if TYPE_CHECKING:
    from mithridate.cli.exchanges import ExportOptions, ImportOptions, VerifyOptions

SIGNS = {"holds": "ok     ", "fails": "FAILS  ", "unknown": "unknown"}


def export(options: ExportOptions, command: str) -> int:
    """Does what `mithridate export` says."""
    form, data = parse(Format, options.to), _data(options)
    parcel = Artefact().read(options.poison, data)
    files = form.write(parcel, options.out, data)
    lost = _lost(parcel, form.read(options.out, data), form)
    say(f"{counts(len(parcel), 'poison')} in {options.out}, {counts(len(files), 'file')} of {name_of(form)}")
    if lost:
        say(f"what this format has no place for: {', '.join(lost)}")
    return 0


def import_(options: ImportOptions, command: str) -> int:
    """Does what `mithridate import` says."""
    data = _data(options)
    form = _format(options.format, options.path)
    parcel = form.read(options.path, data)
    parcel = replace(parcel, notes={"format": name_of(form), **parcel.notes})
    Artefact(pictures=options.pictures).write(parcel, options.out, data)
    say(f"{counts(len(parcel), 'poison')} of {name_of(form)} in {options.out}")
    for finding in verified(parcel, data):
        if finding.standing == "fails":
            say(_line(finding))
    return 0


def verify(options: VerifyOptions, command: str) -> int:
    """Does what `mithridate verify` says."""
    workers = start_torch(options.device, options.workers)
    form, data = _format(options.format, options.path), _data(options)
    parcel = form.read(options.path, data)
    ball, relabel = _limit(options, parcel)
    found = verified(parcel, data, ball=ball, relabel=relabel)
    failed = any(finding.standing == "fails" for finding in found)
    again = None
    if options.retrain is not None and not failed:
        placed = Reference(data.train.to(options.device), data.test.to(options.device))
        with members_by(workers):
            again = retrain(parcel, placed, _recipe(options), models=options.retrain, seed=options.seed)
    if options.json:
        told: dict[str, Any] = {"format": name_of(form), "findings": [finding._asdict() for finding in found]}
        say(json.dumps(told | {"retrained": None if again is None else again.to_json(), "command": command}))
        return int(failed)
    say(f"{options.path}: {name_of(form)}")
    for finding in found:
        say(_line(finding))
    if again is not None:
        say(str(again))
    elif options.retrain is not None:
        say("not trained again: what fails above would decide the outcome")
    return int(failed)


def _data(options: ExportOptions | ImportOptions | VerifyOptions) -> Reference:
    return Reference(*source(options.data, per_class=options.per_class, size=options.size).load())


def _format(name: str | None, path: Path) -> Format:
    if name is not None:
        return parse(Format, name)
    if not path.exists():
        raise FileNotFoundError(f"nothing at {path}")
    known = choices(Format)
    found = [text for text in known if parse(Format, text).recognises(path)]
    if len(found) != 1:
        seen = f"could be {' or '.join(found)}" if found else "looks like none of the known formats"
        raise ValueError(f"{path} {seen}; say which with --format, of {', '.join(known)}")
    return parse(Format, found[0])


def _limit(options: VerifyOptions, parcel: Parcel) -> tuple[Ball | None, bool]:
    """How far images, and whether labels, may have moved: as typed, else as the poison's own settings say."""
    with refusing(options.path), distrusting():
        threat = (parcel.notes.get("work") or {}).get("threat") or {}
        own = from_json(threat["ball"], Ball) if threat.get("ball") else None
    ball = own if options.limit is None else parse(Ball, options.limit)
    return ball, options.relabel or bool(threat.get("relabel"))


def _recipe(options: VerifyOptions) -> Recipe:
    begin = preset("digits" if options.data == "digits" else "general").recipe()
    recipe = replace(RECIPES[options.recipe](begin), model=options.model)
    return recipe if options.epochs is None else replace(recipe, epochs=options.epochs)


def _lost(parcel: Parcel, back: Parcel, form: Format) -> list[str]:
    """Parts that the format has no place for; what it should carry has to be as it was.

    Raises:
        ValueError: If something that the format carries came back changed.
    """
    sorted_, again, lost = parcel.order(), back.order(), []
    for field in dataclasses.fields(Parcel):
        was, now = getattr(parcel, field.name), getattr(back, field.name)
        if was is None or field.name == "notes":
            continue
        if field.name == "trigger" and parcel.patch is not None and "patch" in form.carries:
            continue  # the patch says all of it
        if (
            isinstance(was, torch.Tensor)
            and len(was) == len(parcel)
            and field.name in ("images", "labels", "rows", "base")
        ):
            was, now = was[sorted_], None if now is None else now[again]
        same = torch.equal(was, now) if isinstance(was, torch.Tensor) and now is not None else was == now
        if same:
            continue
        if field.name in form.carries:
            raise ValueError(f"what was written in {name_of(form)} does not read back: {field.name} differ")
        lost.append(field.name.replace("_", " "))
    return lost


def _line(finding: Finding) -> str:
    return f"  {SIGNS[finding.standing]} {finding.what}: {finding.said}"
