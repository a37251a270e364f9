"""Worker processes: events and outcomes come back, who dies is tried once more, none outlives us."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_project import ROOT

from paredown.pipeline.run.search import workers
from paredown.pipeline.run.search.workers import LocalWorkers, Outcome, Work, _Waiting
from paredown.pipeline.store.event import Event

#: Stands for a worker: tells an event, dies as often as the work's name says, then answers.
ANSWERS = """
import json, os, pathlib, pickle, signal, sys
class Plain(pickle.Unpickler):
    def find_class(self, module, name):
        return pathlib.PosixPath if "Path" in name else type(name, (), {{}})
while True:
    work = Plain(sys.stdin.buffer).load()
    print(json.dumps(dict(stage="s", state="done", seconds=1.0, detail=work.name)), flush=True)
    name, _, dies = work.name.partition("-")
    tries = pathlib.Path({folder!r}) / name
    tries.write_text((tries.read_text() if tries.exists() else "") + "x")
    if len(tries.read_text()) <= int(dies or 0):
        os.kill(os.getpid(), signal.SIGKILL)
    print(json.dumps(dict(built=len(tries.read_text()), reused=os.getpid())), flush=True)
"""


def works(folder: Path, *names: str) -> list[Work]:
    return [Work(name, None, None, folder) for name in names]  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(workers, "SERVE", ("-c", ANSWERS.format(folder=str(tmp_path))))
    return tmp_path


@pytest.mark.parametrize("jobs", [1, 2])
def test_outcomes_and_events_come_back_and_a_killed_worker_is_replaced(folder, jobs):
    heard: list[tuple[int, Event]] = []
    asked = works(folder, "a", "b-1", "c-2", "d")
    found = dict(LocalWorkers(jobs).outcomes(asked, lambda *told: heard.append(told)))
    assert {number: outcome.built for number, outcome in found.items() if not outcome.error} == {
        0: 1,
        1: 2,
        3: 1,
    }
    assert found[2] == Outcome(error="its worker was killed (SIGKILL) and again was killed (SIGKILL)", code=1)
    assert {(number, event.detail) for number, event in heard} == set(enumerate("a b-1 c-2 d".split()))
    assert [number for number, _ in heard].count(2) == 2, "it was tried twice, and not a third time"


def test_busy_work_comes_back_and_waits_when_nothing_else_is_left():
    waiting, busy = _Waiting(4, workers=2), Outcome(busy=True)
    assert waiting.take(0) == (0, False)
    assert waiting.take(1) == (2, False), "each has a part of its own"
    assert waiting.give(1, 2, Outcome(built=2, reused=5, seconds=1.0, busy=True)) is None
    assert waiting.take(1) == (3, False)
    assert waiting.give(1, 3, busy) is None
    assert waiting.take(1) == (2, False), "something was built since: it may go on"
    assert waiting.give(1, 2, busy) is None
    assert waiting.take(1) == (3, False)
    assert waiting.give(1, 3, busy) is None
    assert waiting.take(1) == (2, True), "all have been tried in vain"
    assert waiting.give(1, 2, Outcome(built=1, reused=7)) == Outcome(3, 5, 1.0)
    assert waiting.take(1) == (3, False)
    assert waiting.give(1, 3, Outcome(built=1)) == Outcome(built=1)
    assert waiting.take(1) == (1, False), "the other's last, when its own are done"
    assert waiting.give(1, 1, Outcome()) == Outcome()
    assert waiting.take(1) is None
    assert waiting.give(0, 0, Outcome()) == Outcome()
    assert waiting.take(0) is None


def test_a_single_worker_is_always_patient():
    waiting = _Waiting(2, workers=1)
    assert [waiting.take(0), waiting.take(0), waiting.take(0)] == [(0, True), (1, True), None]


def test_workers_end_with_the_one_who_asked(folder):
    asked = works(folder, "a", "b", "c")
    outcomes = LocalWorkers(1).outcomes(asked, lambda number, event: None)
    pid = next(outcomes)[1].reused
    assert Path(f"/proc/{pid}").exists()
    outcomes.close()  # type: ignore[attr-defined]
    assert not Path(f"/proc/{pid}").exists()


def test_a_real_worker_ends_when_standard_input_does():
    process = subprocess.Popen(
        [sys.executable, *workers.SERVE], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0


def test_what_goes_wrong_in_a_run_is_an_outcome(tmp_path, tiny):
    from paredown.pipeline.recipe.file import load_recipe
    from paredown.targets.cards.card import load_card

    recipe = load_recipe(tiny.recipe, ["data.test=nowhere"])
    done = workers.perform(Work("x", recipe, load_card("host"), tmp_path), lambda event: None)
    assert done.code == 4 and "nowhere" in done.error and done.built == 0
    broken = workers.perform(Work("x", None, load_card("host"), tmp_path), lambda event: None)  # type: ignore[arg-type]
    assert broken.code == 1 and broken.error.startswith("AttributeError: ")
