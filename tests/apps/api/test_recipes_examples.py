"""The example recipes: listed, copied, valid, and one line where the user's files are not there yet."""

from __future__ import annotations

import json

import pytest
from tiny_project import call

from paredown.apps.api.recipes import examples
from paredown.pipeline.recipe.file import load_recipe

APPS = {"classifier": "apps.classifier", "detector": "apps.detector", "segmentation": "apps.segmenter"}


def test_they_are_listed_with_what_they_are_for():
    assert set(examples()) == set(APPS)
    done = call("examples")
    assert done.code == 0 and "detector       A detector of your own objects\n" in done.out
    assert set(json.loads(call("examples", "--json").out)) == set(APPS)


@pytest.mark.parametrize("name", APPS)
def test_a_copy_is_a_valid_recipe_that_asks_for_its_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    done = call("examples", name)
    assert done.code == 0 and done.out == f"wrote {name}.toml\n"
    copied = tmp_path / f"{name}.toml"
    assert copied.read_bytes() == examples()[name].read_bytes()
    assert max(map(len, copied.read_text().splitlines())) <= 120
    assert load_recipe(str(copied), (), ()).app == APPS[name]
    text = copied.read_text()
    for marked in ("[", "macs", "weight_b"):
        text = text.replace(f"# {marked}", marked)
    (tmp_path / "all.toml").write_text(text)
    pruned = load_recipe(str(tmp_path / "all.toml"), (), ()).prune.macs
    assert pruned == (None if name == "segmentation" else 0.5)
    ran = call("run", copied)
    assert ran.code == 4 and "no such file" in ran.line()
    again = call("examples", name)
    assert again.code == 2 and "is there already; --out gives another file" in again.line()
    assert call("examples", name, "--out", tmp_path / "other.toml").code == 0


def test_a_wrong_name_is_one_line(tmp_path):
    done = call("examples", "detectr", "--out", tmp_path / "x.toml")
    assert done.code == 2 and "no example 'detectr', did you mean 'detector'?" in done.line()
    done = call("examples", "detector", "--out", tmp_path / "absent" / "x.toml")
    assert done.code == 4 and "cannot write the recipe" in done.line()
