"""Task: one concrete case of a threat model, and the judge of what an attack did with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mithridate.core.balls import Ball, to_floats
from mithridate.core.data import ImageData
from mithridate.core.memory import shrinking
from mithridate.core.schema import name_of
from mithridate.core.seeds import stream
from mithridate.core.states import EVALUATION_BATCH
from mithridate.core.training import Fitted, Prediction, Predictor
from mithridate.poisoning.goals import Backdoor, Goal
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.triggers import Trigger


class ThreatModelViolation(ValueError):
    """A poison does what the threat model forbids.

    >>> from mithridate import Digits, Recipe, ThreatModel
    >>> train, test = Digits(train=100).load()
    >>> from mithridate import Poison
    >>> task = ThreatModel(budget=0.01).draw(train, test, seed=0)
    >>> task.check(Poison(task.candidates[:2], train.pixels(task.candidates[:2])))
    Traceback (most recent call last):
        ...
    mithridate.poisoning.task.ThreatModelViolation: ...
    """


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """What an attack is given: the clean data, what it may change, and what it should achieve.

    An attack reads it; the harness alone calls `check` and `outcome`.

    >>> from mithridate import Digits, Recipe, ThreatModel
    >>> train, test = Digits(train=100).load()
    >>> task = ThreatModel(budget=0.05).draw(train, test, seed=0)
    >>> task.limit, task.images(task.candidates[:2]).shape
    (5, torch.Size([2, 1, 8, 8]))
    """

    train: ImageData
    """The clean training set."""
    test: ImageData
    """The clean test set."""
    candidates: Tensor
    """[n] int64 row ids of the training set that may be changed, sorted."""
    limit: int
    """Rows that may be changed at most."""
    ball: Ball
    """How far the pixels of one row may change."""
    goal: Goal
    """What the attacker wants."""
    target_rows: Tensor
    """[T] int64 row ids of the test set: the images aimed at (before the trigger, for a backdoor)."""
    intended: Tensor
    """[T] int64 classes that the model should give them; where any wrong answer will do, their true ones."""
    relabel: bool = False
    """Whether the labels of changed rows may change too."""
    poison_class: str = "any"
    """What the classes of the candidates are called: a name, "any", "any but NAME", "3 of 10 classes"."""
    target_files: tuple[str, ...] = ()
    """[T] image files that the targets were read from; empty where they are rows of the test set."""

    @property
    def targets(self) -> Tensor:
        """The images aimed at, [T, C, H, W] in [0, 1], without a trigger."""
        return self.test.floats(self.target_rows)

    @property
    def true_labels(self) -> Tensor:
        """True classes of the targets, [T] int64."""
        return self.test.labels_of(self.target_rows)

    def taught(self, rows: Tensor) -> Tensor:
        """Returns the classes [P] int64 that poisons made of these training rows should teach.

        The intended class; with an all-to-all backdoor the class after the row's own; where test images should only
        come out wrong, the row's own.
        """
        return self.goal.taught(self.train.labels_of(rows), int(self.intended[0]), len(self.train.classes))

    def images(self, rows: Tensor) -> Tensor:
        """Returns the clean training images of `rows`, [P, C, H, W] in [0, 1]."""
        return self.train.floats(rows)

    def choose(self, seed: int, scores: Tensor | None = None) -> Tensor:
        """Chooses which `limit` candidates to change; the same for every attack that passes the same seed.

        Args:
            seed: The trial's seed; draws the rows, or breaks ties between equal scores.
            scores: [n] one number per candidate, highest first. Without it all candidates are alike, except that with
                `relabel` rows that already have the intended label come last: relabelling them would change nothing.

        Returns:
            [limit] int64 row ids, sorted.

        Raises:
            ValueError: If there is not one score per candidate.
        """
        scores = self._useful() if scores is None else scores
        if scores.shape != self.candidates.shape or bool(scores.isnan().any()):
            raise ValueError(
                f"scores have shape {tuple(scores.shape)} (or hold NaN); expected one number for each of the "
                f"{len(self.candidates)} candidates"
            )
        device = self.candidates.device
        order = torch.randperm(len(self.candidates), generator=stream(seed, "threat", "poisons")).to(device)
        ranked = order[scores.to(device)[order].argsort(descending=True, stable=True)]
        return self.candidates[ranked[: self.limit]].sort().values

    def check(self, poison: Poison) -> None:
        """Measures the poison again on the 8-bit pixels that would be shipped.

        Raises:
            ThreatModelViolation: Says what oversteps, by how much, and what is allowed.
        """
        self._check_form(poison)
        self._check_rows(poison.rows)
        self._check_labels(poison)
        self._check_pixels(poison)
        self._check_trigger(poison.trigger)

    def curve(self) -> Curve | None:
        """Returns what should watch the victims' training: their accuracy, where the goal is to lower it."""
        return Curve(self.test) if self.goal.wrong else None

    def outcome(self, fitted: Fitted, poison: Poison, curve: Curve | None = None) -> dict[str, Tensor | None]:
        """Measures the victims. An abstained prediction is neither a success nor right.

        Args:
            fitted: The victims.
            poison: What they were trained on.
            curve: What watched them.

        Returns:
            On the CPU: `success`, `abstained` and `correct` [M, T] bool, `margin` [M, T] (score of the intended class
            minus the best other; where any wrong answer will do, best wrong score minus that of the true class),
            `radius` [M, T] int64 or None, `accuracy` [M] on clean test images (without single images aimed at),
            `certified` [M, R] or None: the share of these images that is answered rightly with a radius of at least
            0, 1, ..., R - 1; `epochs` [M, E] or None: accuracy after each epoch, where it was watched.
        """
        trigger = poison.trigger or _unchanged
        prediction = predict(fitted.predictor, self.test, self.target_rows, trigger)
        intended, answered = self.intended.cpu(), ~prediction.abstained
        guess = prediction.scores.argmax(2)
        accuracy, certified = self._accuracy(fitted.predictor)
        margin = _margin(prediction.scores, intended)
        return {
            "success": ((guess == intended) ^ self.goal.wrong) & answered,
            "margin": -margin if self.goal.wrong else margin,
            "accuracy": accuracy,
            "certified": certified,
            "epochs": None if curve is None else curve.table(len(accuracy)),
            "abstained": prediction.abstained,
            "radius": prediction.radius,
            "correct": (guess == self.true_labels.cpu()) & answered,
        }

    def case(self) -> dict[str, Any]:
        """Returns the case in plain values, for result files; `target_files` only where targets are files."""
        names = self.test.classes
        files = {"target_files": list(self.target_files)} if self.target_files else {}
        intended = [] if self.goal.wrong else self.intended.tolist()
        return files | {
            "goal": name_of(self.goal),
            "target_rows": self.target_rows.tolist(),
            "target_classes": [names[label] for label in self.true_labels.tolist()],
            "intended": [names[label] for label in intended],
            "poison_class": self.poison_class,
        }

    def describe(self) -> str:
        """Says in words what is changed and what is wanted in this case."""
        names, true = self.test.classes, sorted(set(self.true_labels.tolist()))
        share, count = 100 * self.limit / len(self.train), len(self.target_rows)
        kind = "triggered " * self.goal.triggered + ("given image" if self.target_files else "test image")
        wanted = sorted(set(self.intended.tolist()))
        becomes = names[wanted[0]] if len(wanted) == 1 else "the class after its own"
        return (
            f"Up to {self.limit} of {len(self.train)} training images ({share:.3g} %; class: {self.poison_class}) may "
            f"change so that {count} {kind}{'s' * (count > 1)} of class {', '.join(names[c] for c in true)} "
            f"{'are' if count > 1 else 'is'} classified {'wrongly' if self.goal.wrong else f'as {becomes}'}; "
            f"{self.ball.describe()}"
        )

    def _useful(self) -> Tensor:
        """Scores [n] of the candidates where an attack has none of its own: all alike, or relabelled ones first."""
        labels = self.train.labels_of(self.candidates)
        return ((labels != self.taught(self.candidates)) & self.relabel).float()

    def _accuracy(self, predictor: Predictor) -> tuple[Tensor, Tensor | None]:
        """Accuracy [M] on clean test images, and the share [M, R] of them that is right with a radius of 0, 1, ..."""
        rows = self.test.ids  # all of them, in one order, so that a stored victim's answers serve every case
        prediction = predict(predictor, self.test, rows)
        right = (prediction.scores.argmax(2) == self.test.labels_of(rows).cpu()) & ~prediction.abstained
        counted = torch.ones(len(rows), dtype=torch.bool)
        if self.goal.aimed:
            counted = ~torch.isin(rows, self.target_rows.to(rows.device)).cpu()
        right = right[:, counted]
        if prediction.radius is None:
            return right.float().mean(1), None
        radius = prediction.radius[:, counted]
        steps = range(int(radius.max()) + 1 if radius.numel() else 1)
        certified = torch.stack([(right & (radius >= step)).float().mean(1) for step in steps], 1)
        return right.float().mean(1), certified

    def _check_form(self, poison: Poison) -> None:
        count, labels = len(poison.rows), poison.labels
        if poison.rows.dtype != torch.int64 or poison.rows.ndim != 1:
            raise _violation("rows", f"{poison.rows.dtype} {list(poison.rows.shape)}", "int64 row ids [P]")
        if poison.images.dtype != torch.uint8:
            raise _violation("pixels", str(poison.images.dtype), "uint8 (use ball.rounded)")
        if tuple(poison.images.shape) != (count, *self.train.shape):
            raise _violation("image shape", str(list(poison.images.shape)), str([count, *self.train.shape]))
        if labels is not None and (labels.dtype != torch.int64 or labels.shape != (count,)):
            raise _violation("labels", f"{labels.dtype} {list(labels.shape)}", f"int64 [{count}]")

    def _check_rows(self, rows: Tensor) -> None:
        if len(rows) > self.limit:
            raise _violation("number of poisons", str(len(rows)), f"at most {self.limit}")
        repeats = len(rows) - len(rows.unique())
        if repeats:
            raise _violation("rows", f"{repeats} of {len(rows)} repeat another", "each row once")
        if bool((rows.diff() < 0).any()):
            raise _violation("rows", "not in order", "sorted, with the images in the same order")
        foreign = rows[~torch.isin(rows, self.candidates.to(rows.device))]
        if len(foreign):
            allowed = f"the {len(self.candidates)} candidate rows (class: {self.poison_class})"
            raise _violation("rows", f"{len(foreign)} others, for example row {int(foreign[0])}", allowed)

    def _check_labels(self, poison: Poison) -> None:
        if poison.labels is None:
            return
        labels, classes = poison.labels.cpu(), len(self.train.classes)
        if bool(((labels < 0) | (labels >= classes)).any()):
            raise _violation("labels", f"from {int(labels.min())} to {int(labels.max())}", f"0 to {classes - 1}")
        changed = int((labels != self.train.labels_of(poison.rows).cpu()).sum())
        if changed and not self.relabel:
            raise _violation("labels", f"{changed} changed", "none (relabel is off in this threat model)")

    def _check_pixels(self, poison: Poison) -> None:
        if not len(poison):
            return
        for rows, images in zip(
            poison.rows.split(EVALUATION_BATCH), poison.images.split(EVALUATION_BATCH), strict=True
        ):
            base = self.images(rows)
            shipped = to_floats(images.to(base.device))
            outside = ~self.ball.contains(base, shipped)
            if bool(outside.any()):
                change = (shipped - base)[outside].flatten(1)
                first = int(rows[outside.to(rows.device)][0])
                seen = (
                    f"{int(outside.sum())} of {len(rows)} outside the ball, for example row {first}; "
                    f"largest change {float(change.abs().max()) * 255:.0f}/255 of a pixel, "
                    f"{float(change.norm(dim=1).max()):.3g} in L2"
                )
                raise _violation("pixels", seen, self.ball.describe())

    def _check_trigger(self, trigger: Trigger | None) -> None:
        if not self.goal.triggered and trigger is not None:
            raise _violation("trigger", name_of(trigger), "none: test images may not be changed under this goal")
        if self.goal.triggered and trigger is None:
            raise _violation("trigger", "none", "one: this goal is measured on test images that carry it")
        if trigger is not None:
            self._check_marks(trigger)

    def _check_marks(self, trigger: Trigger) -> None:
        """Compares the trigger's own statement and what it does to test images with what the goal allows."""
        clean = self.test.floats(self.target_rows[:64])
        marked = trigger(clean)
        if marked.shape != clean.shape or bool(((marked < 0) | (marked > 1)).any()):
            raise _violation(
                "triggered images", f"{list(marked.shape)} or pixels outside [0, 1]", str(list(clean.shape))
            )
        assert isinstance(self.goal, Backdoor)
        if self.goal.limit is not None:
            outside = ~self.goal.limit.contains(clean, marked)
            if bool(outside.any()):
                furthest = float((marked - clean).abs().max()) * 255
                seen = f"{int(outside.sum())} of {len(clean)} images outside it; largest change {furthest:.0f}/255"
                raise _violation("trigger", seen, self.goal.limit.describe())
            return
        touched = ((marked - clean).abs() > 1e-6).any(1).flatten(1).float().mean(1)
        area = max(trigger.area(self.test.shape), float(touched.max()))
        if area > self.goal.area + 1e-9:
            raise _violation("trigger", f"{area:.3g} of the pixels", f"at most {self.goal.area:.3g} of them")


class Curve:
    """Clean test accuracy of each victim after each epoch: watches a fit, and tells the defender nothing."""

    def __init__(self, test: ImageData) -> None:
        self.test, self.seen = test, {}

    def __call__(self, member: int, epoch: int, predictor: Predictor) -> None:
        """Measures one member after one epoch."""
        prediction = predict(predictor, self.test, self.test.ids)
        right = (prediction.scores.argmax(2) == self.test.labels_of(self.test.ids).cpu()) & ~prediction.abstained
        self.seen[member, epoch] = float(right.float().mean())

    def table(self, victims: int) -> Tensor | None:
        """Returns accuracies [M, E]; None where the fit that was watched did not have one member a victim."""
        members, epochs = ({key[i] for key in self.seen} for i in (0, 1))
        if members != set(range(victims)):
            return None
        return torch.tensor([[self.seen[member, epoch] for epoch in sorted(epochs)] for member in range(victims)])


def predict(
    predictor: Predictor, data: ImageData, rows: Tensor, change: Callable[[Tensor], Tensor] | None = None
) -> Prediction:
    """Predicts the images of `rows`, some at a time; where memory runs out the pieces are halved, with a warning.

    Args:
        predictor: What a learner returned.
        data: Where the images are.
        rows: [B] int64 row ids of `data`.
        change: Applied to the images [B, C, H, W] in [0, 1] before the models see them, for example a trigger.

    Returns:
        The prediction, on the CPU.
    """

    def work(size: int) -> list[Prediction]:
        return [predictor((change or _unchanged)(data.floats(part))) for part in rows.split(size)]

    with torch.no_grad():
        parts = shrinking(work, EVALUATION_BATCH)
    radii = [part.radius for part in parts if part.radius is not None]
    return Prediction(
        torch.cat([part.scores.cpu() for part in parts], 1),
        torch.cat([part.abstained.cpu() for part in parts], 1),
        torch.cat([radius.cpu() for radius in radii], 1) if len(radii) == len(parts) else None,
    )


def _unchanged(images: Tensor) -> Tensor:
    return images


def _margin(scores: Tensor, intended: Tensor) -> Tensor:
    """Score of the intended class minus the best other, from scores [M, T, K] and classes [T] to [M, T]."""
    index = intended.expand(len(scores), -1)[..., None]
    others = scores.scatter(2, index, -torch.inf)
    return (scores.gather(2, index)[..., 0] - others.amax(2)).float()


def _violation(what: str, seen: str, allowed: str) -> ThreatModelViolation:
    return ThreatModelViolation(f"{what}: {seen}; allowed: {allowed}")
