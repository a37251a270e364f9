"""A Hugging Face folder: config.json, and one .safetensors or several with an index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from paredown.apps.chat.network.config import read_hf_config
from paredown.targets.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_HINT = "copy or download it again"
#: How the text network's names begin in checkpoints with vision, old and new; and what else is in them.
_TEXT = ("language_model.model.", "model.language_model.")
_VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
#: The output layer, where a file repeats it: it is the embedding.
_TIED = ("lm_head.weight", "language_model.lm_head.weight")


class HfFolder:
    """Opens a folder; see `weights.TensorFile`.

    Raises:
        InputError: a file is missing, no JSON, truncated or damaged, or of another architecture.
    """

    def __init__(self, folder: Path) -> None:
        self.where = folder
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

    def copy(self, name: str, into: Tensor) -> None:
        """Reads one tensor; see `weights.TensorFile`."""
        path, theirs = self._found[name]
        with _opened(path) as file:
            into.copy_(file.get_tensor(theirs))


def _our_name(name: str) -> str | None:
    """The network's name for a tensor of the file; None for one that is not of the text network."""
    if name in _TIED or name.startswith(_VISION):
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
