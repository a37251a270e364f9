"""Scores from the outputs of a device: on the recipe's test images, else on the bundle's own sample."""

from __future__ import annotations

from collections.abc import Mapping

from paredown.calibration.array_input import AnyInput, input_from_dict
from paredown.calibration.datasets import Dataset, First
from paredown.calibration.sample.records import MEMBER, open_sample
from paredown.pipeline.bundle.archive import Bundle
from paredown.pipeline.bundle.manifest import Model
from paredown.pipeline.device.executor import Executor, Predictor
from paredown.pipeline.device.validate.findings import Findings
from paredown.pipeline.recipe.file import check_files
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import APPS, Packed, Scores, Task, load_scorer, load_task
from paredown.pipeline.report.checks import Check
from paredown.pipeline.report.figures import CLASS
from paredown.pipeline.store.event import Event
from paredown.targets.cards.card import RuntimeName
from paredown.targets.devices.programs import Program
from paredown.targets.errors import InputError

#: Scores are computed from integer outputs: the same device code gives the same score, to float rounding.
SCORE_TOLERANCE = 1e-6
#: Keys of a recipe whose files scoring does not need.
UNNEEDED = ("weights", "data.train", "data.calibration")
DATA_HINT = "--data FOLDER says where the recipe's files lie"


class Scoring:
    """The scores of one validation.

    Args:
        of: hears of them.
        recipe: with the files of this machine, its code trusted; or why there is none.
        own: whether the test data may be others than those of the bundle.

    Attributes:
        scored: how many images were.
        missing: what would prove more.
    """

    def __init__(self, of: Findings, recipe: Recipe | str, own: bool) -> None:
        self.of, self.recipe, self.own = of, recipe, own
        self.scored = 0
        self.missing: tuple[str, ...] = ()

    def score(self, programs: Mapping[RuntimeName, Program], limit: int | None) -> None:
        """Scores every runtime from what came back, and compares where the very same images were scored.

        Args:
            programs: by runtime.
            limit: at most so many images; None = all.

        Raises:
            InputError: the labelled sample does not fit the bundle.
            DeviceError: the device failed on the way.
        """
        if not self.of.bundle.manifest.test.images:
            self.of.checks.append(Check("score", None, "none: the bundle names no labelled images"))
            return
        task = _task(self.of.bundle, self.recipe)
        if isinstance(task, str) and not self.own and self._has_sample:
            total, hint = (
                self.of.bundle.manifest.test.images,
                "" if isinstance(self.recipe, str) else f"; {DATA_HINT}",
            )
            self.missing = (f"a score on all {total} test images: {task}{hint}",)
            self._score_sample(programs, limit)
            return
        if isinstance(task, str):
            hint = "" if isinstance(self.recipe, str) else f"{DATA_HINT}; "
            self.of.checks.append(Check("score", False, f"{task}; {hint}--no-score leaves the score out"))
            return
        data = task.data("test")
        self.scored = count = len(data) if limit is None else min(limit, len(data))
        for model in self.of.bundle.manifest.models:
            name, program = str(model.runtime), programs[model.runtime]
            self.of.tell(Event(f"{name} score", "running"))
            images = First(data, count)
            predict = _predictor(self.of.executor, model, program, images, task.preprocess)
            scores = task.score(predict, images, self.of.tick)
            self.of.checks.append(self._compared(name, task.metric, scores, data, count))
            for metric, value in scores.items():
                self.of.figure("score", name, metric, value, "1")
            if isinstance(scores, Scores):
                for each in scores.details().get("classes", ()):
                    self.of.figure("classes", name, CLASS + each["name"], each["score"], "1")

    @property
    def _has_sample(self) -> bool:
        return MEMBER in self.of.bundle.members and self.of.bundle.manifest.app in APPS

    def _score_sample(self, programs: Mapping[RuntimeName, Program], limit: int | None) -> None:
        """Scores every runtime on the labelled sample that the bundle holds: the recipe's files are not here.

        Nothing of the network is read for it, and no code of the bundle runs here.
        """
        bundle, manifest, where = self.of.bundle, self.of.bundle.manifest, str(self.of.bundle.path)
        names = tuple(bundle.read("labels.txt").decode().splitlines())
        preprocess = input_from_dict(manifest.preprocess)
        try:
            scorer = load_scorer(manifest.app, Packed(bundle.json("app.json"), names, preprocess))
            assert scorer is not None  # the app is one of ours
            data = open_sample(bundle.members, names, where, scorer.with_arrays)
            images = First(data, len(data) if limit is None else limit)
            self.scored = len(images)
            for model in manifest.models:
                name, program = str(model.runtime), programs[model.runtime]
                self.of.tell(Event(f"{name} score", "running"))
                predict = _predictor(self.of.executor, model, program, images, preprocess)
                scores = scorer.score(predict, images, self.of.tick)
                for metric, value in scores.items():
                    self.of.figure("sample", name, metric, value, "1")
                known = {} if len(images) < len(data) else data.listed.scores.get(name, {})
                self.of.checks.append(self._on_sample(model, scores, known, scorer.metric))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            what = f"the labelled sample does not fit the bundle: {type(error).__name__}: {error}"
            raise InputError(what, where=where) from error

    def _on_sample(
        self, model: Model, scores: Mapping[str, float], known: Mapping[str, float], metric: str
    ) -> Check:
        said = f"{metric} {scores[metric]:.4f} on {self.scored} images that the bundle holds"
        check = f"{model.runtime} sample"
        if metric not in known or not self.of.executor.exact:
            return Check(check, None, f"{said}; nothing to compare with")
        apart = [m for m, v in scores.items() if m in known and abs(v - known[m]) > SCORE_TOLERANCE]
        said += f", recorded {known[metric]:.4f}"
        if apart and model.dtype == "float32":  # whose kernels add in an order of their own
            return Check(check, None, said)
        told = [f"{m} {scores[m]:.4f}, recorded {known[m]:.4f}" for m in apart if m != metric]
        return Check(check, not apart, "; ".join([said, *told]))

    def _compared(
        self, name: str, metric: str, scores: Mapping[str, float], data: Dataset, count: int
    ) -> Check:
        check, said = f"{name} score", f"{metric} {scores[metric]:.4f} on {count} images"
        known = self.of.bundle.manifest.test
        if data.fingerprint() != known.fingerprint:
            if self.own:
                return Check(check, None, f"{said}; these are other test data than the bundle's")
            return Check(check, False, f"{said}; the test data have changed since this bundle was made")
        classes = [each for each in scores if each.startswith(CLASS)]
        known_classes = {each.metric for each in self.of.recorded if each.variant == name}
        if classes and not known_classes.intersection(classes):
            return Check(check, True, f"{said}; recorded by the rule of an earlier version")
        values = {each: self.of.known(name, each) for each in scores}
        if count != known.images or None in values.values() or not self.of.executor.exact:
            part = count != len(data) and f"{count} of {len(data)} test images: no proof"
            return Check(check, None if part else True, f"{said}; {part or 'nothing to compare with'}")
        apart = [m for m, v in values.items() if v is None or abs(scores[m] - v) > SCORE_TOLERANCE]
        told = [f"recorded {values[metric]:.4f}"]
        told += [f"{m} {scores[m]:.4f}, recorded {values[m]:.4f}" for m in apart if m != metric]
        return Check(check, not apart, ", ".join([said, *told]))


def _task(bundle: Bundle, recipe: Recipe | str) -> Task | str:
    """The recipe's task, or why there is nothing to score here."""
    manifest = bundle.manifest
    if isinstance(recipe, str):
        return recipe
    try:
        check_files(recipe, UNNEEDED)
        task = load_task(recipe)
    except InputError as error:
        return f"the recipe's files are not here ({error})"
    if task.preprocess.hash != manifest.preprocess_hash or dict(task.network_id) != dict(manifest.network):
        return "the recipe's network is not the one that this bundle was made from"
    return task


def _predictor(
    executor: Executor, model: Model, program: Program, data: Dataset, preprocess: AnyInput
) -> Predictor:
    from paredown.pipeline.lower.integer import Affine

    source = Affine(model.input.scale, model.input.zero_point)
    outputs = tuple(Affine(output.scale, output.zero_point) for output in model.outputs)
    return Predictor(executor, program, source, outputs, data, preprocess)
