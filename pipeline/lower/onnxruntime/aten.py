"""ATen operations as ONNX operators, for what has no operator of its own in `kinds`.

An operation is recorded as a graph of small ATen operations, and each is written by its name. A tensor that
is codes stays so while it is only moved.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, fx

from paredown.pipeline.graph.operations.activation import floats
from paredown.pipeline.lower.integer import Affine
from paredown.pipeline.lower.onnxruntime.writer import Value, Writer
from paredown.targets.errors import InputError

#: One ONNX operator of the tensors that an ATen operation reads, in their order.
PLAIN: Mapping[str, str] = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "maximum": "Max", "minimum": "Min", "neg": "Neg",
    "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "relu": "Relu",
    "sigmoid": "Sigmoid", "tanh": "Tanh", "erf": "Erf", "sin": "Sin", "cos": "Cos", "floor": "Floor",
    "ceil": "Ceil", "round": "Round", "sign": "Sign", "pow": "Pow", "mm": "MatMul", "bmm": "MatMul",
    "matmul": "MatMul", "where": "Where", "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh",
    "cosh": "Cosh", "tan": "Tan", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh",
}  # fmt: skip
#: The same, with a mask as the result.
MASKS: Mapping[str, str] = {
    "eq": "Equal", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual",
    "logical_and": "And", "logical_or": "Or", "logical_not": "Not", "bitwise_and": "And", "bitwise_or": "Or",
    "bitwise_not": "Not", "ne": "Equal", "isnan": "IsNaN", "isinf": "IsInf",
}  # fmt: skip
REDUCED: Mapping[str, str] = {"sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax",
                              "amin": "ReduceMin", "prod": "ReduceProd"}  # fmt: skip
#: Torch only says so: nothing happens.
SAME = frozenset({"clone", "detach", "alias", "contiguous", "lift_fresh_copy"})
SHAPED = frozenset({"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten"})


def record(compute: Callable[..., Tensor], shapes: Sequence[Sequence[int]]) -> fx.GraphModule:
    """An operation as a graph of small ATen operations.

    Args:
        compute: what computes it.
        shapes: of its inputs.
    """
    return floats.decomposed(compute, shapes, lambda op: _known(_name(op)))


def write(writer: Writer, graph: fx.GraphModule, values: Sequence[Value], where: str, hint: str) -> Value:
    """Writes a recorded graph of one result.

    Args:
        writer: of the file.
        graph: recorded.
        values: its inputs.
        where: names it in errors.
        hint: of the names in the file.

    Raises:
        InputError: a part of it is not known here.
    """
    steps, given = Steps(writer, where, hint), iter(values)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            steps.made[node] = next(given)
        elif node.op == "get_attr":
            steps.made[node] = steps.held(getattr(graph, node.target))
        elif node.op == "call_function":
            steps.made[node] = steps.step(node)
    (end,) = (node for node in graph.graph.nodes if node.op == "output")
    result = end.args[0][0] if isinstance(end.args[0], (tuple, list)) else end.args[0]
    return steps.made[result]


class Steps:
    """The operations of one recorded graph, while they are written.

    Attributes:
        made: what was written so far.
    """

    def __init__(self, writer: Writer, where: str, hint: str) -> None:
        self.writer, self._where, self._hint = writer, where, hint
        self.made: dict[fx.Node, Value] = {}

    def held(self, tensor: Tensor) -> Value:
        """A constant."""
        array = tensor.detach().numpy()
        return Value(self.writer.constant(array, self._hint), tuple(array.shape), dtype=str(array.dtype))

    def step(self, node: Any) -> Value:
        """Writes one operation."""
        name = _name(node.target)
        if name in PLAIN or name in MASKS:
            return self._plain(node, name)
        if name in REDUCED:
            return self._reduced(node, name)
        if name in SHAPED:
            return self._reshaped(self.read(node.args[0]), _shape(node))
        if name in SAME:
            return self.read(node.args[0])
        known = KNOWN.get(name)
        if known is None:
            raise self.refused(name)
        return known(self, node)

    def refused(self, name: str) -> InputError:
        """The error for an operation that is not known here."""
        return InputError(
            f"aten::{name} has no ONNX operator here", where=self._where,
            hint='lower to the other runtimes ([lower] runtimes = ["litert", "executorch"])',
        )  # fmt: skip

    # -- reading -------------------------------------------------------------------------------------------

    def read(self, arg: Any) -> Value:
        """A tensor, which may be codes."""
        return self.made[arg]

    def real(self, arg: Any, like: str = "float32") -> Value:
        """Real values: of a tensor, or of a number, in the type of another."""
        if isinstance(arg, fx.Node):
            return self.writer.real(self.made[arg])
        return Value(self.writer.constant(np.asarray(arg, like), "number"), (), dtype=like)

    def whole(self, numbers: Sequence[int]) -> str:
        """Whole numbers, as a constant."""
        return self.writer.constant(np.asarray(numbers, np.int64), "numbers")

    def op(self, kind: str, inputs: Sequence[Value | str], node: Any, **attrs: Any) -> Value:
        """Writes an operator whose result is what a node makes."""
        names = [each if isinstance(each, str) else each.name for each in inputs]
        return Value(
            self.writer.op(kind, names, f"{self._hint}/{node.name}", **attrs),
            _shape(node),
            None,
            _dtype(node),
        )

    def moved(self, kind: str, value: Value, more: Sequence[str], node: Any, **attrs: Any) -> Value:
        """Writes an operator that moves values, codes or not."""
        made = self.writer.op(kind, [value.name, *more], f"{self._hint}/{node.name}", **attrs)
        return replace(value, name=made, shape=_shape(node))

    # -- groups --------------------------------------------------------------------------------------------

    def _plain(self, node: Any, name: str) -> Value:
        read = [arg for arg in node.args if isinstance(arg, (fx.Node, int, float, bool))]
        if {*node.kwargs} - {"alpha", "rounding_mode"} or node.kwargs.get("rounding_mode"):
            raise self.refused(f"{name} with {', '.join(node.kwargs)}")
        types = [self.made[arg].dtype for arg in read if isinstance(arg, fx.Node)]
        like = next((each for each in types if each != "bool"), "float32")
        values = [self.real(arg, like) for arg in read]
        values = [self._cast(v, like) if name not in {"where", *MASKS} else v for v in values]
        if name in {"where", "eq", "ne", "gt", "ge", "lt", "le"}:
            first = values[:1] if name == "where" else []
            values = [*first, *(self._cast(v, like) for v in values[len(first) :])]
        if (alpha := node.kwargs.get("alpha", 1)) != 1:
            values[1] = self.op("Mul", [values[1], self.real(alpha, like)], node)
        made = self.op({**PLAIN, **MASKS}[name], values, node)
        return self.op("Not", [made], node) if name == "ne" else made

    def _cast(self, value: Value, dtype: str) -> Value:
        if value.dtype == dtype:
            return value
        to = self.writer.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        made = self.writer.op("Cast", [value.name], f"{self._hint}/cast", to=to)
        return Value(made, value.shape, None, dtype)

    def _reduced(self, node: Any, name: str) -> Value:
        x = self._cast(self.real(node.args[0]), _dtype(node))
        dims = node.args[1] if len(node.args) > 1 else None
        keep = bool(node.args[2]) if len(node.args) > 2 else False
        axes = [*range(len(x.shape))] if not dims and dims != 0 else [*np.atleast_1d(dims)]
        given = [int(axis) for axis in axes]
        if name == "sum":  # whose axes are an input since opset 13
            return self.op("ReduceSum", [x, self.whole(given)], node, keepdims=int(keep))
        return self.op(REDUCED[name], [x], node, axes=given, keepdims=int(keep))

    def _reshaped(self, x: Value, shape: tuple[int, ...]) -> Value:
        if x.shape == shape:
            return x
        name = self.writer.op("Reshape", [x.name, self.whole(shape)], f"{self._hint}/reshape")
        return replace(x, name=name, shape=shape)

    # -- one by one ----------------------------------------------------------------------------------------

    def quantize(self, node: Any) -> Value:
        """To codes."""
        x, scale, zero = node.args[:3]
        return self.writer.codes(self.read(x), Affine(float(scale), int(zero)), self._hint)

    def dequantize(self, node: Any) -> Value:
        """Codes are values already."""
        return self.read(node.args[0])

    def permute(self, node: Any) -> Value:
        """Axes in another order."""
        x = self.read(node.args[0])
        dims = [int(dim) % len(x.shape) for dim in node.args[1]]
        return self.moved("Transpose", x, (), node, perm=dims)

    def transpose(self, node: Any) -> Value:
        """Two axes exchanged."""
        x = self.read(node.args[0])
        one, other = (int(arg) % len(x.shape) for arg in (node.args[1:] or (0, 1)))
        dims = [*range(len(x.shape))]
        dims[one], dims[other] = other, one
        return self.moved("Transpose", x, (), node, perm=dims)

    def slice(self, node: Any) -> Value:
        """A part of an axis."""
        x, rest = node.args[0], list(node.args[1:])
        usual: list[Any] = [0, None, None, 1]
        dim, start, end, step = rest + usual[len(rest) :]
        numbers: tuple[Any, ...] = (start or 0, 2**31 if end is None else end, dim, step)
        return self.moved("Slice", self.read(x), [self.whole([int(n)]) for n in numbers], node)

    def select(self, node: Any) -> Value:
        """One place of an axis."""
        x, dim, index = node.args
        value = self.read(x)
        place = self.writer.constant(np.asarray(index, np.int64), "place")
        return self.moved("Gather", value, [place], node, axis=int(dim) % len(value.shape))

    def index_select(self, node: Any) -> Value:
        """Places of an axis."""
        x, dim, places = node.args
        return self.moved("Gather", self.read(x), [self.read(places).name], node, axis=int(dim))

    def expand(self, node: Any) -> Value:
        """Repeated along axes of one."""
        return self.moved("Expand", self.read(node.args[0]), [self.whole(_shape(node))], node)

    def cat(self, node: Any) -> Value:
        """Beside each other."""
        parts = [self.read(part) for part in node.args[0]]
        dim = int(node.args[1]) if len(node.args) > 1 else 0
        if len({part.affine for part in parts}) > 1:
            parts = [self.writer.real(part) for part in parts]
        return self.moved("Concat", parts[0], [p.name for p in parts[1:]], node, axis=dim)

    def softmax(self, node: Any) -> Value:
        """Over one axis."""
        kind = "LogSoftmax" if "log" in _name(node.target) else "Softmax"
        return self.op(kind, [self.real(node.args[0])], node, axis=int(node.args[1]))

    def leaky_relu(self, node: Any) -> Value:
        """Two slopes."""
        alpha = float(node.args[1]) if len(node.args) > 1 else 0.01
        return self.op("LeakyRelu", [self.real(node.args[0])], node, alpha=alpha)

    def elu(self, node: Any) -> Value:
        """One exponential below zero; torch's scales of both sides are one."""
        numbers = [*node.args[1:], *(1.0, 1.0, 1.0)[len(node.args) - 1 :]]
        if numbers[1:] != [1.0, 1.0]:
            raise self.refused("elu with scales")
        return self.op("Elu", [self.real(node.args[0])], node, alpha=float(numbers[0]))

    def clamp(self, node: Any) -> Value:
        """Between two numbers."""
        ends = [*node.args[1:], *(None, None)[len(node.args) - 1 :]]
        ends = [node.kwargs.get(word, end) for word, end in zip(("min", "max"), ends, strict=True)]
        x = self.real(node.args[0])
        return self.op("Clip", [x, *("" if end is None else self.real(end, x.dtype) for end in ends)], node)

    def addmm(self, node: Any) -> Value:
        """A product and what is added."""
        bias, one, other = (self.real(arg) for arg in node.args[:3])
        product = Value(
            self.writer.op("MatMul", [one.name, other.name], f"{self._hint}/product"), _shape(node)
        )
        return self.op("Add", [product, bias], node)

    def rsqrt(self, node: Any) -> Value:
        """One over the square root."""
        root = self.op("Sqrt", [self.real(node.args[0])], node)
        return self.op("Reciprocal", [root], node)

    def convolution(self, node: Any) -> Value:
        """Of float weights."""
        x, weight, bias, stride, padding, dilation, transposed, more, groups = node.args
        read = [self.real(arg) for arg in (x, weight, bias) if arg is not None]
        attrs = {"strides": [*stride], "pads": [*padding, *padding], "dilations": [*dilation],
                 "group": int(groups)}  # fmt: skip
        if transposed:
            attrs["output_padding"] = [*more]
        return self.op("ConvTranspose" if transposed else "Conv", read, node, **attrs)

    def constant_pad(self, node: Any) -> Value:
        """A border of one number."""
        x = self.read(node.args[0])
        pads = [int(each) for each in node.args[1]]
        value = float(node.args[2]) if len(node.args) > 2 else 0.0
        x = self.writer.real(x)
        missing = [0] * (len(x.shape) - len(pads) // 2)
        amounts = self.whole([*missing, *pads[-2::-2], *missing, *pads[::-2]])
        return self.op("Pad", [x, amounts, self.real(value, x.dtype)], node)

    def cast(self, node: Any) -> Value:
        """Another type."""
        return self._cast(self.real(node.args[0]), _dtype(node))

    def filled(self, node: Any) -> Value:
        """One number everywhere."""
        value = node.args[1] if _name(node.target).startswith("full") else "ones" in _name(node.target)
        value = node.args[0] if _name(node.target) == "scalar_tensor" else value
        array = np.full(_shape(node), value, _dtype(node))
        return Value(self.writer.constant(array, "filled"), _shape(node), None, _dtype(node))

    def argmax(self, node: Any) -> Value:
        """The place of the largest or the smallest, the first of equal ones."""
        kind = "ArgMax" if _name(node.target) == "argmax" else "ArgMin"
        if len(node.args) < 2 or node.args[1] is None:
            raise self.refused(f"{_name(node.target)} over all axes")
        keep = bool(node.args[2]) if len(node.args) > 2 else False
        axis = int(node.args[1])
        return self.op(kind, [self.real(node.args[0])], node, axis=axis, keepdims=int(keep))

    def cumsum(self, node: Any) -> Value:
        """Sums so far."""
        dim = self.writer.constant(np.asarray(int(node.args[1]), np.int64), "dim")
        return self.op("CumSum", [self.real(node.args[0]), dim], node)


def _name(target: Any) -> str:
    """An ATen operation without its overload, in place or not."""
    if target is operator.getitem or not hasattr(target, "_schema"):
        return str(getattr(target, "__name__", target))
    return str(target._schema.name).rpartition("::")[2].removesuffix("_copy").rstrip("_")


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape)


def _dtype(node: Any) -> str:
    return str(node.meta["val"].dtype).removeprefix("torch.")


def _known(name: str) -> bool:
    return any(name in group for group in (PLAIN, MASKS, REDUCED, SHAPED, SAME, KNOWN))


#: Name -> how it is written.
KNOWN: Mapping[str, Any] = {
    "quantize_per_tensor": Steps.quantize, "dequantize_per_tensor": Steps.dequantize,
    "permute": Steps.permute, "transpose": Steps.transpose, "t": Steps.transpose, "slice": Steps.slice,
    "select": Steps.select, "index_select": Steps.index_select, "expand": Steps.expand, "cat": Steps.cat,
    "_softmax": Steps.softmax, "_log_softmax": Steps.softmax, "leaky_relu": Steps.leaky_relu,
    "elu": Steps.elu, "clamp": Steps.clamp, "hardtanh": Steps.clamp, "addmm": Steps.addmm,
    "rsqrt": Steps.rsqrt, "convolution": Steps.convolution, "constant_pad_nd": Steps.constant_pad,
    "_to": Steps.cast, "full": Steps.filled, "full_like": Steps.filled, "zeros_like": Steps.filled,
    "ones_like": Steps.filled, "scalar_tensor": Steps.filled, "cumsum": Steps.cumsum,
    "argmax": Steps.argmax, "argmin": Steps.argmax,
}  # fmt: skip
