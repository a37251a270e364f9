"""The package's Python: run, validate and load, and an import that loads nothing."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from classifier_project import NAMES
from classifier_project import make_project as make_classifier
from tiny_project import Tiny, call, copy_runs, python

import paredown
from paredown.apps.detector.device.detect import Detector
from paredown.pipeline.bundle.archive import extract, unpack

LITERT = {"lower.runtimes": ["litert"]}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> paredown.Result:
    folder = tmp_path_factory.mktemp("colours")
    return paredown.run(make_classifier(folder), runs=folder / "runs")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> paredown.Result:
    return paredown.run("gemma3-tiny", set=LITERT, runs=tmp_path_factory.mktemp("runs"), smoke=True)


# -- the import ----------------------------------------------------------------------------------------------


def test_the_import_loads_nothing_but_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import paredown; paredown.__all__, dir(paredown)\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) - {"paredown"} <= set(sys.stdlib_module_names)


def test_the_errors_need_no_other_package():
    done = python("import sys, paredown; paredown.InputError; print('pydantic' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_every_name_is_there():
    assert dir(paredown) == sorted(paredown.__all__)
    assert all(getattr(paredown, name) is not None for name in paredown.__all__)
    assert paredown.__version__ == "0.1.0"
    errors = (paredown.UsageError, paredown.InputError, paredown.DeviceError)
    assert [error.exit_code for error in errors] == [2, 4, 5]
    assert all(issubclass(error, paredown.ParedownError) for error in errors)
    with pytest.raises(AttributeError, match="no attribute 'Recipes'"):
        paredown.Recipes  # noqa: B018
    with pytest.raises(ImportError):
        from paredown import nothing  # type: ignore[attr-defined]  # noqa: F401
    assert Path(paredown.__file__).with_name("py.typed").exists()


def test_it_documents_every_argument():
    for function in (paredown.run, paredown.validate, paredown.load):
        for name in inspect.signature(function).parameters:
            assert f"        {name}: " in (function.__doc__ or "")


# -- run and validate ----------------------------------------------------------------------------------------


def test_run_makes_what_the_command_makes(tiny: Tiny, tmp_path):
    runs, said = copy_runs(tiny, tmp_path / "runs"), []
    result = paredown.run(tiny.recipe, runs=runs, log=said.append)
    assert result.folder == runs / "tiny" / "host" and result.bundle.read_bytes() == tiny.bundle.read_bytes()
    in_file = json.loads((result.folder / "figures.json").read_text())
    made = [figure.to_dict() for figure in result.figures]
    assert sorted(map(json.dumps, made)) == sorted(map(json.dumps, in_file))
    assert result.passed and result.violations == () and result.checks == ()
    assert said and all(": reused" in line or ": done" in line or ": running" in line for line in said)


def test_a_recipe_may_be_an_object_and_changed(tiny: Tiny, tmp_path):
    runs = copy_runs(tiny, tmp_path / "runs")
    from paredown.pipeline.recipe.file import load_recipe

    recipe = load_recipe(tiny.recipe)
    changes = {"budget.bundle_kib": 0.5, "lower.runtimes": ["litert"], "squantize.layers": {}}
    result = paredown.run(recipe, set=changes, runs=str(runs))
    assert not result.passed
    assert {violation.limit for violation in result.violations} == {"bundle_kib"}
    assert result.folder == runs / "tiny" / "host"
    assert unpack(result.bundle).manifest.recipe.lower.runtimes == ("litert",)
    assert recipe.lower.runtimes == ("executorch", "litert")


@pytest.mark.parametrize(
    ("recipe", "asked", "error", "line"),
    [
        ("digit", {}, paredown.UsageError, "did you mean `digits`"),
        ("absent.toml", {}, paredown.InputError, "no such recipe file"),
        ("digits", {"target": "pi"}, paredown.InputError, "unknown target `pi`"),
        ("digits", {"set": {"prune.mac": 0.5}}, paredown.InputError, "did you mean `macs`"),
        ("digits", {"set": {"prune.macs": None}}, paredown.UsageError, "None is no value of a recipe"),
        ("digits", {"set": {"prune.macs": "half"}}, paredown.InputError, "prune.macs"),
        ("object", {"set": {"bench.runs": 0}}, paredown.InputError, "--set bench.runs=0"),
    ],
)
def test_what_cannot_be_run_is_an_error(recipe, asked, error, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as raised:
        paredown.run(paredown.Recipe() if recipe == "object" else recipe, smoke=True, **asked)
    assert line in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "value", [0.25, 3, True, 'a "b"\n', ["litert"], [1, 2], {"a.b": 4, "c": 8}, Path("x/y")], ids=repr
)
def test_values_arrive_as_they_are(value):
    from paredown.apps.api.recipes import _toml
    from paredown.pipeline.recipe.file import _parse_override

    expected = str(value) if isinstance(value, Path) else value
    assert _parse_override(f"a.key={_toml('a.key', value)}") == (("a", "key"), expected)


def test_validate_says_what_the_command_says(tiny: Tiny):
    result = paredown.validate(tiny.bundle, limit=1)
    assert isinstance(result, paredown.Validation) and result.passed and result.scored == 1
    assert not any(figure.metric == "map50" for figure in paredown.validate(tiny.bundle, score=False).figures)
    with pytest.raises(paredown.InputError, match="cannot read this bundle"):
        paredown.validate("absent")


# -- load ----------------------------------------------------------------------------------------------------


def test_a_detector_finds_what_the_device_finds(tiny: Tiny, tmp_path):
    path = tiny.folder / "images" / "test" / "0.png"
    image = cv2.imread(str(path))
    extract(unpack(tiny.bundle), tmp_path)
    there = Detector(tmp_path)
    expected = there(image, 0.3)
    with paredown.load(tiny.bundle) as model:
        assert (model.app, model.labels) == ("apps.detector", ("square", "disc"))
        found = model.detect(image, threshold=0.3)
        assert found == model.detect(path, 0.3) == model.detect(str(path), 0.3)
        assert model.detect(path) == model.detect(path, there.app["show_threshold"])
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose([each.box for each in found], expected.boxes)
    np.testing.assert_allclose([each.score for each in found], expected.scores)
    assert [each.label for each in found] == [there.names[kind] for kind in expected.classes]


def test_a_classifier_tells_colours_apart(classifier):
    with paredown.load(classifier.bundle, threads=2) as model:
        assert model.labels == NAMES
        for channel, name in ((2, "red"), (1, "green"), (0, "blue")):  # blue comes first
            image = np.full((40, 50, 3), 60, np.uint8)
            image[..., channel] = 200
            found = model.classify(image)
            assert found[0].label == name and found[0].probability > 0.5
            assert sum(each.probability for each in found) == pytest.approx(1, abs=1e-5)
            assert model.classify(image, top=1) == found[:1]
        with pytest.raises(paredown.UsageError, match=r"apps.classifier has no detect\(\); use classify\(\)"):
            model.detect(image)


def test_a_language_model_answers(chat):
    with paredown.load(chat.bundle) as model:
        assert (model.app, model.labels) == ("apps.chat", ())
        greedy = model.generate("The module", max_tokens=8, temperature=0)
        assert greedy and model.generate("The module", max_tokens=8, temperature=0) == greedy
        assert len(model.generate("The module", max_tokens=2, temperature=0)) < len(greedy)
        assert model.generate("A file", 4, seed=3) == model.generate("A file", 4, seed=3)
        assert model.generate("The module", 8, temperature=0, stop=[greedy[2:4]]) == greedy[:2]
        for wrong in ({"max_tokens": 0}, {"temperature": -1}, {"stop": [""]}):
            with pytest.raises(paredown.UsageError):
                model.generate("x", **wrong)
        with pytest.raises(paredown.InputError, match="empty"):
            model.generate(" ")
        with pytest.raises(paredown.UsageError, match=r"apps.chat has no classify\(\); use generate\(\)"):
            model.classify("x.png")


def test_what_cannot_be_loaded_is_an_error(tiny: Tiny, tmp_path):
    (tmp_path / "bad").write_bytes(tiny.bundle.read_bytes()[:-1])
    for path, line in ((tmp_path / "bad", "bad: "), (tmp_path / "absent", "cannot read this bundle")):
        with pytest.raises(paredown.InputError, match=line):
            paredown.load(path)
    with pytest.raises(paredown.UsageError, match="threads = 0"):
        paredown.load(tiny.bundle, threads=0)
    only = call("run", tiny.recipe, "--runs", copy_runs(tiny, tmp_path / "runs"), "--set",
                'lower.runtimes=["executorch"]')  # fmt: skip
    assert only.code == 0
    with pytest.raises(paredown.InputError, match=r"has no LiteRT program; make it with lower.runtimes"):
        paredown.load(tmp_path / "runs" / "tiny" / "host" / "bundle.paredown")


def test_what_is_no_image_is_an_error_and_closing_is_for_good(tiny: Tiny, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    model = paredown.load(tiny.bundle)
    for image in (
        tmp_path / "a.png",
        "absent.png",
        np.zeros((4, 4)),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(paredown.InputError, match="image"):
            model.detect(image)
    folder = Path(model._folder.name)
    assert folder.is_dir()
    model.close()
    model.close()
    assert not folder.exists()
    with pytest.raises(paredown.UsageError, match="the model is closed"):
        model.detect(np.zeros((4, 4, 3), np.uint8))


def test_what_is_imported_when_asked_for_is_what_the_rooms_define() -> None:
    from paredown.apps.api import model, recipes, runs
    from paredown.pipeline.recipe.schema import Recipe
    from paredown.pipeline.run.run import Result

    assert (paredown.Model, paredown.Recipe, paredown.Result) == (model.Model, Recipe, Result)
    name, whole = recipes.resolved("digits", {"bench.runs": 7})
    assert (name, whole.bench.runs) == ("digits", 7)
    assert runs.run.__annotations__["return"] == paredown.run.__annotations__["return"] == "Result"
