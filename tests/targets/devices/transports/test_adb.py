"""Android-style devices by the platform's own adb and adbd, each fault provoked."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from adb_device import HOST, Adbd, Unauthorising, listens_on, loopback_library
from device_contract import TWO_PROGRAMS, DeviceContract, Running, client_of, gone, interrupt, lives, until
from needs import needs
from ports import free_port
from ssh_device import Proxy

from paredown.targets.address import open_device
from paredown.targets.devices.errors import (
    AdbMissingError,
    AdbOfflineError,
    AdbPermissionsError,
    AdbUnauthorisedError,
    ConnectionLostError,
    NoAdbDeviceError,
    SeveralAdbDevicesError,
    UnreachableError,
)
from paredown.targets.devices.transports.retry import Patience

QUICK = Patience(attempts=6, pause_s=0.1, answer_s=20.0, grace_s=5.0)
ONCE = Patience(attempts=1, answer_s=20.0)


@pytest.fixture(scope="module")
def adb(tmp_path_factory):
    """The adb command with a server and a home of our own."""
    path = needs("adb", "adb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))

        def adb(*arguments):
            done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
            return done.stdout + done.stderr

        yield adb
        adb("kill-server")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return loopback_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def phone(adb, library, tmp_path_factory):
    phone = Adbd(library, tmp_path_factory.mktemp("phone"))
    yield phone
    phone.kill()


@pytest.fixture(autouse=True)
def _nothing_connected(adb):
    yield
    adb("disconnect")


class TestAdb(DeviceContract):
    @pytest.fixture
    def device(self, phone):
        with open_device(f"adb://{phone.serial}", QUICK) as device:
            assert (device.kind, device.emulated) == ("adb", False)
            yield device
        assert not Path(device.workspace).parent.exists()


def test_the_devices_of_these_tests_listen_on_the_loopback_only(phone):
    assert listens_on(phone.port) == {"0000000000000000FFFF00000100007F"}


def test_no_adb(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AdbMissingError, match=r"^adb: no adb installed; .*apt install adb"):
        open_device("adb:")


def test_no_device(adb):
    with pytest.raises(NoAdbDeviceError, match=r"^adb: no adb device; plug it in"):
        open_device("adb:")


def test_the_only_device_need_not_be_named(adb, phone):
    adb("connect", phone.serial)
    with open_device("adb:") as device:
        assert device.run(["echo", "here"], timeout=30).out == "here\n"


def test_another_device_than_the_named_one(adb, phone):
    adb("connect", phone.serial)
    with pytest.raises(NoAdbDeviceError, match=rf"no adb device: R58M123; there are {phone.serial}$"):
        open_device("adb://R58M123")


def test_two_devices(adb, phone, library, tmp_path):
    second = Adbd(library, tmp_path)
    adb("connect", phone.serial)
    adb("connect", second.serial)
    with pytest.raises(SeveralAdbDevicesError) as raised:
        open_device("adb:")
    assert f"{phone.serial} (device)" in str(raised.value) and f"{second.serial} (device)" in str(
        raised.value
    )
    assert "; choose one: adb://127.0.0.1:" in str(raised.value)
    with open_device(f"adb:{second.serial}") as device:
        assert device.run(["echo", "here"], timeout=30).out == "here\n"
    second.kill()


def test_nobody_there(adb):
    with pytest.raises(UnreachableError, match="cannot be reached: failed to connect .*Connection refused"):
        open_device(f"adb://{HOST}:{free_port()}", ONCE)


def test_a_device_that_has_not_accepted_this_machine(adb):
    device = Unauthorising()
    with pytest.raises(AdbUnauthorisedError, match=rf"unauthorised: {device.serial}; unlock the device"):
        open_device(f"adb://{device.serial}", ONCE)
    device.close()


@pytest.mark.parametrize(
    ("state", "kind", "said"),
    [
        ("no permissions (user in plugdev group; are your udev rules wrong?); see [http://x]",
         AdbPermissionsError, "no permission to use the adb device: X1; `sudo apt install"),
        ("recovery", AdbOfflineError, "X1 is in recovery; `adb reboot` starts it"),
        ("sideload", AdbOfflineError, "X1 is in sideload"),
        ("offline", AdbOfflineError, "X1 is `offline`; wait until"),
    ],
)  # fmt: skip
def test_what_adb_says_of_a_device_is_what_we_say(tmp_path, monkeypatch, state, kind, said):
    """An adb of ours that lists a device in this state, as the platform's does."""
    (tmp_path / "adb").write_text(f"#!/bin/sh\nprintf 'List of devices attached\\nX1\\t{state}\\n'\n")
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(kind) as error:
        open_device("adb:", ONCE)
    assert said in str(error.value)


def test_a_device_that_is_offline(adb):
    with socket.create_server((HOST, 0)) as silent:
        serial = f"{HOST}:{silent.getsockname()[1]}"
        connecting = subprocess.Popen([needs("adb", "adb"), "connect", serial], stdout=subprocess.DEVNULL)
        until(lambda: serial in adb("devices"), "adb lists the device")
        with pytest.raises(AdbOfflineError, match=rf"adb device offline: {serial} is `\w+`; wait until"):
            open_device(f"adb://{serial}", ONCE)
        connecting.kill()
        connecting.wait()


def test_a_device_that_dies_while_running(adb, library, tmp_path):
    """`adb shell` then ends with status 1, as `false` does."""
    phone = Adbd(library, tmp_path)
    with open_device(f"adb://{phone.serial}", QUICK) as device:
        running = Running(device, f"echo once >>runs; {TWO_PROGRAMS}")
        phone.kill()
        assert isinstance(running.end(), ConnectionLostError)
        gone(running.pids)
        phone.start()
        assert device.run(["cat", "runs"], timeout=30).out == "once\n"
    assert not Path(device.workspace).parent.exists()
    phone.kill()


@pytest.fixture
def proxy(phone):
    proxy = Proxy(phone.port)
    yield proxy
    proxy.close()


def test_a_link_cut_while_pushing(adb, proxy, payload):
    with open_device(f"adb://{HOST}:{proxy.port}", QUICK) as device:
        proxy.up, proxy.more_cuts = 100_000, 1
        device.push(payload, "x")
        assert proxy.cuts == 1
        assert (Path(device.workspace) / "x").read_bytes() == payload.read_bytes()
        proxy.more_cuts = 1000
        with pytest.raises((ConnectionLostError, AdbOfflineError, UnreachableError)):
            device.push(payload, "y")
        proxy.more_cuts = 0
        until(lambda: [path.name for path in Path(device.workspace).iterdir()] == ["x"], "only x is there")
        device.push(payload, "y")
        assert (Path(device.workspace) / "y").read_bytes() == payload.read_bytes()
    assert not Path(device.workspace).parent.exists()


def test_a_link_cut_while_pulling(adb, proxy, payload, tmp_path):
    with open_device(f"adb://{HOST}:{proxy.port}", QUICK) as device:
        device.push(payload, "x")
        (tmp_path / "back").write_bytes(b"before")
        proxy.down = 100_000
        with pytest.raises((ConnectionLostError, AdbOfflineError, UnreachableError)):
            device.pull("x", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"before"
        proxy.more_cuts = 0
        device.pull("x", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == payload.read_bytes()


def test_ctrl_c_ends_what_runs_and_cleans_up(adb, phone, tmp_path):
    with client_of(f"adb://{phone.serial}", tmp_path) as (process, pids):
        folder = Path(f"/proc/{pids[0]}/cwd").readlink()
        interrupt(process)
        assert not any(map(lives, pids))
        assert not folder.parent.exists()


def test_nothing_outlives_a_client_that_is_killed(adb, phone, tmp_path):
    with client_of(f"adb://{phone.serial}", tmp_path) as (process, pids):
        folder = Path(f"/proc/{pids[0]}/cwd").readlink()
        process.kill()
        gone(pids)
        shutil.rmtree(folder.parent)  # nobody was left to do it
