"""Int8 `.tflite` files of any tool as integer graphs: the very codes of LiteRT's interpreter on the file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_tflite import Int8, check, read
from tflite_models import RELU, RELU6, SAME, VALID

from paredown.pipeline.lower.litert.reader.load import prospect
from paredown.targets.errors import InputError

UINT8 = schema.TensorType.UINT8
Make = Callable[[Int8], int]


@settings(max_examples=10, deadline=None)
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


def larger(w: Int8, made: int) -> None:
    w.graph.tensors[made].shape = np.array([1, 9, 7, 4], np.int32)


def huge(w: Int8, made: int) -> None:
    w.graph.tensors[made].shape = np.array([1, 1 << 20, 1 << 20, 4], np.int32)


def still(w: Int8, made: int) -> None:
    w.graph.operators[0].builtinOptions.strideH = 0


def fine(w: Int8, made: int) -> None:
    w.scaled(made, 1e-7)


REFUSED = {
    "an operation": (
        lambda w: w.made("CUMSUM", [w.input], w.shape(w.input)), r"CUMSUM \(.*\): it is not known",
    ),
    "weights": (wrong(shifted), r"CONV_2D \(.*\): its weights have the zero point 3"),
    "no scale": (wrong(no_scale), r"CONV_2D \(.*\): its tensor .* has the scale 0"),
    "a scale": (wrong(fine), r"over 255 times finer than its sums"),
    "another shape": (wrong(larger), r"makes \(1, 4, 8, 7\), and by the file \(1, 4, 9, 7\)"),
    "a size": (wrong(huge), r"has a tensor of"), "a step": (wrong(still), r"CONV_2D \(.*\) is damaged"),
    "an activation": (lambda w: w.layer(w.input, 4, activation=2), r"its activation is RELU_N1_TO_1"),
    "a border": (
        lambda w: w.window_of(w.input, "AVERAGE", (3, 3), 1, SAME), r"averages fewer values at the border",
    ),
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
