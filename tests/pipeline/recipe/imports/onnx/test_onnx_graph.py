"""An ONNX graph as plain data."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_models import floats, model_of, saved, small_net

from paredown.pipeline.recipe.imports.onnx.file import read_model
from paredown.pipeline.recipe.imports.onnx.graph import read_graph
from paredown.targets.errors import InputError


def test_nodes_constants_and_ends_are_plain(tmp_path):
    path = small_net(tmp_path)
    source = read_graph(read_model(path), path)
    assert [node.kind for node in source.nodes] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert source.nodes[0].attrs == {"pads": [1, 1, 1, 1]}
    assert source.inputs == {"x": ((1, 3, 8, 8), TensorProto.FLOAT)} and source.outputs == ("y",)
    assert source.constants["conv.weight"].shape == (4, 3, 3, 3)


@pytest.mark.parametrize(
    ("attrs", "wanted"),
    [
        ({"value_float": 0.5}, torch.tensor(0.5)),
        ({"value_ints": [1, 2]}, torch.tensor([1, 2])),
        ({"value_floats": [1.0]}, torch.tensor([1.0])),
        ({"value": onnx.numpy_helper.from_array(np.array([3], np.int32))}, torch.tensor([3])),
    ],
)
def test_constant_nodes_become_constants(tmp_path, attrs, wanted):
    nodes = [helper.make_node("Constant", [], ["c"], **attrs), helper.make_node("Relu", ["x"], ["y"])]
    path = saved(tmp_path, model_of(nodes, (1, 4)))
    source = read_graph(read_model(path), path)
    assert torch.equal(source.constants["c"], wanted) and source.constants["c"].dtype == wanted.dtype
    assert len(source.nodes) == 1


def test_boxes_that_are_suppressed_inside_are_refused(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("NonMaxSuppression", ["b", "s"], ["z"], "nms"),
    ]
    path = saved(tmp_path, model_of(nodes, (1, 4), {"b": floats(1, 3, 4), "s": floats(1, 1, 3)}))
    with pytest.raises(InputError, match="nms suppresses boxes .*without its postprocessing"):
        read_graph(read_model(path), path)
