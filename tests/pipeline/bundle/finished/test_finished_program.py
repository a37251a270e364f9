"""Finished programs: what their runtimes say of them, what they do, and what is refused in one line."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from int8_tflite import Int8
from small_programs import small_programs

from paredown.pipeline.bundle.finished import program as finished
from paredown.pipeline.bundle.finished.program import describe, run, scaled
from paredown.pipeline.lower.litert.program import aligned_builder
from paredown.targets.errors import DeviceError, InputError

SUFFIX = {"litert": ".tflite", "executorch": ".pte", "onnxruntime": ".onnx"}


def written(folder: Path, runtime: str = "litert", dtype: str = "int8") -> Path:
    path = folder / f"net{SUFFIX[runtime]}"
    path.write_bytes(getattr(small_programs(), dtype)[runtime])
    return path


def changed(folder: Path, change: Callable[[Any], None]) -> Path:
    """The small .tflite with something changed in it."""
    path = written(folder)
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    change(model)
    builder = aligned_builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.mark.parametrize("runtime", SUFFIX)
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_program_says_what_it_takes_and_gives(tmp_path, runtime, dtype):
    found = describe(written(tmp_path, runtime, dtype))
    assert (found.runtime, found.dtype, found.input.shape) == (runtime, dtype, (1, 3, 8, 8))
    assert {each.shape for each in found.outputs} == {(1, 8, 4, 4), (1, 5)}
    said = dtype == "float32" or runtime == "litert"
    assert (found.input.scale is not None) == said
    if dtype == "float32":
        assert (found.input.scale, found.input.zero_point) == (1.0, 0)


@pytest.mark.parametrize("runtime", SUFFIX)
def test_a_program_gives_the_codes_of_the_integer_graph(tmp_path, runtime):
    ran = run(describe(written(tmp_path, runtime)), small_programs().codes)
    ways = (ran.usual, ran.exact)
    if runtime != "onnxruntime":
        ways = ways[:1]  # the reference kernels of TFLite round differently
    for found in ways:
        raw = b"".join(part[index].tobytes() for index in range(5) for part in found)
        assert raw == small_programs().expected


def test_exact_kernels_are_tflites_own_reference(tmp_path):
    path = written(tmp_path)
    interpreter = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    ran = run(describe(path), small_programs().codes)
    for index, code in enumerate(small_programs().codes):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], code[None].transpose(0, 2, 3, 1))
        interpreter.invoke()
        for place, detail in enumerate(interpreter.get_output_details()):
            found = interpreter.get_tensor(detail["index"])
            found = found.transpose(0, 3, 1, 2) if found.ndim == 4 else found
            assert np.array_equal(ran.exact[place][index : index + 1], found)


@pytest.mark.parametrize(
    ("behind", "said"), [("", True), ("RESHAPE", True), ("ABS", False), (None, False), ("two", False)]
)
def test_a_softmax_at_the_end_is_known(tmp_path, behind, said):
    w = Int8((1, 8, 8, 3))
    scores = w.full(w.layer(w.input, 4, stride=2), 6)
    outputs = [scores]
    if behind is not None:
        outputs = [w.made("SOFTMAX", [scores], (1, 6), "Softmax", scale=1 / 256, zero=-128, beta=1.0)]
    if behind == "RESHAPE":
        shape = w.constant(np.array([1, 2, 3], np.int32))
        outputs = [w.made("RESHAPE", [outputs[0], shape], (1, 2, 3), "Reshape")]
    elif behind == "ABS":
        outputs = [w.made("ABS", outputs, (1, 6), "Abs")]
    elif behind == "two":
        outputs.append(scores)
    path = tmp_path / "net.tflite"
    path.write_bytes(w.data(*outputs))
    assert describe(path).softmax == said


def test_codes_of_uint8_are_int8_outside(tmp_path):
    """The same program between two casts gives the same codes, each 128 less."""

    def cast(model: Any) -> None:
        graph = model.subgraphs[0]
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
        model.operatorCodes.append(code)
        index = graph.inputs[0]
        outside = schema.TensorT()
        old = graph.tensors[index]
        outside.shape, outside.type, outside.name = old.shape, schema.TensorType.UINT8, "outside"
        outside.quantization = schema.QuantizationParametersT()
        outside.quantization.scale = old.quantization.scale
        outside.quantization.zeroPoint = np.asarray(old.quantization.zeroPoint) + 128
        graph.tensors.append(outside)
        op = schema.OperatorT()
        op.opcodeIndex = len(model.operatorCodes) - 1
        op.inputs, op.outputs = [len(graph.tensors) - 1], [int(index)]
        graph.operators.insert(0, op)
        graph.inputs = np.array([len(graph.tensors) - 1], np.int32)
        model.signatureDefs = []

    plain = describe(written(tmp_path))
    found = describe(changed(tmp_path, cast))
    assert (found.input.dtype, found.input.scale) == ("int8", plain.input.scale)
    assert found.input.zero_point == plain.input.zero_point
    ran = run(found, small_programs().codes)
    raw = b"".join(part[index].tobytes() for index in range(5) for part in ran.usual)
    assert raw == small_programs().expected


def test_scales_come_from_another_program_of_the_network(tmp_path):
    known, other = describe(written(tmp_path)), describe(written(tmp_path, "executorch"))
    made = scaled(other, (known.input, *known.outputs))
    assert [each.scale for each in made.outputs] == [each.scale for each in known.outputs]
    assert scaled(known, ()) is known
    with pytest.raises(InputError, match=r"net\.pte: .* does not say the scales of its int8 codes; give"):
        scaled(other, ())
    with pytest.raises(InputError, match="does not say the scales"):
        scaled(other, (known.input,))


def custom(model: Any) -> None:
    for code in model.operatorCodes:
        code.builtinCode, code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM, 32
        code.customCode = "Wonder"


def two_inputs(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.inputs = np.array([graph.inputs[0], len(graph.tensors)], np.int32)
    more = schema.TensorT()
    more.shape, more.type, more.name = [1, 2], schema.TensorType.FLOAT32, "more"
    graph.tensors.append(more)
    model.signatureDefs = []


def open_size(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].shapeSignature = [1, -1, 8, 3]


def of_type(kind: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        graph = model.subgraphs[0]
        unread = schema.TensorT()
        unread.shape, unread.type, unread.name = [1, 4], kind, "numbers"
        graph.tensors.append(unread)
        graph.inputs = np.array([len(graph.tensors) - 1], np.int32)
        model.signatureDefs = []

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (custom, "needs the custom operator Wonder, which no device of ours has"),
        (two_inputs, r"has 2 inputs \(.*, more\) and 2 outputs, not one input; make the others constants"),
        (open_size, r"the size of .* is open \(1x\?x8x3\); export it for one size"),
        (of_type(schema.TensorType.INT64), "numbers is int64, not int8, uint8 or float32"),
        (of_type(schema.TensorType.INT16), "numbers is int16, not int8, uint8 or float32"),
        (
            of_type(schema.TensorType.FLOAT32),
            r"takes float32 and gives int8 \(.*\); convert it with one type",
        ),
    ],
)
def test_what_is_no_program_of_one_input_is_refused(tmp_path, change, line):
    with pytest.raises(InputError, match=rf"net\.tflite: {line}"):
        describe(changed(tmp_path, change))


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("net.tflite", b"", r"not a TFLite model \(empty\)"),
        ("net.tflite", b"\x1c\0\0\0ABCD" + bytes(64), r"not a TFLite model \(72 bytes, .* b'ABCD'"),
        ("net.pte", b"PK\x03\x04" + bytes(64), "not an ExecuTorch program"),
        ("net.onnx", b"hello", "not an ONNX model that this runtime loads"),
        ("net.h5", b"x", r"not a finished program \(\.h5\); known are \.tflite, \.pte, \.onnx"),
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_refused(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=line):
        describe(tmp_path / name)


def test_folders_huge_and_missing_files_are_refused_unread(tmp_path):
    (tmp_path / "net.tflite").mkdir()
    with pytest.raises(InputError, match="a folder, not a file"):
        describe(tmp_path / "net.tflite")
    with (tmp_path / "big.tflite").open("wb") as file:
        file.truncate(3 << 30)  # a sparse file takes no room
    with pytest.raises(InputError, match=r"3\.0 GiB; a TFLite model has at most 2"):
        describe(tmp_path / "big.tflite")
    with pytest.raises(InputError, match="cannot read this file: No such file"):
        describe(tmp_path / "none.tflite")


@pytest.mark.parametrize("runtime", SUFFIX)
def test_a_damaged_program_is_one_line(tmp_path, runtime):
    """Cut off, or with flipped bits: an error of ours, or a program that runs; never this process's end."""
    whole, dice = small_programs().int8[runtime], random.Random(0)
    path = tmp_path / f"net{SUFFIX[runtime]}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError) as caught:
        describe(path)
    assert "\n" not in str(caught.value)
    for _ in range(1 if runtime == "executorch" else 2):  # a process of its own takes seconds to import it
        damaged = bytearray(whole)
        for _ in range(30):
            damaged[dice.randrange(8, len(damaged))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            found = describe(path)
        except InputError as error:
            assert "\n" not in str(error)
            continue
        assert found.runtime == runtime


def test_the_end_of_the_process_is_one_line(tmp_path, monkeypatch):
    path = written(tmp_path)
    ended = SimpleNamespace(returncode=-11, stdout="", stderr="")
    monkeypatch.setattr(finished.subprocess, "run", lambda *args, **options: ended)
    with pytest.raises(InputError, match=r"its runtime \(litert\) ended by signal 11: damaged, or not for"):
        describe(path)

    def late(*args: object, **options: Any) -> None:
        raise finished.subprocess.TimeoutExpired("child", options["timeout"])

    monkeypatch.setattr(finished.subprocess, "run", late)
    with pytest.raises(InputError, match="not done after 600 s"):
        describe(path)


def test_a_runtime_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError")
    here = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{here}")
    with pytest.raises(
        DeviceError, match=r'onnxruntime is not installed; pip install "paredown\[onnxruntime\]"'
    ):
        describe(written(tmp_path, "onnxruntime"))
