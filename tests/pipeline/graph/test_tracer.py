"""Values that are held with height and width in other places: every operation still reads them right."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.graph.trace import check_trace, trace
from paredown.targets.errors import InputError


class Turned(nn.Module):
    """Coordinate attention (Hou et al. 2021), whose product is held turned, before an operation."""

    def __init__(self, operation: Callable[[Turned, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.operation = operation
        self.stem, self.gate = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.whole, self.wide = nn.Conv2d(8, 5, 3, padding=(1, 0)), nn.Conv2d(8, 5, (1, 3))
        self.depthwise, self.point = nn.Conv2d(8, 8, (3, 1), groups=8), nn.Conv2d(8, 5, 1)
        self.up, self.line = nn.ConvTranspose2d(8, 4, (2, 3), (1, 2)), nn.Conv1d(8, 4, 3)
        self.batch, self.group, self.layer = nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.slope = nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rows, columns = x.mean(3, keepdim=True).permute(0, 1, 3, 2), x.mean(2, keepdim=True)
        both = self.gate(torch.cat([rows, columns], 3)).permute(0, 1, 3, 2)
        _, columns = both.split([x.shape[2], x.shape[3]], 2)
        return self.operation(self, x * columns.permute(0, 1, 3, 2).sigmoid())


OPERATIONS: dict[str, Callable[[Turned, Tensor], Tensor]] = {
    "convolution": lambda m, x: m.whole(x),
    "of one row": lambda m, x: m.wide(x),
    "of one pixel": lambda m, x: m.point(x),
    "depthwise": lambda m, x: m.depthwise(x),
    "transposed": lambda m, x: m.up(x),
    "of a line": lambda m, x: m.line(x.mean(2)),
    "largest": lambda _, x: F.max_pool2d(x, (2, 3), (1, 2)),
    "average": lambda _, x: F.avg_pool2d(x, (2, 3), (1, 2)),
    "adaptive": lambda _, x: F.adaptive_avg_pool2d(x, (1, 6)),
    "pad": lambda _, x: F.pad(x, (1, 0, 2, 0)),
    "mirrored": lambda _, x: F.pad(x, (1, 1, 0, 2), "reflect"),
    "nearest": lambda _, x: F.interpolate(x, scale_factor=(2, 3), mode="nearest"),
    "bilinear": lambda _, x: F.interpolate(x, scale_factor=(2, 1), mode="bilinear"),
    "batch norm": lambda m, x: m.batch(x),
    "group norm": lambda m, x: m.group(x),
    "layer norm": lambda m, x: m.layer(x.permute(0, 2, 3, 1)),
    "instance norm": lambda _, x: F.instance_norm(x),
    "mean of columns": lambda _, x: x.mean(2, keepdim=True) + x,
    "mean of rows": lambda _, x: x.mean(3),
    "slice": lambda _, x: x[:, :, 1:3, ::2],
    "roll": lambda _, x: x.roll(1, 2),
    "flip": lambda _, x: x.flip(2),
    "joined": lambda m, x: torch.cat([x, m.batch(x.relu())], 2),
    "shuffle": lambda _, x: F.pixel_shuffle(x, 2),
    "softmax": lambda _, x: x.softmax(3),
    "slopes": lambda m, x: m.slope(x),
    "reshape": lambda _, x: x.flatten(1),
    "product": lambda _, x: x @ x.transpose(2, 3),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_on_a_turned_map(name: str) -> None:
    network, x = Turned(OPERATIONS[name]).eval(), torch.randn(1, 3, 6, 6)
    graph = trace(network, (1, 3, 6, 6))
    with torch.no_grad():
        wanted, found = network(x), graph.run(x)[graph.outputs[0]]
    assert torch.allclose(found.reshape(wanted.shape), wanted, atol=1e-5)


def test_a_graph_that_computes_something_else_is_told() -> None:
    network = Turned(OPERATIONS["convolution"]).eval()
    graph = trace(network, (1, 3, 6, 6))
    check_trace(network, graph)
    network.whole.weight.data *= -1  # folded into nothing: they share it
    check_trace(network, graph)
    one = copy.deepcopy(network)
    one.whole.bias.data[0] += 1  # of five channels
    with pytest.raises(InputError, match="computes something else"):
        check_trace(one, graph)
    network.whole.weight = nn.Parameter(1.1 * network.whole.weight)
    with pytest.raises(InputError, match="computes something else"):
        check_trace(network, graph)
