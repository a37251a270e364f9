"""TFLite's float operations as Keras's layers: both have channels last, and are built with channels first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor as Numbers
from torch import nn

from paredown.pipeline.recipe.imports.keras.file import Place
from paredown.pipeline.recipe.imports.keras.layers import convolutions, merges, moves, pools
from paredown.pipeline.recipe.imports.keras.layers.activations import activated, parametric
from paredown.pipeline.recipe.imports.keras.maker import Layer, LayerNode, Maker, Value
from paredown.pipeline.recipe.imports.keras.tflite.file import Graph, Operation
from paredown.targets.errors import InputError

FUSED = {"NONE": None, "RELU": "relu", "RELU6": "relu6", "TANH": "tanh"}
UNARY: Mapping[str, Callable[[], nn.Module]] = {
    "RELU": nn.ReLU, "RELU6": nn.ReLU6, "LOGISTIC": nn.Sigmoid, "TANH": nn.Tanh, "ELU": nn.ELU,
    "HARD_SWISH": nn.Hardswish,
}  # fmt: skip
FUNCTIONS: Mapping[str, Callable[[Numbers], Numbers]] = {
    "ABS": torch.abs, "EXP": torch.exp, "LOG": torch.log, "SQRT": torch.sqrt, "RSQRT": torch.rsqrt,
    "SQUARE": torch.square, "NEG": torch.neg, "FLOOR": torch.floor, "SIN": torch.sin, "COS": torch.cos,
}  # fmt: skip
BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "ADD": torch.add, "SUB": torch.sub, "MUL": torch.mul, "DIV": torch.div, "MAXIMUM": torch.maximum,
    "MINIMUM": torch.minimum,
}  # fmt: skip
REDUCED: Mapping[str, Callable[..., Any]] = {"MEAN": torch.mean, "SUM": torch.sum, "REDUCE_MAX": torch.amax}


class Constants:
    """The constants of a file, as Keras's layers ask for their weights."""

    def __init__(self) -> None:
        self._of: dict[Place, dict[str, Numbers]] = {}

    def put(self, place: Place, **roles: Numbers | None) -> None:
        """Makes the weights of a layer known."""
        self._of[place] = {role: value for role, value in roles.items() if value is not None}

    def of(self, place: Place, roles: tuple[str, ...], inner: str = "") -> dict[str, Numbers]:
        """The weights of a layer."""
        return self._of.get(place, {})


@dataclass(frozen=True, eq=False)
class At:
    """One operation at work.

    Attributes:
        m: builds.
        graph: the file.
        op: the operation.
        name: of its layer.
        values: of its inputs that depend on the network's input, None of the others, in order.
        constants: of the others.
        held: where weights are put for the layers.
    """

    m: Maker
    graph: Graph
    op: Operation
    name: str
    values: tuple[Value | None, ...]
    constants: tuple[Numbers | None, ...]
    held: Constants

    @property
    def x(self) -> Value:
        """The first input, which depends on the network's."""
        if not self.values or self.values[0] is None:
            raise self.error("its first input is a constant")
        return self.values[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first output, as the file has it."""
        return self.graph.tensors[self.op.outputs[0]].shape

    def error(self, what: str, hint: str | None = None) -> InputError:
        """The error that this operation cannot be imported."""
        return LayerNode(self.name, self.op.kind, (), ()).error(what, hint)

    def constant(self, index: int, what: str) -> Numbers:
        """An input that must be a constant."""
        found = self.constants[index] if index < len(self.constants) else None
        if found is None:
            raise self.error(f"its {what} is not a constant")
        return found

    def layer(self, kind: str, **config: Any) -> Layer:
        """A layer of Keras in the place of this operation, with its fused activation."""
        fused = getattr(self.op.options, "fusedActivationFunction", None)
        if fused is not None and "activation" not in config:
            name = self.graph.enums["activation"].get(fused, str(fused))
            if name not in FUSED:
                raise self.error(f"its activation is {name}", f"known are {', '.join(FUSED)}")
            config["activation"] = FUSED[name]
        return Layer(LayerNode(self.name, kind, (), ()), config, Place((self.name,), self.name))

    def windows(self, **more: Any) -> dict[str, Any]:
        """Strides and padding as Keras has them."""
        o = self.op.options
        padding = self.graph.enums["padding"].get(o.padding, str(o.padding)).lower()
        return {"strides": [o.strideH, o.strideW], "padding": padding, **more}


def conv(at: At) -> Value:
    """CONV_2D, with groups."""
    weight = at.constant(1, "kernel")  # (out, kh, kw, in / groups)
    o, channels = at.op.options, at.x.shape[-1]
    if weight.dim() != 4 or channels % weight.shape[3]:
        raise at.error(f"its kernel {tuple(weight.shape)} does not fit its input {at.x.shape}")
    layer = at.layer("Conv2D", **at.windows(
        dilation_rate=[o.dilationHFactor, o.dilationWFactor], use_bias=_bias(at, 2) is not None,
        groups=channels // int(weight.shape[3]),
    ))  # fmt: skip
    at.held.put(layer.place, kernel=weight.permute(1, 2, 3, 0), bias=_bias(at, 2))
    return convolutions.conv(at.m, layer, at.x)


def depthwise(at: At) -> Value:
    """DEPTHWISE_CONV_2D."""
    weight, o, channels = at.constant(1, "kernel"), at.op.options, at.x.shape[-1]  # (1, kh, kw, out)
    if weight.dim() != 4 or weight.shape[3] % channels:
        raise at.error(f"its kernel {tuple(weight.shape)} does not fit its input {at.x.shape}")
    layer = at.layer("DepthwiseConv2D", **at.windows(
        dilation_rate=[o.dilationHFactor, o.dilationWFactor], use_bias=_bias(at, 2) is not None
    ))  # fmt: skip
    kernel = weight[0].reshape(*weight.shape[1:3], channels, -1)
    at.held.put(layer.place, depthwise_kernel=kernel, bias=_bias(at, 2))
    return convolutions.depthwise(at.m, layer, at.x)


def transposed(at: At) -> Value:
    """TRANSPOSE_CONV."""
    weight, x = at.constant(1, "kernel"), at.values[2]  # (out, kh, kw, in)
    if x is None:
        raise at.error("its input is a constant")
    layer = at.layer("Conv2DTranspose", **at.windows(use_bias=_bias(at, 3) is not None))
    at.held.put(layer.place, kernel=weight.permute(1, 2, 0, 3), bias=_bias(at, 3))
    made = convolutions.transposed(at.m, layer, x)
    if made.shape != at.shape:
        raise at.error(f"makes {at.shape}, and Keras's layer {made.shape}", "export ONNX instead")
    return made


def _bias(at: At, index: int) -> Numbers | None:
    return at.constants[index] if index < len(at.constants) else None


def dense(at: At) -> Value:
    """FULLY_CONNECTED: what it reads is flat, unless it keeps its axes."""
    weight, x = at.constant(1, "weights"), at.x
    layer = at.layer("Dense", use_bias=_bias(at, 2) is not None)
    if x.rank != 2 and not at.op.options.keepNumDims:
        x = moves.reshape(at.m, replaced(layer, "flat", target_shape=[int(weight.shape[1])]), x)
    at.held.put(layer.place, kernel=weight.t(), bias=_bias(at, 2))
    return convolutions.dense(at.m, layer, x)


def replaced(layer: Layer, name: str, **config: Any) -> Layer:
    """A step within a layer, with a configuration of its own."""
    named = layer.named(name)
    return Layer(named.node, config, layer.place)


def pool(at: At) -> Value:
    """MAX_POOL_2D and AVERAGE_POOL_2D; of a whole map it is a mean or a maximum."""
    o = at.op.options
    kind = "Max" if at.op.kind.startswith("MAX") else "Average"
    layer = at.layer(f"{kind}Pooling2D", **at.windows(pool_size=[o.filterHeight, o.filterWidth]))
    if (o.filterHeight, o.filterWidth) == at.x.shape[1:3] and at.shape[1:3] == (1, 1):
        made = pools.global_pool(at.m, Layer(layer.node, {"keepdims": True}, layer.place), at.x)
    else:
        made = pools.pool(at.m, layer, at.x)
    return activated(at.m, layer, made)


def reduced(at: At) -> Value:
    """MEAN and the like along some axes."""
    x = at.m.plain(at.layer(at.op.kind), at.x)
    axes = sorted({int(axis) % x.rank for axis in at.constant(1, "axes").reshape(-1).tolist()})
    keep = bool(at.op.options.keepDims)
    places = tuple(sorted(x.order.index(axis) for axis in axes))
    order = x.order
    if not keep:
        left = sorted(set(range(x.rank)) - set(axes))
        order = tuple(left.index(axis) for axis in x.order if axis in left)
    return at.m.call(at.layer(at.op.kind), REDUCED[at.op.kind], x, x, places, keep, order=order)


def reshaped(at: At) -> Value:
    """RESHAPE, SQUEEZE, EXPAND_DIMS: the shape is in the file."""
    if not at.shape or at.shape[0] != 1:
        raise at.error(f"makes {at.shape}, without a batch of 1", "export the model with a batch of 1")
    return moves.reshape(at.m, at.layer("Reshape", target_shape=list(at.shape[1:])), at.x)


def transpose(at: At) -> Value:
    """TRANSPOSE; the batch stays."""
    places = [int(axis) for axis in at.constant(1, "order").reshape(-1).tolist()]
    if places[:1] != [0]:
        raise at.error(f"turns {places}: the batch does not stay first")
    return moves.permute(at.m, at.layer("Permute", dims=places[1:]), at.x)


def padded(at: At) -> Value:
    """PAD with zeros around a map."""
    around = at.constant(1, "padding").tolist()
    if at.x.rank == 4 and around[0] == around[3] == [0, 0]:
        layer = at.layer("ZeroPadding2D", padding=[around[1], around[2]])
        return moves.zero_padding(at.m, layer, at.x)
    x = at.m.plain(at.layer("Pad"), at.x)
    sides = [side for axis in reversed(x.order) for side in around[axis]]
    return at.m.call(at.layer("Pad"), F.pad, x, x, sides)


def unary(at: At) -> Value:
    """An activation of its own."""
    layer = at.layer(at.op.kind)
    if at.op.kind in UNARY:
        return at.m.module(layer, UNARY[at.op.kind](), at.x)
    return at.m.call(layer, FUNCTIONS[at.op.kind], at.x, at.x)


def leaky(at: At) -> Value:
    """LEAKY_RELU."""
    return at.m.module(at.layer("LeakyReLU"), nn.LeakyReLU(float(at.op.options.alpha)), at.x)


def gelu(at: At) -> Value:
    """GELU, exact or by tanh."""
    return at.m.module(at.layer("Gelu"), nn.GELU("tanh" if at.op.options.approximate else "none"), at.x)


def prelu(at: At) -> Value:
    """PRELU: a slope for each channel, or for each number."""
    layer = at.layer("PReLU")
    x = at.m.plain(layer, at.x)
    slopes = _spread(at, x, at.constant(1, "slopes"))
    if x.rank > 1 and slopes.numel() == slopes.shape[1]:
        made = nn.PReLU(slopes.numel())
        made.weight = at.m.parameter(layer, "alpha", slopes.reshape(-1))
        return at.m.module(layer, made, x)
    return at.m.call(layer, parametric, x, x, at.m.parameter(layer, "alpha", slopes))


def softmax(at: At) -> Value:
    """SOFTMAX along the last axis."""
    if float(at.op.options.beta) != 1:
        raise at.error(f"its beta is {at.op.options.beta}", "known is 1")
    place = at.m.axis(at.layer("Softmax"), at.x, -1)
    return at.m.module(at.layer("Softmax"), nn.Softmax(place if place < at.x.rank - 1 else -1), at.x)


def _spread(at: At, x: Value, constant: Numbers) -> Numbers:
    """A constant in the order of a value's axes."""
    if constant.dim() > x.rank:
        raise at.error(f"its constant is {tuple(constant.shape)}, and its input {x.shape}")
    full = constant.reshape(*[1] * (x.rank - constant.dim()), *constant.shape)
    return full.permute(x.order).contiguous()


def binary(at: At) -> Value:
    """Value by value, of two values or of a value and a constant."""
    function, layer = BINARY[at.op.kind], at.layer(at.op.kind.capitalize())
    found = [value for value in at.values if value is not None]
    if len(found) == 2:
        x, y = merges._alike(at.m, layer, (found[0], found[1]))
        wide = x if x.live.fake.numel() >= y.live.fake.numel() else y
        return activated(at.m, layer, at.m.call(layer, function, wide, x, y))
    x = at.m.plain(layer, found[0])
    first = at.values[0] is not None
    constant = _spread(at, x, at.constant(1 if first else 0, "operand"))
    if constant.numel() > 1 and x.live.fake.numel() < constant.numel():
        raise at.error(f"spreads {x.shape} over a constant {tuple(constant.shape)}")
    if first:
        made = at.m.call(layer, function, x, x, constant)
    else:
        made = at.m.call(layer, swapped, x, x, constant, function)
    return activated(at.m, layer, made)


def swapped(y: Numbers, x: Numbers, function: Callable[[Any, Any], Any]) -> Any:
    """A function of a constant and a value."""
    return function(x, y)


def concatenated(at: At) -> Value:
    """CONCATENATION."""
    if any(value is None for value in at.values):
        raise at.error("one of its inputs is a constant")
    layer = at.layer("Concatenate", axis=int(at.op.options.axis))
    made = merges.concatenate(at.m, layer, *(value for value in at.values if value is not None))
    return activated(at.m, layer, made)


def resized(at: At) -> Value:
    """RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR, as torch places the pixels."""
    layer, o = at.layer("Resizing"), at.op.options
    x, size = at.m.channels(layer, at.x), tuple(at.shape[1:3])
    before = tuple(int(n) for n in x.live.fake.shape[2:])
    whole = all(new % old == 0 for new, old in zip(size, before, strict=True))
    if at.op.kind == "RESIZE_BILINEAR":
        if not o.halfPixelCenters and not o.alignCorners:
            raise at.error("places its pixels as TensorFlow 1 did", "export it with half_pixel_centers")
        corners = bool(o.alignCorners)
        return at.m.call(layer, F.interpolate, x, x, size=size, mode="bilinear", align_corners=corners)
    if o.alignCorners or not (o.halfPixelCenters or whole):
        raise at.error("places its pixels otherwise than torch", "export it with half_pixel_centers")
    mode = "nearest-exact" if o.halfPixelCenters and not whole else "nearest"
    return at.m.call(layer, F.interpolate, x, x, size=size, mode=mode)


def sliced(at: At) -> Value:
    """SLICE and STRIDED_SLICE with steps of 1, along axes that stay."""
    x, layer = at.m.plain(at.layer("Slice"), at.x), at.layer("Slice")
    starts = [int(n) for n in at.constant(1, "begin").reshape(-1).tolist()]
    o = at.op.options
    if at.op.kind == "STRIDED_SLICE":
        steps = at.constant(3, "strides").reshape(-1).tolist()
        if set(steps) != {1} or o.shrinkAxisMask or o.newAxisMask or o.ellipsisMask:
            raise at.error("its steps are not 1, or axes come or go")
        starts = [0 if o.beginMask >> axis & 1 else start for axis, start in enumerate(starts)]
    for axis, start in enumerate(starts):
        size = x.shape[axis]
        start = start + size if start < 0 else start
        if (start, at.shape[axis]) != (0, size):
            named = layer if axis == len(starts) - 1 else layer.named(f"axis{axis}")
            x = at.m.call(named, torch.narrow, x, x, x.order.index(axis), start, at.shape[axis])
    return x


def same(at: At) -> Value:
    """What changes nothing."""
    return at.x


#: TFLite's name of an operation -> what builds it; see `builder` for families.
OPERATIONS: Mapping[str, Callable[[At], Value]] = {
    "CONV_2D": conv, "DEPTHWISE_CONV_2D": depthwise, "TRANSPOSE_CONV": transposed, "FULLY_CONNECTED": dense,
    "MAX_POOL_2D": pool, "AVERAGE_POOL_2D": pool, "RESHAPE": reshaped, "SQUEEZE": reshaped,
    "EXPAND_DIMS": reshaped, "TRANSPOSE": transpose, "PAD": padded, "LEAKY_RELU": leaky, "GELU": gelu,
    "PRELU": prelu, "SOFTMAX": softmax, "CONCATENATION": concatenated, "RESIZE_BILINEAR": resized,
    "RESIZE_NEAREST_NEIGHBOR": resized, "SLICE": sliced, "STRIDED_SLICE": sliced, "IDENTITY": same,
    "QUANTIZE": same, "DEQUANTIZE": same,
}  # fmt: skip


def builder(kind: str) -> Callable[[At], Value] | None:
    """What builds an operation; None of one that is not known."""
    families = ((UNARY, unary), (FUNCTIONS, unary), (BINARY, binary), (REDUCED, reduced))
    found = next((build for names, build in families if kind in names), None)
    return found or OPERATIONS.get(kind)


def names_of(graph: Graph) -> Sequence[str]:
    """A name for the layer of each operation: the first word of what it makes, as converters write it."""
    found = []
    for number, op in enumerate(graph.operations):
        text = graph.tensors[op.outputs[0]].name if op.outputs else ""
        found.append(text.partition(";")[0].strip("/") or f"operation{number}")
    return found
