"""LeakTrial: one leak, inverted by one attack and compared with the images behind it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mithridate.core.data import ImageData
from mithridate.core.pixels import to_bytes, to_floats
from mithridate.core.schema import SCHEMA, name_of, to_json
from mithridate.core.seeds import derive, stream
from mithridate.core.sources import DataSource
from mithridate.core.training import Recipe
from mithridate.experiments.facts import caught_warnings, check_resumable, data_facts, environment, peak_memory_mb
from mithridate.experiments.job import Job
from mithridate.experiments.store import DataSets, Store, Stored
from mithridate.inversion.attack import Inversion
from mithridate.inversion.client import Client, LeakDefense
from mithridate.inversion.labels import label_accuracy
from mithridate.inversion.leak import Leak
from mithridate.inversion.similarity import feature_distance, identification_rank, matched, psnr, ssim

IMAGES = "images.safetensors"
"""True and found images beside a result."""


@dataclass(frozen=True, kw_only=True)
class LeakTrial(Job):
    """One leak attacked once. Everything random follows from its two seeds.

    >>> from mithridate import Digits, InvertingGradients, Recipe
    >>> LeakTrial(data=Digits(), recipe=Recipe(epochs=0), attack=InvertingGradients()).label()
    'inverting-gradients, batch 1, seed 0'
    """

    kind: ClassVar[str] = "leak"
    data: DataSource
    """Where the images come from. The client's are drawn from its test set, on which no model was trained."""
    recipe: Recipe
    """The model: trained; untrained with epochs=0; or a checkpoint, with start_from and epochs=0."""
    attack: Inversion
    """Reconstructs the images."""
    client: Client = Client()
    """What a client shares when it does not defend itself."""
    defenses: tuple[LeakDefense, ...] = ()
    """What it does to defend itself, in this order."""
    adaptive: bool = False
    """Whether the attacker knows the defences; else it takes what was shared for that of an undefended client with as
    many images."""
    distinct: bool = False
    """Whether the images of a batch have different labels; always so for attacks that need it."""
    candidates: int = 1000
    """Images among which the true one is to be picked out by its reconstruction."""
    seed: int = 0
    """Draws images, noise and the start of the search; equal seeds pair the trials of different cells."""
    model_seed: int = 0
    """Draws the model, which all trials of a study share."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "defenses", tuple(self.defenses))
        if self.candidates < 2:
            raise ValueError(f"candidates is {self.candidates}; to pick an image out takes at least one other")
        self.defended  # noqa: B018 (settings that do not fit together are found here)

    @property
    def defended(self) -> Client:
        """The client with its defences.

        Raises:
            ValueError, TypeError: Defences that do not fit the client or each other.
        """
        client = self.client
        for defense in self.defenses:
            client = defense(client)
        return client

    def label(self) -> str:
        against = " + ".join(name_of(defense) for defense in self.defenses)
        knowing = " adaptive" if self.adaptive else ""
        return (
            f"{name_of(self.attack)}{knowing}{f' vs {against}' if against else ''}, batch {self.client.batch}, "
            f"seed {self.seed}"
        )

    def work(self, fingerprint: str) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"data": fingerprint, "kind": self.kind}

    def shared_work(self, fingerprint: str) -> Any:
        trained = {"recipe": self.recipe, "data": fingerprint, "seed": self.model_seed}
        return trained if self.recipe.epochs else None

    def run(self, store: Store, device: str = "cpu", *, keep_models: bool = False) -> LeakResult:
        """Shares, inverts, compares; the images of both sides are stored beside the result.

        Raises:
            ValueError: The data do not have the images that the client needs, or the attack cannot serve the leak.
        """
        clock = _Clock()
        with caught_warnings() as messages:
            data = store.data(self.data, device)
            check_resumable(self.work(data.fingerprint))
            model, fits = self.model(data, store)
            clock.lap("model")
            rows = self.rows(data.test)
            truth, labels = data.test.floats(rows), data.test.labels_of(rows)
            leak, known = self.leaks(model, truth, labels)
            clock.lap("share")
            found = self.attack.reconstruct(known, derive(self.seed, "attack"))
            clock.lap("attack")
            order = matched(found.images.cpu(), truth.cpu(), found.labels.cpu(), labels.cpu())
            images = found.images[order.to(found.images.device)].to(truth)
            catalogue = self.catalogue(data, rows)
            outcome = similarity(images, truth, catalogue) | {
                "feature_distance": _features(model, images, truth),
                "label_accuracy": label_accuracy(found.labels.cpu(), labels.cpu()),
                "value": found.value,
            }
            mean = to_floats(catalogue[len(truth) :]).mean(0, keepdim=True).expand_as(truth).to(truth)
            control = similarity(mean, truth, catalogue)
        name = store.identity(self.work(data.fingerprint))
        _keep(store, name, images, truth)
        clock.lap("evaluate")
        return LeakResult(
            trial=name,
            outcome=outcome,
            control={key: control[key] for key in ("psnr", "ssim", "rank")},
            case={
                "rows": rows.tolist(),
                "labels": labels.tolist(),
                "found_labels": found.labels[order.to(found.labels.device)].tolist(),
            },
            client=_client_facts(leak),
            guarantees=to_json(self.defended.guarantees),
            notes=dict(found.notes),
            data=data_facts(data.fingerprint, data.train, data.test, None),
            models=fits,
            seconds=clock.seconds,
            peak_memory_mb=peak_memory_mb(),
            threads=torch.get_num_threads(),
            environment=environment(device),
            warnings=list(dict.fromkeys(str(message.message) for message in messages)),
        )

    # --- the steps ---

    def model(self, data: DataSets, store: Store) -> tuple[nn.Module, list[str]]:
        """Returns the model in eval mode, and the id of its stored fit if it was trained."""
        seed = derive(self.model_seed, "model")
        if not self.recipe.epochs:
            return self.recipe.module(data.train, seed).eval(), []
        module = Stored(self.recipe, store).fit([data.train], [seed]).models[0]
        return module, [store.fit_of[module]]

    def rows(self, test: ImageData) -> Tensor:
        """Draws the test rows [B] of the client's images; those of a smaller batch are the first of a larger one's.

        Raises:
            ValueError: Fewer images, or fewer classes, than the client needs.
        """
        count = self.defended.batch
        if count >= len(test):
            raise ValueError(f"the client shares {count} images, but the test set has {len(test)}; use a smaller batch")
        order = test.ids[torch.randperm(len(test), generator=stream(self.seed, "images")).to(test.device)]
        if not (self.distinct or self.attack.distinct_labels):
            return order[:count]
        labels = test.labels_of(order)
        first = torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()]).sort().values
        if count > len(first):
            raise ValueError(
                f"a batch of {count} images with different labels needs {count} classes, but the test set has "
                f"{len(first)}; use a smaller batch"
            )
        return order[first[:count]]

    def leaks(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Leak, Leak]:
        """Returns the leak, and the same as the attacker takes it."""
        defended, seed = self.defended, derive(self.seed, "client")
        leak = defended.share(model, images, labels, seed=seed)
        if self.adaptive or not self.defenses:
            return leak, leak
        undefended = replace(self.client, batch=defended.batch, tells_statistics=False)
        return leak, leak.believed(undefended.share(model, images, labels, seed=seed))

    def catalogue(self, data: DataSets, rows: Tensor) -> Tensor:
        """Returns the candidates [N, C, H, W] uint8: the true images, then others of the test and training sets."""
        rng = stream(self.seed, "candidates")
        others = [data.test.drop(rows), data.train]
        count = max(0, self.candidates - len(rows))
        pick = torch.randperm(sum(map(len, others)), generator=rng)[:count]
        near = pick[pick < len(others[0])]
        far = pick[pick >= len(others[0])] - len(others[0])
        parts = [data.test.pixels(rows)]
        parts += [part.pixels(part.ids[some.to(part.device)]) for part, some in zip(others, (near, far), strict=True)]
        return torch.cat([part.contiguous() for part in parts])


@dataclass(frozen=True, kw_only=True)
class LeakResult:
    """Raw outcomes of the inversion of one leak."""

    trial: str
    """Id of the trial."""
    outcome: dict[str, Any]
    """``psnr``, ``ssim``, ``rank``, ``feature_distance`` per image; ``candidates``, ``label_accuracy``, ``value``."""
    control: dict[str, Any]
    """``psnr``, ``ssim``, ``rank`` of the mean of the other candidates, which knows nothing of the leak."""
    case: dict[str, Any]
    """Test rows, true and found labels, in the order of the true images."""
    client: dict[str, Any]
    """Images, sharing and how many numbers were shared."""
    guarantees: list[dict[str, Any]]
    """What the client's defences prove about its message."""
    notes: dict[str, float]
    """What the attack says of its search."""
    data: dict[str, Any]
    """Fingerprint, sizes, class names, shape, decoder."""
    models: list[str]
    """Id of the model's fit, where it was trained."""
    seconds: dict[str, float]
    """Time of each phase."""
    peak_memory_mb: float | None
    """Largest resident memory of the process so far; None where the system does not say."""
    threads: int
    """Torch threads; results are bit-identical for an equal number."""
    environment: dict[str, str]
    """Versions and machine."""
    warnings: list[str] = field(default_factory=list)
    """Python warnings, each once."""
    kind: str = LeakTrial.kind
    schema: int = SCHEMA
    """Version of this format."""

    def to_json(self) -> dict[str, Any]:
        """Returns the content of ``result.json``."""
        return asdict(self)


def similarity(images: Tensor, truth: Tensor, catalogue: Tensor) -> dict[str, Any]:
    """Compares images with the true ones [B, C, H, W], which are the first B of a catalogue of candidates."""
    own = torch.arange(len(truth))
    return {
        "psnr": psnr(images, truth).tolist(),
        "ssim": ssim(images, truth).tolist(),
        "rank": identification_rank(images, catalogue, own.to(catalogue.device)).tolist(),
        "candidates": len(catalogue),
    }


class _Clock:
    """Seconds per phase, one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self._last = round(now - self._last, 3), now


def _features(model: nn.Module, images: Tensor, truth: Tensor) -> Sequence[float | None]:
    try:
        with torch.no_grad():
            return feature_distance(model, images, truth).tolist()
    except ValueError:  # a model without a last Linear
        return [None] * len(truth)


def _client_facts(leak: Leak) -> dict[str, Any]:
    numbers = sum(part.numel() for part in leak.tensors)
    return {"count": leak.count, "sharing": to_json(leak.sharing), "numbers": numbers}


def _keep(store: Store, trial: str, images: Tensor, truth: Tensor) -> None:
    from safetensors.torch import save_file

    path = store.trial_folder(trial) / IMAGES
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = {"found": images, "true": truth}
    draft = path.with_suffix(".partial")
    save_file({name: to_bytes(value).cpu().contiguous() for name, value in pixels.items()}, draft)
    draft.replace(path)
