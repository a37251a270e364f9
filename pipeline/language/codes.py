"""A language model's matrices into codes, as a recipe asks for it, and those codes in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.blocks.grid import BlockGrid
from pipeline.blocks.walk import put_nearest, put_rounded
from pipeline.blocks.weight import BlockWeight
from pipeline.language.task import LanguageTask
from pipeline.recipe import Language
from targets.errors import InputError


def find_codes(
    task: LanguageTask, language: Language, block: int, tick: Callable[[int, int], None]
) -> dict[str, BlockWeight]:
    """Rounds as the recipe says.

    Args:
        task: whose network.
        language: the recipe's section.
        block: weights that share a scale; 0 = a whole output channel.
        tick: progress.
    """
    network = task.network()
    linears, head = task.matrices(network)
    grids = {name: BlockGrid(language.weight_bits, _block(language.weight_bits, block)) for name in linears}
    grids[head] = BlockGrid(language.embedding_bits, _block(language.embedding_bits, block))
    if language.rounding == "nearest":
        return put_nearest(network, grids, activation_bits=8)
    count = -(-language.calibration_tokens // language.window)
    pieces = task.pieces("calibration")[:count]
    return put_rounded(network, grids, task.calibration(network, pieces), activation_bits=8, tick=tick)


def count(codes: Mapping[str, BlockWeight]) -> dict[str, Any]:
    """What codes take: bytes packed with their scales, weights, and how many have how many bits."""
    bits: dict[str, int] = {}
    for weight in codes.values():
        bits[str(weight.bits)] = bits.get(str(weight.bits), 0) + weight.codes.numel()
    return {
        "bytes": sum(weight.bytes for weight in codes.values()),
        "weights": sum(bits.values()), "bits": bits,
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


def _block(bits: int, block: int) -> int | None:
    """Runtimes have codes of 8 bits with a scale per row alone."""
    return block if block and bits == 4 else None
