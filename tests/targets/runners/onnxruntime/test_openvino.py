"""A loaded .onnx in OpenVINO: codes are int8 outside, whatever does not fit is one clear line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import small_programs

from paredown.targets.errors import InputError
from paredown.targets.runners.onnxruntime.openvino import load


def test_a_call_with_its_input_in_place_runs_as_often_as_one_likes():
    programs = small_programs()
    runner = load(programs.int8["openvino"])
    call = runner.bound(programs.codes[:1])
    call(), call()
    made = [runner(code[None]) for code in programs.codes]
    assert b"".join(part.tobytes() for parts in made for part in parts) == programs.expected
    assert all(part.dtype == np.int8 for parts in made for part in parts)


def test_an_input_of_another_shape_or_type_is_bad_input():
    runner = load(small_programs().int8["openvino"], where="x.onnx")
    with pytest.raises(InputError, match=r"x.onnx: the model takes uint8 \(1, 3, 8, 8\)"):
        runner(np.zeros((1, 3, 9, 8), np.int8))
    with pytest.raises(InputError, match=r"stops on float32 \(1, 3, 8, 8\)"):
        runner.bound(np.zeros((1, 3, 8, 8), np.float32))


def test_a_file_that_is_cut_off_anywhere_is_bad_input():
    """OpenVINO itself takes some, which lack the operators' version or outputs."""
    program = small_programs().int8["openvino"]
    for lost in (1, 5, 6, 7, 30, 31, len(program) // 2):
        with pytest.raises(InputError, match="truncated or damaged"):
            load(program[:-lost])


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_damaged_bytes_are_bad_input_or_run(data):
    program = small_programs().int8["openvino"]
    damaged = bytearray(program)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(program) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.one_of(st.just(len(program)), st.integers(0, len(program))))
    try:
        load(bytes(damaged[:cut]))(small_programs().codes[:1])
    except InputError as error:
        assert "\n" not in str(error)
