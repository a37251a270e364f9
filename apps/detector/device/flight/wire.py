"""The wire to an autopilot: UDP, TCP or a serial line, that says when it is broken and can be opened again.

pymavlink's own connections print to standard output, take an ended TCP connection for a silent one, and do
not find a serial adapter again that was pulled and plugged: so bytes are carried here, and read there.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from paredown.targets.errors import DeviceError, UsageError

BAUD = 57600
HINT = "udp:HOST:PORT listens, udpout:HOST:PORT and tcp:HOST:PORT call, serial:/dev/ttyAMA0[,BAUD]"
CONNECT_S, SEND_S = 3.0, 0.5
CHUNK = 65536
PEER_S = 10.0  # who was silent for so long is written to no more; its address may be another by now
SILENT_S = 3.0  # an autopilot beats once a second; what we called and says less is called again


@dataclass(frozen=True)
class Address:
    """Where an autopilot is reached: `kind` is udp, udpout, tcp or serial; `number` a port or a baud rate."""

    kind: str
    place: str
    number: int

    def __str__(self) -> str:
        mark = "," if self.kind == "serial" else ":"
        place = f"[{self.place}]" if ":" in self.place else self.place
        return f"{self.kind}:{place}{mark}{self.number}"


class Wire(Protocol):
    """Bytes to and from an autopilot; each method but `close` raises OSError where the wire is broken."""

    def receive(self, seconds: float) -> bytes:
        """What came, after so many seconds at most; nothing where nothing did."""

    def write(self, data: bytes) -> None:
        """Sends a message."""

    def stale(self, silent_s: float) -> bool:
        """Whether it is to be opened anew, after so many seconds in which nothing came."""

    def close(self) -> None:
        """Lets go."""


def parse_address(text: str) -> Address:
    """Reads what a user writes; `HINT` says how.

    Raises:
        UsageError: it is no address.
    """
    kind, _, rest = text.partition(":")
    if kind == "serial":
        place, _, number = rest.partition(",")
        number = number or str(BAUD)
    else:
        place, _, number = rest.rpartition(":")
    if six := place.startswith("[") and place.endswith("]"):
        place = place[1:-1]
    strange = {"/", "[", "]"} if six else {"/", ":", "[", "]"}
    known = kind == "serial" or (kind in ("udp", "udpout", "tcp") and not strange & set(place))
    limit = 10_000_000 if kind == "serial" else 65535
    if not (known and place and number.isdecimal() and 0 < int(number) <= limit):
        raise UsageError(f"`{text}` is no MAVLink address", where="--mavlink", hint=HINT)
    return Address(kind, place, int(number))


def connect(address: Address) -> Wire:
    """Opens a wire.

    Raises:
        UsageError: pymavlink, or pyserial for a serial line, is not installed or cannot be loaded.
        DeviceError: the port is taken, nobody answers, or there is no such line.
    """
    try:
        import pymavlink  # noqa: F401  -- what reads the bytes
    except ImportError as error:  # it, or something of the system that it needs
        what, hint = f"pymavlink cannot be loaded here: {error}", "`pip install pymavlink`"
        raise UsageError(what, where="--mavlink", hint=hint) from error
    try:
        return opened(address)
    except ImportError:
        what, hint = "pyserial is not installed here", "`pip install pyserial`"
        raise UsageError(what, where="--mavlink", hint=hint) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DeviceError(f"no MAVLink here: {reason}", where=address, hint=HINT) from error


def opened(address: Address) -> Wire:
    """Opens a wire, or raises OSError."""
    if address.kind == "serial":
        return Serial(address)
    return Tcp(address) if address.kind == "tcp" else Udp(address)


class Udp:
    """Datagrams: one who listens answers whomever it heard, one who calls writes to one address."""

    def __init__(self, address: Address, clock: Callable[[], float] = time.monotonic) -> None:
        family, _, _, _, place = socket.getaddrinfo(address.place, address.number, type=socket.SOCK_DGRAM)[0]
        self._calls, self._clock = address.kind == "udpout", clock
        self._peers: dict[Any, float] = {place: float("inf")} if self._calls else {}
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            if not self._calls:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._socket.bind(place)
        except OSError:
            self._socket.close()
            raise

    def receive(self, seconds: float) -> bytes:
        """See `Wire`; that nobody listens at the other end, now, is no broken wire."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return b""
        try:
            data, peer = self._socket.recvfrom(CHUNK)
        except (BlockingIOError, ConnectionRefusedError):
            return b""
        if not self._calls:
            self._peers[peer] = self._clock()
        return data

    def write(self, data: bytes) -> None:
        """See `Wire`; a full buffer or a missing route is a lost datagram, as on the way there."""
        limit = self._clock() - PEER_S
        for peer in [peer for peer, heard in self._peers.items() if heard < limit]:
            del self._peers[peer]
        for peer in tuple(self._peers):
            try:
                self._socket.sendto(data, peer)
            except OSError:
                continue

    def stale(self, silent_s: float) -> bool:
        """See `Wire`: the host that is called may have another address by now."""
        return self._calls and silent_s > SILENT_S

    def close(self) -> None:
        """See `Wire`."""
        self._socket.close()


class Tcp:
    """A connection that we make; it is broken when the other end closes it."""

    def __init__(self, address: Address) -> None:
        self._socket = socket.create_connection((address.place, address.number), CONNECT_S)
        self._socket.settimeout(SEND_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive(self, seconds: float) -> bytes:
        """See `Wire`."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return b""
        data = self._socket.recv(CHUNK)
        if not data:
            raise ConnectionResetError("closed by the other end")
        return data

    def write(self, data: bytes) -> None:
        """See `Wire`."""
        self._socket.sendall(data)

    def stale(self, silent_s: float) -> bool:
        """See `Wire`: who lost its power closes nothing."""
        return silent_s > SILENT_S

    def close(self) -> None:
        """See `Wire`."""
        self._socket.close()


class Serial:
    """A serial line, by the name of its device file: an adapter that is plugged again may be another one."""

    def __init__(self, address: Address) -> None:
        import serial

        self._name = address.place
        self._port = serial.Serial(address.place, address.number, timeout=0, write_timeout=SEND_S)

    def receive(self, seconds: float) -> bytes:
        """See `Wire`."""
        if not select.select([self._port.fileno()], [], [], seconds)[0]:
            return b""
        data: bytes = self._port.read(CHUNK)  # readable without data is gone: pyserial raises OSError
        return data

    def write(self, data: bytes) -> None:
        """See `Wire`."""
        self._port.write(data)

    def stale(self, silent_s: float) -> bool:
        """See `Wire`: the file of this name is another one, or none, by now."""
        if silent_s < 1:
            return False
        ours, now = os.fstat(self._port.fileno()), os.stat(self._name)  # noqa: PTH116  -- OSError where none
        return (ours.st_rdev, ours.st_ino) != (now.st_rdev, now.st_ino)

    def close(self) -> None:
        """See `Wire`."""
        self._port.close()
