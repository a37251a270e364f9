"""The detector's side of a recipe: network, weights, data, score, and what the device needs.

Torch is imported only where a network is built: a run in which everything is reused never needs it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from apps.detector.darknet import Cfg, builtin_cfg, read_cfg
from apps.detector.device.decode import Detections, detect
from apps.detector.device.draw import draw
from calibration.datasets import Dataset, First, open_dataset, read_names
from calibration.preprocess import Preprocess
from pipeline.recipe import EMBEDDED, Recipe
from pipeline.store import file_hash
from pipeline.task import Predict, Progress
from targets.errors import InputError

SCORE_THRESHOLD = 0.005  # darknet's, to score mAP
SHOW_THRESHOLD = 0.5  # darknet's, to show a box
PREVIEW_SIDE = 480  # pixels of one picture in the preview
ROOT = Path(__file__).parents[2]


class DetectorTask:
    """A YOLO-v2 network with its data; satisfies `pipeline.task.Task`.

    Args:
        recipe: resolved.

    Raises:
        InputError: the .cfg or the factory cannot be read.
    """

    name = "apps.detector"
    metric = "map50"
    output_names = ("xy", "wh", "obj", "cls")

    def __init__(self, recipe: Recipe) -> None:
        """Reads the .cfg; nothing heavier."""
        self.recipe = recipe
        self._module: Any = None
        self.cfg = self._read_cfg()
        region = self.cfg.region
        self.anchors, self.classes = region.anchors, region.classes
        changes = recipe.preprocess.changes()
        size = {"width": self.cfg.net.width, "height": self.cfg.net.height}
        self._preprocess = Preprocess(**{**size, **changes})
        self.names = self._names()

    # -- network -------------------------------------------------------------------------------------------

    def _read_cfg(self) -> Cfg:
        network = self.recipe.network
        if network.endswith(".cfg"):
            return read_cfg(network)
        if ":" in network:
            return self._from_factory().cfg
        return builtin_cfg(network)

    def _from_factory(self) -> Any:
        """A network of the user's own code, `package.module:factory`; it must be a YoloV2 at the end."""
        from apps.detector.network import YoloV2

        module_name, _, factory_name = self.recipe.network.partition(":")
        try:
            if str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))  # the user's own package, beside the recipe's command
            self._module = importlib.import_module(module_name)
            network = getattr(self._module, factory_name)()
        except Exception as error:  # the user's own code: whatever it raises is about it, not about us
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"cannot make {self.recipe.network}: {reason}", where="recipe, key network"
            ) from error
        if not isinstance(network, YoloV2):
            raise InputError(
                f"{self.recipe.network} made a {type(network).__name__}, not a YoloV2",
                where="recipe, key network",
            )
        return network

    @property
    def network_id(self) -> Mapping[str, Any]:
        """The .cfg's own text decides the network; a factory's source file counts too."""
        parsed = json.dumps(dataclasses.asdict(self.cfg) | {"where": ""}, sort_keys=True, default=str)
        identity = {"app": self.name, "cfg": hashlib.sha256(parsed.encode()).hexdigest()}
        if self._module is not None and self._module.__file__:
            identity["factory"] = file_hash(Path(self._module.__file__))
        return identity

    @property
    def weights_path(self) -> Path:
        """The weights file, or the one the app brings along."""
        if self.recipe.weights == EMBEDDED:
            return Path(__file__).with_name("digits.safetensors")
        return Path(self.recipe.weights)

    def weights_hash(self) -> str:
        """sha256 of the weights file."""
        return file_hash(self.weights_path)

    def network(self) -> Any:
        """The trained network in evaluation mode."""
        from apps.detector.network import YoloV2
        from apps.detector.weights import load_checkpoint

        network = self._from_factory() if ":" in self.recipe.network else YoloV2.from_cfg(self.cfg)
        load_checkpoint(self.weights_path, network)
        return network.eval()

    def loss(self, outputs: Any, labels: Any) -> Any:
        """The region loss; see `apps.detector.loss`."""
        from apps.detector.loss import region_loss

        return region_loss(outputs, labels, self.anchors)

    # -- data ----------------------------------------------------------------------------------------------

    @property
    def preprocess(self) -> Preprocess:
        """Plain resize to the .cfg's size, RGB / 255, unless the recipe says otherwise."""
        return self._preprocess

    def _names(self) -> tuple[str, ...]:
        data = self.recipe.data
        if data.format == EMBEDDED:
            names = tuple("0123456789")
        else:
            assert data.names is not None  # the recipe's own check
            names = read_names(data.names)
        if len(names) != self.classes:
            raise InputError(
                f"{len(names)} class names for a network of {self.classes} classes",
                where=data.names or "the embedded digits",
                hint="data.names must list the network's classes; label_names those of the label files",
            )
        return names

    def data(self, split: str) -> Dataset:
        """The images of "train", "calibration" or "test"; the test split must have labels."""
        data = self.recipe.data
        if data.format == EMBEDDED:
            from apps.detector.digits import Digits

            return Digits(split, data.limit)  # type: ignore[arg-type]
        path = getattr(data, split)
        if path is None:
            raise InputError(f"the recipe names no {split} images", where=f"recipe, key data.{split}")
        label_names = read_names(data.label_names) if data.label_names else None
        found = open_dataset(
            data.format, path, names=self.names, label_names=label_names, images=data.images,
            labels=data.labels, require_labels=split == "test",
        )  # fmt: skip
        return First(found, data.limit) if data.limit else found

    # -- score ---------------------------------------------------------------------------------------------

    def detections(
        self, predict: Predict, image: np.ndarray, threshold: float, clip: bool = True
    ) -> Detections:
        """What the network finds in an image, boxes normalised to the image."""
        outputs = predict(self._preprocess(image)[None])
        found = detect([output[0] for output in outputs], self.anchors, threshold)
        geometry = self._preprocess.geometry(*image.shape[:2])
        return Detections(geometry.to_image(found.boxes, clip), found.scores, found.classes)

    def score(self, predict: Predict, data: Dataset, progress: Progress | None = None) -> dict[str, float]:
        """mAP@0.5 ("map50") and COCO's mAP ("map") over the images of a data set."""
        from apps.detector.score import score_detections

        found = []
        for index in range(len(data)):
            found.append(self.detections(predict, data[index].image, SCORE_THRESHOLD, clip=False))
            if progress:
                progress(index + 1, len(data))
        return score_detections(found, data)

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
        facts = {
            "anchors": [list(pair) for pair in self.anchors], "classes": self.classes,
            "outputs": list(self.output_names), "show_threshold": SHOW_THRESHOLD, "nms_iou": 0.45,
        }  # fmt: skip
        text = json.dumps(facts, sort_keys=True, indent=1) + "\n"
        return {"labels.txt": "".join(f"{name}\n" for name in self.names).encode(), "app.json": text.encode()}

    def device_files(self) -> dict[str, Path]:
        """The code that runs on the device: numpy, OpenCV and one runtime, no torch."""
        folder = "apps/detector/device"
        names = [f"{folder}/{name}.py" for name in ("__init__", "decode", "draw", "detect")]
        return {name: ROOT / name for name in ("apps/detector/__init__.py", *names)}
