"""The export in OpenSSF's format, verified by OpenSSF's own tool."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as to
from cryptography.hazmat.primitives.asymmetric import ec

from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.bundle.signing.keys import new_key
from paredown.pipeline.bundle.signing.openssf import export_signed
from paredown.targets.errors import InputError, UsageError

GOLDEN = Path(__file__).parents[3] / "golden" / "format-4" / "detector.paredown"


@pytest.fixture
def tool() -> None:
    if importlib.util.find_spec("model_signing") is None:
        pytest.skip(
            "model-signing wants a typing-extensions that litert-torch's xdsl refuses: install it by hand"
        )


def keys(folder: Path, password: bytes | None = None) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    hidden = to.BestAvailableEncryption(password) if password else to.NoEncryption()
    private, public = folder / "K.key", folder / "K.pub"
    private.write_bytes(key.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, hidden))
    form = to.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(to.Encoding.PEM, form))
    return private, public


def verified(folder: Path, signature: Path, public: Path) -> bool:
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "verify",
        "key",
        str(folder),
        "--signature",
        str(signature),
    ]
    return subprocess.run([*command, "--public_key", str(public)], capture_output=True).returncode == 0


@pytest.mark.parametrize("password", [None, b"secret"])
def test_the_tool_of_openssf_verifies_it(tool, tmp_path, password):
    private, public = keys(tmp_path, password)
    folder = tmp_path / "out" / "model"
    signature = export_signed(GOLDEN, folder, private, password)
    assert signature == tmp_path / "out" / "model.sig"
    bundle = unpack(GOLDEN)
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == {**bundle.members, "manifest.json": bundle.text}
    assert verified(folder, signature, public)
    (folder / "labels.txt").write_text("other\n")
    assert not verified(folder, signature, public)


def test_what_cannot_be_signed_leaves_nothing(tool, tmp_path):
    private, _ = keys(tmp_path)
    ours, _, _ = new_key("alice", tmp_path)
    for key in (ours, GOLDEN, tmp_path / "none.key"):
        with pytest.raises(InputError, match="openssl ecparam"):
            export_signed(GOLDEN, tmp_path / "model", key)
    with pytest.raises(InputError, match="model: there already; give another folder"):
        (tmp_path / "model").mkdir()
        export_signed(GOLDEN, tmp_path / "model", private)
    assert {path.name for path in tmp_path.iterdir()} == {"K.key", "K.pub", "alice.key", "alice.pub", "model"}


def test_without_the_extra_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(UsageError, match=r"needs model-signing; pip install model-signing pyopenssl"):
        export_signed(GOLDEN, tmp_path / "model", tmp_path / "K.key")
