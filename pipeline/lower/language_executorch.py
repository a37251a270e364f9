"""ExecuTorch: a language model with its cache inside, as the .pte that its LLM runners call.

Low-bit linear layers become XNNPACK's dynamically quantized ones, with int8 activations per token: int4 codes
with a scale per row or per block ("8da4w"), int8 codes with a scale per row. Low-bit embeddings become the
quantized look-ups of ExecuTorch's own kernels. Every code and every scale in the file is the network's own.

The keys and values are mutable buffers that are written in place by `index_put_`. The runtime's fused
`sdpa_with_kv_cache` is not used: it knows no ring, and the libraries that run without torch do not have it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.blocks.modules import BlockEmbedding, BlockLinear
from pipeline.blocks.weight import BlockWeight
from pipeline.lower.executorch import _quiet as quiet_toolchain
from pipeline.lower.language import LanguageFacts, copied
from pipeline.lower.lowered import Lowered
from targets.errors import InputError

#: Not computation: what the runtime's own delegate and views are called.
_NO_OPERATIONS = {"executorch_call_delegate", "getitem", "sym_size.int"}


def lower_language(network: nn.Module, facts: LanguageFacts) -> Lowered:
    """Lowers a network that keeps its own cache.

    Args:
        network: forward(tokens int64 (1, T), input_pos int64 (1,)) -> float32 (1, vocabulary), the logits
            after the last token; its buffers are the cache, for chunks of up to `facts.chunk` tokens. It is
            left as it is.
        facts: told to the runner by methods of their own.

    Returns:
        A program whose `forward` takes any T up to the chunk.

    Raises:
        InputError: XNNPACK has no such layer.
    """
    with quiet_toolchain():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
        from executorch.exir.passes import MemoryPlanningPass
        from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

        _register()
        example = (torch.zeros(1, min(2, facts.chunk), dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
        tokens = {1: torch.export.Dim("tokens", min=1, max=facts.chunk)} if facts.chunk > 1 else None
        with torch.no_grad():
            exported = torch.export.export(
                _quantized(network).eval(), example, dynamic_shapes=(tokens, None), strict=False
            )
        edge = to_edge_transform_and_lower(
            exported, partitioner=[XnnpackPartitioner()], constant_methods=_metadata(facts)
        )
        calls = [n for n in edge.exported_program().graph.nodes if n.op == "call_function"]
        program = edge.to_executorch(
            ExecutorchBackendConfig(
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
                run_reinplace_pass=True,
            )
        )
    names = [getattr(n.target, "__name__", str(n.target)) for n in calls]
    rest = tuple(name for name in names if name not in _NO_OPERATIONS)
    return Lowered(bytes(program.buffer), names.count("executorch_call_delegate"), rest)


def _register() -> None:
    """The quantized operations and their kernels live in modules that register them when imported."""
    import executorch.kernels.quantized  # noqa: F401
    import torch.ao.quantization.fx._decomposed  # noqa: F401


def _metadata(facts: LanguageFacts) -> dict[str, Any]:
    """What ExecuTorch's LLM runners ask a program for; the longest sequence to them is one call's."""
    return {
        "get_max_seq_len": facts.chunk,
        "get_max_context_len": facts.context,
        "get_vocab_size": facts.vocabulary,
        "get_bos_id": facts.bos,
        "get_eos_ids": list(facts.eos),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
        "enable_dynamic_shape": facts.chunk > 1,
    }


def _quantized(network: nn.Module) -> nn.Module:
    """A copy whose low-bit layers are written as the operations that XNNPACK and the kernels look for."""
    network = copied(network)
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, BlockLinear):
            network.set_submodule(name, _DynamicLinear(name, module.tensor.weight, module.bias))
        elif isinstance(module, BlockEmbedding):
            network.set_submodule(name, _PackedEmbedding(module.tensor.weight))
    return network


class _DynamicLinear(nn.Module):
    """Codes that stay codes, times activations rounded to int8 token by token."""

    def __init__(self, name: str, weight: BlockWeight, bias: Tensor | None) -> None:
        super().__init__()
        if weight.bits == 8 and not weight.per_row:
            raise InputError(
                f"int8 codes with a scale per block of {weight.block}", where=name,
                hint="XNNPACK has them with a scale per row, and blocks with int4 codes",
            )  # fmt: skip
        if not weight.per_row and weight.block % 32:
            raise InputError(f"blocks of {weight.block}", where=name, hint="XNNPACK's are multiples of 32")
        self.range = (-128, 127) if weight.bits == 8 else (-8, 7)
        self.block = None if weight.per_row else weight.block
        scales = weight.scales.flatten() if weight.per_row else weight.scales
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros_like(scales, dtype=torch.int64))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        ops = torch.ops.quantized_decomposed
        scale, zero = ops.choose_qparams_per_token_asymmetric.default(x, torch.int8)
        given = (scale, zero, -128, 127, torch.int8)
        x = ops.quantize_per_token.default(x, *given)
        x = ops.dequantize_per_token.default(x, *given, torch.float32)
        held = (self.codes, self.scales, self.zeros)
        if self.block is None:
            weight = ops.dequantize_per_channel.default(*held, 0, *self.range, torch.int8)
        else:
            weight = ops.dequantize_per_channel_group.default(
                *held, *self.range, torch.int8, self.block, torch.float32
            )
        return F.linear(x, weight, self.bias)


class _PackedEmbedding(nn.Module):
    """The quantized look-ups: a byte per code, or two codes per byte, the first one in the upper half."""

    def __init__(self, weight: BlockWeight) -> None:
        super().__init__()
        self.bits = weight.bits
        codes = weight.codes
        if self.bits < 8:
            halves = (codes + 8).to(torch.uint8)
            codes = halves[:, ::2] << 4 | halves[:, 1::2]
        self.register_buffer("codes", codes)
        self.register_buffer("scales", weight.scales.flatten() if weight.per_row else weight.scales)

    def forward(self, tokens: Tensor) -> Tensor:
        ops = torch.ops.quantized_decomposed
        look_up, low, high = (
            (ops.embedding_byte, -128, 127) if self.bits == 8 else (ops.embedding_4bit, -8, 7)
        )
        return look_up.dtype(self.codes, self.scales, None, low, high, tokens, dtype=torch.float32)
