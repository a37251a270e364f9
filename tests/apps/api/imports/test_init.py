"""Recipes by asking: defaults, answers, flags; what is written explains itself, is valid, and runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from onnx_models import small_net
from tiny_project import call

from paredown.apps.api.imports.init import asked_for, default, init
from paredown.pipeline.recipe.file import load_recipe, recipe_keys
from paredown.pipeline.recipe.task import load_task
from paredown.targets.errors import InputError, ParedownError, UsageError

NOTHING = dict.fromkeys(("data", "task", "mean", "scale", "channels", "shape", "target"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_net(tmp_path)
    for name in "abcde":
        (tmp_path / "photos" / name).mkdir(parents=True)
        picture = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / name / "one.png"), picture)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(answers: dict[str, str]):
    """Answers questions that begin so; of all others the default. Keeps what was asked."""
    heard: list[tuple[str, str]] = []

    def ask(question: str, value: str) -> str:
        heard.append((question, value))
        return next((a for start, a in answers.items() if question.startswith(start)), "") or value

    return ask, heard


def made(place: str | None, ask: Any, **given: str) -> tuple[dict[str, Any], str]:
    path, lines = init(Path(place) if place else None, NOTHING | given, None, ask)
    return tomllib.loads(path.read_text()), "\n".join(lines)


def test_defaults_are_what_the_files_show(here):
    tables, said = made("model.onnx", default, data="photos")
    assert (tables["app"], tables["network"]) == ("apps.classifier", "model.onnx")
    assert tables["data"]["test"] == "photos" and tables["data"]["names"] == "model.names.txt"
    assert "the task is classify" in said and said.endswith("next: paredown run model.toml")
    assert load_task(load_recipe(here / "model.toml")).network() is not None


def test_every_key_is_there_once_and_explained(here):
    made("model.onnx", default, data="photos")
    lines = (here / "model.toml").read_text().split("\n")
    written = re.compile(rf"^# ((?:{'|'.join(sorted({key[-1] for key in recipe_keys()}))}) =)", re.MULTILINE)
    for key in (key for key in recipe_keys() if key[0] != "language"):
        section = lines.index(f"[{key[0]}]") if len(key) > 1 else 0
        places = [i for i, line in enumerate(lines) if line.removeprefix("# ").startswith(f"{key[-1]} =")]
        before = lines[next(i for i in places if i > section) - 1]
        assert before.startswith("# ") and not written.match(before), key
    plain = load_recipe(here / "model.toml")
    lines = [line for line in lines if not (written.match(line) and line.endswith("="))]
    (here / "model.toml").write_text(written.sub(r"\1", "\n".join(lines)))
    assert load_recipe(here / "model.toml") == plain  # the values in comments are the defaults


def test_answers_and_flags_stand_over_defaults(here):
    ask, heard = asked({"Task": "outputs", "Scale": "255", "Channels": "bgr", "Target": "raspberry-pi-5"})
    tables, said = made("model.onnx", ask, data="photos", mean="0")
    assert tables["app"] == "apps.outputs"
    assert tables["preprocess"]["mean"] == [0, 0, 0] and tables["preprocess"]["std"] == [1, 1, 1]
    assert tables["preprocess"]["colour"] == "bgr"
    assert said.endswith("next: paredown run model.toml --target raspberry-pi-5")
    assert dict(heard)["Task (outputs, classify)"] == "classify"
    assert not any(question.startswith(("Mean", "Data", "Model")) for question, _ in heard)
    assert "ImageNet" not in said  # nothing is assumed any more


def test_a_folder_is_data_and_the_model_is_asked_for(here):
    ask, heard = asked({"Model": "model.onnx"})
    tables, _ = made("photos", ask)
    assert tables["network"] == "model.onnx" and heard[0][0].startswith("Model file")
    with pytest.raises(UsageError, match="no model file is given; paredown init MODEL --data FOLDER --yes"):
        made("photos", default)
    with pytest.raises(UsageError, match="no data is given"):
        made("model.onnx", default)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"Task": "dance"}, "Task: no 'dance'; use outputs, classify"),
        ({"Target": "toaster"}, "Target: no 'toaster'"),
        ({"Mean": "a,b"}, "--mean: 'a,b' is no list of numbers"),
        ({"Channels": "grey"}, "Channels: no 'grey'; use rgb, bgr"),
        ({"Data": "gone"}, "gone: no such file or folder"),
    ],
)
def test_an_answer_that_is_none_is_one_line_and_nothing_is_written(here, answers, said):
    ask, _ = asked({"Data": "photos"} | answers)
    with pytest.raises(ParedownError) as caught:
        made("model.onnx", ask)
    assert said in str(caught.value) and not (here / "model.toml").exists()


def test_an_edited_recipe_is_kept(here):
    made("model.onnx", default, data="photos")
    text = (here / "model.toml").read_text()
    (here / "model.toml").write_text(text + "# mine\n")
    _, said = made("model.onnx", default, data="photos")
    assert (here / "model.before.toml").read_text().endswith("# mine\n") and "is kept as" in said


def test_the_command_needs_a_terminal_or_yes(here):
    done = call("init", "model.onnx", "--data", "photos")
    assert (
        done.code == 2
        and done.err == "paredown: init asks, and there is no terminal; add --yes to take the defaults\n"
    )
    done = call("init", "model.onnx", "--data", "photos", "--yes", "--out", "mine.toml")
    assert done.code == 0 and done.out == "mine.toml\n", done.err
    assert load_recipe(here / "mine.toml").app == "apps.classifier"


def test_a_closed_terminal_is_one_line(monkeypatch):
    def closed(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    with pytest.raises(UsageError, match="Data: no answer"):
        asked_for("Data", "")
    monkeypatch.setattr("builtins.input", lambda prompt: {"Data [x]: ": ""}[prompt])
    assert asked_for("Data", "x") == "x"


def test_a_damaged_model_is_its_line(here):
    (here / "model.onnx").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"model\.onnx"):
        made("model.onnx", default, data="photos")
