"""Batch norm measured anew: by numpy's own mean and variance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from paredown.pipeline.compress.training.bn_recalibration import recalibrate
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.03)
        self.drop, self.second = nn.Dropout(0.5), nn.Conv2d(4, 5, 1)
        self.bn2 = nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.second(self.drop(torch.relu(self.bn(self.conv(x))))))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def batches(count: int = 3, size: int = 8) -> list[Tensor]:
    torch.manual_seed(1)
    return [3 * torch.randn(size, 3, 6, 6) + 1 for _ in range(count)]


def test_statistics_are_the_averages_over_the_batches():
    network, images = net(), batches()
    assert recalibrate(network, images) == 2
    means, variances = [], []
    for batch in images:
        with torch.no_grad():
            made = network.conv(batch).transpose(0, 1).flatten(1).double().numpy()
        means.append(made.mean(1))
        variances.append(made.var(1, ddof=1))
    torch.testing.assert_close(
        network.bn.running_mean.double(), torch.tensor(sum(means) / 3), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        network.bn.running_var.double(), torch.tensor(sum(variances) / 3), atol=1e-4, rtol=1e-4
    )


def test_order_of_the_batches_does_not_matter_and_dropout_stays_off():
    one, other = net(), net()
    recalibrate(one, batches())
    recalibrate(other, iter(batches()[::-1]))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], atol=1e-5, rtol=1e-5)


def test_only_statistics_change():
    network = net()
    network.drop.train()  # whatever the modes were, they are so again
    before = {name: value.clone() for name, value in network.state_dict().items()}
    recalibrate(network, batches())
    changed = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {
        f"{bn}.{s}" for bn in ("bn", "bn2") for s in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert [m.training for m in (network, network.bn, network.drop)] == [False, False, True]
    assert (network.bn.momentum, network.bn2.momentum) == (0.03, 0.1)


def test_it_undoes_wrong_statistics():
    network, images = net(), batches(6, 32)
    recalibrate(network, images)
    with torch.no_grad():
        right = network(images[0])
        network.bn.running_mean.add_(5)
        network.bn2.running_var.mul_(9)
        assert float((network(images[0]) - right).abs().max()) > 1
        recalibrate(network, images)
        torch.testing.assert_close(network(images[0]), right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("images", "words"), [([], "no images"), ([torch.rand(1, 3, 3, 3)], "one image are too small")]
)
def test_too_little_to_measure_on_is_an_error_and_changes_nothing(images, words):
    network = net()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError, match=words):
        recalibrate(network, images)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.bn.training and network.bn.momentum == 0.03


def test_a_network_without_batch_norm_is_left_alone():
    def never():
        raise AssertionError("no image is needed")
        yield

    assert recalibrate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), never()) == 0
    assert recalibrate(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), never()) == 0
