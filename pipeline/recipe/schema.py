"""The recipe: one TOML file that says what to make, checked in full before any work starts.

Everything has a default; the defaults together are the embedded digits. Unknown keys are errors that name the
nearest known key. Paths in a recipe are relative to its folder, paths in `--set` to the working folder.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from paredown.targets.cards.card import Budget, RuntimeName, Schema

EMBEDDED = "digits"  # data and weights that an app brings along
FINISHED = "finished"  # network and weights of a bundle of a finished program, which has none to train
EMBEDDED_DATA = (EMBEDDED, "pydoc")
DATA_PATHS = ("names", "label_names", "train", "calibration", "test", "images", "labels")

PathText = Annotated[str, Field(min_length=1)]


class PreprocessOverride(Schema):
    """What to change in the network's own preprocessing; unset keys keep what it was trained with."""

    width: int | None = Field(default=None, ge=1)
    """Input width, in pixels."""
    height: int | None = Field(default=None, ge=1)
    """Input height, in pixels."""
    resize: Literal["stretch", "letterbox", "crop"] | None = None
    """How an image is brought to that size."""
    shorter_side: int | None = Field(default=None, ge=1)
    """With `resize = "crop"`: the image's shorter side becomes this many pixels, and the input is its centre,
    as in "256, then the centre of 224"; without it the input is the largest part."""
    resample: Literal["bilinear", "area", "bicubic", "pillow-bilinear", "pillow-bicubic"] | None = None
    """Its pixels: `bilinear` of the four nearest, `bicubic` of the sixteen nearest, `area`, the mean of all
    that one covers, as images are often made smaller for training; `pillow-bilinear` and `pillow-bicubic` are
    the filters of Pillow, torchvision and Hugging Face."""
    colour: Literal["rgb", "bgr", "grey"] | None = None
    """The order of the input's channels."""
    mean: Annotated[tuple[float, ...], Field(strict=False, min_length=1, max_length=4)] | None = None
    """Per channel, subtracted from value/255."""
    std: (
        Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1, max_length=4)]
        | None
    ) = None
    """Per channel, divides what is left."""

    def changes(self) -> dict[str, Any]:
        """The keys that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Data(Schema):
    """The images: what they are trained, calibrated and scored with."""

    format: Literal[
        "digits", "yolo", "voc", "coco", "folder", "imagefolder", "cifar", "masks", "arrays", "text", "pydoc"
    ] = "digits"
    """The layout of the files; `digits` is the app's own embedded set and needs no other key, nor does
    `pydoc`: for language models, the text of Python's own help."""
    names: PathText | None = None
    """File with the network's classes (of `apps.pose` its keypoints), one a line; unset = the list that lies
    beside the data (cifar), or none (`apps.outputs`)."""
    label_names: PathText | None = None
    """File with the classes of the label files where they differ: matched by name, the rest dropped."""
    train: PathText | None = None
    """Training images; may be unlabelled."""
    calibration: PathText | None = None
    """Images that set the ranges of the activations; unset = the training images."""
    test: PathText | None = None
    """Images that are only ever scored."""
    images: PathText | None = None
    """Folder of the images where the label file, or the list, does not lie beside them (coco, masks)."""
    labels: PathText | None = None
    """Folder of the labels where they do not lie where the format has them."""
    boxes: Literal["clip", "error"] | None = None
    """What becomes of boxes that reach outside the image: cut at its edge, or an error (unset). An overhang
    that is rounding is always cut."""
    orientation: Literal["stored", "upright"] | None = None
    """Whether images are turned as EXIF says (unset), or left as they are stored."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many images of each split, from the start; unset = all."""

    sample: int | None = Field(default=None, ge=0, le=100)
    """How many test images the bundle holds with their labels, so that `validate` scores it anywhere; unset =
    16, 0 = none. They take 2 MiB at most."""

    @model_validator(mode="after")
    def _complete(self) -> Data:
        """A set of the user's own needs to be named in full; the embedded one takes no paths."""
        if self.format in EMBEDDED_DATA:
            if extra := [key for key in DATA_PATHS if getattr(self, key) is not None]:
                raise ValueError(
                    f'format = "{self.format}" brings its own data: '
                    f"remove {', '.join(extra)}, or set the format"
                )
        elif missing := [key for key in self._needed if getattr(self, key) is None]:
            raise ValueError(f'format = "{self.format}" also needs: {", ".join(missing)}')
        elif self.train is None and self.calibration is None:
            raise ValueError(f'format = "{self.format}" also needs: calibration (or train)')
        return self

    @property
    def _needed(self) -> tuple[str, ...]:
        if self.format in ("cifar", "folder", "arrays", "text"):
            return ("test",)
        return ("names", "test", "labels") if self.format == "masks" else ("names", "test")

    @property
    def textual(self) -> bool:
        """Whether these are texts, for a language model, and no images."""
        return self.format in ("text", "pydoc")


class Prune(Schema):
    """Channel pruning under one budget, weight pruning after it; without any key nothing is pruned."""

    macs: Annotated[float, Field(gt=0, le=1)] | None = None
    """Multiply-accumulates to keep, as a share of the network's."""
    latency: Annotated[float, Field(gt=0, le=1)] | None = None
    """Time of an int8 inference to keep, as a share, by the latency table of the target."""
    bytes: Annotated[float, Field(gt=0, le=1)] | None = None
    """Bytes of int8 weights and biases to keep, as a share."""
    accuracy_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    """Instead of a cost: the largest predicted loss of the metric before recovery (0.01 = one point)."""
    weight_sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the remaining weights that become zero during recovery; not of the first and last layers."""
    multiple: int | None = Field(default=None, ge=1)
    """Multiple of channels for every layer; unset = the target card's, per kind of layer."""
    criterion: Literal["activation", "taylor", "norm"] = "activation"
    """What ranks the channels of a group."""
    widths: int = Field(default=8, ge=2)
    """At most this many widths per group are chosen from; of these, those are measured that decide."""
    images: int = Field(default=256, ge=2)
    """Images held out of the training split: widths are chosen, and recovery is stopped, by them alone."""
    runtime: RuntimeName | None = None
    """Whose latency table a latency budget counts on; unset = the first of `lower.runtimes`."""
    latency_table: PathText | None = None
    """A table measured on the target, as `paredown cost` makes it; this machine needs none."""
    reconstruct: bool = True
    """Solve the layers of the thinner network for the outputs of the original before recovery."""

    @property
    def budget(self) -> tuple[str, float] | None:
        """The one budget that is set, by name; none where channels stay."""
        named = {name: getattr(self, name) for name in ("macs", "latency", "bytes", "accuracy_drop")}
        return next(((name, value) for name, value in named.items() if value is not None), None)

    @property
    def active(self) -> bool:
        """Whether anything is pruned at all."""
        return self.budget is not None or self.weight_sparsity > 0

    @model_validator(mode="after")
    def _one(self) -> Prune:
        found = [n for n in ("macs", "latency", "bytes", "accuracy_drop") if getattr(self, n) is not None]
        if len(found) > 1:
            raise ValueError(f"takes one budget, not {' and '.join(found)}")
        return self


class Training(Schema):
    """How a network is trained, from labels or from the original network."""

    method: Literal["auto", "labels", "distil", "both"] = "auto"
    """auto = both where the training images have labels, else distillation from the original network."""
    epochs: Annotated[float, Field(ge=0)] = Field(default=3.0, strict=False)
    """Times through the training images; parts of one are fine, 0 trains nothing."""
    batch: int = Field(default=32, ge=2)
    """Images per step."""
    lr: Annotated[float, Field(gt=0)] = 0.01
    """Highest learning rate; it rises over `warmup` steps, then falls along a cosine."""
    warmup: int = Field(default=50, ge=0)
    """Steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """On weights, not on batch norm and biases."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the weights' average, which is what comes back."""
    distil_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the distance from the original network's outputs."""
    evaluations: int = Field(default=10, ge=1)
    """How often the average is evaluated on the held-out images, evenly spread."""
    patience: int = Field(default=5, ge=1)
    """Evaluations without a gain after which it stops."""
    norm: Literal["live", "frozen"] = "live"
    """Statistics of batch norm: of each batch, or the network's own, where images are too few for better."""
    seed: int = Field(default=0, ge=0)
    """Of everything that is random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where torch trains; auto = on a GPU where it finds one, else on the CPU. What comes out differs in
    rounding alone, so it decides no stage: what was trained on another machine's GPU is reused as it is."""

    def settings(self) -> dict[str, Any]:
        """What decides the result: all but the device."""
        return self.model_dump(exclude={"device"})


class Recover(Training):
    """How accuracy is won back after pruning."""

    feature_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the distance from the original network's features."""

    def settings(self) -> dict[str, Any]:
        """As ever: live statistics, which had no key, are no part of the stage's."""
        found = super().settings()
        if found["norm"] == "live":
            del found["norm"]
        return found


class Squantize(Training):
    """SQuantizer: sparse and low-bit weights in one training pass; without `weight_bits` none."""

    weight_bits: int | None = Field(default=None, ge=2, le=8)
    """Bits of a weight that is not zero."""
    activation_bits: int | None = Field(default=None, ge=2, le=8)
    """Bits of an activation, whose step is learned: behind ReLU, and of whatever else a layer between the
    first and the last reads; unset, 8 with calibrated ranges."""
    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Wanted share of zeros in every layer; unset, and without sigma, 0.6."""
    sigma: Annotated[float, Field(ge=-30, le=30)] | None = None
    """Instead of it SQuantizer's own knob: zero below mean + sigma * standard deviation of |weight|."""
    grid: Literal["threshold", "uniform", "ternary"] = "threshold"
    """SQuantizer's levels; whole multiples of one step, as native int4 has them; or -1, 0, 1."""
    per: Literal["layer", "channel"] = "layer"
    """What has a threshold and a step of its own: a layer, as in the paper; or each output channel, for
    networks whose channels differ much in size."""
    order: Literal["sparsify-first", "quantize-first"] = "sparsify-first"
    """The reverse is there to reproduce the paper's ablation."""
    masked_gradient: bool = False
    """Whether a weight that is zero now gets no gradient, and so stays zero."""
    rounding: Literal["nearest", "gptq"] = "nearest"
    """What training starts from: the weights; or, on the uniform grid, codes with which the layers' outputs
    change least, which is worth most where there are few images to train on."""
    bytes: Annotated[float, Field(gt=0, le=1)] | None = None
    """Mixed precision: codes, biases and scales to keep, as a share of their size in int8; weight_bits is the
    most that a layer gets. Bits go where they keep the outputs of held-out training images, label or not."""
    accuracy_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    """Instead of it: the largest predicted loss of the metric before training, with the fewest bytes."""
    layers: dict[str, Annotated[int, Field(ge=2, le=8)]] = Field(default_factory=dict)
    """Bits of single layers by name, over weight_bits and ends; 8 takes a layer out, zeros included."""
    ends: bool = False
    """Whether the first and the last layer are made sparse and low-bit too; without, they keep int8."""
    delay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Part of the steps before sparsity and bits set in, together."""
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Part of the steps over which a wanted sparsity then rises to its value."""
    epochs: Annotated[float, Field(ge=0)] = Field(default=6.0, strict=False)
    """Times through the training images; parts of one are fine, 0 trains nothing."""

    @property
    def active(self) -> bool:
        """Whether it runs at all."""
        return self.weight_bits is not None

    @property
    def zeros(self) -> float | None:
        """The wanted sparsity; None where sigma is given."""
        return self.sparsity if self.sparsity is not None or self.sigma is not None else 0.6

    @model_validator(mode="after")
    def _one(self) -> Squantize:
        if self.sparsity is not None and self.sigma is not None:
            raise ValueError("takes sparsity or sigma, not both")
        if self.bytes is not None and self.accuracy_drop is not None:
            raise ValueError("takes one budget, not bytes and accuracy_drop")
        if self.layers and not self.active:
            raise ValueError("layers without weight_bits")
        if self.rounding == "gptq" and self.grid != "uniform":
            raise ValueError('rounding = "gptq" needs grid = "uniform"')
        return self


class Language(Schema):
    """A language model: what it remembers, and how its weights are stored."""

    context: int = Field(default=2048, ge=16)
    """Most tokens of a conversation."""
    chunk: int = Field(default=64, ge=2)
    """Most tokens of a prompt that go through the network at once."""
    weight_bits: Literal[4, 8] = 4
    """Bits of the weights of its linear layers."""
    embedding_bits: Literal[4, 8] = 4
    """Bits of the embedding, which is the last layer too."""
    block: int = Field(default=32, ge=0)
    """Weights of a linear layer that share a scale; 0 = a whole output channel, the fastest."""
    embedding_block: Annotated[int, Field(ge=0)] | None = None
    """The same of the embedding, which is the last layer too; unset, that of `block`."""
    balance: bool | None = None
    """Whether channels between layers are brought to like sizes before rounding, which a norm or the layer
    before makes good; unset, where layers of 4 bits have a scale per output channel."""
    rounding: Literal["nearest", "gptq"] = "gptq"
    """`gptq` rounds so that the outputs on the calibration texts change least."""
    weights_mib: Annotated[float, Field(gt=0)] | None = None
    """Mixed bits: most MiB of codes and scales. Matrices of 4 bits get 8, as far as it reaches, where that
    brings the probabilities on the calibration texts nearest to the full-precision network's."""
    residual_tokens: int = Field(default=0, ge=0)
    """Tokens whose look-ups get back what rounding the embedding took from them, by a second look-up of
    4 bits: the most frequent of `data.train`, or of the calibration texts. They count for `weights_mib`."""
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """SQuantizer's uniform grid in the linear layers: this share of every matrix, the smallest weights, is
    zero, and stays zero in training. It saves bytes of the compressed bundle, and no time."""
    ffn: Annotated[float, Field(gt=0, le=1)] | None = None
    """Hybrid pruning: share of the feed-forward layers' channels to keep; the width becomes a multiple of the
    target card's, and what is left is solved for the former outputs. Unset, all stay."""
    distil_steps: int = Field(default=0, ge=0)
    """Training in codes after rounding (QAT): texts to learn the full-precision network's probabilities
    from, one a step; 0 trains nothing. A killed run goes on where it was."""
    distil_lr: Annotated[float, Field(gt=0)] = 1e-5
    """Its highest learning rate: of the weights; scales get a fifth of it, norms four times as much. Networks
    far smaller than Gemma 3 270M take more."""
    distil_tokens: int = Field(default=256, ge=8)
    """Tokens of one text of it: of `data.train`, or else of the calibration texts."""
    distil_learns: Literal["codes", "scales"] = "codes"
    """What is learned beside the norms: the linear layers' codes and scales, or their scales alone, which
    takes a third of the memory. The embedding's codes stay."""
    calibration_tokens: int = Field(default=4096, ge=64)
    """Tokens of the calibration texts that rounding looks at."""
    window: int = Field(default=512, ge=8)
    """Tokens of one piece of text, in calibration and scoring; each is read from an empty memory."""
    test_tokens: int = Field(default=4096, ge=64)
    """Tokens of the test texts that are scored, from their start."""
    litertlm: bool = False
    """Whether a model.litertlm is written too, for LiteRT-LM: LiteRT's codes, a cache as long as the context
    on every layer, and the tokenizer. It needs the package litert-lm-builder."""

    def block_of(self, linear: bool) -> int:
        """Weights that share a scale: of a linear layer, or of embedding and last layer; 0 = a whole row."""
        return self.block if linear or self.embedding_block is None else self.embedding_block

    @property
    def balances(self) -> bool:
        """Whether channels are balanced."""
        return self.block == 0 and self.weight_bits == 4 if self.balance is None else self.balance

    @model_validator(mode="after")
    def _fits(self) -> Language:
        if self.window > self.context:
            raise ValueError(f"window = {self.window} is longer than context = {self.context}")
        if self.distil_steps and self.distil_tokens > self.context:
            raise ValueError(f"distil_tokens = {self.distil_tokens} is more than context = {self.context}")
        if self.weights_mib is not None and self.weight_bits == self.embedding_bits == 8:
            raise ValueError("weights_mib without a choice: weight_bits or embedding_bits has to be 4")
        return self


class Quantize(Schema):
    """Post-training quantization to int8: how ranges are found."""

    observer: Literal["auto", "minmax", "percentile", "mse"] = "auto"
    """Ranges of the activations; "auto" gives each tensor the observer with which the outputs change least,
    on calibration images that no observer has seen."""
    equalize: bool = False
    """Whether channels are balanced between layers by powers of two, which change no float output."""
    weights: Literal["minmax", "mse"] = "minmax"
    """Scales of the weights, one per output channel."""
    rounding: Literal["nearest", "gptq"] = "nearest"
    """Codes of the weights: the nearest, or those with which the layers' outputs change least."""
    bias_correction: bool = False
    """Whether biases make good what the codes are off by on average."""
    calibration_images: int = Field(default=128, ge=1)
    """At most this many calibration images are run."""
    weight_range: Literal[63, 127] | None = None
    """The largest weight code, trained or not; unset, the target card's, else 127. At 63 (7 bits) no sum of
    two products saturates on x86 without VNNI, where .onnx programs are then right at full speed."""

    def on(self, most: int | None) -> Quantize:
        """The section for a target whose card has this range; 127 is the same as none."""
        wanted = self.weight_range or most
        return self.model_copy(update={"weight_range": None if wanted == 127 else wanted})


class Lower(Schema):
    """What the integer graph is lowered to."""

    runtimes: tuple[RuntimeName, ...] = Field(default=("executorch", "litert"), strict=False, min_length=1)
    """The runtimes to make a file for, in the order of the report; unset, those that the target has."""
    allow_float: bool | None = None
    """Whether a runtime ships the network in float32 where int8 is slower by a tenth, on the device or this
    machine if it is the target; unset, yes, but not where the budget limits the bundle's bytes."""

    def on(self, there: Collection[str]) -> Lower:
        """The section for a target that has these runtimes: of the default only those."""
        if "runtimes" in self.model_fields_set:
            return self
        found = tuple(name for name in self.runtimes if name in there) or self.runtimes
        return Lower(runtimes=found, allow_float=self.allow_float)

    @model_validator(mode="after")
    def _distinct(self) -> Lower:
        if len(set(self.runtimes)) != len(self.runtimes):
            raise ValueError(f"runtimes names one twice: {', '.join(self.runtimes)}")
        return self


class Bench(Schema):
    """How latency is measured."""

    runs: int = Field(default=50, ge=1)
    """Timed inferences per variant, interleaved between the variants."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of each runtime, at most 256."""


class About(Schema):
    """What a bundle's card says, as its maker gives it."""

    use: str | None = None
    """What the network is meant for, and what not."""
    data: str | None = None
    """Where the training and test data come from."""
    licence: str | None = None
    """Of the weights and the data."""


@dataclass(frozen=True)
class Origin:
    """Where a recipe was read from; any two are equal, so that recipes are compared by their keys alone."""

    file: Path | None = field(default=None, compare=False)


class Recipe(Schema):
    """A whole recipe, resolved: paths are absolute, every default is filled in."""

    app: str = Field(default="apps.detector", pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
    """Import path of the app that knows the task."""
    network: str = Field(default="yolov2-nano", min_length=1)
    """A network of the app by name, "my_package.nets:factory", a darknet .cfg file, or a model file
    (.onnx), which brings its weights along."""
    weights: str = Field(default=EMBEDDED, min_length=1)
    """A .safetensors, .pt/.pth/.th or darknet .weights file, or the name of weights the app brings along."""
    decoding: dict[str, Any] | None = None
    """How the outputs of a detector's model file become boxes, as { kind = "v8", strides = [8, 16, 32] }."""
    preprocess: PreprocessOverride = PreprocessOverride()
    """Changes to the network's own preprocessing."""
    data: Data = Data()
    """The images."""
    prune: Prune = Prune()
    """Channel and weight pruning."""
    recover: Recover = Recover()
    """Training after pruning."""
    squantize: Squantize = Squantize()
    """Sparse low-bit weights, learned in one pass."""
    quantize: Quantize = Quantize()
    """Post-training quantization."""
    language: Language = Language()
    """Language models."""
    lower: Lower = Lower()
    """Runtimes."""
    bench: Bench = Bench()
    """Latency."""
    budget: Budget = Budget()
    """Limits, over those of the target's card."""
    about: About = About()
    """Words for the bundle's card."""
    _origin: Origin = PrivateAttr(Origin())

    @property
    def file(self) -> Path | None:
        """The file that it was read from, absolute; None where there is none, as in a bundle."""
        return self._origin.file

    @property
    def folder(self) -> Path | None:
        """The folder of that file: a factory of the user's own is looked for here first."""
        return self.file.parent if self.file else None

    def read_from(self, path: Path) -> Recipe:
        """The same recipe, as read from this file."""
        made = self.model_copy()
        made._origin = Origin(path.absolute())
        return made
