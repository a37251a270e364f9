"""Commands and Python of the README and of docs/ do what the pages say: they are executed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from executed import at_once, paredown, python, python_at_once, slow
from manual import DOCS, ROOT, blocks
from needs import needs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every unmarked command has run once, the README's as a user starts them."""
    folder = tmp_path_factory.mktemp("manual")
    done: list[list[str]] = []
    for block in blocks("sh", mark=""):
        for command in block.commands():
            assert command[0] == "paredown"
            if command not in done:
                execute = paredown if block.page == "README.md" else at_once
                assert execute(command[1:], folder).strip()
                done.append(command)
    assert ["paredown", "run", "digits", "--target", "host"] in done
    return folder


def test_the_main_job_leaves_what_is_listed(folder: Path) -> None:
    page = (DOCS / "getting-started.md").read_text()
    part = page.partition("## What a run leaves")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`([\w.]+\.(?:paredown|json|md|png|toml|html|log|pte|tflite))`", part))
    expected = {
        "bundle.paredown", "figures.json", "report.md", "preview.png", "recipe.toml", "stages.json",
        "model.tflite", "model.pte", "report.html", "report.json", "run.log",
    }  # fmt: skip
    assert listed == expected
    for name in expected:
        assert (folder / "runs" / "digits" / "host" / name).stat().st_size > 0


def test_the_table_of_the_main_job_is_what_it_prints(folder: Path) -> None:
    run = folder / "runs" / "digits" / "host"
    figures, report = (json.loads((run / name).read_text()) for name in ("figures.json", "report.json"))
    cells = {(f["variant"], f["metric"]): f["value"] for f in figures}
    (printed,) = (block.text for block in blocks("text") if block.page == "README.md")
    lines = [line.split() for line in printed.splitlines() if re.match(r" ?\w+.* \d", line)]
    rows = {line[0]: line[1:] for line in lines}
    for variant in ("fp32", "integer", "executorch", "litert"):
        assert float(rows[variant][0]) == pytest.approx(cells[variant, "map50"], abs=0.003)
    # a busy clock may prefer a float32 program, which has no codes; that is said then
    rolled_back = {note.partition(":")[0] for note in report["notes"] if ": rolled back: " in note}
    for runtime in ("executorch", "litert"):
        assert cells[runtime, "undelegated_ops"] == 0
        assert cells.get((runtime, "parity_lsb")) == (None if runtime in rolled_back else 0)
        assert cells["fp32", "map50"] - cells[runtime, "map50"] <= 0.005


def test_the_python_of_the_readme_runs(folder: Path) -> None:
    import paredown as package

    (block,) = (b for b in blocks("python") if b.page == "README.md")
    for name in ("run", "load"):
        assert hasattr(package, name), f"the README shows paredown.{name}, which is not there yet"
    shutil.copy(folder / "runs" / "digits" / "host" / "preview.png", folder / "photo.jpg")
    assert python(block, folder).startswith("True")


def test_the_unpacked_bundle_detects_on_a_photo(folder: Path) -> None:
    """The Python of getting-started.md, and the board's command after it, here in the board's folder."""
    (block,) = (b for b in blocks("python", mark="") if b.page == "getting-started.md")
    python(block, folder)
    board = folder / "board"
    assert (board / "paredown" / "apps" / "detector" / "device" / "detect.py").is_file()
    shutil.copy(folder / "runs" / "digits" / "host" / "preview.png", board / "photo.jpg")
    (line,) = (c for b in blocks("sh", mark="needs: hardware") for c in b.commands() if c[0] == "python")
    command = [sys.executable, *line[1:]]
    lonely = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, cwd=board, env=lonely, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["detections"] and (board / "found.png").is_file()


def test_a_model_from_elsewhere_is_read(tmp_path: Path) -> None:
    block, keras, program = (b for b in blocks("python", mark="") if b.page == "models-from-elsewhere.md")
    said = python_at_once(block, tmp_path)
    assert re.search(r"ONNX, opset \d+ \(1, 3, 32, 32\)", said)
    assert "Conv2d(3, 8" in said and "Linear(in_features=2048" in said
    said = python_at_once(keras, tmp_path)
    assert said.startswith("Keras 2.15.0 (1, 3, 8, 8)") and "Linear" in said
    said = python_at_once(program, tmp_path)
    assert said.startswith("torch.export (1, 3, 8, 8)") and said.endswith("TorchScript\n")


def test_the_detector_of_the_manual_says_how_it_is_decoded(tmp_path: Path) -> None:
    """The Python of own-network.md is a factory that a recipe may name."""
    from paredown.apps.detector.task import DetectorTask
    from paredown.pipeline.recipe.file import load_recipe

    (block,) = (b for b in blocks("python", mark="") if b.page == "own-network.md")
    assert python_at_once(block, tmp_path).split() == "[(1, 32, 12, 12), (1, 10, 12, 12)]".split()
    (tmp_path / "heads_of_the_manual.py").write_text(block.text)
    (tmp_path / "net.pth").touch()
    recipe = tmp_path / "heads.toml"
    recipe.write_text(
        'network = "heads_of_the_manual:make"\nweights = "net.pth"\n[data]\nformat = "digits"\n'
    )
    task = DetectorTask(load_recipe(recipe))
    assert task.output_names == ("box1", "cls1") and task.preprocess.width == 96


@pytest.mark.slow
@pytest.mark.sample
def test_the_camera_runs(folder: Path) -> None:
    (folder / "photos").mkdir()
    shutil.copy(folder / "runs" / "digits" / "host" / "preview.png", folder / "photos")
    (command,) = slow("camera.md")
    seen, whole = map(json.loads, at_once(command, folder).splitlines())
    assert seen["detections"] and whole["summary"]["frames"] == 1 and (folder / "found.png").is_file()


@pytest.mark.slow
def test_the_sessions_with_the_apps_are_what_they_say(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line by line; a release's name and decimals (times, sizes) are another machine's."""
    needs("npm", "npm")
    monkeypatch.setenv("HOME", str(tmp_path))
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(folder / "runs" / "digits" / "host" / "preview.png", photos)

    def plain(text: str) -> list[str]:
        text = text.replace(str(photos), "/home/pi/photos")
        return re.sub(r"\b[0-9a-f]{12}\b", "RELEASE", re.sub(r"\d+\.\d+", "0.0", text)).splitlines()

    sessions = blocks("console", mark="runs: session")
    pages = {"camera.md", "drone.md", "fleet.md", "phone-page.md", "trust.md"}
    assert {block.page for block in sessions} == pages
    (fleet,) = (block for block in blocks("toml") if block.page == "fleet.md" and "local:" in block.text)
    (folder / "fleet.toml").write_text(fleet.text)
    for block in sessions:
        said = block.text.split("$ ")[1:]
        for (program, *arguments), each in zip(block.commands(), said, strict=True):
            assert program == "paredown"
            there = [word.replace("/home/pi/photos", str(photos)) for word in arguments]
            assert plain(at_once(there, folder)) == plain(each.partition("\n")[2])


def test_the_training_command_is_there() -> None:
    """By its name, and by the module's name of the release before; test_options.py has this one's."""
    assert "paredown train IMAGES" in (DOCS / "own-data.md").read_text()
    command = [sys.executable, "-m", "apps.detector.train", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--out" in result.stdout
