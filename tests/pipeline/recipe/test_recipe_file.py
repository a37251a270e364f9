from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paredown.pipeline.recipe.file import check_files, known_recipes, load_recipe, recipe_keys, resolved_toml
from paredown.pipeline.recipe.schema import Recipe
from paredown.targets.errors import InputError, ParedownError, UsageError

FULL = """
app = "my_package.app"
network = "nets/tiny.cfg"
weights = "tiny.weights"
[preprocess]
resize = "letterbox"
colour = "bgr"
mean = [0.1, 0, 0.3]
std = [1, 2.5, 3]
width = 224
height = 160
[data]
format = "coco"
names = "coco.names"
label_names = "/abs/labels.names"
train = "train.json"
calibration = "../cal.json"
test = "test.json"
images = "images"
limit = 12
[quantize]
observer = "mse"
weights = "mse"
calibration_images = 64
[lower]
runtimes = ["litert"]
[bench]
runs = 7
threads = 2
[budget]
accuracy_drop = 0.01
latency_ms = 12
"""


@pytest.fixture
def write(tmp_path):
    def write_recipe(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write_recipe


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as raised:
        load_recipe(path, overrides)
    assert raised.value.exit_code == 4 and "\n" not in str(raised.value)
    return str(raised.value)


def test_an_empty_recipe_is_the_embedded_digits(write):
    recipe = load_recipe(write(""))
    assert recipe == Recipe()
    assert (recipe.app, recipe.network, recipe.weights) == ("apps.detector", "yolov2-nano", "digits")
    assert recipe.data.format == "digits" and recipe.lower.runtimes == ("executorch", "litert")
    assert (recipe.quantize.observer, recipe.quantize.weights, recipe.quantize.calibration_images) == (
        "auto",
        "minmax",
        128,
    )
    check_files(recipe)


def test_every_key_of_a_full_recipe_arrives_and_paths_follow_the_recipe(write, tmp_path):
    recipe = load_recipe(write(FULL))
    assert recipe.network == str(tmp_path / "nets/tiny.cfg")
    assert recipe.weights == str(tmp_path / "tiny.weights")
    assert recipe.data.label_names == "/abs/labels.names"
    assert Path(recipe.data.calibration).resolve() == tmp_path.parent / "cal.json"
    assert recipe.preprocess.changes() == {
        "resize": "letterbox",
        "colour": "bgr",
        "mean": (0.1, 0, 0.3),
        "std": (1, 2.5, 3),
        "width": 224,
        "height": 160,
    }
    assert recipe.budget.limits() == {"accuracy_drop": 0.01, "latency_ms": 12}
    assert recipe.bench.threads == 2 and recipe.lower.runtimes == ("litert",)


def test_the_resolved_recipe_loads_as_itself_from_anywhere(write, tmp_path):
    recipe = load_recipe(write(FULL))
    elsewhere = tmp_path / "runs" / "x.toml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(resolved_toml(recipe))
    assert load_recipe(elsewhere) == recipe
    assert tomllib.loads(resolved_toml(Recipe()))["bench"] == {"runs": 50, "threads": 1}


def test_calibration_defaults_to_the_training_images(write, tmp_path):
    recipe = load_recipe(write('[data]\nformat="yolo"\nnames="n"\ntest="t"\ntrain="a"\n'))
    assert recipe.data.calibration == recipe.data.train == str(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[quantize]\n\nobsever = 'mse'",
            ":3: unknown key `quantize.obsever`; did you mean `observer` in [quantize]?",
        ),
        ("[lower]\nruns = 3", ":2: unknown key `lower.runs`; did you mean `runs` in [bench]?"),
        ("[data]\napp = 'x'", ":2: unknown key `data.app`; did you mean `app` at the top?"),
        ("[quantise]\nobserver = 'mse'", ":2: unknown key `quantise.observer`; did you mean [quantize]?"),
        ("netwrok = 'x'", ":1: unknown key `netwrok`; did you mean `network` at the top?"),
        ("thread = 2", ":1: unknown key `thread`; did you mean `threads` in [bench]?"),
        ("[budjet]", ":1: unknown key `budjet`; did you mean [budget]?"),
        ("[bench]\nzzzz = 1", ":2: unknown key `bench.zzzz`; the keys here are: runs, threads"),
        ("[qqqq]\nrunz.a = 1", "unknown key `qqqq.runz.a`; the sections are: preprocess, data"),
        ("[prune]\nmac = 0.5", ":2: unknown key `prune.mac`; did you mean `macs` in [prune]?"),
        ("[squantize]\nbits = 4", ":2: unknown key `squantize.bits`; did you mean"),
    ],
)
def test_unknown_keys_name_the_nearest_known_one(write, text, expected):
    path = write(text)
    line = error_of(path)
    assert line.startswith(str(path)) and expected in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[bench]\nruns = 'many'", '`bench.runs = "many"` is not accepted: it must be a valid integer'),
        ("[bench]\nruns = 2.5", "`bench.runs = 2.5` is not accepted: it must be a valid integer"),
        ("[bench]\nruns = true", "`bench.runs = true` is not accepted"),
        ("[bench]\nruns = 0", "must be greater than or equal to 1"),
        ("[bench]\nthreads = 100000", "must be less than or equal to 256"),
        ("quantize = 3", "`quantize = 3` is not accepted: it must be a table: [quantize]"),
        ("quantize.observer = 'max'", "it must be 'auto', 'minmax', 'percentile' or 'mse'"),
        (
            "lower.runtimes = 'litert'",
            '`lower.runtimes = "litert"` is not accepted: it must be a list, such as ["litert"]',
        ),
        ("lower.runtimes = []", "at least 1 item"),
        ("lower.runtimes = ['litert', 'litert']", "names one twice"),
        ("budget.accuracy_drop = nan", "finite"),
        ("budget.accuracy_drop = -0.1", "greater than or equal to 0"),
        ("preprocess.std = [1, 0, 1]", "`preprocess.std.1 = 0` is not accepted: it must be greater than 0"),
        ("preprocess.mean = []", "at least 1 item"),
        ("app = '../evil'", '`app = "../evil"` is not accepted: it must match pattern'),
        ("network = ''", "it must have at least 1 character"),
        ("network = 2024-01-01", "`network = 2024-01-01` is not accepted: it must be a valid string"),
        ("[data]\nformat = 'yolo'", 'format = "yolo" also needs: names, test'),
        ("[data]\nformat = 'yolo'\nnames = 'n'\ntest = 't'", "also needs: calibration (or train)"),
        ("[data]\ntrain = 'images'", 'format = "digits" brings its own data: remove train'),
        ("[data]\nformat = 'yolo'\nnames = ''\ntest = 't'\ntrain = 'x'", "`data.names"),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_accepted(write, text, expected):
    path = write(text)
    line = error_of(path)
    assert line.startswith(str(path)) and expected in line


def test_overrides_are_toml_or_plain_text(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(
        write("[bench]\nruns = 3\n"),
        [
            "bench.runs=9",
            "bench.threads = 2",
            "network=yolov2-tiny",
            "quantize.observer=mse",
            "budget.latency_ms=4",
            "lower.runtimes=['litert']",
            "weights='a.pt'",
            "preprocess={width=32}",
            "app=my.app",
        ],
    )
    assert (recipe.bench.runs, recipe.bench.threads, recipe.network) == (9, 2, "yolov2-tiny")
    assert recipe.quantize.observer == "mse" and recipe.budget.latency_ms == 4
    assert recipe.lower.runtimes == ("litert",) and recipe.preprocess.changes() == {"width": 32}
    assert load_recipe(write(""), ["network=42"]).network == "42"  # a name is a name
    assert load_recipe(write(""), ["network=a=b"]).network == "a=b"


def test_a_path_on_the_command_line_is_relative_to_the_working_folder(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "r.toml").write_text('weights = "a.pt"\n')
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("recipes/r.toml")).weights == str(folder / "a.pt")
    assert load_recipe(Path("recipes/r.toml"), ["weights=a.pt"]).weights == str(tmp_path / "a.pt")


@pytest.mark.parametrize("override", ["bench.runs", "=3", "bench.=3", ".runs=3", ""])
def test_an_override_that_is_no_assignment_is_a_usage_error(write, override):
    with pytest.raises(UsageError, match="is not key=value") as raised:
        load_recipe(write(""), [override])
    assert raised.value.exit_code == 2


def test_a_bad_override_is_named_as_it_was_typed(write):
    path = write("network = 'a'")
    assert error_of(path, "bench.runs=many").startswith('--set bench.runs=many: `bench.runs = "many"`')
    assert "did you mean `observer` in [quantize]?" in error_of(path, "quantize.obsever=mse")
    assert "less than or equal to 8" in error_of(path, "squantize.weight_bits=9")
    assert "sparsity or sigma, not both" in error_of(path, "squantize.sparsity=0.5", "squantize.sigma=0.1")
    assert "no table to set a key in" in error_of(path, "network.x=1")
    assert "--set network" in error_of(path, "network={a=1}")
    assert error_of(path, "bench.runs=1\nbench.threads=2").startswith("--set bench.runs=1")


def test_names_are_found_in_the_search_folders_first_come_first_served(tmp_path):
    for folder, runs in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "digits.toml").write_text(f"bench.runs = {runs}")
    (tmp_path / "two" / "photos.toml").write_text("")
    search = [tmp_path / "one", tmp_path / "two", tmp_path / "absent"]
    assert load_recipe("digits", search=search).bench.runs == 1
    assert set(known_recipes(search)) == {"digits", "photos"}
    with pytest.raises(UsageError, match="unknown recipe `digit`, did you mean `digits`.*digits, photos"):
        load_recipe("digit", search=search)
    with pytest.raises(UsageError, match="known recipes: none"):
        load_recipe("digits")


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(InputError, match="no such recipe file"):
        load_recipe(tmp_path / "absent.toml")
    (tmp_path / "b.toml").write_bytes(b"app = 'caf\xe9'")
    with pytest.raises(InputError, match="not UTF-8"):
        load_recipe(str(tmp_path / "b.toml"))
    (tmp_path / "b.toml").write_text("[bench]\nruns = 1\nruns = 2")
    with pytest.raises(InputError, match="not valid TOML"):
        load_recipe(str(tmp_path / "b.toml"))


def test_check_files_names_the_missing_file_and_its_key(write, tmp_path):
    path = write('weights = "w.pt"\n[data]\nformat="yolo"\nnames="n.names"\ntest="t"\ntrain="a"\n')
    for name in ("n.names", "w.pt"):
        (tmp_path / name).touch()
    (tmp_path / "t").mkdir()
    with pytest.raises(InputError, match=r"no such file or folder \(`data.train` of the recipe\)"):
        check_files(load_recipe(path))
    (tmp_path / "a").mkdir()
    check_files(load_recipe(path))
    with pytest.raises(InputError, match="weights"):
        check_files(load_recipe(path, [f"weights={'x' * 5000}.pt"]))


def test_every_key_is_documented():
    def undocumented(schema, prefix=""):
        for name, field in schema.model_fields.items():
            if not field.description:
                yield prefix + name
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                yield from undocumented(field.annotation, f"{name}.")

    assert list(undocumented(Recipe)) == []
    keys = list(recipe_keys())
    assert ("quantize", "observer") in keys and ("app",) in keys and len(keys) == len(set(keys)) > 25


values = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.text(max_size=5), st.lists(st.integers(), max_size=3)
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.one_of(
        st.sampled_from([".".join(key) for key in recipe_keys()]), st.text("abz._-= é\n\0'\"[]", max_size=12)
    ),
    value=st.one_of(values.map(str), st.text(max_size=12)),
)
def test_any_override_loads_or_fails_with_one_line(tmp_path, key, value):
    path = tmp_path / "mine.toml"
    path.touch()
    try:
        assert isinstance(load_recipe(path, [f"{key}={value}"]), Recipe)
    except ParedownError as error:
        assert "\n" not in str(error)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=30), at=st.integers(0, len(FULL)), cut=st.integers(0, 60))
def test_mangled_recipes_load_or_fail_with_one_line(tmp_path, data, at, cut):
    path = tmp_path / "mine.toml"
    path.write_bytes(FULL[:at].encode() + data + FULL[at + cut :].encode())
    try:
        recipe = load_recipe(path)
        check_files(recipe)
    except InputError as error:
        assert "\n" not in str(error)


def test_a_home_folder_is_expanded(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load_recipe(write('weights = "~/w.pt"')).weights == os.fspath(tmp_path / "home" / "w.pt")
