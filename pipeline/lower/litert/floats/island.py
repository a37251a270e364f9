"""Islands in a .tflite: an ATen operation as TFLite's float operators, between a DEQUANTIZE and a QUANTIZE.

torch decomposes an operation until each part has a handler. Axes are torch's own, so a map is transposed
first, unless the operation works on single values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils._python_dispatch import _disable_current_modes

from paredown.pipeline.graph.aten import pair, target
from paredown.pipeline.graph.operations.activation import floats
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.lower.litert.floats import moves, pointwise, reductions
from paredown.pipeline.lower.litert.floats.tensors import Ref, Tensors, Value

if TYPE_CHECKING:
    from paredown.pipeline.lower.litert.program import Writer

TO_NHWC = (0, 2, 3, 1)


def write(writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
    """Writes an island.

    Args:
        writer: of the file.
        node: of a kind that is an island.
        feeds: the nodes that it reads.

    Raises:
        InputError: TFLite's float operators cannot express it.
    """
    Island(writer, node).write(feeds)


class Island(Tensors):
    """What writes one island."""

    def write(self, feeds: Sequence[Any]) -> None:
        """Writes it, whole."""
        writer, node = self.writer, self.node
        constants = [torch.from_numpy(np.asarray(each)) for each in node.constants]
        maps = node.attrs["single"] and all(len(each.shape) == 4 for each in (node, *feeds))
        layout = "nhwc" if maps else "plain"
        if maps:
            constants = [_nhwc(each) for each in constants]
        shapes = [tuple(f.shape[d] for d in TO_NHWC) if maps else tuple(f.shape) for f in feeds]
        graph = self._graph(constants, shapes)
        reals = [writer.real(writer.read(feed, layout), f"{node.name}/input") for feed in feeds]
        values: dict[fx.Node, Any] = {}
        given = (Ref(index, shape) for index, shape in zip(reals, shapes, strict=True))
        for each in graph.graph.nodes:
            if each.op == "placeholder":
                values[each] = next(given)
            elif each.op == "get_attr":
                values[each] = getattr(graph, str(each.target)).detach()
            elif each.op == "output":
                made = each.args[0][0] if isinstance(each.args[0], (tuple, list)) else each.args[0]
                self._end(values[made], layout)
            else:
                values[each] = self._made(each, values)

    def _graph(self, constants: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> fx.GraphModule:
        try:
            compute = operation(self.node.kind).recipe(self.node, constants)
            return floats.decomposed(compute, shapes, _known, OWN)
        except Exception as error:  # noqa: BLE001  torch raises whatever it likes where it cannot decompose
            raise self.unknown(self.node.attrs["op"]) from error

    def _made(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if not any(isinstance(values[n], (Ref, list)) for n in node.all_input_nodes):
            return node.target(*args, **{k: v for k, v in kwargs.items()})  # type: ignore[operator]
        handler = handlers().get(target(node))
        if handler is None:
            raise self.unknown(str(node.target))
        return handler(self, node, *args, **kwargs)

    def _end(self, value: Value, layout: str) -> None:
        writer, node = self.writer, self.node
        if isinstance(value, Tensor):
            value = self.constant(value)
        if node.attrs["nan"]:
            real = self.op("EQUAL", [value, value], value.shape, "bool", "EqualOptionsT")
            value = self.op(
                "SELECT_V2",
                [real, value, self.number(0.0, value)],
                value.shape,
                "float32",
                "SelectV2OptionsT",
            )
        target_index = writer.tensor(node, layout)
        if writer.integer:
            writer.op("QUANTIZE", 1, [value.index], target_index, self.s.QuantizeOptionsT())
        else:
            shape = writer.sub.tensors[target_index].shape
            writer.reshape(value.index, target_index, shape)


def _nhwc(value: Tensor) -> Tensor:
    if value.ndim == 0:
        return value
    return value.reshape(*[1] * (4 - value.ndim), *value.shape).permute(TO_NHWC).contiguous()


@functools.cache
def handlers() -> dict[str, Callable[..., Any]]:
    """Name of an ATen operation (or of a prim) -> what writes it."""
    return pointwise.handlers() | reductions.handlers() | moves.handlers()


def _known(op: Any) -> bool:
    return str(getattr(op, "_opname", "")).rstrip("_") in handlers()


def _pooled(x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0, 0),
            ceil_mode: bool = False, counted: bool = True, divisor: int | None = None) -> Tensor:  # fmt: skip
    """An average pool as the sum of the map's slices, times a number for each window."""
    (high, wide), step = pair(kernel), pair(stride or kernel)
    with _disable_current_modes():
        ones = torch.ones((1, 1, *x.shape[-2:]))
        share, whole = (
            F.avg_pool2d(ones, (high, wide), step, pair(padding), ceil_mode, counted, d) for d in (divisor, 1)
        )
        factor = (share / whole).reshape(*[1] * (x.ndim - 2), *share.shape[-2:])
    (top, left), (rows, columns) = pair(padding), share.shape[-2:]
    bottom, right = ((n - 1) * s + k - before - size for n, s, k, before, size in zip(
        (rows, columns), step, (high, wide), (top, left), x.shape[-2:], strict=True))  # fmt: skip
    spread = F.pad(x, (left, max(right, 0), top, max(bottom, 0)))
    parts = [
        spread[..., i : i + (rows - 1) * step[0] + 1 : step[0], j : j + (columns - 1) * step[1] + 1 : step[1]]
        for i in range(high)
        for j in range(wide)
    ]
    return sum(parts[1:], parts[0]) * factor


#: What is decomposed here alone.
OWN: dict[Any, Callable[..., Any]] = {torch.ops.aten.avg_pool2d.default: _pooled}
