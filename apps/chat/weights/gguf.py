"""A GGUF file, read and dequantized by the `gguf` package.

llama.cpp's converter adds 1 to the weights of Gemma's norms, which scale by 1 + weight: taken off again here.
It permutes nothing for this architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, dequantize, get_tensor_name_map
from torch import Tensor

from paredown.apps.chat.network.config import gguf_config
from paredown.apps.chat.weights.rows import HEAD, ROWS, same_rows
from paredown.targets.errors import InputError

_EMBEDDING = "token_embd.weight"
_MADE_UP = "GGUF."  # how the reader names what stands in the file's header
_MOST = 4096  # entries of a list in the metadata that says something of layers; longer ones are vocabularies
_HINT = "copy or download it again"


class GgufFile:
    """Opens a file; see `weights.TensorFile`.

    Raises:
        InputError: it is missing, truncated or damaged, or of another architecture.
    """

    def __init__(self, path: Path) -> None:
        self.where = path
        reader = read_gguf(path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        shapes = {name: tuple(int(size) for size in reversed(tensors[name].shape)) for name in tensors}
        table = metadata(reader, path)
        _check_kind(reader, table, path)
        if _EMBEDDING not in tensors:
            raise InputError(f"misses the tensor {_EMBEDDING}", where=path, hint="check that it is complete")
        self.config = gguf_config(table, shapes[_EMBEDDING][0], path)
        theirs = _their_names(self.config.layers)
        ours = {theirs[name]: name for name in theirs}
        self.shapes = {ours.get(name, name): shapes[name] for name in tensors}
        self._tensors = {ours[name]: tensors[name] for name in tensors.keys() & ours.keys()}
        if HEAD in self.shapes:
            self.config = replace(self.config, tied=same_rows(self))

    def copy(self, name: str, into: Tensor) -> None:
        """Reads one tensor; see `weights.TensorFile`."""
        for start in range(0, len(into), ROWS):
            into[start : start + ROWS].copy_(self.rows(name, start, ROWS))
        if name.endswith("norm.weight"):
            into.sub_(1)

    def rows(self, name: str, start: int, count: int) -> Tensor:
        """Some rows of a tensor as the file has them; see `weights.TensorFile`."""
        tensor = self._tensors[name]
        try:
            rows = dequantize(tensor.data[start : start + count], tensor.tensor_type)
        except NotImplementedError as error:
            what = f"{tensor.name} is {tensor.tensor_type.name}, which cannot be read"
            raise InputError(
                what, where=self.where, hint="use a K-quant, an IQ, Q8_0, F16 or BF16"
            ) from error
        # A view of the file where it is float32; float64 where it is that.
        return torch.from_numpy(np.require(rows, np.float32, "W"))


class _Reader(GGUFReader):
    """Stops where the file does: its parent reads nothing for ever where a damaged length leads beyond."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}")
        return super()._get(offset, dtype, count, override_order)


def read_gguf(path: Path) -> GGUFReader:
    """Opens a file.

    Raises:
        InputError: it is missing, no GGUF, truncated or damaged.
    """
    try:
        return _Reader(path)
    except OSError as error:
        raise InputError(f"cannot read the weights: {error.strerror}", where=path) from error
    except (ValueError, LookupError, ArithmeticError, MemoryError) as error:
        reason = f"truncated or damaged GGUF: {error}"
        raise InputError(reason, where=path, hint=_HINT) from error


def metadata(reader: GGUFReader, where: Path) -> dict[str, Any]:
    """Key to value, of all keys but those of vocabularies and those that the reader makes up.

    Raises:
        InputError: a value is damaged.
    """
    return {
        key: contents(reader, key, where)
        for key, field in reader.fields.items()
        if not key.startswith(_MADE_UP) and (len(field.types) == 1 or len(field.data) <= _MOST)
    }


def contents(reader: GGUFReader, key: str, where: Path) -> Any:
    """What the file says under a key that it has.

    Raises:
        InputError: it is damaged.
    """
    try:
        return reader.fields[key].contents()
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"`{key}` is damaged: {error}", where=where, hint=_HINT) from error


def _check_kind(reader: GGUFReader, table: Mapping[str, Any], where: Path) -> None:
    """Refuses by name what is no whole model of this machine's byte order."""
    if reader.byte_order == "S":
        hint = "convert it: `gguf-convert-endian FILE little`"
        raise InputError("a big-endian GGUF file", where=where, hint=hint)
    kind, parts = table.get("general.type", "model"), table.get("split.count", 1)
    if kind == "adapter" or any(tensor.name.endswith((".lora_a", ".lora_b")) for tensor in reader.tensors):
        raise InputError("a LoRA adapter", where=where, hint="merge it first: `llama-export-lora`")
    if kind != "model":
        raise InputError(f"general.type is {kind!r}, not 'model'", where=where, hint="give a Gemma 3")
    if parts not in (0, 1):
        hint = "put it together: `llama-gguf-split --merge`"
        raise InputError(f"one file of {parts}", where=where, hint=hint)


def _their_names(layers: int) -> dict[str, str]:
    """The network's name of each tensor to GGUF's."""
    table = get_tensor_name_map(MODEL_ARCH.GEMMA3, layers)
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "self_attn.q_norm", "self_attn.k_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
             "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
             "post_feedforward_layernorm")  # fmt: skip
    ours = ["model.embed_tokens", "model.norm", "lm_head"]
    ours += [f"model.layers.{layer}.{part}" for layer in range(layers) for part in parts]
    return {f"{name}.weight": f"{table.get_name(name)}.weight" for name in ours}
