"""Poison: applying it, keeping it, and noticing that a file was changed."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from mithridate.poisoning.poison import Poison, load_tensors, read_manifest
from mithridate.poisoning.threat import ThreatModel
from mithridate.poisoning.triggers import PatchTrigger
from tests.poisoning.cases import three_classes

TRAIN, TEST = three_classes()


def made(**settings) -> Poison:
    rows = torch.tensor([3, 8])
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Poison(rows, images, **settings)


def test_applying_replaces_these_rows_and_leaves_the_set_alone() -> None:
    before = TRAIN.fingerprint()
    poison = made(labels=torch.tensor([2, 2]))
    poisoned = poison.apply(TRAIN)
    expected = TRAIN.images.clone()
    expected[[3, 8]] = poison.images
    assert torch.equal(poisoned.pixels(poisoned.ids), expected)
    assert poisoned.labels_of(torch.tensor([3, 4, 8])).tolist() == [2, 1, 2]
    assert len(poisoned) == len(TRAIN)
    assert TRAIN.fingerprint() == before == three_classes()[0].fingerprint()


def test_labels_stay_where_none_are_given() -> None:
    assert torch.equal(made().apply(TRAIN).labels_of(TRAIN.ids), TRAIN.labels)


def test_the_empty_poison_changes_nothing() -> None:
    poison = Poison.empty(ThreatModel(budget=0.1).draw(TRAIN, TEST, 0))
    assert len(poison) == 0
    assert poison.images.shape == (0, 3, 8, 8)
    assert poison.apply(TRAIN).fingerprint() == TRAIN.fingerprint()


def test_a_saved_poison_is_read_back(tmp_path) -> None:
    poison = made(labels=torch.tensor([1, 0]), trigger=PatchTrigger(corner="top-left"), notes={"loss": 0.25})
    base, target = TRAIN.pixels(poison.rows), TEST.pixels(torch.tensor([4]))
    poison.save(tmp_path / "p", base=base, target=target, data="abc", work={"steps": 2})
    back = Poison.load(tmp_path / "p", data="abc")
    assert torch.equal(back.rows, poison.rows)
    assert torch.equal(back.images, poison.images)
    assert back.labels is not None
    assert back.labels.tolist() == [1, 0]
    assert back.trigger == PatchTrigger(corner="top-left")
    assert back.notes == {"loss": 0.25}
    tensors = load_tensors(tmp_path / "p")
    assert torch.equal(tensors["base"], base)
    assert torch.equal(tensors["target"], target)
    assert read_manifest(tmp_path / "p")["work"] == {"steps": 2}


def test_an_empty_poison_is_kept_too(tmp_path) -> None:
    Poison.empty(ThreatModel(budget=0.1).draw(TRAIN, TEST, 0), PatchTrigger()).save(tmp_path)
    back = Poison.load(tmp_path)
    assert len(back) == 0
    assert back.trigger == PatchTrigger()
    assert back.labels is None


def test_the_file_is_plain_safetensors_and_its_hash_is_in_the_manifest(tmp_path) -> None:
    made().save(tmp_path)
    assert torch.equal(load_file(tmp_path / "poison.safetensors")["images"], made().images)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["sha256"] == hashlib.sha256((tmp_path / "poison.safetensors").read_bytes()).hexdigest()
    assert manifest["count"] == 2
    assert not list(tmp_path.glob("*.tmp"))


def test_equal_poisons_make_equal_files(tmp_path) -> None:
    for name in ("a", "b"):
        made(labels=torch.tensor([0, 1])).save(tmp_path / name)
    for file in ("poison.safetensors", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_other_memory_layouts_are_saved_as_they_look(tmp_path) -> None:
    poison = made()
    Poison(poison.rows, poison.images.contiguous(memory_format=torch.channels_last)).save(tmp_path)
    assert torch.equal(Poison.load(tmp_path).images, poison.images)


def test_a_changed_tensor_file_is_noticed(tmp_path) -> None:
    made().save(tmp_path)
    content = bytearray((tmp_path / "poison.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "poison.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"sha256 differs, found '\w+', expected '\w+'"):
        Poison.load(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("schema", 99), ("count", 7), ("tensors", {})])
def test_a_changed_manifest_is_noticed_and_the_field_named(tmp_path, field: str, value: object) -> None:
    made().save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["seal"]  # as of before there was one
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {field: value}))
    with pytest.raises(ValueError, match=f"{field} differs"):
        Poison.load(tmp_path)


def test_other_data_are_noticed(tmp_path) -> None:
    made().save(tmp_path, data="abc")
    with pytest.raises(ValueError, match="data differs, found 'abc', expected 'xyz'"):
        Poison.load(tmp_path, data="xyz")


def test_a_manifest_that_is_no_json_says_so(tmp_path) -> None:
    made().save(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is not JSON"):
        Poison.load(tmp_path)


def test_the_manifests_own_entries_cannot_be_overwritten(tmp_path) -> None:
    with pytest.raises(ValueError, match="the manifest already has sha256"):
        made().save(tmp_path, sha256="0")


def test_an_edited_entry_is_named(tmp_path) -> None:
    poison = Poison(torch.tensor([1]), torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    poison.save(tmp_path, data="abc", work={"attack": {"eps": 0.03, "steps": 250}})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for name, value in (("work", {"attack": {"eps": 0.06, "steps": 250}}), ("data", "abd"), ("notes", {"loss": 0.0})):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | {name: value}))
        with pytest.raises(ValueError, match=f"{name} was changed after it was written"):
            Poison.load(tmp_path)
    for changed in (manifest | {"more": 1}, {k: v for k, v in manifest.items() if k != "data"}):
        (tmp_path / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="the entries differs"):
            Poison.load(tmp_path)


def test_every_flipped_byte_is_noticed(tmp_path) -> None:
    poison = Poison(torch.tensor([1]), torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([3]))
    poison.save(tmp_path)
    content = (tmp_path / "poison.safetensors").read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1
        (tmp_path / "poison.safetensors").write_bytes(flipped)
        with pytest.raises(ValueError, match="sha256 differs"):
            Poison.load(tmp_path)


def test_a_folder_without_a_seal_is_read(tmp_path) -> None:
    poison = Poison(torch.tensor([1]), torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    poison.save(tmp_path, data="abc")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["seal"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert len(Poison.load(tmp_path, data="abc")) == 1
