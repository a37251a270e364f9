"""The stage that compares a program with its integer graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.lower.runtimes import runtime
from paredown.pipeline.run.image.read import integer_in
from paredown.pipeline.run.job import program_in
from paredown.pipeline.store.files import write_json
from paredown.pipeline.store.stage import Inputs, Stage

if TYPE_CHECKING:
    from paredown.pipeline.lower.integer import IntegerGraph
    from paredown.pipeline.run.image.job import ImageJob

PARITY_INPUTS, SMOKE_INPUTS = 32, 2


@dataclass(frozen=True)
class ParityParams:
    """How many inputs are compared, and on what."""

    inputs: int
    probes: int
    machine: Mapping[str, Any]


def parity_stage(job: ImageJob, name: str) -> Stage:
    """Makes the stage that compares a runtime's program with the integer graph, code by code."""
    count = SMOKE_INPUTS if job.smoke else PARITY_INPUTS
    params = ParityParams(count, min(2, count), job.machine.identity())

    def build(out: Path, inputs: Inputs) -> None:
        from paredown.pipeline.lower.integer import in_int4
        from paredown.pipeline.lower.parity import check
        from paredown.pipeline.lower.predict.islands import facts, islands, tried

        tools = runtime(name)
        integer = in_int4(integer_in(inputs["integer"]), job.int4(name))
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            job.tick(done, count)

        result = check(
            integer,
            tools.load(program_in(inputs["program"]), 1, name),
            lambda graph: tools.load(tools.lower_integer(graph).data, 1, name),
            _inputs(job, integer, count),
            params.probes,
            tick,
            tools.tolerance,
            job.references.setdefault(job.integers[name].key, {}),
        )
        told = result.to_dict()
        # a list, for the running order: what is written sorts its keys
        told["layers"] = [
            {"name": layer, "kind": integer[layer].kind, **apart} for layer, apart in told["layers"].items()
        ]
        for node in islands(integer):
            feeds = [integer[each] for each in node.inputs]
            micro = job.target.runtime(name).edition == "micro"
            told["islands"][node.name] |= facts(node, feeds, tried(name, node, feeds, micro))
        write_json(out / "parity.json", told)

    inputs: dict[str, Stage | str] = {"integer": job.integers[name], "program": job.lower[name]}
    inputs["data"] = job.calibration.fingerprint()
    called = f"parity-{name}{job.instead(name)}"
    return Stage(called, 2, params, inputs, build)  # 2: with layers for the report


def _inputs(job: ImageJob, integer: IntegerGraph, count: int) -> NDArray[np.int8]:
    """Half real images of the calibration split, half synthetic textures over all codes."""
    from paredown.targets.runners.vectors import test_inputs

    real = min(count // 2, len(job.calibration))
    scale = integer.input.out
    images = [
        job.preprocess.quantized(job.calibration[i].image, scale.scale, scale.zero_point) for i in range(real)
    ]
    return np.concatenate([np.stack(images), test_inputs(integer.input.shape, count - real)])
