"""A user's classification project in miniature: three colours to tell apart, a network of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

NAMES = ("red", "green", "blue")
CODE = """
import torch
from torch import nn


class Net(nn.Module):
    input_size = 32

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.bn = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        return self.linear(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def make():
    return Net()


def make_pair():
    return nn.Sequential(nn.Conv2d(3, 2, 32), nn.Flatten())


def fail():
    raise RuntimeError("no such luck")
"""
RECIPE = """app = "apps.classifier"
network = "colour_net:make"
weights = "net.pth"

[data]
format = "cifar"
train = "train"
test = "test"

[lower]
runtimes = ["litert"]

[bench]
runs = 3
"""


def make_project(folder: Path) -> Path:
    """Writes code, weights that tell the colours apart, data and the recipe; returns the recipe."""
    (folder / "colour_net.py").write_text(CODE)
    torch.manual_seed(0)
    scope: dict = {}
    exec(CODE, scope)
    network = scope["make"]()
    with torch.no_grad():
        network.conv.weight.mul_(0.05)
        network.conv.bias.fill_(1.0)
        network.linear.weight.mul_(0.1)
        for colour in range(3):
            network.conv.weight[colour, colour] += 0.2
            network.linear.weight[colour, colour] += 2.0
    torch.save(network.state_dict(), folder / "net.pth")
    for split, file, count in (("train", "data_batch_1.bin", 24), ("test", "test_batch.bin", 12)):
        (folder / split).mkdir()
        (folder / split / file).write_bytes(colours(count, seed=count))
        (folder / split / "batches.meta.txt").write_text("".join(f"{name}\n" for name in NAMES))
    (folder / "colours.toml").write_text(RECIPE)
    return folder / "colours.toml"


def colours(count: int, seed: int) -> bytes:
    """CIFAR records: noise, and more of the label's colour."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    planes = random.integers(0, 128, (count, 3, 1024), np.uint8)
    planes[np.arange(count), labels] += 100
    return np.concatenate([labels.astype(np.uint8)[:, None], planes.reshape(count, -1)], axis=1).tobytes()
