"""Poison your own training pipeline, measure how much poison it takes, switch defences on, measure again.

The public names are imported when they are first used, so that ``import mithridate`` does not wait for torch.

Example:
    >>> import mithridate as mi
    >>> mi.Linf(eps=8 / 255)
    Linf(eps=0.03137254901960784)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # X as X: this package exports it
    from mithridate.core.adapters import (
        art_classifier as art_classifier,
        auto_attack_model as auto_attack_model,
        foolbox_model as foolbox_model,
        from_hugging_face as from_hugging_face,
        from_loader as from_loader,
        to_hugging_face as to_hugging_face,
        to_loader as to_loader,
    )
    from mithridate.core.balls import L2 as L2, AnyImage as AnyImage, Ball as Ball, Linf as Linf, Patch as Patch
    from mithridate.core.data import ImageData as ImageData
    from mithridate.core.devices import on_devices as on_devices
    from mithridate.core.ensemble import Ensemble as Ensemble
    from mithridate.core.guarantees import Guarantee as Guarantee
    from mithridate.core.learners import Mixed as Mixed, learner as learner
    from mithridate.core.members import members_by as members_by
    from mithridate.core.models import Normalize as Normalize
    from mithridate.core.moved import Moved as Moved
    from mithridate.core.ray_workers import ray_workers as ray_workers
    from mithridate.core.recolor import Recolor as Recolor
    from mithridate.core.sources import (
        Arrays as Arrays,
        DataSource as DataSource,
        Digits as Digits,
        Folder as Folder,
        Hub as Hub,
        Parquet as Parquet,
        TorchDataset as TorchDataset,
    )
    from mithridate.core.training import (
        Fitted as Fitted,
        Learner as Learner,
        Prediction as Prediction,
        Recipe as Recipe,
    )
    from mithridate.core.workers import processes as processes
    from mithridate.evasion.attack import Evasion as Evasion
    from mithridate.evasion.attacks.apgd import APGD as APGD
    from mithridate.evasion.attacks.fgsm import FGSM as FGSM
    from mithridate.evasion.attacks.mi_fgsm import MIFGSM as MIFGSM
    from mithridate.evasion.attacks.pgd import PGD as PGD
    from mithridate.evasion.attacks.square import Square as Square
    from mithridate.evasion.attacks.standard import Standard as Standard
    from mithridate.evasion.attacks.witchcraft import WITCHcraft as WITCHcraft
    from mithridate.evasion.robustness import robustness as robustness
    from mithridate.experiments.audit import audit as audit, dose as dose
    from mithridate.experiments.facts import TrialResult as TrialResult
    from mithridate.experiments.invert import invert as invert, invert_leak as invert_leak
    from mithridate.experiments.leaks import LeakTrial as LeakTrial
    from mithridate.experiments.measured.robust_accuracy import RobustAccuracy as RobustAccuracy
    from mithridate.experiments.measurements import Measurement as Measurement
    from mithridate.experiments.report import write_report as write_report
    from mithridate.experiments.store import Store as Store
    from mithridate.experiments.study import load_results as load_results, run_study as run_study
    from mithridate.experiments.table import table as table
    from mithridate.experiments.transfer import transfer_grid as transfer_grid
    from mithridate.experiments.trial import Trial as Trial, run as run
    from mithridate.inversion.attack import Inversion as Inversion
    from mithridate.inversion.attacks.analytic_linear import AnalyticLinear as AnalyticLinear
    from mithridate.inversion.attacks.deep_leakage import DeepLeakage as DeepLeakage
    from mithridate.inversion.attacks.gradinversion import GradInversion as GradInversion
    from mithridate.inversion.attacks.inverting_gradients import InvertingGradients as InvertingGradients
    from mithridate.inversion.attacks.inverting_gradients_modern import (
        InvertingGradientsModern as InvertingGradientsModern,
    )
    from mithridate.inversion.client import Client as Client, LeakDefense as LeakDefense
    from mithridate.inversion.defenses.clip_and_noise import ClipAndNoise as ClipAndNoise
    from mithridate.inversion.defenses.larger_batch import LargerBatch as LargerBatch
    from mithridate.inversion.defenses.local_steps import LocalSteps as LocalSteps
    from mithridate.inversion.defenses.mixing import Mixing as Mixing
    from mithridate.inversion.defenses.quantize import Quantize as Quantize
    from mithridate.inversion.defenses.sparsify import Sparsify as Sparsify
    from mithridate.inversion.leak import Leak as Leak
    from mithridate.inversion.sharing import Gradient as Gradient, Update as Update
    from mithridate.poisoning.art import (
        ArtAttack as ArtAttack,
        ArtCase as ArtCase,
        FunctionTrigger as FunctionTrigger,
    )
    from mithridate.poisoning.attack import Attack as Attack
    from mithridate.poisoning.attacks.adversarial_release import AdversarialRelease as AdversarialRelease
    from mithridate.poisoning.attacks.badnets import BadNets as BadNets
    from mithridate.poisoning.attacks.bullseye_polytope import BullseyePolytope as BullseyePolytope
    from mithridate.poisoning.attacks.class_wise_noise import ClassWiseNoise as ClassWiseNoise
    from mithridate.poisoning.attacks.clean_label_backdoor import CleanLabelBackdoor as CleanLabelBackdoor
    from mithridate.poisoning.attacks.convex_polytope import ConvexPolytope as ConvexPolytope
    from mithridate.poisoning.attacks.error_minimizing import ErrorMinimizing as ErrorMinimizing
    from mithridate.poisoning.attacks.hidden_trigger import HiddenTrigger as HiddenTrigger
    from mithridate.poisoning.attacks.metapoison import MetaPoison as MetaPoison
    from mithridate.poisoning.attacks.no_attack import NoAttack as NoAttack
    from mithridate.poisoning.attacks.poison_frogs import PoisonFrogs as PoisonFrogs
    from mithridate.poisoning.attacks.random_noise import RandomNoise as RandomNoise
    from mithridate.poisoning.attacks.secure_release import SecureRelease as SecureRelease
    from mithridate.poisoning.attacks.sleeper_agent import SleeperAgent as SleeperAgent
    from mithridate.poisoning.attacks.tensorclog import TensorClog as TensorClog
    from mithridate.poisoning.attacks.watermark import Watermark as Watermark
    from mithridate.poisoning.attacks.witches_brew import WitchesBrew as WitchesBrew
    from mithridate.poisoning.defense import Defense as Defense
    from mithridate.poisoning.defenses.activation_clustering import ActivationClustering as ActivationClustering
    from mithridate.poisoning.defenses.adversarial_poisoning import AdversarialPoisoning as AdversarialPoisoning
    from mithridate.poisoning.defenses.adversarial_training import AdversarialTraining as AdversarialTraining
    from mithridate.poisoning.defenses.confident_learning import ConfidentLearning as ConfidentLearning
    from mithridate.poisoning.defenses.cutmix import Cutmix as Cutmix
    from mithridate.poisoning.defenses.cutout import Cutout as Cutout
    from mithridate.poisoning.defenses.deep_knn import DeepKNN as DeepKNN
    from mithridate.poisoning.defenses.dp_instahide import DPInstaHide as DPInstaHide
    from mithridate.poisoning.defenses.dp_sgd import DPSGD as DPSGD
    from mithridate.poisoning.defenses.epic import Epic as Epic
    from mithridate.poisoning.defenses.fine_pruning import FinePruning as FinePruning
    from mithridate.poisoning.defenses.fine_tuning import FineTuning as FineTuning
    from mithridate.poisoning.defenses.gradient_shaping import GradientShaping as GradientShaping
    from mithridate.poisoning.defenses.grayscale import Grayscale as Grayscale
    from mithridate.poisoning.defenses.jpeg import Jpeg as Jpeg
    from mithridate.poisoning.defenses.maxup import Maxup as Maxup
    from mithridate.poisoning.defenses.mixup import Mixup as Mixup
    from mithridate.poisoning.defenses.neural_cleanse import NeuralCleanse as NeuralCleanse
    from mithridate.poisoning.defenses.noise import Noise as Noise
    from mithridate.poisoning.defenses.partition_vote import PartitionVote as PartitionVote
    from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures as SpectralSignatures
    from mithridate.poisoning.defenses.strip import Strip as Strip
    from mithridate.poisoning.goals import (
        Availability as Availability,
        Backdoor as Backdoor,
        Misclassify as Misclassify,
    )
    from mithridate.poisoning.poison import Poison as Poison
    from mithridate.poisoning.release import Perturbed as Perturbed, Release as Release
    from mithridate.poisoning.task import Task as Task, ThreatModelViolation as ThreatModelViolation
    from mithridate.poisoning.threat import FixedCase as FixedCase, ThreatModel as ThreatModel
    from mithridate.poisoning.triggers import (
        BlendTrigger as BlendTrigger,
        ImageTrigger as ImageTrigger,
        PatchTrigger as PatchTrigger,
        WarpTrigger as WarpTrigger,
    )

# Where each public name lives. The block above says the same to type checkers; tests/test_package.py compares the two.
_HOME = {
    "core.adapters": (
        "art_classifier",
        "auto_attack_model",
        "foolbox_model",
        "from_hugging_face",
        "from_loader",
        "to_hugging_face",
        "to_loader",
    ),
    "core.balls": ("AnyImage", "Ball", "L2", "Linf", "Patch"),
    "core.data": ("ImageData",),
    "core.devices": ("on_devices",),
    "core.ensemble": ("Ensemble",),
    "core.guarantees": ("Guarantee",),
    "core.learners": ("Mixed", "learner"),
    "core.members": ("members_by",),
    "core.models": ("Normalize",),
    "core.moved": ("Moved",),
    "core.ray_workers": ("ray_workers",),
    "core.recolor": ("Recolor",),
    "core.sources": ("Arrays", "DataSource", "Digits", "Folder", "Hub", "Parquet", "TorchDataset"),
    "core.training": ("Fitted", "Learner", "Prediction", "Recipe"),
    "core.workers": ("processes",),
    "evasion.attack": ("Evasion",),
    "evasion.attacks.apgd": ("APGD",),
    "evasion.attacks.fgsm": ("FGSM",),
    "evasion.attacks.mi_fgsm": ("MIFGSM",),
    "evasion.attacks.pgd": ("PGD",),
    "evasion.attacks.square": ("Square",),
    "evasion.attacks.standard": ("Standard",),
    "evasion.attacks.witchcraft": ("WITCHcraft",),
    "evasion.robustness": ("robustness",),
    "experiments.audit": ("audit", "dose"),
    "experiments.facts": ("TrialResult",),
    "experiments.invert": (
        "invert",
        "invert_leak",
    ),
    "experiments.leaks": ("LeakTrial",),
    "experiments.measured.robust_accuracy": ("RobustAccuracy",),
    "experiments.measurements": ("Measurement",),
    "experiments.report": ("write_report",),
    "experiments.store": ("Store",),
    "experiments.study": ("load_results", "run_study"),
    "experiments.table": ("table",),
    "experiments.transfer": ("transfer_grid",),
    "experiments.trial": ("Trial", "run"),
    "inversion.attack": ("Inversion",),
    "inversion.attacks.analytic_linear": ("AnalyticLinear",),
    "inversion.attacks.deep_leakage": ("DeepLeakage",),
    "inversion.attacks.gradinversion": ("GradInversion",),
    "inversion.attacks.inverting_gradients": ("InvertingGradients",),
    "inversion.attacks.inverting_gradients_modern": ("InvertingGradientsModern",),
    "inversion.client": (
        "Client",
        "LeakDefense",
    ),
    "inversion.defenses.clip_and_noise": ("ClipAndNoise",),
    "inversion.defenses.larger_batch": ("LargerBatch",),
    "inversion.defenses.local_steps": ("LocalSteps",),
    "inversion.defenses.mixing": ("Mixing",),
    "inversion.defenses.quantize": ("Quantize",),
    "inversion.defenses.sparsify": ("Sparsify",),
    "inversion.leak": ("Leak",),
    "inversion.sharing": (
        "Gradient",
        "Update",
    ),
    "poisoning.art": ("ArtAttack", "ArtCase", "FunctionTrigger"),
    "poisoning.attack": ("Attack",),
    "poisoning.attacks.adversarial_release": ("AdversarialRelease",),
    "poisoning.attacks.badnets": ("BadNets",),
    "poisoning.attacks.bullseye_polytope": ("BullseyePolytope",),
    "poisoning.attacks.class_wise_noise": ("ClassWiseNoise",),
    "poisoning.attacks.clean_label_backdoor": ("CleanLabelBackdoor",),
    "poisoning.attacks.convex_polytope": ("ConvexPolytope",),
    "poisoning.attacks.error_minimizing": ("ErrorMinimizing",),
    "poisoning.attacks.hidden_trigger": ("HiddenTrigger",),
    "poisoning.attacks.metapoison": ("MetaPoison",),
    "poisoning.attacks.no_attack": ("NoAttack",),
    "poisoning.attacks.poison_frogs": ("PoisonFrogs",),
    "poisoning.attacks.random_noise": ("RandomNoise",),
    "poisoning.attacks.secure_release": ("SecureRelease",),
    "poisoning.attacks.sleeper_agent": ("SleeperAgent",),
    "poisoning.attacks.tensorclog": ("TensorClog",),
    "poisoning.attacks.watermark": ("Watermark",),
    "poisoning.attacks.witches_brew": ("WitchesBrew",),
    "poisoning.defense": ("Defense",),
    "poisoning.defenses.activation_clustering": ("ActivationClustering",),
    "poisoning.defenses.confident_learning": ("ConfidentLearning",),
    "poisoning.defenses.dp_instahide": ("DPInstaHide",),
    "poisoning.defenses.dp_sgd": ("DPSGD",),
    "poisoning.defenses.epic": ("Epic",),
    "poisoning.defenses.fine_pruning": ("FinePruning",),
    "poisoning.defenses.gradient_shaping": ("GradientShaping",),
    "poisoning.defenses.grayscale": ("Grayscale",),
    "poisoning.defenses.jpeg": ("Jpeg",),
    "poisoning.defenses.adversarial_poisoning": ("AdversarialPoisoning",),
    "poisoning.defenses.adversarial_training": ("AdversarialTraining",),
    "poisoning.defenses.cutmix": ("Cutmix",),
    "poisoning.defenses.cutout": ("Cutout",),
    "poisoning.defenses.deep_knn": ("DeepKNN",),
    "poisoning.defenses.fine_tuning": ("FineTuning",),
    "poisoning.defenses.maxup": ("Maxup",),
    "poisoning.defenses.mixup": ("Mixup",),
    "poisoning.defenses.neural_cleanse": ("NeuralCleanse",),
    "poisoning.defenses.noise": ("Noise",),
    "poisoning.defenses.partition_vote": ("PartitionVote",),
    "poisoning.defenses.spectral_signatures": ("SpectralSignatures",),
    "poisoning.defenses.strip": ("Strip",),
    "poisoning.goals": ("Availability", "Backdoor", "Misclassify"),
    "poisoning.poison": ("Poison",),
    "poisoning.release": ("Perturbed", "Release"),
    "poisoning.task": ("Task", "ThreatModelViolation"),
    "poisoning.threat": ("FixedCase", "ThreatModel"),
    "poisoning.triggers": ("BlendTrigger", "ImageTrigger", "PatchTrigger", "WarpTrigger"),
}
_MODULE_OF = {name: f"mithridate.{module}" for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]  # noqa: PLE0604 (derived, so that it cannot disagree)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(
            f"module 'mithridate' has no attribute '{name}'; its public names are in mithridate.__all__"
        )
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
