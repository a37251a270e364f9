"""The stages that draw: what a program finds, and where it is worst."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.pipeline.recipe.task import drawn_by, pictured_by
from paredown.pipeline.report.drop import read_details
from paredown.pipeline.run.image.read import predictor
from paredown.pipeline.run.job import PREVIEW
from paredown.pipeline.store.files import write_json
from paredown.pipeline.store.stage import Inputs, Stage

if TYPE_CHECKING:
    from paredown.pipeline.run.image.job import ImageJob


@dataclass(frozen=True)
class PreviewParams:
    """What draws the preview."""

    runtime: str


def preview_stage(job: ImageJob) -> Stage:
    """Makes the stage that draws what a runtime's program finds on test images."""
    name = job.runtimes[-1]

    def build(out: Path, inputs: Inputs) -> None:
        job.task.preview(predictor(name, inputs["program"], inputs.get("graph")), job.test, out / PREVIEW)

    inputs: dict[str, Stage | str] = {"program": job.lower[name], "data": job.test.fingerprint()}
    return Stage("preview", 1, PreviewParams(name), inputs, build, job.read(name))


def examples_stage(job: ImageJob) -> Stage | None:
    """Makes the stage that draws the worst test images; None of a task that draws none."""
    drawn, pictured, name = drawn_by(job.task), pictured_by(job.task), job.runtimes[-1]
    if drawn is None and pictured is None:
        return None

    def pictures(inputs: Inputs) -> Any:
        from paredown.pipeline.run.image.summary.examples import by_details, by_outputs

        if drawn is not None:
            return by_details(drawn)
        assert pictured is not None
        both = (
            predictor("fp32", inputs["original"], None),
            predictor(name, inputs["program"], inputs.get("graph")),
        )
        return by_outputs(pictured, both, job.preprocess)

    def build(out: Path, inputs: Inputs) -> None:
        from paredown.pipeline.run.image.summary.examples import examples
        from paredown.pipeline.run.image.summary.summary import EXAMPLES

        old, new = (read_details(inputs[each]).get("images", ()) for each in ("before", "after"))
        write_json(out / EXAMPLES, examples(old, new, job.test, pictures(inputs), name))

    inputs: dict[str, Stage | str] = {"before": job.scores["fp32"], "after": job.scores[name]}
    reads: dict[str, Stage] = {}
    if drawn is None:
        inputs |= {"original": job.original, "program": job.lower[name]}
        reads = job.read(name)
    inputs["data"] = job.test.fingerprint()
    return Stage("examples", 2, PreviewParams(name), inputs, build, reads)
