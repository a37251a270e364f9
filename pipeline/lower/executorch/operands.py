"""What an operation asks of the program that it is written to, beside its inputs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.lower.integer import IntegerNode


class Operands:
    """A program while operations are written to it; the exporter's module is one, the recorder another."""

    def codes(self, x: Tensor, like: IntegerNode) -> Tensor:
        """Real values as codes of the scale of a node's output."""
        raise NotImplementedError

    def reals(self, codes: Tensor, like: IntegerNode) -> Tensor:
        """Such codes as real values, for one consumer."""
        raise NotImplementedError

    def requantized(self, x: Tensor, like: IntegerNode) -> Tensor:
        """Real values that went through codes of the scale of a node's output."""
        return self.reals(self.codes(x, like), like)

    def clamped(self, x: Tensor, node: IntegerNode) -> Tensor:
        """The output of a node behind the ReLU that it took in, if it did."""
        if node.low == -128 and node.high == 127:
            return x
        if node.high == 127:
            return F.relu(x)
        return F.hardtanh(x, 0.0, 6.0)
