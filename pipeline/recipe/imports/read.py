"""Models of other tools, by their file: the suffix says what to expect, the first bytes what it is.

Torch is imported only where a file is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from paredown.pipeline.recipe.imports import folders
from paredown.targets.errors import InputError

if TYPE_CHECKING:
    from paredown.pipeline.recipe.imports.imported import Imported

#: Suffix -> format, of the files that are read here.
SUFFIXES = {
    ".onnx": "ONNX", ".tflite": "TFLite", ".keras": "Keras", ".h5": "Keras", ".hdf5": "Keras",
    ".pt2": "torch.export",
    ".pt": "TorchScript", ".pth": "TorchScript", ".ts": "TorchScript", ".torchscript": "TorchScript",
}  # fmt: skip
FOLDERS = "a folder of Hugging Face or TensorFlow (SavedModel)"
#: First bytes -> what such a file is. ONNX files have none that are theirs alone.
MAGIC = {
    b"PK\x03\x04": "a zip archive, as torch's and Keras's files are",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"version https://git-lfs": "a pointer of git-lfs, not the file itself",
    b"\x1f\x8b": "a gzip file",
    b"\x89PNG": "a picture",
    b"<": "a text of HTML or XML",
}
HEAD = 64


def is_model(path: str | Path) -> bool:
    """Whether a name is that of a model file which `read` reads."""
    path = Path(path)
    return path.suffix.lower() in SUFFIXES or folders.kind(path) is not None


def read(path: str | Path, shape: tuple[int, ...] | None = None) -> Imported:
    """Reads a trained model from the file of another tool.

    Args:
        path: of the file.
        shape: of the input, where the file leaves sizes open: with or without the batch. A size that the
            file does say must be the same.

    Raises:
        InputError: no such file, of an unknown or another format, damaged, too large, with more than one
            input, without a shape; or it holds what no importer knows.
    """
    path = Path(path)
    if (folder := folders.kind(path)) is not None:
        return _read_folder(path, folder, shape)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"not a model file ({suffix or 'no suffix'})", where=path,
                         hint=f"known are {', '.join(SUFFIXES)}, and {FOLDERS}")  # fmt: skip
    head = _head(path)
    found = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    if suffix == ".onnx":
        if found:
            raise InputError(f"not an ONNX file: it is {found}", where=path,
                             hint="give the .onnx file that the exporter wrote")  # fmt: skip
        from paredown.pipeline.recipe.imports.onnx.load import load

        return load(path, shape)
    if SUFFIXES[suffix] == "TFLite":
        from paredown.pipeline.recipe.imports.keras.tflite.load import load as load_tflite

        return load_tflite(path, shape)
    if SUFFIXES[suffix] == "Keras":
        from paredown.pipeline.recipe.imports.keras.load import load as load_keras

        return load_keras(path, shape)
    return _read_torch(path, suffix, shape)


def _read_folder(path: Path, kind: str, shape: tuple[int, ...] | None) -> Imported:
    if kind == folders.SAVED_MODEL:
        from paredown.pipeline.recipe.imports.saved_model import load

        return load(path, shape)
    from paredown.pipeline.recipe.imports.huggingface import load as load_transformer

    return load_transformer(path, shape)


def _read_torch(path: Path, suffix: str, shape: tuple[int, ...] | None) -> Imported:
    """A file of torch: what it is says its content."""
    from paredown.pipeline.recipe.weights_file import is_torchscript, read_weights_file

    if is_torchscript(path):
        from paredown.pipeline.recipe.imports.exported.torchscript import load

        return load(path, shape)
    if suffix == ".pt2":
        from paredown.pipeline.recipe.imports.exported.pt2 import load as load_program

        return load_program(path, shape)
    if suffix in (".pt", ".pth"):
        read_weights_file(path)  # of what is no dict of tensors it says more
    what = "holds weights without a network" if suffix in (".pt", ".pth") else "not a TorchScript program"
    hint = 'name the network\'s code, network = "my_nets:make", and this file as its weights'
    raise InputError(what, where=path, hint=hint)


def files(path: str | Path) -> tuple[Path, ...]:
    """The files of which a model is made, its own first; without any that are missing."""
    path = Path(path)
    if folders.kind(path) is not None:
        return folders.files(path)
    if path.suffix.lower() == ".onnx":
        from paredown.pipeline.recipe.imports.onnx.file import external_files

        return (path, *external_files(path))
    return (path,)


def _head(path: Path) -> bytes:
    """The first bytes of a file."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise InputError(f"cannot read the model: {error.strerror}", where=path) from None
