"""What the operations of a graph ask of torch, recorded: `Operation.executorch` or `compute`, on no data.

The same methods make the exporter's program, so no operation is spelled twice. Recording costs a thousandth
of an export, since torch only works out shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.lower.executorch.operands import Operands
from paredown.pipeline.lower.integer import Affine, IntegerGraph, IntegerNode


class NotWritten(Exception):
    """A part of a graph that the writer does not know."""


#: Operations of torch that change nothing, but a tensor's strides.
_SAME = frozenset({"clone", "detach", "alias", "contiguous", "lift_fresh_copy"})
#: Those whose shape is that of what they read.
_POINTWISE = frozenset({"relu", "hardtanh", "leaky_relu", "elu", "gelu", "sigmoid", "tanh", "abs", "exp"})


@dataclass(eq=False)
class Value:
    """A tensor of the program.

    Attributes:
        shape: as torch has it.
        made: the step that makes it; None for the input and for what is given.
        affine: of codes; None of real values.
        given: real values that are known.
        layer: whose weight or bias it is.
        users: the steps that read it.
    """

    shape: tuple[int, ...]
    made: Step | None = None
    affine: Affine | None = None
    given: NDArray[Any] | None = None
    layer: IntegerNode | Node | None = None
    users: list[Step] = field(default_factory=list)


@dataclass(eq=False)
class Step:
    """An operation of torch, or "quantize" or "dequantize".

    Attributes:
        op: its name.
        args: the arguments; tensors are values.
        out: what it makes.
        node: number of the node of the graph that asks for it, from one.
    """

    op: str
    args: tuple[Any, ...]
    out: Value
    node: int

    @property
    def values(self) -> list[Value]:
        """The values that it reads."""
        return [each for each in _flat(self.args) if isinstance(each, Value)]


def _flat(args: Sequence[Any]) -> list[Any]:
    return [one for each in args for one in (each if isinstance(each, (list, tuple)) else [each])]


def _blank(arg: Any) -> Any:
    """An argument whose tensors have no data."""
    if isinstance(arg, Tensor):
        return arg if arg.is_meta else arg.to("meta")
    return [_blank(each) for each in arg] if isinstance(arg, (list, tuple)) else arg


def _shaped(name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operation makes of tensors without data; some shapes torch would import its compiler for."""
    if name in _POINTWISE:
        return torch.empty_like(args[0])
    if name in {"addmm", "mm"}:
        return torch.empty((args[-2].shape[0], args[-1].shape[1]), device="meta")
    if name == "mean" and len(args) > 1:
        func = torch.ops.aten.sum.dim_IntList
    return func(*args, **kwargs)


@dataclass
class Recording:
    """The steps of a graph, in running order; its input, and what it gives."""

    steps: list[Step]
    source: Value
    outputs: list[Value]


def record(graph: IntegerGraph) -> Recording:
    """Records all operations of a graph.

    Args:
        graph: as programs hold it: `IntegerGraph.written`.
    """
    recorder: Any = _Recorder(graph)
    tensors: dict[str, Tensor] = {}
    with torch.no_grad(), recorder.mode:
        for number, node in enumerate(graph, 1):
            recorder.mode.node = number
            if node.kind == "input":
                tensors[node.name] = recorder.mode.fresh(Value(tuple(node.shape), affine=node.out))
                continue
            feeds = [recorder.reals(tensors[name], graph[name]) for name in node.inputs]
            made = operation(node.kind).executorch(recorder, node, feeds)
            tensors[node.name] = recorder.codes(made, node)
    outputs = [recorder.mode.value(tensors[name]) for name in graph.outputs]
    return Recording(recorder.mode.steps, recorder.mode.value(tensors[graph.input.name]), outputs)


def record_float(graph: Graph) -> Recording:
    """Records all operations of a float graph.

    Args:
        graph: as programs hold it: `Graph.written`.
    """
    mode, tensors = _Mode(), dict[str, Tensor]()
    with torch.no_grad(), mode:
        for number, node in enumerate(graph, 1):
            mode.node, kind = number, operation(node.kind)
            if kind.island:
                raise NotWritten(node.kind)
            if node.kind == "input":
                tensors[node.name] = mode.fresh(Value(tuple(node.shape)))
                continue
            feeds = [tensors[name] for name in node.inputs]
            if node.weight is None or node.bias is None:
                tensors[node.name] = kind.compute(node, *feeds)
                continue
            shape = tuple(_theirs(node).shape)
            weight, bias = (mode.fresh(Value(each, layer=node)) for each in (shape, tuple(node.bias.shape)))
            tensors[node.name] = kind.computed(replace(node, bias=bias), weight, *feeds)
        outputs = [mode.value(tensors[name]) for name in graph.outputs]
    return Recording(mode.steps, mode.value(tensors[graph.nodes[0].name]), outputs)


def _theirs(node: Node | IntegerNode) -> Tensor:
    """A weight without data, in the shape of a module's parameter."""
    assert node.weight is not None
    blank = torch.empty(node.weight.shape, device="meta")
    return operation(node.kind).theirs(blank, int(node.attrs.get("groups", 1)), node.weight.ndim)


class _Mode(TorchDispatchMode):
    """Sees each operation of torch; the tensors have shapes, and no data."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.node = 0
        self._values: dict[int, tuple[Tensor, Value]] = {}  # keeps the tensors, so that no number comes twice

    def fresh(self, value: Value) -> Tensor:
        """A tensor that stands for a value."""
        tensor = torch.empty(value.shape, device="meta")
        self._values[id(tensor)] = tensor, value
        return tensor

    def value(self, tensor: Tensor) -> Value:
        """What a tensor stands for; one that is not known has values of its own."""
        if id(tensor) not in self._values:
            if tensor.is_meta:
                raise NotWritten("a tensor from nowhere")
            given = Value(tuple(tensor.shape), given=tensor.detach().numpy())
            self._values[id(tensor)] = tensor, given
        return self._values[id(tensor)][1]

    def add(self, op: str, args: Sequence[Any], out: Value) -> Value:
        """Adds a step that makes a value."""
        step = Step(op, tuple(args), out, self.node)
        out.made = step
        for value in step.values:
            value.users.append(step)
        self.steps.append(step)
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler, which takes seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if not any(isinstance(each, Tensor) and id(each) in self._values for each in _flat(args)):
            return func(*args, **(kwargs or {}))  # of what is known
        taken = [self._taken(each) for each in args]
        blank = [_blank(each) for each in args]
        try:
            made = _shaped(name, func, blank, kwargs or {})
        except (NotImplementedError, RuntimeError) as error:  # it asks for values
            raise NotWritten(name) from error
        result = made[0] if isinstance(made, tuple) else made
        if not isinstance(result, Tensor):
            raise NotWritten(name)
        if name in _SAME:
            self._values[id(result)] = result, taken[0]
            return made
        if kwargs:
            taken.append(dict(kwargs))
        value = self.add(name, taken, Value(tuple(result.shape)))
        self._values[id(result)] = result, value
        return made

    def _taken(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return self.value(arg)
        return [self._taken(each) for each in arg] if isinstance(arg, (list, tuple)) else arg


class _Recorder(Operands):
    """What the operations ask of a program."""

    def __init__(self, graph: IntegerGraph) -> None:
        self.graph, self.mode = graph, _Mode()
        self._nodes = {node.name: node for node in graph}

    def island(self, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        """What stays in float, of portable kernels: it is outside of the delegate."""
        raise NotWritten(node.attrs["op"])

    def weight(self, node: IntegerNode) -> Tensor:
        """A layer's weight, in the shape of a module's parameter."""
        return self.mode.fresh(Value(tuple(_theirs(node).shape), layer=node))

    def bias(self, node: IntegerNode) -> Tensor:
        """A layer's bias."""
        assert node.bias is not None
        return self.mode.fresh(Value(node.bias.shape, layer=node))

    def constant(self, node: IntegerNode, word: str) -> Tensor:
        """An array of `Operation.constants`."""
        array = operation(node.kind).constants(node, [self._nodes[name] for name in node.inputs])[word]
        return self.mode.fresh(Value(array.shape, given=np.asarray(array)))

    def codes(self, x: Tensor, like: IntegerNode) -> Tensor:
        """Real values as codes of the scale of a node's output."""
        made = Value(tuple(x.shape), affine=like.out)
        return self.mode.fresh(self.mode.add("quantize", [self.mode.value(x)], made))

    def reals(self, codes: Tensor, like: IntegerNode) -> Tensor:
        """Such codes as real values, for one consumer."""
        return self.mode.fresh(
            self.mode.add("dequantize", [self.mode.value(codes)], Value(tuple(codes.shape)))
        )
