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

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paredown.apps.detector.device.boxes.heads import Heads, heads_of
from paredown.apps.detector.network import Yolo
from paredown.apps.detector.network.own import checked_heads, is_own
from paredown.apps.detector.train.batches import Batches
from paredown.apps.detector.train.config import TrainConfig
from paredown.apps.detector.train.loss import RegionTerms, Target, region_terms
from paredown.apps.detector.train.v8_loss import V8Terms, v8_terms
from paredown.apps.own.task import input_size
from paredown.calibration.datasets import Dataset
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.compress.training.loop import (
    decayed_groups,
    descend,
    fit,
    learning_rate,
    reorder,
    run_identity,
    update_average,
)
from paredown.pipeline.store.checkpoint import damaged, load_run, save_checkpoint
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


class _Run:
    """The state of a training: the live network, the average, the optimizer and how far it is."""

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        preprocess: Preprocess,
        checkpoint: Path | None,
        heads: Heads | None,
    ) -> None:
        self.config, self.heads = config, heads
        stride = network.stride if isinstance(network, Yolo) else max(heads.strides if heads else (1,))
        self.batches = Batches(dataset, preprocess, config, stride)
        self.steps, self.step = config.epochs * self.batches.per_epoch, 0
        self.started_at = network.header.seen if isinstance(network, Yolo) else 0
        facts = [asdict(config), preprocess.hash, dataset.fingerprint(), self.started_at]
        self.identity = run_identity(facts, network)
        self.network = network.to(config.device).train()
        reorder(self.network, torch.channels_last)
        self.average = copy.deepcopy(network).eval()
        self.optimizer = torch.optim.SGD(
            decayed_groups(network, config.weight_decay), lr=config.lr, momentum=config.momentum
        )
        self.history: list[dict[str, float]] = []
        self.sums = [0.0, 0.0]  # of loss and IoU since the epoch began
        if checkpoint and checkpoint.exists():
            self._resume(checkpoint)

    @property
    def seen(self) -> int:
        """Images trained on, in the network's whole life."""
        return self.started_at + self.step * self.config.batch

    def advance(self) -> float:
        """Takes a step, gives the loss; where that or the gradient is not finite, takes none and gives it."""
        images, targets = self.batches(self.step)
        assert targets is not None  # the batches require labels
        outputs = self.network(images.to(self.config.device, memory_format=torch.channels_last))
        terms = self._terms(outputs, targets)
        rate = learning_rate(self.config, self.step, self.steps)
        parameters = self.network.parameters()
        loss = descend(terms.total, self.optimizer, parameters, clip=self.config.clip, rate=rate)
        if not math.isfinite(loss):
            return loss
        update_average(self.average, self.network, self.step, self.config.ema)
        self.step += 1
        self.sums[0] += loss
        self.sums[1] += float(terms.iou)
        return loss

    def _terms(self, outputs: Any, targets: list[Target]) -> RegionTerms | V8Terms:
        if isinstance(self.network, Yolo):
            return region_terms(outputs, targets, self.network.anchors, self.seen)
        assert self.heads is not None  # `train` has refused any other
        return v8_terms([outputs] if isinstance(outputs, Tensor) else outputs, targets, self.heads)

    def close_epoch(self, epoch: int) -> dict[str, float]:
        """Starts the next epoch's sums and gives the row of this one, which the history keeps."""
        count = self.batches.per_epoch
        row = {"epoch": epoch, "step": self.step, "loss": self.sums[0] / count, "iou": self.sums[1] / count}
        self.sums = [0.0, 0.0]
        self.history.append(row)
        return row

    def save(self, path: Path) -> None:
        """Writes everything that a resumed run needs."""
        state = {
            "identity": self.identity,
            "step": self.step,
            "sums": self.sums,
            "history": self.history,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_checkpoint(path, state)

    def _resume(self, path: Path) -> None:
        state = load_run(path, self.identity)
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.sums, self.history = state["step"], state["sums"], state["history"]
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise damaged(path, error) from error


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
) -> TrainResult:
    """Trains a network in place.

    Args:
        network: from its present weights: a Yolo, whose `header.seen` decides whether boxes are pulled to
            anchors, or a module whose attribute `decoding` is of kind "v8".
        dataset: labelled images; its classes must be the network's.
        config: how; the defaults where None.
        preprocess: how an image becomes the input; stretched RGB in 0..1 where None.
        validation: scored now and then, for the report only: nothing is chosen by it.
        checkpoint: a file to resume from if it is there, and to keep up to date.
        report: takes one line per epoch.
        tick: takes (steps done, steps in all) after every step.

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
    run = _Run(network, dataset, config, preprocess, checkpoint, heads)
    started, before = time.monotonic(), run.step

    def look() -> None:
        epoch = run.step // run.batches.per_epoch
        row = run.close_epoch(epoch)
        if validation and (epoch % config.evaluate_every == 0 or epoch == config.epochs):
            row["map50"] = evaluate(run.average, validation, preprocess, config.device)["map50"]
        if report:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
            report(f"{figures}, {(time.monotonic() - started) / (run.step - before):.3f} s/step")

    fit(
        run, where="train", lr=config.lr, every=run.batches.per_epoch, look=look, checkpoint=checkpoint,
        checkpoint_every=config.checkpoint_every, tick=tick,
    )  # fmt: skip
    network.load_state_dict(run.average.state_dict())
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
