"""`paredown.load`: a bundle's model in this process, run by the same code as on a device."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.targets.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from paredown.apps.chat.device.generation.session import Session
    from paredown.apps.classifier.device.classify import Classifier
    from paredown.apps.detector.device.detect import Detector
    from paredown.apps.outputs.device.predict import Network
    from paredown.apps.pose.device.pose import Pose
    from paredown.apps.segmenter.device.segment import Segmenter
    from paredown.calibration.array_input import AnyInput
    from paredown.pipeline.bundle.archive import Bundle

    Opened = Detector | Classifier | Segmenter | Pose | Network | Session

#: What the model of an app's bundle does: the name of the method.
METHODS = {
    "apps.detector": "detect", "apps.classifier": "classify", "apps.segmenter": "segment",
    "apps.pose": "keypoints", "apps.outputs": "predict", "apps.chat": "generate",
}  # fmt: skip


@dataclass(frozen=True)
class Detection:
    """One object in an image.

    Attributes:
        label: name of its class.
        score: objectness times class probability, 0 to 1.
        box: x1, y1, x2, y2 as shares of the image's width and height; may reach outside 0..1.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Classification:
    """One class of an image.

    Attributes:
        label: name of the class.
        probability: 0 to 1.
    """

    label: str
    probability: float


@dataclass(frozen=True)
class Keypoint:
    """One keypoint of a person, or a thing.

    Attributes:
        label: its name.
        x: pixels of the image, from the left.
        y: pixels of the image, from the top.
        confidence: height of its peak, about 0 to 1; NaN where the network returned no numbers.
    """

    label: str
    x: float
    y: float
    confidence: float


class Model:
    """A bundle's model, opened by `paredown.load`; close it, or use it as a context manager.

    A bundle has one of `detect`, `classify`, `segment`, `keypoints`, `predict` and `generate`; the others
    raise UsageError.

    Attributes:
        app: the app that made the bundle, as "apps.detector".
        labels: names of the classes or keypoints; none of a language model, or of outputs alone.
    """

    def __init__(self, path: str | Path, threads: int) -> None:
        """Opens a bundle.

        Args:
            path: the .paredown file.
            threads: of the runtime.

        Raises:
            UsageError: fewer than one thread.
            InputError: the file is no bundle, or damaged, or has no program that can run here.
            DeviceError: the runtime is not installed.
        """
        from paredown.pipeline.bundle.archive import extract, unpack

        if threads < 1:
            raise UsageError(f"threads = {threads}", hint="give 1 or more")
        bundle = unpack(path)
        self.app, self._path, self._threads = bundle.manifest.app, bundle.path, threads
        self._opened: Opened | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="paredown-", ignore_cleanup_errors=True)
        try:
            extract(bundle, Path(self._folder.name))
            self._opened = self._open(bundle, Path(self._folder.name))
        except BaseException:
            self.close()
            raise
        self.labels: tuple[str, ...] = tuple(getattr(self._opened, "names", ()))

    def _open(self, bundle: Bundle, folder: Path) -> Opened:
        from paredown.pipeline.bundle.finished.apart import run_apart
        from paredown.pipeline.device.validate.programs import bundle_program

        if self.app == "apps.chat":
            from paredown.apps.chat.device.chat import open_session, parser

            return open_session(folder, parser("paredown.load").parse_args([f"--threads={self._threads}"]))
        if self.app not in METHODS:
            what = f"a bundle of {self.app} cannot be loaded"
            raise UsageError(what, where=self._path, hint=f"there are: {', '.join(METHODS)}")
        if not any(model.runtime == "litert" for model in bundle.manifest.models):
            hint = 'make it with lower.runtimes = ["litert"]'
            raise InputError("has no LiteRT program", where=self._path, hint=hint)
        for model in bundle.manifest.models:
            if model.runtime == "litert":
                run_apart(bundle_program(bundle, model))
        if self.app == "apps.detector":
            from paredown.apps.detector.device.detect import Detector

            return Detector(folder, self._threads)
        if self.app == "apps.segmenter":
            from paredown.apps.segmenter.device.segment import Segmenter

            return Segmenter(folder, self._threads)
        if self.app == "apps.pose":
            from paredown.apps.pose.device.pose import Pose

            return Pose(folder, self._threads)
        if self.app == "apps.outputs":
            from paredown.apps.outputs.device.predict import Network

            return Network(folder, self._threads)
        from paredown.apps.classifier.device.classify import Classifier

        return Classifier(folder, self._threads)

    def detect(
        self, image: NDArray[np.uint8] | str | Path, threshold: float | None = None
    ) -> tuple[Detection, ...]:
        """Detects objects.

        Args:
            image: (H, W, 3) uint8, channels in the order blue, green, red as `cv2.imread` gives them; or the
                path of an image file.
            threshold: minimum score, 0 to 1; None = the bundle's own.

        Returns:
            The objects, the best first.

        Raises:
            UsageError: the bundle is no detector's, or the model is closed.
            InputError: this is no such image.
        """
        detector: Detector = self._for("detect")
        least = detector.app["show_threshold"] if threshold is None else threshold
        found = detector(_image(image), least)
        return tuple(
            Detection(detector.names[int(kind)], float(score), tuple(map(float, box)))  # type: ignore[arg-type]
            for box, score, kind in zip(found.boxes, found.scores, found.classes, strict=True)
        )

    def classify(
        self, image: NDArray[Any] | str | Path, top: int | None = None
    ) -> tuple[Classification, ...]:
        """Classifies an image.

        Args:
            image: as for `detect`; an array, or a .npy file, where the network takes arrays.
            top: at most this many classes; None = the bundle's own number.

        Returns:
            The likeliest classes, the best first.

        Raises:
            UsageError: the bundle is no classifier's, or the model is closed.
            InputError: this is no such image.
        """
        import numpy as np

        classifier: Classifier = self._for("classify")
        shares = classifier(_sample(image, classifier.source))
        best = np.argsort(-shares, kind="stable")[: classifier.show if top is None else top]
        return tuple(Classification(classifier.names[i], float(shares[i])) for i in best)

    def segment(self, image: NDArray[np.uint8] | str | Path) -> NDArray[np.uint8]:
        """Finds the class of every pixel.

        Args:
            image: as for `detect`.

        Returns:
            (H, W), indices into `labels`.

        Raises:
            UsageError: the bundle is no segmenter's, or the model is closed.
            InputError: this is no such image.
        """
        segmenter: Segmenter = self._for("segment")
        return segmenter(_image(image))

    def keypoints(
        self,
        image: NDArray[np.uint8] | str | Path,
        box: tuple[float, float, float, float] | None = None,
    ) -> tuple[Keypoint, ...]:
        """Finds the keypoints of one person, or thing.

        Args:
            image: as for `detect`.
            box: left, top, width and height of the person, in pixels; None = the whole image.

        Returns:
            A keypoint for each label, in their order.

        Raises:
            UsageError: the bundle is no pose network's, the model is closed, or the box has no area.
            InputError: this is no such image.
        """
        pose: Pose = self._for("keypoints")
        if box is not None and not (box[2] > 0 and box[3] > 0):
            raise UsageError(f"a box without area: width {box[2]:g}, height {box[3]:g}")
        found = pose(_image(image), box)
        return tuple(Keypoint(name, *map(float, row)) for name, row in zip(pose.names, found, strict=True))

    def predict(self, sample: NDArray[Any] | str | Path) -> tuple[NDArray[np.float32], ...]:
        """Runs the network.

        Args:
            sample: as for `classify`.

        Returns:
            The outputs, without a batch.

        Raises:
            UsageError: the bundle is not that of `apps.outputs`, or the model is closed.
            InputError: this is no such image or array.
        """
        network: Network = self._for("predict")
        return network(_sample(sample, network.source))

    def generate(
        self,
        prompt: str,
        max_tokens: int | None = None,
        *,
        temperature: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """Answers a prompt; each call is a conversation of its own.

        A model that was not taught to chat continues the text.

        Args:
            prompt: the user's turn.
            max_tokens: maximum tokens of the answer; None = until the model ends it or its context is full.
            temperature: of sampling, 0 = greedy; None = the chat's default.
            seed: for the same answer every time; None = another one each time.
            stop: the answer ends where one of these texts comes; it is left out.

        Raises:
            UsageError: the bundle is no language model's, the model is closed, or a value is out of range.
            InputError: the prompt is empty or too long.
        """
        from paredown.apps.chat.device.generation.sampling import Sampling
        from paredown.apps.chat.device.generation.session import ChatOptions, Text

        session: Session = self._for("generate")
        sampling = Sampling(seed=seed)
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        asked = session.anew(ChatOptions(sampling=sampling, stops=tuple(stop), max_tokens=max_tokens))
        return "".join(event.text for event in asked.answer(prompt) if isinstance(event, Text))

    def close(self) -> None:
        """Lets go of the runtime and of the unpacked files."""
        self._opened = None
        self._folder.cleanup()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _for(self, method: str) -> Any:
        """What a method needs.

        Raises:
            UsageError: the bundle's app has another method, or the model is closed.
        """
        if METHODS[self.app] != method:
            what = f"a bundle of {self.app} has no {method}()"
            raise UsageError(what, where=self._path, hint=f"use {METHODS[self.app]}()")
        if self._opened is None:
            raise UsageError("the model is closed", where=self._path)
        return self._opened


def _sample(sample: NDArray[Any] | str | Path, source: AnyInput) -> NDArray[Any]:
    """An image in OpenCV's order, or an array where the network takes arrays.

    Raises:
        InputError: the file cannot be read, or the array is of another shape or type.
    """
    from paredown.calibration.array_input import ArrayInput, read_sample

    if not isinstance(source, ArrayInput):
        return _image(sample)
    return read_sample(str(sample), source) if isinstance(sample, (str, Path)) else sample


def _image(image: NDArray[np.uint8] | str | Path) -> NDArray[np.uint8]:
    """An image in OpenCV's order.

    Raises:
        InputError: the file cannot be read, or the array is of another shape or type.
    """
    import numpy as np

    if isinstance(image, (str, Path)):
        from paredown.calibration.pictures import read_picture

        return read_picture(image)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"an image of {image.dtype} {image.shape} is not (H, W, 3) uint8")
    return image
