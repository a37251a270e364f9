"""The detector's side of a recipe: network, weights, data, score, and what the device needs.

Torch is imported only where a network is built: a run in which everything is reused never needs it.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from paredown.apps.detector.darknet.darknet import builtin_cfg, read_cfg
from paredown.apps.detector.darknet.layers import Cfg, Route, coarsest_stride
from paredown.apps.detector.device.boxes.decode import Decoder, Detections
from paredown.apps.detector.device.boxes.heads import Heads, YoloHead, YoloHeads, heads_of
from paredown.apps.detector.device.drawing.draw import draw, draw_labels
from paredown.apps.detector.scoring.located import SCORE_THRESHOLD, located
from paredown.apps.detector.scoring.truth import PseudoLabelled, Truth, Truths
from paredown.apps.own.doubts import doubts
from paredown.apps.own.model_file import ModelFile
from paredown.apps.own.task import input_size
from paredown.calibration.datasets import BOX_FORMATS, Dataset, First, Sample, open_dataset, read_names
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.recipe.factory import from_factory
from paredown.pipeline.recipe.imports.read import is_model
from paredown.pipeline.recipe.schema import EMBEDDED, FINISHED, Recipe
from paredown.pipeline.recipe.task import Batches, Outputs, Predict, Progress, Scores
from paredown.pipeline.store.store import file_hash
from paredown.targets.errors import InputError
from paredown.targets.own_code import own_code

SHOW_THRESHOLD = 0.5  # darknet's, to show a box
PSEUDO_THRESHOLD = 0.5  # for a box to count as a label; YOLO-LITE VOC's F1 on COCO peaks at .4 to .5
#: The networks of `network.v8`, which is not imported for their names alone.
BUILTIN = ("yolov8-nano-like", "yolov8-nano-like-silu")
PREVIEW_SIDE = 480  # pixels of one picture in the preview


def _identity(cfg: Cfg) -> dict[str, Any]:
    facts = dataclasses.asdict(cfg) | {"where": ""}
    for layer, fields in zip(cfg.layers, facts["layers"], strict=True):
        if isinstance(layer, Route) and layer.groups == 1:
            del fields["groups"], fields["group_id"]  # they came later: runs of before are found again
    return facts if cfg.region else facts | {"kinds": [type(layer).__name__ for layer in cfg.layers]}


def _several(outputs: Any) -> Any:
    """The outputs of a network that may return one alone."""
    return outputs if isinstance(outputs, tuple | list) else [outputs]


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

    Its network is darknet's (`cfg`), or of another origin and says how it is decoded (`heads`).

    Args:
        recipe: resolved.

    Raises:
        InputError: the .cfg or the factory cannot be read.
    """

    name = "apps.detector"
    metric = "map50"
    score_rule = "clipped, by class"  # boxes were once scored as they came, and classes only together
    output_names: tuple[str, ...] = ("xy", "wh", "obj", "cls")
    notes: tuple[str, ...] = ()  # how the weights were read, once they were

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._factory_file: Path | None = None
        self.model_file = ModelFile(recipe.network) if is_model(recipe.network) else None
        if recipe.decoding is not None and self.model_file is None and recipe.network != FINISHED:
            raise InputError("only a model file needs it", where="recipe, key decoding",
                             hint="give the network an attribute `decoding`")  # fmt: skip
        self._known: dict[str, Truths] = {}
        self._last: tuple[str, list[Detections]] | None = None
        self.cfg: Cfg | None = None
        self.heads: Heads | None = None
        own = self._read_network()
        self._preprocess = self._made_preprocess(own)
        self.names = self._names()
        self.classes = self.cfg.classes if self.cfg else len(self.names)
        if own is not None:
            from paredown.apps.detector.network.own import checked_heads

            shape = self._preprocess.input_shape
            self.heads, self.output_names = checked_heads(own, shape, self.classes, recipe.network)
        if recipe.network == FINISHED:
            self.heads = heads_of(recipe.decoding, (self._preprocess.width, self._preprocess.height))
        self.anchors = self.cfg.region.anchors if self.cfg and self.cfg.region else ()
        self.decoder = self._decoder()
        if isinstance(self.decoder, YoloHeads) and self.heads is None:
            count = len(self.decoder.heads)
            self.output_names = tuple(
                f"{name}{head}" for head in range(1, count + 1) for name in DetectorTask.output_names
            )
        self._check_untrained()

    # -- network -------------------------------------------------------------------------------------------

    def _read_network(self) -> Any:
        """Reads the .cfg; a network that is no darknet's is returned."""
        network = self.recipe.network
        if network == FINISHED:
            return None
        if self.model_file is None and ":" not in network and network not in BUILTIN:
            self.cfg = read_cfg(network) if network.endswith(".cfg") else builtin_cfg(network, BUILTIN)
            return None
        if self.recipe.weights == EMBEDDED and network in BUILTIN:
            what = f"the detector brings no weights of {network} along"
            raise InputError(what, where="recipe, key weights", hint="train some with `paredown train`")
        made = self._build()
        self.cfg = getattr(made, "cfg", None) if self._is_yolo(made) else None
        return made if self.cfg is None else None

    def _build(self) -> Any:
        """A network that is no .cfg's, with random weights."""
        from paredown.apps.detector.network.own import is_own

        if self.recipe.network in BUILTIN:
            from paredown.apps.detector.network.v8 import builtin

            return builtin(self.recipe.network, len(self._read_names()))
        if self.model_file is not None:
            return self._from_file(self.model_file)
        network, self._factory_file = from_factory(self.recipe.network, self.recipe.folder)
        if not self._is_yolo(network) and not is_own(network):
            raise InputError(
                f"{self.recipe.network} made a {type(network).__name__}, not a Yolo or a torch.nn.Module "
                "that says how its outputs are decoded",
                where="recipe, key network", hint="give it a mapping `decoding`",
            )  # fmt: skip
        return network

    def _from_file(self, file: ModelFile) -> Any:
        """The network of a model file, which the recipe says how to decode."""
        from paredown.pipeline.recipe.imports.logits import before_boxes

        if self.recipe.decoding is None:
            raise InputError(
                "does not say how its outputs become boxes", where=self.recipe.network,
                hint='set decoding = { kind = "v8", strides = [8, 16, 32] }, as the heads have it',
            )  # fmt: skip
        wanted = self.recipe.preprocess
        size = (wanted.height, wanted.width) if wanted.height and wanted.width else None
        found = file.imported(size)
        heads = heads_of(self.recipe.decoding, (found.shape[-1], found.shape[-2]))
        for shapes in heads.expected(len(self._read_names())):
            found = before_boxes(found, shapes)
        network: Any = copy.deepcopy(found.module)
        network.decoding, network.input_size = dict(self.recipe.decoding), found.shape[-2:]
        self.notes = found.notes
        return network

    @staticmethod
    def _is_yolo(network: object) -> bool:
        from paredown.apps.detector.network import Yolo

        return isinstance(network, Yolo)

    def _made_preprocess(self, own: Any) -> Preprocess:
        """RGB / 255 of the network's size, unless the recipe says otherwise."""
        changes = self.recipe.preprocess.changes()
        if self.cfg is None:
            size: dict[str, Any] = {} if own is None else dict(input_size(own))
            if missing := [name for name in ("width", "height") if name not in {**size, **changes}]:
                raise InputError(
                    f"{self.recipe.network} does not say its input's {' and '.join(missing)}",
                    where="recipe, section [preprocess]",
                    hint=f"set {' and '.join(missing)}, or give the network an attribute input_size",
                )
        else:
            size = {"width": self.cfg.net.width, "height": self.cfg.net.height}
            if self.cfg.letter_box:
                size["resize"] = "letterbox"
        return Preprocess(**{**size, **changes})

    def _decoder(self) -> Decoder:
        if self.heads:
            return self.heads.decoder
        assert self.cfg is not None
        if self.cfg.region:
            return self.cfg.region.anchors
        yolos = tuple(self.cfg.yolos.values())
        heads = tuple(
            YoloHead(tuple(yolo.anchors[i] for i in yolo.mask), yolo.scale_x_y, yolo.new_coords)
            for yolo in yolos
        )
        # darknet takes the suppression from the last head
        return YoloHeads(heads, (self._preprocess.width, self._preprocess.height), yolos[-1].nms_beta)

    @property
    def _untrained(self) -> str:
        """The kind of the heads, if they have no training loss here."""
        if self.heads:
            return "" if self.heads.kind == "v8" else self.heads.kind
        return "" if self.cfg and self.cfg.region else "[yolo]"

    def _check_untrained(self) -> None:
        """Refuses what needs a training loss, where the heads have none here."""
        recipe, kind = self.recipe, self._untrained
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

    @property
    def network_id(self) -> Mapping[str, Any]:
        """The .cfg's own text decides the network, or its name; a factory's source file counts too."""
        identity: dict[str, Any] = {"app": self.name}
        if self.heads:
            identity |= {
                "network": self.recipe.network,
                "classes": self.classes,
                "heads": json.loads(json.dumps(self.heads.to_dict())),  # as a bundle's manifest has it
            }
        else:
            assert self.cfg is not None
            parsed = json.dumps(_identity(self.cfg), sort_keys=True, default=str)
            identity["cfg"] = hashlib.sha256(parsed.encode()).hexdigest()
        if self._factory_file is not None:
            identity["factory"] = file_hash(self._factory_file)
        return identity | (self.model_file.identity() if self.model_file else {})

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
        from paredown.apps.detector.network import Yolo
        from paredown.apps.detector.weights import load_checkpoint

        if self.cfg is None:
            from paredown.pipeline.recipe import weights

            network = self._build()
            if self.model_file is not None and self.recipe.weights == EMBEDDED:
                return network.eval()
            self.notes += weights.load_checkpoint(
                self.weights_path, network, f"{self.recipe.network} with {self.classes} classes"
            )
            return network.eval()
        network = self._build() if ":" in self.recipe.network else Yolo.from_cfg(self.cfg)
        self.notes = load_checkpoint(self.weights_path, network)
        return network.eval()

    # -- training ------------------------------------------------------------------------------------------

    def loss(self, outputs: Any, labels: Any) -> Any:
        """The loss of a [region] or of v8 heads; see `apps.detector.train`.

        Raises:
            InputError: the network has heads of another kind.
        """
        if kind := self._untrained:
            raise InputError(
                f"training a network with {kind} heads on labels is not supported",
                where=self.cfg.where if self.cfg else self.recipe.network, hint="distil it from the original",
            )  # fmt: skip
        if self.heads:
            from paredown.apps.detector.train.v8_loss import v8_loss

            return v8_loss(_several(outputs), labels, self.heads)
        from paredown.apps.detector.train.loss import region_loss

        return region_loss(outputs, labels, self.anchors)

    def distillation(self, student: Any, teacher: Any) -> Any:
        """The distance of two networks' logits; see `apps.detector.train.distil`."""
        from paredown.apps.detector.train.distil import (
            heads_distillation,
            region_distillation,
            yolo_distillation,
        )

        if self.heads:
            return heads_distillation(_several(student), _several(teacher), self.heads)
        if isinstance(self.decoder, YoloHeads):
            return yolo_distillation(student, teacher, [head.new_coords for head in self.decoder.heads])
        return region_distillation(student, teacher)

    def features(self) -> tuple[str, ...]:
        """The layers that the heads read; of a network that is no darknet's the outputs are enough."""
        if self.cfg is None:
            return ()
        if self.cfg.region:
            return (f"layers.{len(self.cfg.layers) - 2}",)
        return tuple(f"layers.{index - 2}" for index in self.cfg.yolos if index >= 2)

    def batches(self, data: Dataset, batch: int, seed: int) -> Batches:
        """Zoomed, shifted, recoloured and (but for digits) mirrored images.

        For heads without a training loss they are without labels, so that recovery distils.
        """
        from paredown.apps.detector.train.augment import Augment
        from paredown.apps.detector.train.batches import Batches
        from paredown.apps.detector.train.config import TrainConfig

        augment = Augment(flips=self.recipe.data.format != EMBEDDED)
        config = TrainConfig(batch=batch, seed=seed, augment=augment)
        stride = (
            coarsest_stride(self.cfg) if self.cfg else 1
        )  # it matters where sizes change, and they do not
        made = Batches(data, self._preprocess, config, stride, require_labels=False)
        return _Unlabelled(made) if self._untrained else made

    # -- data ----------------------------------------------------------------------------------------------

    @property
    def preprocess(self) -> Preprocess:
        """Plain resize to the network's size, RGB / 255, unless the recipe says otherwise."""
        return self._preprocess

    def _read_names(self) -> tuple[str, ...]:
        data = self.recipe.data
        if data.format == EMBEDDED:
            return tuple("0123456789")
        if data.format not in BOX_FORMATS:
            hint = "detection needs boxes: use yolo, voc or coco"
            raise InputError(f'format = "{data.format}" has no boxes', where="recipe, data.format", hint=hint)
        if data.names is None:
            raise InputError("no list of the network's classes", where="recipe, key data.names",
                             hint="set data.names")  # fmt: skip
        return read_names(data.names)

    def _names(self) -> tuple[str, ...]:
        names = self._read_names()
        if self.cfg and len(names) != self.cfg.classes:
            raise InputError(
                f"{len(names)} class names for a network of {self.cfg.classes} classes",
                where=self.recipe.data.names or "the embedded digits",
                hint="data.names must list the network's classes; label_names those of the label files",
            )
        return names

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
        outputs = predict(self._preprocess(image)[None])
        height, width = image.shape[:2]
        return self._located(outputs, (height, width), threshold)

    def _located(
        self, outputs: Sequence[np.ndarray], size: tuple[int, int], threshold: float = SCORE_THRESHOLD
    ) -> Detections:
        made = [output[0] for output in outputs]
        return located(made, self.decoder, self._preprocess, size, threshold)

    def _truths(self, data: Dataset) -> Truths:
        """The labels of a data set, in memory once they were read: it is scored many times."""
        return self._known.setdefault(data.fingerprint(), Truths(data))

    def _found(self, outputs: Outputs, data: Dataset) -> tuple[list[Detections], list[Truth]]:
        """What outputs show in the first images of the data, and the truth; the last answer is kept."""
        truths = self._truths(data).first(len(outputs))
        digest = hashlib.sha256(f"{data.fingerprint()}:{len(outputs)}".encode())
        for one in outputs:
            for part in one:
                digest.update(np.ascontiguousarray(part).data)
        key = digest.hexdigest()
        if self._last is None or self._last[0] != key:
            pairs = zip(outputs, truths, strict=True)
            self._last = key, [self._located(one, truth.size) for one, truth in pairs]
        return self._last[1], truths

    def score(self, predict: Predict, data: Dataset, progress: Progress | None = None) -> dict[str, float]:
        """mAP@0.5 ("map50") and COCO's mAP ("map") over the images of a data set."""
        truths, found = self._truths(data), []
        for index in range(len(data)):
            sample = data[index]
            size = truths.note(index, sample).size
            # decoded at once: the outputs of a large set would fill the memory
            found.append(self._located(predict(self._preprocess(sample.image)[None]), size))
            if progress:
                progress(index + 1, len(data))
        return self._scored(found, truths.first(len(data)))

    def score_outputs(self, outputs: Outputs, data: Dataset) -> dict[str, float]:
        """`score` of outputs for the first images."""
        return self._scored(*self._found(outputs, data))

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
        if isinstance(self.decoder, YoloHeads):
            boxes = {"yolo": self.decoder.to_dict()}
        elif isinstance(self.decoder, Heads):
            boxes = {"heads": self.decoder.to_dict()}
        else:
            boxes = {"anchors": [list(pair) for pair in self.decoder]}
        facts = {
            **boxes, "classes": self.classes,
            "outputs": list(self.output_names), "show_threshold": SHOW_THRESHOLD, "nms_iou": 0.45,
        }  # fmt: skip
        text = json.dumps(facts, sort_keys=True, indent=1) + "\n"
        return {"labels.txt": "".join(f"{name}\n" for name in self.names).encode(), "app.json": text.encode()}

    def device_files(self) -> dict[str, Path]:
        """The code that runs on the device: numpy, OpenCV and one runtime, no torch."""
        return own_code(("apps/detector/__init__.py", "apps/detector/device/**/*.py"))
