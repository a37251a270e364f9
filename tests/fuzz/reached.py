"""How much of a parser its damaged files reach: lines, of the functions that any of them enters."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from coverage import Coverage

from tests.fuzz.harness import Target, attempts

ROOT = Path(__file__).parents[2]
ROOMS = [str(ROOT / room) for room in ("apps", "calibration", "pipeline", "targets")]


def reached(target: Target, numbers: Sequence[int]) -> tuple[int, int]:
    """Tries inputs and looks where they come.

    Returns:
        Lines that were executed, and all lines of the functions in which any was. What other processes
        execute is not seen.
    """
    list(attempts(target, numbers[:1]))  # imports: the lines of modules are no parser's
    tracing = sys.gettrace()
    measured = Coverage(data_file=None, source=ROOMS, config_file=False)
    with measured.collect():
        list(attempts(target, numbers))
    sys.settrace(tracing)
    data = measured.get_data()
    executed = whole = 0
    for file in data.measured_files():
        if lines := set(data.lines(file) or ()):
            statements = set(measured.analysis2(file)[1])
            entered = _entered(Path(file), lines) & statements
            executed, whole = executed + len(entered & lines), whole + len(entered)
    return executed, whole


def _entered(file: Path, lines: set[int]) -> set[int]:
    """The lines of all functions of a file of which some line is among these."""
    found = set[int]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = set(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
            found |= body if body & lines else set()
    return found
