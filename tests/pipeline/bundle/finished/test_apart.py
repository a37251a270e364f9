from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from small_programs import small_programs

from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.bundle.finished import apart
from paredown.pipeline.bundle.finished.apart import run_apart
from paredown.pipeline.bundle.finished.child import LOADS
from paredown.pipeline.device.executor import Here
from paredown.pipeline.device.validate.programs import bundle_program
from paredown.pipeline.lower.runtimes import RUNTIMES
from paredown.targets.errors import InputError
from paredown.targets.runners.litert import TensorInfo

GOLDEN = Path(__file__).parents[3] / "golden" / "format-4" / "detector.paredown"


@pytest.fixture
def program(monkeypatch, tmp_path):
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path / "cache"))
    bundle = unpack(GOLDEN)
    (model,) = (model for model in bundle.manifest.models if model.runtime == "litert")
    return bundle_program(bundle, model)


def broken(program, at: int, value: int):
    """One offset in the tables of the program is another."""
    data = bytearray(program.data)
    struct.pack_into("<I", data, at, value)
    return replace(program, data=bytes(data))


def test_a_program_that_has_run_is_not_run_apart_again(program, monkeypatch):
    run_apart(program)
    monkeypatch.setattr(apart, "in_child", lambda *given, **more: pytest.fail("it has run before"))
    run_apart(program)
    with pytest.raises(pytest.fail.Exception):
        run_apart(broken(program, 40, 1))


@pytest.mark.unit
def test_every_runtime_runs_apart():
    assert set(LOADS) == set(RUNTIMES)


@pytest.mark.slow
def test_openvino_runs_apart(program):
    small, tensor = small_programs(), TensorInfo((1, 3, 8, 8))
    run_apart(replace(program, runtime="openvino", data=small.int8["openvino"], input=tensor))


def test_a_program_that_ends_its_process_is_one_line(program):
    """The root's offset leads far outside: LiteRT follows it."""
    bad = broken(program, 0, 0x7FFFFFF0)
    with pytest.raises(InputError, match="signal|exit code|not a TFLite model") as raised:
        run_apart(bad)
    assert str(raised.value).startswith(program.where) and "\n" not in str(raised.value)
    with pytest.raises(InputError):  # and is not remembered as a good one
        Here(own=False).run(bad, None, lambda done, total: None)


def test_a_read_only_home_is_no_reason_to_stop(program, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path / "file"))
    run_apart(program)
