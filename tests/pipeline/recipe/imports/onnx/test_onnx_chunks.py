"""Slices that share an axis out are a chunk; others stay slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from onnx_models import compared, floats, model_of, saved


def with_slices(*ranges: tuple[int, int], axis: int = 1, outputs: int = 0) -> Any:
    """A convolution to 12 channels of 12 x 4, slices of it, and what they sum to."""
    nodes, tensors = [helper.make_node("Conv", ["x", "w"], ["a"], "conv")], {"w": floats(12, 3, 1, 1)}
    tensors["axis"] = np.array([axis])
    for index, (low, high) in enumerate(ranges):
        tensors |= {f"l{index}": np.array([low]), f"h{index}": np.array([high])}
        names = ["a", f"l{index}", f"h{index}", "axis"]
        nodes.append(helper.make_node("Slice", names, [f"s{index}"], f"slice_{index}"))
        nodes.append(helper.make_node("ReduceMean", [f"s{index}"], [f"m{index}"], axes=[1, 2, 3]))
    nodes.append(helper.make_node("Sum", [f"m{i}" for i in range(len(ranges))], ["y"]))
    return model_of(nodes, (1, 3, 12, 4), tensors, outputs=("y", *(f"s{i}" for i in range(outputs))))


def chunks(module: torch.nn.Module) -> list[int]:
    return [m.arguments[1] for m in module.modules() if getattr(m, "function", None) is torch.chunk]


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("outputs", [0, 2])
def test_slices_of_every_part_are_one_chunk(tmp_path, axis, outputs):
    model = with_slices((4, 8), (0, 4), (8, 12), (0, 4), axis=axis, outputs=outputs)
    found, far = compared(saved(tmp_path, model))
    assert chunks(found.module) == [3] and far < 1e-6
    assert sum(step.path.startswith("slice") for step in found.module.steps) == 1


@pytest.mark.parametrize(
    "ranges",
    [((0, 4), (4, 8)), ((0, 4), (4, 12)), ((0, 8), (4, 12)), ((0, 6), (6, 12), (0, 12)), ((0, 5), (5, 10))],
    ids=["a part is missing", "unequal", "overlap", "the whole, too", "the end is missing"],
)
def test_other_slices_stay(tmp_path, ranges):
    found, far = compared(saved(tmp_path, with_slices(*ranges)))
    assert chunks(found.module) == ([2] if ranges[0] == (0, 6) else []) and far < 1e-6


def test_slices_of_parts_of_a_chunk(tmp_path):
    model = with_slices((0, 6), (6, 12))
    model.graph.node.extend([
        helper.make_node("Slice", ["s1", f"c{i}", f"c{i + 1}", "axis"], [f"t{i}"], f"t{i}") for i in range(2)
    ])  # fmt: skip
    for index, place in enumerate((0, 3, 6)):
        value = helper.make_tensor(f"c{index}", 7, [1], [place])
        model.graph.initializer.append(value)
    kinds = helper.make_tensor_value_info
    model.graph.output.extend(kinds(f"t{i}", 1, [1, 3, 12, 4]) for i in range(2))
    found, far = compared(saved(tmp_path, model))
    assert chunks(found.module) == [2, 2] and far < 1e-6
