"""Finished `.tflite`: the same codes on an emulated board, and the score that LiteRT has by hand.

    python bench/finished.py boards FILE.tflite ... --photos FOLDER --record
    python bench/finished.py score WORK --record          # Google's int8 MobileNetV2, 500 images of ImageNet

`boards` runs each file's program on photos, stretched to its input, here and on the board, and compares every
code. `score` brings the photos to 224x224 in several ways, and asks LiteRT's interpreter for the class;
beside it stands what `paredown bundle` says of the same way as keys of its preprocessing. By hand it is
OpenCV and Pillow that resize.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from cases import SHARED
from mobilenet import classes
from numpy.typing import NDArray
from PIL import Image
from record import Table, add_option

from paredown.apps.api.finished import Asked, bundle
from paredown.pipeline.bundle.finished.program import describe
from paredown.pipeline.device.executor import Here, open_executor
from paredown.targets.cards.card import load_card
from paredown.targets.devices.programs import Program
from paredown.targets.runners.litert import TensorInfo

BOARD, COUNT = "raspberry-pi-5", 12
MODEL = SHARED / "imagenet-mobilenet-v2"
FILE = "tf2_mobilenet_v2_1.0_224_ptq.tflite"
SIDE = 224


def program_of(path: Path) -> Program:
    """A finished program."""
    found = describe(path)
    ours, *outputs = (TensorInfo(each.shape, each.dtype) for each in (found.input, *found.outputs))
    return Program("litert", path.read_bytes(), ours, tuple(outputs), 1, str(path))


def codes_of(photos: list[Path], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Photos (n, channels, height, width), a pixel's level less 128 its code."""
    images = [cv2.resize(cv2.imread(str(path)), (shape[3], shape[2])) for path in photos]
    pixels = np.stack(images)[..., ::-1].transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels.astype(np.int16) - 128).astype(np.int8)


def boards(files: list[Path], photos: list[Path], table: Table) -> None:
    """A row for each file."""
    chosen = photos[:: max(1, len(photos) // COUNT)][:COUNT]
    with open_executor(
        f"emulated:{BOARD}", load_card(BOARD), lambda line: print(line, file=sys.stderr)
    ) as there:
        for path in files:
            program = program_of(path)
            inputs = codes_of(chosen, program.input.shape)
            ours, theirs = (
                np.concatenate([np.concatenate([o.reshape(-1) for o in each]) for each in found])
                for found in (
                    executor.run(program, inputs, lambda done, total: None) for executor in (Here(), there)
                )
            )
            gap = np.abs(ours.astype(int) - theirs.astype(int))
            size = "x".join(map(str, program.input.shape[2:]))
            table.row(path.name, size, len(inputs), f"{gap.size:,}", f"{np.count_nonzero(gap):,}")


def square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest centred square."""
    side = min(image.shape[:2])
    return centre(image, side)


def centre(image: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
    """A centred square."""
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def resized(kind: int) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """To 224x224."""
    return lambda image: np.asarray(cv2.resize(image, (SIDE, SIDE), interpolation=kind))


def pillow(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """To 224x224 by Pillow's bicubic filter."""
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def score(work: Path, table: Table) -> None:
    """A row for each way."""
    from ai_edge_litert.interpreter import Interpreter

    lines = (MODEL / "imagenet_labels.txt").read_text().splitlines()
    files = sorted((SHARED / "imagenet").glob("*.jpg"))
    truth = classes(files, lines).tolist()
    shutil.rmtree(work, ignore_errors=True)
    for file, wanted in zip(files, truth, strict=True):
        (work / "photos" / f"{wanted:04}").mkdir(parents=True)
        shutil.copy(file, work / "photos" / f"{wanted:04}" / file.name)
    (work / "names.txt").write_text("".join(f"{index:04}\n" for index in range(len(lines))))
    images = [cv2.imread(str(file)) for file in files]
    linear, cubic, area = (resized(kind) for kind in (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA))
    keys = ("resize", "shorter_side", "resample")
    ways = (
        ("shorter side 256, then the centre of 224, as Keras's own table", centre, ("crop", 256, "bicubic")),
        ("the largest square, bilinear", lambda image: linear(square(image)), ("crop",)),
        ("the whole photo, bilinear", linear, ("stretch",)),
        ("the largest square, area", lambda image: area(square(image)), ("crop", None, "area")),
        ("the largest square, bicubic", lambda image: cubic(square(image)), ("crop", None, "bicubic")),
        ("the largest square, pillow-bicubic", lambda image: pillow(square(image)),
         ("crop", None, "pillow-bicubic")),
    )  # fmt: skip
    interpreter = Interpreter(str(MODEL / FILE), num_threads=1)
    interpreter.allocate_tensors()
    place, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    for name, way, asked_for in ways:
        right = [0, 0]
        for image, wanted in zip(images, truth, strict=True):
            interpreter.set_tensor(place, np.ascontiguousarray(way(image)[None, ..., ::-1]))
            interpreter.invoke()
            scores = interpreter.get_tensor(out)[0].astype(int)
            # of equal scores the first, as `numpy.argmax` has it
            right[0] += int(scores.argmax() == wanted)
            right[1] += int(wanted in np.argsort(-scores, kind="stable")[:5])
        by_hand = [f"{count / len(images):.4f}" for count in right]
        said = {key: value for key, value in zip(keys, asked_for, strict=False) if value}
        (work / "p.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in said.items()))
        asked = Asked((MODEL / FILE,), work / "p.toml", work / "names.txt", work / "photos", "classify")
        made = bundle(asked, load_card("host"), work / "mnv2.paredown")
        found = {each.metric: each.value for each in made.figures}
        table.row(name, *by_hand, *(f"{found[metric]:.4f}" for metric in ("top1", "top5")))


def main() -> None:
    """One of the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("boards", "score"))
    parser.add_argument("paths", nargs="+", type=Path, help="the files, or a folder to work in")
    parser.add_argument("--photos", type=Path, help="a folder of pictures")
    add_option(parser)
    options = parser.parse_intermixed_args()
    if options.table == "boards":
        heads = ("file", "input", "photos", "codes", f"differ on emulated:{BOARD}")
        with Table("finished", heads, options.record, part="boards") as table:
            boards(options.paths, sorted(options.photos.rglob("*.jpg")), table)
        return
    heads = (
        "a photo becomes 224x224 as",
        "LiteRT by hand, top-1",
        "top-5",
        "paredown bundle, top-1",
        "top-5 ",
    )
    with Table("finished", heads, options.record, part="score") as table:
        score(options.paths[0].absolute(), table)


if __name__ == "__main__":
    main()
