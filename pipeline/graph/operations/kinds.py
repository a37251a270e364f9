"""The table of operations: adding a kind is a module of its own, and a row here."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from paredown.pipeline.graph.operations.activation.affine import Affine, Clamp, FakeQuantize, Hardsigmoid
from paredown.pipeline.graph.operations.activation.function import Function
from paredown.pipeline.graph.operations.activation.gates import Hardswish, Silu
from paredown.pipeline.graph.operations.activation.island import Island
from paredown.pipeline.graph.operations.activation.leaky_relu import LeakyRelu
from paredown.pipeline.graph.operations.activation.relu import Relu, Relu6
from paredown.pipeline.graph.operations.activation.softmax import LogSoftmax, Softmax
from paredown.pipeline.graph.operations.activation.table import Elu, Gelu, Sigmoid, Tanh
from paredown.pipeline.graph.operations.joining.add import Add, Sub
from paredown.pipeline.graph.operations.joining.concat import Concat
from paredown.pipeline.graph.operations.joining.constant import Constant
from paredown.pipeline.graph.operations.joining.matmul import Matmul
from paredown.pipeline.graph.operations.joining.mul import Mul
from paredown.pipeline.graph.operations.moving.channel_pad import ChannelPad
from paredown.pipeline.graph.operations.moving.identity import Dropout, Identity, Same
from paredown.pipeline.graph.operations.moving.pad import Pad
from paredown.pipeline.graph.operations.moving.permute import Permute
from paredown.pipeline.graph.operations.moving.reshape import Reshape
from paredown.pipeline.graph.operations.moving.resize import Resize
from paredown.pipeline.graph.operations.moving.shuffle import (
    ChannelShuffle,
    PixelShuffle,
    PixelUnshuffle,
    Roll,
)
from paredown.pipeline.graph.operations.moving.slice import GetItem, Slice, Split
from paredown.pipeline.graph.operations.operation import Input, Operation, Traced, Unknown
from paredown.pipeline.graph.operations.pooling.avg_pool2d import AvgPool2d
from paredown.pipeline.graph.operations.pooling.interpolate import Interpolate
from paredown.pipeline.graph.operations.pooling.max_pool2d import MaxPool2d
from paredown.pipeline.graph.operations.pooling.mean import Mean
from paredown.pipeline.graph.operations.pooling.normalize import Normalize
from paredown.pipeline.graph.operations.pooling.reduce import Reduce
from paredown.pipeline.graph.operations.pooling.unit_norm import UnitNorm
from paredown.pipeline.graph.operations.weighted.batch_norm import BatchNorm
from paredown.pipeline.graph.operations.weighted.conv2d import Conv2d
from paredown.pipeline.graph.operations.weighted.conv_transpose2d import ConvTranspose2d
from paredown.pipeline.graph.operations.weighted.linear import Linear
from paredown.pipeline.graph.operations.weighted.prelu import PRelu
from paredown.pipeline.graph.operations.weighted.recurrent import Recurrent

#: Kind -> operation, in the order in which the documentation lists them.
OPERATIONS: Mapping[str, Operation] = {
    "input": Input(),
    "conv2d": Conv2d(),
    "conv_transpose2d": ConvTranspose2d(),
    "linear": Linear(),
    "relu": Relu(),
    "relu6": Relu6(),
    "leaky_relu": LeakyRelu(),
    "prelu": PRelu(),
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "elu": Elu(),
    "gelu": Gelu(),
    "unit_norm": UnitNorm(),
    "hardsigmoid": Hardsigmoid(),
    "clamp": Clamp(),
    "affine": Affine(),
    "softmax": Softmax(),
    "log_softmax": LogSoftmax(),
    "normalize": Normalize(),
    "max_pool2d": MaxPool2d(),
    "add": Add(),
    "sub": Sub(),
    "mul": Mul(),
    "concat": Concat(),
    "matmul": Matmul(),
    "constant": Constant(),
    "mean": Mean(),
    "avg_pool2d": AvgPool2d(),
    "pad": Pad(),
    "reshape": Reshape(),
    "permute": Permute(),
    "slice": Slice(),
    "channel_pad": ChannelPad(),
    "resize": Resize(),
    "interpolate": Interpolate(),
    "function": Function(),
    "island": Island(),
    "fake_quantize": FakeQuantize(),
}
KINDS = tuple(OPERATIONS)
#: What tracing folds into other nodes, or makes several nodes of.
FOLDED: tuple[Traced, ...] = (
    BatchNorm(), Identity(), Same(), Dropout(), PixelShuffle(), PixelUnshuffle(), ChannelShuffle(), Roll(),
    Reduce(), Silu(), Hardswish(), Split(), GetItem(), Recurrent(),
)  # fmt: skip
OPAQUE = Unknown()


def operation(kind: str) -> Operation:
    """The operation of a kind: one of `KINDS`, or "opaque"."""
    return OPAQUE if kind == "opaque" else OPERATIONS[kind]


@functools.cache
def traced(aten: str) -> tuple[Traced, ...]:
    """What can trace an ATen operation of this name, in the order of the table."""
    return tuple(each for each in (*OPERATIONS.values(), *FOLDED) if aten in each.aten)


def written(nodes: Sequence[Any]) -> tuple[Any, ...]:
    """The nodes that programs hold in the place of these: see `Operation.written`."""
    made: dict[str, Any] = {}
    for node in nodes:
        feeds = [made[name] for name in node.inputs]
        made |= {each.name: each for each in operation(node.kind).written(node, feeds)}
    return tuple(made.values())
