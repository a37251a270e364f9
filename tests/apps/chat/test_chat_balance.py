"""The output layer's outlier columns: found, moved away, and the same network after it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gemma_models import oracle, ours

from paredown.apps.chat.network.balance import balance_head, layer_channels, outliers
from paredown.apps.chat.network.cache import empty_cache
from paredown.apps.chat.network.network import Gemma
from paredown.pipeline.compress.blockwise.channels import multiply
from paredown.pipeline.compress.grids.block_grid import BlockGrid, nearest


def test_only_columns_that_stand_out_get_factors():
    rows = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    assert outliers(rows) == {}
    rows[:, 5] *= 9
    rows[:, 40] *= 3
    assert outliers(rows) == {5: 8, 40: 2}
    assert outliers(torch.zeros(4, 8)) == {}


@pytest.mark.parametrize("tied", [True, False])
def test_the_balanced_network_computes_what_it_did(tied):
    plain = ours(oracle())
    network = Gemma(replace(plain.config, tied=tied)).eval()
    network.load_state_dict(plain.state_dict())
    tokens, cache = torch.randint(4, 96, (1, 12)), empty_cache(network.config, 12, 12)
    wide = torch.ones(network.config.width)
    wide[3], wide[7] = 8, 2
    with torch.no_grad():
        network.lm_head.weight.mul_(wide)
        before, _ = network(tokens, torch.arange(12), cache)
        held = network.lm_head.weight.clone()
        balance_head(network, {3: 8, 7: 2})
        after, _ = network(tokens, torch.arange(12), cache)
    assert torch.equal(network.lm_head.weight * wide, held)
    assert (network.model.embed_scale.ndim == 1) == tied
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


def test_codes_with_a_scale_per_row_lose_less():
    weight = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
    weight[:, 9] *= 12

    def lost(factors: torch.Tensor) -> float:
        codes = nearest(weight / factors, BlockGrid(4, None)).dequantized() * factors
        return float((codes - weight).square().sum())

    (factor,) = outliers(weight).values()
    balanced = torch.ones(64)
    balanced[9] = factor
    assert lost(balanced) < 0.5 * lost(torch.ones(64))


def test_layers_with_other_channels_compute_what_they_did():
    network = ours(oracle())
    tokens, cache = torch.randint(4, 96, (1, 12)), empty_cache(network.config, 12, 12)
    chance, factors, matrices = torch.Generator().manual_seed(2), {}, set()
    for group in layer_channels(network):
        reader = network.get_submodule(group.readers[0])
        factors[group.readers[0]] = torch.randn(reader.in_features, generator=chance).exp()
        matrices |= set(group.readers)
    with torch.no_grad():
        before, _ = network(tokens, torch.arange(12), cache)
        multiply(network, layer_channels(network), factors)
        after, _ = network(tokens, torch.arange(12), cache)
    linears = {name for name, each in network.named_modules() if isinstance(each, torch.nn.Linear)}
    assert matrices == {name for name in linears if "o_proj" not in name} - {"lm_head"}
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
