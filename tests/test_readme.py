"""Every snippet of the README does what it says: commands run, recipes load, Python runs, figures hold."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from needs import needs

from paredown.pipeline.recipe.file import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def paredown(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "paredown.apps.cli.main", *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's commands have run."""
    folder = tmp_path_factory.mktemp("readme")
    for block in blocks("sh"):
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "paredown"
            assert paredown(arguments, folder).strip()
    return folder


def test_the_main_job_leaves_what_the_readme_lists(folder: Path) -> None:
    listed = re.findall(r"`([\w.]+\.(?:paredown|json|md|png|toml))`", README)
    run = folder / "runs" / "digits" / "host"
    expected = {"bundle.paredown", "figures.json", "report.md", "preview.png", "recipe.toml", "stages.json"}
    for name in expected:
        assert name in listed and (run / name).stat().st_size > 0


def test_the_table_of_the_main_job_is_what_it_prints(folder: Path) -> None:
    figures = json.loads((folder / "runs" / "digits" / "host" / "figures.json").read_text())
    cells = {(f["variant"], f["metric"]): f["value"] for f in figures}
    (printed,) = (block for block in blocks("text") if "mAP@50" in block)
    lines = [line.split() for line in printed.splitlines() if re.match(r" ?\w+.* \d", line)]
    rows = {line[0]: line[1:] for line in lines}
    for variant in ("fp32", "integer", "executorch", "litert"):
        assert float(rows[variant][0]) == pytest.approx(cells[variant, "map50"], abs=0.003)
    for runtime in ("executorch", "litert"):
        assert cells[runtime, "parity_lsb"] == 0 and cells[runtime, "undelegated_ops"] == 0
        assert cells["fp32", "map50"] - cells[runtime, "map50"] <= 0.005


def test_the_recipe_is_one(tmp_path: Path) -> None:
    (block,) = blocks("toml")
    (tmp_path / "voc.toml").write_text(block)
    recipe = load_recipe(tmp_path / "voc.toml")
    assert recipe.data.test == str(tmp_path / "images" / "val") and recipe.budget.accuracy_drop == 0.01


def test_the_python_runs(folder: Path) -> None:
    for block in blocks("python"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", block], cwd=folder, env=environment, check=True)
    assert (folder / "board" / "apps" / "detector" / "device" / "detect.py").is_file()


#: Lowering to ExecuTorch takes half a minute for each of these networks.
ONE_RUNTIME = ["--set", 'lower.runtimes=["litert"]']


@pytest.mark.slow
@pytest.mark.sample
def test_the_commands_of_compression_run(tmp_path: Path) -> None:
    for line in "".join(blocks("shell")).splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "paredown"
        smoke = [] if arguments[0] == "groups" else ["--smoke", *ONE_RUNTIME]
        assert paredown([*arguments, *smoke], tmp_path).strip()
    run = tmp_path / "runs" / "digits" / "host"
    for name in ("sensitivity.json", "sensitivity.png", "plan.json", "pruned.safetensors"):
        assert name in README and (run / name).stat().st_size > 0
    (code,) = blocks("py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


#: What makes the README's device commands short, on this machine in the place of the board.
SHORT = {
    "run": ["--smoke", *ONE_RUNTIME], "validate": ["--limit", "2", "--times", "2"],
    "bench": ["--minutes", "0"], "cost": ["--set", "prune.widths=2"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.sample
def test_the_commands_for_devices_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    (block,) = blocks("console")
    for line in block.splitlines():
        program, *arguments = shlex.split(line.replace("ssh://pi@raspberrypi.local", "local:"), comments=True)
        assert program == "paredown"
        if arguments[0] == "cost":  # this machine's times are nobody else's
            arguments[arguments.index("raspberry-pi-5")] = "host"
        assert paredown([*arguments, *SHORT.get(arguments[0], [])], tmp_path).strip()
    assert (tmp_path / "latency-host-litert.json").stat().st_size > 0
    command = ["run", "digits", "--target", "cortex-m4", "--limit", "2", "--smoke"]
    assert "LiteRT Micro" in paredown(command, tmp_path)


@pytest.mark.slow
@pytest.mark.sample
def test_the_chat_and_the_camera_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    for line in "".join(blocks("zsh")).splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "paredown"
        assert paredown([*arguments, *SHORT.get(arguments[0], [])], tmp_path).strip()
    photos = folder / "photos"
    photos.mkdir()
    shutil.copy(folder / "runs" / "digits" / "host" / "preview.png", photos)
    (line,) = "".join(blocks("fish")).splitlines()
    seen, whole = map(json.loads, paredown(shlex.split(line)[1:], folder).splitlines())
    assert seen["detections"] and whole["summary"]["frames"] == 1 and (folder / "found.png").is_file()


@pytest.mark.slow
@pytest.mark.sample
def test_the_sessions_with_the_apps_are_what_they_say(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Line by line; a release's name and decimals (times, sizes) are another machine's."""
    needs("npm", "npm")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("HOME", str(tmp_path))
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(folder / "runs" / "digits" / "host" / "preview.png", photos)

    def plain(text: str) -> list[str]:
        text = text.replace(str(photos), "/home/pi/photos")
        return re.sub(r"\b[0-9a-f]{12}\b", "RELEASE", re.sub(r"\d+\.\d+", "0.0", text)).splitlines()

    for block in blocks("sh-session"):
        for said in block.split("$ ")[1:]:
            line, _, expected = said.partition("\n")
            program, *arguments = shlex.split(line.replace("/home/pi/photos", str(photos)))
            assert program == "paredown"
            assert plain(paredown(arguments, folder)) == plain(expected)


def test_the_training_command_is_there() -> None:
    assert "paredown train IMAGES" in README
    for module in ("paredown.apps.detector.train", "apps.detector.train"):
        command = [sys.executable, "-m", module, "--help"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert "--out" in result.stdout


def test_the_set_up_commands_are_those_of_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    test_command = blocks("bash")[1]
    assert "'.[test]'" in test_command and "pip install --quiet --editable '.[test]'" in ci
    tests = "python -m pytest -n 2 --dist loadfile -m 'not slow'"
    assert tests in test_command and tests in ci
