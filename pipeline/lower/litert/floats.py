"""Islands in a .tflite: an ATen operation as TFLite's float operators, between a DEQUANTIZE and a QUANTIZE.

torch decomposes an operation until each part is in the tables below. Axes are torch's own, so a map is
transposed first, unless the operation works on single values.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.utils._python_dispatch import _disable_current_modes

from paredown.pipeline.graph.aten import pair, target
from paredown.pipeline.graph.operations.activation import floats
from paredown.pipeline.graph.operations.kinds import operation
from paredown.targets.errors import InputError

if TYPE_CHECKING:
    from paredown.pipeline.lower.litert.program import Writer

TO_NHWC = (0, 2, 3, 1)


@dataclass(frozen=True)
class Ref:
    """A tensor of the file, its shape and its type."""

    index: int
    shape: tuple[int, ...]
    dtype: str = "float32"


Value = Ref | Tensor


def write(writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
    """Writes an island.

    Args:
        writer: of the file.
        node: of a kind that is an island.
        feeds: the nodes that it reads.

    Raises:
        InputError: TFLite's float operators cannot express it.
    """
    Island(writer, node).write(feeds)


class Island:
    """What writes one island."""

    def __init__(self, writer: Writer, node: Any) -> None:
        self.writer, self.s, self.node = writer, writer.s, node

    def write(self, feeds: Sequence[Any]) -> None:
        """Writes it, whole."""
        writer, node = self.writer, self.node
        constants = [torch.from_numpy(np.asarray(each)) for each in node.constants]
        maps = node.attrs["single"] and all(len(each.shape) == 4 for each in (node, *feeds))
        layout = "nhwc" if maps else "plain"
        if maps:
            constants = [_nhwc(each) for each in constants]
        shapes = [tuple(f.shape[d] for d in TO_NHWC) if maps else tuple(f.shape) for f in feeds]
        graph = self._graph(constants, shapes)
        reals = [writer.real(writer.read(feed, layout), f"{node.name}/input") for feed in feeds]
        values: dict[fx.Node, Any] = {}
        given = (Ref(index, shape) for index, shape in zip(reals, shapes, strict=True))
        for each in graph.graph.nodes:
            if each.op == "placeholder":
                values[each] = next(given)
            elif each.op == "get_attr":
                values[each] = getattr(graph, str(each.target)).detach()
            elif each.op == "output":
                made = each.args[0][0] if isinstance(each.args[0], (tuple, list)) else each.args[0]
                self._end(values[made], layout)
            else:
                values[each] = self._made(each, values)

    def _graph(self, constants: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> fx.GraphModule:
        try:
            compute = operation(self.node.kind).recipe(self.node, constants)
            return floats.decomposed(compute, shapes, _known, OWN)
        except Exception as error:  # noqa: BLE001  torch raises whatever it likes where it cannot decompose
            raise self.unknown(self.node.attrs["op"]) from error

    def _made(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if not any(isinstance(values[n], (Ref, list)) for n in node.all_input_nodes):
            return node.target(*args, **{k: v for k, v in kwargs.items()})  # type: ignore[operator]
        handler = handlers().get(target(node))
        if handler is None:
            raise self.unknown(str(node.target))
        return handler(self, node, *args, **kwargs)

    def _end(self, value: Value, layout: str) -> None:
        writer, node = self.writer, self.node
        if isinstance(value, Tensor):
            value = self.constant(value)
        if node.attrs["nan"]:
            real = self.op("EQUAL", [value, value], value.shape, "bool", "EqualOptionsT")
            value = self.op(
                "SELECT_V2",
                [real, value, self.number(0.0, value)],
                value.shape,
                "float32",
                "SelectV2OptionsT",
            )
        target_index = writer.tensor(node, layout)
        if writer.integer:
            writer.op("QUANTIZE", 1, [value.index], target_index, self.s.QuantizeOptionsT())
        else:
            shape = writer.sub.tensors[target_index].shape
            writer.reshape(value.index, target_index, shape)

    def unknown(self, what: str) -> InputError:
        """That TFLite has nothing for an operation."""
        attrs = self.node.attrs
        part = "" if attrs["op"].removeprefix("aten::") in what else f" (its part {what})"
        return InputError(
            f"{attrs['op']}{part} has no float operator in LiteRT", where=attrs["line"] or self.node.name,
            hint='lower to ExecuTorch alone ([lower] runtimes = ["executorch"]), or write it otherwise',
        )  # fmt: skip

    # -- tensors -------------------------------------------------------------------------------------------

    def ref(self, value: Any, like: Value | None = None) -> Ref:
        """A value as a tensor of the file; a number in the type of another value."""
        if isinstance(value, Ref):
            return value
        if isinstance(value, Tensor):
            return self.constant(value)
        return self.number(value, like)

    def number(self, value: float, like: Any = None) -> Ref:
        """A number in the type of a value."""
        dtype = like.dtype if isinstance(like, Ref) else "float32"
        if dtype == "int32" and isinstance(value, float) and not value.is_integer():
            dtype = "float32"
        return self.array(np.asarray(value, dtype))

    def array(self, values: NDArray[Any]) -> Ref:
        """Numbers as a tensor of the file."""
        return Ref(self.writer.constant("number", values), values.shape, values.dtype.name)

    def ints(self, values: Sequence[int]) -> Ref:
        """Whole numbers as a tensor of the file."""
        return self.array(np.asarray(values, np.int32))

    def constant(self, value: Tensor) -> Ref:
        """A tensor of torch's as one of the file."""
        return self.array(value.detach().to(getattr(torch, _dtype(value))).contiguous().numpy())

    def op(
        self, kind: str, inputs: Sequence[Value], shape: Sequence[int], dtype: str, options: Any = None
    ) -> Ref:
        """Writes an operator of one output."""
        writer = self.writer
        if isinstance(options, str):
            options = getattr(self.s, options)()
        read = [self.ref(value).index for value in inputs]
        made = writer.scratch(f"{self.node.name}/{kind.lower()}", tuple(shape), np.dtype(dtype))
        writer.op(kind, VERSIONS.get(kind, 1), read, made, options)
        return Ref(made, tuple(int(n) for n in shape), dtype)

    def reshaped(self, value: Value, shape: Sequence[int]) -> Ref:
        """The same values in another shape."""
        ref = self.ref(value)
        if ref.shape == tuple(shape):
            return ref
        options = self.s.ReshapeOptionsT()
        options.newShape = np.asarray(shape, np.int32)
        return self.op("RESHAPE", [ref, self.ints(shape)], shape, ref.dtype, options)

    def transposed(self, value: Value, dims: Sequence[int]) -> Ref:
        """A value with its axes in another order."""
        ref = self.ref(value)
        if list(dims) == list(range(len(dims))):
            return ref
        shape = [ref.shape[d] for d in dims]
        return self.op("TRANSPOSE", [ref, self.ints(dims)], shape, ref.dtype, "TransposeOptionsT")

    def cast(self, value: Value, dtype: str) -> Ref:
        """A value in another type."""
        ref = self.ref(value)
        if ref.dtype == dtype:
            return ref
        options = self.s.CastOptionsT()
        return self.op("CAST", [ref], ref.shape, dtype, options)

    def gathered(self, value: Value, index: Value, axis: int, shape: Sequence[int]) -> Ref:
        """The parts of a value at these places of an axis."""
        ref, where = self.ref(value), self.cast(index, "int32")
        options = self.s.GatherOptionsT()
        options.axis = axis
        return self.op("GATHER", [ref, where], shape, ref.dtype, options)


def _nhwc(value: Tensor) -> Tensor:
    if value.ndim == 0:
        return value
    return value.reshape(*[1] * (4 - value.ndim), *value.shape).permute(TO_NHWC).contiguous()


def _dtype(value: Tensor) -> str:
    if value.dtype == torch.bool:
        return "bool"
    return "float32" if value.dtype.is_floating_point else "int32"


def _of(node: fx.Node) -> tuple[tuple[int, ...], str]:
    value = node.meta["val"]
    return tuple(value.shape), _dtype(value)


def _known(op: Any) -> bool:
    return str(getattr(op, "_opname", "")).rstrip("_") in handlers()


# -- on single values --------------------------------------------------------------------------------------


def _unary(kind: str) -> Callable[..., Ref]:
    def handler(sub: Island, node: fx.Node, x: Ref, *_: Any, **__: Any) -> Ref:
        shape, dtype = _of(node)
        return sub.op(kind, [sub.cast(x, dtype)], shape, dtype)

    return handler


def _pair(sub: Island, node: fx.Node, x: Any, y: Any) -> tuple[Ref, Ref]:
    """Two values in one type: float where one of them is."""
    kinds = {v.dtype for v in (x, y) if isinstance(v, Ref)} | {
        _dtype(v) for v in (x, y) if isinstance(v, Tensor)
    }
    real = "float32" in kinds or any(isinstance(v, float) for v in (x, y)) or _of(node)[1] == "float32"
    dtype = (
        "float32"
        if real
        else ("int32" if "int32" in kinds or any(type(v) is int for v in (x, y)) else "bool")
    )
    made = []
    for value in (x, y):
        if isinstance(value, (Ref, Tensor)):
            made.append(sub.cast(value, dtype))
        else:
            made.append(sub.array(np.asarray(value, dtype)))
    return made[0], made[1]


def _binary(kind: str, options: str = "") -> Callable[..., Ref]:
    def handler(sub: Island, node: fx.Node, x: Any, y: Any, **_: Any) -> Ref:
        return sub.op(kind, _pair(sub, node, x, y), *_of(node), options or None)

    return handler


def _scaled(kind: str) -> Callable[..., Ref]:
    """Addition and subtraction, whose second side may be scaled."""
    plain = _binary(kind, f"{kind.capitalize()}OptionsT")

    def handler(sub: Island, node: fx.Node, x: Any, y: Any, alpha: float = 1, **_: Any) -> Ref:
        if alpha != 1:
            y = _composed("MUL", sub, sub.ref(y), sub.number(float(alpha)))
        return plain(sub, node, x, y)

    return handler


def _composed(kind: str, sub: Island, *values: Ref) -> Ref:
    """An operator on float tensors, within a composition."""
    shape = np.broadcast_shapes(*(value.shape for value in values))
    dtype = "bool" if kind == "GREATER" else "float32"
    return sub.op(kind, values, shape, dtype, _OPTIONS.get(kind))


_OPTIONS = {
    "ADD": "AddOptionsT", "SUB": "SubOptionsT", "MUL": "MulOptionsT", "DIV": "DivOptionsT",
    "GREATER": "GreaterOptionsT", "SELECT_V2": "SelectV2OptionsT",
}  # fmt: skip


def _chain(how: Callable[..., Ref]) -> Callable[..., Ref]:
    """A function of one value, composed of others: `how` is given what writes them, and the value."""

    def handler(sub: Island, node: fx.Node, x: Ref, *args: Any, **_: Any) -> Ref:
        def do(kind: str, *values: Any) -> Ref:
            refs = [v if isinstance(v, Ref) else sub.array(np.asarray(v, np.float32)) for v in values]
            return _composed(kind, sub, *refs)

        return how(do, sub.cast(x, "float32"), *args)

    return handler


def _erf(do: Callable[..., Ref], x: Ref) -> Ref:
    """Abramowitz and Stegun, 7.1.26: within 1.5e-7."""
    size = do("ABS", x)
    t = do("DIV", 1.0, do("ADD", do("MUL", size, 0.3275911), 1.0))
    total: Any = 1.061405429
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        total = do("ADD", do("MUL", total, t), factor)
    tail = do("MUL", do("MUL", total, t), do("EXP", do("NEG", do("MUL", x, x))))
    return do("MUL", do("SIGN", x), do("SUB", 1.0, tail))


def _sided(do: Callable[..., Ref], x: Ref, sign: float) -> Ref:
    """Half of e to x, and of e to -x with a sign."""
    return do("MUL", do("ADD", do("EXP", x), do("MUL", do("EXP", do("NEG", x)), sign)), 0.5)


def _trunc(do: Callable[..., Ref], x: Ref) -> Ref:
    return do("MUL", do("SIGN", x), do("FLOOR", do("ABS", x)))


def _root(do: Callable[..., Ref], x: Ref) -> Ref:
    return do("SQRT", do("SUB", 1.0, do("MUL", x, x)))


def _softplus(do: Callable[..., Ref], x: Ref, beta: float = 1.0, threshold: float = 20.0) -> Ref:
    """max(x, 0) + log(1 + e to -|x|), which has no overflow."""
    x = x if beta == 1 else do("MUL", x, float(beta))
    tail = do("LOG", do("ADD", do("EXP", do("NEG", do("ABS", x))), 1.0))
    made = do("ADD", do("MAXIMUM", x, 0.0), tail)
    made = made if beta == 1 else do("MUL", made, 1 / float(beta))
    if threshold >= 15:
        return made
    whole = x if beta == 1 else do("MUL", x, 1 / float(beta))
    return do("SELECT_V2", do("GREATER", x, float(threshold)), whole, made)


def _mish(do: Callable[..., Ref], x: Ref) -> Ref:
    return do("MUL", x, do("TANH", _softplus(do, x)))


def _gelu(sub: Island, node: fx.Node, x: Ref, approximate: str = "none") -> Ref:
    options = sub.s.GeluOptionsT()
    options.approximate = approximate == "tanh"
    return sub.op("GELU", [x], *_of(node), options)


def _div(sub: Island, node: fx.Node, x: Any, y: Any, rounding_mode: str | None = None) -> Ref:
    if rounding_mode == "floor":
        return _binary("FLOOR_DIV", "FloorDivOptionsT")(sub, node, x, y)
    made = _binary("DIV", "DivOptionsT")(sub, node, x, y)
    return _chain(_trunc)(sub, node, made) if rounding_mode == "trunc" else made


def _fmod(sub: Island, node: fx.Node, x: Any, y: Any) -> Ref:
    one, other = _pair(sub, node, x, y)
    times = _chain(_trunc)(sub, node, _composed("DIV", sub, one, other))
    return _composed("SUB", sub, one, _composed("MUL", sub, times, other))


def _clamp(sub: Island, node: fx.Node, x: Any, low: Any = None, high: Any = None, **named: Any) -> Ref:
    low, high = named.get("min", low), named.get("max", high)
    shape, dtype = _of(node)
    made = sub.ref(x)
    for kind, limit in (("MAXIMUM", low), ("MINIMUM", high)):
        if limit is not None:
            sides = [
                sub.cast(made, dtype),
                sub.ref(limit) if isinstance(limit, (Ref, Tensor)) else sub.array(np.asarray(limit, dtype)),
            ]
            made = sub.op(
                kind, sides, np.broadcast_shapes(*(s.shape for s in sides)), dtype, "MaximumMinimumOptionsT"
            )
    return made


def _compare(kind: str, options: str) -> Callable[..., Ref]:
    def handler(sub: Island, node: fx.Node, x: Any, y: Any) -> Ref:
        kinds = {v.dtype if isinstance(v, Ref) else _dtype(v) for v in (x, y) if isinstance(v, (Ref, Tensor))}
        dtype = "float32" if "float32" in kinds or any(isinstance(v, float) for v in (x, y)) else "int32"
        sides = [
            sub.cast(v, dtype) if isinstance(v, (Ref, Tensor)) else sub.array(np.asarray(v, dtype))
            for v in (x, y)
        ]
        return sub.op(kind, sides, _of(node)[0], "bool", options)

    return handler


def _logical(kind: str, options: str) -> Callable[..., Ref]:
    def handler(sub: Island, node: fx.Node, *values: Any) -> Ref:
        if _of(node)[1] != "bool":
            raise sub.unknown(str(node.target))
        return sub.op(kind, [_truth(sub, value) for value in values], _of(node)[0], "bool", options)

    return handler


def _truth(sub: Island, value: Any) -> Ref:
    ref = sub.ref(value) if isinstance(value, (Ref, Tensor)) else sub.array(np.asarray(bool(value)))
    if ref.dtype == "bool":
        return ref
    zero = sub.array(np.zeros((), ref.dtype))
    return sub.op("NOT_EQUAL", [ref, zero], ref.shape, "bool", "NotEqualOptionsT")


def _xor(sub: Island, node: fx.Node, x: Any, y: Any) -> Ref:
    sides = [_truth(sub, value) for value in (x, y)]
    return sub.op("NOT_EQUAL", sides, _of(node)[0], "bool", "NotEqualOptionsT")


def _where(sub: Island, node: fx.Node, seen: Any, yes: Any, no: Any) -> Ref:
    shape, dtype = _of(node)
    sides = [
        sub.cast(v, dtype) if isinstance(v, (Ref, Tensor)) else sub.array(np.asarray(v, dtype))
        for v in (yes, no)
    ]
    return sub.op("SELECT_V2", [_truth(sub, seen), *sides], shape, dtype, "SelectV2OptionsT")


def _cast(sub: Island, node: fx.Node, x: Any, *_: Any, **__: Any) -> Ref:
    shape, dtype = _of(node)
    ref = sub.ref(x)
    if dtype == "bool":
        return _truth(sub, ref)
    if (
        ref.dtype == "float32" and dtype == "int32"
    ):  # TFLite's cast of what is no whole number is the compiler's
        ref = _chain(_trunc)(sub, node, ref)
    return sub.cast(ref, dtype)


def _isnan(sub: Island, node: fx.Node, x: Ref) -> Ref:
    return sub.op("NOT_EQUAL", [x, x], x.shape, "bool", "NotEqualOptionsT")


def _same(sub: Island, node: fx.Node, x: Any, *_: Any, **__: Any) -> Any:
    return x


# -- over axes ---------------------------------------------------------------------------------------------


def _axes(node: fx.Node, ref: Ref, dims: Any) -> list[int]:
    if dims is None or dims == []:
        return list(range(len(ref.shape)))
    dims = [dims] if isinstance(dims, int) else dims
    return [dim % len(ref.shape) for dim in dims]


def _reduced(kind: str, sub: Island, ref: Ref, axes: Sequence[int], keep: bool) -> Ref:
    options = sub.s.ReducerOptionsT()
    options.keepDims = keep
    shape = [1 if axis in axes else size for axis, size in enumerate(ref.shape) if keep or axis not in axes]
    return sub.op(kind, [ref, sub.ints(axes)], shape, ref.dtype, options)


def _reduce(kind: str) -> Callable[..., Ref]:
    def handler(sub: Island, node: fx.Node, x: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Ref:
        ref = sub.ref(x)
        if kind in {"REDUCE_ANY", "REDUCE_ALL"}:
            ref = _truth(sub, ref)
        elif ref.dtype == "bool":
            ref = sub.cast(ref, "int32")
        return _reduced(kind, sub, ref, _axes(node, ref, dim), bool(keepdim))

    return handler


def _var(sub: Island, node: fx.Node, x: Any, dim: Any = None, *rest: Any, correction: float | None = None,
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
    mean = _reduced("MEAN", sub, ref, axes, True)
    apart = _composed("SUB", sub, ref, mean)
    made = _reduced("MEAN", sub, _composed("MUL", sub, apart, apart), axes, keepdim)
    if less:
        made = _composed("MUL", sub, made, sub.number(count / (count - less)))
    if target(node) != "var_mean":
        return made
    return [made, mean if keepdim else _reduced("MEAN", sub, ref, axes, False)]


def _std(sub: Island, node: fx.Node, *args: Any, **kwargs: Any) -> Ref:
    return _composed("SQRT", sub, _var(sub, node, *args, **kwargs))


def _arg(kind: str) -> Callable[..., Ref]:
    def handler(sub: Island, node: fx.Node, x: Ref, dim: int | None = None, keepdim: bool = False) -> Ref:
        if dim is None:
            x, dim = sub.reshaped(x, [math.prod(x.shape)]), 0
        axis = dim % len(x.shape)
        options = getattr(sub.s, "ArgMaxOptionsT" if kind == "ARG_MAX" else "ArgMinOptionsT")()
        options.outputType = sub.s.TensorType.INT32
        shape = [size for a, size in enumerate(x.shape) if a != axis]
        made = sub.op(kind, [x, sub.ints([axis])], shape, "int32", options)
        return sub.reshaped(made, _of(node)[0])

    return handler


def _cumsum(sub: Island, node: fx.Node, x: Any, dim: int, **_: Any) -> Ref:
    shape, dtype = _of(node)
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
    sub: Island, node: fx.Node, x: Ref, k: int, dim: int = -1, largest: bool = True, *_: Any, **__: Any
) -> list[Ref]:
    order = _last(len(x.shape), dim % len(x.shape))
    turned = sub.transposed(x, order)
    turned = turned if largest else _composed("NEG", sub, turned)
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
    found = found if largest else _composed("NEG", sub, found)
    return [sub.transposed(found, order), sub.transposed(Ref(places, shape, "int32"), order)]


def _sort(
    sub: Island, node: fx.Node, x: Ref, dim: Any = -1, descending: bool = False, **named: Any
) -> list[Ref]:
    dim, descending = named.get("dim", dim), named.get("descending", descending)
    return _topk(sub, node, x, x.shape[dim], dim, bool(descending))


def _extreme(kind: str) -> Callable[..., Any]:
    """Max and min: over everything, or over an axis with the places."""
    reduced, places = ("REDUCE_MAX", "ARG_MAX") if kind == "max" else ("REDUCE_MIN", "ARG_MIN")

    def handler(sub: Island, node: fx.Node, x: Ref, dim: int | None = None, keepdim: bool = False) -> Any:
        values = _reduced(reduced, sub, x, _axes(node, x, dim), keepdim)
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
    def handler(sub: Island, node: fx.Node, x: Ref, dim: int, *_: Any, **__: Any) -> Ref:
        order = _last(len(x.shape), dim % len(x.shape))
        turned = sub.transposed(x, order)
        table = getattr(sub.s, options)()
        if kind == "SOFTMAX":
            table.beta = 1.0
        return sub.transposed(sub.op(kind, [turned], turned.shape, "float32", table), order)

    return handler


# -- moving ------------------------------------------------------------------------------------------------


def _reshape(sub: Island, node: fx.Node, x: Any, *_: Any, **__: Any) -> Ref:
    return sub.reshaped(x, _of(node)[0])


def _permute(sub: Island, node: fx.Node, x: Any, dims: Sequence[int]) -> Ref:
    ref = sub.ref(x)
    return sub.transposed(ref, [dim % len(ref.shape) for dim in dims])


def _transpose(sub: Island, node: fx.Node, x: Any, first: int = 0, second: int = 1) -> Ref:
    ref = sub.ref(x)
    order = list(range(len(ref.shape)))
    if order:
        order[first], order[second] = order[second], order[first]
    return sub.transposed(ref, order)


def _expand(sub: Island, node: fx.Node, x: Any, *_: Any, **__: Any) -> Ref:
    ref, shape = sub.ref(x), _of(node)[0]
    ref = sub.reshaped(ref, (*[1] * (len(shape) - len(ref.shape)), *ref.shape))
    if ref.shape == shape:
        return ref
    return sub.op("BROADCAST_TO", [ref, sub.ints(shape)], shape, ref.dtype)


def _slice(
    sub: Island, node: fx.Node, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Ref:
    ref = sub.ref(x)
    taken = range(ref.shape[dim])[slice(start, end, step)]
    return _strided(sub, ref, dim % len(ref.shape), taken)


def _strided(sub: Island, ref: Ref, dim: int, taken: range) -> Ref:
    if taken == range(ref.shape[dim]):
        return ref
    begin, ends, steps = [0] * len(ref.shape), list(ref.shape), [1] * len(ref.shape)
    begin[dim], ends[dim], steps[dim] = taken.start, taken.stop, taken.step
    shape = [len(taken) if axis == dim else size for axis, size in enumerate(ref.shape)]
    parts = [ref, *(sub.ints(each) for each in (begin, ends, steps))]
    return sub.op("STRIDED_SLICE", parts, shape, ref.dtype, "StridedSliceOptionsT")


def _select(sub: Island, node: fx.Node, x: Any, dim: int, index: int) -> Ref:
    ref = sub.ref(x)
    place = index % ref.shape[dim]
    return sub.reshaped(_strided(sub, ref, dim % len(ref.shape), range(place, place + 1)), _of(node)[0])


def _split(sub: Island, node: fx.Node, x: Any, sizes: Any, dim: int = 0) -> list[Ref]:
    ref = sub.ref(x)
    whole = ref.shape[dim]
    sizes = [min(sizes, whole - at) for at in range(0, whole, sizes)] if isinstance(sizes, int) else sizes
    ends = np.cumsum(sizes)
    return [
        _strided(sub, ref, dim % len(ref.shape), range(int(end) - size, int(end)))
        for end, size in zip(ends, sizes, strict=True)
    ]


def _cat(sub: Island, node: fx.Node, parts: Sequence[Any], dim: int = 0) -> Ref:
    shape, dtype = _of(node)
    options = sub.s.ConcatenationOptionsT()
    options.axis = dim % len(shape)
    return sub.op("CONCATENATION", [sub.cast(part, dtype) for part in parts], shape, dtype, options)


def _flip(sub: Island, node: fx.Node, x: Any, dims: Sequence[int]) -> Ref:
    ref = sub.ref(x)
    for dim in dims:
        ref = sub.op(
            "REVERSE_V2", [ref, sub.ints([dim % len(ref.shape)])], ref.shape, ref.dtype, "ReverseV2OptionsT"
        )
    return ref


def _repeat(sub: Island, node: fx.Node, x: Any, times: Sequence[int]) -> Ref:
    ref = sub.ref(x)
    ref = sub.reshaped(ref, (*[1] * (len(times) - len(ref.shape)), *ref.shape))
    return sub.op("TILE", [ref, sub.ints(times)], _of(node)[0], ref.dtype, "TileOptionsT")


def _pad(sub: Island, node: fx.Node, x: Any, pads: Sequence[int], value: float = 0.0) -> Ref:
    ref = sub.ref(x)
    if min(pads) < 0:
        raise sub.unknown(str(node.target))
    widths = np.zeros((len(ref.shape), 2), np.int32)
    for place in range(len(pads) // 2):
        widths[-1 - place] = pads[2 * place : 2 * place + 2]
    parts = [ref, sub.array(widths), sub.array(np.asarray([value], ref.dtype))]
    return sub.op("PADV2", parts, _of(node)[0], ref.dtype, "PadV2OptionsT")


def _index_select(sub: Island, node: fx.Node, x: Any, dim: int, index: Any) -> Ref:
    return sub.gathered(x, index, dim % len(sub.ref(x).shape), _of(node)[0])


def _embedding(sub: Island, node: fx.Node, weight: Any, index: Any, *_: Any) -> Ref:
    return sub.gathered(weight, index, 0, _of(node)[0])


def _gather(sub: Island, node: fx.Node, x: Any, dim: int, index: Any, **_: Any) -> Ref:
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


def _index(sub: Island, node: fx.Node, x: Any, indices: Sequence[Any], *_: Any) -> Ref:
    """By indices along axes that are side by side."""
    ref = sub.ref(x)
    dims = [dim for dim, each in enumerate(indices) if each is not None]
    if dims != list(range(dims[0], dims[-1] + 1)):
        raise sub.unknown(str(node.target))
    number: Ref | None = None
    for dim in dims:
        each = indices[dim]
        if (each.dtype if isinstance(each, Ref) else _dtype(each)) == "bool":
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
    return sub.gathered(sub.reshaped(ref, merged), number, dims[0], _of(node)[0])


def _matmul(sub: Island, node: fx.Node, x: Any, y: Any) -> Ref:
    return sub.op("BATCH_MATMUL", [x, y], *_of(node), "BatchMatMulOptionsT")


def _addmm(sub: Island, node: fx.Node, bias: Any, x: Any, y: Any, **_: Any) -> Ref:
    return _composed("ADD", sub, _matmul(sub, node, x, y), sub.ref(bias))


def _pooled(x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0, 0),
            ceil_mode: bool = False, counted: bool = True, divisor: int | None = None) -> Tensor:  # fmt: skip
    """An average pool as the sum of the map's slices, times a number for each window."""
    (high, wide), step = pair(kernel), pair(stride or kernel)
    with _disable_current_modes():
        ones = torch.ones((1, 1, *x.shape[-2:]))
        share, whole = (
            F.avg_pool2d(ones, (high, wide), step, pair(padding), ceil_mode, counted, d) for d in (divisor, 1)
        )
        factor = (share / whole).reshape(*[1] * (x.ndim - 2), *share.shape[-2:])
    (top, left), (rows, columns) = pair(padding), share.shape[-2:]
    bottom, right = ((n - 1) * s + k - before - size for n, s, k, before, size in zip(
        (rows, columns), step, (high, wide), (top, left), x.shape[-2:], strict=True))  # fmt: skip
    spread = F.pad(x, (left, max(right, 0), top, max(bottom, 0)))
    parts = [
        spread[..., i : i + (rows - 1) * step[0] + 1 : step[0], j : j + (columns - 1) * step[1] + 1 : step[1]]
        for i in range(high)
        for j in range(wide)
    ]
    return sum(parts[1:], parts[0]) * factor


#: What is decomposed here alone.
OWN: dict[Any, Callable[..., Any]] = {torch.ops.aten.avg_pool2d.default: _pooled}
#: Kind -> the least version that can do it.
VERSIONS = {"TRANSPOSE": 2, "BROADCAST_TO": 2, "PADV2": 2, "SELECT_V2": 1, "DEQUANTIZE": 2}
_UNARY = {
    "exp": "EXP", "log": "LOG", "sqrt": "SQRT", "rsqrt": "RSQRT", "sin": "SIN", "cos": "COS", "abs": "ABS",
    "neg": "NEG", "floor": "FLOOR", "ceil": "CEIL", "round": "ROUND", "sign": "SIGN", "tanh": "TANH",
    "sigmoid": "LOGISTIC", "relu": "RELU",
}  # fmt: skip
_COMPARE = {
    "gt": ("GREATER", "GreaterOptionsT"), "ge": ("GREATER_EQUAL", "GreaterEqualOptionsT"),
    "lt": ("LESS", "LessOptionsT"), "le": ("LESS_EQUAL", "LessEqualOptionsT"),
    "eq": ("EQUAL", "EqualOptionsT"), "ne": ("NOT_EQUAL", "NotEqualOptionsT"),
}  # fmt: skip
_REDUCE = {
    "sum": "SUM", "mean": "MEAN", "amax": "REDUCE_MAX", "amin": "REDUCE_MIN", "prod": "REDUCE_PROD",
    "any": "REDUCE_ANY", "all": "REDUCE_ALL",
}  # fmt: skip


@functools.cache
def handlers() -> dict[str, Callable[..., Any]]:
    """Name of an ATen operation (or of a prim) -> what writes it."""
    return {
        **{name: _unary(kind) for name, kind in _UNARY.items()},
        **{name: _compare(*row) for name, row in _COMPARE.items()},
        **{name: _reduce(kind) for name, kind in _REDUCE.items()},
        "add": _scaled("ADD"), "sub": _scaled("SUB"), "mul": _binary("MUL", "MulOptionsT"), "div": _div,
        "true_divide": _div, "pow": _binary("POW", "PowOptionsT"),
        "maximum": _binary("MAXIMUM", "MaximumMinimumOptionsT"),
        "minimum": _binary("MINIMUM", "MaximumMinimumOptionsT"), "atan2": _binary("ATAN2"),
        "remainder": _binary("FLOOR_MOD", "FloorModOptionsT"), "fmod": _fmod, "clamp": _clamp,
        "floor_divide": _binary("FLOOR_DIV", "FloorDivOptionsT"),
        "gelu": _gelu, "erf": _chain(_erf), "mish": _chain(_mish), "softplus": _chain(_softplus),
        "log1p": _chain(lambda do, x: do("LOG", do("ADD", x, 1.0))),
        "expm1": _chain(lambda do, x: do("SUB", do("EXP", x), 1.0)),
        "log2": _chain(lambda do, x: do("MUL", do("LOG", x), 1 / math.log(2))),
        "log10": _chain(lambda do, x: do("MUL", do("LOG", x), 1 / math.log(10))),
        "exp2": _chain(lambda do, x: do("EXP", do("MUL", x, math.log(2)))),
        "reciprocal": _chain(lambda do, x: do("DIV", 1.0, x)), "trunc": _chain(_trunc),
        "tan": _chain(lambda do, x: do("DIV", do("SIN", x), do("COS", x))),
        "sinh": _chain(lambda do, x: _sided(do, x, -1.0)), "cosh": _chain(lambda do, x: _sided(do, x, 1.0)),
        "atan": _chain(lambda do, x: do("ATAN2", x, 1.0)),
        "asin": _chain(lambda do, x: do("ATAN2", x, _root(do, x))),
        "acos": _chain(lambda do, x: do("ATAN2", _root(do, x), x)),
        "isnan": _isnan, "logical_not": _logical("LOGICAL_NOT", "LogicalNotOptionsT"),
        "bitwise_not": _logical("LOGICAL_NOT", "LogicalNotOptionsT"),
        "logical_and": _logical("LOGICAL_AND", "LogicalAndOptionsT"),
        "bitwise_and": _logical("LOGICAL_AND", "LogicalAndOptionsT"),
        "logical_or": _logical("LOGICAL_OR", "LogicalOrOptionsT"),
        "bitwise_or": _logical("LOGICAL_OR", "LogicalOrOptionsT"), "logical_xor": _xor, "bitwise_xor": _xor,
        "where": _where, "_to_copy": _cast, "convert_element_type": _cast,
        "clone": _same, "detach": _same, "alias": _same, "view_of": _same, "lift_fresh_copy": _same,
        "contiguous": _same,
        "var": _var, "var_mean": _var, "std": _std, "argmax": _arg("ARG_MAX"), "argmin": _arg("ARG_MIN"),
        "cumsum": _cumsum, "topk": _topk, "sort": _sort, "max": _extreme("max"), "min": _extreme("min"),
        "_softmax": _softmax("SOFTMAX", "SoftmaxOptionsT"),
        "_log_softmax": _softmax("LOG_SOFTMAX", "LogSoftmaxOptionsT"),
        "view": _reshape, "_unsafe_view": _reshape, "reshape": _reshape, "unsqueeze": _reshape,
        "squeeze": _reshape,
        "flatten": _reshape, "permute": _permute, "transpose": _transpose, "t": _transpose,
        "expand": _expand, "slice": _slice, "select": _select, "split": _split, "split_with_sizes": _split,
        "cat": _cat, "flip": _flip, "repeat": _repeat, "constant_pad_nd": _pad, "index_select": _index_select,
        "embedding": _embedding, "gather": _gather, "index": _index, "_unsafe_index": _index,
        "mm": _matmul, "bmm": _matmul, "addmm": _addmm,
        "getitem": lambda sub, node, parts, index: parts[index],
    }  # fmt: skip
