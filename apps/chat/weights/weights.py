"""Trained weights into the network: a Hugging Face folder, or a GGUF file.

Every tensor is asked for by its name and checked by its shape before the first one is read; then each is
written straight into its parameter, so that loading takes hardly more memory than the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from paredown.apps.chat.network.config import GemmaConfig
from paredown.apps.chat.network.network import Gemma, make_unset
from paredown.apps.chat.weights.rows import HEAD
from paredown.targets.errors import InputError
from paredown.targets.host.tools import need

#: What a single file is that is no model by itself.
_FILES = {
    ".safetensors": "tensors without their configuration",
    ".bin": "pickled weights (.bin), which are not read",
    ".pt": "pickled weights (.pt), which are not read",
    ".pth": "pickled weights (.pth), which are not read",
    ".npz": "an old MLX model (.npz), which is not read",
}


class TensorFile(Protocol):
    """A model's file or folder, opened.

    Attributes:
        where: its path, for errors.
        config: of the network that it holds.
        shapes: name of each tensor, as the network has it, to its shape.
    """

    where: Path
    config: GemmaConfig
    shapes: dict[str, tuple[int, ...]]

    def copy(self, name: str, into: Tensor) -> None:
        """Reads one tensor, as float32, into a tensor of its shape.

        Raises:
            InputError: its bytes cannot be read.
        """

    def rows(self, name: str, start: int, count: int) -> Tensor:
        """Some of a tensor's rows as the file has them, as float32; raises as `copy`."""


def open_weights(path: str | Path) -> TensorFile:
    """Opens a folder with config.json and .safetensors, or a .gguf file.

    Raises:
        InputError: there is no such file, it is neither of the two, broken, or of another architecture.
    """
    path = Path(path)
    if path.is_dir():
        from paredown.apps.chat.weights.hf import HfFolder

        return HfFolder(path)
    if path.suffix.lower() == ".gguf":
        need("gguf", f"a .gguf file ({path})")
        from paredown.apps.chat.weights.gguf import GgufFile

        return GgufFile(path)
    hint = "give a Hugging Face folder (config.json, .safetensors) or a .gguf file"
    if not path.exists():
        raise InputError("no such file", where=path, hint=hint)
    what = _FILES.get(path.suffix.lower(), "not a model")
    raise InputError(what, where=path, hint=hint)


def load_gemma(path: str | Path) -> Gemma:
    """The network of a folder or file with its weights, in float32, for inference.

    Raises:
        InputError: as `open_weights`; or tensors are missing (named), unknown, of another shape (both are
            told), NaN or infinite.
    """
    source = open_weights(path)
    network = make_unset(source.config)
    wanted = dict(network.named_parameters())
    shapes = dict(source.shapes)
    if source.config.tied:
        shapes.pop(HEAD, None)  # the embedding once more
    _check(shapes, {name: tuple(wanted[name].shape) for name in wanted}, source.where)
    with torch.no_grad():
        for name, parameter in wanted.items():
            source.copy(name, parameter)
            broken = parameter.numel() - int(parameter.isfinite().sum())
            if broken:
                raise InputError(f"{name} holds {broken} values that are NaN or infinite", where=source.where)
    return network.eval()


def _check(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: Path) -> None:
    for problem, names in (("misses", wanted.keys() - found.keys()), ("has", found.keys() - wanted.keys())):
        if names:
            first, more = min(names), len(names) - 1
            kind = "the tensor" if problem == "misses" else "an unexpected tensor"
            others = f" and {more} more" if more else ""
            hint = "check that it is complete" if problem == "misses" else "give a plain Gemma 3 text model"
            raise InputError(f"{problem} {kind} {first}{others}", where=where, hint=hint)
    for name, shape in wanted.items():
        if found[name] != shape:
            what = f"{name} has the shape {list(found[name])}, its configuration asks for {list(shape)}"
            raise InputError(what, where=where)
