"""Programs of the system: found, absent, and failing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paredown.targets.errors import DeviceError
from paredown.targets.host.tools import EXTRAS, lacks, need, output_of, tool


def test_a_program_or_the_package_that_has_it() -> None:
    assert tool("sh", "dash") == shutil.which("sh")
    with pytest.raises(DeviceError, match="`no-such-program` is not installed; apt-get install its-package"):
        tool("no-such-program", "its-package")


def test_a_package_or_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lacks("pytest", "this") == ""
    need("pytest", "this")
    monkeypatch.setitem(EXTRAS, "no_such_package", "charts")
    line = "a plot needs no_such_package, which is not installed; pip install 'paredown\\[charts\\]'"
    with pytest.raises(DeviceError, match=line):
        need("no_such_package", "a plot")


def test_its_output_where_it_runs(tmp_path: Path) -> None:
    assert output_of(["pwd"], "looking", tmp_path).strip() == str(tmp_path)


@pytest.mark.parametrize(
    ("script", "line"), [("echo a >&2; echo b >&2; exit 3", "b"), ("exit 3", "exit status 3")]
)
def test_a_failure_has_its_last_line(script: str, line: str) -> None:
    with pytest.raises(DeviceError, match=f"sh: drawing failed: {line}$"):
        output_of(["sh", "-c", script], "drawing")
