"""The LiteRT runner, started as on a board: a process of its own."""

from __future__ import annotations

import itertools
import os
import sys
from importlib import metadata

import pytest
from runner_contract import ROOT, RunnerContract

from paredown.targets.runners import run_litert


class TestRunner(RunnerContract):
    name, other = "litert", "executorch"

    @pytest.fixture
    def runner(self, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        return sys.executable, "-m", "paredown.targets.runners.run_litert"

    def test_the_version_is_that_of_the_interpreter_it_found(self, runner, folder):
        version = self.report(runner, folder)["version"]
        assert version == f"ai_edge_litert {metadata.version('ai-edge-litert')}"

    def test_without_an_interpreter_it_says_what_to_install(self, runner, folder):
        hidden = "".join(
            f"sys.modules[{name!r}] = None; "
            for name in ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite")
        )
        code = f"import sys; {hidden}from paredown.targets.runners.run_litert import main; sys.exit(main())"
        self.fails(5, "no TFLite interpreter is installed", (sys.executable, "-c", code), folder)

    def test_every_second_it_says_how_far_it_is(self, folder, monkeypatch, capsys):
        seconds = itertools.count(step=0.5)
        monkeypatch.setattr(run_litert.time, "monotonic", lambda: next(seconds))
        monkeypatch.chdir(folder)
        assert run_litert.main(["model", "--inputs", "in", "--outputs", "out"]) == 0
        assert capsys.readouterr().err.split() == ["2/5", "4/5"]

    def test_marks_surround_every_timed_run_and_some_of_nothing_before(self, folder, monkeypatch):
        seen = []
        monkeypatch.setattr(os, "isatty", seen.append)
        monkeypatch.chdir(folder)
        arguments = ["model", "--inputs", "in", "--outputs", "out", "--runs", "3"]
        assert run_litert.main(arguments) == 0 and seen == []
        assert run_litert.main([*arguments, "--marks"]) == 0
        assert seen == [0x7E570000, 0x7E570001] * run_litert.EMPTIES + [0x7E570002, 0x7E570003] * 3
