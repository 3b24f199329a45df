"""The pages say what the code does: their examples run, their names exist, their links lead somewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

import mithridate as mi
from mithridate.core.schema import choices

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def example(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's first block of Python, imported as a module."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    assert block is not None
    name = page.removesuffix(".md").replace("-", "_")
    (folder / f"{name}.py").write_text(block[1])
    monkeypatch.syspath_prepend(folder)
    return import_module(name)


@pytest.fixture(scope="module")
def digits() -> tuple[mi.ImageData, mi.ImageData]:
    return mi.Digits(train=200).load()


RECIPE = mi.Recipe(model="convnet:width=4", epochs=1, batch_size=50)


def test_the_example_attack_crafts_poison_that_passes_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: tuple[mi.ImageData, mi.ImageData]
) -> None:
    attack = example("add-an-attack.md", tmp_path, monkeypatch).FeatureMean(steps=2, restarts=1, surrogates=1)
    task = replace(attack.threat, budget=0.02).draw(*digits, seed=0)
    poison = attack.craft(task, RECIPE, seed=0)
    task.check(poison)
    assert len(poison) == task.limit == 4
    assert not torch.equal(poison.images, task.train.pixels(poison.rows))


def test_the_example_defence_adds_its_transform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: tuple[mi.ImageData, mi.ImageData]
) -> None:
    module = example("add-a-defence.md", tmp_path, monkeypatch)
    learner = module.Contrast(spread=0.25)(RECIPE)
    assert learner == replace(RECIPE, transforms=(*RECIPE.transforms, module.ScaleContrast(spread=0.25)))
    assert len(learner.fit([digits[0]], [0]).models) == 1


def test_the_example_of_other_toolkits_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("art", reason="the Adversarial Robustness Toolbox is not installed (extra judges)")
    module = example("other-toolkits.md", tmp_path, monkeypatch)
    assert torch.equal(module.again.images, module.train.images)
    task = mi.ThreatModel(budget=0.02).draw(module.train, module.test, seed=0)
    task.check(module.attack.craft(task, module.recipe, seed=0))


def test_the_example_of_lifting_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("lifting.md", tmp_path, monkeypatch)
    assert module.on_pixels.solution.dual <= module.on_pixels.energy * (1 + 1e-6) <= 1.01 * module.on_cells.energy
    assert module.on_cells.energy < 1.2 * module.on_pixels.energy


@pytest.mark.parametrize(
    "family", [mi.Attack, mi.Defense, mi.Inversion, mi.LeakDefense], ids=lambda family: family.__name__
)
def test_the_readme_names_every_method(family: type) -> None:
    named = set(re.findall(r"`([a-z0-9-]+)`", (ROOT / "README.md").read_text()))
    assert set(choices(family)) <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_public_names_on_a_page_exist(page: Path) -> None:
    assert set(re.findall(r"\bmi\.(\w+)", page.read_text())) <= set(mi.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_picture_is_made_by_the_script_and_shown() -> None:
    specification = spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    assert specification is not None
    assert specification.loader is not None
    specification.loader.exec_module(script := module_from_spec(specification))
    made = {f"{name}.png" for name in (*script.SHOTS, script.SEGMENTED)}
    assert {path.name for path in (ROOT / "docs" / "images").iterdir()} == made
    shown = {name for page in PAGES for name in re.findall(r"images/([\w-]+\.png)\)", page.read_text())}
    assert shown == made


def test_the_architecture_names_every_module() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text()
    folders = ("core", "poisoning", "inversion", "experiments")
    modules = [path.name for folder in folders for path in (ROOT / "src" / "mithridate" / folder).glob("*.py")]
    assert [name for name in modules if name != "__init__.py" and name not in tree] == []
