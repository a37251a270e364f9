"""The order of memory that training takes, and what it must never take."""

from __future__ import annotations

import pytest
import torch
from tiny_project import python
from torch import nn

from paredown.pipeline.compress.training.loop import memory_order, reorder

PRUNED = """
import sys
import torch
from torch import nn
from paredown.pipeline.compress.training.config import RecoverConfig
from paredown.pipeline.compress.training.recover import recover

class Batches:
    per_epoch = 6

    def __call__(self, step):
        chance = torch.Generator().manual_seed(step)
        return torch.rand(64, 3, 32, 32, generator=chance), torch.randint(0, 4, (64,), generator=chance)

thin = int(sys.argv[1])
layers = [nn.Conv2d(3, thin, 3, padding=1), nn.Conv2d(thin, 21, 1, 2, bias=False), nn.ReLU()]
network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(21, 4))
config = RecoverConfig(method="labels", epochs=1, warmup=1)
found = recover(network.eval(), Batches(), config, label_loss=nn.functional.cross_entropy)
assert found.steps == 6
"""


@pytest.mark.unit
@pytest.mark.parametrize(("channels", "safe"), [(1, True), (2, False), (4, False), (7, False), (8, True)])
def test_a_small_convolution_of_few_channels_is_not_trained_with_channels_last(channels, safe):
    wanted = torch.channels_last if safe else torch.contiguous_format
    for groups in (1, 2):
        shortcut = nn.Conv2d(channels * groups, 4, 1, 2, groups=groups)
        assert memory_order(nn.Sequential(nn.Conv2d(3, 8, 3), shortcut)) == wanted
    assert (
        memory_order(nn.Conv2d(channels, 4, 3)) == memory_order(nn.Linear(channels, 4)) == torch.channels_last
    )


@pytest.mark.unit
def test_an_order_changes_where_weights_lie_and_not_what_they_are():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv1d(8, 2, 3), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    reorder(network, torch.channels_last)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("thin", [2, 5, 7])
def test_a_strided_shortcut_of_few_channels_can_be_trained(thin):
    done = python(PRUNED, thin, timeout=300)  # a damaged heap may also make it go on for ever
    assert done.returncode == 0, done.stderr
