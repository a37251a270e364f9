"""Scales with which ONNX Runtime's sums and products of codes are XNNPACK's, proved on every pair of codes.

ONNX Runtime adds and multiplies in float32, with a rounding after each step or a fused one, as the processor
has it; XNNPACK adds 20-bit multiples. Both are right but for values within a ten-thousandth of a half, and a
network carries a code that is off by one to its end. Two inputs have 65,536 pairs of codes: few enough to run
them all. So an operator is written with scales a few float32 steps beside its own, the first with which no
pair differs on this processor (our design).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.graph.operations.joining.add import Add
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.lower.integer import IntegerNode
from paredown.pipeline.lower.onnxruntime.writer import IR_VERSION, OFFSET, OPSET, helper
from paredown.targets.runners.onnxruntime.runner import runtime

PAIRS = {"add": "Add", "sub": "Sub", "mul": "Mul"}
REACH = 8  # steps of 2^-22 beside a factor of a sum, of 2^-24 beside that of a product
Factors = tuple[np.float32, np.float32]
Codes = NDArray[np.uint8]


def factors(node: IntegerNode, feeds: Sequence[IntegerNode]) -> Factors:
    """What each input's codes are multiplied by, to units of the output; of a product the second's is 1.

    Args:
        node: an `add`, `sub` or `mul`.
        feeds: its two inputs.
    """
    zeros = tuple(each.out.zero_point for each in (*feeds, node))
    spread = tuple(np.prod(feed.shape) < np.prod(node.shape) for feed in feeds)
    kind = operation(node.kind)
    if isinstance(kind, Add):
        found, shift = kind.multipliers(node, feeds)
        own = tuple(float(np.ldexp(abs(each), -shift)) for each in found)
    else:
        scales = [np.float32(each.out.scale) for each in (*feeds, node)]
        own = (float(scales[0] * scales[1] / scales[2]), 1.0)
    truths = []
    for forms in _forms(spread):
        codes = [(form.astype(np.int16) - OFFSET).astype(np.int8) for form in forms]
        made = kind.codes(replace(node, low=-128, high=127), list(feeds), codes)
        truths.append((made.astype(np.int16) + OFFSET).astype(np.uint8).tobytes())
    return _searched(node.kind, (own[0], own[1]), zeros, spread, tuple(truths))


@functools.lru_cache(maxsize=128)
def _searched(
    kind: str,
    own: tuple[float, float],
    zeros: tuple[int, ...],
    spread: tuple[bool, ...],
    truths: tuple[bytes, ...],
) -> Factors:
    """The first factors with which no pair differs; where there are none, those with the fewest."""
    best, least = (np.float32(own[0]), np.float32(own[1])), 1 << 30
    for tried in _beside(kind, own):
        wrong = 0
        for forms, truth in zip(_forms(spread), truths, strict=True):
            made = _made(kind, tried, zeros, forms)
            wrong += int(np.count_nonzero(made != np.frombuffer(truth, np.uint8)))
            if wrong >= least:
                break
        if wrong < least:
            best, least = tried, wrong
        if not wrong:
            break
    return best


def _beside(kind: str, own: tuple[float, float]) -> Iterator[Factors]:
    """Factors, the nearest first."""
    steps = range(-REACH, REACH + 1)
    if kind == "mul":
        for step in sorted(steps, key=abs):
            yield np.float32(own[0] * (1 + step * 2.0**-24)), np.float32(own[1])
        return
    for one, other in sorted(
        ((i, j) for i in steps for j in steps), key=lambda pair: pair[0] ** 2 + pair[1] ** 2
    ):
        yield np.float32(own[0] * (1 + one * 2.0**-22)), np.float32(own[1] * (1 + other * 2.0**-22))


@functools.lru_cache(maxsize=4)
def _forms(spread: tuple[bool, ...]) -> list[tuple[Codes, Codes]]:
    """All pairs of codes as kernels may meet them: in whole tensors, and one tensor spread over the other."""
    every = np.arange(256, dtype=np.uint8)
    inner, outer = (each.reshape(1, 256, 16, 16) for each in (np.tile(every, 256), np.repeat(every, 256)))
    whole, one = (inner, outer), every.reshape(1, 256, 1, 1)
    if spread == (True, False):
        return [whole, (one, inner)]
    return [whole, (inner, one)] if spread == (False, True) else [whole]


def _made(kind: str, tried: Factors, zeros: tuple[int, ...], forms: tuple[Codes, Codes]) -> Codes:
    """The codes that ONNX Runtime makes of two tensors, flat."""
    onnx, ort = helper(), runtime()
    make, types = onnx.helper, onnx.TensorProto
    held, names = [], []
    for name, scale, zero in zip("abc", (*tried, np.float32(1)), zeros, strict=True):
        held.append(make.make_tensor(f"{name}/scale", types.FLOAT, [], [float(scale)]))
        held.append(make.make_tensor(f"{name}/zero", types.UINT8, [], [zero + OFFSET]))
        names.append([f"{name}/scale", f"{name}/zero"])
    nodes = [
        make.make_node("DequantizeLinear", ["a", *names[0]], ["x"]),
        make.make_node("DequantizeLinear", ["b", *names[1]], ["y"]),
        make.make_node(PAIRS[kind], ["x", "y"], ["z"]),
        make.make_node("QuantizeLinear", ["z", *names[2]], ["c"]),
    ]
    ins = [
        make.make_tensor_value_info(n, types.UINT8, list(x.shape)) for n, x in zip("ab", forms, strict=True)
    ]
    out = make.make_tensor_value_info("c", types.UINT8, [1, 256, 16, 16])
    graph = make.make_graph(nodes, "pairs", ins, [out], held)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (made,) = session.run(None, dict(zip("ab", forms, strict=True)))
    return np.asarray(made).reshape(-1)
