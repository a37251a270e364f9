"""System packages that some tests need: missing, they are skipped, but never where PAREDOWN_CI is set."""

from __future__ import annotations

import os
import shutil

import pytest


def needs(program: str, package: str) -> str:
    """The path of a program; skips the test where it is not installed, or fails it in CI."""
    path = shutil.which(program) or shutil.which(
        program, path="/usr/sbin:/usr/lib/android-sdk/platform-tools"
    )
    if path is None:
        missing(f"`{program}` is not installed (Debian: {package})")
    return path


def missing(what: str) -> None:
    """Skips the test that cannot run here, or fails it in CI."""
    if os.environ.get("PAREDOWN_CI"):
        pytest.fail(f"{what}, and CI must run this test")
    pytest.skip(what)
