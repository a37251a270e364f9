"""The part of a task that is the same for all networks of the user's own code: how they are made and checked.

Torch is imported only where a network is built: a run in which everything is reused never needs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from paredown.apps.own.model_file import ModelFile
from paredown.calibration.array_input import AnyInput, ArrayInput
from paredown.calibration.datasets import ARRAYS, Dataset, First, Sample, open_dataset, read_names
from paredown.calibration.preprocess import Preprocess
from paredown.calibration.readers.arrays import array_shape
from paredown.pipeline.recipe.factory import from_factory
from paredown.pipeline.recipe.imports.read import is_model
from paredown.pipeline.recipe.schema import EMBEDDED, FINISHED, Recipe
from paredown.pipeline.recipe.task import Packed
from paredown.pipeline.store.store import file_hash
from paredown.targets.errors import InputError, UsageError
from paredown.targets.own_code import own_code

#: Formats whose images may be left as they are stored.
TURNABLE = ("imagefolder", "folder")
#: Mean and standard deviation of ImageNet's pixels / 255, with which most public networks were trained.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class OwnTask:
    """A network of the user's own with its data: all of `pipeline.recipe.task.Task` that is no matter of it.

    Args:
        recipe: resolved.

    Raises:
        InputError: the factory or the names cannot be read, or a key of the recipe does not fit.
    """

    name: str
    #: What it is, in an error: "the classifier".
    what: ClassVar[str]
    #: Values of data.format that it reads, and why others are refused.
    formats: ClassVar[tuple[str, ...]]
    lacking: ClassVar[str]
    #: How an image is brought to the input's size, unless the recipe says it; none of `refused_resizes`.
    resize: ClassVar[str] = "stretch"
    refused_resizes: ClassVar[tuple[str, ...]] = ()
    #: Whether a softmax at the end of a model file is left out.
    logits: ClassVar[bool] = False
    output_names: tuple[str, ...]
    #: How the weights were read, in a sentence each, once they were.
    notes: tuple[str, ...] = ()

    def __init__(self, recipe: Recipe) -> None:
        """Reads the names; the factory is called for its input's size."""
        self.recipe = recipe
        self._factory_file: Path | None = None
        if recipe.data.format not in self.formats:
            raise InputError(
                f'format = "{recipe.data.format}" {self.lacking}',
                where="recipe, key data.format",
                hint=f"use {', '.join(self.formats)}",
            )
        if recipe.data.boxes is not None:
            raise InputError(f"{self.what} has no boxes", where="recipe, key data.boxes", hint="leave it out")
        if recipe.data.orientation is not None and recipe.data.format not in TURNABLE:
            raise InputError(
                f'format = "{recipe.data.format}" does not read it', where="recipe, key data.orientation",
                hint=f"it is for {' and '.join(TURNABLE)}",
            )  # fmt: skip
        named = is_model(recipe.network)
        self.model_file = ModelFile(recipe.network, self.logits) if named else None
        if recipe.weights == EMBEDDED and self.model_file is None:
            raise InputError(f"{self.what} brings no weights along", where="recipe, key weights",
                             hint="name a .safetensors, .pt, .pth or .th file")  # fmt: skip
        self.names = self._names()
        self._preprocess = self._make_preprocess()

    @classmethod
    def of_bundle(cls, packed: Packed) -> Self:
        """A task that scores, and has neither recipe nor network; see `pipeline.recipe.task.Scorer`."""
        task = cls.__new__(cls)
        task.names, task._preprocess = packed.names, packed.preprocess
        return task

    def arrays_of(self, sample: Sample) -> Mapping[str, NDArray[Any]]:
        """Labels of a sample that are neither boxes nor classes, by name."""
        return {}

    def with_arrays(self, sample: Sample, arrays: Mapping[str, NDArray[Any]]) -> Sample:
        """The sample with these labels.

        Raises:
            ValueError: they do not fit it.
        """
        return sample

    # -- network -------------------------------------------------------------------------------------------

    @property
    def _is_factory(self) -> bool:
        return self.model_file is None and ":" in self.recipe.network

    @property
    def _is_own(self) -> bool:
        """Whether it is the user's: a factory's, a model file's, or a finished program."""
        return self.model_file is not None or self._is_factory or self.recipe.network == FINISHED

    def _file_shape(self) -> tuple[int, ...] | None:
        """What is known of the input of a model file beforehand."""
        if not self._images:
            return tuple(array_shape(Path(self._path("test"))))
        made = getattr(self, "_preprocess", None)
        if made is not None:
            return tuple(made.input_shape[-2:])
        wanted = self.recipe.preprocess
        if wanted.width is None or wanted.height is None:
            return None
        return wanted.height, wanted.width

    def _build(self) -> Any:
        """The network with untrained weights."""
        from torch import nn

        if self.model_file is not None:
            return self.model_file.network(self._file_shape())
        if not self._is_factory:
            if self.recipe.network == FINISHED:
                raise UsageError("a finished program has no network to train", where="recipe, key network")
            raise UsageError(
                f"{self.what} has no built-in network {self.recipe.network!r}",
                where="recipe, key network", hint='use "my_package.nets:factory" or a model file',
            )  # fmt: skip
        network, self._factory_file = from_factory(self.recipe.network, self.recipe.folder)
        if not isinstance(network, nn.Module):
            what = f"{self.recipe.network} made a {type(network).__name__}, not a torch.nn.Module"
            raise InputError(what, where="recipe, key network")
        return network

    @property
    def network_id(self) -> Mapping[str, Any]:
        """The network's name and how many classes it has; a factory's source file counts too."""
        identity = {"app": self.name, "network": self.recipe.network, "classes": len(self.names)}
        if self.model_file is not None:
            identity |= self.model_file.identity()
        if self._factory_file is not None:
            identity["factory"] = file_hash(self._factory_file)
        return identity

    def weights_hash(self) -> str:
        """sha256 of the weights file, or of the model's own."""
        if self.model_file is not None and self.recipe.weights == EMBEDDED:
            return self.model_file.hash()
        return file_hash(Path(self.recipe.weights))

    def network(self) -> Any:
        """The trained network in evaluation mode."""
        from paredown.pipeline.recipe.weights import load_checkpoint

        network = self._build()
        if self._is_own:
            self._check_outputs(network)
        if self.model_file is not None:
            self.notes = self.model_file.imported(self._file_shape()).notes
            if self.recipe.weights == EMBEDDED:
                return network.eval()
        of = f"{self.recipe.network} with {len(self.names)} {self._counted}"
        self.notes += load_checkpoint(self.recipe.weights, network, of, self._untrained(network))
        return network.eval()

    #: What the names are of.
    _counted: ClassVar[str] = "classes"

    def _untrained(self, network: Any) -> set[str]:
        """Parameters that a weights file need not have."""
        return set()

    def _check_outputs(self, network: Any) -> None:
        """Refuses a network that does not take the input, or returns what cannot be scored."""
        import torch

        shape = self._preprocess.input_shape
        try:
            with torch.no_grad():
                outputs = network.eval()(torch.zeros(shape))
        except Exception as error:  # the user's own code: whatever it raises is about it, not about us
            reason = f"{type(error).__name__}: {error}"
            what = f"{self.recipe.network} does not take an input of {shape}: {reason}"
            raise InputError(what, where="recipe, key network") from error
        found = shapes_of(outputs)
        if wanted := self._wanted(found):
            said = type(outputs).__name__ if not found else found[0] if len(found) == 1 else list(found)
            raise InputError(
                f"{self.recipe.network} returns {said} for one {self._sample}, not {wanted}",
                where="recipe, key network", hint=self._hint,
            )  # fmt: skip

    _hint: ClassVar[str] = "data.names must list the network's classes"

    @property
    def _sample(self) -> str:
        return "image" if self._images else "array"

    def _wanted(self, shapes: tuple[tuple[int, ...], ...]) -> str:
        """What the network should return, in words; nothing if these shapes of its outputs are right."""
        raise NotImplementedError

    def features(self) -> tuple[str, ...]:
        """None: the outputs say enough."""
        return ()

    # -- data ----------------------------------------------------------------------------------------------

    @property
    def _images(self) -> bool:
        return self.recipe.data.format != ARRAYS

    @property
    def preprocess(self) -> AnyInput:
        """Mean and standard deviation of ImageNet, unless the recipe says otherwise; arrays as they are."""
        return self._preprocess

    @property
    def image_input(self) -> Preprocess:
        """The same, of a task of images."""
        assert isinstance(self._preprocess, Preprocess)
        return self._preprocess

    def _size(self) -> dict[str, Any]:
        """Width and height of the input, as far as the network says it, and other keys of preprocessing."""
        if self.model_file is not None:
            shape = self.model_file.imported(self._file_shape()).shape
            if len(shape) != 4:
                raise InputError(
                    f"takes {shape}, which is no image", where=self.recipe.network,
                    hint='use data.format = "arrays"',
                )  # fmt: skip
            return {"width": shape[3], "height": shape[2]}
        if self.recipe.network == FINISHED:
            return {}
        return input_size(self._build())

    def _make_preprocess(self) -> AnyInput:
        changes = self.recipe.preprocess.changes()
        if not self._images:
            if changes:
                raise InputError("arrays go into the network as they are", hint="remove the section",
                                 where="recipe, section [preprocess]")  # fmt: skip
            if self._is_factory:
                self._build()  # its source file is part of what the network is
            return ArrayInput(array_shape(Path(self._path("test"))))
        size = self._size()
        if missing := [name for name in ("width", "height") if name not in {**size, **changes}]:
            raise InputError(
                f"{self.recipe.network} does not say its input's {' and '.join(missing)}",
                where="recipe, section [preprocess]",
                hint=f"set {' and '.join(missing)}, or give the network an attribute input_size",
            )
        if changes.get("resize") in self.refused_resizes:
            raise InputError(
                f'resize = "{changes["resize"]}" hides a part of the image',
                where="recipe, key preprocess.resize", hint="use stretch or letterbox",
            )  # fmt: skip
        if changes.get("colour") == "grey" and not {"mean", "std"} <= set(changes):
            raise InputError('colour = "grey" also needs mean and std', where="recipe, section [preprocess]")
        resize = self._resize({**size, **changes})
        return Preprocess(**{"resize": resize, "mean": MEAN, "std": STD, **size, **changes})

    def _resize(self, size: Mapping[str, Any]) -> str:
        """How images are brought to the input's size where the recipe does not say it."""
        return self.resize

    def _names(self) -> tuple[str, ...]:
        names = self.recipe.data.names
        if names is None:
            raise InputError("no list of the network's classes", where="recipe, key data.names",
                             hint="set data.names")  # fmt: skip
        return read_names(names)

    def _path(self, split: str) -> str:
        path: str | None = getattr(self.recipe.data, split)
        if path is None:
            raise InputError(f"the recipe names no {split} images", where=f"recipe, key data.{split}")
        return path

    def data(self, split: str) -> Dataset:
        """The images, or arrays, of "train", "calibration" or "test"; the test split must have labels."""
        path = self._path(split)
        found = self._open(split, path)
        limit = self.recipe.data.limit
        found = First(found, limit) if limit else found
        if split == "test":
            self._check_test(found, path)
        return found

    def _open(self, split: str, path: str) -> Dataset:
        data = self.recipe.data
        return open_dataset(
            data.format, path, names=self.names, label_names=self._label_names(), images=data.images,
            labels=data.labels, require_labels=split == "test", split=split,
            orientation=data.orientation or "upright",
        )  # fmt: skip

    def _label_names(self) -> tuple[str, ...] | None:
        named = self.recipe.data.label_names
        return read_names(named) if named else None

    def _check_test(self, data: Dataset, path: str) -> None:
        """Refuses test data by which nothing can be told."""

    # -- device --------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        """What the device's code needs to know beside the names."""
        return {"outputs": list(self.output_names)}

    def bundle_members(self) -> dict[str, bytes]:
        """Names of the classes, and what the device's code needs to know."""
        facts = {"classes": len(self.names), **self._facts()}
        text = json.dumps(facts, sort_keys=True, indent=1) + "\n"
        return {"labels.txt": "".join(f"{name}\n" for name in self.names).encode(), "app.json": text.encode()}

    def device_files(self) -> dict[str, Path]:
        """The code that runs on the device: numpy, OpenCV and one runtime, no torch."""
        folder = self.name.replace(".", "/")
        return own_code((f"{folder}/__init__.py", f"{folder}/device/*.py", "calibration/array_input.py"))


def first_output(outputs: Any) -> Any:
    """The one tensor of what a network returned."""
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


def shapes_of(outputs: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of what a network returned; none where that is neither a tensor nor some of them."""
    parts = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    if not all(hasattr(part, "shape") for part in parts):
        return ()
    return tuple(tuple(part.shape) for part in parts)


def input_size(network: Any) -> dict[str, int]:
    """Width and height that a network says it takes: `input_size`, a number or (height, width)."""
    size = getattr(network, "input_size", None)
    if isinstance(size, int):
        return {"width": size, "height": size}
    if isinstance(size, (tuple, list)) and len(size) >= 2 and all(isinstance(v, int) for v in size[-2:]):
        return {"width": size[-1], "height": size[-2]}
    return {}


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes a picture, (H, W, 3) uint8 BGR."""
    ok, png = cv2.imencode(".png", image)
    assert ok
    path.write_bytes(png.tobytes())
