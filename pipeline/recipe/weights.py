"""Trained weights into a network: .safetensors and torch checkpoints, tensors only, checked before loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from paredown.pipeline.recipe.weights_file import SUFFIXES, TORCH_SUFFIXES, cannot, read_weights_file
from paredown.pipeline.recipe.weights_fit import fit, plain, tensor_of
from paredown.targets.errors import InputError

__all__ = ["SUFFIXES", "TORCH_SUFFIXES", "cannot", "check_values", "load_checkpoint"]


def load_checkpoint(
    path: str | Path, network: nn.Module, of: object, fixed: Collection[str] = (), known: Collection[str] = ()
) -> tuple[str, ...]:
    """Loads .safetensors, or .pt / .pth / .th / .ckpt / .bin (torch, tensors only) into the network.

    The dict of the file and the prefix of its names that fit the network are found; see
    `pipeline.recipe.weights_fit`. The network is changed only if the whole file is good.

    Args:
        path: of the file.
        network: of the checkpoint's architecture.
        of: what the network is, for errors.
        fixed: tensors that the file may lack because the architecture decides them.
        known: further suffixes that the caller reads itself, for the error.

    Returns:
        How it was read, in a line; none for a plain state dict in float32.

    Raises:
        InputError: another suffix, a file that cannot be read, a pickle that holds more than tensors, and
            tensors that are missing, unknown, of another shape, NaN or infinite.
    """
    path = Path(path)
    own = network.state_dict()
    needed = {name for name in own if not name.endswith("num_batches_tracked")} - set(fixed)
    part, notes = fit(read_weights_file(path, tuple(known)), own, needed)
    state = _checked(part.state, own, needed, path, of)
    kinds = {str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point()}
    if converted := sorted(kinds - {"float32"}):
        notes.append(f"{' and '.join(converted)} converted to float32")
    network.load_state_dict(state, strict=False)  # strict but for what is checked above
    return (f"{path.name}: {'; '.join(notes)}",) if notes else ()


def check_values(name: str, values: np.ndarray, where: object) -> None:
    """Refuses NaN and infinite values, and negative ones where the name ends in "variances".

    Raises:
        InputError: naming them.
    """
    broken = ~np.isfinite(values)
    if broken.any():
        raise InputError(f"{name} hold {int(broken.sum())} values that are NaN or infinite", where=where)
    if name.endswith("variances") and (values < 0).any():
        raise InputError(f"{name} hold {int((values < 0).sum())} negative values", where=where)


def _checked(
    found: Mapping[str, object], own: Mapping[str, torch.Tensor], needed: set[str], path: Path, of: object
) -> dict[str, torch.Tensor]:
    """The tensors that go into the network, each of its shape and finite."""
    missing, extra = sorted(needed - set(found)), sorted(set(found) - set(own))
    if missing or extra:
        what, names = ("lacks", missing) if missing else ("has the unknown", extra)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(f"{what} {names[0]}{more}: not a checkpoint of {of}", where=path)
    state = {}
    for name, held in found.items():
        value = tensor_of(held)
        if value is None or value.shape != own[name].shape:
            got = type(held).__name__ if value is None else tuple(value.shape)
            raise InputError(f"{name} is {got}, not {tuple(own[name].shape)}", where=path)
        if not plain(value):
            kind = "quantized" if value.is_quantized else "without values" if value.is_meta else "sparse"
            raise InputError(f"{name} is a tensor {kind}, not plain numbers", where=path)
        if own[name].is_floating_point():
            if not value.is_floating_point():
                raise InputError(f"{name} is {value.dtype}, not floating point", where=path)
            kind = "variances" if name.endswith("running_var") else "values"
            check_values(f"{name} {kind}", value.float().numpy(), path)
        elif value.is_floating_point() or value.is_complex():
            raise InputError(f"{name} is {value.dtype}, not {own[name].dtype}", where=path)
        state[name] = value
    return state
