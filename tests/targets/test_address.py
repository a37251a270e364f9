"""Addresses of devices, as users write them."""

from __future__ import annotations

import pytest

from paredown.targets.address import Address, open_device, parse_address
from paredown.targets.errors import UsageError


@pytest.mark.parametrize(
    ("text", "kind", "name", "user", "port"),
    [
        ("local", "local", "", None, None),
        ("local:", "local", "", None, None),
        ("ssh://pi@raspberrypi.local", "ssh", "raspberrypi.local", "pi", None),
        ("ssh://pi@10.0.0.7:2222", "ssh", "10.0.0.7", "pi", 2222),
        ("ssh://board/", "ssh", "board", None, None),
        ("ssh://root@[fe80::1]:22", "ssh", "fe80::1", "root", 22),
        ("adb:", "adb", "", None, None),
        ("adb://", "adb", "", None, None),
        ("adb://R58M123ABC", "adb", "R58M123ABC", None, None),
        ("adb:R58M123ABC", "adb", "R58M123ABC", None, None),
        ("adb://192.168.0.5:5555", "adb", "192.168.0.5:5555", None, None),
        ("emulated:raspberry-pi-5", "emulated", "raspberry-pi-5", None, None),
    ],
)
def test_what_is_understood(text, kind, name, user, port):
    assert parse_address(text) == Address(text, kind, name, user, port)


@pytest.mark.parametrize(
    "text",
    ["", "pi@raspberrypi", "local:here", "ssh:pi@board", "http://board", "adb", "emulated:", "emulated:A B"],
)
def test_what_is_no_address(text):
    with pytest.raises(UsageError, match="is no address of a device; write `local:`, `ssh://user@host"):
        open_device(text)


@pytest.mark.parametrize(
    "text", ["ssh://", "ssh://pi@", "ssh://board:port", "ssh://board:70000", "ssh://board/x"]
)
def test_what_is_no_address_of_an_ssh_server(text):
    with pytest.raises(UsageError, match="is no address of an ssh server; write ssh://user@host"):
        open_device(text)


def test_a_password_is_not_taken_and_not_repeated():
    with pytest.raises(UsageError, match="an address with a password; log in with a key") as raised:
        open_device("ssh://pi:secret@board")
    assert "secret" not in str(raised.value)
