"""ATen operations that a graph keeps by name: their arguments as text, computed in float32 (our design).

An operation that no integer kernel computes stays in float. What it is, is data: the name of the ATen
operation and its arguments, so that a graph which holds it can be stored and read back. Masks and whole
numbers travel between operations as floats, which hold them exactly.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from paredown.pipeline.graph.aten import target

#: What a float tensor of a graph can stand for.
DTYPES = {"float32": torch.float32, "bool": torch.bool, "int64": torch.int64}
#: Whole numbers that int8 codes hold.
MOST_WHOLE = 255
#: ATen operations whose results are places along an axis.
PLACES = frozenset({"argmax", "argmin", "argsort", "topk", "sort", "max", "min", "median", "kthvalue"})
#: What an operation on single values may be made of, beside those that torch tags as such.
SHAPELESS = frozenset(
    {
        "scalar_tensor",
        "full",
        "full_like",
        "empty",
        "empty_strided",
        "clone",
        "detach",
        "_to_copy",
        "alias",
        "lift_fresh_copy",
        "zeros_like",
        "ones_like",
    }  # fmt: skip
)


#: Why a random operation is refused, and what to do.
RANDOM = ("is random", "a network must give the same answer each time: leave it out in evaluation")


class NotFloat(Exception):
    """Why an operation cannot stay in float.

    Attributes:
        what: the reason.
        hint: what to do; empty where other operations are all that helps.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def described(
    node: fx.Node, held: Callable[[fx.Node], bool], result: int = -1
) -> tuple[dict[str, Any], list[fx.Node]]:
    """What an ATen node does, as attributes, and the values that it reads, in the order of their numbers.

    Args:
        node: of an exported program.
        held: whether a value is a constant, which the graph's node has itself.
        result: which of several results.

    Raises:
        NotFloat: it is no operation of ATen's, is random, or makes what no tensor of a graph can stand for.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.name.startswith("aten::"):
        name = schema.name if schema else str(node.target)
        raise NotFloat(
            f"({name}) is a custom operator, which no runtime has", "write it with torch's own operations"
        )
    if torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
        raise NotFloat(*RANDOM)
    read: list[fx.Node] = []
    given = json.dumps([_plain(node.args, read), _plain(node.kwargs, read)])
    made = node.meta["val"][result] if result >= 0 else node.meta["val"]
    if not isinstance(made, Tensor):
        raise NotFloat("makes several results")
    makes = _dtype(made)
    if makes == "int64":
        _whole(node, made)
    _equal(node, read, held)
    name = f"{schema.name}.{schema.overload_name or 'default'}"
    takes = tuple(_dtype(each.meta["val"]) for each in read)
    held_at = tuple(index for index, each in enumerate(read) if held(each))
    attrs = {"op": _functional(name), "given": given, "takes": takes, "held": held_at, "makes": makes,
             "result": result}  # fmt: skip
    return attrs, read


def _plain(value: Any, read: list[fx.Node]) -> Any:
    """An argument as JSON has it."""
    if isinstance(value, fx.Node):
        if not isinstance(value.meta.get("val"), Tensor):
            raise NotFloat("reads what is no tensor")
        if value not in read:
            read.append(value)
        return {"$tensor": read.index(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(each, read) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each, read) for key, each in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (torch.device, torch.layout, torch.memory_format)):
        return None
    raise NotFloat(f"has an argument that is {type(value).__name__}")


def _dtype(value: Tensor) -> str:
    if value.dtype == torch.bool:
        return "bool"
    if value.dtype.is_floating_point:
        return "float32"
    if value.dtype.is_complex:
        raise NotFloat(
            "computes in complex numbers", "compute spectra outside of the network, or by convolutions"
        )
    return "int64"


def _whole(node: fx.Node, made: Tensor) -> None:
    """Places beyond 255 are not what 8 bits hold."""
    read = node.args[0]
    if target(node) not in PLACES or not isinstance(read, fx.Node):
        return
    shape, dims = read.meta["val"].shape, [a for a in node.args[1:] if isinstance(a, int)]
    axis = dims[-1] if target(node) in {"topk", "kthvalue"} and len(dims) > 1 else (dims or [-1])[0]
    if target(node) in {"topk", "kthvalue"} and len(dims) < 2:
        axis = -1
    count = shape[axis] if made.ndim and (dims or target(node) not in {"argmax", "argmin"}) else shape.numel()
    if count > MOST_WHOLE + 1:
        raise NotFloat(
            f"says which of {count}; 8 bits hold 256: return the scores, and choose behind the network"
        )


def _equal(node: fx.Node, read: Sequence[fx.Node], held: Callable[[fx.Node], bool]) -> None:
    """A value of 8 bits is rounded: it equals one of many numbers by chance alone."""
    if target(node) not in {"eq", "ne"}:
        return
    given = {held(each): each.meta["val"] for each in read}
    if given.keys() != {True, False} or _dtype(given[False]) != "float32" or given[True].numel() == 1:
        return
    raise NotFloat(
        f"compares rounded values with {given[True].numel()} numbers; 8 bits are seldom equal to one",
        "give the network what is behind it as its input: the one-hot rows, or the embedded values",
    )


def _functional(name: str) -> str:
    """The operation that makes what one in place would write over its input."""
    space, _, word = name.partition("::")
    word, _, overload = word.partition(".")
    if word.endswith("_") and not word.endswith("__") and hasattr(torch.ops.aten, word.removesuffix("_")):
        word = word.removesuffix("_")
    return f"{space}::{word}.{overload}"


@functools.cache
def overload(name: str) -> Any:
    """The operation of a name, `aten::cumsum.default`."""
    word, _, which = name.removeprefix("aten::").partition(".")
    return getattr(getattr(torch.ops.aten, word), which)


def function(attrs: Mapping[str, Any], constants: Sequence[Tensor] = ()) -> Callable[..., Tensor]:
    """What computes an operation: tensors of floats for a batch of one in, one out.

    Args:
        attrs: see `described`.
        constants: those of the values that it reads that the input does not decide.
    """
    args, kwargs = json.loads(attrs["given"])
    call, result = overload(attrs["op"]), attrs["result"]
    if result == 1:  # equal values are common among 8-bit ones: the first of them comes first
        call = _IN_ORDER.get(attrs["op"], call)

    def compute(*inputs: Tensor) -> Tensor:
        fixed, given = iter(constants), iter(inputs)
        values = [
            next(fixed) if index in attrs["held"] else typed(next(given), kind)
            for index, kind in enumerate(attrs["takes"])
        ]
        made = call(*_filled(args, values), **_filled(kwargs, values))
        return (made[result] if result >= 0 else made).to(inputs[0].dtype)

    return compute


def _topk(
    x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Tensor, Tensor]:  # noqa: A002
    values, places = torch.sort(x, dim=dim, descending=largest, stable=True)
    return values.narrow(dim, 0, k), places.narrow(dim, 0, k)


def _sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    return torch.sort(x, dim=dim, descending=descending, stable=True)


#: Operations that say where equal values are in an order of their own -> the same in order.
_IN_ORDER: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"aten::topk.default": _topk, "aten::sort.default": _sort}
)


def typed(x: Tensor, kind: str) -> Tensor:
    """A float tensor as what it stands for."""
    if kind == "float32":
        return x
    return x != 0 if kind == "bool" else x.round().to(torch.int64)


def _filled(value: Any, values: Sequence[Tensor]) -> Any:
    if isinstance(value, dict):
        if "$tensor" in value:
            return values[value["$tensor"]]
        if "$dtype" in value:
            return getattr(torch, value["$dtype"])
        return {key: _filled(each, values) for key, each in value.items() if each is not None}
    return [_filled(each, values) for each in value] if isinstance(value, list) else value


def run(attrs: Mapping[str, Any], constants: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """Computes an operation for a batch of any size: what was recorded is for a batch of one."""
    compute, count = function(attrs, constants), len(inputs[0])
    if count == 1:
        return compute(*inputs)
    return torch.cat([compute(*(x[i : i + 1] for x in inputs)) for i in range(count)])


def decomposed(
    compute: Callable[..., Tensor],
    shapes: Sequence[Sequence[int]],
    kept: Callable[[Any], bool] = lambda _: False,
    own: Mapping[Any, Callable[..., Any]] = MappingProxyType({}),
) -> fx.GraphModule:
    """An operation as a graph of smaller ones.

    Args:
        compute: as `function` gives it.
        shapes: of its inputs.
        kept: operations that are small enough.
        own: how others are decomposed; NotImplemented says that one stays as it is.
    """
    from torch._decomp import core_aten_decompositions, decomposition_table
    from torch.fx.experimental.proxy_tensor import make_fx

    table = {**decomposition_table, **core_aten_decompositions()}
    table = {op: how for op, how in table.items() if not kept(op)} | {**SMALLER, **own}
    examples = [torch.zeros(tuple(shape)) for shape in shapes]
    with torch.no_grad():
        made = make_fx(compute, decomposition_table=table)(*examples)
    made.graph.eliminate_dead_code()
    return made


def single_values(
    attrs: Mapping[str, Any], constants: Sequence[Tensor], shapes: Sequence[Sequence[int]]
) -> bool:
    """Whether each value of the result is made of those at the same place in what is read."""
    tags = getattr(overload(attrs["op"]), "tags", ())
    if torch.Tag.pointwise in tags:
        return True
    try:
        graph = decomposed(function(attrs, constants), shapes, _single).graph
    except Exception:  # noqa: BLE001  torch raises whatever it likes where it cannot decompose
        return False
    calls = [n for n in graph.nodes if n.op == "call_function" and n.target is not operator.getitem]
    return bool(calls) and all(_single(n.target) or target(n) in SHAPELESS for n in calls)


def _single(op: Any) -> bool:
    return torch.Tag.pointwise in getattr(op, "tags", ())


# -- decompositions that torch has not, or has in a form that no runtime knows ------------------------------


def _sorted(x: Tensor, dim: int = -1, descending: bool = False) -> Any:
    return torch.topk(x, x.shape[dim], dim, descending)


def _stable(x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    return _sorted(x, dim, descending)


def _unfolded(x: Tensor, dim: int, size: int, step: int) -> Tensor:
    count = (x.shape[dim] - size) // step + 1
    return torch.stack([x.narrow(dim, index * step, size).movedim(dim, -1) for index in range(count)], dim)


def _power(x: Tensor, exponent: float) -> Any:
    known = {2: lambda: x * x, 3: lambda: x * x * x, 0.5: x.sqrt, -0.5: x.rsqrt, -1: x.reciprocal, 1: x.clone}
    return known[exponent]() if exponent in known else NotImplemented


def _log_sigmoid(x: Tensor) -> Any:
    return x.neg().clamp(min=0).neg() - x.abs().neg().exp().log1p(), x


SMALLER: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        torch.ops.aten.sort.default: _sorted,
        torch.ops.aten.sort.stable: _stable,
        torch.ops.aten.unfold.default: _unfolded,
        torch.ops.aten.pow.Tensor_Scalar: _power,
        torch.ops.aten.log_sigmoid_forward.default: _log_sigmoid,
    }
)
