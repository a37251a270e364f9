"""OpenVINO: the integer graph as an .onnx that its kernels on codes compute to the last code.

The file is ONNX Runtime's but for what `kinds` says. The package `openvino`, an extra, reads and runs it.
"""

from __future__ import annotations

from typing import Any

from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.lower.integer import IntegerGraph
from paredown.pipeline.lower.onnxruntime.openvino.kinds import ExactWriter
from paredown.pipeline.lower.onnxruntime.program import written
from paredown.pipeline.lower.onnxruntime.writer import Writer
from paredown.pipeline.lower.runtimes import Lowered
from paredown.targets.runners.onnxruntime.openvino import Runner, load

__all__ = ["in_float", "load", "lower_float", "lower_integer"]

#: Layers of OpenVINO that move values or change their type, whatever the values are, and those that compute
#: each value alone, in float registers also between codes.
LIGHT = frozenset(
    {
        "Const", "Input", "Output", "Reorder", "Reshape", "Transpose", "Convert", "Concatenation", "Split",
        "StridedSlice", "Pad", "Gather", "Pooling", "Tile", "Broadcast", "DepthToSpace", "SpaceToDepth",
        "ShuffleChannels", "Subgraph", "Eltwise",
    }
)  # fmt: skip


def lower_integer(graph: IntegerGraph) -> Lowered:
    """Writes the integer graph, NCHW, batch of one; its codes are uint8, 128 more than ours."""
    data = written(graph.written, ExactWriter())
    return Lowered(data, 1, in_float(Runner(data)))


def lower_float(graph: Graph) -> Lowered:
    """Writes the traced float network: float32 in and out, NCHW, batch of one."""
    data = written(graph.written, Writer())
    Runner(data)  # says at once what does not load
    return Lowered(data, 1, ())


def in_float(runner: Runner) -> tuple[str, ...]:
    """Layers of a program of codes that OpenVINO computes in float on this machine, in their order.

    Args:
        runner: of the program.
    """

    def told(layer: Any, word: str) -> str:
        return str(layer.get_rt_info()[word].value)

    layers = runner.model.get_runtime_model().get_ordered_ops()
    # The precision may be that of the weights alone.
    words = ("layerType", "runtimePrecision", "primitiveType")
    kinds = [tuple(told(each, word) for word in words) for each in layers]
    return tuple(sorted(k for k, held, how in kinds if "f32" in (held, how[-3:]) and k not in LIGHT))
