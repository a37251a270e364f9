"""Latency, measured: a table of one-layer programs on the target's own runtime, and a cost made of it.

What is measured and what is not (our design): every layer of the unpruned network, and the same layer at a
few of its allowed widths (`LatencyTable.points` per axis, the full and the narrowest among them), as an int8
program of that one layer, one thread; fewer where a runtime takes seconds to make a program. From each time
the cost of a call is subtracted, which is measured with an activation repeated once and nine times. Between
these widths a layer's time is interpolated bilinearly. Layers without weights are measured at two widths, for
they follow the number of values; reshapes and permutes only whole. An addition or concatenation reads one
tensor several times. A network is the sum of its layers and one call.

A table is kept per card, runtime, version of its package, and machine; what it holds is not measured again.
On an emulated board there are no times: its tables hold millions of instructions, and say so.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paredown.pipeline.compress.allocate.cost import Cost, CostTerm, Count, Widths
from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.device.executor import Executor
from paredown.pipeline.device.latency.layer_times import LayerMeasure, times_here, times_there
from paredown.pipeline.device.latency.layers import LayerShape, LayerTime, layers
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.lower.runtimes import runtime
from paredown.pipeline.store.store import canonical_json, write_atomic
from paredown.targets.cards.card import Target
from paredown.targets.errors import DeviceError, InputError
from paredown.targets.host.host import Machine, package_versions, this_machine

#: Times layers: milliseconds of each, without the cost of a call; a device's transport can bring its own.
Measure = Callable[[Sequence[LayerShape]], dict[LayerShape, float]]
Tick = Callable[[int, int], None]

FORMAT = 1
COUNTED = "million instructions"  # what an emulated board's tables hold
POINTS, CHUNK = 8, 24  # widths that are measured per axis; programs that are loaded and timed together
SLOW = {"executorch": (3, 6)}  # the same where lowering one layer takes seconds


class LatencyTable:
    """Times of layers on one device and runtime.

    Args:
        facts: whose times these are: card, runtime, version, machine.
        path: where they are kept; None = nowhere.
        measure: measures what is missing; None = nothing can be measured.
        points: how many widths to measure per axis of a layer.
        chunk: how many layers to measure before what is known is kept.
        tick: progress: layers measured, of how many.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        path: Path | None = None,
        measure: Measure | None = None,
        points: int = POINTS,
        chunk: int = CHUNK,
        tick: Tick | None = None,
    ) -> None:
        """Reads what is there. A file that is damaged, or of other facts, is as good as none."""
        self.facts, self.path, self.measure = dict(facts), path, measure
        self.points, self.chunk, self.tick = points, chunk, tick
        self.times: dict[LayerShape, float] = {}
        if path is not None and path.is_file():
            try:
                found, times = read_table(path)
            except InputError:
                return
            if found == self.facts:
                self.times = times

    def need(self, shapes: Sequence[LayerShape]) -> None:
        """Measures those of the layers that are not in the table yet, and keeps them as it goes.

        Raises:
            DeviceError: they cannot be measured from here.
        """
        missing = [shape for shape in dict.fromkeys(shapes) if shape not in self.times]
        if not missing:
            return
        if self.measure is None:
            raise DeviceError(
                f"{len(missing)} layers of this network are not in its latency table",
                where=f"target {self.facts.get('card')}",
                hint="measure them on the device, or give a budget on macs or bytes",
            )
        missing.sort(key=lambda shape: shape.work)  # so that alike times are measured side by side
        for start in range(0, len(missing), self.chunk):
            part = missing[start : start + self.chunk]
            measured = self.measure(part)
            self.times |= {shape: max(float(measured[shape]), 0.0) for shape in part}
            if self.path is not None:
                write_atomic(self.path, self.dump())
            if self.tick is not None:
                self.tick(start + len(part), len(missing))

    def dump(self) -> bytes:
        """The table as a file."""
        rows = [{"layer": shape.to_dict(), "ms": ms} for shape, ms in self.times.items()]
        rows.sort(key=canonical_json)
        text = {"format": FORMAT, "facts": self.facts, "layers": rows}
        return (json.dumps(text, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()

    def __getitem__(self, shape: LayerShape) -> float:
        return self.times[shape]


def read_table(path: Path) -> tuple[dict[str, Any], dict[LayerShape, float]]:
    """Reads a file that `LatencyTable.dump` wrote: its facts and its times.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}")
        times = {LayerShape.from_dict(row["layer"]): float(row["ms"]) for row in data["layers"]}
        if not all(math.isfinite(ms) and ms >= 0 for ms in times.values()):
            raise ValueError("a time is no number of milliseconds")
        return dict(data["facts"]), times
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=path) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"not a latency table ({type(error).__name__}: {error})", where=path) from error


def table_for(
    target: Target, name: str, root: Path, *, file: Path | None = None, tick: Tick | None = None
) -> LatencyTable:
    """The latency table of a target.

    Args:
        target: its card.
        name: of the runtime.
        root: the store's folder; tables are kept in `latency/` within.
        file: a table that was measured on the target, for one that cannot be reached from here.
        tick: progress: layers measured, of how many.

    Raises:
        UsageError: an unknown runtime, or one that the target does not have.
        InputError: the file is damaged, or of another target or runtime.
        DeviceError: the target cannot be reached and there is no file.
    """
    _known(target, name)
    points, chunk = SLOW.get(name, (POINTS, CHUNK))
    if file is not None:
        facts, times = read_table(file)
        for key, wanted in (("card", target.name), ("runtime", name)):
            if facts.get(key) != wanted:
                raise InputError(f"a latency table of {key} {facts.get(key)}, not {wanted}", where=file)
        table = LatencyTable(facts, points=points)
        table.times = times
        return table
    if target.reach.kind != "local":
        raise DeviceError(
            "a latency budget needs a latency table that was measured on the device",
            where=f"target {target.name}",
            hint=f"`paredown cost --target {target.name} --device ADDRESS` makes one for prune.latency_table",
        )
    facts = _facts(target, name, this_machine())
    key = hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:16]
    path = root / "latency" / f"{target.name}-{name}-{key}.json"
    return LatencyTable(facts, path, LayerMeasure(name, times_here), points, chunk, tick)


def device_table(
    target: Target, name: str, path: Path, executor: Executor, *, tick: Tick | None = None
) -> LatencyTable:
    """A latency table that is measured on a device, and kept in a file for `prune.latency_table`.

    Args:
        target: the card that the table is for.
        name: of the runtime.
        path: of the file; what it holds of the same device is not measured again.
        executor: runs programs there.
        tick: progress: layers measured, of how many.

    Raises:
        UsageError: an unknown runtime, or one that the target does not have.
    """
    _known(target, name)
    points, chunk = SLOW.get(name, (POINTS, CHUNK))
    facts = _facts(target, name, executor.machine) | {"device": executor.machine.name}
    if executor.emulated:
        facts["unit"] = COUNTED
    measure = LayerMeasure(name, lambda kind, programs: times_there(executor, kind, programs))
    return LatencyTable(facts, path, measure, points, chunk, tick)


def _known(target: Target, name: str) -> None:
    """Checks that the runtime exists, and the target has it."""
    runtime(name)
    target.runtime(name)


def _facts(target: Target, name: str, machine: Machine) -> dict[str, Any]:
    """What decides the times of a table."""
    package = runtime(name).package
    return {
        "card": target.name, "runtime": name, "package": package,
        "version": dict(package_versions((package,))).get(package, "not installed"),
        "cpu": machine.cpu, "cores": machine.cores, "arch": machine.arch, "system": machine.system,
        "threads": 1,
    }  # fmt: skip


# -- the cost ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """A layer's time over its channels: exact where measured, bilinear between."""

    layer: LayerTime
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    def __call__(self, chosen: Widths) -> float:
        made = self.layer.rows.at(chosen)
        if operation(self.layer.whole.kind).moves:
            return self.ms[0][0] * made / self.rows[0]
        read = self.layer.columns.at(chosen) if self.layer.columns is not None else 0.0
        (i, u), (j, v) = _between(self.rows, made), _between(self.columns, read)
        corners = ((i, 1 - u), (i + 1, u)), ((j, 1 - v), (j + 1, v))
        return sum(a * b * self.ms[r][c] for (r, a), (c, b) in itertools.product(*corners) if a * b)


def latency(
    graph: Graph,
    groups: Sequence[Group],
    table: LatencyTable,
    choices: Mapping[str, Sequence[int]],
) -> Cost:
    """The predicted milliseconds of one inference; measures what the table does not have.

    Shares of the unpruned network's time are what to rely on: a sum of layers that were timed alone need not
    be the time of the whole.

    Args:
        graph: the whole network.
        groups: those of `couple(graph)`.
        table: of the target and runtime.
        choices: group -> its allowed widths, the full one among them; the cost is known between their ends.

    Raises:
        DeviceError: something is missing and cannot be measured from here.
    """
    full = {group.name: group.units for group in groups}
    wide = {name: tuple(choices.get(name, (units,))) for name, units in full.items()}
    found = layers(graph, groups)
    axes = [_axes(layer, wide, table.points) for layer in found]
    table.need([layer.shape(r, c) for layer, (rows, columns) in zip(found, axes, strict=True)
                for r, c in itertools.product(rows, columns)])  # fmt: skip
    parts = []
    for layer, (rows, columns) in zip(found, axes, strict=True):
        ms = tuple(tuple(table[layer.shape(r, c)] for c in columns) for r in rows)
        parts.append(CostTerm(layer.name, layer.groups, _Grid(layer, rows, columns, ms), False))
    return Cost("latency", table.facts.get("unit", "ms"), full, tuple(parts))


def _axes(
    layer: LayerTime, choices: Mapping[str, Sequence[int]], points: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    kind = operation(layer.whole.kind)
    if kind.moves or layer.whole.kind == "input":
        return (round(layer.rows.at({name: max(found) for name, found in choices.items()})),), (0,)
    if not kind.weighted:
        points = min(points, 2)  # their time is a straight line over the number of values
    columns = (0,) if layer.columns is None else _axis(layer.columns, choices, points)
    return _axis(layer.rows, choices, points), columns


def _axis(count: Count, choices: Mapping[str, Sequence[int]], points: int) -> tuple[int, ...]:
    """A few of the channel counts that these choices can give, rising, both ends among them."""
    sums = {count.constant}
    for name, each in count.per_unit.items():
        sums = {a + each * width for a in sums for width in choices[name]}
        if len(sums) > 4096:  # many groups in one tensor: any of the sums will do for the middle
            ordered = sorted(sums)
            sums = {ordered[i] for i in np.linspace(0, len(ordered) - 1, 512).astype(int)}
    exact = sorted({round(value) for value in sums})
    targets = np.linspace(exact[0], exact[-1], min(points, len(exact)))
    return tuple(sorted({min(exact, key=lambda value: abs(value - target)) for target in targets}))


def _between(axis: tuple[int, ...], value: float) -> tuple[int, float]:
    """The interval of an axis that a value is in, and how far along it; beyond the ends, the ends."""
    if len(axis) == 1 or value <= axis[0]:
        return 0, 0.0
    if value >= axis[-1]:
        return len(axis) - 2, 1.0
    index = bisect.bisect_right(axis, value) - 1
    return index, (value - axis[index]) / (axis[index + 1] - axis[index])
