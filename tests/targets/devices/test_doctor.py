"""What doctor finds: on this machine, and on boards that are folders of programs on this machine."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from paredown.targets.devices import doctor
from paredown.targets.devices.device import Completed
from paredown.targets.devices.doctor import Finding, examine

#: What any POSIX system has, and this is all that such a board has.
TOOLS = ("sh", "uname", "sed", "grep", "nproc", "tr", "cat", "df")


class Board:
    """A device whose PATH is a folder of its own; `programs` are scripts that it has beside `TOOLS`."""

    address = "local:"

    def __init__(self, folder: Path, kind: str = "ssh", emulated: bool = False, **programs: str) -> None:
        self.kind, self.emulated, self.path = kind, emulated, folder / "bin"
        self.workspace = str(folder)
        self.path.mkdir()
        for name in TOOLS:
            (self.path / name).symlink_to(shutil.which(name))
        for name, text in programs.items():
            (self.path / name).unlink(missing_ok=True)
            (self.path / name).write_text("#!/bin/sh\n" + text)
            (self.path / name).chmod(0o755)

    def run(self, command, *, timeout, environment=None, on_line=None, check=True) -> Completed:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.workspace, env={"PATH": str(self.path)},
            timeout=timeout, check=check,
        )  # fmt: skip
        return Completed(done.returncode, done.stdout, done.stderr, 0.0)


def on(board: Board) -> dict[str, Finding]:
    findings = examine(board)
    assert len({finding.name for finding in findings}) == len(findings)
    for finding in findings:
        assert finding.detail and "\n" not in finding.detail + finding.mend
        assert bool(finding.mend) == (finding.state != "ok") or finding.name == "python3"
    return {finding.name: finding for finding in findings}


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def python(folder: Path, **replaced: str) -> str:
    """A python3 of the board: this one, with other modules in the place of some."""
    places = folder / "modules"
    places.mkdir(exist_ok=True)
    for name, text in replaced.items():
        (places / f"{name}.py").write_text(text)
    return f'PYTHONPATH={places} exec {sys.executable} "$@"'


def absent(name: str) -> str:
    return f'raise ModuleNotFoundError("no module {name}", name="{name}")'


# -- this machine ------------------------------------------------------------------------------------------


def test_this_machine_is_asked_for_every_package_and_program():
    findings = examine()
    assert {finding.name for finding in findings} >= {
        "ai-edge-litert", "executorch", "opencv-python-headless", "asyncssh", "tflite-micro", "ethos-u-vela",
        "adb", "proot", "qemu-user", "gcc", "g++",
    }  # fmt: skip
    for finding in findings:
        assert (finding.state == "ok") == (finding.mend == "") and finding.detail


def test_what_this_machine_has_bears_its_version_or_path():
    found = {finding.name: finding for finding in examine()}
    assert found["executorch"].detail.startswith(f"{metadata.version('executorch')}, for ")
    assert found["opencv-python-headless"].state == "ok"


def test_what_this_machine_lacks_has_one_command_and_a_purpose(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = {finding.name: finding for finding in examine()}
    assert {finding.state for finding in found.values()} == {"missing"}
    assert found["tflite-micro"].mend == "pip install tflite-micro"
    assert found["qemu-user"].mend == "apt-get install qemu-user"
    assert "microcontrollers" in found["tflite-micro"].detail and "over adb" in found["adb"].detail


def test_a_module_from_another_distribution_counts(monkeypatch):
    monkeypatch.setattr(doctor, "package_versions", lambda names: ())
    (found,) = (finding for finding in examine() if finding.name == "opencv-python-headless")
    assert found.state == "ok" and found.mend == ""


def test_an_arm_machine_needs_no_cross_compiler(monkeypatch):
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    assert "g++-aarch64-linux-gnu" not in {finding.name for finding in examine()}


# -- boards ------------------------------------------------------------------------------------------------


def test_a_sound_board(tmp_path):
    found = on(Board(tmp_path, python3=python(tmp_path)))
    assert found["python3"].detail.startswith(".".join(map(str, sys.version_info[:3])))
    assert found["numpy"].detail.startswith(np.__version__) and found["ai-edge-litert"].state == "ok"
    assert {"free space", "memory"} <= set(found)
    free = int(found["free space"].detail.split()[0].replace(",", ""))
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free / 2**20, rel=0.05)


def test_a_board_without_python(tmp_path):
    found = on(Board(tmp_path))
    assert (found["python3"].state, found["python3"].mend) == (
        "missing", "sudo apt-get install python3-pip",
    )  # fmt: skip
    assert "numpy" not in found and "the ExecuTorch runner does without" in found["python3"].detail


def test_a_phone_has_no_python_and_nothing_mends_that(tmp_path):
    found = on(Board(tmp_path, kind="adb"))
    assert (found["python3"].state, found["python3"].mend) == ("warning", "")


def test_absent_packages_have_the_command_for_that_python(tmp_path):
    script = python(
        tmp_path,
        ai_edge_litert=absent("ai_edge_litert"), tflite_runtime=absent("tflite_runtime"), cv2=absent("cv2"),
    )  # fmt: skip
    found = on(Board(tmp_path, python3=script))
    assert found["numpy"].state == "ok"
    for name in ("ai-edge-litert", "opencv-python-headless"):
        assert found[name].state == "missing"
        assert found[name].mend.endswith(f"{tmp_path}/bin/python3 -m pip install {name}")


def test_the_older_runtime_is_enough(tmp_path):
    script = python(tmp_path, ai_edge_litert=absent("ai_edge_litert"))
    older = tmp_path / "modules" / "tflite_runtime"
    older.mkdir()
    (older / "__init__.py").touch()
    (older / "interpreter.py").write_text("__version__ = '2.14.0'")
    found = on(Board(tmp_path, python3=script))
    assert found["ai-edge-litert"].state == "ok" and found["ai-edge-litert"].detail.startswith("2.14.0")


def test_a_package_that_does_not_load_is_not_ok(tmp_path):
    script = python(tmp_path, cv2="raise ImportError('libGL.so.1: cannot open shared object file')")
    found = on(Board(tmp_path, python3=script))
    broken = found["opencv-python-headless"]
    assert broken.state == "missing" and "libGL.so.1" in broken.detail and "--force-reinstall" in broken.mend


def test_a_package_that_ends_python_is_not_ok(tmp_path):
    script = python(tmp_path, ai_edge_litert="import os; os.abort()")
    found = on(Board(tmp_path, python3=script))
    assert found["numpy"].state == "ok" and "ended Python" in found["ai-edge-litert"].detail


@pytest.mark.parametrize(("arch", "told"), [("aarch64", True), ("armv7l", False)])
def test_a_32_bit_userland_on_a_64_bit_kernel(tmp_path, arch, told):
    script = python(tmp_path, struct="calcsize = lambda code: 4", numpy="", cv2="", ai_edge_litert="")
    found = on(Board(tmp_path, python3=script, uname=f'[ "$1" = -m ] && echo {arch} || echo Linux'))
    assert ("64-bit userland" in found) == told


def test_a_full_disk(tmp_path):
    df = "echo Filesystem 1024-blocks Used Available Capacity Mounted; echo /dev/root 9 9 51200 99% /"
    found = on(Board(tmp_path, df=df))
    assert found["free space"].state == "warning" and found["free space"].detail.startswith("50 MiB")


@pytest.mark.parametrize(
    ("flags", "state", "words"),
    [
        ("0x0", "ok", "not now"),
        ("0x50000", "ok", "not now"),  # since it started, and no more
        ("0x50005", "warning", "its supply gives too little voltage, it is throttled"),
        ("0x8", "warning", "soft temperature limit"),
    ],
)
def test_a_raspberry_pi_tells_of_throttling(tmp_path, flags, state, words):
    found = on(Board(tmp_path, vcgencmd=f"echo throttled={flags}"))
    assert found["throttling"].state == state and words in found["throttling"].detail
    assert "throttling" not in on(Board(make(tmp_path / "other")))


@pytest.mark.parametrize(
    ("governor", "zone", "expected"),
    [
        ("ondemand", "cpu-thermal 85000", {"governor": "warning", "temperature": "warning"}),
        ("performance", "cpu-thermal 55400", {"governor": "ok", "temperature": "ok"}),
    ],
)
def test_clock_and_heat_of_a_real_board_and_not_of_an_emulated_one(tmp_path, governor, zone, expected):
    class Warm(Board):
        """What its files in /sys would say."""

        def run(self, command, **options) -> Completed:
            done = super().run(command, **options)
            said = f"governor={governor}\nzone={zone}\n" if "governor=" in command[-1] else ""
            return Completed(0, "\n".join(self.without_sys(done.out)) + "\n" + said, "", 0.0)

        @staticmethod
        def without_sys(text: str) -> list[str]:
            return [line for line in text.splitlines() if not line.startswith(("governor=", "zone="))]

    found = on(Warm(tmp_path))
    assert {name: found[name].state for name in expected} == expected
    assert "tee /sys/" in found["governor"].mend or governor == "performance"
    assert not {"governor", "temperature"} & set(on(Warm(make(tmp_path / "emulated"), emulated=True)))
