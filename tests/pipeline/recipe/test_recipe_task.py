from __future__ import annotations

import importlib

import pytest

from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import APPS, check_no_code
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
