"""How photos or arrays become the input of a finished program: said in a file, or read off its codes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from paredown.apps.api.imports.model_recipe import MEAN, SCALE
from paredown.calibration.array_input import MOST_AXES, AnyInput, ArrayInput
from paredown.calibration.datasets import ARRAYS, Dataset, open_dataset
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.bundle.finished.program import Described, Tensor
from paredown.pipeline.bundle.vectors import COUNT, SEED
from paredown.pipeline.lower.integer import Affine
from paredown.pipeline.recipe.schema import PreprocessOverride
from paredown.targets.cards.card import Schema
from paredown.targets.cards.tomlfile import first_problem, place, read_toml
from paredown.targets.errors import InputError
from paredown.targets.runners.vectors import test_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence


#: Test inputs of a program that keeps a state, one behind the other.
SEQUENCE = 32


class Codes(Schema):
    """Of int8 numbers: real = scale * (code - zero_point)."""

    scale: float = Field(gt=0)
    zero_point: int = Field(ge=-128, le=127)


class Told(Schema):
    """The file of --preprocess: a recipe's keys, and what a program does not say of its codes."""

    preprocess: PreprocessOverride = PreprocessOverride()
    decoding: dict[str, Any] | None = None
    input: Codes | None = None
    outputs: tuple[Codes, ...] = Field(default=(), strict=False)

    def tensors(self, program: Described) -> tuple[Tensor, ...]:
        """The program's tensors with the scales of this file; none where it has none."""
        if self.input is None:
            return ()
        tensors, codes = (program.input, *program.outputs), (self.input, *self.outputs)
        return tuple(
            Tensor(each.name, each.shape, each.dtype, code.scale, code.zero_point)
            for each, code in zip(tensors, codes, strict=False)
        )


def read_told(path: Path | None) -> Told:
    """Reads the file of --preprocess; the keys of [preprocess] may stand at its top.

    Raises:
        InputError: it cannot be read, or has a key or value that is not known.
    """
    if path is None:
        return Told()
    tables, text = read_toml(path, "file of the preprocessing")
    plain = {key: tables.pop(key) for key in PreprocessOverride.model_fields if key in tables}
    if plain:
        tables["preprocess"] = {**tables.get("preprocess", {}), **plain}
    try:
        return Told.model_validate(tables)
    except ValidationError as error:
        key, problem = first_problem(error)
        raise InputError(problem, where=place(str(path), text, key)) from error


@dataclass(frozen=True)
class Source:
    """The input of a finished program.

    Attributes:
        contract: from a photo or an array to the network's real numbers.
        data: the photos or arrays; None where there are none.
        format: of the data, as recipes have it.
        said: what was assumed, each a sentence without its full stop.
    """

    contract: AnyInput
    data: Dataset | None
    format: str
    said: tuple[str, ...]


def source_of(program: Described, told: Told, data: Path | None, format: str, names: Sequence[str]) -> Source:
    """The contract and the data of a program.

    Args:
        program: with known scales.
        told: the file of --preprocess.
        data: of --data.
        format: of photos, as the task has them.
        names: of the classes.

    Raises:
        InputError: the preprocessing does not fit the program, or the data cannot be read.
    """
    shape, said = program.input.shape, list[str]()
    if data is not None and _arrays(data):
        format = ARRAYS
    image = len(shape) == 4 and shape[1] in (1, 3) and format != ARRAYS
    if not image and (changes := told.preprocess.changes()):
        raise InputError(f"takes {shape}, which is no image of one or three channels", where=program.path,
                         hint=f"leave out {', '.join(changes)}")  # fmt: skip
    contract = _image(program, told, format, said) if image else _array(program)
    if data is None:
        return Source(contract, None, format, tuple(said))
    opened = open_dataset(ARRAYS if not image else format, data, names=names)
    if not image and opened[0].image.shape != shape[1:]:
        what = f"holds arrays of {opened[0].image.shape}; {program.path.name} takes {shape[1:]}"
        raise InputError(what, where=data)
    return Source(contract, opened, ARRAYS if not image else format, tuple(said))


def _arrays(data: Path) -> bool:
    if data.is_dir():
        return next(data.rglob("*.npy"), None) is not None
    return data.suffix.lower() in (".npy", ".npz")


def _array(program: Described) -> ArrayInput:
    shape = program.input.shape[1:]
    if not 1 <= len(shape) <= MOST_AXES:
        raise InputError(f"takes {program.input.shape}, and arrays have up to {MOST_AXES} axes",
                         where=program.path)  # fmt: skip
    return ArrayInput(shape)


def _image(program: Described, told: Told, format: str, said: list[str]) -> Preprocess:
    """From a photo, as the file says it; the rest is read off the codes, or assumed and said."""
    _, channels, height, width = program.input.shape
    given = told.preprocess.changes()
    for key, size in (("width", width), ("height", height)):
        if given.get(key, size) != size:
            raise InputError(f"{key} is {given[key]}, and {program.path.name} takes {width}x{height}",
                             where="--preprocess", hint="leave the size out")  # fmt: skip
    colour = given.get("colour") or ("grey" if channels == 1 else "rgb")
    if (colour == "grey") != (channels == 1):
        what = f"colour is {colour}, and {program.path.name} takes {channels} channels"
        hint = "use grey for one channel, rgb or bgr for three"
        raise InputError(what, where="--preprocess", hint=hint)
    if "colour" not in given:
        said.append(f"assumed: the channels are {colour} (--preprocess)")
    small = max(width, height) <= 64
    resize = given.get("resize") or ("crop" if format == "imagefolder" and not small else "stretch")
    if "resize" not in given:
        said.append(f"assumed: a photo's size is changed by {resize} (--preprocess)")
    fixed = {"width": width, "height": height, "colour": colour, "resize": resize}
    values = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    if not {"mean", "std"} & set(given):
        values = _values(program, channels, format, said)
    return Preprocess(**{**values, **given, **fixed})


def _values(program: Described, channels: int, format: str, said: list[str]) -> dict[str, Any]:
    """Mean and deviation of a pixel / 255."""
    scale, zero = program.input.scale, program.input.zero_point
    if program.dtype == "int8":
        assert scale is not None
        low, high = scale * (-128 - zero), scale * (127 - zero)
        said.append(f"assumed: a pixel of 0 to 255 is the whole range of codes, {low:.4g} to {high:.4g}")
        std = float(f"{1 / (255 * scale):.6g}")  # 1, and not 0.99999994: the program's scale is a float32
        return {"mean": ((128 + zero) / 255,) * channels, "std": (std,) * channels}
    if channels == 1 or format == "yolo":
        said.append("assumed: values are divided by 255 (--preprocess)")
        return {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    said.append("assumed: mean and std are ImageNet's (--preprocess)")
    return {"mean": tuple(v / 255 for v in MEAN), "std": tuple(v / 255 for v in SCALE)}


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a program is run on to make its test vectors.

    Attributes:
        codes: int8, (n, ...).
        seed: that makes them again; None = they are real.
        affine: of a float32 program, what makes real numbers of them.
    """

    codes: NDArray[np.int8]
    seed: int | None
    affine: Affine | None

    @property
    def given(self) -> NDArray[Any]:
        """In the program's own dtype, as `pipeline.bundle.vectors` makes them again."""
        if self.affine is None:
            return self.codes
        return (self.codes.astype(np.float32) - self.affine.zero_point) * np.float32(self.affine.scale)


def test_data(program: Described, source: Source) -> Inputs:
    """Inputs for the test vectors: real ones from all over the data, else random ones of a seed."""
    data, contract = source.data, source.contract
    affine, count = None, SEQUENCE if program.states else COUNT
    if program.dtype == "int8":
        assert program.input.scale is not None
        codes = Affine(program.input.scale, program.input.zero_point)
    if data is None:
        if program.dtype == "float32":
            affine = _over(contract.value_range or (-1.0, 1.0))
        return Inputs(test_inputs(program.input.shape, count, SEED), SEED, affine)
    places = sorted({round(place) for place in np.linspace(0, len(data) - 1, count)})
    real = np.stack([contract(data[place].image) for place in places])
    if program.dtype == "float32":
        affine = codes = _over((float(real.min()), float(real.max())))
    return Inputs(codes.quantize(real), None, affine)


def _over(limits: tuple[float, float]) -> Affine:
    """Codes for a range of real numbers."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    scale = float(np.float32((high - low) / 255)) or 1.0
    return Affine(scale, min(127, max(-128, -128 - math.floor(low / scale))))


def names_count(names: Sequence[str], outputs: Sequence[Tensor], labels: Path) -> None:
    """Refuses names of another number than a classifier's scores.

    Raises:
        InputError: there are more or fewer; or the program has not one row of scores.
    """
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        shapes = ", ".join(str(each.shape) for each in outputs)
        raise InputError(f"gives {shapes}, not one row of scores", where="--task classify",
                         hint="leave out --task to have the outputs alone")  # fmt: skip
    if len(names) != outputs[0].shape[1]:
        raise InputError(f"{len(names)} names for {outputs[0].shape[1]} scores", where=labels,
                         hint="give one name a line, in the order of the scores")  # fmt: skip


def preprocess_table(contract: AnyInput) -> Mapping[str, Any]:
    """A contract in a recipe's keys; nothing of arrays."""
    if isinstance(contract, ArrayInput):
        return {}
    fields = contract.to_dict()
    return {key: fields[key] for key in PreprocessOverride.model_fields if key in fields}
