"""ONNX Runtime's runner, started as on a board: a process of its own."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import pytest
from runner_contract import ROOT, RunnerContract

from paredown.targets.devices.programs import onnxruntime_archive


class TestRunner(RunnerContract):
    name, other = "onnxruntime", "litert"

    @pytest.fixture
    def runner(self, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        return sys.executable, "-m", "paredown.targets.runners.onnxruntime.run"

    def test_the_version_is_that_of_the_package(self, runner, folder):
        assert self.report(runner, folder)["version"] == f"onnxruntime {onnxruntime.__version__}"

    def test_without_the_package_it_says_what_to_install(self, runner, folder):
        code = (
            "import sys; sys.modules['onnxruntime'] = None; "
            "from paredown.targets.runners.onnxruntime.run import main; sys.exit(main())"
        )
        self.fails(5, "onnxruntime is not installed; pip install", (sys.executable, "-c", code), folder)

    def test_the_archive_that_boards_get_gives_the_same_outputs(self, folder, programs, tmp_path):
        (tmp_path / "run.pyz").write_bytes(onnxruntime_archive())
        assert onnxruntime_archive() == (tmp_path / "run.pyz").read_bytes()
        self.report((sys.executable, "-I", str(tmp_path / "run.pyz")), folder)
        assert (folder / "out").read_bytes() == programs.expected
        assert np.frombuffer(programs.expected, np.int8).size
