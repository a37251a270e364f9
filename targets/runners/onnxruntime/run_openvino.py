"""Runs an .onnx with OpenVINO: `python3 -m paredown.targets.runners.onnxruntime.run_openvino`.

For a device: numpy and openvino. The same command line, output file and JSON as
`targets/runners/run_litert.py`.
"""

from __future__ import annotations

import sys

from paredown.targets.runners.onnxruntime.openvino import Runner
from paredown.targets.runners.run_litert import command


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status is the errors' own."""
    return command("openvino", Runner, ".onnx", arguments)


if __name__ == "__main__":
    sys.exit(main())
