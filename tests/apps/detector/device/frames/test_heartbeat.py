"""Signs of life reach whoever gave a socket, and cost nothing where nobody did."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from paredown.apps.detector.device.frames import heartbeat
from paredown.apps.detector.device.frames.heartbeat import Heartbeat

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("abstract", [True, False])
def test_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = "@paredown-test-beats" if abstract else "beats"
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as keeper:
        keeper.bind("\0" + name[1:] if abstract else name)
        keeper.setblocking(False)
        beat = Heartbeat()
        for _ in range(30):
            beat()
            now[0] += 0.1
        heard = []
        while True:
            try:
                heard.append(keeper.recv(100))
            except BlockingIOError:
                break
        assert 3 <= len(heard) <= 4 and set(heard) == {b"WATCHDOG=1"}


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Heartbeat()()
    Heartbeat("@paredown-nobody")()
    Heartbeat("/gone/beats")()
