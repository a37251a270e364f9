"""Programs of a bundle, and figures of what ran them."""

from __future__ import annotations

from paredown.pipeline.bundle.archive import Bundle
from paredown.pipeline.bundle.manifest import Model
from paredown.pipeline.device.executor import Executor
from paredown.pipeline.report.figures import Tag
from paredown.targets.devices.programs import Program, Timing
from paredown.targets.runners.litert import TensorInfo


def bundle_program(bundle: Bundle, model: Model) -> Program:
    """A model of a bundle, ready to be run.

    Raises:
        InputError: the bundle lacks it, or it is no program of its runtime.
    """
    from paredown.pipeline.lower.executorch.verify.plan import check_program

    outputs = tuple(TensorInfo(tuple(output.shape), model.dtype) for output in model.outputs)
    source = TensorInfo(tuple(model.input.shape), model.dtype)
    threads, where = bundle.manifest.recipe.bench.threads, f"{bundle.path}:{model.file}"
    data = bundle.read(model.file)
    if str(model.runtime) == "executorch":  # here, so that boards get none that was not looked at
        check_program(data, where)
    return Program(str(model.runtime), data, source, outputs, threads, where)


def tag_of(executor: Executor, smoke: bool = False) -> Tag:
    """What figures of an executor are."""
    if smoke:
        return "smoke"
    return "simulated" if executor.emulated else "measured"


def time_figures(timing: Timing, emulated: bool) -> list[tuple[str, float, str]]:
    """Metric, value and unit of what was timed; of an emulated device only what it counted."""
    if emulated:
        counts = timing.instructions or {}
        return [("instructions", float(counts["total"]), "1")] if counts else []
    found = [("latency_p50", timing.percentile(50), "ms"), ("latency_p90", timing.percentile(90), "ms")]
    if timing.memory_mib is not None:
        found.append(("memory_peak", timing.memory_mib, "MiB"))
    return found
