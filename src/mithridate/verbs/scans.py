"""What scan does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mithridate.core.members import members_by
from mithridate.core.originals import Originals, check_copy, copy_without, originals
from mithridate.core.schema import choices, parse
from mithridate.core.sources import source
from mithridate.core.training import Recipe
from mithridate.experiments.presets import RECIPES, preset
from mithridate.experiments.store import Store, Stored
from mithridate.experiments.suspects import DROP, PAGE, SUSPECTS, write_scan
from mithridate.poisoning.defense import Defense, Filter
from mithridate.poisoning.scan import scan as scanned
from mithridate.verbs.terminal import say, start_torch

if TYPE_CHECKING:
    from mithridate.cli.data import ScanOptions

FILTERS = ("spectral-signatures", "deep-knn")
"""What a scan runs unless told otherwise. activation-clustering is not among them: clean classes of real images fall
into two groups more readily than one Gaussian cloud does, so its false alarms are more than are expected."""


def scan(options: ScanOptions, command: str) -> int:
    """Does what `mithridate scan` says."""
    workers = start_torch(options.device, options.workers)
    if not options.false_alarms >= 0:
        raise ValueError(f"false_alarms is {options.false_alarms:g}; it is a number of rows, 0 or more")
    data = source(options.data, per_class=options.per_class, size=options.size, cache=options.cache)
    if options.copy is not None:
        check_copy(data, options.copy)
    filters, recipe = _filters(options), _recipe(options)
    given = originals(data, options.device)
    learner = Stored(recipe, Store(options.out))
    with members_by(workers):
        found = scanned(given.data, learner, filters, models=options.models, seed=options.seed)
    said = write_scan(
        options.out,
        found,
        given,
        allowed=options.false_alarms,
        top=options.top,
        settings=[*(("filter", one) for one in filters), ("model", recipe)],
        command=command,
    )
    copied = None
    if options.copy is not None:
        copied = copy_without(given, found.suspects(options.false_alarms).tolist(), options.copy)
    if options.json:
        say(json.dumps(said | {"copied": copied}))
        return 0
    _print(said, options, given, copied)
    return 0


def _filters(options: ScanOptions) -> list[Filter]:
    found = []
    for text in FILTERS if options.filters is None else options.filters:
        one = parse(Defense, text)
        if not isinstance(one, Filter):
            others = sorted(name for name, kind in choices(Defense).items() if issubclass(kind, Filter))
            raise ValueError(f"{text} is no filter; name some of {', '.join(others)}")
        told = "contamination" in text
        found.append(one if told else replace(one, contamination=options.contamination))
    return found


def _recipe(options: ScanOptions) -> Recipe:
    begin = preset("digits" if options.data == "digits" else "general").recipe()
    recipe = replace(RECIPES[options.recipe](begin), model=options.model)
    return recipe if options.epochs is None else replace(recipe, epochs=options.epochs)


def _print(said: dict, options: ScanOptions, given: Originals, copied: int | None) -> None:
    for one in said["filters"]:
        say(
            f"{one['filter']}: would drop {one['marked']:,} of {said['rows']:,} rows; of innocent ones "
            f"{one['marked_by_chance']:,.1f}"
        )
    number = said["suspects"]
    say(
        f"{number:,} row{'' if number == 1 else 's'} to drop, {options.false_alarms:g} expected by chance; "
        f"ranked in {options.out / SUSPECTS}, the list to drop in {options.out / DROP}"
    )
    for name in _names(options, given, number):
        say(f"  {name}")
    if copied is not None:
        say(f"{copied:,} images in {options.copy}")
    say(f"look at them: {options.out / PAGE}")


def _names(options: ScanOptions, given: Originals, number: int) -> Sequence[str]:
    """The first files to drop."""
    names = (options.out / DROP).read_text().splitlines()[:5]
    return [*names, f"and {number - len(names):,} more"] if number > len(names) else names
