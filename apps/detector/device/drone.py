"""The drone app: `python -m paredown.apps.detector.device.drone --fov 62 --mavlink serial:/dev/ttyAMA0`.

The camera app's pictures, tracks and outputs; what can be trusted of them is told to an autopilot. Runs on a
companion computer in an unpacked bundle's folder: numpy, OpenCV, a LiteRT interpreter and pymavlink.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

from paredown.apps.detector.device.boxes.counting import Counting
from paredown.apps.detector.device.boxes.tracker import Tracker, TrackerConfig
from paredown.apps.detector.device.camera import (
    NAME,
    StatusLogger,
    command,
    ended_by_signals,
    number_within,
    outputs_for,
    pictures,
    watch,
    whole_number,
)
from paredown.apps.detector.device.camera import parser as camera_parser
from paredown.apps.detector.device.detect import Detector
from paredown.apps.detector.device.flight.geometry import Attitude, Camera, Lens
from paredown.apps.detector.device.flight.mavlink import Link
from paredown.apps.detector.device.flight.pilot import FOLLOW, LANDING, CameraOf, Orders, Pilot
from paredown.apps.detector.device.flight.tiles import Tiled, Tiling
from paredown.apps.detector.device.flight.vehicle import Trust, Vehicle
from paredown.apps.detector.device.flight.wire import HINT, connect, parse_address
from paredown.apps.detector.device.frames.handover import Reader
from paredown.apps.detector.device.frames.holding import held
from paredown.apps.detector.device.frames.private import source_text
from paredown.apps.detector.device.frames.source import Log, Paced, is_live, open_source
from paredown.apps.detector.device.frames.timing import Split
from paredown.apps.detector.device.processor import FrameProcessor, Model
from paredown.targets.errors import UsageError

OVERLAP = 0.25


def parser(prog: str) -> argparse.ArgumentParser:
    """The options: the camera app's, and those of the vehicle.

    Args:
        prog: the name of the command, for its help.
    """
    made = camera_parser(prog)
    made.description = "Tells an autopilot over MAVLink where the objects are that a camera sees."
    trust, degrees = Trust(), number_within(-360.0, 360.0)
    add = made.add_argument
    add("--mavlink", required=True, metavar="ADDRESS", help=f"address of the autopilot: {HINT}")
    add("--system", type=whole_number, default=1, help="MAVLink system id of the vehicle (default 1)")
    add(
        "--send",
        choices=(LANDING, FOLLOW, "both"),
        default=LANDING,
        help="the messages to send (default: %(default)s)",
    )
    add("--follow-system", type=whole_number, default=200, metavar="ID",
        help="system id of FOLLOW_TARGET messages, ArduPilot's FOLL_SYSID (default 200)")  # fmt: skip
    add("--target", metavar="CLASS[,CLASS]", help="classes to track (default: all)")
    add("--tiles", default="auto", metavar="SIZE",
        help="tile size in pixels, off, or auto: the model's input size (default: auto)")  # fmt: skip
    add(
        "--overlap",
        type=number_within(0.0, 0.9),
        default=OVERLAP,
        help="overlap of tiles, as a share of one (default: %(default)s)",
    )
    lens = made.add_mutually_exclusive_group(required=True)
    lens.add_argument(
        "--fov",
        type=number_within(1.0, 170.0),
        help="horizontal field of view in degrees; or give --intrinsics",
    )
    lens.add_argument(
        "--intrinsics",
        metavar="fx,fy,cx,cy,WIDTH",
        help="calibrated camera matrix, for this image width in pixels",
    )
    add("--mount", type=degrees, nargs=3, default=(0.0, -90.0, 0.0), metavar=("ROLL", "PITCH", "YAW"),
        help="camera mounting in degrees (default 0 -90 0: straight down, image top ahead)")  # fmt: skip
    for name, high, text in (
        ("confidence", 1.0, "minimum score of a target"),
        ("link", 60.0, "maximum silence of the autopilot in seconds"),
        ("attitude", 5.0, "maximum age of the attitude in seconds"),
        ("position", 5.0, "maximum age of the position in seconds"),
        ("latency", 60.0, "maximum age of a frame in seconds"),
        ("tilt", 90.0, "maximum roll and pitch in degrees"),
        ("lowest", 1e4, "minimum height above home in metres"),
        ("highest", 1e4, "maximum height above home in metres"),
        ("depression", 90.0, "minimum angle below the horizon in degrees"),
        ("range", 1e5, "maximum distance in metres"),
        ("accuracy", 1e4, "maximum uncertainty of the GPS in metres"),
        ("speed", 1e4, "maximum speed over the ground in m/s; a faster position has leapt"),
    ):
        field = name if hasattr(trust, name) else f"{name}_s"
        option = f"--{'min' if name == 'confidence' else 'trust'}-{name}"
        default = getattr(trust, field)
        add(option, dest=f"trust_{field}", type=number_within(0.0, high), default=default,
            help=f"{text} (default {default:g})")  # fmt: skip
    add("--trust-fix", type=int, choices=range(9), default=trust.fix,
        help=f"minimum GPS fix type; 0 for a vehicle without GPS (default {trust.fix})")  # fmt: skip
    add("--trust-sightings", type=whole_number, default=trust.sightings,
        help=f"consecutive frames that confirm a track (default {trust.sightings})")  # fmt: skip
    return made


def trust_of(options: argparse.Namespace) -> Trust:
    """What the options let us believe."""
    return Trust(**{name: getattr(options, f"trust_{name}") for name in vars(Trust())})


def camera_of(options: argparse.Namespace) -> CameraOf:
    """The camera of a picture, by its height and width.

    Raises:
        UsageError: intrinsics that are none.
    """
    roll, pitch, yaw = (math.radians(angle) for angle in options.mount)
    mount = Attitude(roll, pitch, yaw)
    if options.fov is not None:
        return lambda size: Camera(Lens.from_fov(options.fov, size[1], size[0]), mount)
    try:
        *values, width = (float(value) for value in options.intrinsics.split(","))
        fx, fy, cx, cy = values
        Lens(fx, fy, cx, cy)
        if not 0 < width < math.inf:
            raise ValueError
    except ValueError:
        what = f"`{options.intrinsics}` is no camera matrix"
        hint = "write fx,fy,cx,cy,WIDTH, as 920.5,921.0,640.2,358.8,1280"
        raise UsageError(what, where="--intrinsics", hint=hint) from None

    def scaled(size: tuple[int, int]) -> Camera:
        scale = size[1] / width  # a stream may give another size than was calibrated
        return Camera(Lens(fx * scale, fy * scale, cx * scale, cy * scale), mount)

    return scaled


def model_of(detector: Detector, tiles: str, overlap: float) -> Model:
    """The detector, through tiles where they are wanted.

    Raises:
        UsageError: a size that is none.
    """
    if tiles == "off":
        return detector
    if tiles == "auto":
        return Tiled(detector, Tiling(max(detector.preprocess.width, detector.preprocess.height), overlap))
    if not tiles.isdecimal():
        raise UsageError(f"`{tiles}` is no size of a tile", where="--tiles", hint="pixels, or auto, or off")
    return Tiled(detector, Tiling(int(tiles), overlap))


def orders_of(options: argparse.Namespace, names: Sequence[str]) -> Orders:
    """What is to be sent, of which classes.

    Raises:
        UsageError: a class that the bundle does not know.
    """
    wanted = options.target.split(",") if options.target else names
    for name in wanted:
        if name not in names:
            raise UsageError(f"no class `{name}`", where="--target", hint=f"there are: {', '.join(names)}")
    send = (LANDING, FOLLOW) if options.send == "both" else (options.send,)
    return Orders(send, frozenset(names.index(name) for name in wanted))


def run(options: argparse.Namespace, folder: Path, log: Log) -> None:
    """Watches and tells, until the source ends or a signal says so.

    Args:
        options: as `parser` reads them.
        folder: of the unpacked bundle.
        log: told a line when something happens to the source or the autopilot, and how it goes.

    Raises:
        UsageError: an option that cannot be.
        InputError: the bundle, the file or the folder is broken, or an output cannot be written.
        DeviceError: the camera or the autopilot's address cannot be opened, or the camera is lost for good.
    """
    if options.mirror:
        hint = "turn the camera, or its picture by --rotate"
        raise UsageError("a mirrored picture shows no bearing", where="--mirror", hint=hint)
    if options.system == options.follow_system or max(options.system, options.follow_system) > 255:
        where = "--system, --follow-system"
        raise UsageError("system ids are two different numbers from 1 to 255", where=where)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # as the camera app
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    address, camera = parse_address(options.mavlink), camera_of(options)
    detector = Detector(folder, options.threads)
    model, orders = model_of(detector, options.tiles, options.overlap), orders_of(options, detector.names)
    trust = trust_of(options)
    sure = options.confidence if options.confidence is not None else trust.confidence
    tracker = Tracker(TrackerConfig(sure=sure, unsure=min(TrackerConfig.unsure, sure)))
    vehicle = Vehicle(options.system)
    with contextlib.ExitStack() as stack:
        options.source = source_text(options.source)
        if is_live(options.source):
            stack.enter_context(held(options.source, os.environ.get(NAME, "paredown drone")))
        source = open_source(options.source, options.patience, log)
        if options.realtime and not source.live:
            source = Paced(source)
        link = stack.enter_context(Link(connect(address), vehicle, options.follow_system, log, address))
        frames = stack.enter_context(Reader(source))
        pilot = Pilot(link, vehicle, camera, orders, trust)
        outputs = [pilot, *outputs_for(options, source, frames.end, log)]  # the autopilot first
        looker = FrameProcessor(
            model, tracker, Counting(options.line, options.zone), Split(time.monotonic),
            rotate=options.rotate, drawing=any(each.picture for each in outputs),
        )  # fmt: skip
        stack.enter_context(ended_by_signals(frames.end))
        summary: dict[str, Any] = {}
        for output in reversed(outputs):
            stack.callback(output.close, summary)
        tell = StatusLogger(looker.split, lambda: frames.dropped, log)
        watched = watch(frames, looker, outputs, source=source.name, limit=options.frames, on_seen=tell)
        watched = replace(watched, skipped=source.skipped)
        summary |= watched.to_dict()
    if not options.json:
        print("\n".join(watched.lines()))
        said = ", ".join(f"{count} {name}" for name, count in pilot.sent.items()) or "nothing"
        print(f"told the autopilot {said}; silent in {pictures(pilot.silent)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command on a companion computer; returns the exit code."""
    return command(parser("python -m paredown.apps.detector.device.drone"), run, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
