"""A bundle's files signed in OpenSSF's format for models, which other tools verify without paredown.

The format (https://github.com/ossf/model-signing-spec) is a Sigstore bundle about a folder's files. Its keys
are elliptic curves of NIST, not ed25519, so it takes a key of its own, made by `openssl` or any other tool.
It says who made the files; what devices take is `release.py`'s.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from paredown.pipeline.bundle.archive import extract, unpack
from paredown.targets.errors import InputError, UsageError

SUFFIX = ".sig"
MAKE_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out K.key"


def export_signed(path: Path, folder: Path, key: Path, passphrase: bytes | None = None) -> Path:
    """Unpacks a bundle and signs its files.

    Args:
        path: of the bundle.
        folder: new, for its files.
        key: private, of P-256, P-384 or P-521, in PEM.
        passphrase: of the key.

    Returns:
        The signature's file, beside the folder.

    Raises:
        UsageError: the extra is not installed.
        InputError: the bundle or the key is none, or something is there already.
    """
    try:
        from model_signing import signing
    except ImportError as error:
        raise UsageError(
            "OpenSSF's format needs model-signing",
            where="--openssf",
            hint="pip install model-signing pyopenssl",
        ) from error
    bundle, signature = unpack(path), folder.with_name(f"{folder.name}{SUFFIX}")
    for there in (folder, signature):
        if there.exists():
            raise InputError("there already", where=there, hint="give another folder to --openssf")
    config = signing.Config()
    try:  # their type says that a passphrase is text; their reader of keys wants bytes
        config.use_elliptic_key_signer(private_key=key, password=passphrase)
    except (OSError, TypeError, ValueError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "no private key of P-256, P-384 or P-521 in PEM"
        raise InputError(f"{reason}, or its passphrase is missing", where=key, hint=MAKE_KEY) from error
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            whole = Path(made) / folder.name
            extract(bundle, whole)
            config.sign(whole, Path(made) / signature.name)
            shutil.move(Path(made) / signature.name, signature)
            shutil.move(whole, folder)
    except OSError as error:
        raise InputError(f"cannot write here: {error.strerror}", where=folder) from error
    return signature
