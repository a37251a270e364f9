"""Two kinds of jobs: what each reads, what it is told when it does not, and a metric of a task's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_project import Tiny, call, copy_project

from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.recipe.file import load_recipe, resolved_toml
from paredown.pipeline.run.job import ONLY, check_keys, kind_of
from paredown.targets.errors import UsageError

RECIPES = Path(__file__).parents[3] / "apps"
DIGITS = RECIPES / "detector" / "recipes" / "digits.toml"
GEMMA = RECIPES / "chat" / "recipes" / "gemma3-tiny.toml"
APP = """
from paredown.apps.detector.task import DetectorTask

VALUES = iter([{first}])  # of the original network, which is scored first; then that of all others


class Counted(DetectorTask):
    metric, less_is_better = "{metric}", {less}

    def score(self, predict, data, progress=None):
        return {{"{metric}": next(VALUES, {later}), **super().score(predict, data, progress)}}


def make_task(recipe):
    return Counted(recipe)
"""


@pytest.mark.parametrize(
    ("recipe", "setting", "words"),
    [
        (DIGITS, "language.ffn=0.5", "key `language.ffn` is for language models"),
        (DIGITS, "language.chunk=32", "key `language.chunk` is for language models"),
        (GEMMA, "prune.macs=0.5", "key `prune.macs` is for image networks"),
        (GEMMA, "squantize.weight_bits=4", "key `squantize.weight_bits` is for image networks"),
        (GEMMA, "bench.runs=7", "key `bench.runs` is for image networks"),
        (GEMMA, "preprocess.colour=grey", "key `preprocess.colour` is for image networks"),
    ],
)
def test_a_key_of_the_other_kind_is_refused_by_name(recipe: Path, setting: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_keys(load_recipe(recipe, [setting]))


@pytest.mark.parametrize("recipe", [DIGITS, GEMMA])
def test_a_resolved_recipe_names_every_key_and_is_accepted(recipe: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.toml"
    whole.write_text(resolved_toml(load_recipe(recipe)))
    check_keys(load_recipe(whole))


def test_the_kinds_are_told_apart_by_the_data() -> None:
    assert kind_of(load_recipe(DIGITS)) == "image" and kind_of(load_recipe(GEMMA)) == "language"
    assert set(ONLY.values()) == {"image", "language"}


@pytest.mark.parametrize("command", ["sense", "groups", "inspect", "cost", "export"])
def test_commands_for_images_say_so(command: str, tmp_path: Path) -> None:
    more = ("--target", "iphone") if command == "export" else ()
    runs = ("--runs", tmp_path) if command in ("sense", "export") else ()
    done = call(command, "gemma3-tiny", *more, *runs)
    assert done.code == 2
    assert f"`paredown {command}` is for image networks; this recipe is of a language model" in done.line()


@pytest.mark.parametrize(
    ("metric", "less", "first", "later", "over"),
    [
        pytest.param("f1", False, 0.9, 0.85, False, marks=pytest.mark.slow),
        ("f1", False, 0.9, 0.7, True),
        pytest.param("misses", True, 2.0, 2.1, False, marks=pytest.mark.slow),  # a rise by 5 %
        pytest.param("misses", True, 2.0, 3.0, True, marks=pytest.mark.slow),
        ("misses", True, 2.0, 1.0, False),  # better, though another direction would call it worse
    ],
)
def test_a_metric_of_a_tasks_own_is_shown_and_judged_alike(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    metric: str, less: bool, first: float, later: float, over: bool,
) -> None:  # fmt: skip
    recipe = copy_project(tiny, tmp_path / "project")
    name = f"own_app_{metric}_{round(later * 100)}"
    text = APP.format(metric=metric, less=less, first=first, later=later)
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = (f"app={name}", "budget.accuracy_drop=0.1", "lower.runtimes=['litert']")
    words = [word for setting in asked for word in ("--set", setting)]
    done = call("run", recipe, "--runs", tmp_path / "runs", *words)
    assert done.code == (3 if over else 0), done.err
    folder = tmp_path / "runs" / "tiny" / "host"
    assert metric in done.out and metric in (folder / "report.md").read_text()
    found = {f["variant"]: f["value"] for f in json.loads((folder / "figures.json").read_text())
             if f["metric"] == metric}  # fmt: skip
    assert found == {"fp32": first, "integer": later, "litert": later}
    told = unpack(folder / "bundle.paredown").manifest.metric
    assert told is not None and (told.name, told.less_is_better) == (metric, less)
    refused = call("validate", folder / "bundle.paredown", "--times", 1)
    assert refused.code == 3 and f"was made by the app `{name}`; give the recipe itself" in refused.out
    known = ("--recipe", folder / "recipe.toml")  # which is a program, as its user knows
    validated = call("validate", folder / "bundle.paredown", "--times", 1, *known)
    assert ("over budget: litert: accuracy_drop" in validated.out) == over
    assert validated.code == (3 if over else 0), validated.out
