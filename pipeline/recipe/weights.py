"""Trained weights into a network: .safetensors and torch checkpoints, tensors only, checked before loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from paredown.targets.errors import InputError

TORCH_SUFFIXES = (".pt", ".pth", ".th")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)


def load_checkpoint(
    path: str | Path, network: nn.Module, of: object, fixed: Collection[str] = (), known: Collection[str] = ()
) -> None:
    """Loads .safetensors, or .pt / .pth / .th (torch, tensors only) into the network.

    A dict under `state_dict` or `model` is looked into, and DataParallel's prefix `module.` is taken off. The
    network is changed only if the whole file is good.

    Args:
        path: of the file.
        network: of the checkpoint's architecture.
        of: what the network is, for errors.
        fixed: tensors that the file may lack because the architecture decides them.
        known: further suffixes that the caller reads itself, for the error.

    Raises:
        InputError: another suffix, a file that cannot be read, a pickle that holds more than tensors, and
            tensors that are missing, unknown, of another shape, NaN or infinite.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        state = _safetensors_state(path)
    elif suffix in TORCH_SUFFIXES:
        state = _torch_state(path)
    else:
        hint = f"use {', '.join((*known, *SUFFIXES))}"
        raise InputError(f"unknown kind of weights {suffix or path.name!r}", where=path, hint=hint)
    _load_state(state, network, path, of, fixed)


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


def cannot(do: str, path: Path, error: Exception) -> InputError:
    """The error for a file that cannot be read or written."""
    return InputError(f"cannot {do}: {getattr(error, 'strerror', None) or error}", where=path)


def _torch_state(path: Path) -> Mapping[str, object]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise cannot("read the checkpoint", path, error) from None
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise InputError(
            f"not a torch checkpoint of tensors only ({reason})",
            where=path,
            hint="save network.state_dict(), or use .safetensors",
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise InputError(f"holds a {type(loaded).__name__}, not a dict of tensors", where=path)
    return loaded


def _safetensors_state(path: Path) -> Mapping[str, object]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, ValueError) as error:
        raise cannot("read the checkpoint", path, error) from None
    except SafetensorError as error:
        raise InputError(f"not a .safetensors file ({error})", where=path) from None


def _load_state(
    state: Mapping[str, object], network: nn.Module, path: Path, of: object, fixed: Collection[str]
) -> None:
    own = network.state_dict()
    if state and all(isinstance(name, str) and name.startswith("module.") for name in state):
        state = {
            name.removeprefix("module."): value for name, value in state.items()
        }  # saved by DataParallel
    needed = {name for name in own if not name.endswith("num_batches_tracked")} - set(fixed)
    missing, extra = sorted(needed - set(state)), sorted(str(name) for name in set(state) - set(own))
    if missing or extra:
        what, names = ("lacks", missing) if missing else ("has the unknown", extra)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(f"{what} {names[0]}{more}: not a checkpoint of {of}", where=path)
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.shape != own[name].shape:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise InputError(f"{name} is {got}, not {tuple(own[name].shape)}", where=path)
        if own[name].is_floating_point():
            if not value.is_floating_point():
                raise InputError(f"{name} is {value.dtype}, not floating point", where=path)
            kind = "variances" if name.endswith("running_var") else "values"
            check_values(f"{name} {kind}", value.float().numpy(), path)
    network.load_state_dict(dict(state), strict=False)  # strict but for what is checked above
