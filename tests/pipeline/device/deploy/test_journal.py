"""The journal of a rollout: whole or the one before, one rollout at a time, the same command goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paredown.pipeline.device.deploy.journal import Record, alone, begin, journal_file, read_journal
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit


def made(folder: Path, key: str = "k", anew: bool = False, release: str = "r2"):
    path = journal_file(folder / "fleet.toml")
    return begin(path, key, release, "digits", [Record("a", "local:", 1), Record("b", "adb:1", 2)], anew)


def test_the_same_command_goes_on_where_it_was(tmp_path: Path) -> None:
    first = made(tmp_path)
    first.note(first.records[0], state="soaking", before="r1", now="r2")
    again = made(tmp_path)
    assert again.to_dict() == first.to_dict() and again.records[0].state == "soaking"
    assert not list(tmp_path.glob(".*"))  # nothing half-written


def test_another_one_is_refused_until_this_is_finished_or_given_up(tmp_path: Path) -> None:
    first = made(tmp_path)
    first.note(first.records[0], state="done")
    with pytest.raises(UsageError, match="the rollout of digits r2, begun .* is not finished; .*--anew"):
        made(tmp_path, "other")
    assert made(tmp_path, "other", anew=True, release="r3").records[0].state == "waiting"
    last = made(tmp_path, "other")
    last.note(last.records[0], before="r1", now="r3", state="done")
    last.decide(finished=True)
    fresh = made(tmp_path, "k")
    assert fresh.release == "r2" and [record.known for record in fresh.records] == ["r3", "unknown"]
    assert fresh.records[0].release(True) == "r3" and fresh.records[0].now == "unknown"  # nobody asked yet


def test_only_one_at_a_time(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    with alone(fleet), pytest.raises(UsageError, match="another rollout of this fleet is at work"):
        with alone(fleet):
            pytest.fail("two at once")
    with alone(fleet):
        pass


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2, "devices": []}', '{"format": 1, "devices": [{}]}', '{"format": 1, "devi'],
)
def test_a_damaged_one_is_one_line(tmp_path: Path, text: str) -> None:
    path = journal_file(tmp_path / "fleet.toml")
    path.write_text(text)
    with pytest.raises(InputError, match="is no journal of a rollout, or damaged; delete it"):
        read_journal(path)


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write here"), alone(tmp_path / "gone" / "fleet.toml"):
        pytest.fail("there is no such folder")
    journal = made(tmp_path)
    kept = json.loads(journal.path.read_text())
    journal.path.unlink()
    journal.path.mkdir()
    with pytest.raises(InputError, match="rollout.json"):
        journal.note(journal.records[0], state="done")
    assert kept["devices"][0]["state"] == "waiting"
