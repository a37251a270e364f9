"""The traced network: one typed list of operations that prune, squantize and lower all read.

Batch normalization and padding are folded into the operations that use them. `pipeline.graph.trace` makes a
graph; `run` computes it in floating point. What is known of each kind of operation is in
`pipeline.graph.operations`, a module per kind.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.graph.alike import distinct, get, put
from paredown.pipeline.graph.operations.kinds import operation, written


@dataclass(frozen=True, eq=False)
class Node:
    """One operation and the tensor that it makes.

    Attributes:
        name: unique; the module's path where a module made it (`layers.3.conv`), else the operation's name.
        kind: one of `pipeline.graph.operations.kinds.KINDS`.
        inputs: names of the nodes whose tensors it reads, in order.
        shape: shape of its output for a batch of one.
        attrs: what the kind needs; its class names them.
        weight: (out, in / groups, kh, kw) or (out, in), BN folded in; None where the kind has none.
        bias: (out,), never None where there is a weight.
        source: the line of the user's code that made it.
        parameters: role -> name in the network's state dict, of what weight and bias are made from: "weight",
            "bias", "bn_weight", "bn_bias", "bn_mean", "bn_var". Two nodes with one name share a parameter.
            A role "computed weight 0" names one that the weight is only computed from ("": there is none).
        scale: (out,), where the weights are whole numbers -127..127 times this: they were trained so, and the
            integer graph takes these numbers over.
        value: of a "constant" node, the batch of one first.
        constants: of an island: tensors that it reads and the input does not decide, in their order.
        compute: of an "opaque" node, which only `trace(..., opaque=True)` makes: what it does.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weight: Tensor | None = None
    bias: Tensor | None = None
    source: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    scale: Tensor | None = None
    compute: Callable[..., Any] | None = None
    value: Tensor | None = None
    constants: tuple[Tensor, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference, bias not counted."""
        return operation(self.kind).macs(self)

    @property
    def never_negative(self) -> bool:
        """Whether zero is the least that it makes."""
        return operation(self.kind).is_relu


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order in which they can run, the first being the only input.

    Attributes:
        nodes: the operations.
        outputs: names of the nodes that the network returns, in its order.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return self._named[name]

    @cached_property
    def _named(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(node.macs for node in self.nodes)

    @property
    def parameters(self) -> int:
        """Weights and biases after folding."""
        layers = distinct(self.nodes)
        return sum(t.numel() for node in layers for t in (node.weight, node.bias) if t is not None)

    @property
    def written(self) -> Graph:
        """The graph as programs hold it: see `Operation.written`."""
        return replace(self, nodes=written(self.nodes))

    def consumers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read a tensor."""
        return tuple(node for node in self.nodes if name in node.inputs)

    @torch.no_grad()
    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Every tensor of the network for a batch.

        Args:
            x: (batch, channels, height, width), float.

        Returns:
            Name to tensor, in running order.
        """
        values: dict[str, Tensor] = {}
        for node in self.nodes:
            values[node.name] = x if node.kind == "input" else apply(node, *(values[i] for i in node.inputs))
        return values

    def dump(self) -> tuple[bytes, dict[str, NDArray[Any]]]:
        """Structure as canonical JSON, arrays by name; `load` reads both back."""
        nodes: list[dict[str, Any]] = []
        arrays: dict[str, NDArray[Any]] = {}
        for node in self.nodes:
            item = {"name": node.name, "kind": node.kind, "inputs": node.inputs, "shape": node.shape}
            nodes.append(item | {"attrs": dict(node.attrs), "parameters": dict(node.parameters)})
            held = {"weight": node.weight, "bias": node.bias, "scale": node.scale, "value": node.value}
            held |= {f"constant{index}": tensor for index, tensor in enumerate(node.constants)}
            for role, tensor in held.items():
                if tensor is not None:
                    put(arrays, node.name, node.attrs, role, tensor.numpy())
        text = json.dumps({"nodes": nodes, "outputs": self.outputs}, sort_keys=True, indent=1)
        return text.encode(), arrays

    @staticmethod
    def load(structure: bytes, arrays: Mapping[str, NDArray[Any]]) -> Graph:
        """Inverse of `dump`, but for the source lines, which are not kept."""
        data = json.loads(structure)

        def tensor(item: Mapping[str, Any], role: str) -> Tensor | None:
            array = get(arrays, item["name"], item["attrs"], role)
            return None if array is None else torch.from_numpy(array)

        nodes = []
        for item in data["nodes"]:
            name, shape = item["name"], tuple(item["shape"])
            weight, bias = tensor(item, "weight"), tensor(item, "bias")
            attrs = tuples(item["attrs"])
            named = item.get("parameters", {})
            inputs, scale = tuple(item["inputs"]), tensor(item, "scale")
            node = Node(
                name, item["kind"], inputs, shape, attrs, weight, bias, "", named, scale,
                value=tensor(item, "value"),
                constants=tuple(map(torch.from_numpy, numbered(arrays, name))),
            )  # fmt: skip
            nodes.append(node)
        return Graph(tuple(nodes), tuple(data["outputs"]))


def numbered(arrays: Mapping[str, NDArray[Any]], name: str) -> list[NDArray[Any]]:
    """The constants of a node among stored arrays."""
    keys = itertools.takewhile(arrays.__contains__, (f"{name}:constant{i}" for i in itertools.count()))
    return [arrays[key] for key in keys]


def tuples(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as JSON gives them back, lists made tuples again."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in attrs.items()}


def apply(node: Node, *inputs: Tensor) -> Tensor:
    """Computes one node in floating point; a batch of any size."""
    return operation(node.kind).compute(node, *inputs)
