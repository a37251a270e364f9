from __future__ import annotations

import importlib

import pytest

from paredown.pipeline.recipe.imports.read import SUFFIXES
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import APPS, check_no_code, metric_alone
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


def test_our_own_apps_are_there():
    for app in APPS:
        assert hasattr(importlib.import_module(f"paredown.{app}"), "make_task") or app == "apps.chat"


@pytest.mark.parametrize("network", ["os:abort", "a.b:c", "evil:boom", "C:\\x.cfg:y"])
def test_a_bundle_s_recipe_names_no_network_of_code(network):
    with pytest.raises(InputError, match="the bundle's network is made by .*--recipe FILE"):
        check_no_code(Recipe(network=network))


@pytest.mark.parametrize(
    "app", ["antigravity", "apps", "apps.detector.device", "paredown.apps.detector", "mine"]
)
def test_a_bundle_s_recipe_names_no_app_of_somebody_s_own(app):
    with pytest.raises(InputError, match=f"was made by the app `{app}`"):
        check_no_code(Recipe(app=app))


def test_what_is_no_code_passes():
    check_no_code(Recipe())
    check_no_code(Recipe(app="apps.classifier", network="/models/net.onnx"))


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_of_a_bundle_s_recipe_only_files_are_read_that_cannot_hold_code(suffix):
    recipe = Recipe(app="apps.outputs", network=f"/somewhere/net{suffix.upper()}")
    if suffix in (".onnx", ".tflite", ".keras", ".h5", ".hdf5"):
        check_no_code(recipe)
        return
    with pytest.raises(InputError, match=r"the file `net\..*`, which may hold code; give the recipe itself"):
        check_no_code(recipe)


@pytest.mark.parametrize("name", ["config.json", "saved_model.pb"])
@pytest.mark.parametrize("folder", ["net", "net.onnx"])
def test_a_folder_of_a_model_counts_as_code(folder, name, tmp_path):
    (tmp_path / folder).mkdir()
    recipe = Recipe(app="apps.outputs", network=str(tmp_path / folder))
    check_no_code(recipe)  # nothing of a model is there yet
    (tmp_path / folder / name).write_text("{}")
    with pytest.raises(InputError, match=f"the file `{folder}`, which may hold code"):
        check_no_code(recipe)


class Scoring:
    """A task that knows two scores."""

    metric = "top1"

    def score_outputs(self, outputs, data):
        return {"top1": outputs[0] + data, "top5": 1.0}


class Quick(Scoring):
    """One that computes its metric alone."""

    def metric_alone(self, outputs, data):
        return outputs[0] * data


def test_a_metric_is_computed_alone_where_a_task_can():
    assert metric_alone(Scoring(), [2.0], 3.0) == 5.0  # type: ignore[arg-type]
    assert metric_alone(Quick(), [2.0], 3.0) == 6.0  # type: ignore[arg-type]
