"""The stage that makes a bundle's labelled sample, and scores the programs on it."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.calibration.sample.choose import COUNT, listing, sample_files
from paredown.calibration.sample.records import MEMBER, PREFIX, SampleList, SampleSet
from paredown.pipeline.recipe.schema import EMBEDDED_DATA
from paredown.pipeline.recipe.task import APPS, Packed, arrays_of, load_scorer
from paredown.pipeline.run.image.read import predictor
from paredown.pipeline.run.params import SampleParams
from paredown.pipeline.store.stage import Inputs, Stage

if TYPE_CHECKING:
    from paredown.calibration.datasets import Dataset
    from paredown.pipeline.run.image.job import ImageJob


NOTHING = "nothing"  # instead of a sample, where no image fits
SCORES = 256  # bytes of a sample's scores and of its lines in the manifest, compressed


def sample_stage(job: ImageJob) -> Stage | None:
    """Makes the stage; its artefact is the members.

    Args:
        job: whose programs are known.

    Returns:
        None where the recipe wants none, the data come with paredown, or the app is the user's own code.
    """
    recipe, count = job.recipe, _wanted(job)
    if not count:
        return None

    def build(out: Path, inputs: Inputs) -> None:
        members = sample_files(job.test, job.images, count, arrays_of(job.task), sample_licence(job))
        for name, data in (_scored(job, members, inputs) or {NOTHING: b""}).items():
            (out / name).write_bytes(data)

    rule = getattr(job.task, "score_rule", None)
    params = SampleParams(
        count, recipe.app, job.preprocess.hash, sample_licence(job), job.machine.identity(), rule
    )
    inputs: dict[str, Stage | str] = {**job.lower, "data": job.test.fingerprint()}
    return Stage("sample", 1, params, inputs, build, {f"graph-{n}": s for n, s in job.integers.items()})


def sample_bytes(job: ImageJob, data: Dataset) -> int:
    """About how many bytes a bundle gets by a sample of these images."""
    count = _wanted(job)
    if not count:
        return 0
    members = sample_files(data, len(data), count, arrays_of(job.task), sample_licence(job))
    if not members:
        return 0
    listed = members.pop(MEMBER)  # still without scores
    return sum(map(len, members.values())) + len(zlib.compress(listed)) + SCORES


def _wanted(job: ImageJob) -> int:
    """How many images; 0 where the data come with paredown, or the app is the user's own code."""
    recipe = job.recipe
    if recipe.data.format in EMBEDDED_DATA or recipe.app not in APPS:
        return 0
    return COUNT if recipe.data.sample is None else recipe.data.sample


def sample_licence(job: ImageJob) -> str:
    """Under what others may use these images and labels."""
    return job.recipe.about.licence or "that of the recipe's test data"


def sample_members(job: ImageJob) -> dict[str, bytes]:
    """The members of a job's bundle that are its sample; none without one, or where nothing fits."""
    if job.sample is None:
        return {}
    found = sorted(job.path(job.sample).iterdir())
    return {path.name: path.read_bytes() for path in found if path.name.startswith((MEMBER, PREFIX))}


def _scored(job: ImageJob, members: dict[str, bytes], inputs: Inputs) -> dict[str, bytes]:
    """The same with the scores of each runtime's program on these images."""
    if not members:
        return {}
    told = job.task.bundle_members()
    names = tuple(told["labels.txt"].decode().splitlines())
    scorer = load_scorer(job.recipe.app, Packed(json.loads(told["app.json"]), names, job.preprocess))
    if scorer is None:
        return {}
    document: dict[str, Any] = json.loads(members[MEMBER])
    listed = SampleList.model_validate(document)
    data = SampleSet(listed, members, names, "the sample", scorer.with_arrays)
    scores = {}
    for name in job.runtimes:
        found = scorer.score(predictor(name, inputs[name], inputs.get(f"graph-{name}")), data)
        scores[name] = {metric: value for metric, value in found.items() if math.isfinite(value)}
    return members | {MEMBER: listing(document["licence"], document["images"], scores)}
