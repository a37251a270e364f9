"""Islands in a .tflite: sums, extremes, sorts and softmax over axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import fx

from paredown.pipeline.graph.aten import target
from paredown.pipeline.lower.litert.floats.pointwise import composed, truth
from paredown.pipeline.lower.litert.floats.tensors import Ref, Tensors, result_of

_REDUCE = {
    "sum": "SUM", "mean": "MEAN", "amax": "REDUCE_MAX", "amin": "REDUCE_MIN", "prod": "REDUCE_PROD",
    "any": "REDUCE_ANY", "all": "REDUCE_ALL",
}  # fmt: skip


def _axes(node: fx.Node, ref: Ref, dims: Any) -> list[int]:
    if dims is None or dims == []:
        return list(range(len(ref.shape)))
    dims = [dims] if isinstance(dims, int) else dims
    return [dim % len(ref.shape) for dim in dims]


def reduced(kind: str, sub: Tensors, ref: Ref, axes: Sequence[int], keep: bool) -> Ref:
    """A reduction over axes."""
    options = sub.s.ReducerOptionsT()
    options.keepDims = keep
    shape = [1 if axis in axes else size for axis, size in enumerate(ref.shape) if keep or axis not in axes]
    return sub.op(kind, [ref, sub.ints(axes)], shape, ref.dtype, options)


def _reduce(kind: str) -> Callable[..., Ref]:
    def handler(sub: Tensors, node: fx.Node, x: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Ref:
        ref = sub.ref(x)
        if kind in {"REDUCE_ANY", "REDUCE_ALL"}:
            ref = truth(sub, ref)
        elif ref.dtype == "bool":
            ref = sub.cast(ref, "int32")
        return reduced(kind, sub, ref, _axes(node, ref, dim), bool(keepdim))

    return handler


def _var(sub: Tensors, node: fx.Node, x: Any, dim: Any = None, *rest: Any, correction: float | None = None,
         keepdim: bool = False, unbiased: bool = True, **_: Any) -> Any:  # fmt: skip
    if isinstance(dim, bool):
        dim, rest = None, (dim, *rest)
    if rest:
        unbiased = bool(rest[0])
    if len(rest) > 1:
        keepdim = bool(rest[1])
    ref = sub.ref(x)
    axes = _axes(node, ref, dim)
    less = float(correction) if correction is not None else float(unbiased)
    count = math.prod(ref.shape[axis] for axis in axes)
    mean = reduced("MEAN", sub, ref, axes, True)
    apart = composed("SUB", sub, ref, mean)
    made = reduced("MEAN", sub, composed("MUL", sub, apart, apart), axes, keepdim)
    if less:
        made = composed("MUL", sub, made, sub.number(count / (count - less)))
    if target(node) != "var_mean":
        return made
    return [made, mean if keepdim else reduced("MEAN", sub, ref, axes, False)]


def _std(sub: Tensors, node: fx.Node, *args: Any, **kwargs: Any) -> Ref:
    return composed("SQRT", sub, _var(sub, node, *args, **kwargs))


def _arg(kind: str) -> Callable[..., Ref]:
    def handler(sub: Tensors, node: fx.Node, x: Ref, dim: int | None = None, keepdim: bool = False) -> Ref:
        if dim is None:
            x, dim = sub.reshaped(x, [math.prod(x.shape)]), 0
        axis = dim % len(x.shape)
        options = getattr(sub.s, "ArgMaxOptionsT" if kind == "ARG_MAX" else "ArgMinOptionsT")()
        options.outputType = sub.s.TensorType.INT32
        shape = [size for a, size in enumerate(x.shape) if a != axis]
        made = sub.op(kind, [x, sub.ints([axis])], shape, "int32", options)
        return sub.reshaped(made, result_of(node)[0])

    return handler


def _cumsum(sub: Tensors, node: fx.Node, x: Any, dim: int, **_: Any) -> Ref:
    shape, dtype = result_of(node)
    ref = sub.cast(x, dtype)
    return sub.op(
        "CUMSUM", [ref, sub.array(np.asarray(dim % len(shape), np.int32))], shape, dtype, "CumsumOptionsT"
    )


def _last(rank: int, dim: int) -> list[int]:
    """The order of axes in which one and the last are changed."""
    order = list(range(rank))
    order[dim], order[-1] = order[-1], order[dim]
    return order


def _topk(
    sub: Tensors, node: fx.Node, x: Ref, k: int, dim: int = -1, largest: bool = True, *_: Any, **__: Any
) -> list[Ref]:
    order = _last(len(x.shape), dim % len(x.shape))
    turned = sub.transposed(x, order)
    turned = turned if largest else composed("NEG", sub, turned)
    shape = (*turned.shape[:-1], k)
    values, places = (
        sub.writer.scratch(f"{sub.node.name}/values", shape, np.dtype(np.float32)),
        sub.writer.scratch(f"{sub.node.name}/places", shape, np.dtype(np.int32)),
    )
    sub.writer.op(
        "TOPK_V2",
        1,
        [turned.index, sub.array(np.asarray(k, np.int32)).index],
        [values, places],
        sub.s.TopKV2OptionsT(),
    )
    found = Ref(values, shape)
    found = found if largest else composed("NEG", sub, found)
    return [sub.transposed(found, order), sub.transposed(Ref(places, shape, "int32"), order)]


def _sort(
    sub: Tensors, node: fx.Node, x: Ref, dim: Any = -1, descending: bool = False, **named: Any
) -> list[Ref]:
    dim, descending = named.get("dim", dim), named.get("descending", descending)
    return _topk(sub, node, x, x.shape[dim], dim, bool(descending))


def _extreme(kind: str) -> Callable[..., Any]:
    """Max and min: over everything, or over an axis with the places."""
    largest, places = ("REDUCE_MAX", "ARG_MAX") if kind == "max" else ("REDUCE_MIN", "ARG_MIN")

    def handler(sub: Tensors, node: fx.Node, x: Ref, dim: int | None = None, keepdim: bool = False) -> Any:
        values = reduced(largest, sub, x, _axes(node, x, dim), keepdim)
        if dim is None:
            return values
        axis = dim % len(x.shape)
        options = getattr(sub.s, "ArgMaxOptionsT" if kind == "max" else "ArgMinOptionsT")()
        options.outputType = sub.s.TensorType.INT32
        shape = [size for a, size in enumerate(x.shape) if a != axis]
        where = sub.op(places, [x, sub.ints([axis])], shape, "int32", options)
        return [values, sub.reshaped(where, values.shape)]

    return handler


def _softmax(kind: str, options: str) -> Callable[..., Ref]:
    def handler(sub: Tensors, node: fx.Node, x: Ref, dim: int, *_: Any, **__: Any) -> Ref:
        order = _last(len(x.shape), dim % len(x.shape))
        turned = sub.transposed(x, order)
        table = getattr(sub.s, options)()
        if kind == "SOFTMAX":
            table.beta = 1.0
        return sub.transposed(sub.op(kind, [turned], turned.shape, "float32", table), order)

    return handler


@functools.cache
def handlers() -> dict[str, Callable[..., Any]]:
    """Name of an ATen operation (or of a prim) -> what writes it."""
    return {
        **{name: _reduce(kind) for name, kind in _REDUCE.items()},
        "var": _var,
        "var_mean": _var,
        "std": _std,
        "argmax": _arg("ARG_MAX"),
        "argmin": _arg("ARG_MIN"),
        "cumsum": _cumsum,
        "topk": _topk,
        "sort": _sort,
        "max": _extreme("max"),
        "min": _extreme("min"),
        "_softmax": _softmax("SOFTMAX", "SoftmaxOptionsT"),
        "_log_softmax": _softmax("LOG_SOFTMAX", "LogSoftmaxOptionsT"),
    }
