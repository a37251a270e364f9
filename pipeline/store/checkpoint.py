"""A training's state on disk: written whole or not at all, read without running anyone's code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from paredown.pipeline.store.store import write_atomic
from paredown.targets.errors import InputError


def save_weights(path: Path, network: nn.Module, metadata: dict[str, str] | None = None) -> None:
    """Writes a network's state_dict as .safetensors: the same weights give the same bytes.

    Args:
        path: of the file.
        network: whose tensors.
        metadata: what the file's head says of them.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_atomic(path, save(state, metadata))


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes tensors, numbers, text, lists and dicts so that `load_checkpoint` gives them back."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomic(path, buffer.getvalue())


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


def load_run(path: Path, identity: str) -> dict[str, Any]:
    """Reads the checkpoint of one certain run.

    Args:
        path: of the file.
        identity: what the checkpoint must carry under "identity".

    Raises:
        InputError: not a checkpoint, or that of another run.
    """
    state = load_checkpoint(path)
    if state.get("identity") != identity:
        raise InputError(
            "belongs to another run (other settings, data or initial weights)",
            where=path,
            hint="give what it was started with, or delete it to start anew",
        )
    return state


def damaged(path: Path, error: Exception) -> InputError:
    """The error of a checkpoint that has lost a part."""
    return InputError(f"is damaged ({error})", where=path, hint="delete it to start anew")
