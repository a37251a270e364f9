"""ExecuTorch: a language model with its cache inside, as the .pte that its LLM runners call.

`forward` reads one token and gives its logits, `prefill` reads a whole chunk and gives none; both work in
the same cache. Sizes are fixed: with a number of tokens that varies, XNNPACK leaves reshapes and slices to
other kernels, which cuts each layer into fourteen subgraphs instead of one.

Low-bit linear layers become XNNPACK's dynamically quantized ones, with int8 activations per token: int4
codes with a scale per row or per block ("8da4w"), int8 codes with a scale per row. The embedding looks up
rows in the output layer's codes, which lie in the file once. Every code and every scale in the file is the
network's own.

`step` and `read` are `forward` and `prefill` with linear layers and attention by kernels of our own, see
targets/runners/executorch: the codes lie in the file once for both. ExecuTorch's own runners have no such
kernels and call `forward` and `prefill`.

The keys and values are mutable buffers that are written in place by `index_put_`. The runtime's fused
`sdpa_with_kv_cache` is not used: it knows no ring, and the libraries that run without torch do not have it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from paredown.pipeline.compress.blockwise.modules import BlockEmbedding, BlockLinear
from paredown.pipeline.compress.grids.weight import BlockWeight
from paredown.pipeline.lower.executorch.constants import share_constants
from paredown.pipeline.lower.executorch.program import quiet_toolchain
from paredown.pipeline.lower.language.fast_exporter import fast_exporter
from paredown.pipeline.lower.language.network import LanguageFacts, RingAttention, copied
from paredown.pipeline.lower.runtimes import Lowered
from paredown.targets.errors import InputError

#: Not computation: what the runtime's own delegate and views are called.
_NO_OPERATIONS = {"executorch_call_delegate", "getitem", "sym_size.int"}
#: Of our own kernels: the codes that share a scale in blocks, those read at once, and a head's least numbers.
_BLOCK, _AT_ONCE, _HEAD = 32, 64, 16


def lower_language(decode: nn.Module, prefill: nn.Module, facts: LanguageFacts) -> Lowered:
    """Lowers a network that keeps its own cache.

    Args:
        decode: forward(tokens int64 (1, T), input_pos int64 (1,)) -> float32 (1, vocabulary), the logits
            after the last token; its buffers are the cache, for chunks of `facts.chunk` tokens. It is left as
            it is.
        prefill: the same network and buffers; what it returns is not looked at.
        facts: told to the runner by methods of their own.

    Returns:
        A program whose `forward` takes one token, and `prefill` a chunk of them; behind the text's end a
        chunk is filled up with any, which are written over. Where our own kernels have any of its layers,
        `step` and `read` do the same by them.

    Raises:
        InputError: XNNPACK has no such layer.
    """
    with quiet_toolchain(), fast_exporter():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
        from executorch.exir.passes import MemoryPlanningPass

        _register()
        methods = {"forward": _exported(_Step(_quantized(decode), True), 1)}
        methods |= {"prefill": _exported(_Step(_quantized(prefill), False), facts.chunk)}
        if ours := _ours(decode):
            methods |= {"step": _exported(_Step(_quantized(decode, ours), True), 1)}
            methods |= {"read": _exported(_Step(_quantized(prefill, ours), False), facts.chunk)}
        edge = to_edge_transform_and_lower(
            methods,
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods=_metadata(facts),
        )
        calls = [n for n in edge.exported_program("forward").graph.nodes if n.op == "call_function"]
        program = edge.to_executorch(
            ExecutorchBackendConfig(
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False, share_mutable_buffers=True),
                run_reinplace_pass=True,
                emit_mutable_buffer_names=True,
            )
        )
    names = [getattr(n.target, "__name__", str(n.target)) for n in calls]
    rest = tuple(name for name in names if name not in _NO_OPERATIONS)
    data = share_constants(bytes(program.buffer))
    return Lowered(data, names.count("executorch_call_delegate"), rest)


def _exported(network: nn.Module, length: int) -> torch.export.ExportedProgram:
    example = (torch.zeros(1, length, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        program = torch.export.export(network.eval(), example, strict=False)
    _rewrite(program)
    return program


def _rewrite(program: torch.export.ExportedProgram) -> None:
    """Writes what XNNPACK does not have, or does badly, as what it does well.

    Means of the last axis become linear layers of one output: a norm would end every subgraph that it is in.
    Products become `bmm`: of `matmul`, the copies that broadcasting needs would remain. Where the right side
    is transposed the whole product is: the delegate copies its right side at each call, and this leaves the
    long cache on the left. The tanh form of GELU is written out: the delegate takes it for the exact one,
    5e-4 away.
    """
    from executorch.backends.transforms.utils import create_constant_placeholder
    from torch.export.graph_signature import InputKind

    graph, aten = program.graph_module.graph, torch.ops.aten

    def constant(name: str, value: Tensor) -> Any:
        with graph.inserting_before(next(iter(graph.nodes))):
            return create_constant_placeholder(program, graph, name, InputKind.BUFFER, value, True)

    def mean(x: Any, dims: Sequence[int], keep: bool = False) -> Any:
        size = x.meta["val"].shape[-1]
        if list(dims) != [-1] or not keep:
            return None
        return call(aten.linear.default, x, constant(f"mean_of_{size}", torch.full((1, size), 1 / size)))

    def matmul(x: Any, y: Any) -> Any:
        shapes = [tuple(side.meta["val"].shape) for side in (x, y)]
        if len({shape[:-2] for shape in shapes}) > 1 or len(shapes[0]) != 4:
            return None
        swapped = y.target is aten.transpose.int and {axis % 4 for axis in y.args[1:]} == {2, 3}
        left, right = (call(aten.flatten.using_ints, side, 0, 1) for side in (x, y.args[0] if swapped else y))
        if swapped:
            product = call(aten.bmm.default, right, call(aten.transpose.int, left, 1, 2))
            product = call(aten.transpose.int, product, 1, 2)
        else:
            product = call(aten.bmm.default, left, right)
        return call(aten.unflatten.int, product, 0, list(shapes[0][:2]))

    def call(target: Any, *args: Any) -> Any:
        made = graph.call_function(target, args)
        made.meta["val"] = target(*(a.meta["val"] if isinstance(a, fx.Node) else a for a in args))
        return made

    def gelu(x: Any, approximate: str = "none") -> Any:
        if approximate != "tanh":
            return None
        twice = 2 * math.sqrt(2 / math.pi)  # (1 + tanh(z)) / 2 is the sigmoid of 2 z
        cubic, linear = (  # tensors: a number would end the subgraph
            constant(name, torch.tensor([value])) for name, value in (("c3", 0.044715 * twice), ("c1", twice))
        )
        squares = call(aten.mul.Tensor, call(aten.mul.Tensor, x, x), cubic)
        inner = call(aten.mul.Tensor, x, call(aten.add.Tensor, squares, linear))
        return call(aten.mul.Tensor, x, call(aten.sigmoid.default, inner))

    ways: dict[Any, Callable[..., Any]] = {
        aten.mean.dim: mean, aten.matmul.default: matmul, aten.gelu.default: gelu
    }  # fmt: skip
    for target, write in ways.items():
        for node in graph.find_nodes(op="call_function", target=target):
            with graph.inserting_before(node):
                made = write(*node.args, **node.kwargs)
            if made is not None:
                node.replace_all_uses_with(made)
                graph.erase_node(node)
    for node in graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        graph.erase_node(node)  # it would keep alive what nobody reads
    graph.eliminate_dead_code()
    program.graph_module.recompile()


@functools.cache
def _register() -> torch.library.Library:
    """The quantized operations are registered when their module is imported, ours here."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401

    library = torch.library.Library("paredown", "DEF")  # as long as it is kept
    for name, given, shape in (
        ("linear", "Tensor x, Tensor codes, Tensor scales", _linear_shape),
        ("attend", "Tensor queries, Tensor keys, Tensor values, Tensor positions, int window", _attend_shape),
    ):
        library.define(f"{name}({given}) -> Tensor")
        library.define(f"{name}.out({given}, *, Tensor(a!) out) -> Tensor(a!)")
        library.impl(name, shape, "CompositeExplicitAutograd")
        library.impl(f"{name}.out", _given_out, "CompositeExplicitAutograd")
    return library


def _linear_shape(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(codes))  # nobody computes with it here


def _attend_shape(queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor, window: int) -> Tensor:
    return queries.new_empty(*queries.shape[:2], queries.shape[2] * queries.shape[3])


def _given_out(*args: Any, out: Tensor) -> Tensor:
    return out


def _ours(network: nn.Module) -> frozenset[str]:
    """Names of the linear layers that `step` and `read` compute by our own kernel."""
    return frozenset(
        name
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, BlockLinear) and module.bias is None and _is_ours(module.tensor.weight)
    )


def _is_ours(weight: BlockWeight) -> bool:
    per_row_or_blocks = weight.per_row or (weight.bits, weight.block) == (4, _BLOCK)
    return per_row_or_blocks and weight.codes.shape[1] % _AT_ONCE == 0


def _metadata(facts: LanguageFacts) -> dict[str, Any]:
    """What ExecuTorch's LLM runners ask a program for, and ours: the longest sequence is a chunk."""
    return {
        "get_max_seq_len": facts.chunk,
        "get_max_context_len": facts.context,
        "get_vocab_size": facts.vocabulary,
        "get_bos_id": facts.bos,
        "get_eos_ids": list(facts.eos),
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
        "enable_dynamic_shape": False,
    }


def _quantized(network: nn.Module, ours: Collection[str] = ()) -> nn.Module:
    """A copy whose low-bit layers are written as the operations that XNNPACK and the kernels look for.

    Args:
        network: is left as it is.
        ours: names of linear layers that our own kernel computes; with any, attention is ours too.
    """
    network = copied(network)
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if name in ours:
            network.set_submodule(name, _OwnLinear(module.tensor.weight))
        elif ours and isinstance(module, RingAttention):
            network.set_submodule(name, _OwnAttention(module))
        elif isinstance(module, BlockLinear):
            network.set_submodule(name, _DynamicLinear(name, module.tensor.weight, module.bias))
        elif isinstance(module, BlockEmbedding):
            network.set_submodule(name, _SharedEmbedding(module.tensor.weight))
    return network


class _Step(nn.Module):
    """Reads tokens into the cache; returns the logits, or without them the position behind the tokens."""

    def __init__(self, network: nn.Module, logits: bool) -> None:
        super().__init__()
        self.network, self.logits = network, logits

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        logits: Tensor = self.network(tokens, input_pos)
        return logits if self.logits else input_pos + tokens.shape[1]


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
        # Parameters: of those, but of no buffers, the toolchain drops what a method does not use.
        self.codes = nn.Parameter(weight.codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.zeros = nn.Parameter(torch.zeros_like(scales, dtype=torch.int64), requires_grad=False)
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


def _halves(codes: Tensor) -> Tensor:
    """Two int4 codes a byte, each plus 8, the first one in the lower half, as XNNPACK has them."""
    above = (codes + 8).to(torch.uint8)
    return above[:, 1::2] << 4 | above[:, ::2]


class _OwnLinear(nn.Module):
    """A linear layer by our own kernel, inputs rounded to int8; the codes and scales as XNNPACK has them."""

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: BlockWeight) -> None:
        super().__init__()
        scales = weight.scales.flatten() if weight.per_row else weight.scales.to(torch.bfloat16)
        self.register_buffer("codes", _halves(weight.codes) if weight.bits == 4 else weight.codes)
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.paredown.linear.default(x, self.codes, self.scales)
        return found


class _OwnAttention(nn.Module):
    """Attention by our own kernel, which reads the positions that are seen and no others."""

    def __init__(self, module: RingAttention) -> None:
        super().__init__()
        self.plain = module

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, unseen: Tensor, positions: Tensor
    ) -> Tensor:
        if queries.shape[3] % _HEAD:
            plain: Tensor = self.plain(queries, keys, values, unseen, positions)
            return plain
        seen = (queries, keys, values, positions, self.plain.window or 0)
        found: Tensor = torch.ops.paredown.attend.default(*seen)
        return found


class _SharedEmbedding(nn.Module):
    """Look-ups in codes that lie as XNNPACK has them, for the output layer and the embedding to share them.

    A byte holds one code, or two of them, each plus 8, the first one in the lower half. ExecuTorch's own
    quantized look-ups have the halves the other way round and float32 scales: the file would hold the largest
    matrix of a small model twice.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: BlockWeight) -> None:
        super().__init__()
        self.halves = weight.bits == 4
        self.register_buffer("codes", _halves(weight.codes) if self.halves else weight.codes)
        self.register_buffer("scales", weight.scales if weight.per_row else weight.scales.to(torch.bfloat16))

    def forward(self, tokens: Tensor) -> Tensor:
        rows = F.embedding(tokens, self.codes).to(torch.float32)
        if self.halves:
            upper = (rows / 16).floor()
            rows = torch.stack((rows - 16 * upper, upper), -1).flatten(-2) - 8
        scales = F.embedding(tokens, self.scales).to(torch.float32)
        return (rows.unflatten(-1, (scales.shape[-1], -1)) * scales.unsqueeze(-1)).flatten(-2)
