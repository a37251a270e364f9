"""A language model's matrices into codes, as a recipe asks for it, and those codes in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paredown.pipeline.compress.blockwise.layerwise import put_nearest, put_rounded
from paredown.pipeline.compress.blockwise.modules import (
    BlockEmbedding,
    BlockTensor,
    ResidualEmbedding,
    plain_weight,
)
from paredown.pipeline.compress.grids.block_grid import BlockGrid, nearest
from paredown.pipeline.compress.grids.weight import BLOCK_SCALE, ROW_SCALE, BlockWeight, weight_bytes
from paredown.pipeline.recipe.language_task import LanguageTask
from paredown.pipeline.recipe.schema import Language
from paredown.targets.errors import InputError

Bits = Mapping[str, int]
RESIDUAL_BITS, RESIDUAL_BLOCK = 4, 32


def recipe_bits(task: LanguageTask, network: nn.Module, language: Language) -> dict[str, int]:
    """Bits of every matrix, by name, before any are mixed."""
    linears, head = task.matrices(network)
    whole = dict.fromkeys((head, *own_embeddings(network, head)), int(language.embedding_bits))
    return dict.fromkeys(linears, int(language.weight_bits)) | whole


def own_embeddings(network: nn.Module, head: str) -> list[str]:
    """Names of the embeddings whose weights are not the output layer's too."""
    shared = plain_weight(network, head)
    named = network.named_modules()
    return [name for name, each in named if isinstance(each, nn.Embedding) and each.weight is not shared]


def grid(bits: int, linear: bool, language: Language) -> BlockGrid:
    """The codes that a matrix can have.

    Args:
        bits: 4 or 8; runtimes have codes of 8 bits with a scale per row alone.
        linear: whether the matrix is a layer's; embedding and output layer have no zeros of their own.
        language: the recipe's section.
    """
    block = language.block_of(linear)
    size = block if block and bits == 4 else None
    if not linear or not language.sparsity:
        return BlockGrid(bits, size)
    return BlockGrid(bits, size, "uniform", language.sparsity)


@dataclass(frozen=True)
class Residual:
    """What rounding took from the embedding's rows of some tokens, in codes of its own.

    A row serves the output layer, where its errors average out in one of many logits, and the look-up, where
    it is all that the layers see of a token.

    Attributes:
        places: int16 or int32 (vocabulary,): a token's row in `weight`, 0 of those that have none.
        weight: of 4 bits; row 0 is zeros.
    """

    places: Tensor
    weight: BlockWeight

    @property
    def bytes(self) -> int:
        """What it takes in a program."""
        return self.weight.bytes + self.places.nbytes


def frequent_tokens(task: LanguageTask, count: int) -> Tensor:
    """The most frequent of the texts that training would learn from, at most `count`: int64, rising."""
    found = np.bincount(task.pieces("train")[:, 1:].ravel(), minlength=task.vocabulary)
    most = np.argsort(-found, kind="stable")[: min(count, np.count_nonzero(found))]
    return torch.from_numpy(np.sort(most))


def residual_bytes(tokens: int, width: int, vocabulary: int) -> int:
    """What a residual of so many tokens takes in a program."""
    rows, blocks = tokens + 1, width // (_residual_block(width) or width)
    scales = ROW_SCALE if blocks == 1 else BLOCK_SCALE * blocks
    return (
        weight_bytes(rows, width, RESIDUAL_BITS) + scales * rows + vocabulary * _places_type(tokens).itemsize
    )


def find_residual(tokens: Tensor, plain: Tensor, weight: BlockWeight) -> Residual:
    """What the look-ups of some tokens lost.

    Args:
        tokens: int64, rising.
        plain: the embedding in full precision, (vocabulary, width).
        weight: the same in codes.
    """
    places = torch.zeros(len(plain), dtype=_places_type(len(tokens)))
    places[tokens] = torch.arange(1, len(tokens) + 1, dtype=places.dtype)
    lost = plain[tokens] - BlockTensor(weight)(tokens)
    rows = torch.cat((torch.zeros_like(plain[:1]), lost))
    return Residual(places, nearest(rows, BlockGrid(RESIDUAL_BITS, _residual_block(plain.shape[1]))))


def put_residual(network: nn.Module, residual: Residual) -> None:
    """Puts one beside the embedding's codes, in place.

    Raises:
        InputError: the network does not have one embedding in codes.
    """
    named = [(name, m) for name, m in network.named_modules() if isinstance(m, BlockEmbedding)]
    if len(named) != 1:
        raise InputError(
            f"{len(named)} embeddings in codes", where="the network", hint="a residual is for one"
        )
    name, embedding = named[0]
    network.set_submodule(name, ResidualEmbedding(embedding, residual.places, residual.weight))


def find_codes(
    task: LanguageTask,
    network: nn.Module,
    language: Language,
    bits: Bits,
    tick: Callable[[int, int], None],
) -> tuple[dict[str, BlockWeight], Residual | None]:
    """Rounds as the recipe says.

    Args:
        task: of the network.
        network: in full precision, thinner or not; its matrices become low-bit ones.
        language: the recipe's section.
        bits: of every matrix.
        tick: progress.

    Returns:
        The codes by name, and the residual of the look-ups where the recipe wants one.
    """
    linears, head = task.matrices(network)
    grids = {name: grid(each, name in linears, language) for name, each in bits.items()}
    name = (own_embeddings(network, head) or [head])[0]
    plain, made = plain_weight(network, name), []

    def outside(codes: Mapping[str, BlockWeight]) -> None:
        if language.residual_tokens:
            tokens = frequent_tokens(task, language.residual_tokens)
            made.append(find_residual(tokens, plain, codes[name]))
            put_residual(network, made[0])

    if language.rounding == "nearest":
        found = put_nearest(network, grids, activation_bits=8)
        outside(found)
    else:
        calibration = task.calibration(network, task.pieces("calibration"))
        found = put_rounded(network, grids, calibration, activation_bits=8, outside=outside, tick=tick)
    return found, made[0] if made else None


def count(codes: Mapping[str, BlockWeight], residual: Residual | None = None) -> dict[str, Any]:
    """What codes take: bytes packed with their scales, weights, and how many have how many bits."""
    bits: dict[str, int] = {}
    matrices: dict[str, int] = {}
    for weight in codes.values():
        bits[str(weight.bits)] = bits.get(str(weight.bits), 0) + weight.codes.numel()
        matrices[str(weight.bits)] = matrices.get(str(weight.bits), 0) + 1
    return {
        "bytes": sum(weight.bytes for weight in codes.values()) + (residual.bytes if residual else 0),
        "weights": sum(bits.values()), "bits": bits, "matrices": matrices,
        "zeros": sum(int((weight.codes == 0).sum()) for weight in codes.values()),
    }  # fmt: skip


def write_codes(path: Path, codes: Mapping[str, BlockWeight]) -> None:
    """Writes them: equal codes give equal bytes."""
    tensors, facts = {}, {}
    for name, weight in codes.items():
        tensors[f"{name}.codes"], tensors[f"{name}.scales"] = weight.codes, weight.scales
        facts[name] = f"{weight.bits} {weight.block}"
    save_file(tensors, path, metadata=facts)


def read_codes(path: Path) -> dict[str, BlockWeight]:
    """Reads what `write_codes` wrote.

    Raises:
        InputError: no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            found = {}
            for name, text in file.metadata().items():
                bits, block = map(int, text.split())
                codes: torch.Tensor = file.get_tensor(f"{name}.codes")
                found[name] = BlockWeight(codes, file.get_tensor(f"{name}.scales"), bits, block)
            return found
    except Exception as error:  # safetensors has an exception of its own that it does not export
        raise InputError(f"no file of codes: {error}", where=path) from error


def write_residual(path: Path, residual: Residual) -> None:
    """Writes one: equal ones give equal bytes."""
    weight = residual.weight
    save_file({"places": residual.places, "codes": weight.codes, "scales": weight.scales}, path)


def read_residual(path: Path) -> Residual:
    """Reads what `write_residual` wrote.

    Raises:
        InputError: no such file.
    """
    try:
        found = load_file(path)
        codes, scales = found["codes"], found["scales"]
        block = codes.shape[1] // scales.shape[1]
        return Residual(found["places"], BlockWeight(codes, scales, RESIDUAL_BITS, block))
    except Exception as error:  # as of `read_codes`
        raise InputError(f"no file of a residual: {error}", where=path) from error


def _residual_block(width: int) -> int | None:
    return RESIDUAL_BLOCK if width % RESIDUAL_BLOCK == 0 else None


def _places_type(tokens: int) -> torch.dtype:
    return torch.int16 if tokens <= torch.iinfo(torch.int16).max else torch.int32
