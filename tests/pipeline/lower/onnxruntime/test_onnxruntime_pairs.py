"""Sums and products of codes in ONNX Runtime: the integer graph's own for every pair of codes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.lower.integer import Affine, IntegerNode
from paredown.pipeline.lower.onnxruntime.pairs import factors

CODES = np.arange(-128, 128).astype(np.int8)
WHOLE, ROW = (1, 256, 16, 16), (1, 256, 1, 1)


def nodes(kind: str, seed: int, shapes: tuple[tuple[int, ...], ...]) -> tuple[IntegerNode, list[IntegerNode]]:
    """An operation of two inputs with drawn scales, and its inputs."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.uniform(-5, -2, 2))
    last = (
        scales.prod() * rng.uniform(40, 120) if kind == "mul" else scales.max() * np.exp(rng.uniform(0, 0.8))
    )
    affines = [
        Affine(float(np.float32(s)), int(z))
        for s, z in zip((*scales, last), rng.integers(-128, 128, 3), strict=True)
    ]
    feeds = [IntegerNode(n, "input", (), s, a) for n, s, a in zip("ab", shapes, affines, strict=False)]
    return IntegerNode("c", kind, ("a", "b"), WHOLE, affines[2]), feeds


def wrong(node: IntegerNode, feeds: list[IntegerNode], held: tuple[float, ...]) -> int:
    """How many codes of all pairs differ in a file of our own with these scales of the inputs, to scale 1."""
    make, types = onnx.helper, onnx.TensorProto
    pairs = {WHOLE: [np.tile(CODES, 256), np.repeat(CODES, 256)], ROW: [CODES, CODES]}
    inputs = [pairs[feed.shape][index].reshape(feed.shape) for index, feed in enumerate(feeds)]
    constants, reads = [], []
    for name, scale, each in zip("abc", (*held, 1.0), (*feeds, node), strict=True):
        constants.append(make.make_tensor(f"{name}s", types.FLOAT, [], [scale]))
        constants.append(make.make_tensor(f"{name}z", types.UINT8, [], [each.out.zero_point + 128]))
        reads.append([name, f"{name}s", f"{name}z"])
    kind = node.kind.capitalize()
    graph = make.make_graph(
        [
            make.make_node("DequantizeLinear", reads[0], ["x"]),
            make.make_node("DequantizeLinear", reads[1], ["y"]),
            make.make_node(kind, ["x", "y"], ["z"]),
            make.make_node("QuantizeLinear", ["z", *reads[2][1:]], ["out"]),
        ],
        "pair",
        [
            make.make_tensor_value_info(n, types.UINT8, list(f.shape))
            for n, f in zip("ab", feeds, strict=True)
        ],
        [make.make_tensor_value_info("out", types.UINT8, list(WHOLE))],
        constants,
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {n: (x.astype(np.int16) + 128).astype(np.uint8) for n, x in zip("ab", inputs, strict=True)}
    found = session.run(None, given)[0].astype(np.int16) - 128
    return int(np.count_nonzero(found != operation(node.kind).codes(node, feeds, inputs)))


@pytest.mark.parametrize("shapes", [(WHOLE, WHOLE), (WHOLE, ROW), (ROW, WHOLE)])
@pytest.mark.parametrize("kind", ["add", "sub", "mul"])
def test_nearly_all_sums_and_products_have_factors_that_no_pair_of_codes_differs_with(kind, shapes):
    plain, ours = [], []
    for seed in range(12):
        node, feeds = nodes(kind, seed, shapes)
        scales = [np.float32(each.out.scale) for each in (*feeds, node)]
        first = (scales[0] / scales[2], scales[1] / scales[2])
        own = (scales[0] * scales[1] / scales[2], np.float32(1)) if kind == "mul" else first
        plain.append(wrong(node, feeds, tuple(map(float, own))))
        ours.append(wrong(node, feeds, tuple(map(float, factors(node, feeds)))))
    assert all(now <= before for now, before in zip(ours, plain, strict=True))
    assert ours.count(0) >= 10  # a float32 sum has no room for some


def test_factors_are_within_a_few_float32_steps_of_the_scales():
    node, feeds = nodes("add", 3, (WHOLE, WHOLE))
    own = [each.out.scale / node.out.scale for each in feeds]
    np.testing.assert_allclose([float(each) for each in factors(node, feeds)], own, rtol=1e-5)
