"""The command line attacks trained models: kept ones, checkpoints, functions; beside other libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mithridate as mi
from mithridate.core.schema import choices
from mithridate.evasion.attack import Evasion
from mithridate.experiments.store import Store, Stored
from tests.command_line import Run

QUICK = ["--attacks", "pgd:steps=3", "square:queries=5", "--eps", "8/255", "32/255", "--images", "60"]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A model in a results folder."""
    store = Store(tmp_path / "kept")
    model = Stored(mi.Recipe(model="mlp", epochs=2), store).fit([mi.Digits(train=300).load()[0]], [0]).models[0]
    return store.fit_folder(store.fit_of[model])


def test_a_kept_model(run: Run, tmp_path: Path, kept: Path) -> None:
    said = run("evade", "--model", kept, *QUICK, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["accuracy"]["n"] == 60
    levels = {(one["attack"], round(255 * one["eps"])): one for one in found["levels"]}
    assert levels.keys() == {(name, eps) for name in ("pgd", "square") for eps in (8, 32)}
    assert levels["pgd", 32]["stands"]["successes"] < levels["pgd", 8]["stands"]["successes"]
    assert levels["pgd", 32]["stands"]["successes"] <= found["accuracy"]["successes"]
    assert 0 < levels["pgd", 8]["gradients"] <= 3
    assert levels["square", 8]["gradients"] == 0
    assert [round(255 * one["eps"]) for one in found["worst"]] == [8, 32]
    page = (tmp_path / "runs/evade/report.html").read_text()
    assert "Robust accuracy by strength" in page
    assert "Fooled by pgd, Linf 32/255" in page


def test_the_same_again_is_read_and_not_done(run: Run, tmp_path: Path, kept: Path) -> None:
    first = run("evade", "--model", kept, *QUICK)
    assert first.code == 0, first.err
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/evade/evasions").rglob("result.json")}
    assert len(files) == 4
    again = run("evade", "--model", kept, *QUICK, "--attacks", "pgd:steps=3", "fgsm")
    assert again.code == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/evade/evasions").rglob("result.json")}
    assert len(after) == 6
    assert files.items() <= after.items()


def test_weights_and_functions_are_the_same_model(run: Run, tmp_path: Path, kept: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from mithridate.experiments.store import load_model\n\n\ndef trained():\n"
        f"    return load_model({str(kept)!r})\n\n\ndef nothing(classes):\n    return classes\n"
    )
    outs = [
        run("evade", *model, *QUICK, "--json", "--out", f"out{number}")
        for number, model in enumerate(
            (
                ["--model", kept],
                ["--model", "mlp", "--weights", kept / "weights.safetensors"],
                ["--model", "own:trained"],
            )
        )
    ]
    assert [said.code for said in outs] == [0, 0, 0], [said.err for said in outs]
    rates = [[one["stands"] for one in json.loads(said.out)["levels"]] for said in outs]
    assert rates[0] == rates[1] == rates[2]
    said = run("evade", "--model", "own:nothing", *QUICK)
    assert said.code == 2
    assert "own:nothing returned int; expected a trained torch.nn.Module" in said.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--attacks", "pdg"], "pgd"),
        (["--model", "nowhere"], "nowhere is no kept model"),
        (["--judges", "folbox"], "no judge is called 'folbox'"),
        (["--l2", "--attacks", "square"], "square knows the ball linf"),
        (["--attacks", "pgd:steps=0"], "pgd steps is 0"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(run: Run, arguments: list[str], says: str) -> None:
    said = run("evade", *arguments)
    assert said.code == 2
    assert says in said.err
    assert "training" not in said.err


def test_a_model_of_other_images_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "big.py").write_text(
        "from torch import nn\n\n\ndef model(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))\n"
    )
    said = run("evade", "--model", "big:model", *QUICK)
    assert said.code == 2
    assert "give the model that was trained on these data" in said.err


def test_lengths_of_a_change(run: Run, kept: Path) -> None:
    said = run("evade", "--model", kept, "--attacks", "pgd:steps=3", "--l2", "--eps", "1.0", "--images", "30", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["levels"][0]["ball"] == "l2"


def test_foolbox_beside(run: Run, kept: Path) -> None:
    pytest.importorskip("foolbox", reason="foolbox is not installed (extra judges)")
    said = run("evade", "--model", kept, "--attacks", "pgd", "--judges", "foolbox", "--eps", "16/255", "--json")
    assert said.code == 0, said.err
    ours, theirs = (one["stands"] for one in json.loads(said.out)["levels"])
    assert ours["n"] == theirs["n"] == 797
    assert abs(ours["successes"] - theirs["successes"]) <= 0.02 * ours["n"]


def test_help_names_every_attack(run: Run) -> None:
    said = run("evade", "--help")
    assert all(name in said.out for name in choices(Evasion))


def test_models_with_randomness_are_doubted(run: Run, tmp_path: Path) -> None:
    (tmp_path / "shaky.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.last = nn.Linear(64, 10)\n\n    def forward(self, images):\n"
        "        logits = self.last(images.flatten(1))\n        return logits + torch.randn_like(logits)\n"
    )
    torch.manual_seed(0)
    said = run("evade", "--model", "shaky:Net", *QUICK)
    assert said.code == 0, said.err
    assert "doubt: the model answers differently when asked twice" in said.out
