"""Native noise stays off the terminal, and what Python says before and after does not."""

from __future__ import annotations

import os

import pytest

from paredown.targets.runners.quiet import quiet

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("output", [False, True])
def test_what_is_kept_off(capfd: pytest.CaptureFixture[str], output: bool) -> None:
    print("before", flush=True)
    with quiet(output):
        os.write(1, b"native out\n")
        os.write(2, b"native error\n")
    print("after", flush=True)
    said = capfd.readouterr()
    assert said.out == ("before\nafter\n" if output else "before\nnative out\nafter\n") and said.err == ""
