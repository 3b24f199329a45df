"""The package as it is installed: lazy names, versions, the pinned set, the README's test command in CI."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mithridate

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PUBLIC = [name for name in mithridate.__all__ if name != "__version__"]


def in_new_process(code: str) -> str:
    """What `code` prints in a fresh interpreter that sees the same package."""
    path = os.pathsep.join([str(Path(mithridate.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    return done.stdout.strip()


def pins() -> dict[str, str]:
    """Canonical name -> version, of every line of constraints.txt."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines if line)}


def requirements() -> list[Requirement]:
    """Every requirement of the core and of the extras, without the package itself."""
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    return [found for found in map(Requirement, texts) if found.name != "mithridate"]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_the_object_of_its_module(name: str) -> None:
    home = mithridate._MODULE_OF[name]
    value = getattr(mithridate, name)
    assert value is getattr(import_module(home), name)
    assert value.__module__ == home


def test_type_checkers_are_told_the_same_homes() -> None:
    tree = ast.parse(Path(mithridate.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert told == mithridate._MODULE_OF


def test_import_does_not_load_torch() -> None:
    assert in_new_process("import sys, mithridate; print('torch' in sys.modules)") == "False"


def test_command_line_module_does_not_load_torch() -> None:
    assert in_new_process("import sys, mithridate.cli; print('torch' in sys.modules)") == "False"


def test_dir_lists_names_before_they_are_loaded() -> None:
    assert in_new_process("import mithridate; print('WitchesBrew' in dir(mithridate))") == "True"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'WitchBrew'"):
        _ = mithridate.WitchBrew


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {mithridate.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_a_requirement_is_pinned_inside_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_constraints_hold_pins_only() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", pin) for pin in pins().values())


def test_torchvision_is_named_by_no_extra() -> None:
    assert "torchvision" not in {canonicalize_name(requirement.name) for requirement in requirements()}
    assert "torchvision" not in pins()


def test_ci_finds_the_test_command_of_the_readme() -> None:
    commands = re.findall(r"^pytest .*$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert commands == ["pytest -n 2 && pytest -n 2 -m effect"]
    assert "grep -m 1 '^pytest ' README.md" in (ROOT / ".ci" / "run").read_text()
