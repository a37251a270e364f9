"""Test vectors: does a program still give the codes, or the real numbers, that its bundle carries?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.bundle.manifest import Model
from paredown.pipeline.device.validate.findings import Findings
from paredown.pipeline.report.checks import Check
from paredown.targets.devices.programs import Outputs, Program
from paredown.targets.errors import InputError

Codes = NDArray[np.int8]
Floats = NDArray[np.float32]

#: Float kernels add in an order of their own: of the largest output.
FLOAT_TOLERANCE = 1e-3


def check_vectors(of: Findings, model: Model, program: Program) -> None:
    """Runs the bundle's test inputs, and judges what comes back code by code.

    Args:
        of: hears of it.
        model: whose vectors these are.
        program: of the model.

    Raises:
        InputError: the vectors do not fit the model.
        DeviceError: the device failed on the way.
    """
    from paredown.pipeline.bundle.vectors import unpacked

    bundle, name = of.bundle, model.vectors
    try:
        facts, real = bundle.json(f"{name}.json"), bundle.members.get(f"{name}.in", b"")
        inputs, expected = unpacked(facts, bundle.read(f"{name}.bin"), real)
        if inputs.shape[1:] != model.input.shape[1:]:
            raise ValueError(f"inputs of shape {inputs.shape[1:]}")
        if [e.shape[1:] for e in expected] != [o.shape[1:] for o in model.outputs]:
            raise ValueError("outputs of other shapes")
    except (KeyError, TypeError, ValueError) as error:
        what = f"the test vectors do not fit {model.file}: {error}"
        raise InputError(what, where=bundle.path) from error
    found = of.executor.run(program, inputs, of.tick)
    judge = _codes_apart if model.dtype == "int8" else _floats_apart
    if not of.executor.exact:
        judge, expected = _reference_apart, []
    elif _reference_kernels(facts, found):
        detail = f"outputs of {len(inputs)} inputs are those of the runtime's reference kernels"
        of.checks.append(Check(f"{program.runtime} vectors", True, detail))
        return
    of.checks.append(judge(of, program, inputs, expected, found))


def _codes_apart(
    of: Findings, program: Program, inputs: Codes, expected: Sequence[Codes], found: Outputs
) -> Check:
    """Compares codes; where too many differ, the first operation that does is looked for."""
    from paredown.pipeline.lower.parity import Difference, difference

    apart = Difference()
    for index, sample in enumerate(found):
        for ours, theirs in zip(expected, sample, strict=True):
            apart += difference(ours[index : index + 1], theirs)
    name = program.runtime
    of.figure("parity", name, "parity_lsb", apart.max_lsb, "LSB")
    known = (of.known(name, metric) or 0 for metric in ("parity_lsb", "parity_allowed"))
    passed = apart.max_lsb <= max(known)
    detail = f"{apart.differing} of {apart.values} codes differ, by up to {apart.max_lsb} LSB"
    if not passed and name == "litert" and not of.executor.local:
        detail += f"; {_ladder(of, program, inputs)}"
    return Check(f"{name} vectors", passed, detail)


def _ladder(of: Findings, program: Program, inputs: Codes) -> str:
    """The first operation in which the device differs from this machine."""
    from paredown.pipeline.device.executor import Here
    from paredown.pipeline.lower.litert.slices import exposed, first_difference

    part = exposed(program.data)
    every = replace(program, data=part.data, outputs=part.outputs)
    ours, theirs = (where.run(every, inputs[:1], of.tick)[0] for where in (Here(), of.executor))
    first = first_difference(part.names, ours, theirs)
    return f"first at {first}" if first else "this machine differs in the same way: another model?"


def _reference_apart(
    of: Findings, program: Program, inputs: Codes, expected: Sequence[Codes], found: Outputs
) -> Check:
    """Compares with TFLite's reference kernels, where the interpreter's kernels are those."""
    from paredown.targets.runners.litert import Runner

    runner = Runner(program.data, 1, program.where, reference=True)
    pairs = zip(inputs, found, strict=True)
    equal = all(np.array_equal(a, b) for x, y in pairs for a, b in zip(runner(x[None]), y, strict=True))
    words = "equal" if equal else "DIFFER from"
    detail = f"outputs of {len(inputs)} inputs {words} those of TFLite's reference kernels"
    return Check(f"{program.runtime} vectors", equal, detail)


def _floats_apart(
    of: Findings, program: Program, inputs: Floats, expected: Sequence[Floats], found: Outputs
) -> Check:
    """Compares real numbers with the tolerance that sums in another order need."""
    worst = 0.0
    for output, wanted in enumerate(expected):
        given = np.concatenate([sample[output] for sample in found])
        worst = max(worst, float(np.abs(given - wanted).max() / max(np.abs(wanted).max(), 1e-9)))
    of.figure("parity", program.runtime, "parity_relative", worst, "1")
    detail = f"float32, apart by {worst:.1e} of the largest output at most"
    return Check(f"{program.runtime} vectors", worst <= FLOAT_TOLERANCE, detail)


def _reference_kernels(facts: Mapping[str, Any], found: Outputs) -> bool:
    """Whether a finished program gave the very codes of its runtime's reference kernels."""
    from paredown.pipeline.bundle.vectors import digest

    if "also" not in facts:
        return False
    return bool(facts["also"] == digest([np.concatenate(each) for each in zip(*found, strict=True)]))
