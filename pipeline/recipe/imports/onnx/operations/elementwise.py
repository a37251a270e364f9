"""Operations of ONNX that compute each value from the values at the same place."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.onnx.builder import Builder, Live, Node, Value

#: ONNX type -> what is computed with here.
KINDS = {1: "float", 10: "float", 11: "float", 16: "float", 9: "bool", 2: "int", 3: "int", 4: "int", 5: "int",
         6: "int", 7: "int", 12: "int", 13: "int"}  # fmt: skip
DTYPES = {"float": torch.float32, "bool": torch.bool, "int": torch.int64}
HALVES = {10: "float16", 16: "bfloat16", 11: "float64"}

MODULES: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "Relu": lambda a: nn.ReLU(),
    "Sigmoid": lambda a: nn.Sigmoid(),
    "Tanh": lambda a: nn.Tanh(),
    "LeakyRelu": lambda a: nn.LeakyReLU(a.get("alpha", 0.01)),
    "Elu": lambda a: nn.ELU(a.get("alpha", 1.0)),
    "Celu": lambda a: nn.CELU(a.get("alpha", 1.0)),
    "HardSwish": lambda a: nn.Hardswish(),
    "Mish": lambda a: nn.Mish(),
    "Softplus": lambda a: nn.Softplus(),
    "Softsign": lambda a: nn.Softsign(),
    "Gelu": lambda a: nn.GELU(a.get("approximate", "none")),
    "Identity": lambda a: nn.Identity(),
}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Neg": operator.neg, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round,
    "Sign": torch.sign, "Erf": torch.erf, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan,
    "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh,
    "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh, "Not": torch.logical_not,
    "IsNaN": torch.isnan,
}  # fmt: skip
PAIRS: dict[str, Callable[..., Tensor]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Equal": operator.eq,
    "Greater": operator.gt, "Less": operator.lt, "GreaterOrEqual": operator.ge, "LessOrEqual": operator.le,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
}  # fmt: skip


def module(b: Builder, node: Node, x: Value) -> Any:
    """One of `MODULES`."""
    return b.module(node, MODULES[node.kind](dict(node.attrs)), x)


def function(b: Builder, node: Node, x: Value) -> Any:
    """One of `FUNCTIONS`."""
    return b.call(node, FUNCTIONS[node.kind], x)


def pair(b: Builder, node: Node, x: Value, y: Value) -> Any:
    """One of `PAIRS`."""
    return b.call(node, PAIRS[node.kind], *numbers(b, x, y))


def numbers(b: Builder, x: Value, y: Value) -> tuple[Any, Any]:
    """Two operands; a constant of one value beside a live one is a plain number."""
    return _number(b, x, y), _number(b, y, x)


def _number(b: Builder, value: Value, other: Value) -> Any:
    if not isinstance(value, Tensor) or not isinstance(other, Live) or value.numel() != 1:
        return value
    if value.dim() > len(b.shape(other)) or value.dtype == torch.bool:
        return value
    whole = b.dtype(other) != torch.float32
    return int(value) if whole and value.dtype == torch.int64 else float(value)


def div(b: Builder, node: Node, x: Value, y: Value) -> Any:
    """Whole numbers are divided towards zero."""
    if b.dtype(x) == torch.int64 and b.dtype(y) == torch.int64:
        if isinstance(y, Tensor) and not y.all():
            raise node.error("divides by zero")
        return b.call(node, torch.div, x, y, rounding_mode="trunc")
    return b.call(node, operator.truediv, *numbers(b, x, y))


def power(b: Builder, node: Node, x: Value, y: Value) -> Any:
    """The type is that of the base."""
    if isinstance(x, Live) and isinstance(y, Tensor) and y.numel() == 1 and float(y) == 2:
        return b.call(node, torch.square, x)
    if b.dtype(x) == torch.int64:
        return b.call(node, _int_power, x, y)
    return b.call(node, operator.pow, *numbers(b, x, y))


def _int_power(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x.double(), y).long()


def mod(b: Builder, node: Node, x: Value, y: Value) -> Any:
    """The sign is the divisor's, or with fmod the dividend's."""
    chosen = torch.fmod if node.attrs.get("fmod") else torch.remainder
    if isinstance(y, Tensor) and y.dtype == torch.int64 and not y.all():
        raise node.error("divides by zero")
    return b.call(node, chosen, x, y)


def several(b: Builder, node: Node, *values: Value) -> Any:
    """Sum, Mean, Max and Min of any number of values."""
    ways = {"Sum": operator.add, "Mean": operator.add, "Max": torch.maximum, "Min": torch.minimum}
    way = ways[node.kind]
    found = values[0]
    for value in values[1:]:
        least = _number(b, value, found)
        if isinstance(least, float) and node.kind in ("Max", "Min"):
            found = b.call(node, torch.clamp, found, **{"min" if node.kind == "Max" else "max": least})
        else:
            found = b.call(node, way, found, least if node.kind in ("Sum", "Mean") else value)
    if node.kind == "Mean" and len(values) > 1:
        found = b.call(node, operator.mul, found, 1 / len(values))
    return found


def clip(b: Builder, node: Node, x: Value, low: Value = None, high: Value = None) -> Any:
    """Bounds are attributes before opset 11."""
    ends = []
    for name, value in (("min", low), ("max", high)):
        number = node.attrs.get(name)
        if value is not None:
            known = b.known(node, value, name)
            number = known.reshape(-1)[0].item() if known.numel() == 1 else None
        unbounded = number is None or abs(number) >= 3.4e38
        ends.append(None if unbounded else number)
    if ends == [0.0, 6.0]:
        return b.module(node, nn.ReLU6(), x)
    if ends == [0.0, None]:
        return b.module(node, nn.ReLU(), x)
    if ends == [None, None]:
        return x
    return b.call(node, torch.clamp, x, *ends)


def hard_sigmoid(b: Builder, node: Node, x: Value) -> Any:
    """max(0, min(1, alpha x + beta))."""
    alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-5) and beta == 0.5:
        return b.module(node, nn.Hardsigmoid(), x)
    return b.call(node, torch.clamp, b.call(node, _affine, x, alpha, beta), 0.0, 1.0)


def _affine(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x * alpha + beta


def selu(b: Builder, node: Node, x: Value) -> Any:
    """Gamma (max(0, x) + min(0, alpha (exp x - 1)))."""
    alpha, gamma = node.attrs.get("alpha", 1.6732632), node.attrs.get("gamma", 1.050701)
    if math.isclose(alpha, 1.6732632, rel_tol=1e-5) and math.isclose(gamma, 1.050701, rel_tol=1e-5):
        return b.module(node, nn.SELU(), x)
    return b.call(node, operator.mul, b.call(node, F.elu, x, alpha), gamma)


def thresholded(b: Builder, node: Node, x: Value) -> Any:
    """X where it is over alpha, else 0."""
    return b.module(node, nn.Threshold(node.attrs.get("alpha", 1.0), 0.0), x)


def shrink(b: Builder, node: Node, x: Value) -> Any:
    """Nearer to zero by bias, and zero within lambd."""
    bias, lambd = node.attrs.get("bias", 0.0), node.attrs.get("lambd", 0.5)
    return b.call(node, _shrink, x, bias, lambd)


def _shrink(x: Tensor, bias: float, lambd: float) -> Tensor:
    return torch.where(x > lambd, x - bias, torch.where(x < -lambd, x + bias, torch.zeros_like(x)))


def where(b: Builder, node: Node, condition: Value, x: Value, y: Value) -> Any:
    """X where the condition holds, else y."""
    return b.call(node, torch.where, condition, x, y)


def is_inf(b: Builder, node: Node, x: Value) -> Any:
    """Infinite values."""
    return b.call(node, torch.isinf, x)


def cast(b: Builder, node: Node, x: Value, like: Value = None) -> Any:
    """Floats of other sizes stay float32, whole numbers int64."""
    to = node.attrs.get("to")
    if node.kind == "CastLike":
        dtype = b.dtype(like)
    elif to in KINDS:
        dtype = DTYPES[KINDS[to]]
        if to in HALVES and isinstance(x, Live):
            b.note(f"casts to {HALVES[to]} are left out: everything is computed in float32")
    else:
        raise node.error(f"casts to the type {to}", "only numbers and truth values are known")
    if dtype == b.dtype(x):
        return x
    return b.call(node, Tensor.to, x, dtype)


def prelu(b: Builder, node: Node, x: Value, slope: Value) -> Any:
    """A slope for all, or one for each channel; any other shape is computed from its parts."""
    known = b.known(node, slope, "slope")
    shape = b.shape(x)
    channels = shape[1] if len(shape) > 1 else 1
    per = [size for size in known.shape if size != 1]
    place = known.dim() - (len(shape) - 1)  # where the channels' axis is, counted from the left
    at_channels = not per or (per == [channels] and known.dim() + place >= 0 and _channels_at(known, shape))
    if at_channels:
        flat = b.derived(known, "flat", lambda value: value.reshape(-1).clone())
        made = nn.PReLU(max(flat.numel(), 1))
        made.weight = b.parameter(flat)
        return b.layer(node, made, x, weight=known)
    return b.call(node, _prelu, x, known)


def _channels_at(slope: Tensor, shape: tuple[int, ...]) -> bool:
    full = (1,) * (len(shape) - slope.dim()) + tuple(slope.shape)
    return full[1] == shape[1]


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return F.relu(x) - slope * F.relu(-x)


def dropout(b: Builder, node: Node, x: Value, *rest: Value) -> Any:
    """Nothing, when a network is used."""
    return x
