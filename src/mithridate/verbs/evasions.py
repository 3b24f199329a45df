"""What evade does."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as Grid
from torch import nn

from mithridate.core.balls import L2, Ball, Linf
from mithridate.core.data import ImageData
from mithridate.core.models import check_logits
from mithridate.core.schema import nearest, parse, resolve, to_json
from mithridate.core.sources import source
from mithridate.evasion.attack import Evasion
from mithridate.evasion.attacks.square import Square
from mithridate.evasion.judges import JUDGES
from mithridate.experiments.evasion_report import headline, strength, write_evasion_report
from mithridate.experiments.evasions import Evaluation, drawn, evaluate, sized
from mithridate.experiments.presets import preset
from mithridate.experiments.store import Store, Stored, load_model
from mithridate.verbs.terminal import say, start_torch

if TYPE_CHECKING:
    from mithridate.cli.evasions import EvadeOptions

ATTACKS = ("pgd", "witchcraft", "standard")
EPS = (2 / 255, 4 / 255, 8 / 255)
DIGITS_EPS = (16 / 255, 32 / 255, 48 / 255)
"""8 x 8 pixels of 16 shades: smaller changes are less than a shade."""
IMAGES = 1000


def evade(options: EvadeOptions, command: str) -> int:
    """Does what `mithridate evade` says."""
    start_torch(options.device, None)
    attacks = list(_attacks(options))
    train, test = source(options.data, size=options.size).load(options.device)
    if options.out.is_file():
        raise ValueError(f"{options.out} is a file; give a folder for the results (--out)")
    model = _model(options, train).to(options.device)
    check_logits("the model", model, len(train.classes), train.shape, "give the model that was trained on these data")
    images = drawn(test, IMAGES if options.images is None else options.images, options.seed)
    done = evaluate(model, images, attacks, options.out, seed=options.seed, batch=options.batch)
    page = write_evasion_report(
        options.out,
        done,
        title=f"{_named(options.model)} on {options.data}",
        classes=test.classes,
        settings=[("attack", to_json(attack)) for attack in attacks],
        command=command,
    )
    if options.json:
        say(json.dumps(done.to_json(), indent=1))
    else:
        _print(done)
    say(f"report: {page}", aside=options.json)
    say(f"again:  {command}", aside=options.json)
    return 0


# --- from text to objects --------------------------------------------------------------------------------------------


def _attacks(options: EvadeOptions) -> Iterator[Evasion]:
    """Every attack at every strength."""
    radii = options.eps or (DIGITS_EPS if options.data == "digits" else EPS)
    ball: Ball = L2(eps=radii[0]) if options.l2 else Linf(eps=radii[0])
    for text in ATTACKS if options.attacks is None else options.attacks:
        attack = parse(Evasion, text)
        if "ball=" in text:
            yield attack
            continue
        if options.l2 and isinstance(attack, Square):
            raise ValueError("square knows the ball linf; leave it out, or leave out --l2")
        for eps in sorted(radii):
            yield sized(replace(attack, ball=ball), eps)
    for name in options.judges or ():
        if name not in JUDGES:
            raise ValueError(f"no judge is called {name!r}; {nearest(name, JUDGES)}")
        for eps in sorted(radii):
            yield sized(JUDGES[name](ball=ball), eps)


def _model(options: EvadeOptions, train: ImageData) -> nn.Module:
    """The model that the options name.

    Raises:
        ValueError: They name none.
        FileNotFoundError: A folder or a file that is not there.
    """
    text = options.model
    if options.weights is not None:
        recipe = replace(preset("general").recipe(), model=text or "convnet", start_from=options.weights)
        return recipe.module(train, seed=0).eval()
    if text is None:
        recipe = preset("digits" if options.data == "digits" else "general").recipe()
        say("no --model: training convnet", aside=True)
        return Stored(recipe, Store(options.out)).fit([train], [options.seed]).models[0].eval()
    if (Path(text) / "fit.json").exists():
        return load_model(text)
    if ":" in text and not text.partition(":")[2].count("="):
        return _called(text, len(train.classes))
    raise ValueError(
        f"{text} is no kept model: give a folder fits/ID of a results folder, package.module:function, or an "
        "architecture together with --weights"
    )


def _named(text: str | None) -> str:
    """A model in few words: a kept one by its id."""
    if text is None:
        return "convnet"
    return f"kept model {Path(text).name}" if (Path(text) / "fit.json").exists() else text


def _called(text: str, classes: int) -> nn.Module:
    """The trained module that a function returns, called with nothing or with the number of classes."""
    function: Any = resolve(text)
    if isinstance(function, nn.Module):
        return function.eval()
    needs = [
        one
        for one in inspect.signature(function).parameters.values()
        if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    model = function(*[classes][: len(needs)])
    if not isinstance(model, nn.Module):
        raise ValueError(f"{text} returned {type(model).__name__}; expected a trained torch.nn.Module")
    return model.eval()


# --- from results to text --------------------------------------------------------------------------------------------


def _print(done: Evaluation) -> None:
    grid = Grid(box=None, padding=(0, 2, 0, 0))
    for name in ("attack", "strength", "right under it (95 %)", "gradients", "forwards", "seconds"):
        grid.add_column(name, justify="left" if name in ("attack", "strength") else "right")
    grid.add_row("none", "", str(done.accuracy), "", "", "")
    for one in done.levels:
        counts = (f"{one.gradients:.1f}", f"{one.forwards:.1f}") if one.forwards else ("", "")
        numbers = (*counts, f"{one.seconds:.1f}")
        grid.add_row(one.attack, strength(one.ball, one.eps), str(one.stands), *numbers)
    for ball, eps, found in done.worst():
        grid.add_row("every one", strength(ball, eps), str(found), "", "", "")
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=140)).print(grid)
    say(headline(done))
    for doubt in done.doubts():
        say(f"doubt: {doubt}")
