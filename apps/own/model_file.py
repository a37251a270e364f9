"""A network that is the file of another tool, named in a recipe: `network = "model.onnx"`."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.pipeline.store.store import file_hash

if TYPE_CHECKING:
    from paredown.pipeline.recipe.imports.imported import Imported

#: Of what importers make of a file: raised when they make another network of the same bytes.
IMPORTER = 2


class ModelFile:
    """The file of a model, read at most once for each shape of its input.

    Args:
        path: of the file or folder.
        logits: whether a softmax at the end is taken away.
    """

    def __init__(self, path: str | Path, logits: bool = False) -> None:
        self.path, self.logits = Path(path), logits
        self._read: dict[tuple[int, ...] | None, Imported] = {}

    def imported(self, shape: tuple[int, ...] | None = None) -> Imported:
        """What the file holds.

        Args:
            shape: of the input, as far as it is known: see `imports.read`.

        Raises:
            InputError: it cannot be imported, or leaves sizes open that are not given.
        """
        if shape not in self._read:
            from paredown.pipeline.recipe.imports.logits import before_softmax
            from paredown.pipeline.recipe.imports.read import read

            found = read(self.path, shape)
            self._read[shape] = before_softmax(found) if self.logits else found
        return self._read[shape]

    def network(self, shape: tuple[int, ...] | None = None) -> Any:
        """A module of its own each time, which may be changed."""
        return copy.deepcopy(self.imported(shape).module)

    @property
    def codes(self) -> Path | None:
        """The file, where it is one of int8 whose own codes can be kept."""
        from paredown.pipeline.recipe.imports.keras.tflite.file import is_full_integer

        return self.path if is_full_integer(self.path) else None

    def hash(self) -> str:
        """sha256 of the file, or of all files of which the model is made."""
        from paredown.pipeline.recipe.imports.read import files

        found = [file_hash(path) for path in files(self.path)]
        return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """What the network is, wherever its file lies."""
        return {"network": self.path.name, "file": self.hash(), "importer": IMPORTER}
