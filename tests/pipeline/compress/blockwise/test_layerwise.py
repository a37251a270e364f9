"""Layer after layer: the same codes as with the whole network run anew for every matrix."""

from __future__ import annotations

import copy

import pytest
import torch
from blocks_networks import LINEARS, Talker, calibration
from torch import nn

from paredown.pipeline.compress.blockwise.layerwise import put_nearest, put_rounded
from paredown.pipeline.compress.blockwise.modules import fake_int8, put
from paredown.pipeline.compress.grids.block_grid import BlockGrid
from paredown.pipeline.compress.grids.rounding import RoundingConfig, rounded
from paredown.pipeline.compress.grids.weight import BlockWeight
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit

GRID = BlockGrid(4, 16)
GRIDS = {"head": GRID, **dict.fromkeys(LINEARS, GRID)}
SHARED = RoundingConfig(damping=0.5)


def plainly(network: nn.Module, activation_bits: int | None) -> dict[str, BlockWeight]:
    """The same, with the whole network run for every matrix."""
    run, found = calibration(), {}
    order = [["head"]]
    for layer in run.layers:
        order += [[f"{layer}.{name}" for name in names] for names in (("value",), ("mix",), ("gate", "up"))]
        order += [[f"{layer}.down"]]
    for names in order:
        inputs: list[torch.Tensor] = []
        module = network.get_submodule(names[0])
        handle = module.register_forward_pre_hook(lambda m, args, inputs=inputs: inputs.append(args[0]))
        with torch.no_grad():
            for tokens in run.batches:
                network(tokens)
        handle.remove()
        rows = [(fake_int8(x) if activation_bits else x).flatten(0, -2) for x in inputs]
        moments = sum(x.T @ x for x in rows)
        config = SHARED if names == ["head"] else RoundingConfig()
        fresh = {n: rounded(network.get_submodule(n).weight, moments, GRID, config) for n in names}
        put(network, fresh, activation_bits)
        found |= fresh
    return found


@pytest.mark.parametrize("activation_bits", [None, 8])
def test_same_codes_as_the_plain_way(activation_bits: int | None) -> None:
    network = Talker()
    expected = plainly(copy.deepcopy(network), activation_bits)
    found = put_rounded(network, GRIDS, calibration(), shared=SHARED, activation_bits=activation_bits)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert torch.equal(weight.codes, expected[name].codes), name
        assert torch.equal(weight.scales, expected[name].scales), name
    assert network.embed.tensor is network.head.tensor


def test_outputs_move_less_than_with_the_nearest_codes() -> None:
    network, tokens = Talker(), torch.cat(calibration(32).batches)[24:]
    with torch.no_grad():
        plain = network(tokens)
        found: dict[str, float] = {}
        for name, change in (
            ("nearest", lambda n: put_nearest(n, GRIDS)),
            ("rounded", lambda n: put_rounded(n, GRIDS, calibration(24))),
        ):
            low = copy.deepcopy(network)
            change(low)
            found[name] = float((low(tokens) - plain).square().mean())
    assert found["rounded"] < 0.9 * found["nearest"]


def test_names_that_are_missing_or_never_run() -> None:
    with pytest.raises(InputError, match="layers.9.up is missing"):
        put_rounded(Talker(), {"layers.9.up": GRID}, calibration())
    with pytest.raises(InputError, match="norm is LayerNorm"):
        put_nearest(Talker(), {"layers.0.norm": GRID})
    network = Talker()
    network.layers[1].spare = nn.Linear(32, 32)
    with pytest.raises(InputError, match="spare is never run"):
        put_rounded(network, {"layers.1.spare": GRID}, calibration())
