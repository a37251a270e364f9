"""What cannot be exported is refused in one line: what, the user's own line, and what to do."""

from __future__ import annotations

import inspect
import logging
import re

import pytest
import torch
from torch import Tensor, nn

from paredown.pipeline.graph.export.torch_export import export
from paredown.pipeline.graph.trace import trace
from paredown.targets.errors import InputError

SHAPE = (1, 3, 8, 8)


class Net(nn.Module):
    """A convolution, and what a case does with it."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3)
        self.register_buffer("seen", torch.zeros(1))


class Branch(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        return y if y.sum() > 0 else -y


class Loop(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        while y.abs().max() > 1:
            y = y / 2
        return y


class Number(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(x) * float(x.mean().item())


class Cond(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda v: self.c(v), lambda v: self.c(-v), (x,))


class Numpy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.c(x).detach().numpy())


class Half(Net):
    def __init__(self) -> None:
        super().__init__()
        self.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x.half())


class Two(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.c(x) + y


class Own(Net):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such mode\nand more")


class InputChanged(Net):
    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return self.c(x)


class Counts(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.c(x) + self.seen


class Chosen(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        return y[y > 0]


class Places(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nonzero(self.c(x))


class Sparse(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(x).to_sparse()


class Noise(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(x) + torch.randn(1)


class Spectrum(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(self.c(x)).abs()


@torch.library.custom_op("paredown_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Custom(Net):
    def forward(self, x: Tensor) -> Tensor:
        return twice(self.c(x))


class PartChanged(Net):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0
        return self.c(x)


class Dropped(Net):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.c(x))


class Yields(Net):
    def forward(self, x: Tensor) -> object:
        return (y for y in [self.c(x)])


CASES = {
    "dropped": (Dropped, "is told to drop values in evaluation too (training=True); give it training="),
    "part of the input changed": (PartChanged, "changes the network's input in place"),
    "yields": (Yields, "it returns something that holds no tensors; return a tensor"),
    "chosen by a mask": (Chosen, "makes a shape that depends on the values"),
    "custom": (Custom, "(paredown_tests::twice) is a custom operator"),
    "noise": (Noise, "is random; a network must give the same answer"),
    "places": (Places, "makes a shape that depends on the values"),
    "sparse": (Sparse, "makes a sparse tensor"),
    "spectrum": (Spectrum, "computes in complex numbers"),
    "branch": (Branch, "depends on the values of a tensor"),
    "buffer": (Counts, "changes seen each time"),
    "cond": (Cond, "depends on the values of a tensor"),
    "half": (Half, "parameter c.weight is float16, and 2 more"),
    "input changed": (InputChanged, "changes the network's input in place"),
    "loop": (Loop, "depends on the values of a tensor"),
    "number": (Number, "depends on the values of a tensor"),
    "numpy": (Numpy, "becomes a numpy array"),
    "own error": (Own, "fails on an input of (1, 3, 8, 8): ValueError: no such mode"),
    "two inputs": (Two, "forward takes x, y"),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_one_line_names_what_where_and_what_to_do(name):
    network, message = CASES[name]
    with pytest.raises(InputError) as error:
        trace(network(), SHAPE)
    text = str(error.value)
    assert message in text
    assert "\n" not in text
    assert ";" in text  # what to do
    line = re.search(r"test_torch_export\.py:(\d+): ", text)
    assert line
    source, first = inspect.getsourcelines(network)
    assert 0 <= int(line[1]) - first < len(source)


def test_a_network_of_torchs_own_classes_is_named():
    with pytest.raises(InputError, match=r"^Sequential: parameter 0\.weight is float16"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 3)).half(), SHAPE)


def test_torch_says_nothing_beside_it(caplog, capfd, recwarn):
    with pytest.raises(InputError):
        trace(Branch(), SHAPE)
    export(nn.LSTM(3, 4, batch_first=True), (1, 2, 3))
    found = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not found and not recwarn.list and capfd.readouterr() == ("", "")


def test_the_network_is_left_in_the_mode_that_it_was_in():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    net[1].eval()
    trace(net, SHAPE)
    assert (net.training, net[0].training, net[1].training) == (True, True, False)
    with pytest.raises(InputError):
        trace(Branch().train(), SHAPE)
