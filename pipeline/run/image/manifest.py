"""What goes into a bundle: models and how to feed them, test vectors, the device's code, the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from paredown.pipeline.lower.runtimes import runtime
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import Task
from paredown.pipeline.run.image.stages import Stages
from paredown.pipeline.run.image.summary import Results
from paredown.targets.cards.card import Target
from paredown.targets.own_code import own_code

#: What an app's code on the device imports of ours.
SHARED = (
    "__init__.py", "apps/__init__.py", "calibration/__init__.py", "calibration/preprocess.py",
    "targets/__init__.py", "targets/errors.py", "targets/runners/quiet.py", "targets/runners/vectors.py",
    "targets/runners/__init__.py", "targets/runners/expand.py", "targets/runners/litert.py",
    "targets/runners/prove.py",
    "targets/runners/unpacked.py",
)  # fmt: skip


def contents(
    name: str, recipe: Recipe, target: Target, task: Task, stages: Stages, results: Results
) -> tuple[dict[str, Any], dict[str, bytes], list[Any], list[Any]]:
    """Manifest and members of a run's bundle, and the weight codes and other parameters that its models hold.

    Args:
        name: of the recipe.
        recipe: resolved.
        target: the card.
        task: of the recipe's app.
        stages: which have run.
        results: their figures.
    """
    members = dict(task.bundle_members())
    members |= {file: path.read_bytes() for file, path in device_files(task).items()}
    models = [_model(stages, each, members) for each in stages.runtimes]
    manifest = {
        "name": name, "target": target.name, "card": plain(target),
        "app": recipe.app, "network": dict(task.network_id), "models": models,
        "preprocess": stages.preprocess.to_dict(), "preprocess_hash": stages.preprocess.hash,
        "recipe": plain(recipe),
        "test": {"images": stages.images, "fingerprint": stages.test.fingerprint()},
        "figures": [figure.to_dict() for figure in results.stage_figures()],
        "versions": dict(results.machine.versions),
        "licences": {"device code": "Apache-2.0", "weights and labels": "those of the recipe's files"},
    }  # fmt: skip
    graphs = [stages.integer_graph(stage) for stage in dict.fromkeys(stages.integers.values())]
    weights = [weight for graph in graphs for weight in graph.weights]
    return manifest, members, weights, [layer for graph in graphs for layer in graph.layer_parameters]


def device_files(task: Task) -> dict[str, Path]:
    """The app's device code, and the rooms below that it imports: name in the bundle -> file here."""
    return own_code(SHARED) | task.device_files()


def plain(model: BaseModel) -> dict[str, Any]:
    """A checked table as JSON has it."""
    return model.model_dump(mode="json", exclude_none=True)


def _model(stages: Stages, name: str, members: dict[str, bytes]) -> dict[str, Any]:
    """A runtime's entry in the manifest; its program and its test vectors become members."""
    from paredown.pipeline.bundle.vectors import expected, expected_floats

    file = f"model{runtime(name).suffix}"
    members[file] = stages.program(stages.lower[name])
    entry: dict[str, Any] = {"runtime": name, "file": file, "layout": "nchw"}
    stage = stages.integers.get(name)
    vectors = "vectors" if stage is stages.integer else f"vectors-{name}"
    if stage is None:
        graph = stages.graph(stages.original)
        made = expected_floats(graph, stages.integer_graph().input.out)
        entry |= {
            "dtype": "float32", "input": _real(graph.nodes[0]),
            "outputs": [_real(graph[output]) for output in graph.outputs],
        }  # fmt: skip
    else:
        integer = stages.integer_graph(stage)
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
