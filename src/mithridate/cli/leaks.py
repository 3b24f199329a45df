"""Options of invert, which measures what gradients give away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from mithridate.cli.kinds import Conditions, Count, Device, Gpus, Names, Number, Place, Workers


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
    workers: Workers = None
    """Where trials run: local; N or processes:N, worker processes of one thread each; ray or ray:ADDRESS, a Ray cluster
    (docs/scaling.md). Default: a process per core, at most 8; one for a GPU."""
    gpus_per_trial: Gpus = None
    """GPUs of each trial on Ray; 0.25 lets four share one. Default: 1 with --device cuda, else 0."""
    out: Place = None
    """Results folder. Default: runs/invert, with --leak runs/invert-leak."""
    plan: bool = False
    """Say what would run and for about how long; train nothing but take a few steps."""
    fail_if: Conditions = ()
    """Exit with code 3 if this holds for a row: "identified>0.1" for the measured share, "identified.low>0.1" only if
    all of its interval lies above, "psnr>20"; "vs sparsify: identified>0.1" for these rows. Also ssim, gain, epsilon,
    ...: docs/continuous-integration.md."""
    json: bool = False
    """Print JSON instead of text."""
