"""Plain evaluation: every point by itself, with the whole masked network on the whole sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.compress.coupling.surgery import mask
from paredown.pipeline.compress.sensitivity.experiment import Experiment, Outputs
from paredown.pipeline.compress.sensitivity.forward import Engine, images
from paredown.pipeline.compress.sensitivity.sensitivity import Point, Sensitivity
from paredown.pipeline.graph.graph import Graph


def plain(asked: Experiment) -> Sensitivity:
    """Measures every point so."""
    chunk, points = asked.images_at_a_time, list(asked.points())
    baseline = Point(0, *asked.score(_outputs(asked.graph, chunk, asked.inputs)))
    found = {}
    for index, (group, width) in enumerate(points):
        masked = mask(asked.graph, asked.groups, {group.name: asked.kept(group.name, width)})
        found[group.name, width] = Point(width, *asked.score(_outputs(masked, chunk, asked.inputs)))
        asked.report((index + 1) * len(asked.inputs), len(points))
    return asked.assemble(baseline, found)


def _outputs(graph: Graph, chunk: int, inputs: NDArray[np.float32]) -> list[Outputs]:
    engine, found = Engine(graph, chunk), list[Outputs]()
    for x, count in engine.chunks(inputs):
        found += images(engine.outputs(engine.run(x, frozenset())), count)
    return found
