"""The command line: `mithridate audit | craft | invert | trial | study | report`. The only module that imports tyro.

torch is imported when a verb starts to work, so that help, versions and typing mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from mithridate import __version__

# --- options ---------------------------------------------------------------------------------------------------------

Numbers = Annotated[
    tuple[float, ...] | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="NUMBER ...",
        instance_from_str=lambda texts: tuple(float(Fraction(text)) for text in texts),
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: [f"{number:g}" for number in value or ()],
    ),
    arg(help_behavior_hint=""),
]
Names = Annotated[tuple[str, ...] | None, arg(metavar="NAME ...", help_behavior_hint="")]
Count = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Text = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
Place = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
Device = Annotated[str, arg(metavar="NAME")]
Number = Annotated[int, arg(metavar="N")]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What audit and craft share."""

    data: Annotated[str, arg(metavar="DATA")] = "digits"
    """"digits", a folder of class folders, parquet in Hugging Face layout (a file or a folder), hub:OWNER/NAME, or
    package.module:function that returns two torch datasets."""
    preset: Text = None
    """Recipe, doses and trial counts to start from: digits; small (500 images per class); general. All other options
    change it. Default: digits for the digits, else general."""
    recipe: Literal["paper", "fast"] = "paper"
    """paper: the preset's own, for most 40 epochs as in the papers. fast: 12 epochs with one cycle of the learning
    rate, a third of the time for some points of accuracy."""
    model: Text = None
    """convnet, convnet-wide, lenet, mlp, resnet18, vgg11, mobilenet_v2, each with :width=N; timm:NAME,
    transformers:NAME; or package.module:function."""
    start_from: Place = None
    """Safetensors weights that training starts from: the victims are then fine-tuned, or train a new head."""
    surrogate: Text = None
    """The attacker's model, named as for --model. Default: the victims' own."""
    epochs: Count = None
    """Passes over the training set."""
    size: Count = None
    """Resize all images to N x N."""
    per_class: Count = None
    """Keep only the first N training images of every class."""
    cache: Place = None
    """Folder for a memory-mapped copy of the pixels, for data larger than memory."""
    eps: Numbers = None
    """Largest change of a pixel in [0, 1], as a number or 8/255; several are several doses."""
    budget: Numbers = None
    """Poisoned fraction of the training set; several are several doses."""
    seed: Number = 0
    """First seed of the cases; trial i uses seed + i."""
    device: Device = "cpu"
    """Where models run: cpu, cuda, cuda:1."""
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class AuditOptions(Pipeline):
    """Poison a training pipeline, with and without defences, beside controls; write a report.

    Without options: `convnet` on the digits that come with scikit-learn, about three minutes on two cores. The same
    command again resumes.
    """

    attacks: Names = None
    """Attacks, with settings if you like: badnets poison-frogs witches-brew:steps=100,restarts=2 metapoison
    convex-polytope bullseye-polytope watermark. Default: the first three."""
    defenses: Names = None
    """Defences: mixup cutmix cutout maxup noise adversarial-training adversarial-poisoning gradient-shaping dp-sgd
    dp-instahide epic spectral-signatures activation-clustering deep-knn confident-learning partition-vote:parts=10
    fine-tuning fine-pruning strip; a+b applies both. No name after it: none."""
    scenarios: Names = None
    """from-scratch, fine-tuning, transfer; with -grey-box after it the attacker trains features of its own, with
    -black-box another architecture. Default: for each attack the one its paper is about."""
    adaptive: bool = False
    """Meet every defence with an attacker who knows it as well."""
    trusted: Count = None
    """Clean rows held out for defences that need them: fine-tuning, fine-pruning."""
    trials: Count = None
    """Cases (targets) per cell, the same ones in every cell."""
    victims: Count = None
    """Models trained on each poison."""
    clean_victims: Count = None
    """Models trained on clean data, shared by all cases."""
    workers: Count = None
    """Worker processes of one thread each. Default: one per core, at most 8; one for a GPU."""
    out: Place = None
    """Results folder. Default: runs/audit."""
    plan: bool = False
    """Say what would run, for about how long, and what that many trials can show; train nothing but a short probe."""
    keep_models: bool = False
    """Keep the poisoned models as safetensors, with a loader beside them."""


@dataclass(frozen=True, kw_only=True)
class CraftOptions(Pipeline):
    """Craft one poison for one case and write it to a folder.

    Training rows are replaced by the pixels in poison.safetensors; manifest.json says which and why.
    """

    attack: Annotated[str, arg(metavar="NAME")] = "witches-brew"
    """As for audit --attacks, with settings if you like: witches-brew:steps=100,restarts=2."""
    scenario: Text = None
    """from-scratch, fine-tuning or transfer, also with -grey-box or -black-box. Default: the one of the attack's
    paper."""
    target: Text = None
    """What to aim at: rows of the test set (17 or 17,42), an image file, or a folder of images. Default: drawn."""
    intended: Text = None
    """Class that the target should get."""
    true: Text = None
    """Class that an image file or folder given as target truly belongs to."""
    workers: Count = None
    """Worker processes of one thread each, which share out the surrogates. Default: one per core, at most 8."""
    out: Path = Path("runs/craft")
    """Results folder; surrogates are kept there for the next poison."""


@dataclass(frozen=True, kw_only=True)
class InvertOptions:
    """Measure what a shared gradient gives away of the images behind it; write a report.

    Without options: the smooth `lenet` on the digits that come with scikit-learn, about three minutes on two cores. The
    same command again resumes. With --leak: reconstruct the images behind one leak of your own.
    """

    data: Annotated[str, arg(metavar="DATA")] = "digits"
    """As for audit. The client's images are drawn from the test set, on which no model was trained."""
    model: Annotated[str, arg(metavar="NAME")] = "lenet"
    """convnet, convnet-wide, lenet, mlp, resnet18, vgg11, mobilenet_v2, each with :width=N; timm:NAME,
    transformers:NAME; or package.module:function."""
    start_from: Place = None
    """Safetensors weights of the model, measured as they are unless --epochs says to train them on."""
    epochs: Count = None
    """Passes over the training set before gradients are shared; 0: an untrained model. Default: the preset's."""
    untrained: bool = False
    """Measure the untrained model as well."""
    batch: Annotated[tuple[int, ...] | None, arg(metavar="N ...", help_behavior_hint="")] = None
    """Images behind one gradient; several are several cells. Default: 1 4."""
    attacks: Names = None
    """Attacks, with settings if you like: inverting-gradients:steps=4000,restarts=2 inverting-gradients-modern
    deep-leakage:line_search=true gradinversion analytic-linear. Default: inverting-gradients:steps=1000."""
    defenses: Names = None
    """Defences: clip-and-noise:noise=0.1 sparsify:keep=0.1 quantize:bits=4 mixing local-steps:steps=5 larger-batch; a+b
    applies both. No name after it: none. Default: clip-and-noise in three strengths."""
    adaptive: bool = False
    """Meet every defence with an attacker who knows it as well."""
    unknown_labels: bool = False
    """Let the attacker recover the labels instead of knowing them."""
    batch_statistics: bool = False
    """Let clients compute gradients in train mode: BatchNorm with the statistics of their batch."""
    distinct: bool = False
    """Draw batches of images with different labels."""
    cases: Count = None
    """Batches of images per cell, the same ones in every cell. Default: 10."""
    leak: Place = None
    """A leak that `Leak.save` wrote, inverted instead; --model names its architecture."""
    size: Count = None
    """Resize all images to N x N."""
    per_class: Count = None
    """Keep only the first N training images of every class."""
    seed: Number = 0
    """First seed of the cases; case i uses seed + i."""
    device: Device = "cpu"
    """Where models run: cpu, cuda, cuda:1."""
    workers: Count = None
    """Worker processes of one thread each. Default: one per core, at most 8; one for a GPU."""
    out: Place = None
    """Results folder. Default: runs/invert, with --leak runs/invert-leak."""
    plan: bool = False
    """Say what would run and for about how long; train nothing but take a few steps."""
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """Look for poison in a training set: train on it, rank its rows, say how many would stand out by chance.

    All images are scanned; none is set aside as test data. Writes suspects.csv, drop.txt and scan.html.
    """

    data: Annotated[str, tyro.conf.Positional, arg(metavar="DATA")]
    """A folder of class folders, parquet in Hugging Face layout (a file or a folder), hub:OWNER/NAME,
    package.module:function, or digits."""
    filters: Names = None
    """Filters, with settings if you like: spectral-signatures deep-knn confident-learning activation-clustering.
    Default: the first two."""
    contamination: Annotated[float, arg(metavar="SHARE")] = 0.02
    """Share of the rows that you would not be surprised to find poisoned; filters look for about so many."""
    false_alarms: Annotated[float, arg(metavar="N")] = 1.0
    """Length of the list of rows to drop: it ends where this many false alarms are expected."""
    model: Annotated[str, arg(metavar="NAME")] = "convnet"
    """As for audit."""
    recipe: Literal["paper", "fast"] = "fast"
    """fast: 12 epochs, which is enough to see what a model makes of each row. paper: 40 epochs."""
    epochs: Count = None
    """Passes over the training set."""
    models: Number = 1
    """Models trained; what they say is put together by the median."""
    size: Count = None
    """Resize all images to N x N."""
    per_class: Count = None
    """Scan only the first N images of every class."""
    cache: Place = None
    """Folder for a memory-mapped copy of the pixels, for data larger than memory."""
    top: Number = 60
    """Suspects shown on the page."""
    copy: Place = None
    """Write a copy of the data without the rows to drop: the image files, or the parquet files with all columns."""
    seed: Number = 0
    """Seed of the models and of the null runs."""
    device: Device = "cpu"
    """Where models run: cpu, cuda, cuda:1."""
    workers: Count = None
    """Worker processes of one thread each, which share out the models. Default: one per core, at most 8."""
    out: Path = Path("runs/scan")
    """Results folder; the models are kept there for the next scan."""
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """Run one trial from its trial.json and print what came of it."""

    file: Annotated[Path, tyro.conf.Positional, arg(metavar="FILE")]
    """A trial.json, for example runs/audit/trials/ID/trial.json."""
    device: Device = "cpu"
    """Where models run: cpu, cuda, cuda:1."""
    workers: Count = None
    """Worker processes of one thread each, which share out the models of each fit. Default: one per core, at most 8."""
    out: Path = Path("runs/trial")
    """Results folder."""
    keep_models: bool = False
    """Keep the poisoned models as safetensors, with a loader beside them."""
    json: bool = False
    """Print the table as JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Run a list of trials that a Python function returns; the same command again resumes."""

    function: Annotated[str, tyro.conf.Positional, arg(metavar="MODULE:FUNCTION")]
    """For example studies.witches_brew:small; the current folder is searched too."""
    limit: Count = None
    """Run only the first N trials."""
    device: Device = "cpu"
    """Where models run: cpu, cuda, cuda:1."""
    workers: Count = None
    """Worker processes of one thread each. Default: one per core, at most 8; one for a GPU."""
    out: Place = None
    """Results folder. Default: runs/ and the name of the function."""
    plan: bool = False
    """Say what would run and for about how long; train nothing but a short probe."""
    keep_models: bool = False
    """Keep the poisoned models as safetensors, with a loader beside them."""
    json: bool = False
    """Print the table as JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Print the table of a results folder and write its report, finished or not."""

    folder: Annotated[Path, tyro.conf.Positional, arg(metavar="FOLDER")]
    """Results folder of an audit or a study."""
    out: Place = None
    """The HTML file. Default: report.html in the folder."""
    json: bool = False
    """Print the table as JSON instead of text."""


# --- verbs -----------------------------------------------------------------------------------------------------------

VERBS: dict[str, type] = {
    "audit": AuditOptions,
    "craft": CraftOptions,
    "invert": InvertOptions,
    "scan": ScanOptions,
    "trial": TrialOptions,
    "study": StudyOptions,
    "report": ReportOptions,
}
"""What each verb is told; what it does is the function of the same name in `verbs`."""


# --- the door --------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit code: 0 done, 1 some trials failed, 2 a mistake in what was asked, 130 stopped with Ctrl-C.
    """
    texts = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _plain_warnings():
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
        code = _exit_code(error)
        if code is None:
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
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

    return getattr(verbs, verb)(options, shlex.join(["mithridate", *texts]))


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


def _exit_code(error: Exception) -> int | None:
    """2: a mistake in what was asked; 1: trials failed; None: an error of ours, whose traceback is wanted."""
    if not isinstance(error, RuntimeError):
        return 2
    from mithridate.experiments.study import StudyErrors

    return 1 if isinstance(error, StudyErrors) else None


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows Python warnings as one line of text, each once."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield


if __name__ == "__main__":
    sys.exit(main())
