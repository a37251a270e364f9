"""What lowering a language model to either runtime starts from: its facts, attention and low-bit weights."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paredown.pipeline.compress.blockwise.modules import BlockEmbedding, BlockLinear
from paredown.pipeline.compress.grids.weight import BlockWeight
from paredown.targets.errors import InputError


@dataclass(frozen=True)
class LanguageFacts:
    """What a program has to know of the network beside its arithmetic.

    Attributes:
        vocabulary: logits for each token.
        context: the most positions that a text can have.
        chunk: the most tokens that are read at once.
        longest: the longest context that the network was trained for.
        bos: the token every text starts with.
        eos: the tokens that end a text.
    """

    vocabulary: int
    context: int
    chunk: int
    longest: int
    bos: int
    eos: tuple[int, ...]

    def __post_init__(self) -> None:
        """Checks the sizes against each other, before anything is lowered.

        Raises:
            InputError: a context beyond what the network was trained for, or a chunk beyond the context.
        """
        if not 1 <= self.context <= self.longest:
            raise InputError(
                f"a context of {self.context:,} positions", where="lowering",
                hint=f"the network was trained for at most {self.longest:,}",
            )  # fmt: skip
        if not 1 <= self.chunk <= self.context:
            raise InputError(
                f"a chunk of {self.chunk:,} tokens", where="lowering",
                hint=f"it takes one to {self.context:,}, the context",
            )  # fmt: skip


class RingAttention(nn.Module):
    """Softmax attention over a ring of keys and values: a module, for lowering to put another in its place.

    The query heads of one group are further rows of one product, so nothing is copied.

    Args:
        window: how many positions a query sees, its own included; None for all.
    """

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window = window

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, unseen: Tensor, positions: Tensor
    ) -> Tensor:
        """What the queries look up.

        Args:
            queries: (1, T, heads, head_dim), scaled.
            keys: (1, kv_heads, slots, head_dim); position p is in slot p modulo the memory's length.
            values: as keys.
            unseen: added to the scores, (T, slots); it follows from the positions and the window.
            positions: int64 (T,), ascending by one; their own keys and values are in the memory.

        Returns:
            (1, T, heads * head_dim).
        """
        kv_heads, tokens = keys.shape[1], queries.shape[1]
        grouped = queries.transpose(1, 2).unflatten(1, (kv_heads, -1))
        groups = grouped.shape[2]
        scores = grouped.flatten(2, 3) @ keys.transpose(2, 3) + unseen.repeat(groups, 1)
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        mixed = (weights @ values).unflatten(2, (groups, tokens)).flatten(1, 2)
        return mixed.transpose(1, 2).flatten(2)


def copied(network: nn.Module) -> nn.Module:
    """A copy whose modules can be replaced; its tensors are the very same."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def without_codes(network: nn.Module) -> tuple[nn.Module, dict[str, BlockWeight]]:
    """The network as if its low-bit layers were float ones, and apart from it what they hold.

    Returns:
        A copy whose low-bit layers are plain ones with weights that take no memory and mean nothing; and the
        parameters' names with the low-bit weights that belong there, one object for all that share it.
    """
    network = copied(network)
    weights: dict[str, BlockWeight] = {}
    seen: dict[int, BlockWeight] = {}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if not isinstance(module, (BlockLinear, BlockEmbedding)):
            continue
        weight = seen.setdefault(id(module.tensor), module.tensor.weight)
        weights[f"{name}.weight"] = weight
        network.set_submodule(name, _plain(module, weight.codes.shape))
    return network, weights


def _plain(module: BlockLinear | BlockEmbedding, shape: torch.Size) -> nn.Module:
    rows, columns = shape
    if isinstance(module, BlockEmbedding):
        plain: nn.Module = nn.Embedding(rows, columns, device="meta")
    else:
        plain = nn.Linear(columns, rows, bias=module.bias is not None, device="meta")
        plain.register_parameter("bias", module.bias)
    plain.weight = nn.Parameter(_weightless(rows, columns), requires_grad=False)
    return plain


def _weightless(rows: int, columns: int) -> Tensor:
    """A float tensor of this shape and one element's memory."""
    return torch.zeros(1, 1).expand(rows, columns)
