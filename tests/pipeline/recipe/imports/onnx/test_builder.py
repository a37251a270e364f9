"""Names of modules, shared weights, constants."""

from __future__ import annotations

import pytest
import torch
from onnx import helper
from onnx_models import compared, floats, model_of, saved

from paredown.pipeline.recipe.imports.onnx.builder import Node, cleaned, listed, path_of
from paredown.pipeline.recipe.imports.read import read


@pytest.mark.parametrize(
    ("name", "kind", "path"),
    [
        ("/layer1/layer1.0/conv1/Conv", "Conv", "layer1.0.conv1"),
        ("Conv_12", "Conv", "Conv_12"),
        ("/relu/Relu", "Relu", "relu.Relu"),
        ("/features/features.0/features.0.2/Clip_1", "Clip", "features.0.2.Clip_1"),
        ("p2o.Conv.3", "Conv", "p2o.Conv.3"),
        ("model/conv2d/BiasAdd;a:0", "Conv", "model.conv2d.BiasAdd_a_0"),
    ],
)
def test_paths_come_from_the_scopes_of_exporters(name, kind, path):
    assert path_of(Node(name, kind, (), ())) == path


def test_names_are_cleaned():
    assert cleaned("a b:0.c/d..e") == "a_b_0.c_d.e"
    assert cleaned("::") == "node"


def test_long_lists_are_cut():
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdef")) == "a, b, c, d and 2 more"


def test_layers_are_named_after_their_weights(tmp_path):
    node = helper.make_node("Conv", ["x", "stem.0.weight"], ["y"], "whatever")
    found = read(saved(tmp_path, model_of([node], (1, 3, 8, 8), {"stem.0.weight": floats(4, 3, 3, 3)})))
    assert list(found.module.state_dict()) == ["stem.0.weight"]


def test_names_that_collide_get_numbers(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "same"),
        helper.make_node("Tanh", ["a"], ["b"], "same"),
        helper.make_node("Neg", ["b"], ["c"], "same/inner"),
        helper.make_node("Abs", ["c"], ["d"], "steps"),
        helper.make_node("Exp", ["d"], ["y"], "forward"),
    ]
    found = read(saved(tmp_path, model_of(nodes, (1, 4))))
    x = torch.linspace(-2, 2, 4)[None]
    assert torch.allclose(found.module(x), x.relu().tanh().neg().abs().exp())
    paths = [step.path for step in found.module.steps]
    assert len(set(paths)) == 5 and paths[:2] == ["same", "same_2"]


def test_a_weight_of_two_nodes_is_one_parameter(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "one", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["b"], "two", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["b", "s"], ["c"], "three"),
        helper.make_node("Add", ["c", "s"], ["y"], "four"),
    ]
    tensors = {"w": floats(4, 4, 3, 3), "s": floats(4, 1, 1)}
    found, far = compared(saved(tmp_path, model_of(nodes, (1, 4, 8, 8), tensors)))
    assert far < 1e-6
    assert sum(1 for _ in found.module.parameters()) == 2
    assert found.module.one.weight is found.module.two.weight
    assert found.module.three.value is found.module.four.value


def test_equal_constants_are_weights_of_their_own(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w", "zeros"], ["a"], "one"),
        helper.make_node("Conv", ["a", "v", "zeros"], ["y"], "two"),
    ]
    tensors = {"w": floats(4, 4, 1, 1), "v": floats(4, 4, 1, 1, seed=1), "zeros": floats(4) * 0}
    found, far = compared(saved(tmp_path, model_of(nodes, (1, 4, 8, 8), tensors)))
    assert far < 1e-6
    assert found.module.one.bias is not found.module.two.bias
