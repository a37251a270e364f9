"""Float `.tflite` files beside TFLite's own reference kernels, and what is refused in one line."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_tflite import Int8, run
from small_programs import Small, small_programs
from tflite_models import RELU, SAME, VALID, Writer, reference

from paredown.pipeline.recipe.imports.read import read
from paredown.targets.errors import InputError

CLOSE = 1e-5


def imported(folder: Path, data: bytes):
    path = folder / "net.tflite"
    path.write_bytes(data)
    return read(path)


def check(folder: Path, data: bytes, close: float = CLOSE) -> torch.nn.Module:
    """An import gives what the reference kernels give."""
    found = imported(folder, data)
    x = np.random.default_rng(1).normal(0, 1, found.shape).astype(np.float32)
    with torch.no_grad():
        made = found.module(torch.from_numpy(x))
    made = made if isinstance(made, tuple) else (made,)
    for ours, theirs in zip(made, reference(data, x), strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours.numpy() - theirs).max() <= close * max(np.abs(theirs).max(), 1)
    return found.module


def pad(w: Writer) -> int:
    around = w.constant(np.array([[0, 0], [1, 2], [0, 3], [0, 0]], np.int32))
    return w.op("PAD", [w.input, around], (1, 11, 10, 6), "Pad")


def mean(w: Writer) -> int:
    return w.op("MEAN", [w.input, w.constant(np.array([1, 2], np.int32))], (1, 6), "Reducer", keepDims=False)


def channels_max(w: Writer) -> int:
    axes = w.constant(np.array([3], np.int32))
    return w.op("REDUCE_MAX", [w.input, axes], (1, 8, 7, 1), "Reducer", keepDims=True)


def resize(kind: str, options: str, size: tuple[int, int], **more: bool) -> Callable[[Writer], int]:
    def make(w: Writer) -> int:
        return w.op(kind, [w.input, w.constant(np.array(size, np.int32))], (1, *size, 6), options, **more)

    return make


def unary(kind: str, options: str = "", **values: object) -> Callable[[Writer], int]:
    return lambda w: w.op(kind, [w.input], (1, 8, 7, 6), options, **values)


def binary(kind: str, options: str, *shape: int, swap: bool = False) -> Callable[[Writer], int]:
    def make(w: Writer) -> int:
        pair = [w.input, w.constant(np.abs(w.dice.normal(1, 0.2, shape)).astype(np.float32) + 0.5)]
        return w.op(kind, pair[::-1] if swap else pair, (1, 8, 7, 6), options)

    return make


def prelu(w: Writer) -> int:
    return w.op("PRELU", [w.input, w.weight(1, 1, 6)], (1, 8, 7, 6))


def transposed(stride: int, padding: int, k: int) -> Callable[[Writer], int]:
    def make(w: Writer) -> int:
        size = [n * stride + (max(k - stride, 0) if padding == VALID else 0) for n in (8, 7)]
        shape = w.constant(np.array([1, *size, 4], np.int32))
        return w.op(
            "TRANSPOSE_CONV", [shape, w.weight(4, k, k, 6), w.input], (1, *size, 4), "TransposeConv",
            padding=padding, strideH=stride, strideW=stride,
        )  # fmt: skip

    return make


def joined(w: Writer) -> int:
    a, b = w.conv(w.input, 3), w.depthwise(w.input)
    return w.op("CONCATENATION", [a, b], (1, 8, 7, 9), "Concatenation", axis=3)


def sliced(w: Writer) -> int:
    begin, size = (w.constant(np.array(each, np.int32)) for each in ([0, 1, 2, 0], [1, 5, -1, 4]))
    return w.op("SLICE", [w.input, begin, size], (1, 5, 5, 4), "Slice")


def strided(w: Writer) -> int:
    places = [w.constant(np.array(each, np.int32)) for each in ([0, 2, 0, 1], [1, -1, 0, 5], [1, 1, 1, 1])]
    return w.op("STRIDED_SLICE", [w.input, *places], (1, 5, 7, 4), "StridedSlice", endMask=0b0101)


def turned(w: Writer) -> int:
    """A transpose, and a dense layer that reads the numbers in that order."""
    order = w.constant(np.array([0, 3, 1, 2], np.int32))
    made = w.op("TRANSPOSE", [w.input, order], (1, 6, 8, 7), "Transpose")
    return w.dense(w.flat(made), 5)


def half(w: Writer) -> int:
    """Weights of float16, as converters write them."""
    small = w.constant(w.dice.normal(0, 0.5, (4, 3, 3, 6)).astype(np.float16))
    weight = w.op("DEQUANTIZE", [small], (4, 3, 3, 6), "Dequantize")
    return w.op(
        "CONV_2D", [w.input, weight, w.weight(4)], (1, 8, 7, 4), "Conv2D", padding=SAME, strideH=1, strideW=1,
        dilationHFactor=1, dilationWFactor=1,
    )  # fmt: skip


OPERATIONS = {
    "conv": lambda w: w.conv(w.input, 4), "conv valid": lambda w: w.conv(w.input, 4, padding=VALID),
    "conv stride": lambda w: w.conv(w.input, 5, stride=2, activation=RELU),
    "conv even": lambda w: w.conv(w.input, 4, k=2),
    "conv dilated": lambda w: w.conv(w.input, 4, dilation=2),
    "conv 5": lambda w: w.conv(w.input, 3, k=5, stride=3),
    "depthwise": lambda w: w.depthwise(w.input), "depthwise 2": lambda w: w.depthwise(w.input, 2, 5, 2),
    "max": lambda w: w.pool(w.input, "MAX"), "max same": lambda w: w.pool(w.input, "MAX", 3, 2, SAME),
    "average": lambda w: w.pool(w.input, "AVERAGE", 3, 1),
    "average same": lambda w: w.pool(w.input, "AVERAGE", 3, 2, SAME),
    "dense of a map": lambda w: w.dense(w.input, 4, RELU), "flat": lambda w: w.dense(w.flat(w.input), 4),
    "mean": mean, "channels": channels_max, "pad": pad, "relu6": unary("RELU6"), "tanh": unary("TANH"),
    "sigmoid": unary("LOGISTIC"), "hard swish": unary("HARD_SWISH", "HardSwish"), "elu": unary("ELU"),
    "leaky": unary("LEAKY_RELU", "LeakyRelu", alpha=0.2), "gelu": unary("GELU", "Gelu", approximate=False),
    "abs": unary("ABS"), "square": unary("SQUARE"), "softmax": unary("SOFTMAX", "Softmax", beta=1.0),
    "prelu": prelu, "add": binary("ADD", "Add", 6), "sub from": binary("SUB", "Sub", 6, swap=True),
    "mul": binary("MUL", "Mul", 1, 8, 7, 6), "div": binary("DIV", "Div", 7, 1),
    "maximum": binary("MAXIMUM", "", 6),
    "bilinear": resize("RESIZE_BILINEAR", "ResizeBilinear", (16, 11), halfPixelCenters=True),
    "corners": resize("RESIZE_BILINEAR", "ResizeBilinear", (15, 13), alignCorners=True),
    "nearest": resize("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighbor", (16, 21)),
    "nearest half": resize(
        "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighbor", (13, 9), halfPixelCenters=True
    ),
    "transposed": transposed(2, SAME, 3), "transposed valid": transposed(2, VALID, 3),
    "transposed 4": transposed(2, SAME, 4), "joined": joined, "slice": sliced, "strided": strided,
    "transpose": turned, "float16": half,
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_the_reference_kernels(tmp_path, name):
    w = Writer((1, 8, 7, 6))
    check(tmp_path, w.data(OPERATIONS[name](w)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_networks_are_those_of_the_reference_kernels(tmp_path_factory, seed):
    dice = random.Random(seed)
    w = Writer((1, dice.randint(5, 12), dice.randint(5, 12), dice.choice([1, 3, 4])), seed)
    x = w.input
    for _ in range(dice.randint(1, 6)):
        channels = w.shape(x)[3]
        step = dice.choice(["conv", "depthwise", "residual", "pool", "scale", "split"])
        if step == "conv":
            x = w.conv(x, dice.randint(1, 6), dice.choice([1, 3]), dice.choice([1, 2]), activation=RELU)
        elif step == "depthwise":
            x = w.depthwise(x, dice.choice([1, 2]), stride=dice.choice([1, 2]))
        elif step == "residual":
            x = w.op("ADD", [x, w.conv(x, channels)], w.shape(x), "Add", fusedActivationFunction=RELU)
        elif step == "pool":
            x = w.pool(x, dice.choice(["MAX", "AVERAGE"]), 2, dice.choice([1, 2]), SAME)
        elif step == "scale":
            x = w.op("MUL", [x, w.weight(channels)], w.shape(x), "Mul")
        else:
            pair = [w.conv(x, 2), w.conv(x, 3, 1)]
            x = w.op("CONCATENATION", pair, (*w.shape(x)[:3], 5), "Concatenation", axis=3)
    outputs = [x] if dice.random() < 0.3 else [w.dense(w.flat(x), 4)]
    check(tmp_path_factory.mktemp("net"), w.data(*outputs), 1e-4)


def test_a_network_of_torch_comes_back_through_another_converter(tmp_path):
    data = small_programs().float32["litert"]
    module = check(tmp_path, data)
    torch.manual_seed(0)
    weights = {tuple(p.shape): p for p in module.parameters()}
    for parameter in Small().parameters():
        assert torch.allclose(weights[tuple(parameter.shape)], parameter)


def test_nothing_is_turned_in_an_ordinary_network(tmp_path):
    w = Writer((1, 8, 8, 3))
    x = w.pool(w.depthwise(w.conv(w.input, 8, stride=2)), "AVERAGE", 4, 4)
    data = w.data(w.op("SOFTMAX", [w.dense(w.flat(x), 3)], (1, 3), "Softmax", beta=1.0))
    module = check(tmp_path, data)
    assert not any("permute" in str(part) for part in module.modules())
    found = imported(tmp_path, data)
    assert (found.format, found.shape) == ("TFLite", (1, 3, 8, 8))
    assert found.notes == ("the input is 1x3x8x8, channels first; in TFLite it is 1x8x8x3",)


@pytest.mark.parametrize(
    ("code", "mean", "std"),
    [((1 / 255, -128), 0.0, 1.0), ((1.0, -128), 0.0, 1 / 255), ((2 / 255, 0), 128 / 255, 0.5)],
)
def test_a_pixel_is_a_code_and_float32_leaves_no_odd_digits(tmp_path, code, mean, std):
    w = Int8((1, 8, 7, 3))
    w.scaled(w.input, *code)
    found = imported(tmp_path, w.data(w.layer(w.input, 8, stride=2))).preprocess
    assert found["mean"] == (mean,) * 3 and found["std"] == pytest.approx((std,) * 3)
    assert all(len(str(value)) <= len("0.00392157") for value in found["std"])


def test_an_int8_file_is_the_float_network_of_its_codes(tmp_path):
    w = Int8((1, 8, 7, 6))
    data = w.data(w.layer(w.input, 8, stride=2))
    found = imported(tmp_path, data)
    assert (found.format, found.shape) == ("TFLite, int8", (1, 6, 8, 7))
    scale, zero = w.codes(w.input)
    assert found.preprocess["mean"] == pytest.approx(((128 + zero) / 255,) * 6)
    assert found.preprocess["std"] == pytest.approx((1 / (255 * scale),) * 6)
    codes = np.random.default_rng(1).integers(-128, 128, found.shape).astype(np.int8)
    with torch.no_grad():
        made = found.module(torch.from_numpy((codes.astype(np.float32) - zero) * np.float32(scale)))
    place = int(w.graph.operators[-1].outputs[0])
    out_scale, out_zero = w.codes(place)
    (theirs,) = run(data, codes)
    inside = np.abs(theirs.astype(int)) < 127
    apart = np.abs(made.numpy() / out_scale + out_zero - theirs)[inside]
    assert inside.mean() > 0.5
    assert apart.max() < 0.51


def test_weights_of_int8_alone_are_a_float_network(tmp_path):
    """As dynamic range quantization writes them."""
    w = Int8((1, 8, 7, 6))
    w.graph.tensors[w.input].quantization, w.graph.tensors[w.input].type = None, schema.TensorType.FLOAT32
    codes = w.dice.integers(-127, 128, (4, 3, 3, 6)).astype(np.int8)
    weight = w.scaled(w.constant(codes), np.full(4, 0.01))
    data = w.data(w.op(
        "CONV_2D", [w.input, weight, w.weight(4)], (1, 8, 7, 4), "Conv2D", padding=SAME, strideH=1, strideW=1,
        dilationHFactor=1, dilationWFactor=1,
    ))  # fmt: skip
    found = imported(tmp_path, data)
    assert found.format == "TFLite"
    layer = next(each for each in found.module.modules() if isinstance(each, torch.nn.Conv2d))
    assert np.allclose(layer.weight.detach().numpy(), codes.transpose(0, 3, 1, 2) * 0.01)


def test_sixteen_bits_are_refused(tmp_path):
    w = Int8((1, 8, 7, 6))
    data = w.data(w.scaled(w.op("ABS", [w.input], (1, 8, 7, 6)), 0.1, 0, schema.TensorType.INT16))
    with pytest.raises(InputError, match=r"net\.tflite: a quantized model \(1 of int16 tensors\)"):
        imported(tmp_path, data)


def unknown(w: Writer) -> int:
    return w.op("LOCAL_RESPONSE_NORMALIZATION", [w.input], (1, 8, 7, 6))


def wrong_shape(w: Writer) -> int:
    made = w.conv(w.input, 4)
    w.graph.tensors[made].shape = np.array([1, 9, 7, 4], np.int32)
    return made


def bounded(w: Writer) -> int:
    return w.conv(w.input, 4, activation=schema.ActivationFunctionType.RELU_N1_TO_1)


def tf1(w: Writer) -> int:
    return resize("RESIZE_BILINEAR", "ResizeBilinear", (16, 14))(w)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (unknown, r"layer net/layer1 \(LOCAL_RESPONSE_NORMALIZATION\): is not known to the importer; export"),
        (wrong_shape, r"makes \(1, 8, 7, 4\), and by the file \(1, 9, 7, 4\); check the file"),
        (bounded, r"layer net/layer3 \(CONV_2D\): its activation is RELU_N1_TO_1; known are NONE"),
        (tf1, "places its pixels as TensorFlow 1 did; export it with half_pixel_centers"),
        (lambda w: w.input, "the model returns its input"),
    ],
)
def test_what_cannot_be_imported_is_one_line(tmp_path, make, line):
    w = Writer((1, 8, 7, 6))
    with pytest.raises(InputError, match=line) as caught:
        imported(tmp_path, w.data(make(w)))
    assert "\n" not in str(caught.value)


def test_another_shape_and_open_sizes_are_refused(tmp_path):
    w = Writer((1, 8, 7, 6))
    data = w.data(w.conv(w.input, 4))
    (tmp_path / "net.tflite").write_bytes(data)
    assert read(tmp_path / "net.tflite", (6, 8, 7)).shape == (1, 6, 8, 7)
    with pytest.raises(InputError, match="its input is 1x6x8x7, and the shape 6x9x9 does not fit"):
        read(tmp_path / "net.tflite", (6, 9, 9))
    w.graph.tensors[w.input].shapeSignature = np.array([1, -1, -1, 6], np.int32)
    with pytest.raises(InputError, match=r"its input .* is 1x\?x\?x6; convert it for one size"):
        imported(tmp_path, w.data(*w.graph.outputs))


def test_a_damaged_file_is_one_line_or_an_import(tmp_path):
    w = Writer((1, 8, 7, 6))
    data, dice = w.data(w.conv(w.input, 4)), random.Random(0)
    for length in (0, 6, 40, len(data) // 2):
        with pytest.raises(InputError) as caught:
            imported(tmp_path, data[:length])
        assert "\n" not in str(caught.value)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(4):
            damaged[dice.randrange(8, len(damaged))] ^= 1 << dice.randrange(8)
        try:
            imported(tmp_path, bytes(damaged))
        except InputError as error:
            assert "\n" not in str(error)


def test_mlperfs_networks_are_those_of_litert(tmp_path, shared):
    for name in ("vww/vww_96_float", "ic/pretrainedResnet"):
        path = shared / "mlperf-tiny" / f"{name}.tflite"
        if not path.exists():
            pytest.skip("MLPerf Tiny's models are not on this machine")
        check(tmp_path, path.read_bytes())
