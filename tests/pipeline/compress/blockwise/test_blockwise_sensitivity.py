"""Mixed bits: what each part loses, and the choice within a budget."""

from __future__ import annotations

import itertools

import pytest
import torch
from blocks_networks import LINEARS, Talker, calibration

from paredown.pipeline.compress.blockwise.distil import divergence
from paredown.pipeline.compress.blockwise.layerwise import put_nearest
from paredown.pipeline.compress.blockwise.modules import plain_weight
from paredown.pipeline.compress.blockwise.sensitivity import choose_block_bits, measure_divergence
from paredown.pipeline.compress.grids.block_grid import BlockGrid, nearest
from paredown.pipeline.compress.grids.weight import BlockWeight
from paredown.pipeline.compress.sensitivity.sensitivity import Sensitivity
from paredown.pipeline.compress.squantize.bits import INT8
from paredown.targets.errors import BudgetError

pytestmark = pytest.mark.unit

GRIDS = {2: BlockGrid(2, 16), 4: BlockGrid(4, 16), 8: BlockGrid(8, None)}
PARTS = {
    "embedding": ("embed",),
    "mixing": tuple(name for name in LINEARS if "value" in name or "mix" in name),
    "ffn 0": tuple(name for name in LINEARS if "0.gate" in name or "0.up" in name or "0.down" in name),
    "ffn 1": tuple(name for name in LINEARS if "1.gate" in name or "1.up" in name or "1.down" in name),
}
TOKENS = torch.cat(calibration().batches)


def measured(network: Talker) -> tuple[Sensitivity, dict[str, dict[int, float]]]:
    def find(name: str, bits: int) -> BlockWeight:
        return nearest(plain_weight(network, name), GRIDS[bits])

    return measure_divergence(network, PARTS, tuple(GRIDS), find, lambda n: n(TOKENS).flatten(0, 1))


def test_points_are_those_of_a_network_with_one_part_in_codes() -> None:
    network = Talker()
    before = dict(network.named_modules())
    found, sizes = measured(network)
    assert dict(network.named_modules()) == before and network.head.weight is network.embed.weight
    assert found.images == TOKENS.numel() and found.baseline.metric == 0
    for curve in found.curves:
        assert [point.width for point in curve.points] == [8, 4, 2]
        for point in curve.points[1:]:
            low = Talker()
            weights = put_nearest(low, dict.fromkeys(PARTS[curve.group], GRIDS[point.width]))
            with torch.no_grad():
                expected = -float(divergence(low(TOKENS), network(TOKENS)))
            assert point.metric == pytest.approx(expected, rel=1e-3, abs=1e-6)
            assert point.low < point.metric < point.high
            assert sizes[curve.group][point.width] == sum(weight.bytes for weight in weights.values())


def test_the_choice_is_the_best_of_all_within_the_budget() -> None:
    found, sizes = measured(Talker())
    drop = {c.group: {p.width: max(0.0, -p.metric) for p in c.points} for c in found.curves}
    rest = 100.0
    whole = rest + sum(each[INT8] for each in sizes.values())
    for share in (0.45, 0.6, 0.8):
        chosen = choose_block_bits(found, sizes, rest, share * whole)
        assert rest + sum(sizes[p][bits] for p, bits in chosen.widths.items()) <= share * whole
        every = itertools.product(*(sizes[part] for part in PARTS))
        best = min(
            sum(drop[part][bits] for part, bits in zip(PARTS, combination, strict=True))
            for combination in every
            if rest + sum(sizes[p][b] for p, b in zip(PARTS, combination, strict=True)) <= share * whole
        )
        # A small penalty for few bits breaks ties between parts that lose next to nothing.
        assert sum(drop[p][bits] for p, bits in chosen.widths.items()) <= best + 8 / found.images
    with pytest.raises(BudgetError, match="best is"):
        choose_block_bits(found, sizes, rest, 0.1 * whole)
