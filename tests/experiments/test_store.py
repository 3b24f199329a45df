"""The results folder: files whole or absent, locks, fits and poisons made once and read back to the bit."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mithridate.core.data import ImageData
from mithridate.core.seeds import derive
from mithridate.experiments.files import locked, making, read_json, write_json
from mithridate.experiments.recall import Memory
from mithridate.experiments.store import Crafted, Store, Stored, load_model
from mithridate.poisoning.poison import Poison
from tests.experiments.fakes import LINEAR, Linear, Plain, digits, recipe


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return model.state_dict()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return state(a).keys() == state(b).keys() and all(torch.equal(v, state(b)[k]) for k, v in state(a).items())


def fits(store: Store) -> list[Path]:
    return sorted(path for path in (store.folder / "fits").glob("*") if path.is_dir())


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_json_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert read_json(tmp_path / "a.json") == {"old": 1}


def test_a_damaged_json_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"half":')
    with pytest.raises(ValueError, match=r"a\.json is damaged .* delete it"):
        read_json(tmp_path / "a.json")


def test_one_holder_of_a_lock_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with locked(path, wait=False) as first, locked(path, wait=False) as second:
        assert (first, second) == (True, False)
    assert not path.exists()
    with locked(path, wait=False) as again:
        assert again


def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    code = (
        "import sys, time; from pathlib import Path; from mithridate.experiments.files import locked\n"
        "with locked(Path(sys.argv[1]), wait=True): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with locked(path, wait=False) as mine:
            assert not mine
        process.kill()
    with locked(path, wait=False) as mine:
        assert mine


def test_waiting_for_a_lock_whose_file_is_removed_meanwhile(tmp_path: Path) -> None:
    """Each holder removes the file; those who waited on the removed one must not hold it beside a new holder."""
    path, inside, most = tmp_path / "x.lock", [], []

    def work() -> None:
        for _ in range(20):
            with locked(path, wait=True):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80
    assert max(most) == 1


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "fits" / "abc"

    def stop_half_way() -> None:
        with making(final, "last") as partial:
            assert partial is not None
            (partial / "first").write_text("1")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        stop_half_way()
    assert list(final.parent.iterdir()) == []
    final.mkdir()  # left by something else, incomplete
    with making(final, "last") as partial:
        assert partial is not None
        (partial / "last").write_text("1")
    assert [path.name for path in final.iterdir()] == ["last"]
    with making(final, "last") as partial:
        assert partial is None


def test_memory_forgets_what_was_used_longest_ago() -> None:
    memory = Memory(limit=10)
    for name in "abc":
        memory.put(name, name, size=4)
        memory.get("a")
    assert [memory.get(name) for name in "abc"] == ["a", None, "c"]
    memory.put("a", "A", size=9)
    assert (memory.get("a"), memory.get("c"), memory.size) == ("A", None, 9)
    memory.put("big", 0, size=11)
    assert (memory.get("big"), memory.size) == (None, 0)


# --- fits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"model": "convnet:width=2", "epochs": 1}])
def test_a_stored_fit_equals_a_plain_one_and_is_trained_once(tmp_path: Path, settings: dict) -> None:
    train, how = digits(), recipe(**settings)
    plain = how.fit([train, train], [0, 1])
    first = Stored(how, Store(tmp_path)).fit([train, train], [0, 1])
    stamps = [path.stat().st_mtime_ns for path in (tmp_path / "fits").glob("*/*")]
    again = Stored(how, Store(tmp_path)).fit([train, train], [0, 1])
    images = train.floats(train.ids)
    for stored in (first, again):
        assert all(same(a, b) for a, b in zip(plain.models, stored.models, strict=True))
        assert stored.history == plain.history
        assert stored.kept == plain.kept == [None, None]
        assert torch.equal(stored.predictor(images).scores, plain.predictor(images).scores)
        assert not any(model.training for model in stored.models)
    assert [path.stat().st_mtime_ns for path in (tmp_path / "fits").glob("*/*")] == stamps
    assert len(fits(Store(tmp_path))) == 2


def test_recipe_content_and_seed_make_the_identity(tmp_path: Path) -> None:
    train, store = digits(), Store(tmp_path)
    changed = train.replace([3], torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    copy = ImageData(train.images.clone(), train.labels.clone(), train.classes)
    for how, data, seed, number in [
        (recipe(), train, 0, 1),
        (recipe(), copy, 0, 1),
        (recipe(), train, 1, 2),
        (recipe(), changed, 0, 3),
        (recipe(epochs=1), train, 0, 4),
    ]:
        Stored(how, store).fit([data], [seed])
        assert len(fits(store)) == number


def test_start_from_counts_by_content(tmp_path: Path) -> None:
    train, store = digits(), Store(tmp_path / "run")
    body = Stored(recipe(), store).fit([train], [0]).models[0]
    weights = store.fit_folder(store.fit_of[body]) / "weights.safetensors"
    shutil.copy(weights, tmp_path / "copy.safetensors")
    for path in (weights, tmp_path / "copy.safetensors"):
        head = Stored(recipe(start_from=path, trainable="head"), store).fit([train], [0]).models[0]
    assert len(fits(store)) == 2
    assert [name for name, p in head.named_parameters() if not p.requires_grad] == []  # this model is all head
    other = Stored(recipe(), store).fit([train], [1]).models[0]
    shutil.copy(store.fit_folder(store.fit_of[other]) / "weights.safetensors", tmp_path / "copy.safetensors")
    Stored(recipe(start_from=tmp_path / "copy.safetensors", trainable="head"), store).fit([train], [0])
    assert len(fits(store)) == 4


def test_a_frozen_body_is_frozen_when_read_back(tmp_path: Path) -> None:
    train, store, net = digits(), Store(tmp_path), recipe(model="convnet:width=2", epochs=1)
    body = Stored(net, store).fit([train], [0]).models[0]
    head = replace(net, start_from=store.fit_folder(store.fit_of[body]) / "weights.safetensors", trainable="head")
    stored, plain = Stored(head, store).fit([train], [0]).models[0], head.fit([train], [0]).models[0]
    assert [p.requires_grad for p in stored.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert sum(p.requires_grad for p in stored.parameters()) == 2
    assert same(stored, plain)


@pytest.mark.parametrize("damage", ["truncated", "other weights", "no weights", "no json"])
def test_damaged_fits_are_made_again(tmp_path: Path, damage: str) -> None:
    train, store = digits(), Store(tmp_path)
    first = Stored(recipe(), store).fit([train], [0])
    folder = fits(store)[0]
    if damage == "truncated":
        (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-8])
    elif damage == "other weights":
        other = Stored(recipe(), store).fit([train], [1]).models[0]
        shutil.copy(store.fit_folder(store.fit_of[other]) / "weights.safetensors", folder)
    elif damage == "no weights":
        (folder / "weights.safetensors").unlink()
    else:
        (folder / "fit.json").write_text("{")
    with pytest.warns(UserWarning, match=r"damaged .* training it again now"):
        again = Stored(recipe(), Store(tmp_path)).fit([train], [0])
    assert same(first.models[0], again.models[0])


def test_workers_share_out_fits_and_wait_for_those_that_others_make(tmp_path: Path) -> None:
    """While another holds the first fit, the second is made; then the first is waited for, and not trained twice."""
    train, store, found = digits(), Store(tmp_path), []
    learner = Stored(recipe(), store)
    ids = [fit.id for fit in learner._fits([recipe()] * 2, [train, train], [0, 1])]
    elsewhere = Store(tmp_path / "elsewhere")
    Stored(recipe(), elsewhere).fit([train], [0])
    with locked(tmp_path / "fits" / f"{ids[0]}.lock", wait=True):
        thread = threading.Thread(target=lambda: found.append(learner.fit([train, train], [0, 1])))
        thread.start()
        while not (store.fit_folder(ids[1]) / "fit.json").exists():
            time.sleep(0.01)
        assert not store.fit_folder(ids[0]).exists()
        shutil.copytree(elsewhere.fit_folder(ids[0]), store.fit_folder(ids[0]))
        stamp = (store.fit_folder(ids[0]) / "fit.json").stat().st_mtime_ns
    thread.join()
    assert len(found[0].models) == 2
    assert (store.fit_folder(ids[0]) / "fit.json").stat().st_mtime_ns == stamp


def test_only_plain_unwatched_recipes_are_stored(tmp_path: Path) -> None:
    train, store, own, seen = digits(), Store(tmp_path), Plain(), []
    own.calls.clear()
    assert Stored(own, store).recipe is None
    Stored(own, store).fit([train], [4], trusted=train)
    assert own.calls == [(1, [4], train, None)]
    Stored(recipe(), store).fit([train], [0], watch=lambda member, epoch, _: seen.append((member, epoch)))
    assert seen == [(0, 0), (0, 1)]
    assert fits(store) == []


def test_no_members(tmp_path: Path) -> None:
    assert len(Stored(recipe(), Store(tmp_path)).fit([], []).models) == 0


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_same_question_is_answered_from_memory(tmp_path: Path) -> None:
    train, store = digits(), Store(tmp_path)
    images = train.floats(train.ids)
    first = Stored(recipe(), store).fit([train, train], [0, 1]).predictor(images)
    calls = Linear.calls
    fitted = Stored(recipe(), store).fit([train, train, train], [1, 0, 1])
    again = fitted.predictor(images.clone())
    assert Linear.calls == calls
    assert torch.equal(again.scores, first.scores[[1, 0, 1]])
    assert torch.equal(again.abstained, first.abstained[[1, 0, 1]])
    fitted.predictor(images[:50])
    assert Linear.calls == calls + 2  # new images, two distinct members


def test_a_model_that_was_changed_is_asked_itself(tmp_path: Path) -> None:
    train, store = digits(), Store(tmp_path)
    images, learner = train.floats(train.ids), Stored(recipe(), store)
    fitted = learner.fit([train], [0])
    before = fitted.predictor(images).scores
    with torch.no_grad():
        fitted.models[0].network.last.bias[0] += 100
    assert torch.allclose(fitted.predictor(images).scores[..., 0], before[..., 0] + 100)
    assert torch.equal(learner.fit([train], [0]).predictor(images).scores, before)


def test_a_worker_keeps_one_store_per_folder(tmp_path: Path) -> None:
    sent = pickle.dumps(Store(tmp_path))
    assert pickle.loads(sent) is pickle.loads(sent)
    assert pickle.loads(sent).folder == tmp_path


def test_lambdas_are_told_apart_and_not_resumed(tmp_path: Path) -> None:
    """Their source is equal, what they make is not."""
    store = Store(tmp_path)
    small, large = (
        recipe(model=lambda classes, w=w: torch.nn.Sequential(torch.nn.Flatten(), *hidden(w, classes))) for w in (2, 3)
    )
    assert len({store.identity(small), store.identity(large), store.identity(recipe())}) == 3
    assert store.identity(small) == store.identity(small)
    assert Store(tmp_path).identity(small) != store.identity(small)
    assert Store(tmp_path).identity(recipe()) == store.identity(recipe())
    for how in (small, large):
        Stored(how, store).fit([digits()], [0])
    assert len(fits(store)) == 2


def hidden(width: int, classes: int) -> list[torch.nn.Module]:
    return [torch.nn.Linear(64, width), torch.nn.Linear(width, classes)]


def test_a_stored_model_loads_without_data(tmp_path: Path) -> None:
    train, store = digits(), Store(tmp_path)
    for how in (recipe(), recipe(model="convnet:width=2")):
        model = Stored(how, store).fit([train], [0]).models[0]
        loaded = load_model(store.fit_folder(store.fit_of[model]))
        assert same(model, loaded)
        assert torch.equal(loaded(train.floats(train.ids)), model(train.floats(train.ids)))
    assert how.model != LINEAR


# --- poisons ---------------------------------------------------------------------------------------------------------


def crafted(train: ImageData) -> Crafted:
    rows = torch.tensor([1, 4])
    poison = Poison(rows, train.pixels(rows) // 2, labels=torch.tensor([0, 1]), notes={"loss": 0.5})
    return Crafted(poison, train.pixels(rows), train.pixels(torch.arange(20)), {"work": {"seed": 1}})


def test_a_poison_is_crafted_once_and_kept_with_its_clean_pixels(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    train, store, calls = digits(), Store(tmp_path), []

    def craft() -> Crafted:
        calls.append(1)
        return crafted(train)

    found = [store.poison("abc", craft), Store(tmp_path).poison("abc", craft)]
    assert calls == [1]
    for poison in found:
        assert torch.equal(poison.images, crafted(train).poison.images)
        assert poison.notes == {"loss": 0.5}
    kept = load_file(store.poison_folder("abc") / "poison.safetensors")
    assert torch.equal(kept["base"], train.pixels(torch.tensor([1, 4])))
    assert len(kept["target"]) == 16
    assert read_json(store.poison_folder("abc") / "manifest.json")["work"] == {"seed": 1}


def test_a_damaged_poison_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.poison("abc", lambda: crafted(digits()))
    (store.poison_folder("abc") / "poison.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"poisons.abc is damaged .* crafts it again"):
        store.poison("abc", lambda: crafted(digits()))


def test_an_attack_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def craft() -> Crafted:
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        store.poison("abc", craft)
    assert list((tmp_path / "poisons").iterdir()) == []
    assert len(store.poison("abc", lambda: crafted(digits()))) == 2


def test_seeds_of_fits_may_be_63_bits_long(tmp_path: Path) -> None:
    seed = derive(0, "victim", 0)
    assert seed > 2**53  # more than a JSON reader with floats would keep
    store = Store(tmp_path)
    Stored(recipe(), store).fit([digits()], [seed])
    assert read_json(fits(store)[0] / "fit.json")["seed"] == seed
