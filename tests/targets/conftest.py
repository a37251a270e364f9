"""Fixtures of the tests of devices."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def payload(tmp_path) -> Path:
    """A file of every byte and of what could be taken for a message."""
    path = tmp_path / "payload of bytes"
    path.write_bytes(bytes(range(256)) * 2000 + b"\r\n\x1e0\x1e\x04end")
    return path
