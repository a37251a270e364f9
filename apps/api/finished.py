"""A bundle of finished programs: `.tflite`, `.pte` and `.onnx` of other tools, as they are.

Nothing is trained, quantized or lowered. What a program takes and gives says its runtime, test vectors are
made by running it, and from then on it is a bundle as any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.apps.api.finished_input import (
    Inputs,
    Source,
    Told,
    names_count,
    preprocess_table,
    read_told,
    source_of,
    test_data,
)
from paredown.calibration.datasets import read_names
from paredown.pipeline.bundle.archive import pack
from paredown.pipeline.bundle.finished.program import Described, Ran, Tensor, describe, run, scaled
from paredown.pipeline.bundle.packed.sbom import SBOM, bundle_sbom
from paredown.pipeline.bundle.places import portable
from paredown.pipeline.bundle.vectors import of_program
from paredown.pipeline.lower.integer import Affine
from paredown.pipeline.lower.litert.reader.load import prospect
from paredown.pipeline.recipe.schema import FINISHED, Recipe
from paredown.pipeline.recipe.task import load_task, metric_of
from paredown.pipeline.report.figures import Figure
from paredown.pipeline.run.job import SHARED, plain
from paredown.pipeline.store.event import Event, Tell, nobody
from paredown.pipeline.store.store import write_atomic
from paredown.targets.cards.card import Target
from paredown.targets.errors import InputError, UsageError
from paredown.targets.host.host import Machine, having, this_machine
from paredown.targets.own_code import own_code

APPS = {"outputs": "apps.outputs", "classify": "apps.classifier", "detect": "apps.detector"}
#: How photos with labels lie in a folder, by task.
FORMATS = {"outputs": "folder", "classify": "imagefolder", "detect": "yolo"}
#: 64-bit Arm has a softmax of its own for int8, with a table of 16 bits: its codes are so far from others'.
SOFTMAX_LSB = 1
#: Two programs of one network are apart by no more than this, or by so many codes.
LEAST_DB, MOST_CODES = 10.0, 4
ARRAY_INPUT = "calibration/array_input.py"  # which the device's code of all apps but one imports
SUM_OF_ONE = 0.1  # how far the sum of rounded probabilities may be from one


@dataclass(frozen=True)
class Asked:
    """What the command line says.

    Attributes:
        programs: the files, of one network, each for another runtime.
        preprocess: a TOML file; None = what the codes say, or what is assumed.
        labels: a file of the classes' names.
        data: photos or arrays.
        task: one of `APPS`.
    """

    programs: tuple[Path, ...]
    preprocess: Path | None = None
    labels: Path | None = None
    data: Path | None = None
    task: str = "outputs"


@dataclass(frozen=True)
class Made:
    """A bundle.

    Attributes:
        path: of the file.
        programs: as their runtimes describe them.
        figures: measured while it was made.
        notes: what was assumed or noticed, each a sentence without its full stop.
    """

    path: Path
    programs: tuple[Described, ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """For a terminal."""
        found = []
        for program in self.programs:
            found.append(f"{program.runtime:<12} {program.path.name}, {program.dtype}")
            ways = [("input", program.input), *(("output", each) for each in program.outputs)]
            for way, each in ways:
                codes = "" if program.dtype == "float32" else f", {each.scale:g} x (code - {each.zero_point})"
                found.append(f"{way:<12} {each.name}  {'x'.join(map(str, each.shape))}{codes}")
        scores = [figure for figure in self.figures if figure.stage == "score"]
        found += [f"{figure.metric:<12} {figure.value:.4f}  {figure.variant}" for figure in scores]
        found += [f"note: {note}" for note in self.notes]
        return [*found, f"{'bundle':<12} {self.path}"]


@dataclass(frozen=True, eq=False)
class _Network:
    """The programs, and what is known of the network that they are."""

    programs: tuple[Described, ...]
    told: Told
    source: Source
    recipe: Recipe
    names: tuple[str, ...]


def bundle(
    asked: Asked, card: Target, out: Path, tell: Tell = nobody, tick: Callable[[int, int], None] | None = None
) -> Made:
    """Makes a bundle of finished programs.

    Args:
        asked: what it is made of.
        card: of the target.
        out: the bundle's file.
        tell: hears of each step.
        tick: progress of scoring.

    Raises:
        UsageError: options that do not fit each other, or a runtime that the target has not.
        InputError: a file that is broken or does not fit the others.
        DeviceError: a runtime that is not installed here.
    """
    _check(asked)
    told = read_told(asked.preprocess)
    programs = _described(asked, told, card, tell)
    names = read_names(asked.labels) if asked.labels else ()
    if asked.task == "classify":
        assert asked.labels is not None
        names_count(names, programs[0].outputs, asked.labels)
    source = source_of(programs[0], told, asked.data, FORMATS[asked.task], names)
    network = _Network(programs, told, source, _recipe(asked, programs, source, told), names)
    inputs = [test_data(program, source) for program in programs]
    ran = []
    for program, given in zip(programs, inputs, strict=True):
        tell(Event(f"{program.runtime} test vectors", "running"))
        ran.append(run(program, given.given))
    notes = [*source.said, *_noticed(network, inputs[0], ran)]
    members, task = _app(network, ran)
    machine = this_machine()
    for program in programs:
        machine = having(machine, "onnxruntime") if program.runtime == "onnxruntime" else machine
    figures = [figure for pair in zip(programs, ran, strict=True) for figure in _figures(*pair, machine)]
    models = [_model(*each, members) for each in zip(programs, inputs, ran, strict=True)]
    labelled = _labelled(source, asked.task)
    if task is not None and labelled:
        figures += _scores(network, task, machine, tell, tick or (lambda done, total: None))
    manifest = {
        "name": asked.programs[0].stem, "target": card.name, "card": plain(card),
        "app": network.recipe.app, "models": models, "recipe": plain(portable(network.recipe)),
        "network": dict(task.network_id) if task else {"app": network.recipe.app, "network": FINISHED},
        "preprocess": source.contract.to_dict(), "preprocess_hash": source.contract.hash,
        "test": {"images": len(source.data) if labelled and source.data else 0,
                 "fingerprint": source.data.fingerprint() if labelled and source.data else ""},
        "figures": [figure.to_dict() for figure in figures], "versions": dict(machine.versions),
        "licences": {"device code": "Apache-2.0", "programs": "those of their files"},
        **({"metric": asdict(metric_of(task))} if task else {}),
    }  # fmt: skip
    members[SBOM] = bundle_sbom(manifest, members)
    write_atomic(out, pack(manifest, members))
    return Made(out, programs, tuple(figures), tuple(notes))


def _check(asked: Asked) -> None:
    """Refuses options that do not fit each other.

    Raises:
        UsageError: they do not.
    """
    if asked.task not in APPS:
        raise UsageError(f"no task {asked.task!r}", where="--task", hint=f"use {', '.join(APPS)}")
    if asked.task == "outputs" and asked.labels is not None:
        raise UsageError("names are for a task", where="--labels", hint="add --task classify or detect")
    if asked.task != "outputs" and asked.labels is None:
        raise UsageError(f"--task {asked.task} needs the classes' names", where="--labels",
                         hint="give a file with one name a line, in the program's order")  # fmt: skip


def _described(asked: Asked, told: Told, card: Target, tell: Tell) -> tuple[Described, ...]:
    """The programs, those with scales first, each with scales."""
    found: list[Described] = []
    for path in asked.programs:
        tell(Event(str(path), "running"))
        program = describe(path)
        if program.runtime not in card.runtimes:
            there = ", ".join(sorted(card.runtimes))
            raise UsageError(f"target {card.name} has no runtime {program.runtime}", where=path,
                             hint=f"it has {there}")  # fmt: skip
        if twin := next((each for each in found if each.runtime == program.runtime), None):
            raise UsageError(f"a second program for {twin.runtime}", where=path, hint="make two bundles")
        found.append(program)
    known = [each for each in found if all(t.scale is not None for t in (each.input, *each.outputs))]
    like: tuple[Tensor, ...] = (known[0].input, *known[0].outputs) if known else ()
    made = tuple(scaled(each, told.tensors(each) or like) for each in found)
    first = made[0]
    for other in made[1:]:
        ours, theirs = (f"{each.dtype} {_shapes(each)}" for each in (first, other))
        if ours != theirs:
            what = f"another network: {theirs}, and {first.path.name} is {ours}"
            raise InputError(what, where=other.path, hint="make two bundles")
    return made


def _shapes(program: Described) -> str:
    return " ".join("x".join(map(str, each.shape)) for each in (program.input, *program.outputs))


def _recipe(asked: Asked, programs: Sequence[Described], source: Source, told: Told) -> Recipe:
    """What stands in the bundle where others have their recipe."""
    place = str((asked.data or asked.labels or asked.programs[0]).absolute())
    data = {
        "format": source.format if source.data is not None else "folder",
        "names": str(asked.labels.absolute()) if asked.labels else None, "calibration": place, "test": place,
    }  # fmt: skip
    tables = {
        "app": APPS[asked.task], "network": FINISHED, "weights": FINISHED, "decoding": told.decoding,
        "data": data, "lower": {"runtimes": [program.runtime for program in programs]},
        "preprocess": preprocess_table(source.contract),
    }  # fmt: skip
    # As `validate` looks for them: below the folder where both are called.
    return Recipe.model_validate(tables).read_from(Path.cwd() / "recipe.toml")


def _noticed(network: _Network, inputs: Inputs, ran: Sequence[Ran]) -> list[str]:
    """What the programs' first runs show.

    Raises:
        InputError: two programs disagree.
    """
    count = len(inputs.codes)
    real = f"{count} of --data" if inputs.seed is None else f"{count} random ones: no --data was given"
    said = [f"inputs of the test vectors: {real}"]
    first = network.programs[0]
    for program, found in zip(network.programs, ran, strict=True):
        if program.states:
            said.append(
                f"{program.path.name} keeps a state from call to call ({', '.join(program.states)}): "
                "the test vectors are one sequence"
            )
        if program.dtype == "int8" and program.runtime == "litert":
            differing, most = _apart(found.usual, found.exact)
            total = sum(each.size for each in found.usual)
            apart = f"{differing} of {total} codes differ, by up to {most} LSB" if differing else "equal"
            said.append(prospect(program.path))
            said.append(f"{program.path.name}: XNNPACK beside TFLite's reference kernels: {apart}")
            if program.softmax:
                said.append(
                    f"{program.path.name} ends with a softmax, which 64-bit Arm computes from another table: "
                    f"codes {SOFTMAX_LSB} apart pass on a device"
                )
        if program is first:
            continue
        db, (_, most) = _signal_to_noise(first, ran[0], program, found), _apart(ran[0].usual, found.usual)
        if db < LEAST_DB and (program.dtype != "int8" or most > MOST_CODES):
            what = f"gives other outputs than {first.path.name}: {db:.1f} dB of signal to difference"
            raise InputError(what, where=program.path, hint="are they one network? make two bundles")
        said.append(f"{program.path.name} agrees with {first.path.name}: {db:.1f} dB")
    return said


def _apart(ours: Sequence[NDArray[Any]], theirs: Sequence[NDArray[Any]]) -> tuple[int, int]:
    """How many codes differ, and by how much at most."""
    gaps = [np.abs(a.astype(np.int64) - b.astype(np.int64)) for a, b in zip(ours, theirs, strict=True)]
    return sum(int(np.count_nonzero(gap)) for gap in gaps), max(int(gap.max()) for gap in gaps)


def _signal_to_noise(one: Described, ours: Ran, other: Described, theirs: Ran) -> float:
    """Of two programs' outputs as real numbers, in dB; the worst output's, 200 where they are equal."""
    found = []
    for place, (a, b) in enumerate(zip(_real(one, ours), _real(other, theirs), strict=True)):
        noise, signal = float(np.square(a - b).mean()), float(np.square(a - a.mean()).mean())
        found.append(200.0 if noise == 0 else 10 * np.log10(max(signal, 1e-12) / noise))
        assert place < len(one.outputs)
    return float(min(found))


def _real(program: Described, ran: Ran) -> list[NDArray[np.float64]]:
    return [
        (found.astype(np.float64) - tensor.zero_point) * (tensor.scale or 1.0)
        for found, tensor in zip(ran.usual, program.outputs, strict=True)
    ]


def _app(network: _Network, ran: Sequence[Ran]) -> tuple[dict[str, bytes], Any]:
    """The members of the app, and its task; outputs alone have none."""
    recipe, outputs = network.recipe, network.programs[0].outputs
    if recipe.app == APPS["outputs"]:
        facts = {"classes": 0, "outputs": [each.name for each in outputs]}
        files = own_code(("apps/outputs/__init__.py", "apps/outputs/device/*.py", ARRAY_INPUT))
        members, task = {"labels.txt": b"", "app.json": json.dumps(facts, sort_keys=True).encode()}, None
    else:
        task = load_task(recipe)
        if heads := getattr(task, "heads", None):
            heads.check([each.shape for each in outputs], len(network.names))
        members, files = dict(task.bundle_members()), task.device_files()
        if recipe.app == APPS["classify"] and _probabilities(_real(network.programs[0], ran[0])[0]):
            members["app.json"] = _with(members["app.json"], "probabilities", True)
    members |= {name: path.read_bytes() for name, path in (own_code(SHARED) | files).items()}
    return members, task


def _probabilities(scores: NDArray[np.float64]) -> bool:
    """Whether rows of scores have gone through a softmax."""
    return bool((scores >= 0).all() and (np.abs(scores.sum(axis=1) - 1) < SUM_OF_ONE).all())


def _with(text: bytes, key: str, value: object) -> bytes:
    return (json.dumps({**json.loads(text), key: value}, sort_keys=True, indent=1) + "\n").encode()


def _model(program: Described, inputs: Inputs, ran: Ran, members: dict[str, bytes]) -> dict[str, Any]:
    """A program's entry in the manifest; it and its test vectors become members."""
    vectors = f"vectors-{program.runtime}"
    affine = inputs.affine
    source = None if affine is None else (affine.scale, affine.zero_point)
    exact = ran.exact if program.dtype == "int8" else ran.usual
    text, data, real = of_program(inputs.codes, ran.usual, exact, inputs.seed, source)
    members |= {f"{vectors}.json": text, f"{vectors}.bin": data}
    if real:
        members[f"{vectors}.in"] = real
    file = f"model{program.path.suffix.lower()}"
    members[file] = program.path.read_bytes()
    return {
        "runtime": program.runtime, "file": file, "dtype": program.dtype, "layout": "nchw",
        "input": _spec(program.input), "outputs": [_spec(each) for each in program.outputs],
        "vectors": vectors,
    }  # fmt: skip


def _spec(tensor: Tensor) -> dict[str, Any]:
    facts = {"name": tensor.name, "shape": list(tensor.shape)}
    return {**facts, "scale": tensor.scale, "zero_point": tensor.zero_point}


def _figures(program: Described, ran: Ran, machine: Machine) -> list[Figure]:
    """Its size, and what its kernels differ from the reference's by."""
    size = float(program.path.stat().st_size)
    found = [Figure("lower", program.runtime, "file_bytes", size, "B", "measured", machine)]
    if program.dtype == "int8":
        most = float(_apart(ran.usual, ran.exact)[1])
        found.append(Figure("parity", program.runtime, "kernels_lsb", most, "LSB", "measured", machine))
    if program.dtype == "int8" and program.softmax:
        allowed = float(SOFTMAX_LSB)
        found.append(Figure("parity", program.runtime, "parity_allowed", allowed, "LSB", "measured", machine))
    return found


def _labelled(source: Source, task: str) -> bool:
    """Whether there is something to score by: every sample has a label."""
    from paredown.calibration.datasets import classes_of

    data = source.data
    if data is None or task == "outputs":
        return False
    return all(classes_of(data, index) is not None for index in range(len(data)))


def _scores(
    network: _Network, task: Any, machine: Machine, tell: Tell, tick: Callable[[int, int], None]
) -> list[Figure]:
    """Every program's score on the data, on this machine."""
    from paredown.pipeline.device.executor import Here, Predictor
    from paredown.targets.devices.programs import Program
    from paredown.targets.runners.litert import TensorInfo

    found, data = [], task.data("test")
    for program in network.programs:
        tell(Event(f"{program.runtime} score", "running"))
        ours, *outputs = (TensorInfo(each.shape, each.dtype) for each in (program.input, *program.outputs))
        ready = Program(
            program.runtime, program.path.read_bytes(), ours, tuple(outputs), 1, str(program.path)
        )
        source, *affines = (Affine(t.scale or 1.0, t.zero_point) for t in (program.input, *program.outputs))
        predict = Predictor(Here(), ready, source, tuple(affines), data, task.preprocess)
        for metric, value in task.score(predict, data, tick).items():
            found.append(Figure("score", program.runtime, metric, value, "1", "measured", machine))
    return found
