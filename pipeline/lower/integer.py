"""The integer graph: int8 weights, int32 biases, a scale per tensor, and the one place that knows the rules.

Both runtimes are lowered from it and the reference interpreter executes it, so that what is checked here is
what runs there. The rules, all forced by kernels that exist (TOOLCHAIN):

* activations are int8, affine, one scale per tensor; weights int8, symmetric, one scale per output channel;
* an operation that only moves or selects values keeps its input's scale; the inputs of a concatenation share
  one scale with its output, so that concatenating is a copy;
* ReLU and ReLU6 become the output clamp of the operation that feeds them;
* a bias is an integer multiple of input scale x weight scale, and survives a trip through float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.observers import activation_qparams, weight_scales
from pipeline.graph import Graph, Node, tuples
from targets.errors import InputError

QMIN, QMAX = -128, 127
WeightMethod = Literal["minmax", "mse"]
#: Kinds whose output has the very codes of their input.
SAME_SCALE = frozenset({"max_pool2d", "reshape", "permute", "concat", "relu", "relu6", "pad"})
#: Kinds that clamp their output and so can take a ReLU in.
CLAMPS = frozenset({"conv2d", "linear", "add"})


@dataclass(frozen=True)
class Affine:
    """real = (code - zero_point) * scale; the scale is a float32 value."""

    scale: float
    zero_point: int

    def quantize(self, real: NDArray[np.float32]) -> NDArray[np.int8]:
        """Rounds half to even and clamps, as every runtime's quantize kernel does."""
        codes = np.rint(real.astype(np.float32) * (np.float32(1) / np.float32(self.scale))) + self.zero_point
        return np.clip(codes, QMIN, QMAX).astype(np.int8)

    def dequantize(self, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """Codes back to real values."""
        return (codes.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


@dataclass(frozen=True, eq=False)
class IntegerNode:
    """One operation on int8 tensors; kinds and attributes as in `pipeline.graph.Node`.

    Attributes:
        name: of the operation and of its output tensor.
        kind: one of `pipeline.graph.KINDS`.
        inputs: names of the nodes it reads.
        shape: of the output, batch of one.
        out: scale and zero point of the output.
        low: smallest code it may return (a fused ReLU raises it to the zero point).
        high: largest code it may return.
        attrs: as in the traced graph.
        weight: int8, (out, in / groups, kh, kw) or (out, in).
        weight_scale: float32, (out,).
        bias: int32, (out,), in units of input scale x weight scale.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    out: Affine
    low: int = QMIN
    high: int = QMAX
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weight: NDArray[np.int8] | None = None
    weight_scale: NDArray[np.float32] | None = None
    bias: NDArray[np.int32] | None = None


@dataclass(frozen=True, eq=False)
class IntegerGraph:
    """Integer nodes in running order, the first being the only input, and the names of the outputs."""

    nodes: tuple[IntegerNode, ...]
    outputs: tuple[str, ...]

    def __iter__(self) -> Iterator[IntegerNode]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> IntegerNode:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @property
    def input(self) -> IntegerNode:
        """The node that stands for the network's input."""
        return self.nodes[0]

    def upto(self, outputs: Iterable[str]) -> IntegerGraph:
        """The part of the graph that the given tensors need, returning exactly those."""
        wanted = tuple(outputs)
        alive = set(wanted)
        for node in reversed(self.nodes):
            if node.name in alive:
                alive |= set(node.inputs)
        return IntegerGraph(tuple(n for n in self.nodes if n.name in alive or n.kind == "input"), wanted)

    # -- storage: two deterministic members, JSON for the structure and one flat file of arrays -----------

    def dump(self) -> tuple[bytes, dict[str, NDArray[Any]]]:
        """Structure as canonical JSON, arrays by name; `load` reads both back."""
        arrays: dict[str, NDArray[Any]] = {}
        nodes = []
        for node in self.nodes:
            fields = {
                "name": node.name, "kind": node.kind, "inputs": node.inputs, "shape": node.shape,
                "scale": node.out.scale, "zero_point": node.out.zero_point, "low": node.low,
                "high": node.high, "attrs": dict(node.attrs),
            }  # fmt: skip
            nodes.append(fields)
            if node.weight is not None and node.weight_scale is not None and node.bias is not None:
                arrays[f"{node.name}:weight"] = node.weight
                arrays[f"{node.name}:weight_scale"] = node.weight_scale
                arrays[f"{node.name}:bias"] = node.bias
        text = json.dumps({"nodes": nodes, "outputs": self.outputs}, sort_keys=True, indent=1)
        return text.encode(), arrays

    @staticmethod
    def load(structure: bytes, arrays: Mapping[str, NDArray[Any]]) -> IntegerGraph:
        """Inverse of `dump`."""
        data = json.loads(structure)
        nodes = []
        for item in data["nodes"]:
            name, attrs = item["name"], tuples(item["attrs"])
            nodes.append(
                IntegerNode(
                    name, item["kind"], tuple(item["inputs"]), tuple(item["shape"]),
                    Affine(item["scale"], item["zero_point"]), item["low"], item["high"], attrs,
                    arrays.get(f"{name}:weight"), arrays.get(f"{name}:weight_scale"),
                    arrays.get(f"{name}:bias"),
                )
            )  # fmt: skip
        return IntegerGraph(tuple(nodes), tuple(data["outputs"]))


def quantize(
    graph: Graph,
    ranges: Mapping[str, tuple[float, float]],
    *,
    input_range: tuple[float, float],
    weights: WeightMethod = "minmax",
) -> IntegerGraph:
    """Turns the traced float graph into the integer graph.

    Args:
        graph: traced, BN folded.
        ranges: (low, high) of every tensor, from a calibration run.
        input_range: what preprocessing can produce at all; it, not the sample, sets the input's scale, so
            that an 8-bit image enters without loss.
        weights: how a channel's weight scale is chosen, "minmax" or "mse".

    Raises:
        InputError: a tensor without a range, NaN weights, or a scale that no kernel takes.
    """
    nodes = _fuse_relu(graph)
    affine = _scales(nodes, ranges, input_range)
    result: dict[str, IntegerNode] = {}
    for node, clamp in nodes:
        out = affine[node.name]
        low = out.zero_point if clamp else QMIN
        high = QMAX
        if clamp == "relu6":
            high = min(QMAX, int(np.rint(np.float32(6) / np.float32(out.scale))) + out.zero_point)
        attrs = {k: v for k, v in node.attrs.items() if k != "value"}
        item = IntegerNode(node.name, node.kind, node.inputs, node.shape, out, low, high, attrs)
        if node.weight is not None and node.bias is not None:
            scale_in = result[node.inputs[0]].out.scale
            item = _quantize_weights(item, node, scale_in, weights)
        if node.kind == "leaky_relu":
            _check_leaky(node, result[node.inputs[0]].out, out)
        result[node.name] = item
    return IntegerGraph(tuple(result.values()), graph.outputs)


def _fuse_relu(graph: Graph) -> list[tuple[Node, str]]:
    """Pairs every node with the clamp it takes in; the ReLU's name wins, since consumers refer to it."""
    fused: list[tuple[Node, str]] = []
    renamed: dict[str, int] = {}
    for node in graph:
        feed = node.inputs[0] if node.inputs else ""
        if node.kind in {"relu", "relu6"} and feed in renamed:
            position = renamed[feed]
            producer = fused[position][0]
            if len(graph.consumers(feed)) == 1 and feed not in graph.outputs:
                fused[position] = (replace(producer, name=node.name), node.kind)
                continue
        if node.kind in CLAMPS:
            renamed[node.name] = len(fused)
        fused.append((node, node.kind if node.kind in {"relu", "relu6"} else ""))
    return fused


def _scales(
    nodes: list[tuple[Node, str]], ranges: Mapping[str, tuple[float, float]], input_range: tuple[float, float]
) -> dict[str, Affine]:
    """One scale per set of tensors that must share it, from the union of their ranges."""
    leader: dict[str, str] = {node.name: node.name for node, _ in nodes}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for node, _ in nodes:
        if node.kind in SAME_SCALE:
            for feed in node.inputs:
                leader[find(node.name)] = find(feed)
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for node, _ in nodes:
        if node.name not in ranges:
            raise InputError(
                f"no calibrated range for tensor {node.name}", hint="calibrate this very network"
            )
        bounds = input_range if node.kind == "input" else ranges[node.name]
        root = find(node.name)
        low[root] = min(low.get(root, 0.0), *bounds)
        high[root] = max(high.get(root, 0.0), *bounds)
    roots = {root: Affine(*activation_qparams(low[root], high[root])) for root in low}
    return {node.name: roots[find(node.name)] for node, _ in nodes}


def _quantize_weights(item: IntegerNode, node: Node, scale_in: float, method: WeightMethod) -> IntegerNode:
    assert node.weight is not None and node.bias is not None
    weight = node.weight.numpy()
    if not np.isfinite(weight).all():
        raise InputError(f"layer {node.name} has NaN or infinite weights", hint="check the weights file")
    scale = weight_scales(weight, method).astype(np.float32)
    shape = (-1, *[1] * (weight.ndim - 1))
    codes = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    unit = (np.float32(scale_in) * scale).astype(np.float64)
    bias = np.clip(np.rint(node.bias.numpy().astype(np.float64) / unit), -(2**30), 2**30)
    # ExecuTorch stores the bias as float32 and rounds it back: keep the integer that survives the trip.
    bias = np.rint((bias * unit).astype(np.float32).astype(np.float64) / unit)
    return replace(item, weight=codes, weight_scale=scale, bias=bias.astype(np.int32))


def _check_leaky(node: Node, before: Affine, after: Affine) -> None:
    """XNNPACK's int8 kernel holds both slopes in 8.8 fixed point."""
    ratio = before.scale / after.scale
    if not 2**-8 <= ratio * node.attrs["slope"] <= ratio <= 2**7:
        raise InputError(
            f"leaky ReLU {node.name}: slope {node.attrs['slope']} at scales {before.scale:.3g} -> "
            f"{after.scale:.3g} is outside the int8 kernel's range",
            hint="a slope of 1/256 or more is needed; plain ReLU is the alternative",
        )
