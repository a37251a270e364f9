from __future__ import annotations

import pytest

from paredown.pipeline.bundle.known_code import foreign, require_known_code
from paredown.targets.errors import InputError
from paredown.targets.own_code import own_code
from tests.helpers.forge import forged
from tests.pipeline.bundle.test_archive import MEMBERS as GOOD
from tests.pipeline.bundle.test_archive import manifest, opened

pytestmark = pytest.mark.unit

NAMES = ("__init__.py", "targets/__init__.py", "targets/errors.py", "apps/detector/device/**/*.py")
PLAIN = {"model.tflite": GOOD["model.tflite"], "labels.txt": b"a\n", "vectors.bin": b"", "app.json": b"{}"}


def bundle(tmp_path):
    code = {name: path.read_bytes() for name, path in own_code(NAMES).items()}
    return opened(tmp_path, forged(manifest(), PLAIN | code))


def test_what_this_version_makes_is_known(tmp_path):
    made = bundle(tmp_path)
    assert len(made.members) > 20
    assert foreign(made) == []
    require_known_code(made)


@pytest.mark.parametrize(
    "name",
    ["paredown/targets/errors.py", "paredown/targets/new.py", "paredown/targets/errors.json", "json.py",
     "sitecustomize.py", "numpy/__init__.py", "executorch/language", "a.so", "paredown/__pycache__/x.pyc",
     "run.sh", "x.pth", "labels", "pyproject.toml.py"],
)  # fmt: skip
def test_what_could_be_executed_and_is_another_s_is_named(tmp_path, name):
    made = opened(tmp_path, forged(manifest(), bundle(tmp_path).members | {name: b"print()"}))
    assert foreign(made) == [name]
    with pytest.raises(InputError, match=f"code that is not this version's: {name}; make it again"):
        require_known_code(made)


def test_a_changed_byte_of_our_code_is_another_s(tmp_path):
    members = dict(bundle(tmp_path).members)
    for name in [name for name in members if name.endswith(".py")]:
        other = opened(tmp_path, forged(manifest(), members | {name: members[name] + b"\n"}))
        assert foreign(other) == [name]


def test_code_of_format_3_lies_without_our_name(tmp_path):
    files = {name.removeprefix("paredown/"): path.read_bytes() for name, path in own_code(NAMES[1:]).items()}

    def fix(document):
        document["format"] = 3

    assert foreign(opened(tmp_path, forged(manifest(), PLAIN | files, fix=fix))) == []
    files["targets/errors.py"] += b"#"
    other = opened(tmp_path, forged(manifest(), PLAIN | files, fix=fix))
    assert foreign(other) == ["targets/errors.py"]


def test_all_are_counted(tmp_path):
    with pytest.raises(InputError, match="a.py and 2 more"):
        require_known_code(
            opened(tmp_path, forged(manifest(), PLAIN | dict.fromkeys(["a.py", "b.py", "c"], b"")))
        )
