"""An unpacked bundle on the board: its files checked against the manifest, its LiteRT model ready to run.

Copied to boards as it is: numpy and one runtime.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.targets.errors import InputError
from paredown.targets.runners.litert import Runner

#: What reading a description raises that somebody else wrote.
_BROKEN = (
    LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, MemoryError,
)  # fmt: skip


@contextlib.contextmanager
def described(where: object) -> Iterator[None]:
    """Says in one line that a description is not what this version writes.

    Args:
        where: the file.
    """
    try:
        yield
    except _BROKEN as error:
        what = f"does not describe this model: {type(error).__name__}: {str(error)[:200]}"
        raise InputError(what, where=where, hint="make the bundle again with `paredown run`") from error


class Unpacked:
    """A bundle's folder.

    Args:
        folder: with its manifest.json.
        members: files that the app's code reads.
        threads: of the runtime.

    Attributes:
        files: member to bytes.
        preprocess: the fields of the preprocessing.
        input: scale and zero point of the model's input.

    Raises:
        InputError: the folder is no unpacked bundle with a LiteRT model, or a file of it is damaged.
    """

    def __init__(self, folder: Path, members: Sequence[str], threads: int = 1) -> None:
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
            entry = next(m for m in manifest["models"] if m["runtime"] == "litert")
            self.files = {name: (folder / name).read_bytes() for name in (*members, entry["file"])}
            hashes = {name: manifest["members"][name]["sha256"] for name in self.files}
            self.preprocess: dict[str, Any] = manifest["preprocess"]
            self.input: dict[str, Any] = entry["input"]
            self._float = entry["dtype"] == "float32"
            self._outputs = entry["outputs"]
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            raise InputError("no unpacked bundle with a LiteRT model", where=folder) from error
        self._folder = folder
        for name, data in self.files.items():
            if hashlib.sha256(data).hexdigest() != hashes[name]:
                raise InputError("damaged: not what the manifest says", where=folder / name)
        self._run = Runner(self.files[entry["file"]], threads, folder / entry["file"])
        made = [info.shape for info in self._run.outputs]
        with described(folder / "manifest.json"):
            if made != [tuple(output["shape"]) for output in self._outputs]:
                raise ValueError(f"outputs of shapes {made}")
            for tensor in (self.input, *self._outputs):
                if not 0 < float(tensor["scale"]) < math.inf or int(tensor["zero_point"]) not in range(
                    -128, 128
                ):
                    raise ValueError(f"scale {tensor['scale']}, zero point {tensor['zero_point']}")

    def document(self, name: str) -> dict[str, Any]:
        """A member that is a JSON object.

        Raises:
            InputError: it is something else.
        """
        with described(self._folder / name):
            found = json.loads(self.files[name])
            if not isinstance(found, dict):
                raise TypeError(f"{type(found).__name__} instead of an object")
            return found

    def zeros(self) -> list[NDArray[np.float32]]:
        """Outputs as `infer` gives them, all zero: what reads outputs can be tried on them."""
        return [np.zeros(output["shape"][1:], np.float32) for output in self._outputs]

    @property
    def names(self) -> list[str]:
        """The classes or keypoints that the bundle names, in order."""
        with described(self._folder / "labels.txt"):
            return self.files["labels.txt"].decode().rstrip("\n").split("\n")

    def __call__(self, image: NDArray[Any], preprocess: Any) -> list[NDArray[np.float32]]:
        """Runs one image: `infer(prepare(image, preprocess))`."""
        return self.infer(self.prepare(image, preprocess))

    def prepare(self, image: NDArray[Any], preprocess: Any) -> NDArray[Any]:
        """Makes the model's input of an image.

        Args:
            image: (H, W, 3) BGR, or an array as the network takes it.
            preprocess: of this bundle's fields, see `calibration.array_input.input_from_dict`.

        Returns:
            With a batch of one, of the model's dtype.
        """
        if self._float:
            x = preprocess(image)
        else:
            x = preprocess.quantized(image, self.input["scale"], self.input["zero_point"])
        return x[None]

    def infer(self, x: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Runs the model; its outputs as real numbers, without their batch of one."""
        return [
            (part[0].astype(np.float32) - output["zero_point"]) * np.float32(output["scale"])
            for part, output in zip(self._run(x), self._outputs, strict=True)
        ]
