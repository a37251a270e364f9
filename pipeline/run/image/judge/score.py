"""The stage that scores a variant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from paredown.calibration.datasets import First
from paredown.pipeline.recipe.task import doubts_of
from paredown.pipeline.report.drop import write_scores
from paredown.pipeline.run.image.read import all_integers, in_batches, predictor
from paredown.pipeline.run.params import ScoreParams
from paredown.pipeline.store.files import write_json
from paredown.pipeline.store.stage import Inputs, Stage

if TYPE_CHECKING:
    from paredown.pipeline.run.image.job import ImageJob

DOUBTS = "doubts.json"  # of the original's score


def score_stage(job: ImageJob, variant: str) -> Stage:
    """Makes the stage that scores a variant on the test images."""
    params = ScoreParams(
        variant, job.machine.identity(), job.images, job.preprocess.hash, dict(job.task.network_id),
        rule=getattr(job.task, "score_rule", None),
    )  # fmt: skip

    def build(out: Path, inputs: Inputs) -> None:
        predict = predictor(variant, inputs["program"], inputs.get("graph"))
        if variant == "integer" and all_integers(inputs["program"]):
            predict = in_batches(predict, First(job.test, job.images), job.preprocess)
        scores = job.task.score(predict, First(job.test, job.images), job.tick)
        write_scores(out, scores)
        if variant == "fp32" and not job.smoke:
            write_json(out / DOUBTS, doubts_of(job.task, predict, scores))

    inputs: dict[str, Stage | str] = {"program": job.maker(variant), "data": job.test.fingerprint()}
    name = f"score-{variant}{job.instead(variant)}"
    return Stage(name, 4, params, inputs, build, job.read(variant))  # 4: with details for the report
