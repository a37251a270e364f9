"""The classifier's side of a recipe: network, weights, data, score, and what the device needs.

Torch is imported only where a network is built: a run in which everything is reused never needs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from paredown.apps.classifier.catalogue import MEAN, STD, architecture
from paredown.apps.classifier.labels import Relabelled, label_of, ranks, wilson
from paredown.apps.classifier.sheet import Entry, contact_sheet
from paredown.calibration.datasets import CLASS_FORMATS, Dataset, First, open_dataset, read_names
from paredown.calibration.preprocess import Preprocess
from paredown.calibration.readers.cifar import read_cifar_names
from paredown.pipeline.recipe.factory import from_factory
from paredown.pipeline.recipe.schema import EMBEDDED, Recipe
from paredown.pipeline.recipe.task import Batches, Outputs, Predict, Progress, Scores
from paredown.pipeline.store.store import file_hash
from paredown.targets.errors import InputError
from paredown.targets.own_code import own_code

FORMATS = (*CLASS_FORMATS, "folder")
TEMPERATURE = 4.0  # of distillation; within the range that Hinton et al. (arXiv 1503.02531) use
TOP = 5
PREVIEW_IMAGES = 24


class ClassifierTask:
    """A classification network with its data; satisfies `pipeline.recipe.task.Task`.

    The network takes images as `preprocess` makes them and returns logits, (N, classes).

    Args:
        recipe: resolved.

    Raises:
        UsageError: no built-in network of that name.
        InputError: the factory or the class names cannot be read, or a key of the recipe does not fit.
    """

    name = "apps.classifier"
    metric = "top1"
    output_names: tuple[str, ...] = ("logits",)

    def __init__(self, recipe: Recipe) -> None:
        """Reads the class names; a factory of the user's own is called for its input's size."""
        self.recipe = recipe
        self._factory_file: Path | None = None
        self._known: tuple[Dataset, list[int]] | None = None
        if recipe.data.format not in FORMATS:
            raise InputError(
                f'format = "{recipe.data.format}" has not one class per image',
                where="recipe, key data.format",
                hint=f"use {', '.join(FORMATS)}",
            )
        if recipe.weights == EMBEDDED:
            raise InputError("the classifier brings no weights along", where="recipe, key weights",
                             hint="name a .safetensors, .pt, .pth or .th file")  # fmt: skip
        self.names = self._names()
        self._preprocess = self._make_preprocess()

    # -- network -------------------------------------------------------------------------------------------

    @property
    def _is_factory(self) -> bool:
        return ":" in self.recipe.network

    def _build(self) -> Any:
        """The network with untrained weights."""
        from torch import nn

        from paredown.apps.classifier.network import build

        if not self._is_factory:
            return build(self.recipe.network, len(self.names))
        network, self._factory_file = from_factory(self.recipe.network, self.recipe.folder)
        if not isinstance(network, nn.Module):
            what = f"{self.recipe.network} made a {type(network).__name__}, not a torch.nn.Module"
            raise InputError(what, where="recipe, key network")
        return network

    @property
    def network_id(self) -> Mapping[str, Any]:
        """The architecture's name and its classes; a factory's source file counts too."""
        identity = {"app": self.name, "network": self.recipe.network, "classes": len(self.names)}
        if self._factory_file is not None:
            identity["factory"] = file_hash(self._factory_file)
        return identity

    def weights_hash(self) -> str:
        """sha256 of the weights file."""
        return file_hash(Path(self.recipe.weights))

    def network(self) -> Any:
        """The trained network in evaluation mode."""
        from paredown.apps.classifier.network import fixed
        from paredown.pipeline.recipe.weights import load_checkpoint

        network = self._build()
        if self._is_factory:
            self._check_outputs(network)
        of = f"{self.recipe.network} with {len(self.names)} classes"
        load_checkpoint(self.recipe.weights, network, of, set(fixed(network)))
        return network.eval()

    def _check_outputs(self, network: Any) -> None:
        """Refuses a network that does not return one row of logits per image."""
        import torch

        shape = (1, self._preprocess.channels, self._preprocess.height, self._preprocess.width)
        try:
            with torch.no_grad():
                logits = _logits(network.eval()(torch.zeros(shape)))
        except Exception as error:  # the user's own code: whatever it raises is about it, not about us
            reason = f"{type(error).__name__}: {error}"
            what = f"{self.recipe.network} does not take an input of {shape}: {reason}"
            raise InputError(what, where="recipe, key network") from error
        if tuple(getattr(logits, "shape", ())) != (1, len(self.names)):
            found = tuple(getattr(logits, "shape", ())) or type(logits).__name__
            raise InputError(
                f"{self.recipe.network} returns {found} for one image, not logits of (1, {len(self.names)})",
                where="recipe, key network",
                hint="data.names must list the network's classes",
            )

    def loss(self, outputs: Any, labels: Any) -> Any:
        """Cross entropy of logits (N, classes) and classes (N,)."""
        import torch.nn.functional as F

        return F.cross_entropy(_logits(outputs), labels)

    def distillation(self, student: Any, teacher: Any) -> Any:
        """Divergence of the softened probabilities, times T squared (Hinton et al., arXiv 1503.02531)."""
        import torch.nn.functional as F

        ours = F.log_softmax(_logits(student) / TEMPERATURE, 1)
        theirs = F.log_softmax(_logits(teacher) / TEMPERATURE, 1)
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * TEMPERATURE**2

    def features(self) -> tuple[str, ...]:
        """None: a classifier's outputs say enough."""
        return ()

    # -- data ----------------------------------------------------------------------------------------------

    @property
    def preprocess(self) -> Preprocess:
        """Mean and standard deviation of ImageNet, at the size that the network was trained with.

        Images of 224 pixels are the largest centred square of the image, not, as torchvision evaluates, the
        middle 87.5 % of it.
        """
        return self._preprocess

    def _make_preprocess(self) -> Preprocess:
        changes = self.recipe.preprocess.changes()
        if not self._is_factory:
            side = architecture(self.recipe.network).side
            size = {"width": side, "height": side}
        else:
            size = _size(self._build())
            if missing := [name for name in ("width", "height") if name not in {**size, **changes}]:
                raise InputError(
                    f"{self.recipe.network} does not say its input's {' and '.join(missing)}",
                    where="recipe, section [preprocess]",
                    hint=f"set {' and '.join(missing)}, or give the network an attribute input_size",
                )
        resize = "stretch" if {**size, **changes}["width"] <= 64 else "crop"
        if changes.get("colour") == "grey" and not {"mean", "std"} <= set(changes):
            raise InputError('colour = "grey" also needs mean and std', where="recipe, section [preprocess]")
        return Preprocess(**{"resize": resize, "mean": MEAN, "std": STD, **size, **changes})

    def _names(self) -> tuple[str, ...]:
        data = self.recipe.data
        if data.names is not None:
            names = read_names(data.names)
        else:
            names = read_cifar_names([Path(p) for p in (data.test, data.train, data.calibration) if p])
        if len(names) < 2:
            raise InputError("one class only: nothing to tell apart", where=data.names or data.test)
        return names

    def data(self, split: str) -> Dataset:
        """The images of "train", "calibration" or "test"; the test split must have labels of two classes."""
        data = self.recipe.data
        path = getattr(data, split)
        if path is None:
            raise InputError(f"the recipe names no {split} images", where=f"recipe, key data.{split}")
        label_names = read_names(data.label_names) if data.label_names else None
        found = open_dataset(
            data.format, path, names=self.names, label_names=label_names, images=data.images,
            labels=data.labels, require_labels=split == "test", split=split,
        )  # fmt: skip
        found = First(found, data.limit) if data.limit else found
        if split == "test":
            self._check_classes(found, path)
        return found

    def _check_classes(self, data: Dataset, path: str) -> None:
        present = {label_of(data, index) for index in range(len(data))}
        if len(present) == 1:
            (label,) = present
            raise InputError(
                f"all {len(data)} test images are of one class ({self.names[label or 0]}): "
                "a network that always says so would score 1",
                where=path,
                hint="test on images of all classes; check data.limit and data.label_names",
            )

    def batches(self, data: Dataset, batch: int, seed: int) -> Batches:
        """Random crops and mirror images; see `apps.classifier.batches`."""
        from paredown.apps.classifier import batches

        return batches.Batches(data, self._preprocess, batch, seed)

    def pseudo_labelled(self, outputs: Outputs, data: Dataset) -> Dataset:
        """The first images; those without a label get the likeliest class of these outputs."""
        return Relabelled(data, [int(output[0][0].argmax()) for output in outputs])

    # -- score ---------------------------------------------------------------------------------------------

    def score(self, predict: Predict, data: Dataset, progress: Progress | None = None) -> dict[str, float]:
        """Shares of images whose class comes first ("top1") and, of over five classes, in the first five."""
        outputs = []
        for index in range(len(data)):
            outputs.append(predict(self._preprocess(data[index].image)[None]))
            if progress:
                progress(index + 1, len(data))
        return self.score_outputs(outputs, data)

    def score_outputs(self, outputs: Outputs, data: Dataset) -> dict[str, float]:
        """`score`, from outputs for the first images."""
        found = self._ranks(outputs, data)
        scores = {"top1": float((found == 0).mean())}
        if len(self.names) > TOP:
            scores["top5"] = float((found < TOP).mean())
        right = (found == 0).astype(np.float64)
        return Scores(scores, len(right), lambda weights: weights @ right / weights.sum(axis=1))

    def interval(self, outputs: Outputs, data: Dataset) -> tuple[float, float]:
        """Wilson's 95 % interval of top-1."""
        found = self._ranks(outputs, data)
        return wilson(int((found == 0).sum()), len(found))

    def _ranks(self, outputs: Outputs, data: Dataset) -> NDArray[np.int64]:
        if not 1 <= len(outputs) <= len(data):
            raise ValueError(f"{len(outputs)} outputs for {len(data)} images")
        logits = np.concatenate([output[0] for output in outputs])
        return ranks(logits, self._labels(data, len(outputs)))

    def _labels(self, data: Dataset, count: int) -> NDArray[np.int64]:
        """The classes of the first images; kept, because a sensitivity test asks hundreds of times."""
        if self._known is None or self._known[0] is not data:
            self._known = (data, [])
        known = self._known[1]
        for index in range(len(known), count):
            label = label_of(data, index)
            if label is None:
                raise InputError(f"image {index} has no label to score by", where=data[index].name)
            known.append(label)
        return np.array(known[:count], np.int64)

    def preview(self, predict: Predict, data: Dataset, path: Path) -> None:
        """Test images in rows with what the network takes them for: a green frame where that is right."""
        entries = []
        for index in range(min(PREVIEW_IMAGES, len(data))):
            image, label = data[index].image, label_of(data, index)
            said = int(predict(self._preprocess(image)[None])[0][0].argmax())
            entries.append(Entry(image, self.names[said], None if label is None else self.names[label]))
        ok, png = cv2.imencode(".png", contact_sheet(entries))
        assert ok
        path.write_bytes(png.tobytes())

    # -- device --------------------------------------------------------------------------------------------

    def bundle_members(self) -> dict[str, bytes]:
        """Class names, and how many of them the device shows."""
        facts = {"classes": len(self.names), "outputs": list(self.output_names),
                 "show": min(TOP, len(self.names))}  # fmt: skip
        text = json.dumps(facts, sort_keys=True, indent=1) + "\n"
        return {"labels.txt": "".join(f"{name}\n" for name in self.names).encode(), "app.json": text.encode()}

    def device_files(self) -> dict[str, Path]:
        """The code that runs on the device: numpy, OpenCV and one runtime, no torch."""
        folder = "apps/classifier"
        return own_code(
            (f"{folder}/__init__.py", f"{folder}/device/__init__.py", f"{folder}/device/classify.py")
        )


def _logits(outputs: Any) -> Any:
    """The one tensor of what a network returned."""
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


def _size(network: Any) -> dict[str, int]:
    """Width and height that a network says it takes: `input_size`, a number or (height, width)."""
    size = getattr(network, "input_size", None)
    if isinstance(size, int):
        return {"width": size, "height": size}
    if isinstance(size, (tuple, list)) and len(size) >= 2 and all(isinstance(v, int) for v in size[-2:]):
        return {"width": size[-1], "height": size[-2]}
    return {}
