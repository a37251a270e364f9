"""What a `.tflite` of codes becomes while it is read: nodes of an integer graph, and which tensor is which.

Tensors of four axes are (1, height, width, channels) in the file and (1, channels, height, width) here; all
others have the file's own axes. Codes of uint8 are int8 here, each 128 less, and so are their zero points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.graph.operations.operation import QMAX, QMIN
from paredown.pipeline.lower.integer import Affine, IntegerNode
from paredown.pipeline.recipe.imports.keras.tflite.file import BYTES, Graph, Operation, Tensor
from paredown.targets.errors import InputError

MOST_VALUES = 1 << 28  # of a tensor
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


def ours(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a tensor of the file, as it is here."""
    return tuple(shape[axis] for axis in TO_NCHW) if len(shape) == 4 else tuple(shape)


@dataclass(eq=False)
class Reading:
    """A file that is being read.

    Attributes:
        file: of it.
        nodes: that were made, by name.
        held: name of the node that holds a tensor, by the tensor's place.
    """

    file: Graph
    nodes: dict[str, IntegerNode] = field(default_factory=dict)
    held: dict[int, str] = field(default_factory=dict)

    def affine(self, place: int) -> Affine:
        """Scale and zero point of a tensor.

        Raises:
            InputError: it has none, or several; or its values are no codes of eight bits.
        """
        tensor = self.file.tensors[place]
        if tensor.kind not in BYTES:
            raise InputError(f"its tensor {tensor.name} is {tensor.kind.lower()}, not int8 or uint8")
        if len(tensor.scales) != 1 or len(tensor.zero_points) != 1:
            raise InputError(f"its tensor {tensor.name} has {len(tensor.scales)} scales, not one")
        scale, zero = float(np.float32(tensor.scales[0])), tensor.zero_points[0] - BYTES[tensor.kind]
        if not (0 < scale < math.inf and QMIN <= zero <= QMAX):
            raise InputError(f"its tensor {tensor.name} has the scale {scale:g} and the zero point {zero}")
        return Affine(scale, zero)

    def take(self, place: int) -> None:
        """Makes the node of the network's input."""
        shape = ours(bounded(self.file.tensors[place].shape))
        self.nodes["input"] = IntegerNode("input", "input", (), shape, self.affine(place))
        self.held[place] = "input"


@dataclass(frozen=True, eq=False)
class At:
    """One operation at work.

    Attributes:
        reading: of its file.
        op: the operation.
        name: of its node.
    """

    reading: Reading
    op: Operation
    name: str

    @property
    def options(self) -> Any:
        """Those of its kind, as the schema's classes have them."""
        return self.op.options

    def tensor(self, index: int) -> Tensor | None:
        """An input as the file has it; None where it is left out."""
        places = self.op.inputs
        there = index < len(places) and places[index] >= 0
        return self.reading.file.tensors[places[index]] if there else None

    def value(self, index: int, what: str) -> NDArray[Any]:
        """The values of an input that must be a constant."""
        tensor = self.tensor(index)
        if tensor is None or tensor.value is None:
            raise InputError(f"its {what} is not a constant")
        return tensor.value

    def depends(self, index: int) -> bool:
        """Whether an input is made by the network."""
        return self.op.inputs[index] in self.reading.held

    def feed(self, index: int = 0) -> IntegerNode:
        """The node that an input is."""
        place = self.op.inputs[index] if index < len(self.op.inputs) else -1
        if place not in self.reading.held:
            raise InputError(f"its input {index} is a constant, or comes from nowhere")
        return self.reading.nodes[self.reading.held[place]]

    @property
    def out(self) -> Affine:
        """Scale and zero point of its output."""
        return self.reading.affine(self.op.outputs[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its output, in the file."""
        return bounded(self.reading.file.tensors[self.op.outputs[0]].shape)

    def clamp(self) -> tuple[int, int]:
        """The least and the largest code, by its fused activation."""
        number = getattr(self.options, "fusedActivationFunction", 0)
        name = self.reading.file.enums["activation"].get(number, str(number))
        if name not in ("NONE", "RELU", "RELU6"):
            raise InputError(f"its activation is {name}; known are RELU and RELU6")
        return limits(name, self.out)

    def same(self, feed: IntegerNode) -> None:
        """Checks that the output has the codes of an input.

        Raises:
            InputError: it has another scale.
        """
        if self.out != feed.out:
            raise InputError("its output has another scale than its input")

    def add(
        self, kind: str, feeds: Sequence[IntegerNode], shape: Sequence[int], *, word: str = "",
        out: Affine | None = None, **fields: Any,
    ) -> IntegerNode:  # fmt: skip
        """Makes a node.

        Args:
            kind: of it.
            feeds: what it reads.
            shape: of what it makes, here.
            word: ends its name; without one it is the operation's own.
            out: of its codes; None = the output's.
            **fields: of `IntegerNode`.
        """
        bounded(shape)
        name = f"{self.name}.{word}" if word else self.name
        node = IntegerNode(
            name, kind, tuple(feed.name for feed in feeds), tuple(shape), out or self.out, **fields
        )
        self.reading.nodes[name] = node
        return node

    def plain(self, feed: IntegerNode) -> IntegerNode:
        """A map with its axes as the file has them, which is what a reshape reads."""
        if len(feed.shape) != 4 or math.prod(feed.shape[2:]) == 1 or feed.shape[1] == 1:
            return feed
        shape = [feed.shape[axis] for axis in TO_NHWC]
        return self.add("permute", [feed], shape, word="plain", out=feed.out, attrs={"dims": TO_NHWC})

    def formed(
        self, feed: IntegerNode, shape: Sequence[int], word: str = "", before: str = ""
    ) -> IntegerNode:
        """The same values in another shape of the file.

        Args:
            feed: what is reshaped.
            shape: in the file.
            word: ends the name of the last node.
            before: begins the word of the others.
        """
        wanted = ours(shape)
        if math.prod(shape) != math.prod(feed.shape):
            raise InputError(f"makes {tuple(shape)} of {feed.shape}")
        if feed.shape == wanted and not word:
            return self.add("reshape", [feed], wanted, out=feed.out, attrs={"shape": wanted})
        if feed.shape == wanted:
            return feed
        flat = self.plain(feed)
        if len(shape) != 4 or math.prod(shape[1:3]) == 1 or shape[3] == 1:
            return self.add("reshape", [flat], wanted, out=feed.out, attrs={"shape": wanted}, word=word)
        rows = self.add(
            "reshape", [flat], shape, out=feed.out, attrs={"shape": tuple(shape)}, word=f"{before}rows"
        )
        return self.add("permute", [rows], wanted, out=feed.out, attrs={"dims": TO_NCHW}, word=word)


def bounded(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape as it is.

    Raises:
        InputError: it has no values, or too many.
    """
    if min(shape, default=1) < 1 or math.prod(shape) > MOST_VALUES:
        raise InputError(f"has a tensor of {tuple(shape)}")
    return tuple(shape)


def limits(name: str, out: Affine) -> tuple[int, int]:
    """The least and the largest code of an activation, which is NONE, RELU or RELU6."""
    if name == "NONE":
        return QMIN, QMAX
    top = round(6 / out.scale) + out.zero_point if name == "RELU6" else QMAX
    return max(QMIN, out.zero_point), max(min(QMAX, top), out.zero_point)
