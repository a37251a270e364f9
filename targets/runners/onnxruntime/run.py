"""Runs an .onnx on samples from a file and times one: `python3 -m paredown.targets.runners.onnxruntime.run`.

For a device: numpy and onnxruntime. The same command line, output file and JSON as
`targets/runners/run_litert.py`.
"""

from __future__ import annotations

import sys

from paredown.targets.runners.onnxruntime.runner import Runner
from paredown.targets.runners.run_litert import command


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status is the errors' own."""
    return command("onnxruntime", Runner, ".onnx", arguments)


if __name__ == "__main__":
    sys.exit(main())
