"""What both runners promise: one command line, one file of outputs, one JSON document, one line per error."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from small_programs import small_programs

ROOT = Path(__file__).parents[2]


class RunnerContract:
    """The tests of one runner; `runner` is its command, `name` the runtime's, `other` a foreign program."""

    name: str
    other: str

    @pytest.fixture
    def programs(self):
        return small_programs()

    @pytest.fixture
    def folder(self, tmp_path, programs):
        (tmp_path / "model").write_bytes(programs.int8[self.name])
        (tmp_path / "in").write_bytes(programs.codes.tobytes())
        return tmp_path

    def call(self, runner: Sequence[str], folder: Path, *options: str) -> subprocess.CompletedProcess:
        command = [*runner, "model", "--inputs", "in", "--outputs", "out", *options]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)

    def report(self, runner, folder, *options):
        done = self.call(runner, folder, *options)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    def test_int8_outputs_are_the_integer_references_for_every_sample(self, runner, folder, programs):
        self.report(runner, folder)
        assert (folder / "out").read_bytes() == programs.expected
        assert not (folder / "out.part").exists()

    def test_the_report_describes_the_run(self, runner, folder):
        report = self.report(runner, folder, "--runs", "3", "--warmup", "2")
        assert report["runtime"] == self.name
        assert report["samples"] == 5
        assert report["threads"] == 1
        assert report["input"] == {"shape": [1, 3, 8, 8], "dtype": "int8"}
        assert report["outputs"] == [
            {"shape": [1, 8, 4, 4], "dtype": "int8"},
            {"shape": [1, 5], "dtype": "int8"},
        ]
        assert len(report["times_ms"]) == 3 and min(report["times_ms"]) > 0
        assert report["load_ms"] > 0
        assert self.report(runner, folder, "--runs", "0")["times_ms"] == []

    def test_its_peak_memory_is_its_own_and_not_that_of_who_started_it(self, runner, folder, programs):
        ours = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
        theirs = self.report(runner, folder)["peak_rss_kib"]
        assert 1_000 < theirs < int(ours.split()[1]) / 2

    def test_threads_change_no_output(self, runner, folder, programs):
        assert self.report(runner, folder, "--threads", "2")["threads"] == 2
        assert (folder / "out").read_bytes() == programs.expected

    def test_float32_outputs_are_those_of_the_runtime_on_this_machine(self, runner, folder, programs):
        from paredown.pipeline.lower.runtimes import RUNTIMES

        program = programs.float32[self.name]
        x = np.random.default_rng(1).random((2, 3, 8, 8), np.float32)
        (folder / "model").write_bytes(program)
        (folder / "in").write_bytes(x.tobytes())
        report = self.report(runner, folder)
        assert {tensor["dtype"] for tensor in [report["input"], *report["outputs"]]} == {"float32"}
        run = RUNTIMES[self.name].load(program)
        expected = b"".join(np.asarray(part).tobytes() for sample in x for part in run(sample[None]))
        assert (folder / "out").read_bytes() == expected

    @pytest.mark.parametrize("kept", [0, 6, 100, 0.5, 0.999])
    def test_a_truncated_model_is_bad_input(self, runner, folder, kept):
        data = (folder / "model").read_bytes()
        (folder / "model").write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
        self.fails(4, "model: not a", runner, folder)

    def test_a_program_of_another_runtime_is_bad_input(self, runner, folder, programs):
        (folder / "model").write_bytes(programs.int8[self.other])
        self.fails(4, "model: not a", runner, folder)

    def test_a_missing_file_is_bad_input(self, runner, folder):
        (folder / "in").unlink()
        self.fails(4, "in: cannot read this file", runner, folder)
        (folder / "model").unlink()
        self.fails(4, "model: ", runner, folder)

    @pytest.mark.parametrize("size", [0, 191, 193])
    def test_inputs_that_are_no_whole_samples_are_bad_input(self, runner, folder, size):
        (folder / "in").write_bytes(bytes(size))
        self.fails(4, f"in: {size} bytes are no whole samples of 192 bytes", runner, folder)

    def test_outputs_that_cannot_be_written_are_the_devices_fault(self, runner, folder):
        self.fails(5, "no/out: cannot write this file", runner, folder, "--outputs", "no/out")

    @pytest.mark.parametrize(
        "options",
        [["--runs", "-1"], ["--runs", "x"], ["--threads", "0"], ["--what"], ["second"], ["--warmup"]],
    )
    def test_a_wrong_command_line_is_a_usage_error(self, runner, folder, options):
        done = self.call(runner, folder, *options)
        assert done.returncode == 2
        assert done.stdout == "" and done.stderr

    def test_marks_want_one_thread(self, runner, folder):
        self.fails(2, "--marks needs --threads 1", runner, folder, "--marks", "--threads", "2")
        assert len(self.report(runner, folder, "--marks", "--runs", "2")["times_ms"]) == 2

    def fails(self, code, line, runner, folder, *options):
        done = self.call(runner, folder, *options)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
        assert not (folder / "out").exists()
