"""ExecuTorch: the integer graph (or the float network) as a .pte run by XNNPACK, and its runner.

ExecuTorch is imported inside the functions: it takes seconds, and most commands never need it.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paredown.pipeline.graph.alike import shared
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.graph import apply as apply_float
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.lower.executorch.islands import island
from paredown.pipeline.lower.executorch.operands import Operands
from paredown.pipeline.lower.executorch.verify.plan import check_program
from paredown.pipeline.lower.executorch.writer.delegate import written, written_float
from paredown.pipeline.lower.executorch.writer.recorder import NotWritten
from paredown.pipeline.lower.integer import Affine, IntegerGraph, IntegerNode, float_bias
from paredown.pipeline.lower.runtimes import Lowered
from paredown.targets.errors import InputError
from paredown.targets.runners.quiet import quiet


def lower_integer(graph: IntegerGraph) -> Lowered:
    """Lowers the integer graph: int8 in, int8 out, NCHW, batch of one.

    Our own writer takes hundredths of a second; what it does not know goes through the exporter.
    """
    try:
        return Lowered(written(graph), 1, ())
    except NotWritten:
        return export_integer(graph)


def export_integer(graph: IntegerGraph) -> Lowered:
    """The same by torch.export and ExecuTorch's exporter, 0.2 s a node."""
    _register_qdq()
    module = QdqModule(graph)
    return _lower(module, torch.zeros(graph.input.shape, dtype=torch.int8))


def lower_float(graph: Graph, delegate: str = "xnnpack") -> Lowered:
    """Lowers the traced float network: float32 in and out, NCHW, batch of one.

    Args:
        graph: traced.
        delegate: of PARTITIONERS.
    """
    if delegate == "xnnpack":
        with contextlib.suppress(NotWritten):
            return Lowered(written_float(graph), 1, ())
    return export_float(graph, delegate)


def export_float(graph: Graph, delegate: str = "xnnpack") -> Lowered:
    """The same by the exporter."""
    return _lower(_FloatModule(graph), torch.zeros(graph.nodes[0].shape), delegate)


def _xnnpack() -> Any:
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.generic_node_configs import EluConfig, LeakyReLUConfig
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    class Int8LeakyRelu(LeakyReLUConfig):
        """XNNPACK has an int8 leaky ReLU; the stock partitioner runs it in float between two casts."""

        def supported_precision_types(self) -> list[Any]:
            return [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]

    configs = [Int8LeakyRelu if c is LeakyReLUConfig else c for c in ALL_PARTITIONER_CONFIGS]
    # The stock partitioner leaves ELU out, which XNNPACK has in int8 too.
    return XnnpackPartitioner(configs=[*configs, *({EluConfig} - {*configs})])


def _coreml() -> Any:
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    return CoreMLPartitioner()


def _vulkan() -> Any:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    return VulkanPartitioner()


#: Delegate, as cards name it, -> what makes its partitioner; float networks have all, int8 ones XNNPACK.
PARTITIONERS = {"xnnpack": _xnnpack, "coreml": _coreml, "vulkan": _vulkan}


def _lower(module: nn.Module, example: Tensor, delegate: str = "xnnpack") -> Lowered:
    with quiet_toolchain():
        from executorch.exir import to_edge_transform_and_lower

        with torch.no_grad():
            exported = torch.export.export(module.eval(), (example,))
        edge = to_edge_transform_and_lower(exported, partitioner=[PARTITIONERS[delegate]()])
        calls = [n for n in edge.exported_program().graph.nodes if n.op == "call_function"]
        names = [getattr(n.target, "__name__", str(n.target)) for n in calls]
        data = bytes(edge.to_executorch().buffer)
    subgraphs = sum(name == "executorch_call_delegate" for name in names)
    rest = tuple(name for name in names if name not in {"executorch_call_delegate", "getitem"})
    return Lowered(data, subgraphs, rest)


def _register_qdq() -> None:
    """The explicit quantize and dequantize operations live in this private torch module."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401  registers torch.ops.quantized_decomposed


class QdqModule(Operands, nn.Module):
    """The integer graph as torch operations between explicit quantize and dequantize nodes.

    Every consumer gets a dequantize node of its own: a shared one would split the delegate's subgraph.
    """

    def __init__(self, graph: IntegerGraph) -> None:
        super().__init__()
        _register_qdq()
        self.graph = graph = graph.written
        self.index = {node.name: index for index, node in enumerate(graph)}
        self.axes: dict[str, int] = {}  # where the output channels of a weight are
        nodes = {node.name: node for node in graph}
        held: dict[object, tuple[int, int]] = {}
        self.islands: dict[str, Callable[..., Tensor]] = {}
        for index, node in enumerate(graph):
            feeds = [nodes[name] for name in node.inputs]
            for word, array in operation(node.kind).constants(node, feeds).items():
                self.register_buffer(f"{word}{index}", torch.from_numpy(array))
            if operation(node.kind).island and not operation(node.kind).table:
                self.islands[node.name] = island(node, [feed.shape for feed in feeds])
            if node.weight is None or node.weight_scale is None or node.bias is None:
                continue
            unit = np.float32(feeds[0].out.scale) * node.weight_scale
            if (key := shared(node, unit)) in held:
                self.index[node.name], self.axes[node.name] = held[key]
                continue
            kind, weight = operation(node.kind), torch.from_numpy(node.weight)
            theirs = kind.theirs(weight, int(node.attrs.get("groups", 1)), weight.ndim)
            self.axes[node.name] = 1 if kind.transposed else 0
            held[key] = index, self.axes[node.name]
            self.register_buffer(f"weight{index}", theirs.contiguous())
            self.register_buffer(f"scale{index}", torch.from_numpy(node.weight_scale))
            self.register_buffer(f"zero{index}", torch.zeros(len(unit), dtype=torch.int64))
            self.register_buffer(f"bias{index}", torch.from_numpy(float_bias(node.bias, unit)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """int8 (1, channels, height, width) in, a tuple of int8 tensors out."""
        codes: dict[str, Tensor] = {}
        for node in self.graph:
            if node.kind == "input":
                codes[node.name] = x
            else:
                reals = [dequantize(codes[name], self.graph[name].out) for name in node.inputs]
                codes[node.name] = quantize(operation(node.kind).executorch(self, node, reals), node.out)
        return tuple(codes[name] for name in self.graph.outputs)

    # -- for the operations --------------------------------------------------------------------------------

    def weight(self, node: IntegerNode) -> Tensor:
        """Weights of a node as real values, from their codes; XNNPACK tells int4 by its range alone."""
        low, high = (-8, 7) if node.int4 else (-127, 127)
        index, axis = self.index[node.name], self.axes[node.name]
        return torch.ops.quantized_decomposed.dequantize_per_channel.default(
            getattr(self, f"weight{index}"), getattr(self, f"scale{index}"),
            getattr(self, f"zero{index}"), axis, low, high, torch.int8,
        )  # fmt: skip

    def bias(self, node: IntegerNode) -> Tensor:
        """The bias of a node as real values."""
        return getattr(self, f"bias{self.index[node.name]}")

    def constant(self, node: IntegerNode, word: str) -> Tensor:
        """An array of `Operation.constants`."""
        return getattr(self, f"{word}{self.index[node.name]}")

    def island(self, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        """What stays in float, of portable kernels."""
        return self.islands[node.name](*reals)

    def codes(self, x: Tensor, like: IntegerNode) -> Tensor:
        """Real values as codes of the scale of a node's output."""
        return quantize(x, like.out)

    def reals(self, codes: Tensor, like: IntegerNode) -> Tensor:
        """Such codes as real values, for one consumer."""
        return dequantize(codes, like.out)


def quantize(x: Tensor, q: Affine) -> Tensor:
    """Real values to codes."""
    ops = torch.ops.quantized_decomposed
    return ops.quantize_per_tensor.default(x, q.scale, q.zero_point, -128, 127, torch.int8)


def dequantize(x: Tensor, q: Affine) -> Tensor:
    """Codes to real values."""
    ops = torch.ops.quantized_decomposed
    return ops.dequantize_per_tensor.default(x, q.scale, q.zero_point, -128, 127, torch.int8)


class _FloatModule(nn.Module):
    """The traced float graph as a module, for the float baseline."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph = graph.written
        self.islands: dict[str, Callable[..., Tensor]] = {}
        for index, node in enumerate(graph):
            if operation(node.kind).island:
                self.islands[node.name] = island(node, [graph[name].shape for name in node.inputs])
            if node.weight is not None:
                groups = int(node.attrs.get("groups", 1))
                theirs = operation(node.kind).theirs(node.weight, groups, node.weight.ndim)
                self.register_buffer(f"weight{index}", theirs.contiguous())
                self.register_buffer(f"bias{index}", node.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Tensor] = {}
        for index, node in enumerate(self.graph):
            if node.kind == "input":
                values[node.name] = x
                continue
            inputs = [values[name] for name in node.inputs]
            if node.name in self.islands:
                values[node.name] = self.islands[node.name](*inputs)
                continue
            if node.weight is None:
                values[node.name] = apply_float(node, *inputs)
                continue
            # The buffers, so that export sees parameters and not constants.
            node, weight = replace(node, bias=getattr(self, f"bias{index}")), getattr(self, f"weight{index}")
            values[node.name] = operation(node.kind).computed(node, weight, *inputs)
        return tuple(values[name] for name in self.graph.outputs)


class ProgramRunner:
    """A loaded .pte.

    Args:
        data: the program's bytes; kept alive here, since the runtime does not own them.
        threads: of ExecuTorch's pool, which is one for the whole process.
        where: named in errors.

    Raises:
        InputError: the bytes are not a program, or none that this runtime loads.
    """

    def __init__(self, data: bytes, threads: int = 1, where: object = ".pte") -> None:
        check_program(data, where)
        with quiet_toolchain():
            # The binding itself: executorch.runtime wraps it, and imports the whole exporter to do so (6 s).
            from executorch.extension.pybindings import _C as binding

            binding._unsafe_reset_threadpool(threads)
            self._data = data
            try:
                self._module = binding._load_for_executorch_from_buffer(
                    data, program_verification=binding.Verification.InternalConsistency
                )
                self._module.method_meta("forward")
            except Exception as error:  # noqa: BLE001  the binding raises bare RuntimeError and others
                raise InputError(
                    "not an ExecuTorch program that this runtime loads (truncated or damaged?)", where=where,
                    hint="make it again with `paredown run`",
                ) from error  # fmt: skip

    def __call__(self, x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Runs one input, (1, channels, height, width), in the program's own dtype; outputs NCHW.

        Raises:
            InputError: the input does not fit, or the program fails.
        """
        try:
            outputs = self._module.run_method("forward", (torch.from_numpy(x),))
        except RuntimeError as error:
            raise InputError(f"the program fails on an input of shape {x.shape}, {x.dtype}") from error
        return tuple(out.numpy() for out in outputs)

    def bound(self, x: NDArray[Any]) -> Callable[[], object]:
        """A call with its input in place, for timing."""
        inputs = (torch.from_numpy(x),)
        return lambda: self._module.run_method("forward", inputs)


load = ProgramRunner


@contextlib.contextmanager
def quiet_toolchain() -> Iterator[None]:
    """Keeps the toolchain's chatter (missing GPU kernels, CPU probing) off the user's screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
