"""Reads a checkpoint's file: .safetensors and torch's own, in which nothing but tensors is unpickled."""

from __future__ import annotations

import argparse
import functools
import pathlib
import shlex
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct, scalar

from paredown.targets.errors import InputError

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)


#: First part of a pickled class's name -> how the model's own program writes an ONNX file.
EXPORTS = {
    "ultralytics": "yolo export model={file} format=onnx",
    "models.yolo": "python export.py --weights {file} --include onnx",
    "models.common": "python export.py --weights {file} --include onnx",
}


def read_weights_file(path: Path, known: tuple[str, ...] = ()) -> Mapping[Any, Any]:
    """What a checkpoint holds: a dict of tensors, or dicts of such.

    Args:
        path: .safetensors, or .pt / .pth / .th / .ckpt / .bin of torch.
        known: further suffixes that the caller reads itself, for the error.

    Raises:
        InputError: another suffix, a file that cannot be read, a pickle that holds more than tensors.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _safetensors(path)
    if suffix in TORCH_SUFFIXES:
        return _torch(path)
    hint = f"use {', '.join((*known, *SUFFIXES))}"
    raise InputError(f"unknown kind of weights {suffix or path.name!r}", where=path, hint=hint)


def cannot(do: str, path: Path, error: Exception) -> InputError:
    """The error for a file that cannot be read or written."""
    return InputError(f"cannot {do}: {getattr(error, 'strerror', None) or error}", where=path)


def is_torchscript(path: Path) -> bool:
    """Whether this is a TorchScript program; it is not loaded to see that."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False
    inner = {name.partition("/")[2] for name in names}
    return "constants.pkl" in inner and any(name.startswith("code/") for name in inner)


@functools.cache
def _harmless() -> list[Any]:
    """Classes without side effects that trainers leave beside their tensors, or what stands for them here."""
    own = (argparse.Namespace, types.SimpleNamespace, pathlib.PurePosixPath, pathlib.PureWindowsPath)
    arrays = (np.dtype, np.ndarray, *(getattr(np.dtypes, name) for name in np.dtypes.__all__))
    named = {
        "numpy.core.multiarray.scalar": scalar, "numpy._core.multiarray.scalar": scalar,
        "numpy.core.multiarray._reconstruct": _reconstruct,
        "numpy._core.multiarray._reconstruct": _reconstruct,
        "pathlib.PosixPath": pathlib.PurePosixPath, "pathlib.WindowsPath": pathlib.PureWindowsPath,
        "lightning_fabric.utilities.data.AttributeDict": OrderedDict,
        "lightning.fabric.utilities.data.AttributeDict": OrderedDict,
        "pytorch_lightning.utilities.parsing.AttributeDict": OrderedDict,
    }  # fmt: skip
    return [*own, *arrays, *((kind, name) for name, kind in named.items())]


def _torch(path: Path) -> Mapping[Any, Any]:
    try:
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        raise cannot("read the checkpoint", path, error) from None
    if is_torchscript(path):
        raise InputError("is a TorchScript program, not a checkpoint", where=path,
                         hint="save network.state_dict(), or name it as the recipe's network")  # fmt: skip
    try:
        with torch.serialization.safe_globals(_harmless()):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise cannot("read the checkpoint", path, error) from None
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        raise refused_pickle(path, error) from None
    if not isinstance(loaded, Mapping):
        raise InputError(f"holds a {type(loaded).__name__}, not a dict of tensors", where=path)
    return loaded


def refused_pickle(path: Path, error: Exception) -> InputError:
    """Why a torch file is not read: what it would have to import, and what to do instead."""
    names = _imports(path)
    reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
    hint = "save network.state_dict(), or use .safetensors"
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        reason = f"it would import {names[0]}{more}"
        found = next((export for part, export in EXPORTS.items() for n in names if n.startswith(part)), None)
        if found:
            reason = f"it is a pickled model of {names[0]}"
            hint = f"export it as ONNX: {found.format(file=shlex.quote(path.name))}"
    return InputError(f"not a torch checkpoint of tensors only ({reason})", where=path, hint=hint)


def _imports(path: Path) -> list[str]:
    """What unpickling this file would import, as far as that can be read without doing it."""
    try:
        with torch.serialization.safe_globals(_harmless()):
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001  a damaged file; the first error says enough
        return []
    return sorted((name for name in map(str, found) if name.isprintable()), key=_rank)


def _rank(name: str) -> tuple[bool, str]:
    """Known model classes come first, since they say what the file is."""
    return not name.startswith(tuple(EXPORTS)), name


def _safetensors(path: Path) -> Mapping[Any, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: Mapping[Any, Any] = load_file(path)
    except (OSError, ValueError) as error:
        raise cannot("read the checkpoint", path, error) from None
    except SafetensorError as error:
        raise InputError(f"not a .safetensors file ({error})", where=path) from None
    return found
