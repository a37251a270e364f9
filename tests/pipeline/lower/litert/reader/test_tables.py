"""Int8 functions of one value of `.tflite` files: LiteRT's interpreter on the file, all 256 codes."""

from __future__ import annotations

import numpy as np
import pytest
from int8_tflite import Int8, check, read

#: Kind -> its options, and the output's scale and zero point.
FUNCTIONS = {
    "LOGISTIC": ("", 1 / 256, -128), "TANH": ("", 1 / 128, 0), "ELU": ("", 0.02, -30),
    "HARD_SWISH": ("HardSwish", 0.05, -100), "GELU": ("Gelu", 0.03, -60), "ABS": ("Abs", 0.05, -128),
    "EXP": ("Exp", 0.02, -128),
}  # fmt: skip
OURS = {"LOGISTIC": "sigmoid", "TANH": "tanh"}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_every_code_becomes_what_the_kernel_makes_of_it(tmp_path, kind):
    options, scale, zero = FUNCTIONS[kind]
    w = Int8((1, 16, 16, 1))
    w.scaled(w.input, 0.03, -20)
    data = w.data(w.made(kind, [w.input], (1, 16, 16, 1), options, scale=scale, zero=zero))
    graph = check(tmp_path, data, codes=np.arange(-128, 128).astype(np.int8).reshape(1, 1, 16, 16))
    assert graph[graph.outputs[0]].kind == OURS.get(kind, "function")


def test_a_table_is_stored_with_its_graph(tmp_path):
    w = Int8((1, 4, 4, 2))
    data = w.data(w.made("HARD_SWISH", [w.layer(w.input, 3)], (1, 4, 4, 3), "HardSwish", scale=0.4, zero=-90))
    graph = read(tmp_path, data)
    (table,) = graph[graph.outputs[0]].constants
    assert (table.shape, table.dtype) == ((256,), np.int8)
    again = type(graph).load(*graph.dump())
    assert np.array_equal(again[again.outputs[0]].constants[0], table)
