"""The classifier's side of a recipe: network, weights, data, score, and what the device needs.

Torch is imported only where a network is built: a run in which everything is reused never needs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.apps.classifier.catalogue import architecture
from paredown.apps.classifier.labels import Relabelled, label_of, ranks, wilson
from paredown.apps.classifier.sheet import Entry, contact_sheet
from paredown.apps.detector.darknet.darknet import read_cfg
from paredown.apps.detector.darknet.write import format_cfg
from paredown.apps.own.doubts import doubts
from paredown.apps.own.sheet import SIDE, captioned, fitted, picture
from paredown.apps.own.task import OwnTask, first_output, write_png
from paredown.calibration.datasets import ARRAYS, CLASS_FORMATS, Dataset, Sample, read_names
from paredown.calibration.preprocess import Preprocess
from paredown.calibration.readers.cifar import read_cifar_names
from paredown.pipeline.recipe.task import Batches, Outputs, Predict, Progress, Scores
from paredown.targets.errors import InputError

TEMPERATURE = 4.0  # of distillation; within the range that Hinton et al. (arXiv 1503.02531) use
TOP = 5
PREVIEW_IMAGES = 24


class ClassifierTask(OwnTask):
    """A classification network with its data; satisfies `pipeline.recipe.task.Task`.

    The network takes images, or arrays, as `preprocess` makes them and returns logits, (N, classes).

    Args:
        recipe: resolved.

    Raises:
        UsageError: no built-in network of that name.
        InputError: the factory or the class names cannot be read, or a key of the recipe does not fit.
    """

    name = "apps.classifier"
    metric = "top1"
    logits = True
    output_names: tuple[str, ...] = ("logits",)
    what = "the classifier"
    formats = (*CLASS_FORMATS, ARRAYS, "folder")
    lacking = "has not one class per image"

    _known: tuple[Dataset, list[int]] | None = None

    # -- network -------------------------------------------------------------------------------------------

    def _build(self) -> Any:
        """The network with untrained weights."""
        if self._is_own:
            return super()._build()
        if self._is_darknet:
            from paredown.apps.classifier.darknet import DarknetClassifier

            return DarknetClassifier(self.recipe.network)
        from paredown.apps.classifier.network import build

        return build(self.recipe.network, len(self.names))

    @property
    def _is_darknet(self) -> bool:
        return self.recipe.network.endswith(".cfg")

    @property
    def network_id(self) -> Mapping[str, Any]:
        """As of any network; of a darknet's the .cfg's own text, not where it is."""
        if not self._is_darknet:
            return super().network_id
        text = format_cfg(read_cfg(self.recipe.network, detects=False))
        return {
            "app": self.name,
            "classes": len(self.names),
            "cfg": hashlib.sha256(text.encode()).hexdigest(),
        }

    def untrained(self) -> Any:
        """The network with random weights, in training mode."""
        return self._build().train()

    def network(self) -> Any:
        """The trained network in evaluation mode."""
        if not self._is_darknet:
            return super().network()
        from paredown.apps.detector.network.weights import load_checkpoint

        network = self._build()
        self._check_outputs(network)
        load_checkpoint(self.recipe.weights, network)
        return network.eval()

    def _untrained(self, network: Any) -> set[str]:
        from paredown.apps.classifier.network import fixed

        return set(fixed(network))

    def _wanted(self, shapes: tuple[tuple[int, ...], ...]) -> str:
        right = shapes[:1] == ((1, len(self.names)),)
        return "" if right else f"logits of (1, {len(self.names)})"

    def loss(self, outputs: Any, labels: Any) -> Any:
        """Cross entropy of logits (N, classes) and classes (N,)."""
        import torch.nn.functional as F

        return F.cross_entropy(first_output(outputs), labels)

    def distillation(self, student: Any, teacher: Any) -> Any:
        """Divergence of the softened probabilities, times T squared (Hinton et al., arXiv 1503.02531)."""
        import torch.nn.functional as F

        ours = F.log_softmax(first_output(student) / TEMPERATURE, 1)
        theirs = F.log_softmax(first_output(teacher) / TEMPERATURE, 1)
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * TEMPERATURE**2

    # -- data ----------------------------------------------------------------------------------------------

    def _size(self) -> dict[str, Any]:
        """Of a built-in network that which it was trained with; of a darknet's also how values are scaled.

        Images of 224 pixels are the largest centred square of the image, not, as torchvision evaluates, the
        middle 87.5 % of it.
        """
        if self._is_own:
            return super()._size()
        if self._is_darknet:  # pixels / 255, and nothing else
            net = read_cfg(self.recipe.network, detects=False).net
            plain = (0.0,) * net.channels, (1.0,) * net.channels
            grey = {"colour": "grey"} if net.channels == 1 else {}
            return {"width": net.width, "height": net.height, "mean": plain[0], "std": plain[1], **grey}
        side = architecture(self.recipe.network).side
        return {"width": side, "height": side}

    def _resize(self, size: Mapping[str, Any]) -> str:
        return "stretch" if size["width"] <= 64 else "crop"

    def _names(self) -> tuple[str, ...]:
        data = self.recipe.data
        if data.names is not None:
            names = read_names(data.names)
        else:
            names = read_cifar_names([Path(p) for p in (data.test, data.train, data.calibration) if p])
        if len(names) < 2:
            raise InputError("one class only: nothing to tell apart", where=data.names or data.test)
        return names

    def _check_test(self, data: Dataset, path: str) -> None:
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
        """Random crops and mirror images, see `apps.classifier.batches`; arrays as they are."""
        if isinstance(self._preprocess, Preprocess):
            from paredown.apps.classifier import batches

            return batches.Batches(data, self._preprocess, batch, seed)
        from paredown.apps.own.batches import PlainBatches

        return PlainBatches(data, self._preprocess, batch, seed, label_of)

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
        return Scores(
            scores, len(right), lambda weights: weights @ right / weights.sum(axis=1),
            lambda: self._details(outputs, data),
        )  # fmt: skip

    def _details(self, outputs: Outputs, data: Dataset) -> dict[str, Any]:
        """Top-1 of each class with Wilson's interval, what is taken for what, the margin in each image."""
        logits = np.nan_to_num(np.concatenate([output[0] for output in outputs]).astype(np.float64))
        true, said = self._labels(data, len(outputs)), logits.argmax(axis=1)
        right, classes, images = self._ranks(outputs, data) == 0, [], []
        for label in np.unique(true):
            mine = right[true == label]
            low, high = wilson(int(mine.sum()), len(mine))
            classes.append({"name": self.names[label], "score": float(mine.mean()), "low": low, "high": high,
                            "count": len(mine)})  # fmt: skip
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        for index, label in enumerate(true):
            images.append({"index": index, "quality": round(float(shares[index, label]), 6),
                           "found": [int(said[index]), round(float(shares[index].max()), 4)]})  # fmt: skip
        pairs, counts = np.unique(np.stack([true, said], axis=1), axis=0, return_counts=True)
        confused = [[int(t), int(s), int(n)] for (t, s), n in zip(pairs, counts, strict=True)]
        return {"classes": classes, "names": list(self.names), "confusion": confused, "images": images}

    def drawn(self, sample: Sample, found: Sequence[float] | None) -> np.ndarray:
        """A sample as a picture with its class, or with what it was taken for and how surely."""
        square = fitted(picture(sample.image), SIDE)
        if found is None:
            return captioned(square, ", ".join(self.names[int(each)] for each in sample.classes))
        return captioned(square, f"{self.names[int(found[0])]} {found[1]:.2f}")

    def doubts(self, predict: Predict, details: Mapping[str, Any]) -> list[str]:
        """Where images are prepared otherwise than in training, or classes look to be in another order."""
        images = isinstance(self._preprocess, Preprocess)
        return doubts(self, Path(self.recipe.weights), predict, details) if images else []

    def interval(self, outputs: Outputs, data: Dataset) -> tuple[float, float]:
        """Wilson's 95 % interval of top-1."""
        found = self._ranks(outputs, data)
        return wilson(int((found == 0).sum()), len(found))

    def best_case(self, outputs: Outputs, data: Dataset) -> float:
        """Top-1 if all other images were right."""
        right = int((self._ranks(outputs, data) == 0).sum())
        return (right + len(data) - len(outputs)) / len(data)

    def telling_first(self, outputs: Outputs, data: Dataset) -> list[int]:
        """The images by how far the right class is ahead, those that are wrong already first."""
        logits = np.nan_to_num(np.concatenate([output[0] for output in outputs]).astype(np.float64))
        true = np.arange(len(logits)), self._labels(data, len(logits))
        ahead = logits[true].copy()
        logits[true] = -np.inf
        return np.argsort(ahead - logits.max(axis=1), kind="stable").tolist()

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
            true = None if label is None else self.names[label]
            entries.append(Entry(picture(image), self.names[said], true))
        write_png(path, contact_sheet(entries))

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "show": min(TOP, len(self.names))}
