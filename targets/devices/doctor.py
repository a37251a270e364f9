"""What is missing on this machine or on a board, what it is needed for, and the one command that mends it."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from paredown.targets.devices.device import Device
from paredown.targets.devices.facts import Facts, facts
from paredown.targets.host.host import package_versions

State = Literal["ok", "missing", "warning"]

SPACE_MIB = 256  # an unpacked bundle, the ExecuTorch runner with its libraries, test vectors
MEMORY_MIB = 256  # Python, numpy, a runtime and a small network
HOT_C = 80.0  # from here on a Raspberry Pi slows down: its documentation, "Frequency management"
TIMEOUT_S = 300.0  # imports on an emulated board take their time
LITERT = "the LiteRT runner (the ExecuTorch runner does without)"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the program, the package or the property.
        state: `ok`, `missing`, or `warning`: it works, but not as it should.
        detail: what was found, and what it is needed for.
        mend: the one command that mends it, run on the machine that was examined; empty where there is
            nothing to mend.
    """

    name: str
    state: State
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class Need:
    """A package: its name, what is imported or called of it, and what for."""

    name: str
    called: str
    purpose: str

    def finding(self, found: str, command: str) -> Finding:
        """What to tell of it: `found` is its version or path, empty where it is missing."""
        if found:
            return Finding(self.name, "ok", f"{found}, for {self.purpose}")
        return Finding(self.name, "missing", f"needed for {self.purpose}", f"{command} {self.name}")


PACKAGES = (
    Need("ai-edge-litert", "ai_edge_litert", "running .tflite programs"),
    Need("executorch", "executorch", "making and running .pte programs"),
    Need("onnxruntime", "onnxruntime", "running .onnx programs, comparing imported models (an extra)"),
    Need("openvino", "openvino", "running .onnx programs fast on Intel processors (an extra)"),
    Need("opencv-python-headless", "cv2", "reading and resizing images"),
    Need("asyncssh", "asyncssh", "boards over ssh, and emulated ones"),
    Need("tflite-micro", "tflite_micro", "accuracy and arena of microcontrollers"),
    Need("ethos-u-vela", "ethosu", "placement and cycles on Ethos-U"),
)
PROGRAMS = (
    Need("adb", "adb", "phones and boards over adb, and an emulated one"),
    Need("proot", "proot", "emulated boards"),
    Need("qemu-user", "qemu-aarch64", "emulated boards"),
    Need("gcc", "gcc", "counting the instructions of emulated boards"),
    Need("g++", "g++", "building the ExecuTorch runner for this machine"),
    Need(
        "g++-aarch64-linux-gnu",
        "aarch64-linux-gnu-g++",
        "building the ExecuTorch runner for 64-bit Arm, and the emulated board over adb",
    ),
)
#: Imports for real: a package that is there may still not load. A crash ends the list early.
_IMPORTS = """
import importlib, struct, sys
print("bits=%d" % (8 * struct.calcsize("P")), flush=True)
for name in ("numpy", "ai_edge_litert.interpreter", "tflite_runtime.interpreter", "cv2"):
    top = name.partition(".")[0]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(top + "=" + ("" if error.name == top else "!" + str(error)), flush=True)
    except Exception as error:
        print(top + "=!" + str(error).partition("\\n")[0], flush=True)
    else:
        version = getattr(sys.modules[top], "__version__", getattr(module, "__version__", "there"))
        print(top + "=" + str(version), flush=True)
"""
#: The bits of `vcgencmd get_throttled` that tell of now: Raspberry Pi documentation, vcgencmd.
_THROTTLED = {
    0x1: "its supply gives too little voltage",
    0x2: "its clock is capped",
    0x4: "it is throttled",
    0x8: "it is at its soft temperature limit",
}


def examine(device: Device | None = None) -> tuple[Finding, ...]:
    """Looks at this machine, or at a board.

    Args:
        device: a connection to the board; None = this machine, as the one that works for boards.

    Raises:
        DeviceError: the connection is lost, or the board does not answer.
    """
    return tuple(_this_machine() if device is None else _board(device))


def _this_machine() -> Iterator[Finding]:
    for need in PACKAGES:
        there = importlib.util.find_spec(need.called) is not None
        version = dict(package_versions((need.name,))).get(need.name, "there")  # from another distribution
        yield need.finding(version if there else "", "pip install")
    native = platform.machine() == "aarch64"
    for need in PROGRAMS:
        if not (native and need.name == "g++-aarch64-linux-gnu"):
            yield need.finding(shutil.which(need.called) or "", "apt-get install")


def _board(device: Device) -> Iterator[Finding]:
    told = facts(device)
    yield Finding("board", "ok", f"{told.name}: {told.cpu}, {told.arch}, {told.system} {told.kernel}")
    yield from _python(device, told)
    yield _space(device)
    yield from _memory(told)
    if not device.emulated:  # an emulated board has the clock and the heat of another machine
        yield from _clock(device, told)


def _python(device: Device, told: Facts) -> Iterator[Finding]:
    """Python, its modules, and whether it is a 64-bit one."""
    if told.python is None:
        if device.kind == "adb":
            yield Finding("python3", "warning", "Android has none, and so the ExecuTorch runner only")
        else:
            yield Finding("python3", "missing", f"needed for {LITERT}", "sudo apt-get install python3-pip")
        return
    yield Finding("python3", "ok", f"{told.python_version} at {told.python}, for {LITERT}")
    done = device.run([told.python, "-c", _IMPORTS], timeout=TIMEOUT_S, check=False)
    found = dict(line.split("=", 1) for line in done.out.splitlines() if "=" in line)
    if told.arch == "aarch64" and found.get("bits") == "32":
        yield Finding(
            "64-bit userland", "warning",
            "32-bit programs on a 64-bit kernel: neither LiteRT nor ExecuTorch has packages for them",
            "rpi-imager  # write the 64-bit system to the card",
        )  # fmt: skip
    older = found.get("tflite_runtime") and not found.get("ai_edge_litert")
    modules = {
        "numpy": ("numpy", LITERT),
        "ai-edge-litert": ("tflite_runtime" if older else "ai_edge_litert", LITERT),
        "opencv-python-headless": ("cv2", "applications that read images on the board"),
    }
    install = f"PIP_BREAK_SYSTEM_PACKAGES=1 {told.python} -m pip install"  # Debian's own Python wants it
    for name, (module, purpose) in modules.items():
        yield _package(name, found.get(module, "!importing it ended Python"), purpose, install)


def _package(name: str, said: str, purpose: str, install: str) -> Finding:
    if said.startswith("!"):
        detail = f"does not load ({said[1:]}), needed for {purpose}"
        return Finding(name, "missing", detail, f"{install} --force-reinstall {name}")
    if not said:
        return Finding(name, "missing", f"needed for {purpose}", f"{install} {name}")
    return Finding(name, "ok", f"{said}, for {purpose}")


def _space(device: Device) -> Finding:
    done = device.run(["df", "-Pk", device.workspace], timeout=TIMEOUT_S)
    free = int(done.out.splitlines()[-1].split()[3]) // 1024
    if free < SPACE_MIB:
        detail = f"{free:,} MiB where bundles are unpacked, {SPACE_MIB} are safe"
        return Finding("free space", "warning", detail, "sudo apt-get clean")
    return Finding("free space", "ok", f"{free:,} MiB where bundles are unpacked")


def _memory(told: Facts) -> Iterator[Finding]:
    if told.available_mib is None:
        return
    detail = f"{told.available_mib:,} of {told.memory_mib or 0:,} MiB are free"
    if told.available_mib < MEMORY_MIB:
        mend = "ps aux --sort=-rss | head  # and end what is not needed"
        yield Finding("memory", "warning", f"{detail}, {MEMORY_MIB} are safe", mend)
    else:
        yield Finding("memory", "ok", detail)


def _clock(device: Device, told: Facts) -> Iterator[Finding]:
    """What makes measured times wrong: a clock that follows the load, heat, and a weak supply."""
    if told.governor is not None:
        steady = told.governor == "performance"
        mend = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        detail = f"{told.governor}" + ("" if steady else ": the clock follows the load, and times vary")
        yield Finding("governor", "ok" if steady else "warning", detail, "" if steady else mend)
    if told.temperature_c is not None:
        hot = told.temperature_c >= HOT_C
        detail = f"{told.temperature_c:.0f} degrees Celsius" + (": it slows down to cool" if hot else "")
        mend = "sudo poweroff  # let it cool, give it a heat sink or a fan" if hot else ""
        yield Finding("temperature", "warning" if hot else "ok", detail, mend)
    done = device.run(["sh", "-c", "vcgencmd get_throttled 2>&1 || true"], timeout=TIMEOUT_S)
    if flags := re.search(r"throttled=0x([0-9a-f]+)", done.out):  # a Raspberry Pi tells
        reasons = [text for bit, text in _THROTTLED.items() if int(flags[1], 16) & bit]
        mend = "sudo poweroff  # use the vendor's supply, a heat sink or a fan" if reasons else ""
        detail = ", ".join(reasons) or "not now"
        yield Finding("throttling", "warning" if reasons else "ok", detail, mend)
