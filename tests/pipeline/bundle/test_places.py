"""A recipe without the folders of its maker, and found again in those of its user."""

from __future__ import annotations

from pathlib import Path

import pytest

from paredown.pipeline.bundle.places import portable, relocated, same_files
from paredown.pipeline.recipe.file import load_recipe, named_files

pytestmark = pytest.mark.unit
TEXT = """
weights = "w/net.weights"
[data]
format = "yolo"
names = "/elsewhere/of/me/all.names"
train = "images/train"
test = "images/test"
[prune]
latency_table = "table.json"
"""


@pytest.fixture
def recipe(tmp_path: Path):
    path = tmp_path / "ann" / "own.toml"
    path.parent.mkdir()
    path.write_text(TEXT)
    return load_recipe(path)


def test_paths_are_relative_and_others_are_names(recipe, tmp_path):
    assert named_files(portable(recipe)) == {
        "data.names": "all.names", "data.calibration": "images/train",
        "data.train": "images/train", "data.test": "images/test",
        "weights": "w/net.weights", "prune.latency_table": "table.json",
    }  # fmt: skip
    assert str(tmp_path) not in portable(recipe).model_dump_json()
    assert portable(portable(recipe)) == portable(recipe)


def test_two_makers_give_the_same(recipe, tmp_path):
    other = tmp_path / "bob" / "work" / "own.toml"
    other.parent.mkdir(parents=True)
    other.write_text(TEXT)
    theirs = load_recipe(other)
    assert theirs != recipe and portable(theirs) == portable(recipe) and same_files(theirs, recipe)


def test_files_are_found_below_the_users_folder(recipe, tmp_path):
    folder = tmp_path / "mine"
    (folder / "images" / "test").mkdir(parents=True)
    found = named_files(relocated(portable(recipe), folder))
    assert found["data.test"] == str(folder / "images" / "test") and found["weights"] == str(
        folder / "w/net.weights"
    )
    flat = tmp_path / "only-images"
    flat.mkdir()
    assert named_files(relocated(portable(recipe), flat))["data.test"] == str(flat)
    found = named_files(relocated(recipe, folder))["weights"]
    assert found == str(folder / "net.weights"), (
        "of a path that leads out, as earlier bundles have it, the name"
    )
