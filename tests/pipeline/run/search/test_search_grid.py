"""Points of a sweep are a product, each with a folder of its own; mistakes are told before anything runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paredown.pipeline.run.search.grid import is_axis, make_points, read_axes, split_values
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit


def test_points_are_the_product_of_recipes_targets_and_values(tmp_path: Path):
    files = [tmp_path / f"{name}.toml" for name in ("one", "two")]
    for file in files:
        file.write_text("")
    axes = read_axes(["prune.macs=0.3,0.5", "squantize.weight_bits=2,4"])
    points = make_points([str(f) for f in files], ["host", "raspberry-pi-5"], axes, ["recover.epochs=1"])
    found = {(p.of, p.recipe.prune.macs, p.recipe.squantize.weight_bits, p.target.name) for p in points}
    assert found == set(itertools.product(("one", "two"), (0.3, 0.5), (2, 4), ("host", "raspberry-pi-5")))
    assert len({(p.name, p.target.name) for p in points}) == len(points) == 16
    assert points[0].name == "one-prune.macs=0.3-squantize.weight_bits=2"
    assert {p.recipe.recover.epochs for p in points} == {1.0}
    assert make_points([str(files[0])], ["host"])[0].name == "one", "an ordinary run's folder"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(['["litert"]', '["litert","executorch"]', "0.5", '"a,b"', "{x=1,y=2}"])))
def test_values_are_split_outside_brackets_and_quotes(values):
    assert split_values(",".join(values)) == (values or [""])


def test_folders_of_odd_or_long_values_are_numbered_where_they_would_meet(tmp_path: Path):
    recipe = tmp_path / "one.toml"
    recipe.write_text("")
    axes = read_axes(['about.use="a b","a_b"'])
    assert [p.name for p in make_points([str(recipe)], ["host"], axes)] == ["one-0", "one-1"]
    axes = read_axes([f"about.use={'x' * 300}"])
    assert [p.name for p in make_points([str(recipe)], ["host"], axes)] == ["one-0"]


def test_a_word_is_a_recipe_or_an_axis():
    assert is_axis("prune.macs=0.3,0.5") and is_axis("network=a,b")
    assert not any(map(is_axis, ("digits", "./a=b.toml", "a=b.toml", "x/y=z")))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["prune.macs"], "--grid prune.macs: is not key=value,value; write for example"),
        (["prune.macs=0.3,,0.5"], "is not key=value,value"),
        (["prune.macs=0.3,0.3"], "--grid prune.macs=0.3,0.3: names 0.3 twice"),
        (["prune.macs=0.3", "prune.macs=0.5"], "`prune.macs` has values already; put them into one --grid"),
    ],
)
def test_a_grid_that_is_none_is_refused(words, line):
    with pytest.raises(UsageError, match=line.replace(".", r"\.")):
        read_axes(words)


def test_recipes_targets_and_values_are_checked_before_anything_runs(tmp_path: Path):
    recipe, other = tmp_path / "one.toml", tmp_path / "sub" / "one.toml"
    other.parent.mkdir()
    for file in (recipe, other):
        file.write_text("")
    with pytest.raises(UsageError, match="two of the recipes are called one"):
        make_points([str(recipe), str(other)], ["host"])
    with pytest.raises(UsageError, match="two of the targets are called host"):
        make_points([str(recipe)], ["host", "host"])
    with pytest.raises(UsageError, match="a sweep needs a recipe"):
        make_points([], ["host"])
    with pytest.raises(InputError, match="unknown key `prune.mac`"):
        make_points([str(recipe)], ["host"], read_axes(["prune.mac=0.5"]))
    with pytest.raises(InputError, match="prune.macs=1.5"):
        make_points([str(recipe)], ["host"], read_axes(["prune.macs=0.5,1.5"]))
