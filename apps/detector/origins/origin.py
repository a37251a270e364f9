"""What a task asks of its network, wherever it is from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paredown.apps.detector.darknet.layers import Cfg
from paredown.apps.detector.device.boxes.decode import Decoder
from paredown.apps.detector.device.boxes.heads import Heads
from paredown.apps.own.model_file import ModelFile
from paredown.calibration.datasets import BOX_FORMATS, read_names
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.recipe.schema import EMBEDDED, Recipe
from paredown.targets.errors import InputError


class Origin(ABC):
    """A network without its weights: its input, its outputs and how it is trained.

    Attributes:
        names: of the classes.
        preprocess: how an image becomes its input.
        decoder: how its outputs become boxes.
        output_names: of its outputs, in their order.
        heads: of a network that says how it is decoded.
        cfg: of a darknet's network.
        stride: by which sizes of its input grow; 1 where they do not.
        untrained: the kind of its heads, if they have no training loss here; else empty.
        notes: how the weights were read, once they were.
    """

    names: tuple[str, ...]
    preprocess: Preprocess
    decoder: Decoder
    output_names: tuple[str, ...]
    heads: Heads | None = None
    cfg: Cfg | None = None
    stride: int = 1
    untrained: str = ""
    notes: tuple[str, ...] = ()
    model_file: ModelFile | None = None

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What the network is, for keys and manifests; a factory's source file counts too."""

    @abstractmethod
    def network(self, weights: Path) -> Any:
        """The trained network in evaluation mode.

        Args:
            weights: their file, unless they lie in the model file.
        """

    @abstractmethod
    def loss(self, outputs: Any, labels: Any) -> Any:
        """The training loss of outputs; not called where there is none."""

    @abstractmethod
    def distillation(self, student: Any, teacher: Any) -> Any:
        """The distance of two networks' outputs; see `apps.detector.train.distil`."""

    @abstractmethod
    def features(self) -> tuple[str, ...]:
        """The layers that the heads read; none where the outputs are enough."""


def class_names(recipe: Recipe) -> tuple[str, ...]:
    """The names of the classes that a recipe lists.

    Raises:
        InputError: the data have no boxes, or no names are given.
    """
    data = recipe.data
    if data.format == EMBEDDED:
        return tuple("0123456789")
    if data.format not in BOX_FORMATS:
        hint = "detection needs boxes: use yolo, voc or coco"
        raise InputError(f'format = "{data.format}" has no boxes', where="recipe, data.format", hint=hint)
    if data.names is None:
        raise InputError("no list of the network's classes", where="recipe, key data.names",
                         hint="set data.names")  # fmt: skip
    return read_names(data.names)
