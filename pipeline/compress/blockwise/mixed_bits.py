"""Mixed bits in a language model: which matrices get 8 bits and which 4, within a budget of bytes.

What a matrix loses with 4 bits is measured with it alone in codes, on calibration text, by how far the
network's probabilities move; the choice is that of `pipeline.compress.blockwise.sensitivity`. The codes are
those of the recipe's rounding: GPTQ leaves a fifteenth of the nearest codes' error in some kinds of matrices
and a sixth in others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from paredown.pipeline.compress.blockwise.codes import find_codes, frequent_tokens, residual_bytes
from paredown.pipeline.compress.blockwise.modules import plain_weight
from paredown.pipeline.compress.blockwise.sensitivity import (
    choose_block_bits,
    for_a_while,
    measure_divergence,
)
from paredown.pipeline.compress.grids.block_grid import BlockGrid, nearest
from paredown.pipeline.compress.grids.weight import ROW_SCALE, BlockWeight, weight_bytes
from paredown.pipeline.compress.sensitivity.sensitivity import Sensitivity
from paredown.pipeline.recipe.language_task import LanguageTask
from paredown.pipeline.recipe.schema import Language
from paredown.targets.errors import BudgetError

LOW, HIGH = 4, 8
SAMPLE = 256  # calibration tokens
MIB = 2**20


def measure_loss(
    task: LanguageTask,
    network: nn.Module,
    bits: Mapping[str, int],
    language: Language,
    tick: Callable[[int, int], None],
) -> dict[str, Any]:
    """What each matrix of 4 bits loses, as JSON has it.

    Args:
        task: of the network.
        network: in full precision; it comes back as it was.
        bits: of every matrix, by name.
        language: the recipe's section: how it is rounded, and who shares a scale at 4 bits.
        tick: progress.
    """
    pieces = task.pieces("calibration")
    run, sample = task.lesson(pieces), pieces[0][:SAMPLE]

    def logits(network: nn.Module) -> Tensor:
        return run(network, sample)

    parts = {name: (name,) for name, each in bits.items() if each == LOW}
    low = {name: each for name, each in bits.items() if each == LOW}
    with for_a_while(network):
        codes, _ = find_codes(task, network, language, low, lambda done, total: None)

    def find(name: str, width: int) -> BlockWeight:
        return codes[name] if width == LOW else nearest(plain_weight(network, name), BlockGrid(HIGH, None))

    found, sizes = measure_divergence(network, parts, (LOW, HIGH), find, logits, activation_bits=8, tick=tick)
    shapes = {name: plain_weight(network, name).shape for name in bits if name not in parts}
    fixed = sum(weight_bytes(rows, columns, HIGH) + ROW_SCALE * rows for rows, columns in shapes.values())
    return {"sensitivity": found.to_dict(), "bytes": sizes, "fixed": fixed}


def mixed(
    task: LanguageTask,
    network: nn.Module,
    measured: Mapping[str, Any],
    bits: Mapping[str, int],
    language: Language,
) -> dict[str, int]:
    """Bits of every matrix within the recipe's budget, of which the embedding's residual takes its part.

    Args:
        task: of the network.
        network: in full precision.
        measured: of `measure_loss`, also after JSON.
        bits: of every matrix, by name.
        language: the recipe's section, with a budget.

    Raises:
        BudgetError: fewer bytes than 4 bits take; the line says the least.
    """
    assert language.weights_mib is not None  # nothing was measured for a recipe without
    taken = 0
    if language.residual_tokens:
        rows, width = plain_weight(network, task.matrices(network)[1]).shape
        taken = residual_bytes(len(frequent_tokens(task, language.residual_tokens)), width, rows)
    return mix(measured, bits, language.weights_mib, taken)


def mix(measured: Mapping[str, Any], bits: Mapping[str, int], mib: float, taken: int = 0) -> dict[str, int]:
    """Bits of every matrix within a budget.

    Args:
        measured: of `measure_loss`, also after JSON.
        bits: likewise.
        mib: most MiB of codes and scales.
        taken: bytes of them that are spent.

    Raises:
        BudgetError: fewer bytes than 4 bits take; the line says the least.
    """
    found = Sensitivity.from_dict(measured["sensitivity"])
    sizes = {name: {int(b): size for b, size in each.items()} for name, each in measured["bytes"].items()}
    fixed = measured["fixed"] + taken
    least = fixed + sum(each[LOW] for each in sizes.values())
    if mib * MIB < least:
        raise BudgetError(
            f"weights_mib = {mib:g}: with {LOW} bits it is {least / MIB:,.2f} MiB",
            where="recipe, key language.weights_mib", hint="raise it, or keep fewer channels (language.ffn)",
        )  # fmt: skip
    return {**bits, **choose_block_bits(found, sizes, fixed, mib * MIB).widths}
