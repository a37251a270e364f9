"""LiteRT Micro on this machine, against TFLite's reference kernels; its arena, and what it refuses."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from mcu_programs import alone, digits, digits_images, everything

from paredown.targets.cards.card import load_card
from paredown.targets.errors import DeviceError, InputError
from paredown.targets.mcu import tflm
from paredown.targets.mcu.memory import fits
from paredown.targets.runners.vectors import test_inputs as make_inputs


@pytest.fixture(scope="module")
def program() -> bytes:
    return everything()


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return make_inputs((1, 3, 21, 24), 6, 5)


@pytest.fixture(scope="module")
def ran(program, inputs) -> tflm.Ran:
    return tflm.run(program, inputs)


def reference(program: bytes, inputs: np.ndarray) -> list[np.ndarray]:
    """TFLite's reference kernels: the oracle, written by others."""
    interpreter = Interpreter(model_content=program, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    results = []
    for x in inputs.transpose(0, 2, 3, 1):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.ascontiguousarray(x[None]))
        interpreter.invoke()
        results.append([interpreter.get_tensor(o["index"]) for o in interpreter.get_output_details()])
    nhwc = [np.concatenate(parts) for parts in zip(*results, strict=True)]
    return [part.transpose(0, 3, 1, 2) if part.ndim == 4 else part for part in nhwc]


def test_every_operator_of_ours_equals_the_reference_kernels_bit_by_bit(program, inputs, ran):
    expected = reference(program, inputs)
    assert [part.shape for part in ran.outputs] == [(6, 5, 5, 7), (6, 7)]
    for got, wanted in zip(ran.outputs, expected, strict=True):
        assert got.dtype == np.int8 and len(np.unique(got)) > 5
        np.testing.assert_array_equal(got, wanted)


def test_the_digits_network_equals_the_reference_kernels_and_fits_a_cortex_m4():
    codes = np.rint(digits_images(2) * 255 - 128).astype(np.int8)
    program = digits()
    ran = tflm.run(program, codes)
    for got, wanted in zip(ran.outputs, reference(program, codes), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert ran.arena.activations >= 80 * 80 * 16 + 40 * 40 * 16  # in and out of the first pool
    fits(load_card("cortex-m4"), ran.arena.bytes, len(program))


def test_the_arena_is_the_smallest_it_runs_in(program, inputs, ran):
    need = ran.arena
    assert need.activations + need.persistent == need.bytes
    assert need.activations >= 8 * 10 * 13  # the largest tensor must be somewhere
    exact = tflm.run(program, inputs[:1], need.bytes)
    np.testing.assert_array_equal(exact.outputs[0], ran.outputs[0][:1])
    with pytest.raises(DeviceError, match=r"needs an arena of [\d.,]+ KiB .*, 0\.1 KiB more than there is"):
        tflm.run(program, inputs[:1], need.bytes - 16)


@pytest.mark.parametrize("arena", [16, 1000])
def test_a_far_too_small_arena_ends_no_process_of_ours(program, inputs, ran, arena):
    lacking = (ran.arena.bytes - arena) / 1024
    with pytest.raises(DeviceError) as raised:
        tflm.run(program, inputs[:1], arena, where="digits.tflite")
    line = str(raised.value)
    assert line.startswith("digits.tflite: ") and "\n" not in line
    told = float(line.rpartition(" KiB more")[0].rpartition(" ")[2].replace(",", ""))
    assert lacking <= told < lacking + 0.1 + 1e-9


def test_an_operator_that_it_has_not_is_named():
    unknown = alone("SEGMENT_SUM", schema.SegmentSumOptionsT(), (4, 4), (2, 4), [0, 0, 1, 1])
    with pytest.raises(DeviceError, match="LiteRT Micro has no operator SEGMENT_SUM"):
        tflm.run(unknown, np.zeros((1, 4), np.int8))


def test_an_operator_that_it_cannot_execute_is_named_with_the_reason():
    turned = alone(
        "TRANSPOSE", schema.TransposeOptionsT(), (1, 2, 3, 2, 2, 2), (1, 3, 2, 2, 2, 2), [0, 2, 1, 3, 4, 5]
    )
    with pytest.raises(DeviceError, match=r"cannot execute TRANSPOSE \(operator 0\): .*1D-5D"):
        tflm.run(turned, np.zeros((1, 2, 3, 2, 2, 2), np.int8))


@pytest.mark.parametrize("spoil", [lambda p: b"", lambda p: b"hello", lambda p: p[: len(p) // 2]])
def test_what_is_no_program_is_an_input_error(program, inputs, spoil):
    with pytest.raises(InputError) as raised:
        tflm.run(spoil(program), inputs)
    assert "\n" not in str(raised.value)


def test_inputs_that_do_not_suit_the_program_are_an_input_error(program, inputs):
    with pytest.raises(InputError, match="[Dd]imension"):
        tflm.run(program, inputs[:, :2])
    with pytest.raises(InputError, match="FLOAT32"):
        tflm.run(program, inputs.astype(np.float32))
    with pytest.raises(InputError, match="no inputs"):
        tflm.run(program, inputs[:0])


def test_without_the_interpreter_the_line_has_the_command(program, inputs, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="pip install tflite-micro"):
        tflm.run(program, inputs)


def test_a_run_that_takes_too_long_is_ended(program, inputs):
    with pytest.raises(DeviceError, match="not done after 0.001 s"):
        tflm.run(program, inputs, timeout=0.001)
