"""Int8 `.tflite` files of any tool as integer graphs: the very codes of LiteRT's interpreter on the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_tflite import Int8, run
from tflite_models import RELU, RELU6, SAME, VALID

from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerGraph
from paredown.pipeline.lower.litert.reader.load import load, prospect
from paredown.pipeline.lower.runtimes import runtime
from paredown.targets.errors import InputError

UINT8 = schema.TensorType.UINT8
Make = Callable[[Int8], int]


def numbers(w: Int8, *values: int) -> int:
    return w.constant(np.array(values, np.int32))


def read(folder: Path, data: bytes) -> IntegerGraph:
    path = folder / "net.tflite"
    path.write_bytes(data)
    return load(path)


def check(folder: Path, data: bytes, most: int = 0) -> IntegerGraph:
    """Reference, LiteRT and ExecuTorch give the codes of the interpreter on the file."""
    graph = read(folder, data)
    shape = graph.input.shape
    x = np.random.default_rng(3).integers(-128, 128, (3, *shape[1:])).astype(np.int8)
    programs = [
        runtime(name).load(runtime(name).lower_integer(graph).data, 1, name)
        for name in ("litert", "executorch")
    ]
    for index in range(len(x)):
        one = x[index : index + 1]
        theirs = run(data, one)
        for name, made in (
            ("reference", reference.predict(graph, one)), ("litert", programs[0](one)),
            ("executorch", programs[1](one)),
        ):  # fmt: skip
            assert [each.shape for each in made] == [each.shape for each in theirs], name
            for ours, wanted in zip(made, theirs, strict=True):
                apart = np.abs(ours.astype(int) - wanted.astype(int)).max()
                assert apart <= most, f"{name}: {apart} codes apart"
    return graph


def pair(kind: str, activation: int = 0, *, constant: tuple[int, ...] = ()) -> Make:
    def make(w: Int8) -> int:
        x = w.input
        if constant:
            y = w.scaled(w.constant(w.dice.integers(-128, 128, constant).astype(np.int8)), 0.03, 5)
        else:
            y = w.layer(x, w.shape(x)[3])
        scale = w.codes(x)[0] * w.codes(y)[0] * 90 if kind == "MUL" else w.codes(x)[0] + w.codes(y)[0]
        name = kind.capitalize()
        return w.made(kind, [x, y], w.shape(x), name, scale=scale, fusedActivationFunction=activation)

    return make


def mean(keep: bool) -> Make:
    def make(w: Int8) -> int:
        shape = (1, 1, 1, 6) if keep else (1, 6)
        x = w.layer(w.input, 6)
        scale = w.codes(x)[0] / 3
        return w.made("MEAN", [x, numbers(w, 1, 2)], shape, "Reducer", scale=scale, keepDims=keep)

    return make


def table(kind: str, scale: float, zero: int) -> Make:
    return lambda w: w.made(kind, [w.input], w.shape(w.input), "", scale=scale, zero=zero)


def joined(w: Int8) -> int:
    a, b = w.window_of(w.input, "MAX", (3, 3), 1, SAME), w.input
    return w.made("CONCATENATION", [a, b], (1, 8, 7, 12), "Concatenation", axis=3)


def turned(w: Int8) -> int:
    made = w.made("TRANSPOSE", [w.input, numbers(w, 0, 3, 1, 2)], (1, 6, 8, 7), "Transpose")
    flat = w.made("RESHAPE", [made, numbers(w, 1, 336)], (1, 336), "Reshape")
    return w.full(flat, 5)


def folded(w: Int8) -> int:
    """A map as a sequence, a dense layer over each step, and back."""
    steps = w.made("RESHAPE", [w.input, numbers(w, 1, 56, 6)], (1, 56, 6), "Reshape")
    made = w.full(steps, 4, shape=(1, 56, 4), keepNumDims=True)
    return w.made("RESHAPE", [made, numbers(w, 1, 8, 7, 4)], (1, 8, 7, 4), "Reshape")


def padded(w: Int8) -> int:
    around = w.constant(np.array([[0, 0], [1, 2], [0, 3], [0, 0]], np.int32))
    return w.layer(w.made("PAD", [w.input, around], (1, 11, 10, 6), "Pad"), 4, padding=VALID)


def part(w: Int8) -> int:
    cut = w.made("SLICE", [w.input, numbers(w, 0, 1, 2, 0), numbers(w, 1, 6, -1, 4)], (1, 6, 5, 4), "Slice")
    places = [numbers(w, *each) for each in ((0, 1, 0, 1), (1, -1, 0, 3), (1, 2, 1, 1))]
    return w.made("STRIDED_SLICE", [cut, *places], (1, 2, 5, 2), "StridedSlice", endMask=0b0101)


def nearest(size: tuple[int, int], **more: bool) -> Make:
    def make(w: Int8) -> int:
        inputs = [w.input, numbers(w, *size)]
        return w.made("RESIZE_NEAREST_NEIGHBOR", inputs, (1, *size, 6), "ResizeNearestNeighbor", **more)

    return make


def scores(w: Int8) -> int:
    x = w.full(w.input, 7)
    w.scaled(x, 0.1, 3)
    return w.made("SOFTMAX", [x], (1, 7), "Softmax", scale=1 / 256, zero=-128, beta=1.0)


OPERATIONS: dict[str, Make] = {
    "conv": lambda w: w.layer(w.input, 4, activation=RELU), "stride": lambda w: w.layer(w.input, 5, 3, 2),
    "valid": lambda w: w.layer(w.input, 4, padding=VALID), "even": lambda w: w.layer(w.input, 4, 2, 2),
    "dilated": lambda w: w.layer(w.input, 4, dilation=2), "depthwise": lambda w: w.each(w.input, 1, 3, 2),
    "depthwise 2": lambda w: w.each(w.input, 2, 5, 1, activation=RELU6),
    "dense of a map": lambda w: w.full(w.input, 4, RELU), "steps": folded, "turned": turned,
    "add": pair("ADD", RELU), "sub": pair("SUB"), "mul": pair("MUL"), "mul relu": pair("MUL", RELU),
    "add constant": pair("ADD", constant=(6,)), "mul constant": pair("MUL", constant=(1, 8, 7, 1)),
    "average odd": lambda w: w.window_of(w.input, "AVERAGE", (3, 3), 2, VALID),
    "average even": lambda w: w.window_of(w.input, "AVERAGE", (2, 2), 2, VALID),
    "average all": lambda w: w.window_of(w.input, "AVERAGE", (8, 7), 1, VALID),
    "max": lambda w: w.window_of(w.input, "MAX", (3, 3), 2, SAME),
    "max relu": lambda w: w.window_of(w.input, "MAX", (2, 2), 2, VALID, fusedActivationFunction=RELU),
    "mean": mean(True), "mean flat": mean(False), "sigmoid": table("LOGISTIC", 1 / 256, -128),
    "tanh": table("TANH", 1 / 128, 0), "relu6": lambda w: w.made("RELU6", [w.input], w.shape(w.input)),
    "softmax": scores, "concat": joined, "pad": padded, "part": part, "nearest": nearest((16, 14)),
    "nearest half": nearest((13, 9), halfPixelCenters=True),
    "nearest corners": nearest((15, 13), alignCorners=True),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_has_the_codes_of_the_interpreter(tmp_path, name):
    w = Int8((1, 8, 7, 6), seed=len(name))
    check(tmp_path, w.data(OPERATIONS[name](w)))


def test_an_average_of_an_even_number_rounds_halves_as_tflite_does(tmp_path):
    """All sums of four codes that end in a half, on both sides of the code zero."""
    w = Int8((1, 2, 2, 256))
    graph = read(tmp_path, w.data(w.window_of(w.input, "AVERAGE", (2, 2), 2, VALID)))
    x = np.zeros((1, 256, 2, 2), np.int8)
    x[0, :, 0, 0] = x[0, :, 0, 1] = np.arange(-128, 128)
    x[0, :, 1, 0] = 2 * (np.arange(256) % 2 == 0)
    (theirs,) = run((tmp_path / "net.tflite").read_bytes(), x)
    (ours,) = reference.predict(graph, x)
    assert np.array_equal(ours, theirs)
    sums = x.astype(int).sum((2, 3))
    assert (sums % 4 == 2).all() and sums.min() < 0 < sums.max()


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 5))
def test_random_networks_have_the_codes_of_the_interpreter(tmp_path_factory, seed, depth):
    w = Int8((1, 12, 10, 3), seed)
    dice, x = np.random.default_rng(seed), w.input
    for _ in range(depth):
        size = w.shape(x)[1:3]
        kind = dice.integers(0, 5)
        if kind == 0:
            x = w.each(x, int(dice.integers(1, 3)), activation=RELU)
        elif kind == 1 and min(size) >= 4:
            x = w.window_of(x, ("MAX", "AVERAGE")[dice.integers(0, 2)], (2, 2), 2, VALID)
        elif kind == 2:
            y = w.layer(x, w.shape(x)[3], 1, activation=RELU6)
            scale = w.codes(x)[0] + w.codes(y)[0]
            x = w.made("ADD", [y, x], w.shape(x), "Add", scale=scale, fusedActivationFunction=RELU)
        else:
            x = w.layer(x, int(dice.integers(1, 9)), int(dice.integers(1, 4)), int(dice.integers(1, 3)))
    check(tmp_path_factory.mktemp("net"), w.data(w.full(x, 5)))


def test_uint8_and_float_ends_are_left_to_the_outside(tmp_path):
    w = Int8((1, 8, 7, 6), kind=UINT8)
    scale, zero = w.codes(w.input)
    inner = w.to(w.input, schema.TensorType.INT8, scale, zero - 128)
    made = w.layer(inner, 4)
    scale, zero = w.codes(made)
    graph = check(tmp_path, w.data(w.to(made, UINT8, scale, zero + 128)))
    assert [node.kind for node in graph] == ["input", "conv2d"]
    w = Int8((1, 8, 7, 6))
    w.graph.tensors[w.input].quantization, w.graph.tensors[w.input].type = None, 0
    made = w.layer(w.to(w.input, schema.TensorType.INT8, 0.05, 3), 4)
    graph = read(tmp_path, w.data(w.op("DEQUANTIZE", [made], w.shape(made), "Dequantize")))
    assert [node.kind for node in graph] == ["input", "conv2d"]
    assert (graph.input.out.zero_point, graph[graph.outputs[0]].out.zero_point) == (3, w.codes(made)[1])


def wrong(change: Callable[[Int8, int], object]) -> Make:
    def make(w: Int8) -> int:
        made = w.layer(w.input, 4)
        change(w, made)
        return made

    return make


def shifted(w: Int8, made: int) -> None:
    w.scaled(int(w.graph.operators[0].inputs[1]), np.full(4, 0.01), 3)


def no_scale(w: Int8, made: int) -> None:
    w.scaled(made, 0.0)


def fine(w: Int8, made: int) -> None:
    w.scaled(made, 1e-7)


REFUSED = {
    "an operation": (lambda w: w.made("NEG", [w.input], w.shape(w.input)), r"NEG \(.*\): it is not known"),
    "weights": (wrong(shifted), r"CONV_2D \(.*\): its weights have the zero point 3"),
    "no scale": (wrong(no_scale), r"CONV_2D \(.*\): its tensor .* has the scale 0"),
    "a scale": (wrong(fine), r"over 255 times finer than its sums"),
    "an activation": (lambda w: w.layer(w.input, 4, activation=2), r"its activation is RELU_N1_TO_1"),
    "a border": (
        lambda w: w.window_of(w.input, "AVERAGE", (3, 3), 1, SAME), r"averages fewer values at the border",
    ),
    "a prescribed scale": (table("LOGISTIC", 1 / 200, -128), "its output's scale is 0.005, not TFLite's own"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_sealed_says_which_operation_and_why(tmp_path, name):
    make, line = REFUSED[name]
    w = Int8((1, 8, 7, 6))
    with pytest.raises(InputError, match=rf"net\.tflite: stays sealed: .*{line}") as caught:
        read(tmp_path, w.data(make(w)))
    assert "`paredown bundle` takes it as it is" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "stays sealed" in prospect(tmp_path / "net.tflite")


def test_a_known_file_is_for_run(tmp_path):
    w = Int8((1, 8, 7, 6))
    read(tmp_path, w.data(w.layer(w.input, 4)))
    assert "an integer graph of 2 nodes" in prospect(tmp_path / "net.tflite")
