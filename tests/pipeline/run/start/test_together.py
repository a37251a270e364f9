"""A run under torchrun: trainings are shared out, all else is made once, and keys say so."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tiny_project import ROOT, call, make_project

from paredown.pipeline.run.params import processes
from paredown.pipeline.run.start import together
from paredown.pipeline.run.start.together import follows, lead, release

SHORT = ("prune.macs=0.7", "prune.multiple=4", "recover.epochs=4", "recover.batch=2",
         "squantize.weight_bits=4", "squantize.epochs=4", "squantize.batch=2",
         'lower.runtimes=["litert"]')  # fmt: skip
SET = [word for setting in SHORT for word in ("--set", setting)]


@pytest.mark.unit
def test_without_torchrun_there_is_nothing_to_lead_or_follow(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(together, "_said", pytest.fail)
    assert processes() is None and not follows()
    lead(None)  # type: ignore[arg-type]
    release()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert processes() == 3 and follows()
    monkeypatch.setenv("RANK", "0")
    assert not follows()


def test_keys_of_trainings_tell_how_many_take_part(tmp_path, monkeypatch):
    words = ["run", make_project(tmp_path), "--runs", tmp_path / "runs", "--dry-run", "--json", *SET]

    def keys() -> dict[str, str]:
        return {each["name"]: each["key"] for each in json.loads(call(*words).out)["stages"]}

    alone = keys()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert keys() == alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    two = keys()
    assert {name for name in ("trace", "prune", "recover", "squantize") if two[name] != alone[name]} == {
        "recover", "squantize",
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_of_torchrun_make_one_run(tmp_path):
    recipe, made = make_project(tmp_path), {}
    for name in ("first", "second"):
        words = ["run", str(recipe), "--runs", str(tmp_path / name), "--json", *SET]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python",
             sys.executable, "-m", "paredown.apps.cli.main", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["verdict"]["word"] == "SHIP"
        folder = tmp_path / name / "tiny" / "host"
        entries = {entry["name"]: entry for entry in json.loads((folder / "stages.json").read_text())}
        assert {entry["outcome"] for entry in entries.values()} == {"built"}
        assert entries["squantize"]["params"]["processes"] == 2
        made[name] = (folder / "model.tflite").read_bytes()
    assert made["first"] == made["second"]
