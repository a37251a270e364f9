"""Keys that sign: ed25519, in the files that every tool reads (PEM: PKCS8, SubjectPublicKeyInfo)."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.pipeline.bundle.limits import bounded
from paredown.targets.devices.service.guard import config
from paredown.targets.devices.service.signed import Key, is_name
from paredown.targets.errors import InputError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRIVATE, PUBLIC = ".key", ".pub"
PEM_BYTES = 1 << 14
PASSPHRASE_BYTES = 1 << 10


def key_folder() -> Path:
    """Where keys lie, unless somebody says another folder."""
    return config() / "keys"


def key_file(path: Path, suffix: str) -> Path:
    """The file that a key is in: itself, or NAME.key or NAME.pub of the folder where keys lie.

    Args:
        path: a file, or the name of a key.
        suffix: `PRIVATE` or `PUBLIC`.
    """
    if path.exists() or path.parent != Path() or not is_name(path.name):
        return path
    own = key_folder() / f"{path.name.removesuffix(suffix)}{suffix}"
    return own if own.exists() else path


def new_key(name: str, folder: Path, passphrase: bytes | None = None) -> tuple[Path, Path, Key]:
    """Makes a pair of keys.

    Args:
        name: of the two files and of the key.
        folder: for NAME.key, which only its owner may read, and NAME.pub.
        passphrase: that the private key is encrypted with.

    Returns:
        The two files, private first, and the public key.

    Raises:
        UsageError: this is no name.
        InputError: a file is there already, or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization as to
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not is_name(name):
        raise UsageError(f"`{name}` is no name of a key", hint="letters, digits and . _ @ + - are fine")
    made = Ed25519PrivateKey.generate()
    hidden: Any = to.BestAvailableEncryption(passphrase) if passphrase else to.NoEncryption()
    private = made.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, hidden)
    public = made.public_key().public_bytes(to.Encoding.PEM, to.PublicFormat.SubjectPublicKeyInfo)
    paths = folder / f"{name}{PRIVATE}", folder / f"{name}{PUBLIC}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=stat.S_IRWXU)
        for path in paths:
            if path.exists():
                raise InputError("there already", where=path, hint="take another name; keys are not replaced")
        for path, data, mode in zip(paths, (private, public), (0o600, 0o644), strict=True):
            path.touch(mode, exist_ok=False)
            path.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write here: {error.strerror}", where=error.filename or folder) from error
    return *paths, Key(name, made.public_key().public_bytes_raw())


def read_private(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Reads a private key.

    Args:
        path: of its file, or its name; see `key_file`.
        passphrase: that it is encrypted with.

    Raises:
        InputError: it is none, others may read it, or the passphrase is missing or wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = key_file(path, PRIVATE)
    data = _read(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError("others may read this private key", where=path, hint=f"chmod 600 {path}")
    try:
        key = load_pem_private_key(data, passphrase)
    except TypeError:
        hint = "leave --passphrase-file out" if passphrase else "add --passphrase-file FILE"
        what = "is not encrypted" if passphrase else "is encrypted"
        raise InputError(what, where=path, hint=hint) from None
    except (ValueError, UnsupportedAlgorithm):
        what = "wrong passphrase, or no private key" if passphrase else "no private key in PEM"
        raise InputError(what, where=path, hint="make one with `paredown key new NAME`") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError("a key of another kind than ed25519", where=path,
                         hint="make one with `paredown key new NAME`")  # fmt: skip
    return key


def read_public(path: Path) -> Key:
    """Reads a public key, which is called what its file is.

    Args:
        path: of its file, or its name; see `key_file`.

    Raises:
        InputError: it is none of ed25519, or its file has a name that no key may have.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    path = key_file(path, PUBLIC)
    data = _read(path)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise InputError("no public key in PEM", where=path, hint="give the .pub file") from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError("a key of another kind than ed25519", where=path, hint="give the .pub file")
    if not is_name(path.stem):
        raise InputError("a key is called what its file is, and no key may be called this", where=path)
    return Key(path.stem, key.public_bytes_raw())


def read_passphrase(path: Path | None) -> bytes | None:
    """The first line of a file.

    Raises:
        InputError: it cannot be read, or is empty.
    """
    if path is None:
        return None
    lines = _read(path, PASSPHRASE_BYTES).splitlines()
    if not lines or not lines[0]:
        raise InputError("no passphrase in its first line", where=path)
    return lines[0]


def _read(path: Path, most: int = PEM_BYTES) -> bytes:
    try:
        return bounded(path, most)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read this key: {reason}", where=path) from error
