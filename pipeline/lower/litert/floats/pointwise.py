"""Islands in a .tflite: functions of single values, comparisons, choices and types."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, fx

from paredown.pipeline.lower.litert.floats.tensors import Ref, Tensors, dtype_of, result_of

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


def _unary(kind: str) -> Callable[..., Ref]:
    def handler(sub: Tensors, node: fx.Node, x: Ref, *_: Any, **__: Any) -> Ref:
        shape, dtype = result_of(node)
        return sub.op(kind, [sub.cast(x, dtype)], shape, dtype)

    return handler


def _pair(sub: Tensors, node: fx.Node, x: Any, y: Any) -> tuple[Ref, Ref]:
    """Two values in one type: float where one of them is."""
    kinds = {v.dtype for v in (x, y) if isinstance(v, Ref)} | {
        dtype_of(v) for v in (x, y) if isinstance(v, Tensor)
    }
    real = "float32" in kinds or any(isinstance(v, float) for v in (x, y)) or result_of(node)[1] == "float32"
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
    def handler(sub: Tensors, node: fx.Node, x: Any, y: Any, **_: Any) -> Ref:
        return sub.op(kind, _pair(sub, node, x, y), *result_of(node), options or None)

    return handler


def _scaled(kind: str) -> Callable[..., Ref]:
    """Addition and subtraction, whose second side may be scaled."""
    plain = _binary(kind, f"{kind.capitalize()}OptionsT")

    def handler(sub: Tensors, node: fx.Node, x: Any, y: Any, alpha: float = 1, **_: Any) -> Ref:
        if alpha != 1:
            y = composed("MUL", sub, sub.ref(y), sub.number(float(alpha)))
        return plain(sub, node, x, y)

    return handler


def composed(kind: str, sub: Tensors, *values: Ref) -> Ref:
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

    def handler(sub: Tensors, node: fx.Node, x: Ref, *args: Any, **_: Any) -> Ref:
        def do(kind: str, *values: Any) -> Ref:
            refs = [v if isinstance(v, Ref) else sub.array(np.asarray(v, np.float32)) for v in values]
            return composed(kind, sub, *refs)

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


def _gelu(sub: Tensors, node: fx.Node, x: Ref, approximate: str = "none") -> Ref:
    options = sub.s.GeluOptionsT()
    options.approximate = approximate == "tanh"
    return sub.op("GELU", [x], *result_of(node), options)


def _div(sub: Tensors, node: fx.Node, x: Any, y: Any, rounding_mode: str | None = None) -> Ref:
    if rounding_mode == "floor":
        return _binary("FLOOR_DIV", "FloorDivOptionsT")(sub, node, x, y)
    made = _binary("DIV", "DivOptionsT")(sub, node, x, y)
    return _chain(_trunc)(sub, node, made) if rounding_mode == "trunc" else made


def _fmod(sub: Tensors, node: fx.Node, x: Any, y: Any) -> Ref:
    one, other = _pair(sub, node, x, y)
    times = _chain(_trunc)(sub, node, composed("DIV", sub, one, other))
    return composed("SUB", sub, one, composed("MUL", sub, times, other))


def _clamp(sub: Tensors, node: fx.Node, x: Any, low: Any = None, high: Any = None, **named: Any) -> Ref:
    low, high = named.get("min", low), named.get("max", high)
    shape, dtype = result_of(node)
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
    def handler(sub: Tensors, node: fx.Node, x: Any, y: Any) -> Ref:
        kinds = {
            v.dtype if isinstance(v, Ref) else dtype_of(v) for v in (x, y) if isinstance(v, (Ref, Tensor))
        }
        dtype = "float32" if "float32" in kinds or any(isinstance(v, float) for v in (x, y)) else "int32"
        sides = [
            sub.cast(v, dtype) if isinstance(v, (Ref, Tensor)) else sub.array(np.asarray(v, dtype))
            for v in (x, y)
        ]
        return sub.op(kind, sides, result_of(node)[0], "bool", options)

    return handler


def _logical(kind: str, options: str) -> Callable[..., Ref]:
    def handler(sub: Tensors, node: fx.Node, *values: Any) -> Ref:
        if result_of(node)[1] != "bool":
            raise sub.unknown(str(node.target))
        return sub.op(kind, [truth(sub, value) for value in values], result_of(node)[0], "bool", options)

    return handler


def truth(sub: Tensors, value: Any) -> Ref:
    """A value as booleans."""
    ref = sub.ref(value) if isinstance(value, (Ref, Tensor)) else sub.array(np.asarray(bool(value)))
    if ref.dtype == "bool":
        return ref
    zero = sub.array(np.zeros((), ref.dtype))
    return sub.op("NOT_EQUAL", [ref, zero], ref.shape, "bool", "NotEqualOptionsT")


def _xor(sub: Tensors, node: fx.Node, x: Any, y: Any) -> Ref:
    sides = [truth(sub, value) for value in (x, y)]
    return sub.op("NOT_EQUAL", sides, result_of(node)[0], "bool", "NotEqualOptionsT")


def _where(sub: Tensors, node: fx.Node, seen: Any, yes: Any, no: Any) -> Ref:
    shape, dtype = result_of(node)
    sides = [
        sub.cast(v, dtype) if isinstance(v, (Ref, Tensor)) else sub.array(np.asarray(v, dtype))
        for v in (yes, no)
    ]
    return sub.op("SELECT_V2", [truth(sub, seen), *sides], shape, dtype, "SelectV2OptionsT")


def _cast(sub: Tensors, node: fx.Node, x: Any, *_: Any, **__: Any) -> Ref:
    shape, dtype = result_of(node)
    ref = sub.ref(x)
    if dtype == "bool":
        return truth(sub, ref)
    if (
        ref.dtype == "float32" and dtype == "int32"
    ):  # TFLite's cast of what is no whole number is the compiler's
        ref = _chain(_trunc)(sub, node, ref)
    return sub.cast(ref, dtype)


def _isnan(sub: Tensors, node: fx.Node, x: Ref) -> Ref:
    return sub.op("NOT_EQUAL", [x, x], x.shape, "bool", "NotEqualOptionsT")


def _same(sub: Tensors, node: fx.Node, x: Any, *_: Any, **__: Any) -> Any:
    return x


@functools.cache
def handlers() -> dict[str, Callable[..., Any]]:
    """Name of an ATen operation (or of a prim) -> what writes it."""
    return {
        **{name: _unary(kind) for name, kind in _UNARY.items()},
        **{name: _compare(*row) for name, row in _COMPARE.items()},
        "add": _scaled("ADD"),
        "sub": _scaled("SUB"),
        "mul": _binary("MUL", "MulOptionsT"),
        "div": _div,
        "true_divide": _div,
        "pow": _binary("POW", "PowOptionsT"),
        "maximum": _binary("MAXIMUM", "MaximumMinimumOptionsT"),
        "minimum": _binary("MINIMUM", "MaximumMinimumOptionsT"),
        "atan2": _binary("ATAN2"),
        "remainder": _binary("FLOOR_MOD", "FloorModOptionsT"),
        "fmod": _fmod,
        "clamp": _clamp,
        "floor_divide": _binary("FLOOR_DIV", "FloorDivOptionsT"),
        "gelu": _gelu,
        "erf": _chain(_erf),
        "mish": _chain(_mish),
        "softplus": _chain(_softplus),
        "log1p": _chain(lambda do, x: do("LOG", do("ADD", x, 1.0))),
        "expm1": _chain(lambda do, x: do("SUB", do("EXP", x), 1.0)),
        "log2": _chain(lambda do, x: do("MUL", do("LOG", x), 1 / math.log(2))),
        "log10": _chain(lambda do, x: do("MUL", do("LOG", x), 1 / math.log(10))),
        "exp2": _chain(lambda do, x: do("EXP", do("MUL", x, math.log(2)))),
        "reciprocal": _chain(lambda do, x: do("DIV", 1.0, x)),
        "trunc": _chain(_trunc),
        "tan": _chain(lambda do, x: do("DIV", do("SIN", x), do("COS", x))),
        "sinh": _chain(lambda do, x: _sided(do, x, -1.0)),
        "cosh": _chain(lambda do, x: _sided(do, x, 1.0)),
        "atan": _chain(lambda do, x: do("ATAN2", x, 1.0)),
        "asin": _chain(lambda do, x: do("ATAN2", x, _root(do, x))),
        "acos": _chain(lambda do, x: do("ATAN2", _root(do, x), x)),
        "isnan": _isnan,
        "logical_not": _logical("LOGICAL_NOT", "LogicalNotOptionsT"),
        "bitwise_not": _logical("LOGICAL_NOT", "LogicalNotOptionsT"),
        "logical_and": _logical("LOGICAL_AND", "LogicalAndOptionsT"),
        "bitwise_and": _logical("LOGICAL_AND", "LogicalAndOptionsT"),
        "logical_or": _logical("LOGICAL_OR", "LogicalOrOptionsT"),
        "bitwise_or": _logical("LOGICAL_OR", "LogicalOrOptionsT"),
        "logical_xor": _xor,
        "bitwise_xor": _xor,
        "where": _where,
        "_to_copy": _cast,
        "convert_element_type": _cast,
        "clone": _same,
        "detach": _same,
        "alias": _same,
        "view_of": _same,
        "lift_fresh_copy": _same,
        "contiguous": _same,
    }
