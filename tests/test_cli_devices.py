"""The command line with several devices for each model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.command_line import Run
from tests.test_cli import BADNETS

LOCAL = [*BADNETS[: BADNETS.index("--workers")], "--trials", "1"]


def results(folder: Path) -> dict[str, dict]:
    """Results by the name of the attack."""
    found = {}
    for path in folder.glob("trials/*/trial.json"):
        name = json.loads(path.read_text())["attack"]["type"]
        found[name] = json.loads((path.parent / "result.json").read_text())
    return found


def test_two_devices_audit_as_one_does(run: Run, tmp_path: Path) -> None:
    said = run("audit", *LOCAL, "--devices", "2", "--out", "two")
    assert said.code == 0, said.err
    assert run("audit", *LOCAL, "--workers", "1", "--out", "one").code == 0
    two, one = results(tmp_path / "two"), results(tmp_path / "one")
    assert two.keys() == one.keys() == {"badnets", "random-noise", "no-attack"}
    for name, result in two.items():
        assert result["trial"] == one[name]["trial"]
        assert result["outcome"]["accuracy"] == pytest.approx(one[name]["outcome"]["accuracy"], abs=0.01)
        assert (result["environment"]["device"], one[name]["environment"]["device"]) == ("2 x cpu", "cpu")


@pytest.mark.parametrize("verb", [["audit"], ["dose"], ["craft"], ["study", "a:b"], ["trial", "trial.json"]])
def test_every_verb_that_trains_takes_devices(verb: list[str], run: Run) -> None:
    said = run(*verb, "--devices", "0")
    assert said.code == 2
    assert said.err.endswith("error: devices is 0; at least 1 is needed\n")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--devices", "2", "--workers", "2"], "--devices 2 trains each model on several devices, and --workers 2"),
        (["--devices", "2", "--workers", "ray"], "and --workers ray trains several models at once; use one of the two"),
        (["--devices", "3", "--device", "cuda"], "devices is 3, but this machine has 2 GPUs; use no more"),
        (["--devices", "2", "--device", "cuda:1"], "cuda:1 names one GPU"),
        (["--devices", "2", "--train-fn", "os:getcwd"], "--devices shares out the batches of a recipe"),
    ],
)
def test_what_does_not_go_with_devices(
    options: list[str],
    says: str,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # whichever device it is, it is there
    said = run("audit", *options)
    assert said.code == 2
    assert says in said.err
    assert not (tmp_path / "runs").exists()
