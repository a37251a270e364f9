"""What lowering a language model to either runtime starts from: its facts, and its low-bit weights."""

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
