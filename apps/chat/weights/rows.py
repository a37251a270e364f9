"""A model's file read by rows, and the output layer that a file may have beside the embedding."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
ROWS = 8192  # read at a time: an embedding whole would take the network's size once more


class RowFile(Protocol):
    """What `weights.TensorFile` has for it."""

    shapes: dict[str, tuple[int, ...]]

    def rows(self, name: str, start: int, count: int) -> Tensor:
        """Rows of one tensor, as float32."""


def same_rows(file: RowFile) -> bool:
    """Whether a file's output layer is its embedding once more; one of another shape is not."""
    shape = file.shapes.get(EMBEDDING)
    if shape != file.shapes[HEAD] or not shape:
        return False
    return all(
        torch.equal(file.rows(HEAD, start, ROWS), file.rows(EMBEDDING, start, ROWS))
        for start in range(0, shape[0], ROWS)
    )
