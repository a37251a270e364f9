"""The keys of known stages are those that users have on their disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def test_no_stage_key_of_a_known_recipe_has_changed() -> None:
    """One that changes throws away what was trained. Where that is meant: raise the stage's version, and
    make the keys anew with `python tests/golden/keys.py`."""
    done = subprocess.run(
        [sys.executable, "-P", HERE / "keys.py"], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, frozen = json.loads(done.stdout), json.loads((HERE / "keys.json").read_text())
    assert found.keys() == frozen.keys() and len(frozen) == 33
    changed = {
        f"{plan}: {stage}"
        for plan, stages in frozen.items()
        for stage in {*stages, *found[plan]}
        if stages.get(stage) != found[plan].get(stage)
    }
    assert not changed
