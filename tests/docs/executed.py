"""How commands and Python of the pages are executed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from forked import Command
from manual import ROOT, Block, blocks

#: Lowering to ExecuTorch takes half a minute for each of these networks.
ONE_RUNTIME = ["--set", 'lower.runtimes=["litert"]']
#: What makes commands short, on this machine in the place of the board.
SHORT = {
    "run": ["--smoke", *ONE_RUNTIME], "validate": ["--limit", "2", "--times", "2"],
    "bench": ["--minutes", "0"], "cost": ["--set", "prune.widths=2"], "sense": ["--smoke", *ONE_RUNTIME],
    "sweep": ["--smoke", *ONE_RUNTIME], "fit": ["--smoke", *ONE_RUNTIME],
}  # fmt: skip


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}


def paredown(arguments: list[str], folder: Path) -> str:
    """What a command prints, in a Python of its own."""
    command = [sys.executable, "-m", "paredown.apps.cli.main", *arguments]
    result = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def at_once(arguments: list[str], folder: Path) -> str:
    """As `paredown`, in a process in which torch is imported already."""
    process = Command(arguments, folder, environment())
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def python(block: Block, folder: Path) -> str:
    """What a block of Python prints, in a Python of its own."""
    result = subprocess.run(
        [sys.executable, "-c", block.text], cwd=folder, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{block.page}: {result.stderr}"
    return result.stdout


def python_at_once(block: Block, folder: Path) -> str:
    """As `python`, in a process in which torch is imported already."""
    process = Command((), folder, environment(), python=block.text)
    out, err = process.communicate()
    assert process.returncode == 0, f"{block.page}: {err}"
    return out


def slow(page: str) -> list[list[str]]:
    """The commands of a page that slow tests run, without their program."""
    found = [c for b in blocks("sh", mark="runs: slow") if b.page == page for c in b.commands()]
    assert found and all(command[0] == "paredown" for command in found)
    return [command[1:] for command in found]
