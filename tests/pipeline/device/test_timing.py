"""Peak memory is that of a program alone, whichever others its process had before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.device.timing import Peaks, peak_memory
from paredown.targets.errors import DeviceError

GOLDEN = Path(__file__).parents[2] / "golden" / "format-4" / "detector.paredown"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, np.ndarray]:
    """A LiteRT program, and an input."""
    bundle = unpack(GOLDEN)
    model = next(each for each in bundle.manifest.programs if each.runtime == "litert")
    path = tmp_path_factory.mktemp("program") / "model.tflite"
    path.write_bytes(bundle.members[model.file])
    return "litert", path, np.zeros(tuple(model.input.shape), np.dtype(model.dtype))


def test_programs_of_one_process_do_not_add_up(program):
    alone = peak_memory({"one": program})["one"]
    together = peak_memory({f"{number}": program for number in range(4)})
    assert list(together) == ["0", "1", "2", "3"]
    assert 10 < alone < 500 and all(abs(peak - alone) < 0.1 * alone for peak in together.values())


def test_a_program_that_fails_is_named_and_what_waits_is_ended(program, tmp_path):
    name, _, x = program
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"no program")
    peaks = Peaks(["litert"])
    waiting = peaks._waiting["litert"]
    with pytest.raises(DeviceError, match="the second program fails in a process of its own"):
        peaks.measure({"first": program, "second": (name, bad, x)})
    assert waiting.returncode not in (0, None)
    peaks = Peaks(["litert"])
    waiting = peaks._waiting["litert"]
    peaks.close()
    assert waiting.returncode is not None
