"""A language model from its recipe to a bundle, proved on this machine as on any device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_project import call

from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.compress.blockwise.codes import read_codes
from paredown.pipeline.device.language.speed import command, lengths
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.run.run import Run
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError

ONE = ("--smoke", "--set", 'lower.runtimes=["litert"]')
RECIPES = Path(__file__).parents[4] / "apps" / "chat" / "recipes"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("language")
    assert call("run", "gemma3-tiny", "--runs", runs, *ONE).code == 0
    return runs


@pytest.fixture(scope="module")
def folder(runs: Path) -> Path:
    return runs / "gemma3-tiny" / "host"


def test_the_program_scores_as_its_codes_do_in_torch(folder: Path) -> None:
    figures = json.loads((folder / "figures.json").read_text())
    cells = {(f["variant"], f["metric"]): f["value"] for f in figures}
    assert {f["tag"] for f in figures} == {"smoke"}
    assert cells["litert", "perplexity"] == pytest.approx(cells["codes", "perplexity"], rel=0.02)
    assert cells["litert", "perplexity"] != cells["fp32", "perplexity"]
    assert cells["codes", "weight_bytes"] < cells["litert", "file_bytes"]
    for rate in ("prefill_rate", "decode_rate", "first_token"):
        assert cells["litert", rate] > 0


def test_a_second_run_reuses_everything(runs: Path) -> None:
    done = call("run", "gemma3-tiny", "--runs", runs, *ONE)
    lines = [line for line in done.err.splitlines() if ": " in line]
    assert done.code == 0 and lines and all(line.endswith("reused") for line in lines), done.err


def test_the_codes_fill_their_bits(runs: Path) -> None:
    (file,) = runs.glob(".store/*/codes.safetensors")
    codes = read_codes(file)
    assert {weight.bits for weight in codes.values()} == {4} and "lm_head" in codes
    assert all(weight.codes.abs().max() >= 7 for weight in codes.values())


def test_it_is_proved_where_it_runs(folder: Path) -> None:
    done = call("validate", folder / "bundle.paredown", "--limit", "1", "--json")
    found = json.loads(done.out)
    assert done.code == 0, done.out
    passed = {check["name"] for check in found["checks"] if check["passed"]}
    assert {"hashes", "litert score", "runs there"} <= passed


def test_as_many_tokens_are_timed_as_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def recorded(*words: Any) -> list[str]:
        asked.append(words)
        return command(*words)

    monkeypatch.setattr("paredown.pipeline.device.language.validate.command", recorded)
    done = call("validate", folder / "bundle.paredown", "--no-score", "--times", "3", "--json")
    assert done.code == 0 and asked == [("paredown.apps.chat", "litert", 64, 3, 1)]
    assert lengths(256, 300) == (64, 192) and lengths(20, 300) == (10, 10)


def test_its_speed_is_measured_where_it_is_asked_for(folder: Path) -> None:
    done = call("bench", folder / "bundle.paredown", "--json")
    assert done.code == 0, done.err
    found = {(f["metric"], f["tag"]): f["value"] for f in json.loads(done.out)["figures"]}
    assert found["prefill_rate", "measured"] > 0 and found["decode_rate", "measured"] > 0


def test_it_answers(folder: Path) -> None:
    asked = ("--prompt", "The list type is", "--max-tokens", "8", "--temperature", "0")
    first, second = (call("chat", folder / "bundle.paredown", *asked) for _ in range(2))
    assert first.code == 0 and first.out.strip() and first.out == second.out


def test_a_bundle_of_language_is_no_camera(folder: Path) -> None:
    assert unpack(folder / "bundle.paredown").manifest.models == ()
    done = call("camera", folder / "bundle.paredown", "--source", ".")
    assert done.code == 4 and "Traceback" not in done.err


def test_what_a_memory_cannot_hold_is_refused_before_any_work(tmp_path: Path) -> None:
    small = load_card("host").model_copy(update={"memory_mib": 1})
    more = ["weight_bits=8", "embedding_bits=8", "context=512", "chunk=256"]
    recipe = load_recipe(RECIPES / "gemma3-tiny.toml", [f"language.{setting}" for setting in more])
    with pytest.raises(InputError, match=r"a context of 512 tokens need 1\.\d MiB, it has 1 MiB"):
        Run("gemma3-tiny", recipe, small, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "code", "line"),
    [
        ("weights=/no/such/folder", 4, "no such file or folder"),
        ("network=gemma4", 2, "no network `gemma4`"),
        ("language.context=1024", 4, "a context of 1,024 positions"),
        ("language.window=512", 4, "window = 512 is longer than context = 256"),
        ("prune.macs=0.5", 2, "key `prune.macs` is for image networks"),
        ("app=apps.detector", 4, "takes no texts"),
    ],
)
def test_what_cannot_be_made_is_one_line(tmp_path: Path, setting: str, code: int, line: str) -> None:
    done = call("run", "gemma3-tiny", "--runs", tmp_path, "--set", setting)
    assert done.code == code and line in done.line()
