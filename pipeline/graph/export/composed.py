"""Operations that a network writes out in smaller ones: found in the exported program, and put back together.

Layer norms, GELU and the like are often written by hand, and exporters of ONNX decompose them. As one
operation they are exact and stay in the delegate; a division by a tensor alone would leave it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from paredown.pipeline.graph.aten import arguments, shape_of, target

ATEN = torch.ops.aten
#: What computes each value of its result from the values at the same place.
POINTWISE = frozenset({
    "add", "clamp", "clamp_max", "clamp_min", "div", "erf", "exp", "hardtanh", "log", "log1p", "mul", "neg",
    "pow", "reciprocal", "relu", "relu6", "rsub", "sigmoid", "softplus", "square", "sub", "tanh",
})  # fmt: skip
#: What ends such an expression, and how long it may be.
ENDS, MOST = frozenset({"add", "clamp", "div", "log", "mul", "reciprocal", "relu", "tanh"}), 12
#: The functions that are known, the more usual first.
FUNCTIONS: tuple[tuple[Callable[[Tensor], Tensor], Any, dict[str, Any]], ...] = (
    (F.gelu, ATEN.gelu.default, {}),
    (lambda x: F.gelu(x, approximate="tanh"), ATEN.gelu.default, {"approximate": "tanh"}),
    (F.hardswish, ATEN.hardswish.default, {}),
    (F.hardsigmoid, ATEN.hardsigmoid.default, {}),
    (F.silu, ATEN.silu.default, {}),
    (torch.sigmoid, ATEN.sigmoid.default, {}),
    (F.mish, ATEN.mish.default, {}),
    (F.softplus, ATEN.softplus.default, {}),
)
#: Where an expression is compared with a function, and how near it must come; float64. An exporter's
#: square root of two has seven digits.
GRID = (-9.0, 9.0, 1441)
NEAR = 2e-6


def compose(program: torch.export.ExportedProgram) -> None:
    """Rewrites the program's graph: single nodes for what is found; what they replace may stay, unread."""
    graph = program.graph
    numbers = _numbers(program)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.users:
            found = _split_glu(graph, node) or _largest(graph, node) or _norm(graph, node)
            _ = found or _function(graph, node, numbers)


def _numbers(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """Placeholder -> its value, of all constants that are one number, which no training changes."""
    signature = program.graph_signature
    held = {
        **signature.inputs_to_parameters, **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }  # fmt: skip
    found = {}
    for name, path in held.items():
        value = program.state_dict.get(path, program.constants.get(path))
        if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
            found[name] = value.detach().double().reshape(())
    return found


def _put(graph: fx.Graph, before: fx.Node, call: Any, *inputs: Any, **named: Any) -> fx.Node:
    """Adds a call where `before` is, as if the same line of the user's code made it."""
    with graph.inserting_before(before):
        made = graph.call_function(call, inputs, named)
    made.meta = dict(before.meta)
    values = [each.meta["val"] if isinstance(each, fx.Node) else each for each in inputs]
    made.meta["val"] = call(*values, **named)
    return made


def _split_glu(graph: fx.Graph, node: fx.Node) -> bool:
    """A gated linear unit: one half times the sigmoid of the other."""
    if target(node) != "glu":
        return False
    x, dim = arguments(node, None, -1)
    halves = _put(graph, node, ATEN.chunk.default, x, 2, dim)
    one, other = (_put(graph, node, operator.getitem, halves, index) for index in (0, 1))
    gate = _put(graph, node, ATEN.sigmoid.default, other)
    node.replace_all_uses_with(_put(graph, node, ATEN.mul.Tensor, one, gate))
    return True


def _largest(graph: fx.Graph, node: fx.Node) -> bool:
    """`max` along an axis, of which only the values are read, not the places."""
    if target(node) != "max" or len(node.args) < 2 or not isinstance(node.args[1], int):
        return False
    read = [user for user in node.users if user.users]
    if any(target(user) != "getitem" or user.args[1] != 0 for user in read):
        return False
    x, dim, keep = arguments(node, None, None, False)
    for user in read:
        user.replace_all_uses_with(_put(graph, user, ATEN.amax.default, x, [dim], keep))
    return bool(read)


# -- normalization by mean and variance --------------------------------------------------------------------


def _norm(graph: fx.Graph, node: fx.Node) -> bool:
    """(x - mean) / sqrt(variance + eps), over the channels, or over the map of each channel."""
    found = _parts(node)
    if found is None:
        return False
    x, dims, eps = found
    rank = len(shape_of(x))
    if rank == 4 and dims == (2, 3):
        made = _put(graph, node, ATEN.instance_norm.default, x, None, None, None, None, True, 0.1, eps, False)
    elif len(dims) == 1 and dims[0] in {1, rank - 1}:
        order = [axis for axis in range(rank) if axis != dims[0]] + [dims[0]]
        back = [order.index(axis) for axis in range(rank)]
        last = x if order == back else _put(graph, node, ATEN.permute.default, x, order)
        made = _put(graph, node, ATEN.layer_norm.default, last, [shape_of(x)[dims[0]]], None, None, eps)
        made = made if last is x else _put(graph, node, ATEN.permute.default, made, back)
    else:
        return False
    node.replace_all_uses_with(made)
    return True


def _parts(node: fx.Node) -> tuple[fx.Node, tuple[int, ...], float] | None:
    """What a node normalizes, over which axes, and epsilon; None where it does not."""
    divided, times = _two(node, "div"), _two(node, "mul")
    tried = [(divided[0], _rooted(divided[1]))] if divided else []
    tried += [(one, _inverse(other)) for one, other in (times, times[::-1])] if times else []
    for centred, root in tried:
        mean = _centred(centred)
        if mean is not None and root is not None and _variance(root[0], *mean):
            return *mean, root[1]
    return None


def _two(node: Any, name: str) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors of a node of this name."""
    if _called(node) != name or node.kwargs:
        return None
    one, other = node.args[:2]
    return (one, other) if isinstance(one, fx.Node) and isinstance(other, fx.Node) else None


def _called(node: Any) -> str:
    """The name of what a node calls; empty of anything else."""
    return target(node) if isinstance(node, fx.Node) and node.op == "call_function" else ""


def _of(node: Any, *names: str) -> Any:
    """The first argument of a node of one of these names."""
    return node.args[0] if _called(node) in names else None


def _power(node: Any, exponent: float) -> Any:
    """What is raised to this power."""
    return node.args[0] if _called(node) == "pow" and node.args[1] == exponent else None


def _axes(node: fx.Node, dims: Any, keep: Any) -> tuple[int, ...] | None:
    """The axes that are reduced, from the first on; None where they do not stay with a size of one."""
    rank = len(shape_of(node))
    given = [dims] if isinstance(dims, int) else dims
    return tuple(sorted(dim % rank for dim in given)) if given and keep else None


def _mean(node: Any) -> tuple[fx.Node, tuple[int, ...]] | None:
    """What a mean is of, and over which axes."""
    x = _of(node, "mean")
    if x is None or len(node.args) < 2 or isinstance(node.args[1], torch.dtype):
        return None
    _, dims, keep = arguments(node, None, None, False)
    axes = _axes(x, dims, keep)
    return None if axes is None else (x, axes)


def _centred(node: Any) -> tuple[fx.Node, tuple[int, ...]] | None:
    """What a difference from its own mean is of."""
    sides = _two(node, "sub")
    if sides is None or (mean := _mean(sides[1])) is None or mean[0] is not sides[0]:
        return None
    return mean


def _rooted(node: Any) -> tuple[fx.Node, float] | None:
    """Of sqrt(variance + eps), both."""
    return _added(_of(node, "sqrt") or _power(node, 0.5))


def _inverse(node: Any) -> tuple[fx.Node, float] | None:
    """Of 1 / sqrt(variance + eps), both."""
    return _added(_of(node, "rsqrt") or _power(node, -0.5)) or _rooted(_of(node, "reciprocal"))


def _added(node: Any) -> tuple[fx.Node, float] | None:
    variance = _of(node, "add")
    eps = node.args[1] if variance is not None and len(node.args) > 1 else None
    return (variance, float(eps)) if isinstance(eps, float) and eps > 0 and not node.kwargs else None


def _variance(node: fx.Node, x: fx.Node, dims: tuple[int, ...]) -> bool:
    """Whether a node is the variance of `x`, of all its values and not of a sample of them."""
    if _of(node, "var") is x:
        given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False))  # type: ignore[union-attr]
        given |= node.kwargs
        sample = given.get("unbiased", given.get("correction", 1))
        return bool(sample == 0) and _axes(x, given.get("dim"), given.get("keepdim")) == dims
    mean = _mean(node)
    if mean is None or mean[1] != dims:
        return False
    power = mean[0]
    twice = _two(power, "mul")
    inside = twice[0] if twice and twice[0] is twice[1] else _power(power, 2) or _of(power, "square")
    return inside is not None and _centred(inside) == (x, dims)


# -- functions of one value --------------------------------------------------------------------------------


def _function(graph: fx.Graph, node: fx.Node, numbers: dict[str, Tensor]) -> bool:
    """A known function, whatever its expression: compared at the places of a grid."""
    if target(node) not in ENDS:
        return False
    grid = torch.linspace(*GRID, dtype=torch.float64)
    for x, inside in _expressions(node, numbers):
        values = _evaluate(node, x, inside, grid, numbers)
        if values is None:
            continue
        for function, call, named in FUNCTIONS:
            if torch.allclose(values, function(grid), rtol=NEAR, atol=NEAR):
                node.replace_all_uses_with(_put(graph, node, call, x, **named))
                return True
    return False


def _expressions(end: fx.Node, numbers: dict[str, Tensor]) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """The expressions of one tensor that end in a node: that tensor, and the nodes, the shortest first.

    The node that came last is opened as long as there is one: all others are before it, so where a single
    tensor is left, all of the expression hangs on it.
    """
    order = {node: place for place, node in enumerate(end.graph.nodes)} if _tensors(end, numbers) else {}
    inside, leaves = [end], _tensors(end, numbers)
    while leaves and len(inside) <= MOST:
        if len(leaves) == 1 and len(inside) > 1:
            yield next(iter(leaves)), inside[::-1]
        last = max(leaves, key=lambda node: order[node])
        if last.op != "call_function" or target(last) not in POINTWISE or shape_of(last) != shape_of(end):
            return
        leaves = (leaves - {last}) | _tensors(last, numbers)
        inside.append(last)


def _tensors(node: fx.Node, numbers: dict[str, Tensor]) -> set[fx.Node]:
    """What a node reads, but for numbers."""
    return {each for each in node.all_input_nodes if each.name not in numbers}


def _evaluate(
    end: fx.Node, x: fx.Node, inside: Sequence[fx.Node], grid: Tensor, numbers: dict[str, Tensor]
) -> Tensor | None:
    """An expression at the places of a grid; None where it has no values there."""
    values: dict[fx.Node, Any] = {x: grid}

    def value(each: Any) -> Any:
        return values[each] if each in values else numbers[each.name]

    for node in inside:
        given = fx.node.map_arg((node.args, node.kwargs), value)
        values[node] = node.target(*given[0], **given[1])  # type: ignore[operator]
    found = values[end]
    usable = isinstance(found, Tensor) and found.shape == grid.shape and bool(found.isfinite().all())
    return found if usable and not math.isclose(float(found.std()), 0.0) else None
