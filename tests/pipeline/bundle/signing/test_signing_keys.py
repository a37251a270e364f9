"""Keys are files that other tools read, of which only the owner reads the private one."""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from needs import needs

from paredown.pipeline.bundle.signing.keys import (
    PRIVATE,
    PUBLIC,
    key_file,
    key_folder,
    new_key,
    read_passphrase,
    read_private,
    read_public,
)
from paredown.targets.errors import InputError, UsageError


def test_a_pair_of_keys_in_standard_files(tmp_path):
    private, public, key = new_key("alice", tmp_path / "keys")
    assert (private.name, public.name) == ("alice.key", "alice.pub")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    made = load_pem_private_key(private.read_bytes(), None)
    raw = load_pem_public_key(public.read_bytes()).public_bytes_raw()
    assert made.public_key().public_bytes_raw() == raw == key.public
    assert key.id == hashlib.sha256(raw).hexdigest() and read_public(public) == key
    assert read_private(private).sign(b"x") == made.sign(b"x")
    with pytest.raises(InputError, match="alice.key: there already"):
        new_key("alice", tmp_path / "keys")
    assert key_folder().parts[-2:] == ("paredown", "keys")


def test_a_key_is_named_where_keys_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    private, public, key = new_key("alice", key_folder())
    for name in ("alice", "alice.key"):
        assert key_file(Path(name), PRIVATE) == private
    assert read_public(Path("alice")) == key and read_private(Path("alice")).public_key()
    for other in ("bob", "./x/alice", "../alice"):
        assert key_file(Path(other), PRIVATE) == Path(other)
    (tmp_path / "alice.pub").write_bytes(b"here")
    assert key_file(Path("alice.pub"), PUBLIC) == Path("alice.pub")  # a file that is there comes first
    with pytest.raises(InputError, match="bob: "):
        read_private(Path("bob"))


def test_openssl_reads_them(tmp_path):
    openssl = needs("openssl", "openssl")
    private, public, key = new_key("alice", tmp_path)
    command = [openssl, "pkey", "-in", str(private), "-pubout"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == public.read_bytes()


def test_a_passphrase_is_needed_where_there_is_one(tmp_path):
    (tmp_path / "secret").write_text("open sesame\nand more\n")
    word = read_passphrase(tmp_path / "secret")
    assert word == b"open sesame" and read_passphrase(None) is None
    private, _, key = new_key("bob", tmp_path, word)
    assert b"ENCRYPTED" in private.read_bytes()
    assert read_private(private, word).public_key().public_bytes_raw() == key.public
    with pytest.raises(InputError, match="bob.key: is encrypted; add --passphrase-file"):
        read_private(private)
    with pytest.raises(InputError, match="wrong passphrase"):
        read_private(private, b"open")
    plain, _, _ = new_key("carol", tmp_path)
    with pytest.raises(InputError, match="is not encrypted; leave --passphrase-file out"):
        read_private(plain, word)
    (tmp_path / "none").write_text("\n")
    with pytest.raises(InputError, match="no passphrase in its first line"):
        read_passphrase(tmp_path / "none")


def test_what_is_no_key_of_ours(tmp_path):
    private, public, _ = new_key("alice", tmp_path)
    for name in ("", "a b", "../a", "a/b", "x" * 65, "ä"):
        with pytest.raises(UsageError, match="is no name of a key"):
            new_key(name, tmp_path)
    private.chmod(0o640)
    with pytest.raises(InputError, match="others may read this private key; chmod 600"):
        read_private(private)
    with pytest.raises(InputError, match="no public key in PEM; give the .pub file"):
        read_public(private)
    public.chmod(0o600)
    with pytest.raises(InputError, match="no private key in PEM"):
        read_private(public)
    with pytest.raises(InputError, match="cannot read this key: No such file"):
        read_public(tmp_path / "none.pub")
    with pytest.raises(InputError, match="cannot read this key: Is a directory"):
        read_public(tmp_path)
    shutil.copy(public, tmp_path / "a b.pub")
    with pytest.raises(InputError, match="no key may be called this"):
        read_public(tmp_path / "a b.pub")


def test_keys_of_other_kinds_are_refused(tmp_path):
    openssl = needs("openssl", "openssl")
    file, public = tmp_path / "other.key", tmp_path / "other.pub"
    subprocess.run([openssl, "genpkey", "-algorithm", "X25519", "-out", str(file)], check=True)
    subprocess.run([openssl, "pkey", "-in", str(file), "-pubout", "-out", str(public)], check=True)
    file.chmod(0o600)
    for read, path in ((read_private, file), (read_public, public)):
        with pytest.raises(InputError, match="a key of another kind than ed25519"):
            read(path)
