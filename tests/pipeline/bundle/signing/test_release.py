"""Signatures on a bundle: one more entry of the file, about every byte of the rest."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from forge import COMMENT, resealed
from signing import A, B, C, trusting

from paredown.pipeline.bundle.archive import SIGNED, pack, unpack
from paredown.pipeline.bundle.known_code import require_known_code
from paredown.pipeline.bundle.signing import release as signing
from paredown.targets.devices.service import guard
from paredown.targets.devices.service.signed import Trust, opened
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit
GOLDEN = Path(__file__).parents[3] / "golden" / "format-4" / "detector.paredown"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copy(GOLDEN, tmp_path / "bundle.paredown"))


def trust(*signers, threshold: int = 1) -> Trust:
    return Trust.of(opened(trusting(signers, threshold=threshold)))


def without_signatures(data: bytes) -> bytes:
    """The file that was signed, by the zip's own directory."""
    import io

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        last = archive.infolist()[-1]
        assert last.filename == SIGNED
        return data[: last.header_offset]


def test_a_signature_is_one_more_entry_and_nothing_else(bundle):
    plain = bundle.read_bytes()
    signing.sign_bundle(bundle, A.key, 5, "2999-01-31")
    once = bundle.read_bytes()
    assert plain.startswith(without_signatures(once)) and len(once) - len(plain) < 1000
    with zipfile.ZipFile(bundle) as archive:
        assert archive.testzip() is None
    opened_ = unpack(bundle)
    assert opened_.members == unpack(GOLDEN).members and opened_.text == unpack(GOLDEN).text
    signing.sign_bundle(bundle, B.key)
    assert without_signatures(bundle.read_bytes()) == without_signatures(once)
    found = signing.verify_bundle(unpack(bundle), trust(A, B, C, threshold=2))
    assert found.signers == ("alice", "bob") and set(found.keys) == {A.id, B.id}
    assert (found.release.release, found.release.expires) == (5, "2999-01-31")
    manifest = unpack(bundle).manifest
    assert (found.release.name, found.release.target) == (manifest.name, manifest.target)


def test_what_others_signed_is_not_changed_by_accident(bundle):
    signing.sign_bundle(bundle, A.key, 5)
    for change in ({"number": 6}, {"expires": "2999-01-31"}):
        with pytest.raises(UsageError, match=r"signed already, as release 5 .*add --anew to drop those"):
            signing.sign_bundle(bundle, B.key, **change)
    signing.sign_bundle(bundle, B.key, 6, anew=True)
    found = signing.verify_bundle(unpack(bundle), None)
    assert found.release.release == 6 and found.keys == (B.id,)
    for change in ({"number": 0}, {"number": -1}, {"expires": "tomorrow"}, {"expires": "2027-02-30"}):
        with pytest.raises(UsageError, match="--release takes a whole number, --expires a day"):
            signing.sign_bundle(bundle, B.key, anew=True, **change)


def test_a_number_that_nobody_gave_is_the_time(bundle):
    signing.sign_bundle(bundle, A.key)
    number = str(signing.verify_bundle(unpack(bundle), None).release.release)
    assert len(number) == 14 and number.startswith("20")


def test_a_change_of_any_byte_of_the_signatures_is_refused(bundle):
    """With the file's own hash, and the zip's sum, put right: as somebody does it who means it."""
    signing.sign_bundle(bundle, A.key)
    data, opened_ = bundle.read_bytes(), unpack(bundle)
    envelope = opened_.signed
    assert envelope and data.count(envelope) == 1
    for index in range(0, len(envelope), 5):
        changed = envelope[:index] + bytes([envelope[index] ^ 1]) + envelope[index + 1 :]
        bundle.write_bytes(signing.with_signatures(data, changed))
        with pytest.raises(InputError):
            signing.verify_bundle(unpack(bundle), trust(A))


def test_signatures_of_another_bundle_are_none(bundle, tmp_path):
    signing.sign_bundle(bundle, A.key)
    manifest, members = json.loads(unpack(GOLDEN).text), dict(unpack(GOLDEN).members)
    del manifest["members"], manifest["format"]
    members["labels.txt"] = members["labels.txt"].swapcase()
    envelope = unpack(bundle).signed
    assert envelope
    bundle.write_bytes(signing.with_signatures(pack(manifest, members), envelope))
    with pytest.raises(InputError, match="its signatures are those of another bundle"):
        signing.verify_bundle(unpack(bundle), trust(A))
    with pytest.raises(InputError, match="its signatures are those of another bundle"):
        signing.sign_bundle(bundle, B.key)


def test_the_entry_of_signatures_is_the_last_and_small(bundle):
    signing.sign_bundle(bundle, A.key)
    data = bundle.read_bytes()
    bundle.write_bytes(signing.with_signatures(data, bytes(1 << 17)))
    with pytest.raises(InputError, match="its release.dsse.json is larger than 65,536 bytes"):
        unpack(bundle)
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.writestr("more", b"x")
    bundle.write_bytes(resealed(bundle.read_bytes()[:-COMMENT]))
    with pytest.raises(InputError, match=r"release.dsse.json is not its last entry"):
        unpack(bundle)
    manifest = json.loads(unpack(GOLDEN).text)
    del manifest["members"], manifest["format"]
    with pytest.raises(ValueError, match=r"release.dsse.json"):
        pack(manifest, {SIGNED: b"x"})


def test_code_of_a_trusted_signer_may_be_anothers(bundle, tmp_path, monkeypatch):
    """Nobody else's, and only as it was signed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    manifest, members = json.loads(unpack(GOLDEN).text), dict(unpack(GOLDEN).members)
    del manifest["members"], manifest["format"]
    members["paredown/targets/runners/prove.py"] = b"print('mine')\n"
    bundle.write_bytes(pack(manifest, members))
    said = "holds code that is not this version's"
    signing.sign_bundle(bundle, A.key)
    with pytest.raises(InputError, match=said):
        require_known_code(unpack(bundle))
    guard.accept(trusting((B,)), None, "me")
    with pytest.raises(InputError, match=said):
        require_known_code(unpack(bundle))
    signing.sign_bundle(bundle, B.key)
    require_known_code(unpack(bundle))
    (tmp_path / ".config/paredown/trust.json").write_text("{}")
    with pytest.raises(InputError, match="trust.json: .*; nothing is taken before it is put right"):
        require_known_code(unpack(bundle))


def test_a_trust_document_is_written_and_signed(tmp_path):
    path = tmp_path / "trust.json"
    signing.new_trust(path, trust(A, B, threshold=2))
    signing.sign_trust(path, A.key)
    signing.sign_trust(path, B.key)
    assert path.read_bytes() == trusting((A, B), threshold=2)
    with pytest.raises(InputError, match="trust.json: there already"):
        signing.new_trust(path, trust(A))
    with pytest.raises(UsageError, match="its threshold"):
        signing.new_trust(tmp_path / "other.json", Trust(1, 3, trust(A, B).keys))
    path.write_text("{}")
    with pytest.raises(InputError, match="trust.json: no signed document of ours"):
        signing.read_trust(path)
    with pytest.raises(InputError, match="cannot read it: No such file"):
        signing.read_trust(tmp_path / "none.json")
