"""What a device is and how it is doing: one script for any POSIX shell; what it does not tell is None."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from paredown.targets.devices.device import Device
from paredown.targets.host.host import Machine, cpu_name, int8_instructions

# Absent files and programs leave their line empty. `key=value`, the CPU's own lines as they are.
_SCRIPT = r"""
first() { for file in "$@"; do [ -r "$file" ] && read -r line <"$file" && echo "$line" && return; done; }
cpu=/sys/devices/system/cpu/cpu0/cpufreq
exec 2>/dev/null
echo "arch=$(uname -m)"
echo "system=$(uname -s)"
echo "kernel=$(uname -r)"
echo "name=$(uname -n)"
echo "cores=$(nproc || grep -c ^processor /proc/cpuinfo)"
echo "memory_kib=$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo)"
echo "available_kib=$(sed -n 's/^MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo)"
echo "governor=$(first $cpu/scaling_governor)"
echo "clock_khz=$(first $cpu/scaling_cur_freq $cpu/cpuinfo_cur_freq)"
echo "max_clock_khz=$(first $cpu/scaling_max_freq $cpu/cpuinfo_max_freq)"
for zone in /sys/class/thermal/thermal_zone*; do
    [ -r "$zone/temp" ] && echo "zone=$(first "$zone/type") $(first "$zone/temp")"
done
echo "board=$(tr -d '\000' </proc/device-tree/model || getprop ro.product.model)"
echo "python=$(command -v python3)"
echo "python_version=$(python3 -c 'import platform; print(platform.python_version())')"
grep -E '^(model name|Model|Hardware|CPU implementer|CPU part)[[:space:]]*:' /proc/cpuinfo
grep -m1 -E '^(flags|Features)[[:space:]]*:' /proc/cpuinfo
exit 0
"""
_TIMEOUT_S = 60.0  # Python under emulation takes its time
_ARM = "0x41"
#: Arm's own parts, as the technical reference manuals (MIDR_EL1) and Linux' arch/arm64/include/asm/cputype.h
#: number them.
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0d": "Cortex-A77",
    "0xd41": "Cortex-A78",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
}


@dataclass(frozen=True)
class Facts:
    """A device; None is what it does not tell.

    Attributes:
        name: by which it calls itself.
        arch: as `uname -m` has it.
        system: as `uname -s` has it.
        kernel: its release.
        cpu: model name, or the cores of an Arm, with the board where it tells.
        cores: that a process may use.
        memory_mib: in all.
        available_mib: of memory, now.
        governor: that chooses the clock of the first core.
        clock_mhz: of the first core, now.
        max_clock_mhz: that the governor allows it.
        temperature_c: of the hottest zone of the CPU, or of anything where no zone is called so.
        python: path of python3.
        python_version: of it.
        instructions: for int8, as `Machine` has them.
    """

    name: str
    arch: str
    system: str
    kernel: str
    cpu: str
    cores: int | None
    memory_mib: int | None
    available_mib: int | None
    governor: str | None
    clock_mhz: float | None
    max_clock_mhz: float | None
    temperature_c: float | None
    python: str | None
    python_version: str | None
    instructions: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON has them."""
        return asdict(self)


def facts(device: Device) -> Facts:
    """Asks a device what it is and how it is doing.

    Raises:
        DeviceError: the connection is lost, or it does not answer.
    """
    return parse_facts(device.run(["sh", "-c", _SCRIPT], timeout=_TIMEOUT_S).out)


def machine(name: str, facts: Facts) -> Machine:
    """The facts as the `where` of a figure has them; what runs there brings its own versions."""
    return Machine(
        name=name,
        cpu=facts.cpu,
        cores=facts.cores or 1,
        arch=facts.arch,
        system=facts.system,
        memory_mib=facts.memory_mib or 0,
        python=facts.python_version or "",
        instructions=facts.instructions,
    )


def parse_facts(text: str) -> Facts:
    """The facts in what the script printed."""
    lines = [line.partition("=") for line in text.splitlines() if ":" not in line.partition("=")[0]]
    said = {key: value.strip() for key, equals, value in lines if equals and value.strip()}
    zones = [value.strip() for key, _, value in lines if key == "zone"]
    return Facts(
        name=said.get("name", "unknown"),
        arch=said.get("arch", "unknown"),
        system=said.get("system", "unknown"),
        kernel=said.get("kernel", "unknown"),
        cpu=_cpu(text, said.get("board", "")),
        cores=_whole(said, "cores"),
        memory_mib=_whole(said, "memory_kib", 1024),
        available_mib=_whole(said, "available_kib", 1024),
        governor=said.get("governor"),
        clock_mhz=_megahertz(said, "clock_khz"),
        max_clock_mhz=_megahertz(said, "max_clock_khz"),
        temperature_c=_temperature(zones),
        python=said.get("python"),
        python_version=said.get("python_version"),
        instructions=int8_instructions(text, said.get("arch", "")),
    )


def _cpu(cpuinfo: str, board: str) -> str:
    """The model, and the kinds of Arm cores behind it ("Raspberry Pi 5 Model B, Cortex-A76")."""
    cores: list[str] = []
    implementer = ""
    for line in cpuinfo.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "CPU implementer":
            implementer = value
        elif key == "CPU part":
            core = _ARM_PARTS.get(value, f"Arm part {value}")
            core = core if implementer == _ARM else f"implementer {implementer} part {value}"
            cores += [core] if core not in cores else []
    model = cpu_name(cpuinfo, board or " + ".join(cores))
    return ", ".join(dict.fromkeys([model, " + ".join(cores) or model]))


def _temperature(zones: list[str]) -> float | None:
    """Of the hottest zone, in degrees Celsius; the kernel gives type and thousandths of a degree."""
    found: dict[str, float] = {}
    for zone in zones:
        kind, _, value = zone.rpartition(" ")
        if value.lstrip("-").isdigit() and -50_000 < int(value) < 150_000:  # others are switched off
            found[kind.lower()] = max(int(value) / 1000, found.get(kind.lower(), -273.0))
    ours = [value for kind, value in found.items() if re.search("cpu|soc|pkg|core", kind)]
    return max(ours or found.values(), default=None)


def _whole(said: Mapping[str, str], key: str, unit: int = 1) -> int | None:
    value = said.get(key, "")
    return int(value) // unit if value.isdigit() else None


def _megahertz(said: Mapping[str, str], key: str) -> float | None:
    value = said.get(key, "")
    return int(value) / 1000 if value.isdigit() else None
