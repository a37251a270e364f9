"""Int8 layers of `.tflite` files: the codes of LiteRT's interpreter on the file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from int8_tflite import Int8, check, numbers, read, run
from tflite_models import RELU, RELU6, SAME, VALID

from paredown.pipeline.lower import reference

Make = Callable[[Int8], int]


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


def folded(w: Int8) -> int:
    """A map as a sequence, a dense layer over each step, and back."""
    steps = w.made("RESHAPE", [w.input, numbers(w, 1, 56, 6)], (1, 56, 6), "Reshape")
    made = w.full(steps, 4, shape=(1, 56, 4), keepNumDims=True)
    return w.made("RESHAPE", [made, numbers(w, 1, 8, 7, 4)], (1, 8, 7, 4), "Reshape")


def scores(w: Int8) -> int:
    x = w.full(w.input, 7)
    w.scaled(x, 0.1, 3)
    return w.made("SOFTMAX", [x], (1, 7), "Softmax", scale=1 / 256, zero=-128, beta=1.0)


OPERATIONS: dict[str, Make] = {
    "conv": lambda w: w.layer(w.input, 4, activation=RELU), "stride": lambda w: w.layer(w.input, 5, 3, 2),
    "valid": lambda w: w.layer(w.input, 4, padding=VALID), "even": lambda w: w.layer(w.input, 4, 2, 2),
    "dilated": lambda w: w.layer(w.input, 4, dilation=2), "depthwise": lambda w: w.each(w.input, 1, 3, 2),
    "depthwise 2": lambda w: w.each(w.input, 2, 5, 1, activation=RELU6),
    "dense of a map": lambda w: w.full(w.input, 4, RELU), "steps": folded,
    "add": pair("ADD", RELU), "sub": pair("SUB"), "mul": pair("MUL"), "mul relu": pair("MUL", RELU),
    "add constant": pair("ADD", constant=(6,)), "mul constant": pair("MUL", constant=(1, 8, 7, 1)),
    "average odd": lambda w: w.window_of(w.input, "AVERAGE", (3, 3), 2, VALID),
    "average even": lambda w: w.window_of(w.input, "AVERAGE", (2, 2), 2, VALID),
    "average all": lambda w: w.window_of(w.input, "AVERAGE", (8, 7), 1, VALID),
    "max": lambda w: w.window_of(w.input, "MAX", (3, 3), 2, SAME),
    "max relu": lambda w: w.window_of(w.input, "MAX", (2, 2), 2, VALID, fusedActivationFunction=RELU),
    "mean": mean(True), "mean flat": mean(False), "softmax": scores,
    "relu6": lambda w: w.made("RELU6", [w.input], w.shape(w.input)),
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
