"""A log that stays short, whatever is said and wherever the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.targets.devices.service.board import log as module
from paredown.targets.devices.service.board.log import LINE_BYTES, Log

pytestmark = pytest.mark.unit


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_what_comes_in_pieces_is_written_whole(tmp_path_factory, pieces: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    log = Log(path)
    for piece in pieces:
        log.feed(piece)
    log.end()
    said = b"".join(pieces)
    assert (path.read_bytes() if path.exists() else b"") == said + (
        b"\n" if said and said[-1:] != b"\n" else b""
    )
    assert log.dropped == 0


def test_it_turns_and_never_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_BYTES", 1000)
    log = Log(tmp_path / "log")
    for index in range(500):
        log.feed(b"%05d\n" % index)
        assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    text = (tmp_path / "log.1").read_text() + (tmp_path / "log").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"log", "log.1"}
    assert text.splitlines()[-1] == "00499" and len(text) > 1000


def test_a_line_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    for _ in range(64):
        log.feed(10000 * b"x")
        assert len(log._rest) < LINE_BYTES
    log.end()
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert max(map(len, lines)) <= LINE_BYTES + 10000 and sum(map(len, lines)) == 640000


def test_a_full_disk_costs_lines_which_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third line is torn: the disk takes a part of it, and then nothing for a while."""
    room = [12, 0, 0, 0]
    real = os.write

    def write(file: int, data: bytes) -> int:
        if data[:1] == b"a" or not room:
            return real(file, data)
        if (bytes_ := room.pop(0)) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[:bytes_])

    log = Log(tmp_path / "log")
    monkeypatch.setattr(module.os, "write", write)
    for line in (b"a1", b"a2", b"lost and torn", b"lost 2", b"lost 3", b"lost 4", b"back", b"more"):
        log.line(line)
    assert (tmp_path / "log").read_text().splitlines() == [
        "a1", "a2", "lost and tor", "paredown: no space for 4 lines", "back", "more",
    ]  # fmt: skip
    assert log.dropped == 4 and log.last == "more"


def test_a_folder_that_is_gone_is_no_error(tmp_path: Path) -> None:
    log = Log(tmp_path / "gone" / "log")
    log.feed(b"one\ntwo\n")
    assert (log.dropped, log.last) == (2, "two")


def test_errors_are_counted_by_how_a_line_begins(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.feed(
        b"Traceback (most recent call last):\nno error here\n[ERROR:0@1] x\n  error: y\nerrors: 0\nFatal x\n"
    )
    assert log.errors == 4
