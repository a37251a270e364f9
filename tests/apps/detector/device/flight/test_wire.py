"""A wire that breaks is told, and comes back: TCP, UDP and a serial line by its name."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mavlink_peer import attitude, heartbeat, position
from ports import free_port
from pymavlink.dialects.v20 import common

from paredown.apps.detector.device.flight.mavlink import Link
from paredown.apps.detector.device.flight.vehicle import Pose, Trust, Vehicle
from paredown.apps.detector.device.flight.wire import Address, connect, parse_address

PATIENCE_S = 120.0  # of the tests, on a busy machine
PATIENT = Trust(attitude_s=5, position_s=5)


def sent(write: Callable[[bytes], object]) -> Callable[[], None]:
    """Says heartbeat, attitude and position to `write`."""
    began, us = time.monotonic(), common.MAVLink(None, srcSystem=1, srcComponent=1)

    def send() -> None:
        boot = 1000 + int(1e3 * (time.monotonic() - began))
        for message in (heartbeat(), attitude(boot), position(boot)):
            write(bytes(message.pack(us)))

    return send


def heard(vehicle: Vehicle) -> bool:
    now = time.monotonic()
    return isinstance(vehicle.pose(now, now, PATIENT), Pose)


def until(true: Callable[[], bool], send: Callable[[], None] = lambda: None) -> None:
    """Waits for something, speaking meanwhile."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < PATIENCE_S
        with contextlib.suppress(OSError):
            send()
        time.sleep(0.02)


@contextlib.contextmanager
def linked(address: str) -> Iterator[tuple[Vehicle, list[str], Link]]:
    vehicle, log, parsed = Vehicle(1), [], parse_address(address)
    with Link(connect(parsed), vehicle, 200, log.append, parsed) as link:
        yield vehicle, log, link


def test_tcp_is_closed_and_listens_again(capfd) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    with linked(f"tcp:127.0.0.1:{port}") as (vehicle, log, _):
        peer, _ = server.accept()
        until(lambda: heard(vehicle) and "autopilot heard" in log, sent(peer.sendall))
        peer.close()
        server.close()
        until(lambda: not heard(vehicle))
        now = time.monotonic()
        assert str(vehicle.pose(now, now, PATIENT)).startswith("link lost: ")
        with socket.create_server(("127.0.0.1", port)) as again:
            peer, _ = again.accept()
            until(lambda: heard(vehicle), sent(peer.sendall))
            peer.close()
    assert any(line.startswith(f"tcp:127.0.0.1:{port}: ") and "trying again" in line for line in log)
    assert any("open again after" in line for line in log)
    assert len(log) < 12
    assert capfd.readouterr().out == ""  # nothing of it between the JSON lines


def test_tcp_whose_other_end_lost_its_power() -> None:
    """No end of file comes: it is silent, and called again."""
    server = socket.create_server(("127.0.0.1", 0))
    with server, linked(f"tcp:127.0.0.1:{server.getsockname()[1]}") as (vehicle, log, _):
        dead, _ = server.accept()
        until(lambda: heard(vehicle), sent(dead.sendall))
        peer, _ = server.accept()  # comes by itself
        until(lambda: heard(vehicle), sent(peer.sendall))
        dead.close()
        peer.close()
    assert any("nothing came for 3 s" in line for line in log)


def test_an_autopilot_that_never_pauses_is_answered() -> None:
    """It says more than we can wait a pause of: our heartbeat comes all the same."""
    server = socket.create_server(("127.0.0.1", 0))
    with server, linked(f"tcp:127.0.0.1:{server.getsockname()[1]}") as (vehicle, log, _):
        peer, _ = server.accept()
        peer.settimeout(PATIENCE_S)
        over = threading.Event()

        def flood() -> None:
            send = sent(peer.sendall)
            while not over.wait(0.002):
                send()

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            parser, got = common.MAVLink(None), []
            while sum(message.get_type() == "HEARTBEAT" for message in got) < 2:
                got += parser.parse_buffer(peer.recv(65536)) or ()
        finally:
            over.set()
            thread.join()
            peer.close()
    assert "autopilot heard" in log


def test_udp_from_another_port(capfd) -> None:
    """An autopilot that restarts speaks from a port of its own choice, and is answered there."""
    port = free_port()
    with linked(f"udp:127.0.0.1:{port}") as (vehicle, _, _link):
        for _ in range(2):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.settimeout(PATIENCE_S)
                send = sent(lambda data, peer=peer: peer.sendto(data, ("127.0.0.1", port)))
                until(lambda: vehicle.connected(time.monotonic(), 0.5), send)
                assert peer.recv(1000)  # our heartbeat
            until(lambda: not vehicle.connected(time.monotonic(), 0.5))
    assert capfd.readouterr().out == ""


def test_udp_that_nobody_listens_to_goes_on() -> None:
    with linked(f"udpout:127.0.0.1:{free_port()}") as (vehicle, log, _):
        time.sleep(0.2)
        assert not heard(vehicle)
    assert log == []


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6() -> None:
    assert parse_address("tcp:[::1]:5760") == Address("tcp", "::1", 5760)
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 loopback: {error}")
    with server, linked(f"tcp:[::1]:{server.getsockname()[1]}") as (vehicle, _, _link):
        peer, _ = server.accept()
        until(lambda: heard(vehicle), sent(peer.sendall))
        peer.close()


class Adapter:
    """A serial adapter that is pulled and plugged: a terminal behind a name."""

    def __init__(self, name: Path) -> None:
        self.name = name

    def plug(self) -> None:
        self.ours, self._theirs = pty.openpty()
        tty.setraw(self._theirs)
        self.name.unlink(missing_ok=True)
        self.name.symlink_to(os.ttyname(self._theirs))
        os.set_blocking(self.ours, False)

    def write(self, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self.ours, data)
        with contextlib.suppress(BlockingIOError):
            os.read(self.ours, 65536)

    def pull(self) -> None:
        self.name.unlink()
        os.close(self.ours)
        os.close(self._theirs)


def test_a_serial_adapter_is_pulled_and_plugged(tmp_path, capfd) -> None:
    adapter = Adapter(tmp_path / "ttyX")
    adapter.plug()
    with linked(f"serial:{adapter.name},57600") as (vehicle, log, _):
        until(lambda: heard(vehicle), sent(adapter.write))
        adapter.pull()
        until(lambda: not heard(vehicle))
        adapter.plug()
        until(lambda: heard(vehicle), sent(adapter.write))
        adapter.pull()
    assert any("open again after" in line for line in log)
    assert capfd.readouterr().out == ""


def test_what_is_written_to_a_broken_wire_was_not_sent() -> None:
    """A peer that reads nothing: the message is not counted as sent, and nobody waits for it for long."""
    from test_mavlink import FIX, POSE

    server = socket.create_server(("127.0.0.1", 0))
    with server, linked(f"tcp:127.0.0.1:{server.getsockname()[1]}") as (_, _log, link):
        peer, _ = server.accept()
        assert link.landing_target(FIX, POSE)
        told: list[bool] = []

        def flood() -> None:
            while link.landing_target(FIX, POSE):
                continue
            told.append(True)

        thread = threading.Thread(target=flood)
        thread.start()
        peer.close()
        thread.join(30)
        assert told == [True]
