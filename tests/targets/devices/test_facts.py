"""What a device tells of itself: this machine against Python's own view of it, and boards as they print."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from needs import needs

from paredown.targets.address import open_device
from paredown.targets.devices.facts import Facts, facts, machine, parse_facts
from paredown.targets.host.host import this_machine

#: /proc/cpuinfo of a Raspberry Pi 5, with what the script prints before it.
PI_5 = """\
arch=aarch64
system=Linux
kernel=6.6.31+rpt-rpi-2712
name=raspberrypi
cores=4
memory_kib=8246304
available_kib=7500000
governor=ondemand
clock_khz=1500000
max_clock_khz=2400000
zone=cpu-thermal 48750
board=Raspberry Pi 5 Model B Rev 1.0
python=/usr/bin/python3
python_version=3.11.2
CPU implementer\t: 0x41
CPU part\t: 0xd0b
CPU implementer\t: 0x41
CPU part\t: 0xd0b
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


@pytest.fixture(scope="module")
def here() -> Facts:
    with open_device("local:") as device:
        return facts(device)


def test_this_machine(here):
    ours = this_machine()
    assert (here.arch, here.system, here.kernel) == (platform.machine(), "Linux", platform.release())
    assert (here.name, here.cores, here.memory_mib) == (platform.node(), ours.cores, ours.memory_mib)
    assert here.cpu.startswith(ours.cpu)
    assert 0 < here.available_mib < here.memory_mib


def test_the_python_of_this_machine(here):
    assert here.python == shutil.which("python3")
    said = subprocess.run([here.python, "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"Python {here.python_version}\n"


def test_clock_and_governor_of_this_machine_where_it_has_them(here):
    clocks = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    governor = clocks / "scaling_governor"
    assert here.governor == (governor.read_text().strip() if governor.exists() else None)
    assert (here.clock_mhz is None) == (not (clocks / "scaling_cur_freq").exists())


def test_a_raspberry_pi():
    pi = parse_facts(PI_5)
    assert pi.cpu == "Raspberry Pi 5 Model B Rev 1.0, Cortex-A76"
    assert (pi.governor, pi.clock_mhz, pi.max_clock_mhz) == ("ondemand", 1500.0, 2400.0)
    assert (pi.temperature_c, pi.memory_mib, pi.cores) == (48.75, 8053, 4)
    where = machine("ssh://pi@board", pi)
    assert (where.cpu, where.memory_mib, where.python) == (pi.cpu, 8053, "3.11.2")
    assert machine("x", pi).from_dict(where.to_dict()) == where
    assert pi.to_dict()["temperature_c"] == 48.75


def test_a_phone_of_two_kinds_of_cores_and_without_python():
    text = "arch=aarch64\nboard=Pixel\npython=\npython_version=\n" + "".join(
        f"CPU implementer\t: 0x41\nCPU part\t: {part}\n" for part in ("0xd05", "0xd05", "0xd41", "0xd44")
    )
    phone = parse_facts(text)
    assert phone.cpu == "Pixel, Cortex-A55 + Cortex-A78 + Cortex-X1"
    assert (phone.python, phone.python_version, phone.cores) == (None, None, None)


def test_parts_that_nobody_wrote_down():
    text = "CPU implementer\t: 0x41\nCPU part\t: 0xfff\nCPU implementer\t: 0x51\nCPU part\t: 0xd08\n"
    assert parse_facts(text).cpu == "Arm part 0xfff + implementer 0x51 part 0xd08"


@pytest.mark.parametrize(
    ("zones", "celsius"),
    [
        ("", None),
        ("zone=battery 31000\nzone=cpu0-thermal 61000\nzone=soc-thermal 64500\nzone=gpu 90000\n", 64.5),
        ("zone=acpitz 27800\n", 27.8),
        ("zone=cpu-0-0 -274000\nzone=cpu-0-1 40000\n", 40.0),
        ("zone=cpu-thermal \nzone=cpu-thermal nothing\n", None),
        ("zone=cpu-thermal 50000\nzone=cpu-thermal 40000\n", 50.0),
    ],
)
def test_the_temperature_is_that_of_the_hottest_zone_of_the_cpu(zones, celsius):
    assert parse_facts(zones).temperature_c == celsius


def test_a_device_that_tells_nothing():
    nothing = parse_facts("")
    assert (nothing.arch, nothing.cpu) == ("unknown", "unknown CPU")
    assert (nothing.cores, nothing.governor, nothing.python) == (None, None, None)
    assert machine("x", nothing).cores == 1


def test_a_device_with_hardly_a_program(tmp_path, monkeypatch):
    """What the connection itself needs is there, and nothing of what the facts are asked with."""
    tools = "sh cat chmod cut dirname env mkdir mktemp mv rm setsid sleep wc sha256sum"
    for tool in tools.split():
        (tmp_path / tool).symlink_to(needs(tool, "coreutils"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with open_device("local:") as device:
        told = facts(device)
    assert (told.arch, told.kernel, told.cores, told.python) == ("unknown", "unknown", None, None)
