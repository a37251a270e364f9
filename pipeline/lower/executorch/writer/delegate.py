"""The integer graph as one call of XNNPACK, written without the exporter.

An operation is computed on codes where XNNPACK has it so and where codes go in and out; else in float32,
between two conversions. Both are what ExecuTorch's partitioner makes of the same operations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.lower.executorch.writer.nodes import VIEWS, Wanted, clamped, write
from paredown.pipeline.lower.executorch.writer.program import FLOAT, INT8, program
from paredown.pipeline.lower.executorch.writer.recorder import (
    NotWritten,
    Recording,
    Step,
    Value,
    record,
    record_float,
)
from paredown.pipeline.lower.executorch.writer.xnnpack import Tensor, XnnGraph
from paredown.pipeline.lower.integer import IntegerGraph

#: What gives the very codes that it reads, if it is computed on codes at all.
_SAME_SCALE = frozenset({
    "max_pool2d_with_indices", "relu", "hardtanh", "cat", "constant_pad_nd", "permute", "slice", *VIEWS,
})  # fmt: skip
_OF_CODES = frozenset(
    {"convolution", "addmm", "add", "sub", "mul", "mean", "leaky_relu", "elu", *_SAME_SCALE}
)
_OF_LAYERS = frozenset({"convolution", "addmm", "mm"})
_CLAMPING = frozenset({"convolution", "addmm", "add", "sub", "mul"})


def written(graph: IntegerGraph) -> bytes:
    """A .pte with all of a graph in one delegate: int8 in, int8 out, NCHW, batch of one.

    Raises:
        NotWritten: it has a part that is not known here.
    """
    return _program(record(graph.written))


def written_float(graph: Graph) -> bytes:
    """The same of a float network: float32 in and out.

    Raises:
        NotWritten: it has a part that is not known here.
    """
    return _program(record_float(graph.written))


def _program(recorded: Recording) -> bytes:
    delegate = _Delegate()
    delegate.take(recorded.source)
    for step in recorded.steps:
        delegate.step(step)
    xnn = delegate.graph
    for value in recorded.outputs:
        xnn.gives(delegate.tensors[value])
    shapes = [value.shape for value in recorded.outputs]
    kind = FLOAT if recorded.source.affine is None else INT8
    return program(xnn.payload(), xnn.named, recorded.source.shape, shapes, kind)


class _Delegate:
    """XNNPACK's graph of what was recorded, while it is written.

    Attributes:
        tensors: of codes and of real values, as far as they are written.
    """

    def __init__(self) -> None:
        self.graph = XnnGraph()
        self.tensors: dict[Value, Tensor] = {}
        self._reals: dict[Tensor, Tensor] = {}  # codes -> the same in float32
        self._layers: dict[object, tuple[int, int]] = {}
        self._fused: set[Step] = set()

    def take(self, value: Value) -> None:
        """Makes a value the input."""
        self.tensors[value] = Tensor(value.shape, value.affine)
        self.graph.takes(self.tensors[value])

    def step(self, step: Step) -> None:
        """Writes what was recorded next."""
        self.graph.node = step.node
        if step.op == "quantize":
            self._quantize(step)
        elif step.op not in {"dequantize", "t"} and step not in self._fused:
            self._operation(step)

    def _operation(self, step: Step) -> None:
        if step.op not in _OF_LAYERS and any(value.layer is not None for value in step.values):
            raise NotWritten(f"{step.op} of a weight")
        values = [value for value in step.values if value.layer is None and not _turned(value)]
        target, clamp = self._target(step, values)
        if target.affine is None:
            reads = [self._real(value) for value in values]
        else:
            reads = [self.tensors[_codes(value)] for value in values]
        if step.op in {"add", "sub", "mul", "div"}:
            numbers = [self._given(each) for each in step.args if isinstance(each, (int, float))]
            reads += numbers
        self.tensors[target] = Tensor(target.shape, target.affine)
        write(Wanted(self.graph, step, reads, self.tensors[target], clamp, self._layers))

    def _target(self, step: Step, values: list[Value]) -> tuple[Value, tuple[float, float] | None]:
        """What a step makes: codes, clamped or not, or real values."""
        made, clamp, after = step.out, None, None
        if step.op in _CLAMPING and len(made.users) == 1 and made.users[0].op in {"relu", "hardtanh"}:
            (after,) = made.users
            made, clamp = after.out, clamped(after)
            self._fused.add(after)
        if step.op not in _OF_CODES or not values or not all(map(_is_dequantized, values)):
            return made, clamp
        if len(made.users) != 1 or made.users[0].op != "quantize":
            return made, clamp
        codes = made.users[0].out
        if step.op in _SAME_SCALE and any(_codes(value).affine != codes.affine for value in values):
            return made, clamp
        return codes, clamp

    def _quantize(self, step: Step) -> None:
        (value,) = step.values
        made = step.out
        if made in self.tensors:
            return
        assert made.affine is not None
        if value.given is not None:
            codes = made.affine.quantize(np.asarray(value.given, np.float32))
            self.tensors[made] = Tensor(made.shape, made.affine, codes)
        elif _is_dequantized(value) and _codes(value).affine == made.affine:
            self.tensors[made] = self.tensors[_codes(value)]
        else:
            self.tensors[made] = self._converted(self._real(value), Tensor(made.shape, made.affine))

    def _real(self, value: Value) -> Tensor:
        """The float32 tensor of real values."""
        if value.given is not None:
            return self._given(value.given)
        if not _is_dequantized(value):
            return self.tensors[value]
        codes = self.tensors[_codes(value)]
        if codes not in self._reals:
            self._reals[codes] = self._converted(codes, Tensor(codes.shape))
        return self._reals[codes]

    def _given(self, values: Any) -> Tensor:
        array = np.asarray(values, np.float32)
        return Tensor(array.shape, None, array)

    def _converted(self, source: Tensor, target: Tensor) -> Tensor:
        layout = source.native
        self.graph.op("Convert", input_id=self.graph.read(source, layout),
                      output_id=self.graph.tensor(target, layout))  # fmt: skip
        return target


def _is_dequantized(value: Value) -> bool:
    return value.made is not None and value.made.op == "dequantize"


def _turned(value: Value) -> bool:
    """Whether a value is a weight that torch turns, since it takes it so."""
    return value.made is not None and value.made.op == "t"


def _codes(value: Value) -> Value:
    assert value.made is not None
    codes: Value = value.made.args[0]
    return codes
