"""What is marked `unit` starts no process and exports no network: conftest.py sees to it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.unit


def test_a_process_fails_the_test() -> None:
    with pytest.raises(pytest.fail.Exception, match="a process is started"):
        subprocess.run([sys.executable, "-c", ""])
    with pytest.raises(pytest.fail.Exception, match="a process is started"):
        subprocess.Popen(["true"])


def test_an_export_fails_the_test() -> None:
    with pytest.raises(pytest.fail.Exception, match="torch.export.export is called"):
        torch.export.export(torch.nn.ReLU(), (torch.zeros(1),))
