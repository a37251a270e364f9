"""Gemma 3's text network in plain torch, with an explicit cache: made to be quantized and lowered.

The Gemma 3 report, arXiv 2503.19786; names and arithmetic are those of transformers' Gemma3ForCausalLM, so
that a state dict fits both. There is no control flow that depends on data, and every matrix is an
`nn.Linear` that can be replaced by a quantized one.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.apps.chat.network.cache import Cache, Write, empty_cache, mask, slot_of
from paredown.apps.chat.network.config import GemmaConfig
from paredown.pipeline.lower.language.network import RingAttention

#: Of which positions the logits are wanted: prefill on a device needs the last one's, or none.
Keep = Literal["all", "last", "none"]


class RMSNorm(nn.Module):
    """Normalises the last dimension in float32, then scales it by 1 + weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same, in x's dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + self.eps)
        return (wide * (1.0 + self.weight.float())).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: GemmaConfig, local: bool) -> None:
        """Makes one of a network."""
        super().__init__()
        self.head_dim = config.head_dim
        self.scale = config.query_pre_attn_scalar**-0.5
        self.q_proj = nn.Linear(config.width, config.heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.eps)
        self.k_norm = RMSNorm(config.head_dim, config.eps)
        self.attend = RingAttention(config.window if local else None)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        unseen: Tensor,
        positions: Tensor,
        slots: Tensor,
        memory: tuple[Tensor, Tensor],
        write: Write,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Writes the tokens' keys and values into the memory and looks at what the mask covers of it.

        Args:
            x: (1, T, width).
            rope: cosines and sines of the tokens' positions, (T, 1, head_dim / 2) each.
            unseen: `mask` of this layer's kind, (T, slots), or of its first slots alone.
            positions: int64 (T,), ascending by one.
            slots: where the tokens' keys and values go, int64 (T,).
            memory: keys and values, (1, kv_heads, slots, head_dim) each.
            write: puts them there.

        Returns:
            (1, T, width), and the memory with the new rows.
        """
        queries, new_keys, new_values = (
            projection(x).unflatten(2, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries = rotate(self.q_norm(queries), *rope) * self.scale
        new_keys = rotate(self.k_norm(new_keys), *rope)
        keys = write(memory[0], 2, slots, new_keys.transpose(1, 2))
        values = write(memory[1], 2, slots, new_values.transpose(1, 2))
        if unseen.shape[1] < keys.shape[2]:
            seen = (keys[:, :, : unseen.shape[1]], values[:, :, : unseen.shape[1]])
        else:
            seen = (keys, values)
        mixed = self.attend(queries, *seen, unseen, positions)
        return self.o_proj(mixed), (keys, values)


class MLP(nn.Module):
    """The gated feed-forward layer: GeGLU with the tanh form of GELU."""

    def __init__(self, width: int, ffn: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, ffn, bias=False)
        self.up_proj = nn.Linear(width, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, width) to the same."""
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward, each between two norms."""

    def __init__(self, config: GemmaConfig, local: bool) -> None:
        super().__init__()
        self.self_attn = Attention(config, local)
        self.mlp = MLP(config.width, config.ffn)
        self.input_layernorm = RMSNorm(config.width, config.eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.eps)
        self.pre_feedforward_layernorm = RMSNorm(config.width, config.eps)
        self.post_feedforward_layernorm = RMSNorm(config.width, config.eps)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        unseen: Tensor,
        positions: Tensor,
        slots: Tensor,
        memory: tuple[Tensor, Tensor],
        write: Write,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `Attention.forward`."""
        x_normed = self.input_layernorm(x)
        mixed, memory = self.self_attn(x_normed, rope, unseen, positions, slots, memory, write)
        x = x + self.post_attention_layernorm(mixed)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))), memory


class Body(nn.Module):
    """Everything before the output layer."""

    embed_scale: Tensor
    rope_local: Tensor
    rope_global: Tensor

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config, local) for local in config.local)
        self.norm = RMSNorm(config.width, config.eps)
        self.set_constants()

    def set_constants(self) -> None:
        """Fills the buffers, which follow from the configuration."""
        config = self.config
        # A tensor because Gemma rounds it to the weights' precision: in bfloat16 the root of 640 is 25.25.
        self.register_buffer("embed_scale", torch.tensor(math.sqrt(config.width)), persistent=False)
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        whole = 1.0 / config.rope_global**exponents / config.rope_factor
        near = 1.0 / config.rope_local**exponents / config.rope_factor_local
        self.register_buffer("rope_local", near, persistent=False)
        self.register_buffer("rope_global", whole, persistent=False)

    def forward(
        self, tokens: Tensor, positions: Tensor, cache: Cache, write: Write, reach: int | None = None
    ) -> tuple[Tensor, Cache]:
        """As `Gemma.forward`, to (1, T, width)."""
        x = self.embed_tokens(tokens)
        x = x * self.embed_scale.to(x.dtype)
        rope, unseen, slots = {}, {}, {}
        for local in sorted(set(self.config.local)):  # worked out once for each kind of layer
            length = cache[self.config.local.index(local)][0].shape[2]
            angles = positions.float()[:, None, None] * (self.rope_local if local else self.rope_global)
            rope[local] = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
            unseen[local] = mask(positions, length, self.config.window if local else None).to(x.dtype)
            if reach is not None and reach < length:
                unseen[local] = unseen[local][:, :reach]
            slots[local] = slot_of(positions, length)
        written = []
        for layer, local, memory in zip(self.layers, self.config.local, cache, strict=True):
            x, memory = layer(x, rope[local], unseen[local], positions, slots[local], memory, write)
            written.append(memory)
        return self.norm(x), tuple(written)


class Gemma(nn.Module):
    """The whole network; its output layer is its embedding, unless the configuration says otherwise."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.tie()

    def tie(self) -> None:
        """Makes the output layer's weight the embedding's, where it is."""
        if self.config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        cache: Cache,
        keep: Keep = "all",
        write: Write = Tensor.index_copy,
        reach: int | None = None,
    ) -> tuple[Tensor, Cache]:
        """The next chunk of a text, one token or many.

        A chunk may be filled up on the right with any tokens, as programs of a fixed T need it: what they
        leave in the memory is never seen and is written over by the text's next tokens. Their positions have
        to be below the context too, and the memory's chunk at least as long as this one.

        Args:
            tokens: int64 (1, T).
            positions: int64 (T,), ascending by one.
            cache: of `empty_cache`, or what the last call returned.
            keep: the positions that logits are computed for.
            write: `Tensor.index_copy` leaves the given cache as it is, `Tensor.index_copy_` works in it.
            reach: all positions are below it: the slots behind it hold nothing and are not read.

        Returns:
            Logits (1, T, vocabulary), (1, 1, vocabulary) or (1, 0, vocabulary), and the cache.
        """
        x, cache = self.model(tokens, positions, cache, write, reach)
        if keep != "all":
            x = x[:, -1:] if keep == "last" else x[:, :0]
        return self.lm_head(x), cache


class Stateful(nn.Module):
    """The network with its cache inside, in mutable buffers: what ExecuTorch's LLM runner calls.

    A text starts over with a chunk at position 0: what lies in the buffers from before is not seen.
    """

    def __init__(self, gemma: Gemma, context: int, chunk: int = 1, keep: Keep = "last") -> None:
        """Wraps a network.

        Args:
            gemma: shared, not copied.
            context: the most positions that a text can have.
            chunk: the most tokens that will be given at once.
            keep: the positions that logits are computed for.
        """
        super().__init__()
        self.gemma, self.keep = gemma, keep
        for number, (keys, values) in enumerate(empty_cache(gemma.config, context, chunk)):
            self.register_buffer(f"keys_{number}", keys, persistent=False)
            self.register_buffer(f"values_{number}", values, persistent=False)

    @property
    def cache(self) -> Cache:
        """The buffers."""
        return tuple(
            (self.get_buffer(f"keys_{number}"), self.get_buffer(f"values_{number}"))
            for number in range(self.gemma.config.layers)
        )

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """The next chunk.

        Args:
            tokens: int64 (1, T).
            input_pos: int64 (1,), the first token's position.

        Returns:
            Logits as `Gemma.forward`; with "last" (1, vocabulary), as the runner takes them.
        """
        positions = input_pos + torch.arange(tokens.shape[1], device=tokens.device)
        logits, _ = self.gemma(tokens, positions, self.cache, self.keep, Tensor.index_copy_)
        return logits[:, -1] if self.keep == "last" else logits


def make_unset(config: GemmaConfig) -> Gemma:
    """A network whose weights are allocated and hold anything: for those who fill them, all of them."""
    with torch.device("meta"):
        gemma = Gemma(config)
    gemma.to_empty(device="cpu")
    gemma.tie()
    gemma.model.set_constants()
    return gemma


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary embedding, each dimension with the one half a head further on: (1, T, heads, head_dim)."""
    half = x.shape[-1] // 2
    near, far = x[..., :half], x[..., half:]
    return torch.cat((near * cosines - far * sines, far * cosines + near * sines), -1)
