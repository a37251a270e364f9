"""Networks of the user's own code, from beside the working folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from paredown.pipeline.recipe.factory import from_factory
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit
CODE = "def make():\n    return 'a network'\n\n\ndef fail():\n    raise RuntimeError('no such luck')\n"


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_own_nets").mkdir()
    (tmp_path / "my_own_nets" / "small.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_own_nets", "my_own_nets.small"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "my_own_nets" / "small.py"


def test_it_is_called_and_its_source_is_known(code: Path) -> None:
    made, file = from_factory("my_own_nets.small:make")
    assert made == "a network" and file is not None and file.samefile(code)


def test_a_module_built_into_python_has_no_source() -> None:
    made, file = from_factory("time:time")
    assert made > 0 and file is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("my_own_nets.small:fail", "RuntimeError: no such luck"),
        ("my_own_nets.small:absent", "AttributeError: .*absent"),
        ("my_own_nets.large:make", "ModuleNotFoundError: .*my_own_nets.large"),
        ("my_own_nets.small", "AttributeError"),
    ],
)
def test_whatever_fails_in_it_is_an_input_error(code: Path, spec: str, words: str) -> None:
    with pytest.raises(InputError, match=f"cannot make {spec}: {words}"):
        from_factory(spec)
