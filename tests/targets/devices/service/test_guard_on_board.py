"""An emulated Raspberry Pi over ssh takes what its keys signed; its Python alone verifies that."""

from __future__ import annotations

from pathlib import Path

import pytest
from needs import needs
from signing import APP, A, B, small_release, trusting

from paredown.targets.devices.service.service import Board, Service
from paredown.targets.devices.shell.shell import ShellDevice
from paredown.targets.devices.transports.ssh import SshTransport
from paredown.targets.emulated.board import start
from paredown.targets.errors import DeviceError


@pytest.mark.slow
def test_a_raspberry_pi_verifies_signatures_by_itself(tmp_path: Path) -> None:
    needs("qemu-aarch64", "qemu-user")
    needs("proot", "proot")
    archive, envelope, name = small_release(A)
    with start("raspberry-pi-5") as board:
        address = f"ssh://{board.user}@{board.host}"
        with ShellDevice(SshTransport(board, address), emulated=True) as device:
            found = device.run(["python3", "-c", "import cryptography"], timeout=60.0, check=False)
            assert found.code, "the board shall have Python's own library alone"
            there = Service(device, "app")
            (tmp_path / "trust.json").write_bytes(trusting((A,)))
            Board(device).trust(tmp_path / "trust.json", "raspberry-pi-5")
            there.install(archive, name, {}, envelope)
            assert there.start(name, "app", [])["running"]
            for said, given in {
                "not signed": (archive, name, {}, None),
                "signed by unknown key": (archive, name, {}, small_release(B)[1]),
                "release 6 of digits is older than 7": (archive, name, {}, small_release(A, release=6)[1]),
                "manifest.json is not what was signed": (
                    archive,
                    name,
                    {},
                    small_release(A, app=APP + "#")[1],
                ),
            }.items():
                with pytest.raises(DeviceError, match=said):
                    there.install(*given)
            told = Board(device).report()
            assert told["apps"][0]["running"] and told["newest"] == {"apps.detector digits": 7}
            assert there.stop()["was_running"]
