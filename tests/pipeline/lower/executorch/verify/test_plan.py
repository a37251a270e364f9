"""A program's own facts: what ExecuTorch makes passes, and each thing that a runtime trusts is looked at."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from executorch.exir import schema as exir
from lowering_networks import Builder, random_graph, randomized
from pte_files import closed, opened
from torch import nn

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.executorch.program import export_float, export_integer, load
from paredown.pipeline.lower.executorch.verify.plan import check_program
from paredown.pipeline.lower.executorch.writer.delegate import written
from paredown.targets.errors import InputError

Change = Callable[[exir.Program], None]


@pytest.fixture(scope="module")
def program() -> bytes:
    return written(random_graph(3, expose=True))


@pytest.fixture(scope="module")
def exported() -> bytes:
    """By the exporter, with a softmax along an axis that the delegate does not take: operators beside it."""
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Softmax(1), nn.LogSigmoid())
    return export_float(trace(randomized(layers), (1, 3, 8, 8))).data


def test_what_executorch_makes_is_a_program(program, exported):
    b = Builder(3, scale=0.5)
    graph = b.graph(b.leaky(b.conv("input", 4, scale=0.25, clamp="relu"), 0.125, 2.0))
    plan = opened(exported).program.execution_plan[0]
    assert plan.operators and plan.delegates  # else it would say little
    for data in (program, exported, written(graph), export_integer(graph).data):
        check_program(data)


@pytest.mark.parametrize("part", [0, 3, 40, 0.1, 0.5, 0.9])
def test_one_that_is_cut_off_says_so(program, part):
    cut = part if isinstance(part, int) else int(part * len(program))
    with pytest.raises(InputError, match=r"x\.pte: not an ExecuTorch program: .*; make it again"):
        check_program(program[:cut], "x.pte")


def first_tensor(program: exir.Program, constant: bool = False) -> exir.Tensor:
    values = [value.val for value in program.execution_plan[0].values]
    return next(v for v in values if isinstance(v, exir.Tensor) and bool(v.data_buffer_idx) is constant)


def call(program: exir.Program, kind: type) -> exir.KernelCall:
    steps = program.execution_plan[0].chains[0].instructions
    return next(step.instr_args for step in steps if isinstance(step.instr_args, kind))


def set_to(path: str, value: object) -> Change:
    """Sets a field of the first method, named by attributes and numbers."""

    def change(program: exir.Program) -> None:
        *way, last = path.split(".")
        found = program.execution_plan[0]
        for step in way:
            found = found[int(step)] if step.isdigit() else getattr(found, step)
        if last.isdigit():
            found[int(last)] = value
        else:
            setattr(found, last, value)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_to("inputs.0", 9999), "inputs of method 'forward' refers to number 9999 of"),
        (set_to("outputs.0", -1), "outputs of method 'forward' refers to number -1 of"),
        (set_to("non_const_buffer_sizes.1", 8), "does not fit into its memory"),
        (set_to("non_const_buffer_sizes.1", 1 << 62), "wants 4,611,686,018,427,387,904 bytes of memory"),
        (lambda p: setattr(first_tensor(p), "sizes", [1, 3, 60000, 60000]), "does not fit into its memory"),
        (lambda p: setattr(first_tensor(p), "sizes", [1, -3, 8, 8]), "has a shape that is none"),
        (lambda p: setattr(first_tensor(p), "dim_order", [0, 0, 1, 2]), "has a shape that is none"),
        (lambda p: setattr(first_tensor(p).allocation_info, "memory_id", 7), "refers to number 7 of 2"),
        (lambda p: setattr(call(p, exir.KernelCall), "op_index", 50), "KernelCall refers to number 50 of"),
        (lambda p: call(p, exir.KernelCall).args.append(9999), "KernelCall refers to number 9999 of"),
        (lambda p: setattr(call(p, exir.DelegateCall), "delegate_index", 3), "refers to number 3 of"),
        (lambda p: call(p, exir.DelegateCall).args.clear(), "a call of XNNPACK passes 0 tensors"),
    ],
)  # fmt: skip
def test_what_a_runtime_takes_for_granted_is_looked_at(exported, change, said):
    file = opened(exported)
    change(file.program)
    with pytest.raises(InputError) as found:
        check_program(closed(file), "x.pte")
    assert said in str(found.value)


def test_a_runner_refuses_before_the_runtime_sees_it(exported):
    file = opened(exported)
    set_to("inputs.0", 9999)(file.program)
    with pytest.raises(InputError, match="refers to number 9999"):
        load(closed(file))
