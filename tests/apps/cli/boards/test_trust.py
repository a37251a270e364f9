"""The commands of trust as somebody types them, from the first key to a revoked one."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
from tiny_project import call

GOLDEN = Path(__file__).parents[3] / "golden" / "format-4" / "detector.paredown"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a working folder of its own, with keys of three and a bundle that nobody signed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("alice", "bob", "carol"):
        made = call("key", "new", name)
        assert made.code == 0 and f"private  {tmp_path}/.config/paredown/keys/{name}.key" in made.out
    shutil.copy(GOLDEN, "bundle.paredown")
    return tmp_path / ".config/paredown/keys"


def trusted(here: Path, *names: str, **options: object) -> None:
    """This machine trusts these keys; `by` signs, else all of them do."""
    by = options.pop("by", names)
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    Path("trust.json").unlink(missing_ok=True)
    assert call("trust", "new", *(here / f"{name}.pub" for name in names), *given).code == 0
    for name in by:
        assert call("sign", "trust.json", "--key", here / f"{name}.key").code == 0
    done = call("trust", "accept", "trust.json")
    assert done.code == 0, done.err


def test_a_key_is_its_owners(here):
    assert stat.S_IMODE((here / "alice.key").stat().st_mode) == 0o600
    assert "alice.key: there already; take another name" in call("key", "new", "alice").line()
    Path("word").write_text("secret\n")
    made = json.loads(call("key", "new", "dora", "--out", ".", "--passphrase-file", "word", "--json").out)
    assert Path(made["private"]).read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY")
    assert call("sign", "bundle.paredown", "--key", "dora.key").code == 4
    assert call("sign", "bundle.paredown", "--key", "dora.key", "--passphrase-file", "word").code == 0


def test_sign_and_verify(here):
    key, pub = here / "alice.key", here / "alice.pub"
    assert call("verify", "bundle.paredown").line() == "paredown: bundle.paredown: not signed"
    done = call("sign", "bundle.paredown", "--key", key, "--release", "3", "--expires", "2999-01-31")
    assert done.out == "bundle.paredown: tiny for host, release 3, expires 2999-01-31; signed by 1\n"
    done = call("verify", "bundle.paredown", "--key", pub)
    assert done.code == 0 and "release  3 of tiny (apps.detector) for host" in done.out
    assert "covers   the manifest, and by it every file" in done.out and "trusted" in done.out
    found = json.loads(call("verify", "bundle.paredown", "--key", pub, "--json").out)
    assert found["valid"] and found["signatures"][0]["name"] == "alice" and found["expires"] == "2999-01-31"
    done = call("verify", "bundle.paredown", "--key", pub, "--key", here / "bob.pub")
    assert done.code == 4 and "signed by alice; trust document version 1 asks for 2 of" in done.err
    done = call("verify", "bundle.paredown", "--json")
    assert done.code == 4 and not json.loads(done.out)["valid"]
    assert "signed, but by nobody whom this machine trusts" in done.err
    assert "sign" in call("sign", "bundle.paredown", "--key", key, "--release", "4").line()


def test_this_machine_trusts_two_of_three_then_others(here):
    assert call("trust", "show").out == "no trust document: bundles are taken from everybody\n"
    trusted(here, "alice", "bob", "carol", threshold=2)
    shown = call("trust", "show").out
    assert "trust document 1: 2 must sign" in shown and "alice" in shown
    call("sign", "bundle.paredown", "--key", here / "alice.key")
    assert call("verify", "bundle.paredown").code == 4
    call("sign", "bundle.paredown", "--key", here / "bob.key")
    assert call("verify", "bundle.paredown").code == 0
    shutil.copy("trust.json", "before.json")
    trusted(
        here, "bob", "carol", threshold=2, after="before.json", revoke=here / "alice.pub", by=("bob", "carol")
    )
    done = call("verify", "bundle.paredown")
    assert done.code == 4 and "signed by bob, revoked key" in done.err and "revoked" in done.out
    told = json.loads(call("trust", "show", "--json").out)["trust"]
    assert told["version"] == 2 and len(told["revoked"]) == 1
    done = call("trust", "accept", "before.json").line()
    assert "version 1 of the trust document; version 2 is there" in done


def test_a_document_signed_by_too_few_is_not_accepted(here):
    call("trust", "new", here / "alice.pub", here / "bob.pub", "--threshold", 2)
    assert (
        "signed by nobody; trust document version 1 asks for 2"
        in call("trust", "accept", "trust.json").line()
    )
    assert "trust.json: there already; give another --out" in call("trust", "new", here / "bob.pub").line()
    done = call("trust", "new", here / "bob.pub", "--threshold", 2, "--out", "other.json")
    assert done.code == 2 and "its threshold" in done.line()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("sign", "none.paredown", "--key", "K"), 4, "none.paredown: cannot read it: No such file"),
        (("sign", "trust.json", "--key", "K", "--release", "3"), 2, "has no release, expiry or --anew"),
        (("sign", "bundle.paredown", "--key", "bundle.paredown"), 4, "cannot read this key: "),
        (("sign", "bundle.paredown", "--key", "K", "--expires", "soon"), 2, "its last day is none"),
        (("sign", "bundle.paredown", "--key", "K", "--release", "-1"), 2, "its number is none"),
        (("verify", "bundle.paredown", "--key", "K"), 4, "no public key in PEM; give the .pub file"),
        (("key", "new", "a b"), 2, "`a b` is no name of a key"),
        (("key", "newer", "a"), 2, "newer"),
        (("trust", "accept", "bundle.paredown"), 4, "cannot read it: 85,246 bytes, more than 65,536"),
        (("trust", "accept", "trust.json"), 4, "no signed document of ours"),
        (("trust", "new", "trust.json", "--out", "t"), 4, "no public key in PEM"),
    ],
)
def test_what_is_wrong_is_one_line(here, words, code, said):
    Path("trust.json").write_text("{}")
    done = call(*(here / "alice.key" if word == "K" else word for word in words))
    assert done.code == code and said in done.line()


def test_status_says_who_put_what_on_a_device(here):
    empty = call("status", "--device", "local:").out
    assert empty == "no apps\n\nno trust document: bundles are taken from everybody\n"
    trusted(here, "alice")
    done = call("trust", "accept", "trust.json", "--device", "local:", "--target", "host")
    assert done.out == "local: trusts 1 of alice (version 1)\n", done.err
    shown = call("status", "--device", "local:").out
    assert "trust document 1: 1 must sign; target host" in shown and "@" in shown
    told = json.loads(call("status", "--device", "local:", "--json").out)
    assert told["apps"] == [] and told["record"][0]["what"] == "trust document 1"


@pytest.mark.parametrize(
    "told",
    [
        {"apps": 1},
        {"apps": [{}]},
        {"apps": [], "trust": {}},
        {"apps": [], "trust": None, "record": [{"who": 1, "what": "x", "time": 1e99}]},
    ],
)
def test_a_device_that_says_something_else_is_one_line(here, monkeypatch, told):
    monkeypatch.setattr("paredown.targets.devices.service.service.Board.report", lambda board: told)
    done = call("status", "--device", "local:")
    assert done.code == 5 and "paredown: local:: what it remembers is not in our form" in done.err
