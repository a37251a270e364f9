"""A GGUF file, read and dequantized by the `gguf` package.

llama.cpp's converter adds 1 to the weights of Gemma's norms, which scale by 1 + weight: taken off again here.
It permutes nothing for this architecture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, dequantize, get_tensor_name_map
from torch import Tensor

from paredown.apps.chat.network.config import gguf_config
from paredown.targets.errors import InputError

_EMBEDDING = "token_embd.weight"
_ROWS = 8192  # dequantized at a time: an embedding whole would take the network's size once more
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
        if _EMBEDDING not in tensors:
            raise InputError(f"misses the tensor {_EMBEDDING}", where=path, hint="check that it is complete")
        self.config = gguf_config(metadata(reader), shapes[_EMBEDDING][0], path)
        theirs = _their_names(self.config.layers)
        ours = {theirs[name]: name for name in theirs}
        self.shapes = {ours.get(name, name): shapes[name] for name in tensors}
        self._tensors = {ours[name]: tensors[name] for name in tensors.keys() & ours.keys()}

    def copy(self, name: str, into: Tensor) -> None:
        """Reads one tensor; see `weights.TensorFile`."""
        tensor = self._tensors[name]
        for start in range(0, len(into), _ROWS):
            try:
                rows = dequantize(tensor.data[start : start + _ROWS], tensor.tensor_type)
            except NotImplementedError as error:
                what = f"{tensor.name} is {tensor.tensor_type.name}, which cannot be read"
                raise InputError(what, where=self.where, hint="use Q4_K, Q5_0, Q8_0, F16 or BF16") from error
            writable = np.require(rows, requirements="W")  # float32 comes as a view of the file
            into[start : start + _ROWS].copy_(torch.from_numpy(writable))
        if name.endswith("norm.weight"):
            into.sub_(1)


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


def metadata(reader: GGUFReader) -> dict[str, Any]:
    """Key to value, of all keys but those with a list."""
    return {key: field.contents() for key, field in reader.fields.items() if len(field.types) == 1}


def _their_names(layers: int) -> dict[str, str]:
    """The network's name of each tensor to GGUF's."""
    table = get_tensor_name_map(MODEL_ARCH.GEMMA3, layers)
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "self_attn.q_norm", "self_attn.k_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
             "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
             "post_feedforward_layernorm")  # fmt: skip
    ours = ["model.embed_tokens", "model.norm"]
    ours += [f"model.layers.{layer}.{part}" for layer in range(layers) for part in parts]
    return {f"{name}.weight": f"{table.get_name(name)}.weight" for name in ours}
