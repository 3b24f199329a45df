"""Every block of code on a page runs or is understood; the few that cannot are named, with the reason."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import tyro

from mithridate import cli
from tests.test_examples import import_or_skip

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {
    "README.md": "trains a model of the reader's own on images of theirs; parts run in examples/audit_your_model.py",
    "index.md": "the same block as the README's",
    "architecture.md": "signatures, not a program",
    "add-an-attack.md": "run by tests/test_docs.py on small data",
    "add-a-defence.md": "run by tests/test_docs.py on small data",
    "other-toolkits.md": "run by tests/test_docs.py where the other toolkits are installed",
    "lifting.md": "run by tests/test_docs.py",
    "gradient-leakage.md": "needs a client's message; tests/inversion and examples/federated_leak.py run the same",
    "own-training-code.md": "one line about the function before it; tests/test_cli_own_code.py runs it",
    "scaling.md": "needs a Ray cluster; tests/test_ray.py runs the same on a local one",
}
"""Pages whose Python is not run here."""
NEEDS = {"own-model.md": ("lightning", "transformers")}
"""Packages that a page's blocks import."""
STUBS = {
    "my_project.py": "from mithridate.core.models import build\n\n\ndef make_net(classes):\n"
    "    return build('mlp:width=8', classes, (1, 8, 8), 0)\n",
}
"""Modules that pages take to be the reader's own."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


PYTHON = [page for page in PAGES if blocks(page, "python")]
SHELL = [page for page in PAGES if blocks(page, "bash")]


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = blocks(page, "python")
    for part in parts:
        compile(part, str(page), "exec")
    if page.name in NOT_RUN:
        return
    import_or_skip(*NEEDS.get(page.name, ()))
    for name, text in STUBS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = "\n".join(parts)
    module_file = tmp_path / f"page_{page.stem.replace('-', '_')}.py"
    module_file.write_text(source)  # classes of a block are found by their file
    spec = importlib.util.spec_from_file_location(module_file.stem, module_file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, module_file.stem, module)
    spec.loader.exec_module(module)


def test_pages_that_are_not_run_exist_and_have_python() -> None:
    assert set(NOT_RUN) <= {page.name for page in PYTHON}


@pytest.mark.parametrize("page", SHELL, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_understood(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            words.pop(0)  # variables of the environment
        if words[:1] == ["mithridate"]:
            understood(words[1:], f"{page.name}: {line}")
        elif words[:2] == ["python", "-m"]:
            module = words[2]
            found = importlib.util.find_spec(module) if module != "venv" else True
            assert found is not None, f"{page.name}: {line}"
        else:
            assert words[0] in KNOWN, f"{page.name}: {line}"


KNOWN = {
    "python3",
    "python",
    "pip",
    "pytest",
    "make",
    "ray",
    "git",
    "cd",
    "export",
    ".",
    "#",
    "docker",
    "gh",
    "curl",
    "wget",
    "cat",
    "jq",
    "case",
    "esac",
    "if",
    "fi",
    "exit",
    "echo",
    "head",
    "sed",
    "pre-commit",
}
"""Commands that are not ours."""


def commands(page: Path) -> list[str]:
    """Lines of shell, joined where a backslash continues them, split where several stand on one."""
    found = []
    for block in blocks(page, "bash"):
        joined = re.sub(r"\\\n\s*", " ", block)
        for line in joined.splitlines():
            for part in re.split(r"\s+(?:&&|\|\||;)\s+|\s+\|\s+", re.sub(r"\s+#\s.*$", "", line)):
                if part.strip() and not part.lstrip().startswith("#"):
                    found.append(part.strip())
    return found


def understood(words: list[str], where: str) -> None:
    """Reads a command line as the program does, without doing anything."""
    if not words or words[0] in ("--help", "--version"):
        return
    assert words[0] in cli.VERBS, where
    if "--help" in words:
        return
    try:
        tyro.cli(cli.VERBS[words[0]], prog="mithridate", args=words[1:], config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as stop:
        raise AssertionError(f"not understood: {where}") from stop
