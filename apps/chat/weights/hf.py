"""A Hugging Face folder: config.json, and one .safetensors or several with an index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from paredown.apps.chat.network.config import read_hf_config, read_object
from paredown.apps.chat.weights.rows import HEAD, same_rows
from paredown.targets.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_HINT = "copy or download it again"
_TO_SAFETENSORS = "save it with transformers' save_pretrained(safe_serialization=True)"
#: How the text network's names begin in checkpoints with vision, old and new; and what else is in them.
_TEXT = ("language_model.model.", "model.language_model.")
_VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_HEADS = ("lm_head.weight", "language_model.lm_head.weight")
#: Files by which a folder shows that it is something else, and what to do about it.
_OTHERS = {
    "adapter_config.json": ("a LoRA adapter", "merge it: peft's merge_and_unload, then save_pretrained"),
    "pytorch_model.bin": ("pickled weights (.bin)", _TO_SAFETENSORS),
    "pytorch_model.bin.index.json": ("pickled weights (.bin)", _TO_SAFETENSORS),
    "consolidated.00.pth": ("pickled weights (.pth)", _TO_SAFETENSORS),
    "weights.npz": ("an old MLX model (.npz)", "give the model in float as .safetensors, or as .gguf"),
}


class HfFolder:
    """Opens a folder; see `weights.TensorFile`.

    Raises:
        InputError: a file is missing, no JSON, truncated or damaged, or of another architecture.
    """

    def __init__(self, folder: Path) -> None:
        self.where = folder
        _check_kind(folder)
        self.config = read_hf_config(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._found: dict[str, tuple[Path, str]] = {}  # file, and the name in it
        for path, listed in _files(folder):
            with _opened(path) as file:
                names = set(file.keys())
                if absent := listed - names:
                    raise InputError(f"misses {min(absent)}, which {INDEX} says is here", where=path)
                for name in names:
                    ours = _our_name(name)
                    if ours is not None:
                        self.shapes[ours] = tuple(file.get_slice(name).get_shape())
                        self._found[ours] = path, name
        if HEAD in self.shapes:
            self.config = replace(self.config, tied=same_rows(self))
        elif not _ties(folder):
            what = "`tie_word_embeddings` is false, and there is no tensor lm_head.weight"
            raise InputError(what, where=folder / "config.json", hint="check that it is complete")

    def copy(self, name: str, into: Tensor) -> None:
        """Reads one tensor; see `weights.TensorFile`."""
        path, theirs = self._found[name]
        with _opened(path) as file:
            into.copy_(file.get_tensor(theirs))

    def rows(self, name: str, start: int, count: int) -> Tensor:
        """Some rows of a tensor; see `weights.TensorFile`."""
        path, theirs = self._found[name]
        with _opened(path) as file:
            found: Tensor = file.get_slice(theirs)[start : start + count]
        return found.float()


def _check_kind(folder: Path) -> None:
    """Refuses by name what only looks like a model's folder."""
    whole = (folder / SINGLE).exists() or (folder / INDEX).exists()
    for file, (what, hint) in _OTHERS.items():
        if (folder / file).exists() and (file.startswith("adapter") or not whole):
            raise InputError(f"holds {what}: {file}", where=folder, hint=hint)


def _ties(folder: Path) -> bool:
    """What config.json says; of a model with vision both tables may say it."""
    given = read_object(folder / "config.json")
    text = given.get("text_config")
    tables = (given, text) if isinstance(text, dict) else (given,)
    return all(table.get("tie_word_embeddings") in (None, True) for table in tables)


def _our_name(name: str) -> str | None:
    """The network's name for a tensor of the file; None for one that is not of the text network."""
    if name in _HEADS:
        return HEAD
    if name.startswith(_VISION):
        return None
    for start in _TEXT:
        if name.startswith(start):
            return f"model.{name.removeprefix(start)}"
    return name


def _files(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """The folder's .safetensors, each with the tensors that the index says it has."""
    index = folder / INDEX
    if not index.exists():
        yield folder / SINGLE, set()
        return
    try:
        table: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        listed = {file: {name for name in table if table[name] == file} for file in set(table.values())}
    except OSError as error:
        raise InputError(f"cannot read the index: {error.strerror}", where=index) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"no index of tensors: {error!r}", where=index, hint=_HINT) from error
    for file in sorted(listed):
        if Path(file).name != file:
            raise InputError(f"names a file outside its folder, {file!r}", where=index)
        yield folder / file, listed[file]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise InputError("no such file", where=path, hint=_HINT) from None
    except OSError as error:
        raise InputError(f"cannot read the weights: {error.strerror}", where=path) from error
    except SafetensorError as error:
        raise InputError(f"truncated or damaged safetensors: {error}", where=path, hint=_HINT) from error
