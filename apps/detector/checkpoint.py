"""A training's state on disk: written whole or not at all, read without running anyone's code."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import nn

from targets.errors import InputError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a file beside `path`, then puts it there: a reader finds the old or the new one.

    Raises:
        InputError: the folder cannot be written to.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", where=path) from error


def save_weights(path: Path, network: nn.Module) -> None:
    """Writes a network's state_dict as .safetensors: the same weights give the same bytes."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = save(state)
    write_atomically(path, lambda file: file.write(content))


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes tensors, numbers, text, lists and dicts so that `load_checkpoint` gives them back."""
    write_atomically(path, lambda file: torch.save(dict(state), file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote; a pickle that would run code is refused.

    Raises:
        InputError: not such a file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no closed list of what it raises on a broken file
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"is no checkpoint ({reason})", where=path, hint="delete it to start anew"
        ) from error
    if not isinstance(state, dict):
        raise InputError(
            f"is no checkpoint but a {type(state).__name__}", where=path, hint="delete it to start anew"
        )
    return state
