"""Islands in a .tflite: shapes, places and products."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import fx

from paredown.pipeline.lower.litert.floats.pointwise import composed
from paredown.pipeline.lower.litert.floats.tensors import Ref, Tensors, dtype_of, result_of


def _reshape(sub: Tensors, node: fx.Node, x: Any, *_: Any, **__: Any) -> Ref:
    return sub.reshaped(x, result_of(node)[0])


def _permute(sub: Tensors, node: fx.Node, x: Any, dims: Sequence[int]) -> Ref:
    ref = sub.ref(x)
    return sub.transposed(ref, [dim % len(ref.shape) for dim in dims])


def _transpose(sub: Tensors, node: fx.Node, x: Any, first: int = 0, second: int = 1) -> Ref:
    ref = sub.ref(x)
    order = list(range(len(ref.shape)))
    if order:
        order[first], order[second] = order[second], order[first]
    return sub.transposed(ref, order)


def _expand(sub: Tensors, node: fx.Node, x: Any, *_: Any, **__: Any) -> Ref:
    ref, shape = sub.ref(x), result_of(node)[0]
    ref = sub.reshaped(ref, (*[1] * (len(shape) - len(ref.shape)), *ref.shape))
    if ref.shape == shape:
        return ref
    return sub.op("BROADCAST_TO", [ref, sub.ints(shape)], shape, ref.dtype)


def _slice(
    sub: Tensors, node: fx.Node, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Ref:
    ref = sub.ref(x)
    taken = range(ref.shape[dim])[slice(start, end, step)]
    return _strided(sub, ref, dim % len(ref.shape), taken)


def _strided(sub: Tensors, ref: Ref, dim: int, taken: range) -> Ref:
    if taken == range(ref.shape[dim]):
        return ref
    begin, ends, steps = [0] * len(ref.shape), list(ref.shape), [1] * len(ref.shape)
    begin[dim], ends[dim], steps[dim] = taken.start, taken.stop, taken.step
    shape = [len(taken) if axis == dim else size for axis, size in enumerate(ref.shape)]
    parts = [ref, *(sub.ints(each) for each in (begin, ends, steps))]
    return sub.op("STRIDED_SLICE", parts, shape, ref.dtype, "StridedSliceOptionsT")


def _select(sub: Tensors, node: fx.Node, x: Any, dim: int, index: int) -> Ref:
    ref = sub.ref(x)
    place = index % ref.shape[dim]
    return sub.reshaped(_strided(sub, ref, dim % len(ref.shape), range(place, place + 1)), result_of(node)[0])


def _split(sub: Tensors, node: fx.Node, x: Any, sizes: Any, dim: int = 0) -> list[Ref]:
    ref = sub.ref(x)
    whole = ref.shape[dim]
    sizes = [min(sizes, whole - at) for at in range(0, whole, sizes)] if isinstance(sizes, int) else sizes
    ends = np.cumsum(sizes)
    return [
        _strided(sub, ref, dim % len(ref.shape), range(int(end) - size, int(end)))
        for end, size in zip(ends, sizes, strict=True)
    ]


def _cat(sub: Tensors, node: fx.Node, parts: Sequence[Any], dim: int = 0) -> Ref:
    shape, dtype = result_of(node)
    options = sub.s.ConcatenationOptionsT()
    options.axis = dim % len(shape)
    return sub.op("CONCATENATION", [sub.cast(part, dtype) for part in parts], shape, dtype, options)


def _flip(sub: Tensors, node: fx.Node, x: Any, dims: Sequence[int]) -> Ref:
    ref = sub.ref(x)
    for dim in dims:
        ref = sub.op(
            "REVERSE_V2", [ref, sub.ints([dim % len(ref.shape)])], ref.shape, ref.dtype, "ReverseV2OptionsT"
        )
    return ref


def _repeat(sub: Tensors, node: fx.Node, x: Any, times: Sequence[int]) -> Ref:
    ref = sub.ref(x)
    ref = sub.reshaped(ref, (*[1] * (len(times) - len(ref.shape)), *ref.shape))
    return sub.op("TILE", [ref, sub.ints(times)], result_of(node)[0], ref.dtype, "TileOptionsT")


def _pad(sub: Tensors, node: fx.Node, x: Any, pads: Sequence[int], value: float = 0.0) -> Ref:
    ref = sub.ref(x)
    if min(pads) < 0:
        raise sub.unknown(str(node.target))
    widths = np.zeros((len(ref.shape), 2), np.int32)
    for place in range(len(pads) // 2):
        widths[-1 - place] = pads[2 * place : 2 * place + 2]
    parts = [ref, sub.array(widths), sub.array(np.asarray([value], ref.dtype))]
    return sub.op("PADV2", parts, result_of(node)[0], ref.dtype, "PadV2OptionsT")


def _index_select(sub: Tensors, node: fx.Node, x: Any, dim: int, index: Any) -> Ref:
    return sub.gathered(x, index, dim % len(sub.ref(x).shape), result_of(node)[0])


def _embedding(sub: Tensors, node: fx.Node, weight: Any, index: Any, *_: Any) -> Ref:
    return sub.gathered(weight, index, 0, result_of(node)[0])


def _gather(sub: Tensors, node: fx.Node, x: Any, dim: int, index: Any, **_: Any) -> Ref:
    """Every value by its number among all."""
    ref, where = sub.ref(x), sub.cast(index, "int32")
    dim %= len(ref.shape)
    strides = [math.prod(ref.shape[axis + 1 :]) for axis in range(len(ref.shape))]
    base = np.zeros(where.shape, np.int32)
    for axis, places in enumerate(np.indices(where.shape, np.int32)):
        base += places * (strides[axis] if axis != dim else 0)
    step = sub.op(
        "MUL", [where, sub.array(np.asarray(strides[dim], np.int32))], where.shape, "int32", "MulOptionsT"
    )
    number = sub.op("ADD", [step, sub.array(base)], where.shape, "int32", "AddOptionsT")
    return sub.gathered(sub.reshaped(ref, [math.prod(ref.shape)]), number, 0, where.shape)


def _index(sub: Tensors, node: fx.Node, x: Any, indices: Sequence[Any], *_: Any) -> Ref:
    """By indices along axes that are side by side."""
    ref = sub.ref(x)
    dims = [dim for dim, each in enumerate(indices) if each is not None]
    if dims != list(range(dims[0], dims[-1] + 1)):
        raise sub.unknown(str(node.target))
    number: Ref | None = None
    for dim in dims:
        each = indices[dim]
        if (each.dtype if isinstance(each, Ref) else dtype_of(each)) == "bool":
            raise sub.unknown(str(node.target))
        each = sub.cast(each, "int32")
        size = sub.array(np.asarray(ref.shape[dim], np.int32))
        less = sub.op("LESS", [each, sub.array(np.asarray(0, np.int32))], each.shape, "bool", "LessOptionsT")
        other = sub.op("ADD", [each, size], each.shape, "int32", "AddOptionsT")
        each = sub.op("SELECT_V2", [less, other, each], each.shape, "int32", "SelectV2OptionsT")
        if number is None:
            number = each
            continue
        shape = np.broadcast_shapes(number.shape, each.shape)
        number = sub.op("MUL", [number, size], number.shape, "int32", "MulOptionsT")
        number = sub.op("ADD", [number, each], shape, "int32", "AddOptionsT")
    assert number is not None
    merged = (*ref.shape[: dims[0]], math.prod(ref.shape[d] for d in dims), *ref.shape[dims[-1] + 1 :])
    return sub.gathered(sub.reshaped(ref, merged), number, dims[0], result_of(node)[0])


def _matmul(sub: Tensors, node: fx.Node, x: Any, y: Any) -> Ref:
    return sub.op("BATCH_MATMUL", [x, y], *result_of(node), "BatchMatMulOptionsT")


def _addmm(sub: Tensors, node: fx.Node, bias: Any, x: Any, y: Any, **_: Any) -> Ref:
    return composed("ADD", sub, _matmul(sub, node, x, y), sub.ref(bias))


@functools.cache
def handlers() -> dict[str, Callable[..., Any]]:
    """Name of an ATen operation (or of a prim) -> what writes it."""
    return {
        "view": _reshape,
        "_unsafe_view": _reshape,
        "reshape": _reshape,
        "unsqueeze": _reshape,
        "squeeze": _reshape,
        "flatten": _reshape,
        "permute": _permute,
        "transpose": _transpose,
        "t": _transpose,
        "expand": _expand,
        "slice": _slice,
        "select": _select,
        "split": _split,
        "split_with_sizes": _split,
        "cat": _cat,
        "flip": _flip,
        "repeat": _repeat,
        "constant_pad_nd": _pad,
        "index_select": _index_select,
        "embedding": _embedding,
        "gather": _gather,
        "index": _index,
        "_unsafe_index": _index,
        "mm": _matmul,
        "bmm": _matmul,
        "addmm": _addmm,
        "getitem": lambda sub, node, parts, index: parts[index],
    }
