"""Operation by operation, each beside onnxruntime, in the forms that several opsets give it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx_models import compared, floats, model_of, saved

from paredown.pipeline.recipe.imports.onnx.operations.table import OPERATIONS

IMAGE = (1, 4, 9, 7)
ROW = (1, 6, 5)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def case(
    kind: str, shape: Any = IMAGE, opset: int = 17, tensors: Any = None, inputs: Any = None, **attrs: Any
) -> Any:
    """A node that reads x and then the tensors in their order."""
    tensors = tensors or {}
    names = inputs or ["x", *tensors]
    return pytest.param(kind, shape, opset, tensors, names, attrs, id=f"{kind}-{opset}")


UNARY = (
    "Abs Atan Asinh Ceil Cos Elu Erf Exp Floor HardSigmoid HardSwish Identity LeakyRelu Neg Reciprocal Relu "
    "Round Selu Sigmoid Sign Sin Sinh Softplus Softsign Tanh ThresholdedRelu Celu Cosh Shrink"
).split()
CASES = [
    *(case(kind) for kind in UNARY),
    case("Gelu", opset=20),
    case("Gelu", opset=20, approximate="tanh"),
    case("Mish", opset=18),
    case("HardSigmoid", alpha=1 / 6),
    case("LeakyRelu", alpha=0.3),
    case("Selu", alpha=1.5, gamma=1.2),
    case("Elu", alpha=0.5),
    case("Celu", alpha=2.0),
    case("Clip", opset=9, min=0.0, max=6.0),
    case("Clip", tensors={"lo": np.array(-0.5, np.float32)}),
    case("Clip", tensors={"hi": np.array(0.5, np.float32)}, inputs=["x", "", "hi"]),
    case("PRelu", tensors={"s": floats(4, 1, 1)}),
    case("PRelu", tensors={"s": floats(1)}),
    case("PRelu", tensors={"s": floats(7)}),
    case("PRelu", (1, 4), tensors={"s": floats(4)}),
    *(
        case(kind, tensors={"w": floats(4, 1, 1)})
        for kind in ("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum")
    ),
    *(case(kind, tensors={"w": floats(4, 1, 1)}, inputs=["w", "x"]) for kind in ("Sub", "Mul")),
    *(
        case(kind, tensors={"w": np.array(0.7, np.float32)})
        for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min")
    ),
    case("Sub", tensors={"w": np.array([0.7], np.float32)}, inputs=["w", "x"]),
    case("Div", tensors={"w": floats(4, 1, 1) + 2}),
    case("Pow", tensors={"w": np.array(2, np.float32)}),
    case("Pow", tensors={"w": np.array(3, np.int64)}),
    case("Add", inputs=["x", "x"]),
    case("Mul", inputs=["x", "x"]),
    case("Mod", tensors={"w": np.array([0.3], np.float32)}, fmod=1),
    case("Conv", tensors={"w": floats(8, 4, 3, 3), "b": floats(8)}),
    case("Conv", tensors={"w": floats(8, 2, 3, 3)}, group=2, pads=[1, 0, 2, 1], strides=[2, 1]),
    case(
        "Conv",
        tensors={"w": floats(4, 1, 3, 3), "b": floats(4)},
        group=4,
        dilations=[2, 1],
        pads=[2, 1, 2, 1],
    ),
    *(
        case("Conv", tensors={"w": floats(8, 4, 3, 4)}, auto_pad=pad, strides=[2, 2])
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    case("Conv", (1, 6, 20), tensors={"w": floats(3, 6, 5), "b": floats(3)}, pads=[2, 1], strides=[3]),
    case("Conv", (1, 2, 4, 5, 6), tensors={"w": floats(3, 2, 2, 3, 3)}),
    case("ConvTranspose", tensors={"w": floats(4, 3, 3, 3), "b": floats(3)}, strides=[2, 2]),
    case("ConvTranspose", tensors={"w": floats(4, 3, 4, 4)}, strides=[2, 2], pads=[1, 1, 1, 1]),
    case(
        "ConvTranspose",
        tensors={"w": floats(4, 3, 3, 3)},
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        output_padding=[1, 1],
    ),
    case("ConvTranspose", tensors={"w": floats(4, 3, 3, 3)}, strides=[2, 2], pads=[0, 1, 1, 0]),
    case("ConvTranspose", tensors={"w": floats(4, 1, 4, 4)}, strides=[2, 2], group=4, pads=[1, 1, 1, 1]),
    case("ConvTranspose", tensors={"w": floats(4, 3, 3, 3)}, strides=[2, 2], output_shape=[18, 14]),
    case("ConvTranspose", tensors={"w": floats(4, 3, 3, 3)}, strides=[2, 2], auto_pad="SAME_UPPER"),
    case("ConvTranspose", (1, 4, 9), tensors={"w": floats(4, 3, 3)}, dilations=[2]),
    case("Gemm", (1, 6), tensors={"w": floats(6, 5), "b": floats(5)}),
    case("Gemm", (1, 6), tensors={"w": floats(5, 6), "b": floats(1, 5)}, transB=1, alpha=0.5, beta=2.0),
    case("Gemm", (1, 6), tensors={"w": floats(5, 6)}, transB=1),
    case("Gemm", (1, 6), tensors={"w": floats(5, 6), "b": floats(1)}, transB=1),
    case("MatMul", ROW, tensors={"w": floats(5, 3)}),
    case("MatMul", ROW, tensors={"w": floats(1, 5, 3)}),
    case("MatMul", ROW, tensors={"w": floats(7, 6)}, inputs=["w", "x"]),
    case("MatMul", (1, 5), tensors={"w": floats(5, 3)}),
    *(
        case(
            "BatchNormalization",
            shape,
            opset,
            tensors={"s": floats(4), "b": floats(4), "m": floats(4), "v": floats(4) ** 2 + 0.1},
        )
        for shape, opset in ((IMAGE, 8), (IMAGE, 15), ((1, 4), 15), ((1, 4, 6), 9))
    ),
    case("InstanceNormalization", tensors={"s": floats(4), "b": floats(4)}),
    case("LayerNormalization", ROW, tensors={"s": floats(5), "b": floats(5)}),
    case("LayerNormalization", tensors={"s": floats(9, 7)}, axis=-2, epsilon=1e-3),
    case("GroupNormalization", opset=21, tensors={"s": floats(4), "b": floats(4)}, num_groups=2),
    case("LRN", size=3),
    case("LpNormalization", axis=1),
    case("LpNormalization", axis=-1, p=1),
    case("MaxPool", kernel_shape=[3, 3], strides=[2, 2]),
    case("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    case("MaxPool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[2, 2]),
    case("MaxPool", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    case("MaxPool", (1, 4, 11), kernel_shape=[3], strides=[2]),
    case("MaxPool", kernel_shape=[2, 2], dilations=[2, 1]),
    case("MaxPool", kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    case("AveragePool", kernel_shape=[3, 3], strides=[2, 2]),
    case("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    case("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", kernel_shape=[3, 3], pads=[0, 1, 1, 0]),
    case("AveragePool", kernel_shape=[3, 3], pads=[0, 1, 1, 0], count_include_pad=1),
    case("AveragePool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    case("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    case("AveragePool", (1, 4, 11), kernel_shape=[3], strides=[2]),
    case("GlobalAveragePool"),
    case("GlobalMaxPool"),
    case("GlobalAveragePool", (1, 4, 6)),
    *(
        case(f"Reduce{kind}", opset=11, axes=[2, 3], keepdims=keep)
        for keep in (0, 1)
        for kind in ("Mean", "Sum", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp", "Prod")
    ),
    case("ReduceSum", opset=13, tensors={"a": ints(-1)}, keepdims=0),
    case("ReduceMean", opset=18, tensors={"a": ints(1)}),
    case("ReduceMean", opset=18),
    case("ArgMax", axis=1),
    case("ArgMin", axis=-1, keepdims=0),
    case("Softmax", opset=11, axis=1),
    case("Softmax", axis=1),
    case("Softmax", (1, 5)),
    case("LogSoftmax", axis=-1),
    case("Softmax", (1, 5), opset=11),
    case("CumSum", tensors={"a": np.array(2)}),
    case("Reshape", tensors={"s": ints(0, 2, -1, 7)}),
    case("Reshape", tensors={"s": ints(1, -1)}),
    case("Reshape", tensors={"s": ints(1, 28, 9)}),
    case("Reshape", (1, 6, 4), tensors={"s": ints(1, 2, 3, 4)}),
    case("Flatten"),
    case("Flatten", axis=2),
    case("Flatten", axis=0),
    case("Squeeze", (1, 4, 1, 5), tensors={"a": ints(2)}),
    case("Squeeze", (1, 4, 1, 5), opset=11, axes=[2]),
    case("Unsqueeze", ROW, tensors={"a": ints(1, -1)}),
    case("Unsqueeze", ROW, opset=11, axes=[2]),
    case("Transpose", perm=[0, 2, 3, 1]),
    case("Transpose", ROW),
    case("Concat", inputs=["x", "x"], axis=1),
    case("Concat", tensors={"w": floats(1, 2, 9, 7)}, axis=1),
    case("Concat", tensors={"w": floats(1, 4, 1, 7)}, axis=-2),
    case("Slice", tensors={"s": ints(1, 0), "e": ints(3, 100), "a": ints(1, 2), "p": ints(1, 2)}),
    case("Slice", opset=9, starts=[0, -5], ends=[2, -1], axes=[1, 3]),
    case("Slice", tensors={"s": ints(-1), "e": ints(-100), "a": ints(3), "p": ints(-1)}),
    case("Slice", tensors={"s": ints(6), "e": ints(0), "a": ints(3), "p": ints(-2)}),
    case("Slice", tensors={"s": ints(0, 0), "e": ints(1, 3)}),
    case("Expand", (1, 4, 1, 1), tensors={"s": ints(1, 1, 3, 5)}),
    case("Expand", (1, 4), tensors={"s": ints(2, 1, 1)}),
    case("Tile", tensors={"r": ints(1, 2, 1, 3)}),
    case("Pad", tensors={"p": ints(0, 0, 1, 2, 0, 0, 3, 1)}),
    case("Pad", opset=10, pads=[0, 0, 1, 2, 0, 0, 3, 1], value=0.5),
    *(case("Pad", tensors={"p": ints(0, 0, 1, 2, 0, 0, 3, 1)}, mode=mode) for mode in ("reflect", "edge")),
    case("Pad", tensors={"p": ints(0, 1, 0, 0, 0, 2, 0, 0)}, mode="reflect"),
    case("Pad", tensors={"p": ints(0, 0, -1, 0, 0, 0, 0, -2)}),
    case("Pad", opset=18, tensors={"p": ints(1, 2), "v": np.array(0.3, np.float32), "a": ints(3)}),
    case("Pad", (1, 9), tensors={"p": ints(0, 3, 0, 2)}, mode="reflect"),
    case("Pad", opset=19, tensors={"p": ints(0, 0, 1, 2, 0, 0, 3, 1)}, mode="wrap"),
    case("DepthToSpace", blocksize=2),
    case("DepthToSpace", (1, 8, 3, 5), blocksize=2, mode="CRD"),
    case("SpaceToDepth", (1, 3, 4, 6), blocksize=2),
    case("Gather", tensors={"i": np.array(2)}, axis=1),
    case("Gather", tensors={"i": ints(0, 2)}, axis=1),
    case("Gather", tensors={"i": ints(-1, 0, 0)}, axis=3),
    case("Gather", tensors={"i": np.array([[0, 1], [2, 3]])}, axis=1),
    case("GatherElements", (1, 5), tensors={"i": np.array([[4, 0, -1]])}, axis=1),
    case("GatherND", (1, 3, 4), tensors={"i": np.array([[0, 1], [0, 2]])}),
    case("ScatterND", (1, 3, 4), tensors={"i": np.array([[0, 1]]), "u": floats(1, 4)}),
    case("Trilu", (1, 5, 5), upper=0),
    case("Trilu", (1, 5, 5), tensors={"k": np.array(1)}),
    case("Einsum", ROW, tensors={"w": floats(5, 3)}, equation="bij,jk->bik"),
    *(
        case(
            "Resize",
            opset=11,
            tensors={"r": floats(0), "s": np.array([1, 1, *s], np.float32)},
            mode=mode,
            coordinate_transformation_mode=way,
        )
        for s in ((2, 2), (0.6, 1.7))
        for mode in ("linear", "cubic", "nearest")
        for way in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    ),
    *(
        case(
            "Resize",
            opset=13,
            tensors={"z": ints(1, 4, 6, 13)},
            inputs=["x", "", "", "z"],
            mode="nearest",
            nearest_mode=way,
        )
        for way in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
    case("Resize", opset=10, tensors={"s": np.array([1, 1, 2, 3], np.float32)}),
    case("Upsample", opset=9, tensors={"s": np.array([1, 1, 2, 2], np.float32)}),
    case("Upsample", opset=7, scales=[1.0, 1.0, 2.0, 2.0]),
    case("Upsample", opset=9, tensors={"s": np.array([1, 1, 2, 2], np.float32)}, mode="linear"),
    case(
        "Resize",
        opset=18,
        tensors={"s": np.array([2, 0.5], np.float32)},
        inputs=["x", "", "s"],
        axes=[2, 3],
        mode="linear",
    ),
    case("GridSample", opset=16, tensors={"g": floats(1, 5, 6, 2) * 2}),
    case("GridSample", opset=16, tensors={"g": floats(1, 5, 6, 2)}, align_corners=1, padding_mode="border"),
]


@pytest.mark.parametrize(("kind", "shape", "opset", "tensors", "inputs", "attrs"), CASES)
def test_an_operation_is_that_of_onnxruntime(tmp_path, kind, shape, opset, tensors, inputs, attrs):
    node = helper.make_node(kind, inputs, ["y"], "node", **attrs)
    tail = [helper.make_node("Cast", ["y"], ["z"], "cast", to=1)] if kind.startswith("Arg") else []
    model = model_of([node, *tail], shape, tensors, outputs=["z" if tail else "y"], opset=opset)
    found, far = compared(saved(tmp_path, model))
    assert far < 2e-6
    assert found.format == f"ONNX, opset {opset}"


def test_split_gives_every_part(tmp_path):
    for opset, attrs, tensors in (
        (11, {"split": [1, 3]}, {}),
        (13, {}, {"s": ints(2, 2)}),
        (18, {"num_outputs": 3}, {}),
        (13, {}, {}),
    ):
        names = ["a", "b", "c"][: attrs.get("num_outputs", 2)]
        node = helper.make_node(
            "Split", ["x", *tensors], names, "split", axis=2 if "num_outputs" in attrs else 1, **attrs
        )
        found, far = compared(saved(tmp_path, model_of([node], IMAGE, tensors, names, opset)))
        assert far == 0 and found.outputs == tuple(names)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_give_outputs_and_states(tmp_path, kind, gates, direction):
    ways, hidden = 2 if direction == "bidirectional" else 1, 3
    tensors = {
        "w": floats(ways, gates * hidden, 5, seed=1),
        "r": floats(ways, gates * hidden, hidden, seed=2),
        "b": floats(ways, 2 * gates * hidden, seed=3),
    }
    attrs = {"linear_before_reset": 1} if kind == "GRU" else {}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], "first", perm=[1, 0, 2]),
        helper.make_node(
            kind, ["t", *tensors], ["seq", "last"], "rnn", hidden_size=hidden, direction=direction, **attrs
        ),
    ]
    found, far = compared(saved(tmp_path, model_of(nodes, (1, 7, 5), tensors, ["seq", "last"])))
    assert far < 2e-6
    assert found.outputs == ("seq", "last")


def test_top_k_gives_values(tmp_path):
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["v", "i"], "top"),
        helper.make_node("Cast", ["i"], ["f"], to=1),
    ]
    _, far = compared(saved(tmp_path, model_of(nodes, (1, 9), {"k": ints(3)}, ["v", "f"])))
    assert far == 0


def test_shape_arithmetic_becomes_constants(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "two"], ["h"], axis=0),
        helper.make_node("Mul", ["h", "two"], ["double"]),
        helper.make_node("Unsqueeze", ["double", "zero"], ["row"]),
        helper.make_node("Concat", ["n", "row", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    tensors = {"two": np.array(2), "zero": ints(0), "n": ints(1), "rest": ints(-1)}
    found, far = compared(saved(tmp_path, model_of(nodes, IMAGE, tensors)))
    assert far == 0
    assert len(found.module.steps) == 1


def test_a_known_condition_chooses_a_branch(tmp_path):
    def branch(name: str, kind: str) -> Any:
        return helper.make_graph(
            [helper.make_node(kind, ["x"], [name])], name, [], [helper.make_tensor_value_info(name, 1, [])]
        )

    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["c"]),
        helper.make_node("Equal", ["c", "four"], ["is"]),
        helper.make_node(
            "If", ["is"], ["y"], "choice", then_branch=branch("a", "Relu"), else_branch=branch("b", "Neg")
        ),
    ]
    tensors = {"one": np.array(1), "four": np.array(4)}
    found, far = compared(saved(tmp_path, model_of(nodes, IMAGE, tensors)))
    assert far == 0 and [type(m).__name__ for m in found.module.children()] == ["ReLU"]


def test_the_table_holds_what_the_cases_show():
    shown = {each.values[0] for each in CASES}
    others = {
        "Split",
        "LSTM",
        "GRU",
        "RNN",
        "TopK",
        "Shape",
        "Cast",
        "Where",
        "Equal",
        "Sqrt",
        "Log",
        "Not",
        "fused.Linear",
    }
    assert shown | others <= set(OPERATIONS) | {"Identity"}
    assert len(shown) > 90
