"""A second process builds stages as this one would; whatever goes wrong there is done here."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tiny_project import call, make_project

from paredown.pipeline.run.image import job
from paredown.pipeline.run.job import Settings
from paredown.pipeline.run.start import beside
from paredown.pipeline.run.start.beside import Beside
from paredown.pipeline.store.stage import Stage
from paredown.pipeline.store.store import Store

#: Stands for the process: reads the settings, then answers each key by its line's number, and may die.
ANSWERS = """
import pickle, sys
pickle.load(sys.stdin.buffer)
for number, line in enumerate(sys.stdin.buffer):
    if number == {dies}: sys.exit(1)
    print(number + 0.5, flush=True)
"""


@dataclass(frozen=True)
class Params:
    number: int
    more: tuple[int, ...] = field(default=())


def stages(count: int) -> tuple[Stage, list[Stage]]:
    first = Stage("first", 1, Params(0), {}, lambda out, inputs: None)
    return first, [
        Stage(f"score-{n}", 1, Params(n), {"first": first}, lambda out, inputs: None) for n in range(1, count)
    ]


def opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: int, moved: list[Stage], there: Stage
) -> Beside:
    monkeypatch.setattr(beside, "SERVE", ("-c", ANSWERS.format(dies=dies)))
    settings = Settings("x", None, None, Store(tmp_path))  # type: ignore[arg-type]
    other = Beside(settings)
    other.offer(moved, [there.key])
    return other


def built(other: Beside, count: int) -> None:
    """Waits until so many stages were built there."""
    for _ in range(12_000):
        if sum(value is not None for value in other._seconds.values()) >= count or not other._waiting:
            return
        time.sleep(0.01)
    raise AssertionError("nothing was built")


def test_the_last_come_first_and_what_this_process_has_taken_is_left_to_it(tmp_path, monkeypatch):
    first, moved = stages(4)
    other = opened(tmp_path, monkeypatch, 99, moved, first)
    built(other, 3)
    assert [other.take(stage) for stage in reversed(moved)] == [0.5, 1.5, 2.5]
    other.close()
    other = opened(tmp_path, monkeypatch, 99, moved, Stage("other", 1, Params(9), {}, first.build))
    assert other.take(moved[0]) is None, "its input is not there yet"
    other.finish(first)
    built(other, 2)
    assert [other.take(stage) for stage in moved] == [None, 1.5, 0.5]
    other.close()


def test_while_a_stage_is_built_there_another_is_built_here(tmp_path, monkeypatch):
    go = tmp_path / "go"
    waits = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
    monkeypatch.setattr(beside, "SERVE", ("-c", waits + ANSWERS.format(dies=99)))
    first, moved = stages(4)
    late = Stage("late", 1, Params(9), {"score": moved[0]}, first.build)
    other = Beside(Settings("x", None, None, Store(tmp_path)))  # type: ignore[arg-type]
    other.offer([*moved, late], [first.key])
    for _ in range(1_000):
        if moved[2].key in other._seconds:
            break
        time.sleep(0.01)
    assert other.meanwhile(moved[0]) is None, "it is not built there: this process builds it itself"
    assert [other.meanwhile(moved[2]) for _ in range(3)] == [moved[0], moved[1], None]
    other.finish(moved[0])
    assert other.meanwhile(moved[2]) is late
    go.touch()
    assert other.take(moved[2]) == 0.5 and other.meanwhile(moved[2]) is None
    assert [other.take(stage) for stage in (*moved[:2], late)] == [None] * 3
    other.close()


@pytest.mark.parametrize("dies", [0, 1])
def test_what_a_process_that_died_has_not_built_is_left_to_this_one(tmp_path, monkeypatch, dies):
    first, moved = stages(4)
    other = opened(tmp_path, monkeypatch, dies, moved, first)
    taken = [other.take(stage) for stage in reversed(moved)]
    assert taken[dies + 1 :] == [None] * (len(moved) - dies - 1) and None in taken
    assert all(value is None or value < dies for value in taken)
    other.close()
    assert other._process.returncode is not None


def test_it_can_be_started_before_it_is_known_what_it_builds(tmp_path, monkeypatch):
    first, moved = stages(3)
    monkeypatch.setattr(beside, "SERVE", ("-c", ANSWERS.format(dies=99)))
    other = Beside(Settings("x", None, None, Store(tmp_path)))  # type: ignore[arg-type]
    assert other.take(first) is None, "nothing was offered"
    other.finish(first)
    other.offer(moved, [])
    built(other, 2)
    assert [other.take(stage) for stage in moved] == [1.5, 0.5]
    other.close()
    idle = Beside(Settings("x", None, None, Store(tmp_path)))  # type: ignore[arg-type]
    idle.close()
    assert idle._process.returncode is not None


@pytest.mark.slow
def test_a_run_with_a_second_process_makes_the_same_artefacts(tmp_path, monkeypatch):
    recipe = make_project(tmp_path)
    found = []
    for number, worth in enumerate((1e30, 0.0)):
        monkeypatch.setattr(job, "WORTH_MACS", worth)
        runs = tmp_path / f"runs{number}"
        done = call("run", recipe, "--runs", runs, "--json")
        assert done.code == 0, done.err
        kept = {
            path.parent.name: json.loads(path.read_text()) for path in runs.glob(".store/*/artefact.json")
        }
        scores = {k: v for k, v in kept.items() if v["meta"]["stage"].startswith("score-")}
        assert len(scores) == 4
        found.append(scores)
        ledger = json.loads((runs / "tiny/host/stages.json").read_text())
        assert ledger and all(entry["outcome"] == "built" for entry in ledger)
    assert found[0] == found[1]
