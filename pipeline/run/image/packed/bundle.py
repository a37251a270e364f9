"""The stage that makes the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from paredown.pipeline.run.job import BUNDLE
from paredown.pipeline.store.files import write_json
from paredown.pipeline.store.stage import Inputs, Stage

if TYPE_CHECKING:
    from paredown.pipeline.run.image.job import ImageJob


def bundle_stage(job: ImageJob) -> Stage:
    """Makes the stage that packs what ships, with how it was judged."""
    made = (job.integers, job.lower, job.baseline, job.parity, job.scores)
    told = (job.originals, job.rejected)  # their sizes stand in the manifest
    inputs = {stage.name: stage for group in (*made, *told) for stage in group.values()}
    if job.sample is not None:
        inputs[job.sample.name] = job.sample

    def build(out: Path, folders: Inputs) -> None:
        from paredown.pipeline.bundle.archive import pack
        from paredown.pipeline.run.image.packed.manifest import byte_ledger, contents

        (out / BUNDLE).write_bytes(pack(*contents(job)))
        if job.squantizing is not None:
            from paredown.pipeline.run.image.summary.summary import LEDGER

            write_json(out / LEDGER, byte_ledger(job, out / BUNDLE).to_dict())

    reads = {"trace": job.original, "integer": job.integer, "traced": job.trace}
    if job.pruning is not None:
        reads |= {"prune": job.pruning.prune, "recover": job.pruning.recover}
    params = job.bundle_params(job.task, machine=True)
    return Stage("bundle", 8, params, inputs, build, {n: s for n, s in reads.items() if s is not None})
