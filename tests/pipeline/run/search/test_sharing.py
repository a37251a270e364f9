"""Processes that share a store: one builds a stage while the others wait, and who times is alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from paredown.pipeline.run.search.sharing import BusyError, Sharing
from paredown.pipeline.store.stage import Stage


@dataclass(frozen=True)
class Params:
    number: int


def stage(name: str, number: int = 0) -> Stage:
    return Stage(name, 1, Params(number), {}, lambda out, inputs: None)


def hold(root: Path, name: str, number: int, inside: Any, leave: Any) -> None:
    """A process that is in a stage until it may leave."""
    with Sharing(root).around(stage(name, number)):
        inside.set()
        leave.wait(30)


class Other:
    """Another process in a stage."""

    def __init__(self, root: Path, name: str, number: int = 0) -> None:
        context = multiprocessing.get_context("fork")
        self.inside, self.leave = context.Event(), context.Event()
        self.process = context.Process(target=hold, args=(root, name, number, self.inside, self.leave))
        self.process.start()

    def end(self) -> None:
        self.leave.set()
        self.process.join(30)
        assert self.process.exitcode == 0


def test_the_same_stage_waits_and_another_does_not(tmp_path):
    first = Other(tmp_path, "prune", 1)
    assert first.inside.wait(30)
    same, other = Other(tmp_path, "prune", 1), Other(tmp_path, "prune", 2)
    assert other.inside.wait(30), "another stage goes on"
    assert not same.inside.is_set()
    first.end()
    assert same.inside.wait(30)
    same.end()
    other.end()


def test_who_times_is_alone(tmp_path):
    first = Other(tmp_path, "prune")
    assert first.inside.wait(30)
    timing = Other(tmp_path, "bench")
    while not blocked(timing.process.pid):
        time.sleep(0.01)
    late = Other(tmp_path, "recover")  # it came after who wants to time, and lets him go first
    assert not timing.inside.is_set()
    first.end()
    assert timing.inside.wait(30)
    assert not late.inside.is_set()
    timing.end()
    assert late.inside.wait(30)
    late.end()


def test_a_killed_process_gives_its_locks_back(tmp_path):
    first = Other(tmp_path, "bench")
    assert first.inside.wait(30)
    second = Other(tmp_path, "bench")
    os.kill(first.process.pid, signal.SIGKILL)
    assert second.inside.wait(30)
    second.end()
    first.process.join(30)


def test_who_is_not_patient_waits_for_no_training(tmp_path):
    training = Other(tmp_path, "squantize", 1)
    assert training.inside.wait(30)
    hurried = Sharing(tmp_path, patient=False)
    for name, number in (("squantize", 1), ("bench", 0)):
        with pytest.raises(BusyError), hurried.around(stage(name, number)):
            pytest.fail("it went in")
    for name, number in (("squantize", 2), ("integer", 1)):  # another training, and what needs no quiet
        with hurried.around(stage(name, number)):
            pass
    training.end()
    for name, number in (("squantize", 1), ("bench", 0)):
        with hurried.around(stage(name, number)):
            pass


def test_who_is_not_patient_waits_for_what_is_short(tmp_path):
    first = Other(tmp_path, "integer", 1)
    assert first.inside.wait(30)
    context = multiprocessing.get_context("fork")
    went = context.Event()

    def wait() -> None:
        with Sharing(tmp_path, patient=False).around(stage("integer", 1)):
            went.set()

    second = context.Process(target=wait)
    second.start()
    while not blocked(second.pid):
        time.sleep(0.01)
    assert not went.is_set()
    first.end()
    assert went.wait(30)
    second.join(30)


def blocked(pid: int | None) -> bool:
    """Whether a process waits for a lock, by the kernel's own list."""
    return any("->" in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines())
