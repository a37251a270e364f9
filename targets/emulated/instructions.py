"""Exact instruction counts of an emulated board, by class: the plugin that counts, and what it wrote.

A board started with `count_instructions=True` has the plugin. A program that runs there with
`PAREDOWN_COUNT=FILE` in its environment and marks its inferences (`--marks` of the runners) leaves its counts
in FILE. They are the same every time that a program is started in the same way. For one in Python that means
paths of the same length, too: where things lie in its memory decides about a few dozen instructions.
"""

from __future__ import annotations

from pathlib import Path

from paredown.targets.host.cache import key_of, made_once
from paredown.targets.host.tools import output_of, tool

SOURCE = Path(__file__).with_name("instructions.c")
FLAGS = ("-O2", "-shared", "-fPIC")


def plugin(cache: Path) -> Path:
    """The compiled plugin for this machine's `qemu-aarch64`.

    Raises:
        DeviceError: there is no C compiler, or it fails.
    """
    compiler = tool("gcc", "gcc libc6-dev")
    version = output_of([compiler, "-dumpfullversion"], "asking the compiler for its version")
    key = key_of(SOURCE.read_bytes(), version, *FLAGS)

    def make(folder: Path) -> None:
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(folder / "instructions.so")]
        output_of(command, "building the instruction counter")

    return made_once(cache / "plugins" / key, make) / "instructions.so"
