"""TOML files of users: what is wrong with one, and on which line."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paredown.targets.cards.tomlfile import first_problem, line_of, nearest, place, read_toml, written
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit
TEXT = """app = "x"

[data]
format = "yolo"
train = "a"

[prune]
macs = 0.5
layers = { first = 1 }

[a.b]
c = 1
"""


def test_a_file_and_its_text(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(TEXT.replace("\n", "\r\n").encode())
    tables, text = read_toml(tmp_path / "x.toml", "recipe")
    assert tables["prune"] == {"macs": 0.5, "layers": {"first": 1}} and text.splitlines()[0] == 'app = "x"'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'a = "\xff"', r"the recipe is not UTF-8 text \(byte 5\)"),
        (b"a = ", "the recipe is not valid TOML: "),
        (b"a = 1\na = 2", "the recipe is not valid TOML: "),
        (None, "no such recipe file"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, data: bytes | None, words: str) -> None:
    path = tmp_path / "x.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=words) as raised:
        read_toml(path, "recipe")
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)
    with pytest.raises(InputError, match="cannot read the card: Is a directory"):
        read_toml(tmp_path, "card")


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("app",), 1), (("data",), 3), (("data", "train"), 5), (("prune", "macs"), 8),
        (("prune", "layers", "first"), 9), (("prune", "absent"), 7), (("a", "b", "c"), 12), (("none",), None),
    ],
)  # fmt: skip
def test_the_line_of_a_key(key: tuple[str, ...], line: int | None) -> None:
    assert line_of(TEXT, key) == line
    assert place("x.toml", TEXT, key) == ("x.toml" if line is None else f"x.toml:{line}")


def test_values_are_written_as_their_owner_would() -> None:
    assert [written(value) for value in (True, 0.5, 'a"\\', (1, "b"), {"x": 1})] == [
        "true", "0.5", '"a\\"\\\\"', '[1, "b"]', "a table",
    ]  # fmt: skip
    assert len(written("x" * 99)) == 60 and written("x" * 99).endswith("...")


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    share: float = Field(gt=0)
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("document", "key", "words"),
    [
        ({}, ("share",), "`share` is missing"),
        ({"share": 1.0, "more": 2}, ("more",), "unknown key `more`"),
        ({"share": 0.0}, ("share",), "`share = 0.0` is not accepted: it must be greater than 0"),
        ({"share": 1.0, "names": "a"}, ("names",), 'it must be a list, such as ["a"]'),
    ],
)
def test_the_first_problem_names_value_and_what_is_accepted(document, key, words) -> None:
    with pytest.raises(ValidationError) as raised:
        Schema.model_validate(document)
    found, line = first_problem(raised.value)
    assert found == key and words in line


def test_the_nearest_known_word() -> None:
    assert nearest("Epoch", ["epochs", "batch"]) == "epochs"
    assert nearest("zzz", ["epochs", "batch"]) is None
