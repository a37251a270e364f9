"""Reads Keras files: the configuration as JSON, the weights as arrays. Nothing of either is run.

`.keras` is a zip of `config.json`, `metadata.json` and `model.weights.h5`; `.h5` is one HDF5 file with the
configuration among its attributes.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.targets.errors import InputError
from paredown.targets.host.tools import need

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
#: Bytes of JSON, of an attribute and of all weights, above which a file is taken for a broken one.
MOST_CONFIG, MOST_WEIGHTS = 64 * 2**20, 4 * 2**30
#: How many times larger than its file a part may be; weights are hardly compressible.
RATIO, FREE = 20, 64 * 2**20
HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Place:
    """Where a layer's weights lie.

    Attributes:
        names: of the layers, from the model's own to the one within nested models.
        folders: the same in a `.keras` file: "layers/functional/layers/conv2d".
    """

    names: tuple[str, ...]
    folders: str


class Weights:
    """The weights of all layers of an HDF5 file.

    Args:
        file: an open `h5py.File`.
        path: of the user's file, for errors.
        size: of that file in bytes.
    """

    def __init__(self, file: Any, path: Path, size: int) -> None:
        self.file, self.path, self.budget = file, path, RATIO * size + FREE
        self.root = self._group("model_weights") or file
        self.named = "layer_names" in self.root.attrs or any(
            name.startswith("layer_names") for name in self.root.attrs
        )

    def of(self, place: Place, roles: Sequence[str], inner: str = "") -> dict[str, Tensor]:
        """The weights of a layer.

        Args:
            place: of the layer.
            roles: names of its weights in their order: "kernel", "bias".
            inner: folders of a layer within it: "cell", "forward_layer/cell".

        Returns:
            Role -> float32 tensor, of those that the file has.

        Raises:
            InputError: they cannot be read.
        """
        found = self._by_name(place, inner) if self.named else self._by_folder(place, roles, inner)
        return {role: self._tensor(array) for role, array in found.items()}

    def _by_name(self, place: Place, inner: str) -> dict[str, Any]:
        """Of a .h5: a group for each layer of the model, whose attribute names all weights within."""
        group = self._group(place.names[0], self.root)
        if group is None:
            return {}
        names = list(_names(group, "weight_names"))
        for layer in place.names[1:]:
            names = [name for name in names if f"/{layer}/" in f"/{name}"]
        side = inner.partition("/")[0].partition("_")[0]
        if side in ("forward", "backward"):
            names = [name for name in names if any(part.startswith(f"{side}_") for part in name.split("/"))]
        found: dict[str, Any] = {}
        for name in names:
            role = name.rsplit("/", 1)[-1].partition(":")[0]
            if role not in found:
                found[role] = self._dataset(group, name)
        return found

    def _by_folder(self, place: Place, roles: Sequence[str], inner: str) -> dict[str, Any]:
        """Of a .keras: a folder for each layer, weights by number."""
        folder = "/".join(part for part in (place.folders, inner, "vars") if part)
        group = self._group(folder, self.root)
        if group is None:
            group = self._group(folder.replace("layers/", "_layer_checkpoint_dependencies/"), self.root)
        if group is None:
            return {}
        count = len(group)
        if count != len(roles):
            raise InputError(f"its folder {folder} holds {count} weights, not {len(roles)}", where=self.path)
        return {role: self._dataset(group, str(number)) for number, role in enumerate(roles)}

    def _group(self, name: str, root: Any = None) -> Any:
        """A group below another, None where there is none. Links lead nowhere."""
        import h5py

        place = self.file if root is None else root
        for part in name.split("/"):
            link = place.get(part, getlink=True) if part in place else None
            if not isinstance(link, h5py.HardLink) or not isinstance(place[part], h5py.Group):
                return None
            place = place[part]
        return place

    def _dataset(self, group: Any, name: str) -> Any:
        import h5py

        *folders, last = name.split("/")
        place = self._group("/".join(folders), group) if folders else group
        link = place.get(last, getlink=True) if place is not None and last in place else None
        if not isinstance(link, h5py.HardLink) or not isinstance(place[last], h5py.Dataset):
            raise InputError(f"its weight {name} is not in the file", where=self.path)
        found = place[last]
        if found.is_virtual or found.external:
            raise InputError(f"its weight {name} lies in another file", where=self.path)
        return found

    def _tensor(self, data: Any) -> Tensor:
        if data.dtype.kind not in "fiu":
            raise InputError(f"its weight {data.name} is {data.dtype}, not numbers", where=self.path)
        self.budget -= data.size * 4
        if self.budget < 0 or data.size * 4 > MOST_WEIGHTS:
            raise InputError("holds far more weights than its bytes can", where=self.path)
        values: NDArray[np.float32] = np.asarray(data[()], dtype=np.float32)
        if not np.isfinite(values).all():
            raise InputError(f"its weight {data.name} holds values that are NaN or infinite", where=self.path)
        return torch.from_numpy(np.array(values))


@dataclass(frozen=True)
class Saved:
    """A Keras file.

    Attributes:
        config: of the model: "class_name" and "config".
        version: of Keras, as "3.15.1"; "" where the file does not say it.
        weights: of all layers.
    """

    config: Mapping[str, Any]
    version: str
    weights: Weights

    @property
    def major(self) -> int:
        """2 or 3: some functions changed their meaning."""
        return 3 if self.version.startswith("3") else 2


@contextlib.contextmanager
def read_keras(path: Path) -> Iterator[Saved]:
    """A `.keras` or `.h5` file, open while it is used.

    Raises:
        DeviceError: h5py is not installed.
        InputError: the file cannot be read, is damaged or no model of Keras.
    """
    need("h5py", f"a file of Keras ({path})")
    import h5py

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
        if not size:
            raise InputError("the file is empty", where=path)
        if head != HDF5 and not head.startswith(b"PK"):
            raise InputError("neither a zip archive nor HDF5: no Keras file", where=path,
                             hint='save it with model.save("model.keras")')  # fmt: skip
        found = None if head == HDF5 else _in_archive(path)
        with h5py.File(path if found is None else io.BytesIO(found[2]), "r") as opened:
            config, version = _in_attributes(opened, path) if found is None else found[:2]
            yield Saved(config, version, Weights(opened, path, size))
    except OSError as error:
        reason = error.strerror or str(error).partition("(")[0].strip() or type(error).__name__
        raise InputError(f"cannot read the model: {reason}", where=path) from None
    except (KeyError, RuntimeError, ValueError, TypeError, UnicodeError) as error:
        raise InputError(f"a damaged Keras file ({type(error).__name__})", where=path) from error


def _in_attributes(file: Any, path: Path) -> tuple[Mapping[str, Any], str]:
    """Configuration and version of a .h5 file."""
    config = file.attrs.get("model_config")
    if config is None:
        what = "holds weights only, without the model's configuration"
        raise InputError(what if "layer_names" in file.attrs else "HDF5, but no model of Keras", where=path,
                         hint='save the whole model: model.save("model.keras")')  # fmt: skip
    version = file.attrs.get("keras_version", "")
    return _json(config, path), version.decode() if isinstance(version, bytes) else str(version)


def _in_archive(path: Path) -> tuple[Mapping[str, Any], str, bytes]:
    """Configuration, version and weights of a .keras file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if missing := [name for name in (CONFIG, WEIGHTS) if name not in names]:
                raise InputError(f"a zip archive without {' and '.join(missing)}: no Keras file", where=path,
                                 hint='save it with model.save("model.keras")')  # fmt: skip
            config = _json(_member(archive, CONFIG, MOST_CONFIG, path), path)
            about = _json(_member(archive, METADATA, MOST_CONFIG, path), path) if METADATA in names else {}
            weights = _member(archive, WEIGHTS, MOST_WEIGHTS, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"a damaged zip archive ({error})", where=path) from error
    return config, str(about.get("keras_version", "")), weights


def _member(archive: zipfile.ZipFile, name: str, most: int, path: Path) -> bytes:
    """A file of the archive, bounded before and while it is unpacked."""
    info = archive.getinfo(name)
    most = min(most, RATIO * info.compress_size + FREE)
    with archive.open(info) as file:
        found = file.read(most + 1)
    if len(found) > most or info.file_size > most:
        raise InputError(f"{name} unpacks to more than {most >> 20} MiB", where=path)
    return found


def _json(text: Any, path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"its configuration is no JSON ({error})", where=path) from None
    if not isinstance(found, dict):
        raise InputError("its configuration is no JSON object", where=path)
    return found


def _names(group: Any, key: str) -> Iterator[str]:
    """A list of names among a group's attributes, in one piece or several."""
    pieces = [key] if key in group.attrs else []
    pieces = pieces or [f"{key}{n}" for n in range(len(group.attrs)) if f"{key}{n}" in group.attrs]
    for piece in pieces:
        for name in group.attrs[piece]:
            yield name.decode() if isinstance(name, bytes) else str(name)
