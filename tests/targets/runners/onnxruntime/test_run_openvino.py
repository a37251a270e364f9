"""OpenVINO's runner, started as on a board: a process of its own."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest
from runner_contract import ROOT, RunnerContract

from paredown.targets.devices.programs import openvino_archive

pytestmark = pytest.mark.slow


class TestRunner(RunnerContract):
    name, other = "openvino", "litert"

    @pytest.fixture
    def runner(self, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        return sys.executable, "-m", "paredown.targets.runners.onnxruntime.run_openvino"

    def test_the_version_is_that_of_the_package(self, runner, folder):
        assert self.report(runner, folder)["version"] == f"openvino {metadata.version('openvino')}"

    def test_without_the_package_it_says_what_to_install(self, runner, folder):
        code = (
            "import sys; sys.modules['openvino'] = None; "
            "from paredown.targets.runners.onnxruntime.run_openvino import main; sys.exit(main())"
        )
        self.fails(5, "openvino is not installed; pip install", (sys.executable, "-c", code), folder)

    def test_the_archive_that_boards_get_gives_the_same_outputs(self, folder, programs, tmp_path):
        (tmp_path / "run.pyz").write_bytes(openvino_archive())
        assert openvino_archive() == (tmp_path / "run.pyz").read_bytes()
        self.report((sys.executable, "-I", str(tmp_path / "run.pyz")), folder)
        assert (folder / "out").read_bytes() == programs.expected
