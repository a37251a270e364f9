"""What the chat asks of a language model, whatever runtime is behind it; `models.py` has those there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class LanguageModel(Protocol):
    """A network with what it has read so far, its key-value cache.

    Attributes:
        vocabulary: logits for each token.
        context: tokens that it can have read at most.
        chunk: tokens that it reads best at a time.
        position: tokens that it has read.
    """

    vocabulary: int
    context: int
    chunk: int
    position: int

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Reads on; returns the logits (vocabulary,) after the last of one or more tokens.

        Raises:
            ValueError: no token, one outside the vocabulary, or more than the context has room for.
        """

    def prefill(self, tokens: Sequence[int]) -> None:
        """Reads on without logits, which takes less time: of a long text all but its last part.

        Raises:
            ValueError: as `feed`.
        """

    def reset(self) -> None:
        """Forgets all that was read."""
