"""The integer graph: int8 weights, int32 biases, a scale per tensor, and the one place that knows the rules.

Both runtimes are lowered from it and the reference interpreter executes it, so that what is checked here is
what runs there. The rules, all forced by kernels that exist:

* activations are int8, affine, one scale per tensor; weights int8, symmetric, one scale per output channel;
* an operation that only moves or selects values keeps its input's scale; the inputs of a concatenation share
  one scale with its output, so that concatenating is a copy;
* ReLU and ReLU6 become the output clamp of the operation that feeds them;
* a bias is an integer multiple of input scale x weight scale, and survives a trip through float32;
* scales that a kernel cannot bring together are widened until it can: `Operation.widen`;
* weights that were trained as whole numbers keep them, and their scale;
* an activation of fewer than 256 levels takes the uppermost codes: a ReLU cuts below, or a node before it
  that takes the lowest ones (`FakeQuantize`); int8 itself cuts above.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paredown.calibration.observers import activation_qparams, weight_scales
from paredown.pipeline.graph.alike import distinct, get, put
from paredown.pipeline.graph.fusion import fuse_relu, same_scale, scales_apart
from paredown.pipeline.graph.graph import Graph, Node, numbered, tuples
from paredown.pipeline.graph.operations.kinds import operation, written
from paredown.pipeline.graph.operations.moving.slice import attrs_of
from paredown.pipeline.graph.operations.operation import QMAX, QMIN
from paredown.targets.errors import InputError
from paredown.targets.runners.expand import (
    holds_int4,
)

WeightMethod = Literal["minmax", "mse"]
#: Attributes that mean nothing once there are codes.
FLOAT_ATTRS = frozenset({"value", "bn_eps", "step", "levels", "fed", "axes"})
#: So far below all others a value is nothing behind a softmax: e to the -12 of them.
NOTHING = 12.0
#: A bias beyond this would leave the accumulator no room.
LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class Affine:
    """real = (code - zero_point) * scale; the scale is a float32 value."""

    scale: float
    zero_point: int

    def quantize(self, real: NDArray[np.float32]) -> NDArray[np.int8]:
        """Rounds half to even and clamps: the very codes that `Preprocess.quantized` gives on the device."""
        codes = np.rint(real.astype(np.float64) / self.scale) + self.zero_point
        return np.clip(codes, QMIN, QMAX).astype(np.int8)

    def dequantize(self, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """Codes back to real values."""
        return (codes.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


@dataclass(frozen=True, eq=False)
class IntegerNode:
    """One operation on int8 tensors; kinds and attributes as in `pipeline.graph.graph.Node`.

    Attributes:
        name: of the operation and of its output tensor.
        kind: one of `pipeline.graph.operations.kinds.KINDS`.
        inputs: names of the nodes it reads.
        shape: of the output, batch of one.
        out: scale and zero point of the output.
        low: smallest code it may return (a fused ReLU raises it to the zero point).
        high: largest code it may return.
        attrs: as in the traced graph.
        weight: int8, (out, in / groups, kh, kw) or (out, in).
        weight_scale: float32, (out,).
        bias: int32, (out,), in units of input scale x weight scale.
        value: of a "constant" node: its codes, the batch of one first.
        constants: of an island, as in the traced graph.
        int4: whether the program is to hold the weight in four bits per code, all of them from -8 to 7.
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
    int4: bool = False
    value: NDArray[np.int8] | None = None
    constants: tuple[NDArray[Any], ...] = ()

    @property
    def never_negative(self) -> bool:
        """Whether zero is the least that it makes."""
        return self.low >= self.out.zero_point


@dataclass(frozen=True, eq=False)
class IntegerGraph:
    """Integer nodes in running order, the first being the only input, and the names of the outputs."""

    nodes: tuple[IntegerNode, ...]
    outputs: tuple[str, ...]

    def __iter__(self) -> Iterator[IntegerNode]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> IntegerNode:
        return self._named[name]

    @cached_property
    def _named(self) -> dict[str, IntegerNode]:
        return {node.name: node for node in self.nodes}

    @property
    def input(self) -> IntegerNode:
        """The node that stands for the network's input."""
        return self.nodes[0]

    @property
    def written(self) -> IntegerGraph:
        """The graph as programs hold it: see `Operation.written`."""
        return IntegerGraph(written(self.nodes), self.outputs)

    @property
    def weights(self) -> list[NDArray[np.int8]]:
        """The codes of every layer, in running order; those that steps share once."""
        return [node.weight for node in distinct(self.nodes)]

    @property
    def layer_parameters(self) -> list[Parameters]:
        """What programs hold of every layer beside its codes, in running order."""
        out = {node.name: node.out.scale for node in self.nodes}
        return [
            Parameters(node.weight_scale, out[node.inputs[0]], node.bias) for node in distinct(self.nodes)
        ]

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
                held = {"weight": node.weight, "weight_scale": node.weight_scale, "bias": node.bias}
                for role, array in held.items():
                    put(arrays, node.name, node.attrs, role, array)
            if node.value is not None:
                arrays[f"{node.name}:value"] = node.value
            arrays |= {f"{node.name}:constant{index}": each for index, each in enumerate(node.constants)}
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
                    get(arrays, name, attrs, "weight"), get(arrays, name, attrs, "weight_scale"),
                    get(arrays, name, attrs, "bias"), value=arrays.get(f"{name}:value"),
                    constants=tuple(numbered(arrays, name)),
                )
            )  # fmt: skip
        return IntegerGraph(tuple(nodes), tuple(data["outputs"]))


def alone(node: IntegerNode, feeds: Sequence[IntegerNode]) -> IntegerGraph:
    """A graph of one island: its inputs are cut from one tensor."""
    names = list(dict.fromkeys(node.inputs))
    known = {feed.name: feed for feed in feeds}
    if len(names) == 1:
        start = IntegerNode("input", "input", (), known[names[0]].shape, known[names[0]].out)
        inputs = tuple("input" for _ in node.inputs)
        return IntegerGraph((start, replace(node, inputs=inputs)), (node.name,))
    sizes = [prod(known[name].shape) for name in names]
    start = IntegerNode("input", "input", (), (1, sum(sizes)), known[names[0]].out)
    nodes, at = [start], 0
    for name, size in zip(names, sizes, strict=True):
        feed = known[name]
        attrs = attrs_of({1: range(at, at + size)})
        part = IntegerNode(f"{name}.part", "slice", ("input",), (1, size), start.out, attrs=attrs)
        form = {"shape": feed.shape}
        nodes += [part, IntegerNode(name, "reshape", (part.name,), feed.shape, start.out, attrs=form)]
        at += size
    return IntegerGraph((*nodes, node), (node.name,))


def beyond(graph: IntegerGraph, most: int) -> tuple[str, ...]:
    """Names of the layers that programs hold with weight codes beyond this."""
    return tuple(
        node.name
        for node in graph.written
        if node.weight is not None and int(np.abs(node.weight.astype(np.int16)).max(initial=0)) > most
    )


def in_int4(graph: IntegerGraph, kinds: Collection[str]) -> IntegerGraph:
    """Marks the layers of these kinds whose codes fit for four bits in the program.

    Layers with an odd number of inputs stay: a byte of theirs would reach over two rows.
    """

    def fits(node: IntegerNode) -> bool:
        weight = node.weight
        return weight is not None and weight.shape[1] % 2 == 0 and holds_int4(weight)

    nodes = (replace(node, int4=node.kind in kinds and fits(node)) for node in graph)
    return IntegerGraph(tuple(nodes), graph.outputs)


def quantize(
    graph: Graph,
    ranges: Mapping[str, tuple[float, float]],
    *,
    input_range: tuple[float, float],
    weights: WeightMethod = "minmax",
    most: int = QMAX,
) -> IntegerGraph:
    """Turns the traced float graph into the integer graph.

    Args:
        graph: traced, BN folded.
        ranges: (low, high) of every tensor, from a calibration run.
        input_range: what preprocessing can produce at all; it, not the sample, sets the input's scale, so
            that an 8-bit image enters without loss.
        weights: how a channel's weight scale is chosen, "minmax" or "mse".
        most: the largest weight code.

    Raises:
        InputError: a tensor without a range, NaN weights or biases, scales that no kernel brings together, or
            trained codes beyond `most`.
    """
    nodes = fuse_relu(graph)
    weight_scale = {node.name: scales_of(node, weights, most) for node, _ in nodes if node.weight is not None}
    affine = tensor_scales(nodes, ranges, input_range, weight_scale)
    result: dict[str, IntegerNode] = {}
    for node, clamp in nodes:
        out = affine[node.name]
        low, high = operation(clamp).limits(out) if clamp else (QMIN, QMAX)
        attrs = {k: v for k, v in node.attrs.items() if k not in FLOAT_ATTRS}
        item = IntegerNode(node.name, node.kind, node.inputs, node.shape, out, low, high, attrs)
        if node.weight is not None and node.bias is not None:
            scale_in = result[node.inputs[0]].out.scale
            item = _quantize_weights(item, node, scale_in, weight_scale[node.name], most)
        if node.value is not None:
            item = replace(item, value=out.quantize(node.value.numpy()))
        if node.constants:
            item = replace(item, constants=tuple(each.numpy() for each in node.constants))
        result[node.name] = item
    return IntegerGraph(tuple(result.values()), graph.outputs)


def _without_masked(
    nodes: Sequence[Node], ranges: Mapping[str, tuple[float, float]]
) -> Mapping[str, tuple[float, float]]:
    """The ranges without the large negative numbers by which a mask leaves places out of a softmax.

    With them the scores beside would have a few codes. Saturated, such a place is as good as left out.
    """
    found, named = dict(ranges), {node.name: node for node in nodes}
    for total in nodes:
        readers = [node for node in nodes if total.name in node.inputs]
        if total.kind != "add" or not readers or not all(operation(n.kind).ignores_low for n in readers):
            continue
        for scores, mask in (total.inputs, total.inputs[::-1]):
            value = named[mask].value
            if value is None or value.min() > -NOTHING or not {scores, total.name} <= ranges.keys():
                continue
            added = value[value > -NOTHING].clamp(max=0).min() if bool((value > -NOTHING).any()) else 0
            low, high = ranges[total.name]
            found[total.name] = (max(low, ranges[scores][0] + float(added) - NOTHING), high)
    return found


def tensor_scales(
    nodes: list[tuple[Node, str]],
    ranges: Mapping[str, tuple[float, float]],
    input_range: tuple[float, float],
    weight_scale: Mapping[str, NDArray[np.float32]],
) -> dict[str, Affine]:
    """One scale per set of tensors that must share it, from the union of their ranges."""
    plain = [node for node, _ in nodes]
    ranges = _without_masked(plain, ranges)
    find = same_scale(plain, scales_apart(plain, {**ranges, plain[0].name: input_range}))
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
    prescribed: set[str] = set()
    roots = {root: Affine(*activation_qparams(low[root], high[root])) for root in low}
    for node, _ in nodes:
        fixed = operation(node.kind).fixed(node)
        if fixed is not None:
            roots[find(node.name)] = Affine(*fixed)
            prescribed.add(find(node.name))
        if "levels" in node.attrs:
            step = float(np.float32(node.attrs["step"]))
            roots[find(node.name)] = Affine(step, QMAX - node.attrs["levels"] + node.attrs.get("offset", 0))
    for node in plain:
        wanted = operation(node.kind).feed_at(node)
        if wanted is not None and find(node.inputs[0]) not in prescribed:
            roots[find(node.inputs[0])] = Affine(*wanted)
    _within_limits(plain, Scales(roots, find, weight_scale, prescribed))
    return {node.name: roots[find(node.name)] for node, _ in nodes}


class Scales:
    """The scales of tensors and weights, while those of the tensors are widened, but for prescribed ones.

    Attributes:
        changed: whether one was widened.
    """

    def __init__(
        self,
        roots: dict[str, Affine],
        find: Callable[[str], str],
        weight_scale: Mapping[str, NDArray[np.float32]],
        fixed: Collection[str] = (),
    ) -> None:
        self._fixed = fixed
        self._roots, self._find, self._weight_scale = roots, find, weight_scale
        self.changed = False

    def __getitem__(self, name: str) -> float:
        return self._roots[self._find(name)].scale

    def affine(self, name: str) -> Affine:
        """Scale and zero point of a tensor."""
        return self._roots[self._find(name)]

    def weights(self, name: str) -> float:
        """The largest scale of a layer's weights."""
        return float(self._weight_scale[name].max())

    def widen(self, name: str, least: float) -> None:
        """Makes a tensor's scale at least this, and with it those that share it."""
        root = self._find(name)
        old = self._roots[root]
        if old.scale < least and root not in self._fixed:
            scale = float(np.nextafter(np.float32(least), np.float32(np.inf)))
            self._roots[root] = Affine(scale, old.zero_point)
            self.changed = True


def _within_limits(nodes: list[Node], scales: Scales) -> None:
    """Widens, in place, the scales that are too small for the kernels beside them.

    It meets tensors next to which they are nothing: the output of a layer that a ReLU keeps at zero, one side
    of an addition that is not yet trained. Widening one costs no accuracy that the larger one has.
    """
    for _ in range(len(nodes) + 1):
        scales.changed = False
        for node in nodes:
            operation(node.kind).widen(node, scales)
        if not scales.changed:
            return
    raise InputError("no scales fit this network's ranges and weights", hint="are the weights sane?")


def scales_of(node: Node, method: WeightMethod, most: int = QMAX) -> NDArray[np.float32]:
    """The scales of a layer's weights, (out,): those that were trained, or else chosen by this method."""
    assert node.weight is not None and node.bias is not None
    for what, tensor in (("weights", node.weight), ("biases", node.bias)):
        if not bool(tensor.isfinite().all()):
            raise InputError(f"layer {node.name} has NaN or infinite {what}", hint="check the weights file")
    if node.scale is not None:
        return node.scale.numpy().astype(np.float32)
    return weight_scales(node.weight.numpy(), method, most).astype(np.float32)


def _quantize_weights(
    item: IntegerNode, node: Node, scale_in: float, scale: NDArray[np.float32], most: int
) -> IntegerNode:
    assert node.weight is not None and node.bias is not None
    # Where the weights are nothing beside the bias, a coarser scale keeps the bias within the accumulator.
    least = np.abs(node.bias.numpy().astype(np.float64)) / (LARGEST_BIAS * np.float64(np.float32(scale_in)))
    coarse = np.maximum(scale, least.astype(np.float32))
    weight = node.weight.numpy()
    # Codes that were trained stay what they are, also where they are nothing beside the bias.
    unit = coarse if node.scale is None else scale
    codes = np.rint(weight / unit.reshape(-1, *[1] * (weight.ndim - 1)))
    if node.scale is not None and np.abs(codes).max(initial=0) > most:
        raise InputError(
            f"layer {node.name} was trained to weight codes up to {np.abs(codes).max():.0f}, beyond {most}",
            hint=f"train it with quantize.weight_range = {most}",
        )
    codes, scale = np.clip(codes, -most, most).astype(np.int8), coarse
    bias = integer_bias(node.bias.numpy(), np.float32(scale_in) * scale)
    return replace(item, weight=codes, weight_scale=scale, bias=bias)


def integer_bias(bias: NDArray[np.float32], unit: NDArray[np.float32]) -> NDArray[np.int32]:
    """A float bias in units of input scale x weight scale, exactly as ExecuTorch rounds it when it lowers.

    It takes biases as float32 only; in its float32 arithmetic not every integer beyond 2**21 can be reached.
    """
    return np.rint(bias.astype(np.float32) * (np.float32(1) / unit)).astype(np.int32)


def float_bias(bias: NDArray[np.int32], unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """A float32 bias that `integer_bias` rounds to these integers; the nearest where there is none."""
    best = (bias * unit.astype(np.float64)).astype(np.float32)
    low = high = best
    for _ in range(2):
        low, high = np.nextafter(low, np.float32(-np.inf)), np.nextafter(high, np.float32(np.inf))
        for candidate in (low, high):
            apart = np.abs(integer_bias(best, unit).astype(np.int64) - bias)
            closer = np.abs(integer_bias(candidate, unit).astype(np.int64) - bias) < apart
            best = np.where(closer, candidate, best)
    return best


class Parameters(NamedTuple):
    """What a program holds of a layer beside its codes, and what follows from it."""

    scale: NDArray[np.float32]
    """Of the weights, (out,)."""
    factor: float
    """Scale of the input: times those above it is the scale of the bias, which programs hold too."""
    bias: NDArray[np.int32]
    """(out,)."""
