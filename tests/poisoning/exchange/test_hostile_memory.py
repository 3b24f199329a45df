"""Bombs: files that are small and say, or unpack to, far more. A process of its own reads all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core import hostile, hostile_files
from tests.core.hostile import Corpus
from tests.poisoning.exchange.hostile_cases import FORMS, corpus_for, kinds, written
from tests.poisoning.exchange.hostile_memory import STATUS

MOST = 200 * 2**20
"""Bytes that reading any of them may take; believed, most of them take more than 300 MB, some a billion times that."""
ONE_EACH = ("artefact", "backdoor-bench", "data-poisoning-automl", "data-poisoning-numpy", "data-poisoning-packed",
            "hugging-face-imagefolder", "hugging-face-parquet", "npz", "png-folder", "poisoning-benchmark")  # fmt: skip


def is_bomb(what: str) -> bool:
    """Whether something of a corpus is about size; what is about names takes no memory."""
    return what not in hostile.NAMES and not what.startswith(("zip of", "os.system", "pickle: "))


@pytest.mark.skipif(not STATUS.exists(), reason="memory is measured with /proc, which Linux has")
def test_no_bomb_goes_off(tmp_path: Path) -> None:
    plan: list[dict[str, str]] = []

    def planned(reader: str, path: Path, file: Path, corpus: Corpus) -> None:
        for what, content in corpus.items():
            place = tmp_path / "contents" / str(len(plan))
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)
            plan.append(
                {"reader": reader, "what": what, "content": f"contents/{len(plan)}"}
                | {"path": str(path.relative_to(tmp_path)), "file": str(file.relative_to(tmp_path))}
            )

    canary = tmp_path / "canary"
    for name in ONE_EACH:
        (tmp_path / name).mkdir()
        path = written(FORMS[name], tmp_path / name)
        for file in kinds(path)[:3]:
            planned(name, path, file, {what: one for what, one in corpus_for(file, canary).items() if is_bomb(what)})
    alone = tmp_path / "alone"
    floods = hostile.pickle_floods()
    planned("pickle", alone, alone, floods)
    planned("torch", alone, alone, {"kept parts": hostile.zipped([("archive/data.pkl", floods["kept parts"])])})
    planned("image", alone, alone, hostile_files.image_bombs())
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    script = Path(__file__).parent / "hostile_memory.py"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "tests.poisoning.exchange." + script.stem, str(tmp_path)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(plan)
    assert not canary.exists()
    for one in told:
        assert one["grew"] < MOST, (one["reader"], one["what"], one["grew"], one["said"])
    assert max(one["grew"] for one in told) > 2**20  # something was measured
