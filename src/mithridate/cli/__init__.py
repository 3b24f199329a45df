"""The command line: `mithridate VERB`; `mithridate --help` lists the verbs.

The only package that imports tyro. torch is imported when a verb starts to work, so that help, versions and typing
mistakes answer at once.
"""

from __future__ import annotations

import inspect
import keyword
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from mithridate import __version__
from mithridate.cli.complaints import exit_code, message, plain_warnings
from mithridate.cli.data import ProtectOptions, ScanOptions
from mithridate.cli.evasions import EvadeOptions
from mithridate.cli.exchanges import ExportOptions, ImportOptions, VerifyOptions
from mithridate.cli.leaks import InvertOptions
from mithridate.cli.lifts import LiftOptions
from mithridate.cli.methods import MethodsOptions
from mithridate.cli.pipelines import AuditOptions, CraftOptions, DoseOptions
from mithridate.cli.runs import ReportOptions, StudyOptions, TrialOptions


def _joined(lines: Callable[[str], str]) -> Callable[[str], str]:
    """What tyro does to a docstring, after its indentation is gone: indented lines would keep their breaks."""
    return lambda text: lines(inspect.cleandoc(text))


_strings: Any = getattr(tyro, "_strings", None)
if hasattr(_strings, "remove_single_line_breaks"):  # private: without it help is only less tidy
    _strings.remove_single_line_breaks = _joined(_strings.remove_single_line_breaks)

# --- verbs -----------------------------------------------------------------------------------------------------------

VERBS: dict[str, type] = {
    "audit": AuditOptions,
    "dose": DoseOptions,
    "craft": CraftOptions,
    "invert": InvertOptions,
    "evade": EvadeOptions,
    "scan": ScanOptions,
    "protect": ProtectOptions,
    "lift": LiftOptions,
    "methods": MethodsOptions,
    "export": ExportOptions,
    "import": ImportOptions,
    "verify": VerifyOptions,
    "trial": TrialOptions,
    "study": StudyOptions,
    "report": ReportOptions,
}
"""What each verb is told; what it does is the function of the same name in `verbs`."""


# --- the door --------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit code: 0 done, 1 some trials failed, 2 a mistake in what was asked, 3 a condition of --fail-if holds or
        could not be judged, 130 stopped with Ctrl-C.
    """
    texts = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with plain_warnings():
            return _dispatch(texts)
    except KeyboardInterrupt as stop:
        print(f"{stop or 'stopped'}; the same command goes on: {shlex.join(['mithridate', *texts])}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output is gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("MITHRIDATE_DEBUG") == "1":
            raise
        code = exit_code(error)
        if code is None:
            raise
        print(f"error: {message(error)}", file=sys.stderr)
        return code


def _dispatch(texts: list[str]) -> int:
    verb = texts[0] if texts else "--help"
    if verb in ("-h", "--help", "help"):
        print(overview())
        return 0
    if verb == "--version":
        print(f"mithridate {__version__}")
        return 0
    if verb not in VERBS:
        from mithridate.core.schema import nearest

        raise ValueError(f"no verb is called {verb!r}; {nearest(verb, VERBS)} (mithridate --help says what they do)")
    options = tyro.cli(VERBS[verb], prog=f"mithridate {verb}", args=texts[1:], config=(tyro.conf.FlagCreatePairsOff,))
    from mithridate import verbs  # now: it brings torch

    name = f"{verb}_" if keyword.iskeyword(verb) else verb
    return getattr(verbs, name)(options, shlex.join(["mithridate", *texts]))


def overview() -> str:
    """Returns what `mithridate --help` prints."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {(kind.__doc__ or '').splitlines()[0]}" for name, kind in VERBS.items()]
    return "\n".join(
        [
            "usage: mithridate VERB [OPTIONS]",
            "",
            "Poison your own training pipeline, measure how much poison it takes, switch defences on, measure again.",
            "",
            *lines,
            "",
            "mithridate VERB --help lists the options of a verb; mithridate --version the version.",
            "MITHRIDATE_DEBUG=1 shows where an error comes from.",
        ]
    )
