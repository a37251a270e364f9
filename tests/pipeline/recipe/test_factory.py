"""A recipe's factory: found beside the recipe, whatever its package is called, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_project import ROOT, call, copy_project

from paredown.pipeline.recipe.factory import from_factory
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.schema import Recipe
from paredown.targets.errors import InputError

OURS = ("apps", "pipeline", "calibration", "targets")
NETS = """
from paredown.apps.detector.network import YoloV2
from {package}.files import CFG

def make():
    return YoloV2.from_cfg(CFG)

def make_of_all():
    import apps.nets, pipeline.nets, calibration.nets, targets.nets
    assert apps.nets.CFG == pipeline.nets.CFG == calibration.nets.CFG == targets.nets.CFG
    return targets.nets.make()
"""


@pytest.fixture
def project(tiny, tmp_path) -> Path:
    """A project of the user's with packages called as ours; one recipe for each."""
    recipe = copy_project(tiny, tmp_path / "project")
    text = recipe.read_text()
    for package in OURS:
        folder = recipe.parent / package
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "files.py").write_text(f"CFG = {str(recipe.with_name('tiny.cfg'))!r}\n")
        (folder / "nets.py").write_text(NETS.format(package=package))
        recipe.with_name(f"{package}.toml").write_text(text.replace("tiny.cfg", f"{package}.nets:make"))
    return recipe.parent


def run_there(folder: Path, *words: object) -> subprocess.CompletedProcess:
    """The command in a folder, as a user who has installed us."""
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "package", [OURS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in OURS[1:])]
)
def test_a_package_may_be_called_as_one_of_ours(project, tmp_path, package):
    for folder in (project, tmp_path):
        asked = ("-m", "paredown.apps.cli", "run", project / f"{package}.toml", "--dry-run", "--json")
        done = run_there(folder, *asked, "--runs", tmp_path / "runs")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["recipe"]["network"] == f"{package}.nets:make"


def test_packages_called_as_ours_make_a_network(project):
    recipe = project / "apps.toml"
    recipe.write_text(recipe.read_text().replace("apps.nets:make", "apps.nets:make_of_all"))
    done = run_there(project, "-m", "paredown.apps.cli", "inspect", "apps.toml")
    assert done.returncode == 0 and "litert" in done.stdout, done.stderr


def test_the_trainer_starts_beside_packages_called_as_ours(project):
    done = run_there(project, "-m", "paredown.apps.detector.train", "--help")
    assert done.returncode == 0 and "--out" in done.stdout, done.stderr


def test_keys_do_not_know_the_folder(project, tmp_path):
    found = []
    for folder in (project, project.parent / "moved"):
        if not folder.exists():
            shutil.copytree(project, folder)
        done = call("run", folder / "apps.toml", "--dry-run", "--json", "--runs", tmp_path / "runs")
        assert done.code == 0, done.err
        found.append({s["name"]: s["key"] for s in json.loads(done.out)["stages"]}["trace"])
    assert found[0] == found[1]


def write(folder: Path, value: int, name: str = "factory_nets") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(
        f"import factory_side\ndef make(): return ({value}, factory_side.SIDE)\n"
    )
    (folder / "factory_side.py").write_text(f"SIDE = {value}\n")
    return folder


@pytest.fixture
def clean():
    """No module of these tests before and after."""
    yield
    for name in [name for name in sys.modules if name.startswith("factory_")]:
        del sys.modules[name]


def test_beside_the_recipe_comes_before_the_working_folder(tmp_path, monkeypatch, clean):
    beside, working = write(tmp_path / "beside", 1), write(tmp_path / "working", 2)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(working)
    before = list(sys.path)
    made, file = from_factory("factory_nets:make", tmp_path / "empty")
    assert made == (2, 2) and file == working / "factory_nets.py"
    there = sys.modules["factory_nets"]
    made, file = from_factory("factory_nets:make", beside)
    assert made[0] == 1 and file == beside / "factory_nets.py"
    assert sys.modules["factory_nets"] is there and sys.path == before
    assert from_factory("factory_nets:make")[0][0] == 2


def test_a_module_beside_the_recipe_is_imported_once(tmp_path, clean):
    beside = write(tmp_path / "beside", 1)
    from_factory("factory_nets:make", beside)
    there = sys.modules["factory_nets"]
    from_factory("factory_nets:make", beside)
    assert sys.modules["factory_nets"] is there


def test_a_folder_without_code_of_that_name_is_passed_over(tmp_path, monkeypatch, clean):
    working = write(tmp_path / "working", 2)
    (tmp_path / "beside" / "factory_nets").mkdir(parents=True)  # of images, perhaps
    monkeypatch.chdir(working)
    assert from_factory("factory_nets:make", tmp_path / "beside")[0] == (2, 2)


def test_a_package_without_init_wins_over_a_whole_one_elsewhere(tmp_path, monkeypatch, clean):
    for name, value in (("beside", 1), ("working", 2)):
        (tmp_path / name / "factory_p").mkdir(parents=True)
        (tmp_path / name / "factory_p" / "nets.py").write_text(f"def make(): return {value}\n")
    (tmp_path / "working" / "factory_p" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.syspath_prepend(str(tmp_path / "working"))
    assert from_factory("factory_p.nets:make", tmp_path / "beside")[0] == 1
    assert from_factory("factory_p.nets:make", tmp_path)[0] == 2
    assert from_factory("factory_p.nets:make", tmp_path / "beside")[0] == 1


def test_what_fails_leaves_nothing_behind(tmp_path, clean):
    before = list(sys.path)
    (tmp_path / "factory_bad.py").write_text("raise RuntimeError('mine')")
    with pytest.raises(InputError, match="RuntimeError: mine"):
        from_factory("factory_bad:make", tmp_path)
    assert sys.path == before and "factory_bad" not in sys.modules
    assert from_factory("collections:OrderedDict", tmp_path)[0] == {}  # a module of Python's


def test_where_a_recipe_was_read_is_no_part_of_it(tiny, tmp_path):
    recipe = load_recipe(tiny.recipe)
    assert recipe.file == tiny.recipe and recipe.folder == tiny.folder
    assert recipe.read_from(tmp_path / "other.toml") == recipe
    assert not {"file", "folder", "_origin"} & (set(recipe.model_dump()) | set(Recipe.model_fields))
    assert Recipe().folder is None and recipe.model_copy(update={"weights": "x"}).folder == tiny.folder
