"""TensorBoard: outcomes of each trial and curves of each stored model, read back by TensorBoard itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mithridate.core.extras import MissingExtra
from mithridate.experiments.exports import export, findings
from mithridate.experiments.scalars import MARK
from mithridate.experiments.study import run_study
from tests.experiments import fakes, leak_cases
from tests.experiments.synthetic import TARGETED, hits, result, trial
from tests.experiments.test_junit import put


@pytest.fixture
def events() -> Any:
    """TensorBoard's own reader."""
    return pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs tensorboard: pip install 'mithridate[track]'",
        exc_type=ImportError,
    )


def runs(events: Any, folder: Path) -> dict[str, Any]:
    """By its path, what is in each run."""
    places = sorted({path.parent for path in folder.rglob("events.out.tfevents.*")})
    found = {}
    for place in places:
        found[place.relative_to(folder).as_posix()] = events.EventAccumulator(str(place)).Reload()
    return found


def values(run: Any, tag: str) -> list[tuple[int, Any]]:
    return [(event.step, pytest.approx(event.value)) for event in run.Scalars(tag)]


def test_outcomes_of_a_trial_are_scalars_by_victim(events: Any, tmp_path: Path) -> None:
    settings = trial("witches-brew", TARGETED, victims=2, seed=5)
    done = result(settings, [[1, 0], [1, 1]], [[2.0, 4.0], [1.0, 3.0]], [0.9, 0.8])
    done["outcome"]["margin"][0][1] = None
    done["outcome"]["epochs"] = [[0.5, 0.9], [0.4, 0.8]]
    found = findings(put(tmp_path, [(settings, done), *hits("random-noise", [0])]), "poison")
    out = export(found, "tensorboard", tmp_path / "tensorboard")
    seen = runs(events, out)
    assert set(seen) == {"trials/witches-brew/seed 5", "trials/random-noise/seed 0"}
    run = seen["trials/witches-brew/seed 5"]
    assert values(run, "outcome/success") == [(0, 0.5), (1, 1.0)]
    assert values(run, "outcome/accuracy") == [(0, 0.9), (1, 0.8)]
    assert values(run, "outcome/margin") == [(0, 2.0), (1, 2.0)]
    assert values(run, "epochs/accuracy of victim 1") == [(1, 0.4), (2, 0.8)]
    texts = run.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(texts.removeprefix("```json\n").removesuffix("\n```")) == settings
    assert run.PluginTagToContent("hparams")


def test_curves_of_stored_models_are_scalars_by_epoch(events: Any, tmp_path: Path) -> None:
    run_study([fakes.trial(attack=fakes.Brighten(models=1))], tmp_path, keep_models=True, progress=False)
    found = findings(tmp_path, "poison")
    seen = runs(events, export(found, "tensorboard", tmp_path / "tensorboard"))
    fits = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("fits/*/fit.json")}
    assert len(fits) == 2  # the surrogate and the victim
    for name, fit in fits.items():
        (run,) = (run for place, run in seen.items() if place.startswith("fits/") and place.endswith(name))
        assert values(run, "training/loss") == [(1, fit["history"]["loss"][0]), (2, fit["history"]["loss"][1])]


def test_leaks_have_outcomes_too(events: Any, tmp_path: Path) -> None:
    settings = leak_cases.trial(batch=2, seed=3)
    found = findings(put(tmp_path, [(settings, leak_cases.result(settings, [20.0, 10.0], [1, 7]))]), "leak")
    (run,) = runs(events, export(found, "tensorboard", tmp_path / "tb")).values()
    assert values(run, "outcome/psnr") == [(0, 20.0), (1, 10.0)]
    assert values(run, "outcome/rank") == [(0, 1.0), (1, 7.0)]


def test_writing_again_replaces_what_was_written_and_nothing_else(events: Any, tmp_path: Path) -> None:
    found = findings(put(tmp_path / "study", hits("witches-brew", [1, 0])), "poison")
    out = tmp_path / "logs"
    export(found, "tensorboard", out)
    (out / "notes.txt").write_text("mine")
    export(found, "tensorboard", out)
    assert len(runs(events, out)) == len(list(out.rglob("events.out.tfevents.*"))) == 2
    assert (out / "notes.txt").read_text() == "mine"
    (out / MARK).unlink()
    with pytest.raises(ValueError, match="logs holds other things; give a new or empty folder"):
        export(found, "tensorboard", out)


def test_a_damaged_fit_is_left_out(events: Any, tmp_path: Path) -> None:
    folder = put(tmp_path, hits("witches-brew", [1]))
    notes = {"a": "{", "b": "[]", "c": '{"recipe": {"model": "convnet"}, "history": {"loss": [null]}}'}
    for name, content in notes.items():
        (folder / "fits" / name).mkdir(parents=True)
        (folder / "fits" / name / "fit.json").write_text(content)
    seen = runs(events, export(findings(folder, "poison"), "tensorboard", tmp_path / "tb"))
    assert set(seen) == {"trials/witches-brew/seed 0", "fits/convnet, c"}


def test_long_names_and_names_that_no_file_can_have(events: Any, tmp_path: Path) -> None:
    defenses = [{"type": f"a/b:c{number}" * 40} for number in range(2)]
    pairs = [pair for defense in defenses for pair in hits("witches-brew", [1], defense)]
    seen = runs(events, export(findings(put(tmp_path, pairs), "poison"), "tensorboard", tmp_path / "tb"))
    assert len(seen) == 2
    assert all(place.count("/") == 2 for place in seen)


def test_without_tensorboard_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    found = findings(put(tmp_path, hits("witches-brew", [1])), "poison")
    with pytest.raises(MissingExtra, match=r"pip install 'mithridate\[track\]'"):
        export(found, "tensorboard", tmp_path / "tb")
    assert not (tmp_path / "tb").exists()
