"""MetaPoison: poisons found by differentiating through the training steps that see them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

from torch import Tensor

from mithridate.core.balls import Ball, Linf, to_bytes, to_floats
from mithridate.core.classifier import Precision
from mithridate.core.perturbation import average, minimise
from mithridate.core.progress import track
from mithridate.core.recolor import Recolor
from mithridate.core.seeds import stream
from mithridate.core.training import Learner
from mithridate.core.updates import Adam
from mithridate.poisoning.attack import Attack, expect_goal
from mithridate.poisoning.dealing import deal
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.threat import Misclassify, Task, ThreatModel
from mithridate.poisoning.unrolling import AsDrawn, Following, MetaLoss, PackedTraining, Surrogate, move_on


@dataclass(frozen=True, kw_only=True)
class MetaPoison(Attack):
    """Choose the poison by what a few training steps on it do to the target: bilevel optimisation, unrolled.

    One batch holds poisons; the model takes a step on it and more steps on clean batches, and the target's loss after
    each of these is differentiated through the steps down to the poison's pixels. The target shares the BatchNorm
    statistics of every batch. Surrogates are spread over the epochs of a clean training, move on by an epoch between
    crafting steps, and start again from new weights when they are through, so that the poison works at every stage of
    training and for any initialisation. Poisons keep their labels, whatever classes the threat model allows.

    Reference: Huang, Geiping, Fowl, Taylor, Goldstein. "MetaPoison: Practical General-purpose Clean-label Data
    Poisoning". NeurIPS 2020. arXiv 2004.00225, Algorithm 1. Deviations: poisons are packed into few batches, half of
    each clean, once per epoch (``batches="as-drawn"`` is the paper's loop); the victim's augmentation is crafted
    through; surrogates cover all epochs of the recipe, not the first few; 8 surrogates unless asked for their 24.

    Raises:
        ValueError: a number of steps or surrogates that is not positive, or a watermark that is no opacity.

    >>> MetaPoison(surrogates=24, batches="as-drawn").inner_steps
    2
    """

    threat: ClassVar[ThreatModel] = ThreatModel(
        budget=0.01, ball=Recolor(eps=0.04) + Linf(eps=8 / 255), goal=Misclassify()
    )

    steps: int = 60
    """Adam steps on the pixels; surrogates move on by one epoch at each."""
    surrogates: int = 8
    """Models in training, spread evenly over its epochs; their meta-losses are averaged."""
    inner_steps: int = 2
    """Training steps that are differentiated through; the poison enters the first (K in the paper)."""
    inner_rate: float | None = None
    """Learning rate of these steps; None: each surrogate's own at its epoch. With a rate for all, what surrogates say
    late in training, when the recipe's rate has fallen, counts as much as what they say early."""
    lr: float = 200 / 255
    """Step in pixels of [0, 1], so large that poisons jump between the bounds at first; falls by 10 at 1/3 and 2/3."""
    batches: Literal["packed", "as-drawn"] = "packed"
    """packed: poisons come together, half a batch or less of them; as-drawn: they come as training draws them, a
    surrogate takes a training step after each batch, and every batch with a poison in it is differentiated."""
    trajectory: Literal["clean", "poison"] = "clean"
    """What surrogates train on between the steps; what trains on clean data is shared by all targets of a study."""
    augment: bool = True
    """Whether batches go through the victim's augmentation while poison is crafted."""
    watermark: float = 0.0
    """Opacity with which the target is blended into each base before the search, 0..1."""
    search: Ball | None = None
    """What the search moves in, around the base or the blend; None: the threat model's ball. Where the threat model
    allows any image, linf(eps=8/255) around a watermark is the paper's form for fine-tuning."""
    kappa: float = 100.0
    """Margin of the target, in logits, that is wide enough."""
    precision: Precision = "auto"
    """Number format of the unrolled steps; auto: bf16 where the machine computes it faster."""

    def __post_init__(self) -> None:
        for name in ("surrogates", "inner_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark is {self.watermark}; it is an opacity, so use 0.3 for 30 %")

    def craft(self, task: Task, surrogate: Learner, seed: int) -> Poison:
        """Crafts `task.limit` poisons; the note ``meta_loss`` is that of the 8-bit pixels on the last surrogates.

        Raises:
            TypeError: the goal is not to misclassify given targets, or nobody can follow the learner's training.
        """
        expect_goal(self, task, Misclassify)
        rows = task.choose(seed)
        base = centre = task.images(rows)
        ball, init = task.ball, None
        if self.watermark:
            init = (1 - self.watermark) * base + self.watermark * task.targets[deal(task, len(rows))]
        if self.search is not None:
            centre, ball, init = to_floats(to_bytes(base if init is None else init)), self.search, None
        crew = self._crew(task, surrogate, rows)
        found = minimise(
            average(crew),
            centre,
            ball,
            steps=self.steps,
            update=Adam(lr=self.lr, decay=True, drops=(1 / 3, 2 / 3)),
            init=init,
            between=lambda step, images: move_on(crew, images) if step else None,
            label="metapoison",
            rng=stream(seed, "craft"),
        )
        images = found.images
        if self.search is not None:  # which knows nothing of the threat model
            allowed = task.ball.images(base, task.ball.params_of(base, to_floats(images)))
            images = task.ball.rounded(base, allowed)
        return Poison(rows, images, notes={"meta_loss": float(found.value)})

    def _crew(self, task: Task, surrogate: Learner, rows: Tensor) -> list[Surrogate]:
        """The surrogates, each at its own age."""
        data, seeds = [task.train] * self.surrogates, list(range(self.surrogates))
        recipe = surrogate.recipe
        if recipe is None:
            raise TypeError(
                "metapoison differentiates through training steps, but this learner trains with code of its own; give "
                "a Recipe as learner or as surrogate"
            )
        meta = MetaLoss(self, task, recipe, rows)
        ages = [number * recipe.epochs // self.surrogates for number in range(self.surrogates)]
        if self.batches == "packed" and self.trajectory == "clean":
            courses = surrogate.follow(data, seeds)
            aged = track(zip(courses, ages, strict=True), "training surrogates", total=len(ages))
            return [Following(meta, number, islice(course, age, None)) for number, (course, age) in enumerate(aged)]
        kind = AsDrawn if self.batches == "as-drawn" else PackedTraining
        states = surrogate.begin(data, seeds)
        for state, age in track(zip(states, ages, strict=True), "training surrogates", total=len(ages)):
            for _ in range(min(age, state.recipe.epochs)):
                state.run_epoch()
        return [kind(meta, number, state) for number, state in enumerate(states)]
