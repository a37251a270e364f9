"""The detector's side of a recipe: network, weights, data, score, and what the device needs.

Torch is imported only where a network is built: a run in which everything is reused never needs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from paredown.apps.detector.device.boxes.decode import Detections
from paredown.apps.detector.device.boxes.heads import Heads, YoloHeads
from paredown.apps.detector.device.drawing.draw import draw, draw_labels
from paredown.apps.detector.origins.find import origin_of
from paredown.apps.detector.scoring.located import SCORE_THRESHOLD, Located, located
from paredown.apps.detector.scoring.truth import PseudoLabelled, Truth, Truths
from paredown.apps.own.doubts import doubts
from paredown.apps.own.model_file import ModelFile
from paredown.calibration.datasets import Dataset, First, Sample, open_dataset, read_names
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.recipe.schema import EMBEDDED, Recipe
from paredown.pipeline.recipe.task import Batches, Outputs, Predict, Progress, Scores
from paredown.pipeline.store.store import file_hash
from paredown.targets.errors import InputError
from paredown.targets.own_code import own_code

SHOW_THRESHOLD = 0.5  # darknet's, to show a box
PSEUDO_THRESHOLD = 0.5  # for a box to count as a label; YOLO-LITE VOC's F1 on COCO peaks at .4 to .5
PREVIEW_SIDE = 480  # pixels of one picture in the preview


class _Unlabelled:
    """Batches whose labels nobody can use."""

    def __init__(self, made: Batches) -> None:
        self._made = made

    @property
    def per_epoch(self) -> int:
        return self._made.per_epoch

    def __call__(self, step: int, /) -> tuple[Any, Any]:
        return self._made(step)[0], None


class DetectorTask:
    """A detector with its data; satisfies `pipeline.recipe.task.Task`.

    What depends on where its network is from says its `origin`.

    Args:
        recipe: resolved.

    Raises:
        InputError: the .cfg or the factory cannot be read.
    """

    name = "apps.detector"
    metric = "map50"
    score_rule = "clipped, by class"  # boxes were once scored as they came, and classes only together

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._known: dict[str, Truths] = {}
        self._kept: Located | None = None
        self.origin = origin_of(recipe)
        self.names, self.output_names = self.origin.names, self.origin.output_names
        self._check_untrained()

    def _check_untrained(self) -> None:
        """Refuses what needs a training loss, where the heads have none here."""
        recipe, kind = self.recipe, self.origin.untrained
        if not kind:
            return
        for name, section in (("recover", recipe.recover), ("squantize", recipe.squantize)):
            if section.method in ("labels", "both"):
                raise InputError(
                    f"method = \"{section.method}\" needs a training loss, and {kind} heads have none here",
                    where=f"recipe, key {name}.method", hint='use "distil" or "auto"',
                )  # fmt: skip
        if recipe.prune.criterion == "taylor":
            raise InputError(
                f'criterion = "taylor" needs a training loss, and {kind} heads have none here',
                where="recipe, key prune.criterion", hint='use "activation" or "norm"',
            )  # fmt: skip

    # -- network -------------------------------------------------------------------------------------------

    @property
    def network_id(self) -> Mapping[str, Any]:
        """What the network is, wherever its files lie."""
        return {"app": self.name, **self.origin.identity()}

    @property
    def notes(self) -> tuple[str, ...]:
        """How the weights were read, once they were."""
        return self.origin.notes

    @property
    def heads(self) -> Heads | None:
        """Those of a network that says how it is decoded."""
        return self.origin.heads

    @property
    def model_file(self) -> ModelFile | None:
        """The file of another tool that the network is of."""
        return self.origin.model_file

    @property
    def weights_path(self) -> Path:
        """The weights file, or the one the app brings along."""
        if self.recipe.weights == EMBEDDED:
            return Path(__file__).with_name("digits.safetensors")
        return Path(self.recipe.weights)

    def weights_hash(self) -> str:
        """sha256 of the weights file, or of the model's own."""
        if self.model_file is not None and self.recipe.weights == EMBEDDED:
            return self.model_file.hash()
        return file_hash(self.weights_path)

    def network(self) -> Any:
        """The trained network in evaluation mode."""
        return self.origin.network(self.weights_path)

    # -- training ------------------------------------------------------------------------------------------

    def loss(self, outputs: Any, labels: Any) -> Any:
        """The loss of a [region] or of v8 heads; see `apps.detector.train`.

        Raises:
            InputError: the network has heads of another kind.
        """
        if kind := self.origin.untrained:
            raise InputError(
                f"training a network with {kind} heads on labels is not supported",
                where=self.origin.cfg.where if self.origin.cfg else self.recipe.network,
                hint="distil it from the original",
            )  # fmt: skip
        return self.origin.loss(outputs, labels)

    def distillation(self, student: Any, teacher: Any) -> Any:
        """The distance of two networks' logits; see `apps.detector.train.distil`."""
        return self.origin.distillation(student, teacher)

    def features(self) -> tuple[str, ...]:
        """The layers that the heads read; of a network that is no darknet's the outputs are enough."""
        return self.origin.features()

    def batches(self, data: Dataset, batch: int, seed: int) -> Batches:
        """Zoomed, shifted, recoloured and (but for digits) mirrored images.

        For heads without a training loss they are without labels, so that recovery distils.
        """
        from paredown.apps.detector.train.augment import Augment
        from paredown.apps.detector.train.batches import Batches
        from paredown.apps.detector.train.config import TrainConfig

        augment = Augment(flips=self.recipe.data.format != EMBEDDED)
        config = TrainConfig(batch=batch, seed=seed, augment=augment)
        made = Batches(data, self.preprocess, config, self.origin.stride, require_labels=False)
        return _Unlabelled(made) if self.origin.untrained else made

    # -- data ----------------------------------------------------------------------------------------------

    @property
    def preprocess(self) -> Preprocess:
        """Plain resize to the network's size, RGB / 255, unless the recipe says otherwise."""
        return self.origin.preprocess

    def data(self, split: str) -> Dataset:
        """The images of "train", "calibration" or "test"; the test split must have labels."""
        data = self.recipe.data
        if data.format == EMBEDDED:
            from paredown.apps.detector.digits import Digits

            return Digits(split, data.limit)  # type: ignore[arg-type]
        path = getattr(data, split)
        if path is None:
            raise InputError(f"the recipe names no {split} images", where=f"recipe, key data.{split}")
        label_names = read_names(data.label_names) if data.label_names else None
        found = open_dataset(
            data.format, path, names=self.names, label_names=label_names, images=data.images,
            labels=data.labels, require_labels=split == "test", clip=data.boxes == "clip",
            orientation=data.orientation or "upright",
        )  # fmt: skip
        return First(found, data.limit) if data.limit else found

    # -- score ---------------------------------------------------------------------------------------------

    def detections(self, predict: Predict, image: np.ndarray, threshold: float) -> Detections:
        """What the network finds in an image, boxes normalised to the image and clipped to it."""
        outputs = predict(self.preprocess(image)[None])
        height, width = image.shape[:2]
        return self._located(outputs, (height, width), threshold)

    def _located(
        self, outputs: Sequence[np.ndarray], size: tuple[int, int], threshold: float = SCORE_THRESHOLD
    ) -> Detections:
        made = [output[0] for output in outputs]
        return located(made, self.origin.decoder, self.preprocess, size, threshold)

    def _truths(self, data: Dataset) -> Truths:
        """The labels of a data set, in memory once they were read: it is scored many times."""
        return self._known.setdefault(data.fingerprint(), Truths(data))

    def _found(self, outputs: Outputs, data: Dataset) -> tuple[list[Detections], list[Truth]]:
        """What outputs show in the first images of the data, and the truth."""
        truths = self._truths(data).first(len(outputs))
        self._kept = kept = self._kept or Located(self.origin.decoder, self.preprocess)
        made = ([part[0] for part in one] for one in outputs)
        return [kept(one, truth.size) for one, truth in zip(made, truths, strict=True)], truths

    def score(self, predict: Predict, data: Dataset, progress: Progress | None = None) -> dict[str, float]:
        """mAP@0.5 ("map50") and COCO's mAP ("map") over the images of a data set."""
        truths, found = self._truths(data), []
        for index in range(len(data)):
            sample = data[index]
            size = truths.note(index, sample).size
            # decoded at once: the outputs of a large set would fill the memory
            found.append(self._located(predict(self.preprocess(sample.image)[None]), size))
            if progress:
                progress(index + 1, len(data))
        return self._scored(found, truths.first(len(data)))

    def score_outputs(self, outputs: Outputs, data: Dataset) -> dict[str, float]:
        """`score` of outputs for the first images."""
        return self._scored(*self._found(outputs, data))

    def metric_alone(self, outputs: Outputs, data: Dataset) -> float:
        """The "map50" of `score_outputs` alone: COCO's mAP takes most of the time."""
        from paredown.apps.detector.scoring.score import map50

        return map50(*self._found(outputs, data))

    def _scored(self, found: list[Detections], truths: list[Truth]) -> Scores:
        from paredown.apps.detector.scoring.details import details
        from paredown.apps.detector.scoring.score import resampled_map50, score_detections

        scores = score_detections(found, truths, self.names)
        return Scores(
            scores, len(found), lambda weights: resampled_map50(found, truths)(weights),
            lambda: details(found, truths, self.names, SHOW_THRESHOLD),
        )  # fmt: skip

    def doubts(self, predict: Predict, details: Mapping[str, Any]) -> list[str]:
        """Where images are prepared otherwise than in training, or classes look to be in another order."""
        known = self.recipe.data.format == EMBEDDED
        return [] if known else doubts(self, self.weights_path, predict, details)

    def interval(self, outputs: Outputs, data: Dataset) -> tuple[float, float]:
        """The 95 % bootstrap interval of "map50" over images."""
        from paredown.apps.detector.scoring.score import map50_interval

        return map50_interval(*self._found(outputs, data))

    def best_case(self, outputs: Outputs, data: Dataset) -> float:
        """The "map50" that finding every object of the other images would bring."""
        from paredown.apps.detector.scoring.score import best_map50

        found, _ = self._found(outputs, data)
        return best_map50(found, self._truths(data).first(len(data)))

    def telling_first(self, outputs: Outputs, data: Dataset) -> list[int]:
        """The images with the most objects first."""
        truths = self._truths(data).first(len(data))
        return sorted(range(len(truths)), key=lambda index: -len(truths[index].classes))

    def pseudo_labelled(self, outputs: Outputs, data: Dataset) -> Dataset:
        """The first images; where there are no labels, the boxes with a score over `PSEUDO_THRESHOLD`."""
        found, _ = self._found(outputs, data)
        return PseudoLabelled(data, [one.above(PSEUDO_THRESHOLD) for one in found])

    def drawn(self, sample: Sample, found: Sequence[Sequence[float]] | None) -> np.ndarray:
        """A sample with its labels, or with what was found: class, score and x1, y1, x2, y2 of each."""
        if found is None:
            centre, size = sample.boxes[:, :2], sample.boxes[:, 2:]
            boxes, classes = np.concatenate([centre - size / 2, centre + size / 2], axis=1), sample.classes
            return draw_labels(sample.image, boxes, classes, self.names)
        rows = np.array(found, np.float64).reshape(-1, 6)
        seen = Detections(rows[:, 2:].astype(np.float32), rows[:, 1], rows[:, 0].astype(np.int64))
        return draw(sample.image, seen, self.names)

    def preview(self, predict: Predict, data: Dataset, path: Path) -> None:
        """Four test images, two by two, with what is found in them."""
        tiles = []
        for index in range(min(4, len(data))):
            image = data[index].image
            scale = PREVIEW_SIDE / max(image.shape[:2])
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            large = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
            tile = np.full((PREVIEW_SIDE, PREVIEW_SIDE, 3), 32, np.uint8)
            drawn = draw(large, self.detections(predict, image, SHOW_THRESHOLD), self.names)
            top, left = (PREVIEW_SIDE - size[1]) // 2, (PREVIEW_SIDE - size[0]) // 2
            tile[top : top + size[1], left : left + size[0]] = drawn
            tiles.append(tile)
        columns = 2 if len(tiles) > 1 else 1
        while len(tiles) % columns:
            tiles.append(np.full_like(tiles[0], 32))
        rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
        ok, png = cv2.imencode(".png", np.vstack(rows))
        assert ok
        path.write_bytes(png.tobytes())

    # -- device --------------------------------------------------------------------------------------------

    def bundle_members(self) -> dict[str, bytes]:
        """Class names, and what decoding needs."""
        boxes: dict[str, Any]
        decoder = self.origin.decoder
        if isinstance(decoder, YoloHeads):
            boxes = {"yolo": decoder.to_dict()}
        elif isinstance(decoder, Heads):
            boxes = {"heads": decoder.to_dict()}
        else:
            boxes = {"anchors": [list(pair) for pair in decoder]}
        facts = {
            **boxes, "classes": len(self.names),
            "outputs": list(self.output_names), "show_threshold": SHOW_THRESHOLD, "nms_iou": 0.45,
        }  # fmt: skip
        text = json.dumps(facts, sort_keys=True, indent=1) + "\n"
        return {"labels.txt": "".join(f"{name}\n" for name in self.names).encode(), "app.json": text.encode()}

    def device_files(self) -> dict[str, Path]:
        """The code that runs on the device: numpy, OpenCV and one runtime, no torch."""
        return own_code(("apps/detector/__init__.py", "apps/detector/device/**/*.py"))
