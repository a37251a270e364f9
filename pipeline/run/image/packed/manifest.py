"""What goes into a bundle: models and how to feed them, test vectors, the device's code, the manifest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.pipeline.bundle.packed.sbom import SBOM, bundle_sbom
from paredown.pipeline.bundle.places import portable
from paredown.pipeline.lower.runtimes import runtime
from paredown.pipeline.run.image.packed.sample import sample_licence, sample_members
from paredown.pipeline.run.image.summary.squantize_summary import SquantizeFacts
from paredown.pipeline.run.image.summary.summary import Summary
from paredown.pipeline.run.job import plain

if TYPE_CHECKING:
    from paredown.pipeline.run.image.job import ImageJob


def contents(job: ImageJob) -> tuple[dict[str, Any], dict[str, bytes], list[Any], list[Any]]:
    """Manifest and members of a job's bundle, and the weight codes and other parameters that its models hold.

    Args:
        job: whose stages have run.
    """
    task, recipe = job.task, job.recipe
    members = dict(task.bundle_members())
    members |= {file: path.read_bytes() for file, path in job.device_code(task).items()}
    models = [_model(job, each, members) for each in job.runtimes]
    licences = {"device code": "Apache-2.0", "weights and labels": "those of the recipe's files"}
    if sample := sample_members(job):
        members |= sample
        licences["sample"] = sample_licence(job)
    manifest = {
        "name": job.settings.name, "target": job.target.name, "card": plain(job.target),
        "app": recipe.app, "network": dict(task.network_id), "models": models,
        "preprocess": job.preprocess.to_dict(), "preprocess_hash": job.preprocess.hash,
        "recipe": plain(portable(recipe)), "metric": asdict(job.metric),
        "test": {"images": job.images, "fingerprint": job.test.fingerprint()},
        "figures": [figure.to_dict() for figure in Summary(job).stage_figures()],
        "versions": dict(job.machine.versions),
        "licences": licences,
    }  # fmt: skip
    members[SBOM] = bundle_sbom(manifest, members)
    graphs = [job.integer_graph(stage) for stage in dict.fromkeys(job.integers.values())]
    weights = [weight for graph in graphs for weight in graph.weights]
    return manifest, members, weights, [layer for graph in graphs for layer in graph.layer_parameters]


def byte_ledger(job: ImageJob, bundle: Path) -> SquantizeFacts:
    """What sparse low-bit codes are worth in a bundle.

    Args:
        job: whose stages have run, with a SQuantizer pass.
        bundle: the file.
    """
    from paredown.pipeline.bundle.archive import unpack
    from paredown.pipeline.bundle.manifest import wire_bytes
    from paredown.pipeline.bundle.packed.ledger import ledger
    from paredown.pipeline.bundle.packed.packing import pack_program

    squantizing, integer = job.squantizing, job.integer_graph()
    assert squantizing is not None
    trained = [name for name, stage in job.integers.items() if stage is job.integer]
    programs = {name: job.program(job.lower[name]) for name in trained}
    layers = integer.weights, integer.layer_parameters
    wire = {name: len(pack_program(program, *layers)) for name, program in programs.items()}
    together = sum(wire_bytes(unpack(bundle).manifest).values())
    rows = ledger(job.graph(), integer)
    sizes = {name: len(program) for name, program in programs.items()}
    pays = {str(name): runtime.pays for name, runtime in job.target.runtimes.items()}
    buys = {name: (pays[name].zeros.buys, pays[name].low_bits.buys) for name in programs}
    return SquantizeFacts(rows, squantizing.history(), squantizing.state_bytes(), sizes, wire, together, buys)


def _model(job: ImageJob, name: str, members: dict[str, bytes]) -> dict[str, Any]:
    """A runtime's entry in the manifest; its program and its test vectors become members."""
    from paredown.pipeline.bundle.vectors import expected, expected_floats

    file = f"model{runtime(name).suffix}"
    members[file] = job.program(job.lower[name])
    entry: dict[str, Any] = {"runtime": name, "file": file, "layout": "nchw"}
    stage = job.integers.get(name)
    vectors = "vectors" if stage is job.integer else f"vectors-{name}"
    if stage is None:
        graph = job.graph(job.original)
        made = expected_floats(graph, job.integer_graph().input.out)
        entry |= {
            "dtype": "float32", "input": _real(graph.nodes[0]),
            "outputs": [_real(graph[output]) for output in graph.outputs],
        }  # fmt: skip
    else:
        integer = job.integer_graph(stage)
        made = expected(integer)
        entry |= {
            "dtype": "int8", "input": _affine(integer.input),
            "outputs": [_affine(integer[output]) for output in integer.outputs],
        }  # fmt: skip
    members[f"{vectors}.json"], members[f"{vectors}.bin"] = made
    return entry | {"vectors": vectors}


def _real(node: Any) -> dict[str, Any]:
    return {"name": node.name, "shape": [1, *node.shape[1:]], "scale": 1.0, "zero_point": 0}


def _affine(node: Any) -> dict[str, Any]:
    return {
        "name": node.name, "shape": list(node.shape),
        "scale": node.out.scale, "zero_point": node.out.zero_point,
    }  # fmt: skip
