"""The stage that times programs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paredown.pipeline.device.rollback import FLOAT
from paredown.pipeline.lower.runtimes import runtime
from paredown.pipeline.report.figures import ORIGINAL
from paredown.pipeline.run.image.prune_stages import NETWORK
from paredown.pipeline.run.image.read import integer_in
from paredown.pipeline.run.job import program_in
from paredown.pipeline.run.params import BenchParams
from paredown.pipeline.store.files import write_json
from paredown.pipeline.store.stage import Inputs, Stage

if TYPE_CHECKING:
    from paredown.pipeline.run.image.job import ImageJob

SMOKE_RUNS = 3


def bench_stage(job: ImageJob) -> Stage:
    """Makes the stage that times all programs on this machine, interleaved."""
    runs = SMOKE_RUNS if job.smoke else job.recipe.bench.runs
    threads = job.recipe.bench.threads
    stages = {**job.lower, **{f"{name}{FLOAT}": stage for name, stage in job.baseline.items()}}
    stages |= {f"{name}{ORIGINAL}": stage for name, stage in job.originals.items()}

    def build(out: Path, inputs: Inputs) -> None:
        from paredown.pipeline.compress.coupling.surgery import load_pruned
        from paredown.pipeline.device.timing import Eager, Peaks, interleaved
        from paredown.pipeline.lower.predict.islands import island_times, islands

        image = job.preprocess(job.calibration[0].image)[None]
        integer = integer_in(inputs["integer"])
        codes = integer.input.out.quantize(image)
        runners: dict[str, Any] = {"fp32": (Eager(job.task.network(), threads), image)}
        if "recovered" in inputs:
            pruned = load_pruned(job.task.network(), inputs["recovered"] / NETWORK)
            runners["pruned"] = (Eager(pruned, threads), image)
        programs: dict[str, Any] = {}
        for variant in stages:
            name = variant.removesuffix(FLOAT).removesuffix(ORIGINAL)
            x = image if variant.endswith(FLOAT) else codes
            runners[variant] = (runtime(name).load(program_in(inputs[variant]), threads, variant), x)
            programs[variant] = (name, inputs[variant] / "program", x)
        job.peaks = job.peaks or Peaks(job.runtimes)
        memory = job.peaks.measure(programs)
        times = interleaved(runners, runs, job.tick)
        figures = {
            name: {
                "latency_p50": float(np.percentile(values, 50)),
                "latency_p90": float(np.percentile(values, 90)),
                **({"memory_peak": memory[name]} if name in memory else {}),
            }
            for name, values in times.items()
        }
        write_json(out / "bench.json", figures)
        from paredown.pipeline.run.image.summary.summary import ISLANDS, TIMES

        write_json(out / TIMES, {name: np.round(values, 4).tolist() for name, values in times.items()})

        costs = {name: island_times(name, integer, runs) for name in job.runtimes if islands(integer)}
        write_json(out / ISLANDS, costs)

    params = BenchParams(threads, job.machine.identity(), runs)
    reads = {"integer": job.integer} | ({"recovered": job.pruning.recover} if job.pruning else {})
    return Stage("bench", 4, params, {"trace": job.original, **stages}, build, reads)
