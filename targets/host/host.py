"""Facts about the machine that a figure was made on: the `where` of every figure.

Versions are read from the installed packages' metadata, so nothing heavy is imported to learn them.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

RUNTIME_PACKAGES = (
    "torch", "executorch", "torchao", "litert-torch", "ai-edge-litert", "tflite-runtime", "numpy",
    "opencv-python-headless", "opencv-python",
)  # fmt: skip
#: Those that are extras: a machine names them where a program needs them, so that keys do not change.
EXTRA_RUNTIMES = ("onnxruntime", "openvino")
#: What the kernel calls instructions that decide how fast int8 is, and on x86 whether sums saturate.
INT8_INSTRUCTIONS = (
    "avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve", "sve2",
)  # fmt: skip
#: Those that add products of int8 in an int32.
VNNI = frozenset({"avx_vnni", "avx512_vnni"})


@dataclass(frozen=True)
class Machine:
    """Where a figure comes from: one machine and the versions of what ran on it.

    `versions` is sorted by package; packages that are not installed are left out. `memory_mib` is 0 where
    the system does not tell. `instructions` are those of `INT8_INSTRUCTIONS` that it has, where it tells.
    """

    name: str
    cpu: str
    cores: int
    arch: str
    system: str
    memory_mib: int
    python: str
    versions: tuple[tuple[str, str], ...] = ()
    instructions: str = ""

    @property
    def saturates(self) -> bool:
        """Whether it is an x86 known to have no VNNI: there fast int8 kernels add products in an int16."""
        return self.arch == "x86_64" and bool(self.instructions) and not VNNI & set(self.instructions.split())

    def line(self) -> str:
        """One line for a footnote or a report."""
        versions = ", ".join(f"{package} {version}" for package, version in self.versions)
        cores = f"{self.cores} core{'' if self.cores == 1 else 's'}"
        cpu = f"{self.cpu} ({self.instructions})" if self.instructions else self.cpu
        return f"{self.name}: {cpu}, {cores}, {self.arch}, {self.system}" + (
            f"; {versions}" if versions else ""
        )

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON has them."""
        told = {"instructions": self.instructions} if self.instructions else {}
        return self.identity() | told

    def identity(self) -> dict[str, Any]:
        """The facts that decide whether a stage is run again; its CPU stands for the instructions."""
        facts = {**asdict(self), "versions": dict(self.versions)}
        del facts["instructions"]
        return facts

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Machine:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a fact is missing, unknown or of the wrong type.
        """
        expected: dict[str, type] = dict.fromkeys(cls.__dataclass_fields__, str)
        expected |= {"cores": int, "memory_mib": int, "versions": dict}
        facts = {"instructions": "", **facts}  # which earlier versions did not write
        if set(facts) != set(expected):
            raise ValueError(f"a machine needs exactly {', '.join(expected)}")
        for name, kind in expected.items():
            if not isinstance(facts[name], kind) or isinstance(facts[name], bool):
                raise ValueError(f"a machine's `{name}` is {facts[name]!r}, not {kind.__name__}")
        versions = facts["versions"]
        if not all(isinstance(version, str) for version in versions.values()):
            raise ValueError("a machine's `versions` maps packages to version strings")
        return cls(**{**facts, "versions": tuple(sorted(versions.items()))})


def package_versions(packages: tuple[str, ...] = RUNTIME_PACKAGES) -> tuple[tuple[str, str], ...]:
    """The installed versions of these distributions, sorted by name; absent ones are left out."""
    found = []
    for package in sorted(packages):
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def having(machine: Machine, package: str) -> Machine:
    """A machine that has this package too, where it is installed here."""
    return replace(machine, versions=tuple(sorted({*machine.versions, *package_versions((package,))})))


def package_version(package: str) -> str:
    """The installed version of a distribution, or "not installed".

    Without the label of a build (torch's "+cpu", "+cu130"): what depends on a version is the same for all.
    """
    return dict(package_versions((package,))).get(package, "not installed").partition("+")[0]


def cpu_name(cpuinfo: str, fallback: str) -> str:
    """The CPU's name from the text of /proc/cpuinfo (x86: "model name", a Pi: "Model"), or the fallback."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    return fields.get("model name") or fields.get("Model") or fallback or "unknown CPU"


def int8_instructions(cpuinfo: str, arch: str) -> str:
    """Those of `INT8_INSTRUCTIONS` that the text of /proc/cpuinfo lists, with a blank between.

    Args:
        cpuinfo: the text; under an emulator it can be that of the machine below.
        arch: as `uname -m` has it.
    """
    word = "flags" if arch == "x86_64" else "Features"
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == word:
            has = set(value.split())
            return " ".join(each for each in INT8_INSTRUCTIONS if each in has)
    return ""


def this_machine(name: str = "host") -> Machine:
    """The facts of the machine this runs on. `cores` counts those this process may use."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        cpuinfo = ""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    try:
        memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (AttributeError, OSError, ValueError):
        memory_mib = 0
    return Machine(
        name=name,
        cpu=cpu_name(cpuinfo, platform.processor()),
        cores=cores,
        arch=platform.machine() or "unknown",
        system=platform.system() or "unknown",
        memory_mib=max(memory_mib, 0),
        python=platform.python_version(),
        versions=package_versions(),
        instructions=int8_instructions(cpuinfo, platform.machine()),
    )
