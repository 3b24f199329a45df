"""A results folder: work is paid once, finished work is never lost, two workers never do the same thing twice.

Four stages are addressed by content and shared by all trials of a folder::

    study.json        schema, data fingerprints, versions, command
    fits/<id>/        weights.safetensors, fit.json
    courses/<id>/     epochs.safetensors, course.json
    poisons/<id>/     manifest.json, poison.safetensors
    trials/<id>/      trial.json, result.json (written last: it exists = the trial is done) or error.json

An id is a hash of everything the work depends on, so equal work has an equal id. Folders appear under their final name
only when complete; files are written under another name and renamed. Whoever makes something holds ``<id>.lock``, which
the operating system releases when the process ends, however it ends.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.learners import Mixed, TrainFunction
from mithridate.core.members import side_by_side
from mithridate.core.progress import track
from mithridate.core.schema import SCHEMA, from_json, identity, resumable, to_json
from mithridate.core.sources import DataSource
from mithridate.core.states import Stage
from mithridate.core.training import Fitted, Learner, Recipe, Watch, Wrapper
from mithridate.experiments import courses
from mithridate.experiments.files import digest, making, read_json, write_json
from mithridate.experiments.recall import Member, Memory, remembering
from mithridate.poisoning.poison import Poison

STAGES = ("fits", "courses", "poisons", "trials")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)
"""What reading a damaged file can raise."""
WEIGHTS = "weights.safetensors"
SHOWN_TARGETS = 16
"""Target images kept beside a poison for the report; a backdoor has a thousand."""
REMEMBERED_BYTES = 64 * 2**20
UNSTORED_BYTES = 2 * 2**30
"""For models that cannot go to disk: what is forgotten of them is trained again."""
DATA_SETS_IN_MEMORY = 2
NO_DATA = "no data set"
"""What stands for the content of the data where a job takes none."""


class DataSets(NamedTuple):
    """A loaded data source."""

    train: ImageData
    test: ImageData
    fingerprint: str
    """Of both together: part of every identity."""


# --- the folder ------------------------------------------------------------------------------------------------------


class Crafted(NamedTuple):
    """A new poison, and what is kept beside it."""

    poison: Poison
    base: Tensor
    """[P, C, H, W] uint8, the clean pixels of its rows."""
    target: Tensor
    """[T, C, H, W] uint8, the test images aimed at."""
    meta: dict[str, Any]
    """JSON-able settings, fingerprint and versions for the manifest."""


class Store:
    """A results folder and what this process remembers of it.

    Args:
        folder: Made when the first thing is put there.

    >>> store = Store("runs/example")
    >>> store.identity({"seed": 1}) == Store("runs/other").identity({"seed": 1})
    True
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.predictions = Memory(REMEMBERED_BYTES)
        self.members = Memory(REMEMBERED_BYTES)
        self.unstored = Memory(UNSTORED_BYTES)
        self.fit_of: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        """Which stored fit a module was read from."""
        self._session = uuid.uuid4().hex
        self._data: OrderedDict[tuple[str, str], DataSets] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return _in_this_process, (self.folder,)  # a worker process keeps its memory from one trial to the next

    def identity(self, work: Any) -> str:
        """Returns the content address of work, given as settings.

        What cannot be named in another process (a lambda, a local function) gets an address that only this store object
        knows: such work is shared while it lives and done again in the next run.
        """
        return identity(work if resumable(work) else {"work": work, "session": self._session, "objects": repr(work)})

    def data(self, source: DataSource, device: str = "cpu") -> DataSets:
        """Loads a data source, once per process."""
        key = (json.dumps(to_json(source), sort_keys=True), device)
        if key not in self._data:
            train, test = source.load(device)
            self._data[key] = DataSets(train, test, identity([train.fingerprint(), test.fingerprint()]))
        self._data.move_to_end(key)
        while len(self._data) > DATA_SETS_IN_MEMORY:
            self._data.popitem(last=False)
        return self._data[key]

    def fingerprint(self, source: DataSource | None, device: str = "cpu") -> str:
        """Returns the content of a data source in short; of none, words that say so."""
        return NO_DATA if source is None else self.data(source, device).fingerprint

    # fits

    def fit_folder(self, fit: str) -> Path:
        """Returns the folder of a fit id."""
        return self.folder / "fits" / fit

    def keep_fit(self, fit: Fit, *, wait: bool = True) -> None:
        """Trains one member and stores it, unless it is there or (without `wait`) another process is at it."""
        with making(self.fit_folder(fit.id), "fit.json", wait=wait) as partial:
            if partial is None:
                return
            fitted = fit.learner.fit([fit.data], [fit.seed])
            kept = fitted.kept[0] if fitted.kept else None
            save_file(_plain(fitted.models[0].state_dict()), partial / WEIGHTS)
            notes = {
                "schema": SCHEMA,
                "recipe": to_json(fit.learner),
                "data": fit.fingerprint,
                "classes": fit.data.classes,
                "shape": fit.data.shape,
                "seed": fit.seed,
                "history": {name: series[0] for name, series in fitted.history.items()},
                "frozen": [name for name, p in fitted.models[0].named_parameters() if not p.requires_grad],
                "kept": None if kept is None else kept.tolist(),
                "weights": digest(partial / WEIGHTS),
            }
            write_json(partial / "fit.json", notes)

    def read_fit(self, fit: Fit) -> Member:
        """Rebuilds a stored member: the untrained module of the learner, and the stored weights in it.

        Raises:
            ValueError: The stored files are damaged.
        """
        folder = self.fit_folder(fit.id)
        try:
            notes = read_json(folder / "fit.json")
            if notes["weights"] != digest(folder / WEIGHTS):
                raise ValueError(f"{WEIGHTS} is not the file that was stored")
            module = fit.learner.module(fit.data, fit.seed)
            module.load_state_dict(load_file(folder / WEIGHTS))
            for name in notes["frozen"]:
                module.get_parameter(name).requires_grad_(False)
            kept = None if notes["kept"] is None else torch.tensor(notes["kept"], dtype=torch.int64)
            return Member(fit.id, module, notes["history"], kept)
        except UNREADABLE as error:
            raise ValueError(f"{folder} is damaged ({error}); delete it, and the next run trains it again") from error

    def course_folder(self, course: str) -> Path:
        """Returns the folder of a training that is kept epoch by epoch."""
        return self.folder / "courses" / course

    # poisons

    def poison_folder(self, poison: str) -> Path:
        """Returns the folder of a poison id."""
        return self.folder / "poisons" / poison

    def poison(self, poison: str, craft: Callable[[], Crafted]) -> Poison:
        """Returns a poison by its id; crafts and stores it if no one has.

        Raises:
            ValueError: The stored files are damaged.
        """
        final = self.poison_folder(poison)
        with making(final, "manifest.json") as partial:
            if partial is not None:
                made = craft()
                made.poison.save(partial, base=made.base, target=made.target[:SHOWN_TARGETS], id=poison, **made.meta)
        try:
            return Poison.load(final)
        except UNREADABLE as error:
            raise ValueError(f"{final} is damaged ({error}); delete it, and the next run crafts it again") from error

    # trials

    def trial_folder(self, trial: str) -> Path:
        """Returns the folder of a trial id."""
        return self.folder / "trials" / trial

    def finished(self, trial: str) -> bool:
        """Tells whether a trial has a result that can be read."""
        try:
            return read_json(self.trial_folder(trial) / "result.json")["trial"] == trial
        except UNREADABLE:
            return False

    def result(self, trial: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (trial.json, result.json) of a finished trial."""
        folder = self.trial_folder(trial)
        return read_json(folder / "trial.json"), read_json(folder / "result.json")


@functools.lru_cache(maxsize=1)
def _in_this_process(folder: Path) -> Store:
    return Store(folder)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors as safetensors wants them: on the CPU, contiguous, none sharing memory."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def load_model(folder: str | Path) -> nn.Module:
    """Loads a stored model, in eval mode on the CPU: images [B, C, H, W] in [0, 1] to logits [B, K].

    Args:
        folder: ``<results folder>/fits/<id>``.

    Raises:
        FileNotFoundError: No stored fit there.
        ValueError: Damaged files; or a model function that this process cannot import.
    """
    folder = Path(folder)
    notes = read_json(folder / "fit.json")
    learner = from_json(notes["recipe"], Learner)
    if isinstance(learner, Recipe):
        learner = replace(learner, start_from=None, trainable="all", fresh_head=False)
    elif not isinstance(learner, TrainFunction):
        raise ValueError(f"{folder} holds no recipe; was it written by mithridate?")
    blank = torch.zeros(2, *notes["shape"], dtype=torch.uint8)  # sizes the model; its numbers come from the file
    module = learner.module(ImageData(blank, torch.tensor([0, 1]), tuple(notes["classes"])), notes["seed"])
    module.load_state_dict(load_file(folder / WEIGHTS))
    return module.eval()


# --- the learner -----------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """One member to train: its identity is learner, content of the data, seed; `start_from` counts by its content."""

    id: str
    learner: Recipe | TrainFunction
    data: ImageData
    fingerprint: str
    seed: int


class Stored(Wrapper):
    """A learner whose fits come from a results folder and go there.

    Recipes are stored, alone or mixed, and so is training code of the user's own where something says how to build its
    module; where nothing does, its models are shared inside this process. Other learners are passed on. A stored fit
    is returned as read back from disk, fresh or not, so that a resumed study equals an uninterrupted one to the bit. A
    watched fit is trained again: it must run.

    Args:
        learner: What trains.
        store: Where the fits are.

    >>> Stored(Recipe(epochs=3), Store("runs/example")).recipe.epochs
    3
    """

    def __init__(self, learner: Learner, store: Store) -> None:
        self.learner = learner
        self.store = store

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Returns one member per (data set, seed), each trained or read."""
        learners = _parts(self.learner, len(seeds))
        if watch is not None or learners is None:
            return self.learner.fit(datasets, seeds, trusted=trusted, watch=watch)
        guarantees = self.learner.guarantees(datasets) if isinstance(self.learner, Recipe) else ()
        fits = self._fits(learners, datasets, seeds)
        on_disk = [fit for fit in fits if _rebuilt(fit.learner)]
        for wait in (False, True):  # first what no other worker is making, then wait for what they make
            self._train([fit for fit in on_disk if not self.store.fit_folder(fit.id).exists()], wait=wait)
        members = [self._member(fit) if _rebuilt(fit.learner) else self._unstored(fit) for fit in fits]
        history = {name: [m.history[name] for m in members] for name in members[0].history} if members else {}
        models = Ensemble([m.module.eval() for m in members])
        predictor = remembering(members, self.store.predictions)
        return Fitted(models, predictor, history, [m.kept for m in members], guarantees)

    def follow(self, datasets: Sequence[ImageData], seeds: Sequence[int]) -> list[Iterator[Stage]]:
        """Follows one training per (data set, seed), each trained or read; one too large for that is trained anew."""
        recipes = [part for part in _parts(self.learner, len(seeds)) or () if isinstance(part, Recipe)]
        if not recipes:
            return self.learner.follow(datasets, seeds)
        members = list(zip(recipes, datasets, seeds, strict=True))
        if not all(courses.course(self.store, *member).fits_on_disk() for member in members):
            return self.learner.follow(datasets, seeds)
        for member in members:
            courses.course(self.store, *member).keep(wait=False)  # first what no other worker is making
        return [courses.stages(self.store, *member) for member in members]

    def _train(self, fits: list[Fit], *, wait: bool) -> None:
        keep = functools.partial(self.store.keep_fit, wait=wait)
        if side_by_side(keep, fits, [fit.data for fit in fits]) is None:
            for fit in track(fits, "training", total=len(fits)):
                keep(fit)

    def _fits(
        self, learners: Sequence[Recipe | TrainFunction], datasets: Sequence[ImageData], seeds: Sequence[int]
    ) -> list[Fit]:
        fingerprints = {id(data): data.fingerprint() for data in {id(data): data for data in datasets}.values()}
        fits = []
        for learner, data, seed in zip(learners, datasets, seeds, strict=True):
            content = fingerprints[id(data)]
            name = self.store.identity({"recipe": learner, "data": content, "seed": seed})
            fits.append(Fit(name, learner, data, content, seed))
        return fits

    def _member(self, fit: Fit) -> Member:
        key = (fit.id, str(fit.data.device))
        member = self.store.members.get(key)
        if member is None:
            member = self._read(fit)
            self.store.members.put(key, member, _bytes(member.module))
        module = copy.deepcopy(member.module)  # the caller may change it
        self.store.fit_of[module] = fit.id
        return member._replace(module=module)

    def _unstored(self, fit: Fit) -> Member:
        key = (fit.id, str(fit.data.device))
        member = self.store.unstored.get(key)
        if member is None:
            member = Member(fit.id, fit.learner.fit([fit.data], [fit.seed]).models[0], {}, None)
            self.store.unstored.put(key, member, _bytes(member.module))
        try:
            return member._replace(module=copy.deepcopy(member.module))
        except Exception as error:  # whatever the user's module raises, training it anew is the way out
            warnings.warn(
                f"the module of {type(member.module).__name__} cannot be copied ({error}), so it is trained again "
                "wherever it is needed; return a plain torch.nn.Module, without its trainer",
                stacklevel=4,
            )
            self.store.unstored.drop(key)
            return member

    def _read(self, fit: Fit) -> Member:
        try:
            return self.store.read_fit(fit)
        except ValueError as error:
            warnings.warn(f"{error}; training it again now", stacklevel=4)
        shutil.rmtree(self.store.fit_folder(fit.id), ignore_errors=True)
        self.store.keep_fit(fit)
        return self.store.read_fit(fit)


def _parts(learner: Learner, members: int) -> list[Recipe] | list[TrainFunction] | None:
    """What trains each member; None where that is not for the store to know."""
    if isinstance(learner, Mixed):
        return learner.dealt(members)
    if isinstance(learner, Recipe):
        return [learner] * members
    return [learner] * members if isinstance(learner, TrainFunction) else None


def _rebuilt(learner: Recipe | TrainFunction) -> bool:
    """Whether a module can be built from the learner alone, for weights from disk."""
    return isinstance(learner, Recipe) or learner.model is not None


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())
