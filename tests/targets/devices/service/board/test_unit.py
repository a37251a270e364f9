"""The unit that systemd gets, judged by systemd's own tools."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from needs import needs

from paredown.targets.devices.service.board.unit import unit_text

#: Of 10, as if root ran it; what is left are capabilities, which a user's process has not, the network,
#: cameras and the user's own files. A unit that says nothing has 9.6.
EXPOSED = 5.6


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    program = tmp_path / 'a "b" 100% $c' / "supervisor.py"
    program.parent.mkdir()
    program.touch()
    path = tmp_path / "paredown-camera.service"
    path.write_text(unit_text("camera", program))
    return path


def asked(unit: Path, *command: str) -> str:
    analyze = needs("systemd-analyze", "systemd")
    done = subprocess.run(
        [analyze, *command, str(unit)],
        capture_output=True,
        text=True,
        env={"XDG_RUNTIME_DIR": str(unit.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_systemd_finds_nothing_wrong(unit: Path) -> None:
    assert asked(unit, "--user", "verify").strip() == ""
    assert sys.executable in unit.read_text()


def test_it_may_do_little(unit: Path) -> None:
    said = asked(unit, "security", "--offline=true", "--no-pager")
    (level,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert float(level) <= EXPOSED
    for wanted in (
        "NoNewPrivileges",
        "PrivateTmp",
        "RestrictSUIDSGID",
        "SystemCallArchitectures",
    ):
        (line,) = re.findall(rf"^(.) {wanted}=", said, re.MULTILINE)
        assert line == "✓", wanted
