r"""Trains a detector: the command `python -m paredown.apps.detector.train` and the function `train`.

Darknet's recipe (SGD with momentum 0.9 and weight decay 5e-4, optional multi-scale) with a
warm-up, a cosine and an average of the weights (our design). A run is a pure function of its configuration,
the data and the initial weights: what a step does depends on its number only, so a resumed run ends where an
uninterrupted one would have (on the same machine with the same number of threads).

The weights that come along, `digits.safetensors`, were made by

    python -m paredown.apps.detector.train.train digits --out apps/detector/digits.safetensors \
        --epochs 10 --lr 0.02 --warmup 300 --threads 1

in 11 minutes on one core (torch 2.13.0, 0.34 s a step). Measured, torch, float32: mAP@0.5 0.992 and COCO's
mAP 0.696 on the 200 validation scenes; 0.989 and 0.679 on the 300 test scenes, scored once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paredown.apps.detector.device.boxes.heads import Heads, heads_of
from paredown.apps.detector.network import Yolo
from paredown.apps.detector.network.own import checked_heads, is_own
from paredown.apps.detector.train.batches import Batches
from paredown.apps.detector.train.config import TrainConfig
from paredown.apps.detector.train.loss import RegionTerms, region_terms
from paredown.apps.detector.train.v8_loss import V8Terms, v8_terms
from paredown.apps.own.task import input_size
from paredown.apps.own.trainer import Listener, Run, teach
from paredown.calibration.datasets import Dataset
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.compress.training.loop import reorder
from paredown.targets.errors import InputError, UsageError


@dataclass(frozen=True)
class TrainResult:
    """What a training gave.

    Attributes:
        network: the network that was passed in, with the averaged weights, in eval mode.
        history: per epoch its number, step, mean loss, mean IoU, and map50 where it was scored.
        seen: images trained on.
    """

    network: nn.Module
    history: tuple[Mapping[str, float], ...]
    seen: int


class DetectorLesson:
    """Boxes of labelled images; satisfies `apps.own.trainer.Lesson`."""

    metric = "map50"

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        preprocess: Preprocess,
        heads: Heads | None,
        validation: Dataset | None,
    ) -> None:
        """Takes what is learned; `heads` are None for a [region]."""
        stride = network.stride if isinstance(network, Yolo) else max(heads.strides if heads else (1,))
        self.batches = Batches(dataset, preprocess, config, stride)
        self.per_epoch = self.batches.per_epoch
        self._anchors = network.anchors if isinstance(network, Yolo) else ()
        self._heads, self._preprocess = heads, preprocess
        self._validation, self._device = validation, config.device

    def batch(self, step: int) -> tuple[Tensor, Any]:
        """See `Lesson`."""
        return self.batches(step)

    def loss(self, outputs: Any, labels: Any, seen: int) -> tuple[Tensor, dict[str, float]]:
        """See `Lesson`."""
        terms: RegionTerms | V8Terms
        if self._heads is None:
            terms = region_terms(outputs, labels, self._anchors, seen)
        else:
            terms = v8_terms([outputs] if isinstance(outputs, Tensor) else outputs, labels, self._heads)
        return terms.total, {"iou": float(terms.iou)}

    def score(self, network: nn.Module) -> dict[str, float] | None:
        """See `Lesson`."""
        if self._validation is None:
            return None
        return evaluate(network, self._validation, self._preprocess, self._device)


def _heads_to_train(network: nn.Module, dataset: Dataset, preprocess: Preprocess) -> Heads | None:
    """The heads of a network that is no darknet's, None of a [region]; it must be one that can be trained."""
    kind, hint = "[yolo]", "train it with darknet, and give its .weights"
    heads, where = None, "train"
    if isinstance(network, Yolo):
        trainable, where = network.cfg.region is not None, network.cfg.where
    elif is_own(network):
        heads, _ = checked_heads(network, preprocess.input_shape, len(dataset.names), "train")
        kind, hint = heads.kind, "train it with your own code, and give its weights"
        trainable = heads.kind == "v8"
    else:
        what = f"a {type(network).__name__} does not say how its outputs are decoded"
        raise UsageError(what, where=where, hint="give it an attribute `decoding`")
    if not trainable:
        raise UsageError(f"training a network with {kind} heads is not supported", where=where, hint=hint)
    return heads


def train(
    network: nn.Module,
    dataset: Dataset,
    config: TrainConfig | None = None,
    *,
    preprocess: Preprocess | None = None,
    validation: Dataset | None = None,
    checkpoint: Path | None = None,
    report: Callable[[str], None] | None = None,
    tick: Callable[[int, int], None] | None = None,
    keep: Callable[[nn.Module, Sequence[dict[str, float]], bool], None] | None = None,
) -> TrainResult:
    """Trains a network in place.

    Args:
        network: from its present weights: a Yolo, whose `header.seen` decides whether boxes are pulled to
            anchors, or a module whose attribute `decoding` is of kind "v8".
        dataset: labelled images; its classes must be the network's.
        config: how; the defaults where None.
        preprocess: how an image becomes the input; stretched RGB in 0..1 where None.
        validation: scored now and then; patience, and what `keep` is told is best, go by it.
        checkpoint: a file to resume from if it is there, and to keep up to date.
        report: takes one line per epoch.
        tick: takes (steps done, steps in all) after every step.
        keep: takes the averaged network at each epoch's end, the history, and whether it is the best so far.

    Raises:
        UsageError: a network with heads of another kind, a configuration that cannot work, or a loss that is
            no longer a number (the last good checkpoint stays).
        InputError: an unlabelled image, or a checkpoint of another run.
    """
    config = config or TrainConfig()
    preprocess = preprocess or plain_input(network)
    heads = _heads_to_train(network, dataset, preprocess)
    if isinstance(network, Yolo) and len(dataset.names) != network.classes:
        raise InputError(
            f"{len(dataset.names)} classes in the data, {network.classes} in the network",
            where="train",
            hint="set classes= in the .cfg's [region] and filters= before it",
        )
    lesson = DetectorLesson(network, dataset, config, preprocess, heads, validation)
    started_at = network.header.seen if isinstance(network, Yolo) else 0
    facts = [preprocess.hash, dataset.fingerprint(), started_at]
    run = Run(network, lesson, config, facts, checkpoint, started_at)

    def kept(average: nn.Module, history: Sequence[dict[str, float]], better: bool) -> None:
        if isinstance(average, Yolo):
            average.header = replace(average.header, seen=run.seen)
        if keep:
            keep(average, history, better)

    network.load_state_dict(teach(run, checkpoint, Listener(report, tick, kept)))
    if isinstance(network, Yolo):
        network.header = replace(network.header, seen=run.seen)
    reorder(network.cpu().eval(), torch.contiguous_format)
    return TrainResult(network, tuple(run.history), run.seen)


def plain_input(network: nn.Module) -> Preprocess:
    """Stretched RGB in 0..1 of the size that a network says it takes.

    Raises:
        UsageError: it says none.
    """
    if isinstance(network, Yolo):
        return Preprocess(width=network.width, height=network.height)
    size = input_size(network)
    if not size:
        raise UsageError("the network does not say its input's size", where="train",
                         hint="give it an attribute input_size, or use --size")  # fmt: skip
    return Preprocess(width=size["width"], height=size["height"])


def _decoder(network: nn.Module, preprocess: Preprocess) -> Any:
    if isinstance(network, Yolo):
        return network.anchors
    return heads_of(network.decoding, (preprocess.width, preprocess.height)).decoder


def evaluate(
    network: nn.Module, dataset: Dataset, preprocess: Preprocess, device: str = "cpu"
) -> dict[str, float]:
    """Scores a network on labelled images, as a run does it for every runtime.

    Returns:
        map50 (all-point AP at IoU 0.5, mean over the classes that occur), COCO's map, and the classes' own.
    """
    from paredown.apps.detector.device.boxes.decode import Detections
    from paredown.apps.detector.scoring.located import located
    from paredown.apps.detector.scoring.score import score_detections

    decoder = _decoder(network, preprocess)
    mode = network.training
    network.eval()
    found: list[Detections] = []
    with torch.no_grad():
        for index in range(len(dataset)):
            image = dataset[index].image
            made = network(torch.from_numpy(preprocess(image))[None].to(device))
            outputs = [made] if isinstance(made, Tensor) else made
            parts = [part[0].cpu().numpy() for part in outputs]
            found.append(located(parts, decoder, preprocess, image.shape[:2]))
    network.train(mode)
    return score_detections(found, dataset, dataset.names)
