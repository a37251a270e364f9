"""Progress on standard error: a line per stage, how far the one at work is, nothing at all if asked."""

from __future__ import annotations

import time

import pytest

from paredown.apps.cli.console import Pulse, screen
from paredown.pipeline.store.event import Event, EventLog, nobody

pytestmark = pytest.mark.unit


def test_a_stage_at_work_says_how_far_it_is_and_how_long_it_will_take():
    now, said = [0.0], []
    pulse = Pulse(said.append, 20.0, lambda: now[0])
    assert pulse.line() == ""
    pulse.begin("score-litert")
    now[0] = 40.0
    assert pulse.line() == "score-litert: at work for 40 s"
    pulse.tick(100, 300)
    assert pulse.line() == "score-litert: at work for 40 s, 100/300, about 80 s left"
    pulse.tick(1, 300)
    assert pulse.line() == "score-litert: at work for 40 s, 1/300, about 199 min left"
    pulse.begin("")
    assert pulse.line() == ""


def test_it_is_said_again_and_again_until_the_end():
    said: list[str] = []
    pulse = Pulse(said.append, 0.001)
    pulse.begin("trace")

    def say(line):
        said.append(line)
        if len(said) == 3:
            pulse.end()

    pulse._say = say
    pulse.run()
    assert len(said) == 3 and all(line.startswith("trace: at work for ") for line in said)


@pytest.mark.parametrize(
    ("options", "lines"),
    [({}, ["trace: done in 1.0 s"]), ({"quiet": True}, []),
     ({"verbose": True}, ["trace: running", "trace: done in 1.0 s"])],
)  # fmt: skip
def test_what_is_said_without_a_terminal(capfd, options, lines):
    with screen(**options) as (tell, tick):
        tell(Event("trace", "running"))
        tick(1, 2)
        tell(Event("trace", "done", 1.0))
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines() == lines


def test_the_log_has_every_event_once_it_is_begun(tmp_path):
    log = EventLog(tmp_path / "run" / "run.log", nobody)
    log(Event("trace", "running"))
    assert not (tmp_path / "run").exists(), "a plan writes nothing"
    log.begin()
    log(Event("trace", "done", 1.0))
    log.line("SHIP")
    lines = (tmp_path / "run" / "run.log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["trace: done in 1.0 s", "SHIP"]
    assert all(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in lines)
    log.begin()
    assert (tmp_path / "run" / "run.log").read_text() == ""
