"""How well a model knows a text: `python -m paredown.apps.chat.device.score RUNTIME PIECES.npy THREADS`.

Runs in an unpacked bundle's folder. PIECES holds whole numbers (N, window), each row a piece of text behind
the token that every text begins with. Reads them token by token, as a chat writes. Prints one JSON: the
negative log-likelihood of all tokens but each piece's first, and how many these are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paredown.apps.chat.device.language_model import LanguageModel
from paredown.apps.chat.device.models import open_model
from paredown.targets.errors import InputError, ParedownError, UsageError


def loss(model: LanguageModel, piece: NDArray[np.int64]) -> float:
    """The negative log-likelihood of a piece's tokens after the first, in nats."""
    model.reset()
    total = 0.0
    for token, following in zip(piece[:-1].tolist(), piece[1:].tolist(), strict=True):
        logits = model.feed([token]).astype(np.float64)
        highest = logits.max()
        total += float(np.log(np.exp(logits - highest).sum()) + highest - logits[following])
    return total


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    try:
        if len(arguments) != 3:
            raise UsageError("usage: python -m paredown.apps.chat.device.score RUNTIME PIECES.npy THREADS")
        try:
            pieces = np.load(arguments[1])
        except (OSError, ValueError) as error:
            raise InputError(f"no pieces of text: {error}", where=arguments[1]) from error
        model = open_model(Path.cwd(), arguments[0], int(arguments[2]))
        losses = []
        for done, piece in enumerate(pieces, start=1):
            losses.append(loss(model, piece))
            print(f"piece {done} of {len(pieces)}", file=sys.stderr, flush=True)
        print(json.dumps({"loss": sum(losses), "tokens": pieces.size - len(pieces)}))
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
