"""Options of audit and craft, which poison a training pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from mithridate.cli.kinds import Conditions, Count, Device, Devices, Gpus, Names, Number, Numbers, Place, Text, Workers


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
    transformers:NAME; or package.module:function. With --train-fn: the attacker's model."""
    train_fn: Annotated[str | None, arg(metavar="MODULE:FUNCTION", help_behavior_hint="")] = None
    """Your own training code in place of a recipe: a function of (dataset, seed) that returns the trained module; or a
    mi.learner of it. The attacker of an audit trains --model by the preset's recipe (black box), unless --scenarios
    from-scratch gives it your function too; craft trains its surrogates with the function."""
    start_from: Place = None
    """Safetensors weights that training starts from: the victims are then fine-tuned, or train a new head."""
    surrogate: Text = None
    """The attacker's model, named as for --model. Default: the victims' own."""
    epochs: Count = None
    """Passes over the training set, of a recipe."""
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
    devices: Devices = 1
    """GPUs (on a CPU: processes) that train each model together, each with its share of every batch; then one model is
    trained after the other."""
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True, kw_only=True)
class AuditOptions(Pipeline):
    """Poison a training pipeline, with and without defences, beside controls; write a report.

    Without options: `convnet` on the digits that come with scikit-learn, about three minutes on two cores. The same
    command again resumes.
    """

    attacks: Names = None
    """Attacks, with settings if you like (mithridate methods NAME lists them): badnets poison-frogs
    witches-brew:steps=100,restarts=2 (the default); metapoison convex-polytope bullseye-polytope watermark;
    clean-label-backdoor hidden-trigger sleeper-agent; on accuracy: adversarial-release secure-release error-minimizing
    tensorclog class-wise-noise."""
    defenses: Names = None
    """Defences: mixup cutmix cutout maxup noise jpeg grayscale adversarial-training adversarial-poisoning
    gradient-shaping dp-sgd dp-instahide epic spectral-signatures activation-clustering deep-knn confident-learning
    partition-vote:parts=10 fine-tuning fine-pruning neural-cleanse strip; a+b applies both. No name after it: none."""
    scenarios: Names = None
    """from-scratch, fine-tuning, transfer; with -grey-box after it the attacker trains features of its own, with
    -black-box another architecture. Default: for each attack the one its paper is about; with --train-fn
    from-scratch-black-box."""
    adaptive: bool = False
    """Meet every defence with an attacker who knows it as well."""
    trusted: Count = None
    """Clean rows held out for defences that need them: fine-tuning, fine-pruning, neural-cleanse."""
    trials: Count = None
    """Cases (targets) per cell, the same ones in every cell."""
    until: Literal["decided"] | None = None
    """decided: stop each comparison once it is shown, or hardly will be; trials is then the most."""
    victims: Count = None
    """Models trained on each poison."""
    clean_victims: Count = None
    """Models trained on clean data, shared by all cases."""
    workers: Workers = None
    """Where trials run: local; N or processes:N, worker processes of one thread each; ray or ray:ADDRESS, a Ray cluster
    (docs/scaling.md). Default: a process per core, at most 8; one for a GPU."""
    gpus_per_trial: Gpus = None
    """GPUs of each trial on Ray; 0.25 lets four share one. Default: 1 with --device cuda, else 0."""
    out: Place = None
    """Results folder. Default: runs/audit."""
    plan: bool = False
    """Say what would run, for about how long, and what that many trials can show; train nothing but a short probe."""
    keep_models: bool = False
    """Keep the poisoned models as safetensors, with a loader beside them."""
    fail_if: Conditions = ()
    """Exit with code 3 if this holds for a row of an attack: "success>0.2" for the measured share, "success.low>0.2"
    only if all of its interval lies above, "success.high>0.2" unless all lies below; "badnets vs mixup: success>0.2"
    for these rows. Also accuracy, cost, recall, ...: docs/continuous-integration.md."""


@dataclass(frozen=True, kw_only=True)
class DoseOptions(AuditOptions):
    """How much poison it takes: an audit at doses that double, the dose that moves half of the targets, a plot.

    The largest dose is the attack's own, or the one that --budget or --eps gives; several values there are the doses.
    Without options: a backdoor and gradient matching on the digits, with a defence of each kind.
    """

    of: Literal["budget", "eps"] = "budget"
    """What a dose is: poisoned images, or the largest change of a pixel."""
    levels: Annotated[int, arg(metavar="N")] = 5
    """Doses."""
    factor: Annotated[float, arg(metavar="X")] = 2.0
    """Each dose by the one before it."""
    out: Place = None
    """Results folder. Default: runs/dose."""


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
    workers: Workers = None
    """What shares out the surrogates: local, N, processes:N, ray or ray:ADDRESS, as for audit. Default: a process per
    core, at most 8."""
    out: Path = Path("runs/craft")
    """Results folder; surrogates are kept there for the next poison."""
