"""`paredown fit` on a tiny project: a budget is met, or what would do is told."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from tiny_project import call, make_project

from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.run.job import Settings
from paredown.pipeline.run.search.fit.fit import Asked, _device, fit
from paredown.pipeline.run.search.fit.held_out import HeldOut, JudgingJob
from paredown.pipeline.run.search.fit.strategy import Candidate
from paredown.pipeline.run.search.fit.world import recipe_for
from paredown.pipeline.store.store import Store
from paredown.targets.cards.card import load_card
from paredown.targets.errors import UsageError

SHORT = """
[prune]
multiple = 4

[recover]
epochs = 4
batch = 2

[squantize]
epochs = 4
batch = 2

[lower]
runtimes = ["litert"]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = make_project(tmp_path)
    path.write_text(path.read_text() + SHORT)
    return path


@pytest.mark.parametrize(
    ("target", "words", "line"),
    [
        ("host", [], "budget: there is no limit to fit to; give --latency-ms"),
        ("host", ["--bundle-kib", "0"], "--bundle-kib: `0` can never be kept"),
        ("host", ["--latency-ms", "0"], "--latency-ms: `0` can never be kept; give more than 0"),
        ("host", ["--instructions-m", "nan"], "--instructions-m: `nan` is no limit; give a number"),
        ("host", ["--hours", "inf", "--drop", "0.1"], "--hours: `inf` is no limit"),
        ("host", ["--drop", "2"], "--drop: `2` is more than all of the score; give a fraction"),
        ("host", ["--hours", "-1", "--drop", "0.1"], "--hours: `-1` can never be kept"),
        ("host", ["--latency-ms", "1", "--instructions-m", "1"], "contradict each other"),
        ("host", ["--instructions-m", "1"], "nothing here counts instructions of host"),
        ("raspberry-pi-5", ["--latency-ms", "1"], "nothing here gives milliseconds of raspberry-pi-5"),
        ("raspberry-pi-5", ["--latency-ms", "1", "--device", "local:"], "this machine is no raspberry-pi-5"),
        ("raspberry-pi-5", ["--latency-ms", "1", "--device", "emulated:raspberry-pi-5"],
         "emulated milliseconds mean nothing; give --instructions-m"),
        ("iphone", ["--drop", "0.1"], "target iphone has no runtime `litert`"),
        ("host", ["--drop", "0.1", "--set", "data.train=nowhere"], "no such file or folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(recipe, tmp_path, target, words, line):
    done = call("fit", recipe, "--target", target, "--runs", tmp_path / "runs", "--quiet", *words)
    assert done.code in (2, 4) and line in done.line()


def test_two_at_once_are_one_too_many(recipe, tmp_path):
    folder = tmp_path / "runs" / "tiny-fit" / "host"
    folder.mkdir(parents=True)
    with (folder / ".fit.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("123")
        lock.flush()
        done = call("fit", recipe, "--drop", "0.1", "--runs", tmp_path / "runs")
    assert done.code == 2 and "another fit of tiny for host is at work (process 123)" in done.line()


def test_an_emulated_board_is_found_for_instructions():
    card = load_card("raspberry-pi-5")
    assert _device(card, None, "instructions_m") == "emulated:raspberry-pi-5"
    assert _device(card, None, None) is None and _device(load_card("host"), None, "latency_ms") == "local:"


def test_a_recipe_for_a_candidate_changes_what_fit_chooses_alone():
    recipe = load_recipe("digits", ["prune.latency=0.5", "squantize.sigma=1", "squantize.grid=uniform"],
                         [Path(__file__).parents[5] / "apps" / "detector" / "recipes"])  # fmt: skip
    plain = recipe_for(recipe, Candidate())
    assert not plain.prune.active and not plain.squantize.active
    made = recipe_for(recipe, Candidate(0.5, 4, 0.7, 0.5))
    assert made.prune.budget == ("macs", 0.5) and made.recover.epochs == recipe.recover.epochs / 2
    assert (made.squantize.weight_bits, made.squantize.sparsity, made.squantize.sigma) == (4, 0.7, None)
    assert made.squantize.grid == "uniform" and made.squantize.epochs == recipe.squantize.epochs / 2


def test_candidates_are_judged_on_held_out_training_images(recipe, tmp_path, monkeypatch):
    resolved, card = load_recipe(recipe), load_card("host")
    job = JudgingJob(Settings("x", resolved, card, Store(tmp_path / "store")))
    assert isinstance(job.test.whole, HeldOut) and len(job.test) == 1 and len(job.task.data("train")) == 4
    names = {job.test.whole._data[0].name}
    assert names <= {job.task.data("train")[i].name for i in range(4)}
    assert job.test.fingerprint() != job.task.data("test").fingerprint()


def test_contradictions_are_told_before_any_work(recipe, tmp_path):
    with pytest.raises(UsageError, match="no limit"):
        fit("tiny", load_recipe(recipe), load_card("host"), tmp_path / "runs", Asked())
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_budget_is_met_or_it_is_told_what_would_do_and_all_of_it_is_reused(recipe, tmp_path):
    words = ["fit", recipe, "--runs", tmp_path / "runs", "--json"]
    done = call(*words, "--bundle-kib", "20", "--drop", "0.5")
    told = json.loads(done.out)
    assert done.code == 3 and not told["met"] and told["chosen"] is None and told["run"] is None
    assert told["why"].startswith("the bundle cannot be met: the least that channels, bits and zeros")
    assert not list((tmp_path / "runs").glob("tiny-fit/host/bundle.paredown")), (
        "nothing touched the test data"
    )
    size = told["nearest"]["kib"]
    wanted = ["--bundle-kib", f"{size - 0.3:.3f}", "--drop", "0.9"]
    first, second = (json.loads(call(*words, *wanted).out) for _ in range(2))
    assert first["chosen"]["kib"] <= size - 0.3 and first["chosen"] == second["chosen"]
    assert second["built"] == 0 and first["judged"] == second["judged"]
    bundle = tmp_path / "runs" / "tiny-fit" / "host" / "bundle.paredown"
    assert bundle.stat().st_size / 1024 <= size - 0.3 + 0.3
    ledger = json.loads((bundle.parent / "stages.json").read_text())
    trained = {entry["name"]: entry["outcome"] for entry in ledger}
    assert trained["squantize"] == "reused", "what ships is what was judged"
