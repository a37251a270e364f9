"""Networks that are no darknet's: what they say of themselves is read, and compared with what they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.apps.detector.device.boxes.heads import Heads, heads_of
from paredown.targets.errors import InputError


def is_own(made: object) -> bool:
    """Whether a network says how its outputs are decoded."""
    return isinstance(made, nn.Module) and isinstance(getattr(made, "decoding", None), Mapping)


def checked_heads(
    network: nn.Module, shape: Sequence[int], classes: int, where: str
) -> tuple[Heads, tuple[str, ...]]:
    """The heads of a network, which is run once, and the names of its outputs.

    Args:
        network: with an attribute `decoding`.
        shape: of its input, (1, channels, height, width).
        classes: as many as there are names.
        where: what the network is called.

    Raises:
        InputError: `decoding` cannot be read, the network does not take the input, or its outputs are others.
    """
    heads = heads_of(network.decoding, (shape[3], shape[2]))
    training = network.training
    try:
        with torch.no_grad():
            outputs: Any = network.eval()(torch.zeros(tuple(shape)))
    except Exception as error:  # the user's own code: whatever it raises is about it, not about us
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"does not take an input of {tuple(shape)}: {reason}", where=where) from error
    finally:
        network.train(training)
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    if not isinstance(outputs, list | tuple) or not all(isinstance(one, Tensor) for one in outputs):
        raise InputError(f"returns a {type(outputs).__name__}, not a tuple of tensors", where=where)
    heads.check([tuple(one.shape) for one in outputs], classes)
    return heads, heads.names(len(outputs))
