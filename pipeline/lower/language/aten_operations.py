"""How each ATen operation of a language model is written into a .tflite.

The tables at the end are all there is; an operation that is in none is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from paredown.pipeline.lower.language.aten_litert import Ref, Subgraph, Value, Weight, dtype_of
from paredown.targets.errors import InputError

aten = torch.ops.aten


def write(sub: Subgraph, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Value:
    """Writes a node.

    Args:
        sub: where to.
        node: its output's shape and type come with it.
        args: its arguments, nodes replaced by their values; of those that are not asked for, the nodes.
        kwargs: likewise.

    Raises:
        InputError: nobody has written how.
    """
    handler = _HANDLERS.get(node.target)
    if handler is None:
        raise InputError(f"no way to write {node.target}", where="lowering to LiteRT")
    return handler(sub, node, *args, **kwargs)


def reads(node: fx.Node) -> list[fx.Node]:
    """What a node reads; a matrix product its second factor from before its last two axes were swapped."""
    if node.target is not aten.matmul.default:
        return list(node.all_input_nodes)
    left, right = node.args
    swapped = _swapped(right)
    return [left, right if swapped is None else swapped]  # type: ignore[list-item]


def _swapped(node: Any) -> fx.Node | None:
    """What a node swaps the last two axes of."""
    if not isinstance(node, fx.Node) or node.target is not aten.transpose.int:
        return None
    rank = node.meta["val"].ndim
    if {axis % rank for axis in node.args[1:]} != {rank - 2, rank - 1}:
        return None
    return node.args[0]  # type: ignore[return-value]


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape)


def _dtype(node: fx.Node) -> str:
    return dtype_of(node.meta["val"].dtype)


def _reshaped(sub: Subgraph, value: Value, shape: Sequence[int]) -> Ref:
    ref = sub.ref(value)
    if sub.shape(ref) == tuple(shape):
        return ref
    options = sub.s.ReshapeOptionsT()
    options.newShape = np.asarray(shape, np.int32)
    return sub.op("RESHAPE", 1, [ref, sub.constant(shape)], shape, sub.dtype(ref), options)


def _reshape(sub: Subgraph, node: fx.Node, x: Value, *_: Any, **__: Any) -> Ref:
    """RESHAPE shares its input's memory, which TFLite lets the next operation work in.

    Even where the input itself is read later, so one that somebody else reads is copied first.
    """
    ref = sub.ref(x)
    shape = sub.shape(ref)
    if len(node.args[0].users) > 1 and shape != _shape(node):  # type: ignore[union-attr]
        parts = [ref, sub.constant([0] * len(shape)), sub.constant(shape)]
        ref = sub.op("SLICE", 1, parts, shape, _dtype(node), sub.s.SliceOptionsT())
    return _reshaped(sub, ref, _shape(node))


def _same(sub: Subgraph, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    return x


def _cast(sub: Subgraph, node: fx.Node, x: Value, *_: Any, **__: Any) -> Ref:
    ref = sub.ref(x)
    if sub.dtype(ref) == _dtype(node):
        return ref
    return sub.op("CAST", 1, [ref], _shape(node), _dtype(node))


def _binary(sub: Subgraph, node: fx.Node, x: Value, y: Value | float) -> Ref:
    kind, options = _BINARY[node.target]
    sides = [_number(sub, side, x) for side in (x, y)]
    return sub.op(kind, 1, sides, _shape(node), _dtype(node), getattr(sub.s, options)())


def _unary(sub: Subgraph, node: fx.Node, x: Value) -> Ref:
    return sub.op(_UNARY[node.target], 1, [x], _shape(node), _dtype(node))


def _number(sub: Subgraph, value: Any, like: Value) -> Ref:
    """A value, or a number as a tensor of the other side's type."""
    if isinstance(value, (Ref, Tensor)):
        return sub.ref(value)
    real = sub.dtype(sub.ref(like)) == "float32"
    return sub.constant(value, np.float32 if real else np.int32)


def _gelu(sub: Subgraph, node: fx.Node, x: Value, approximate: str = "none") -> Ref:
    options = sub.s.GeluOptionsT()
    options.approximate = approximate == "tanh"
    return sub.op("GELU", 1, [x], _shape(node), options=options)


def _mean(sub: Subgraph, node: fx.Node, x: Value, dims: Sequence[int], keepdim: bool = False) -> Ref:
    options = sub.s.ReducerOptionsT()
    options.keepDims = keepdim
    ref = sub.ref(x)
    axes = sub.constant([dim % len(sub.shape(ref)) for dim in dims])
    return sub.op("MEAN", 1, [ref, axes], _shape(node), options=options)


def _softmax(sub: Subgraph, node: fx.Node, x: Value, dim: int, *_: Any) -> Ref:
    if dim % len(_shape(node)) != len(_shape(node)) - 1:
        raise InputError(f"softmax over axis {dim}, which is not the last", where="lowering to LiteRT")
    options = sub.s.SoftmaxOptionsT()
    options.beta = 1.0
    return sub.op("SOFTMAX", 1, [x], _shape(node), options=options)


def _transpose(sub: Subgraph, node: fx.Node, x: Value, first: int, second: int) -> Ref:
    rank = len(_shape(node))
    order = list(range(rank))
    order[first], order[second] = order[second], order[first]
    given = sub.shape(sub.ref(x))
    if [axis for axis in order if given[axis] > 1] == [a for a in range(rank) if given[a] > 1]:
        return _reshape(sub, node, x)  # nothing moves past anything: one token, say
    options = sub.s.TransposeOptionsT()
    return sub.op("TRANSPOSE", 1, [x, sub.constant(order)], _shape(node), _dtype(node), options)


def _slice(sub: Subgraph, node: fx.Node, x: Value, dim: int = 0, start: Any = None, *_: Any) -> Value:
    ref, shape = sub.ref(x), _shape(node)
    given = sub.shape(ref)
    if given == shape:
        return ref
    begin = [0] * len(given)
    start = start or 0
    begin[dim] = start + given[dim] if start < 0 else start
    parts = [ref, sub.constant(begin), sub.constant(shape)]
    return sub.op("SLICE", 1, parts, shape, _dtype(node), sub.s.SliceOptionsT())


def _select(sub: Subgraph, node: fx.Node, x: Value, dim: int, index: int) -> Ref:
    ref = sub.ref(x)
    size = list(sub.shape(ref))
    begin = [0] * len(size)
    begin[dim], size[dim] = index % size[dim], 1
    parts = [ref, sub.constant(begin), sub.constant(size)]
    cut = sub.op("SLICE", 1, parts, size, _dtype(node), sub.s.SliceOptionsT())
    return _reshaped(sub, cut, _shape(node))


def _cat(sub: Subgraph, node: fx.Node, parts: Sequence[Value], dim: int = 0) -> Ref:
    return _joined(sub, parts, _shape(node), dim, _dtype(node))


def _joined(sub: Subgraph, parts: Sequence[Value], shape: Sequence[int], dim: int, dtype: str) -> Ref:
    options = sub.s.ConcatenationOptionsT()
    options.axis = dim % len(shape)
    return sub.op("CONCATENATION", 1, list(parts), shape, dtype, options)


def _repeat(sub: Subgraph, node: fx.Node, x: Value, times: Sequence[int]) -> Ref:
    return sub.op("TILE", 1, [x, sub.constant(times)], _shape(node), _dtype(node), sub.s.TileOptionsT())


def _where(sub: Subgraph, node: fx.Node, seen: Value, yes: Any, no: Any) -> Ref:
    yes, no = (
        value if isinstance(value, (Ref, Tensor)) else sub.constant(value, np.float32) for value in (yes, no)
    )
    return sub.op("SELECT_V2", 1, [seen, yes, no], _shape(node), _dtype(node), sub.s.SelectV2OptionsT())


def _embedding(sub: Subgraph, node: fx.Node, weight: Value, tokens: Value, *_: Any) -> Ref:
    shape = _shape(node)
    flat = _reshaped(sub, tokens, [int(np.prod(shape[:-1]))])
    if isinstance(weight, Tensor) and not weight.is_floating_point():
        rows = sub.op(
            "GATHER", 1, [weight, flat], (*sub.shape(flat), shape[-1]), _dtype(node), sub.s.GatherOptionsT()
        )
        return _reshaped(sub, rows, shape)
    version = {"int4": 4, "int8": 3}.get(_codes_of(weight), 1)
    rows = sub.op("EMBEDDING_LOOKUP", version, [flat, weight], (sub.shape(flat)[0], shape[-1]))
    return _reshaped(sub, rows, shape)


def _linear(sub: Subgraph, node: fx.Node, x: Value, weight: Value, bias: Value | None = None) -> Ref:
    """Float activations; on codes the kernels round them to int8, row by row, with a zero point."""
    options = sub.s.FullyConnectedOptionsT()
    options.keepNumDims = True
    options.asymmetricQuantizeInputs = isinstance(weight, Weight)
    version = {"int4": 12, "int8": 9}.get(_codes_of(weight), 5)
    parts = [x, weight] if bias is None else [x, weight, bias]
    return sub.op("FULLY_CONNECTED", version, parts, _shape(node), options=options)


def _codes_of(weight: Value) -> str:
    if not isinstance(weight, Weight):
        return "float32"
    return "int8" if weight.codes.bits == 8 else "int4"


def _matmul(sub: Subgraph, node: fx.Node, x: Value, y: Any) -> Ref:
    swapped = _swapped(node.args[1])
    options = sub.s.BatchMatMulOptionsT()
    options.adjY = swapped is not None
    right = y if swapped is None else sub.value(swapped)
    return sub.op("BATCH_MATMUL", 1, [x, right], _shape(node), options=options)


def _index_copy(sub: Subgraph, node: fx.Node, memory: Value, dim: int, index: Value, rows: Value) -> Ref:
    """One row is a slice that is written over; of many, each slot picks its own or the new row.

    TFLite has no scatter into a tensor that is there: the slots gather from the memory and the rows behind
    it instead, all numbers untouched.
    """
    shape, held = _shape(node), sub.ref(memory)
    places, length = sub.shape(sub.ref(index))[0], shape[dim]
    if places == 1:
        edges = [sub.constant([0] * dim), index, sub.constant([0] * (len(shape) - dim - 1))]
        start = _joined(sub, edges, [len(shape)], 0, "int32")
        options = sub.s.DynamicUpdateSliceOptionsT()
        return sub.op("DYNAMIC_UPDATE_SLICE", 1, [held, rows, start], shape, options=options)
    both = [*shape[:dim], length + places, *shape[dim + 1 :]]
    options = sub.s.GatherOptionsT()
    options.axis = dim
    source = _joined(sub, [held, rows], both, dim, "float32")
    return sub.op("GATHER", 1, [source, _sources(sub, sub.ref(index), length)], shape, options=options)


def _sources(sub: Subgraph, index: Ref, length: int) -> Ref:
    """Where each slot's row is among `length` old ones and the new ones behind them: int32 (length,)."""
    if (index, length) in sub.sources:
        return sub.sources[index, length]
    places = sub.shape(index)[0]
    grid = (length, places)
    slots = np.arange(length)
    hit = sub.op("EQUAL", 1, [sub.constant(slots[:, None]), index], grid, "bool", sub.s.EqualOptionsT())
    # From its own row to the new one: at most one place of a slot is hit, so the sum is that one's.
    further = length + np.arange(places)[None, :] - slots[:, None]
    none = sub.constant(np.zeros((1, 1)))
    steps = sub.op(
        "SELECT_V2", 1, [hit, sub.constant(further), none], grid, "int32", sub.s.SelectV2OptionsT()
    )
    step = sub.op("SUM", 1, [steps, sub.constant([1])], [length], "int32", sub.s.ReducerOptionsT())
    sub.sources[index, length] = sub.op(
        "ADD", 1, [step, sub.constant(slots)], [length], "int32", sub.s.AddOptionsT()
    )
    return sub.sources[index, length]


#: Each with its kind and its table of options.
_BINARY: dict[Any, tuple[str, str]] = {
    aten.add.Tensor: ("ADD", "AddOptionsT"),
    aten.sub.Tensor: ("SUB", "SubOptionsT"),
    aten.mul.Tensor: ("MUL", "MulOptionsT"),
    aten.remainder.Scalar: ("FLOOR_MOD", "FloorModOptionsT"),
    aten.ge.Scalar: ("GREATER_EQUAL", "GreaterEqualOptionsT"),
    aten.lt.Scalar: ("LESS", "LessOptionsT"),
    aten.bitwise_and.Tensor: ("LOGICAL_AND", "LogicalAndOptionsT"),
    aten.__and__.Tensor: ("LOGICAL_AND", "LogicalAndOptionsT"),
}
_UNARY: dict[Any, str] = {aten.rsqrt.default: "RSQRT", aten.cos.default: "COS", aten.sin.default: "SIN"}
_HANDLERS: dict[Any, Callable[..., Value]] = {
    **{operation: _binary for operation in _BINARY},
    **{operation: _unary for operation in _UNARY},
    aten.gelu.default: _gelu,
    aten.mean.dim: _mean,
    aten.softmax.int: _softmax,
    aten.embedding.default: _embedding,
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.index_copy.default: _index_copy,
    aten.cat.default: _cat,
    aten.repeat.default: _repeat,
    aten.where.ScalarOther: _where,
    aten.where.Scalar: _where,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.transpose.int: _transpose,
    aten.unflatten.int: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.to.dtype: _cast,
    aten.to.dtype_layout: _cast,
    aten.dropout.default: _same,
}
