"""A language model's matrices into codes, as a recipe asks for it, and those codes in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from paredown.pipeline.compress.blockwise.layerwise import put_nearest, put_rounded
from paredown.pipeline.compress.blockwise.modules import plain_weight
from paredown.pipeline.compress.grids.block_grid import BlockGrid
from paredown.pipeline.compress.grids.weight import BlockWeight
from paredown.pipeline.recipe.language_task import LanguageTask
from paredown.pipeline.recipe.schema import Language
from paredown.targets.errors import InputError

Bits = Mapping[str, int]


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


def find_codes(
    task: LanguageTask,
    network: nn.Module,
    language: Language,
    bits: Bits,
    tick: Callable[[int, int], None],
) -> dict[str, BlockWeight]:
    """Rounds as the recipe says.

    Args:
        task: of the network.
        network: in full precision, thinner or not; its matrices become low-bit ones.
        language: the recipe's section.
        bits: of every matrix.
        tick: progress.
    """
    linears, _ = task.matrices(network)
    grids = {name: grid(each, name in linears, language) for name, each in bits.items()}
    if language.rounding == "nearest":
        return put_nearest(network, grids, activation_bits=8)
    pieces = task.pieces("calibration")
    return put_rounded(network, grids, task.calibration(network, pieces), activation_bits=8, tick=tick)


def count(codes: Mapping[str, BlockWeight]) -> dict[str, Any]:
    """What codes take: bytes packed with their scales, weights, and how many have how many bits."""
    bits: dict[str, int] = {}
    matrices: dict[str, int] = {}
    for weight in codes.values():
        bits[str(weight.bits)] = bits.get(str(weight.bits), 0) + weight.codes.numel()
        matrices[str(weight.bits)] = matrices.get(str(weight.bits), 0) + 1
    return {
        "bytes": sum(weight.bytes for weight in codes.values()),
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
