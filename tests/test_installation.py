"""What is installed: the lock fits what setup.cfg asks for, and every extra that a command names is there."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from paredown.targets.host.tools import EXTRAS

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"([a-z0-9-]+)==([0-9a-zA-Z.!]+)((?: --hash=sha256:[0-9a-f]{64})+)")

pytestmark = pytest.mark.unit


def config() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.strip().splitlines()]


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return dict(line.split()[0].split("==") for line in lines)


def test_the_lock_has_each_package_once_with_hashes_and_no_host() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()[1:]
    assert len(lines) > 50 and all(LINE.fullmatch(line) for line in lines)
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names))
    assert "://" not in "".join(lines) and "://" not in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("name", ["requirements.lock", "constraints.txt"])
def test_the_locked_versions_are_those_that_are_asked_for(name: str) -> None:
    found = pins(name)
    asked = requirements(config()["options"]["install_requires"])
    if name == "constraints.txt":
        extras = config()["options.extras_require"]
        asked += [
            each
            for extra in ("test", "docs", "charts", "gguf", "keras")
            for each in requirements(extras[extra])
        ]
    for each in asked:
        if each.name != "paredown":
            assert each.specifier.contains(found[each.name.lower()], prereleases=True), each


def test_what_commands_name_is_an_extra_with_that_package() -> None:
    extras = config()["options.extras_require"]
    default = {each.name for each in requirements(config()["options"]["install_requires"])}
    for package, extra in EXTRAS.items():
        assert package in {each.name for each in requirements(extras[extra])}
        assert package not in default


def test_the_tests_bring_every_extra_but_the_weights_of_others() -> None:
    extras = config()["options.extras_require"]
    own = [each for name in ("all", "test") for each in requirements(extras[name]) if each.name == "paredown"]
    brought = {name for each in own for name in each.extras}
    assert brought - {"all"} == set(extras) - {"all", "docs", "gemma", "test"}


def test_the_table_of_licences_has_the_locks_packages() -> None:
    rows = json.loads((ROOT / "docs" / "figures" / "licences.json").read_text())["rows"]
    assert {name: version for name, version, _ in rows} == pins("requirements.lock")
    assert sum(licence == "not stated" for *_, licence in rows) <= 3
