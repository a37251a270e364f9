"""Where a device is, as users write it, and opening what is there."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from paredown.targets.devices.device import Device
from paredown.targets.devices.shell.shell import ShellDevice
from paredown.targets.devices.transports.channel import Transport
from paredown.targets.devices.transports.retry import PATIENCE, Patience
from paredown.targets.errors import UsageError

FORMS = "`local:`, `ssh://user@host[:port]`, `adb:SERIAL`, `emulated:NAME`"


@dataclass(frozen=True)
class Address:
    """An address that was understood.

    Attributes:
        text: as the user gave it.
        kind: of device.
        name: of the host, the adb device or the board; empty where there is only one.
        user: for ssh; None = as ~/.ssh/config has it.
        port: for ssh; None likewise.
    """

    text: str
    kind: Literal["local", "ssh", "adb", "emulated"]
    name: str = ""
    user: str | None = None
    port: int | None = None


def parse_address(text: str) -> Address:
    """Reads `local:`, `ssh://user@host[:port]`, `adb://SERIAL`, `adb:` or `emulated:NAME`.

    Raises:
        UsageError: it is none of them.
    """
    kind, colon, rest = text.strip().partition(":")
    match kind:
        case "local" if not rest.strip("/"):
            return Address(text, "local")
        case "ssh" if rest.startswith("//"):
            return _ssh(text)
        case "adb" if colon:
            return Address(text, "adb", rest.removeprefix("//"))
        case "emulated" if re.fullmatch(r"[a-z0-9][a-z0-9-]*", rest.removeprefix("//")):
            return Address(text, "emulated", rest.removeprefix("//"))
    raise UsageError(f"`{text}` is no address of a device", hint=f"write {FORMS}")


def open_device(address: str, patience: Patience = PATIENCE) -> Device:
    """Connects to a device; use it with `with`.

    Args:
        address: as `parse_address` reads it.
        patience: how long it is waited for and how often it is tried.

    Raises:
        UsageError: this is no address.
        DeviceError: it cannot be reached, lacks something that we need, or has no room.
    """
    parsed = parse_address(address)
    if parsed.kind == "local":
        from paredown.targets.devices.transports.local import LocalTransport

        return ShellDevice(LocalTransport(address), patience=patience)
    if parsed.kind == "adb":
        from paredown.targets.devices.transports.adb import AdbTransport

        return ShellDevice(AdbTransport(parsed.name, address, patience), patience=patience)
    from paredown.targets.devices.transports.ssh import SshAccess, SshTransport

    if parsed.kind == "ssh":
        access = SshAccess(parsed.name, parsed.port, parsed.user)
        return ShellDevice(SshTransport(access, address, patience), patience=patience)
    return _emulated(parsed, patience)


def _emulated(address: Address, patience: Patience) -> Device:
    """Starts a board and connects to it; the board ends with the connection."""
    board = contextlib.ExitStack()
    transport = _switched_on(address, patience, board)
    return ShellDevice(transport, emulated=True, patience=patience, on_close=board.close)


def _switched_on(address: Address, patience: Patience, board: contextlib.ExitStack) -> Transport:
    """The way to a board that `board` ends, the one that leads to the device of its card."""
    from paredown.targets.cards.card import load_card

    if load_card(address.name).reach.kind == "adb":
        from paredown.targets.devices.transports.adb import AdbTransport
        from paredown.targets.emulated import adb_board

        behind = board.enter_context(adb_board.start(address.name, count_instructions=True))
        return AdbTransport(behind.serial, address.text, patience, behind.server)
    from paredown.targets.devices.transports.ssh import SshTransport
    from paredown.targets.emulated import board as boards

    there = board.enter_context(boards.start(address.name, count_instructions=True))
    return SshTransport(there, address.text, patience)


def _ssh(text: str) -> Address:
    """Takes a URL apart; urlsplit knows brackets and numbers."""
    url = urlsplit(text.strip())
    try:
        port = url.port
    except ValueError:
        port = 0
    if not url.hostname or port == 0 or url.path.strip("/") or url.query or url.fragment:
        raise UsageError(f"`{text}` is no address of an ssh server", hint="write ssh://user@host[:port]")
    if url.password is not None:
        raise UsageError("an address with a password", hint="log in with a key: `ssh-copy-id user@host`")
    return Address(text, "ssh", url.hostname, url.username, port)
