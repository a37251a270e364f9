"""Code in a bundle: what a device would execute is the installed version's, byte by byte, or is refused.

A bundle's hashes say that it is whole, not who made it. This process runs none of its code; what is brought
to a device (`local:` is one for apps and language models) has to be code that this machine has itself, or be
signed by those whom it trusts.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from paredown.pipeline.bundle.archive import Bundle
from paredown.pipeline.bundle.signing.release import trusted_here
from paredown.targets.errors import InputError
from paredown.targets.own_code import ROOMS, installed

#: Members that are read and never executed: models, vectors, labels, settings, tokenizers, pictures.
DATA = frozenset({
    ".bin", ".in", ".jpg", ".json", ".litertlm", ".npy", ".npz", ".onnx", ".png", ".pte", ".tflite", ".toml",
    ".txt",
})  # fmt: skip


def foreign(bundle: Bundle) -> list[str]:
    """Members that could be executed and are not this version's.

    Returns:
        Names, sorted: below our package whatever differs from the installed file; elsewhere whatever is not
        of a kind that is only read.
    """
    return sorted(name for name, data in bundle.members.items() if not _known(bundle, name, data))


def require_known_code(bundle: Bundle) -> None:
    """Refuses to bring a stranger's code to a device.

    Raises:
        InputError: the bundle holds code that is not the installed version's, and is not signed by enough of
            the keys that this machine trusts.
    """
    found = foreign(bundle)
    if found and not trusted_here(bundle):
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise InputError(
            f"holds code that is not this version's: {found[0]}{more}",
            where=bundle.path,
            hint="make it again with `paredown run`, or install the version of paredown that made it, "
            "or have it signed by a key that this machine trusts",
        )


def _known(bundle: Bundle, name: str, data: bytes) -> bool:
    path = PurePosixPath(name)
    if path.parts[0] != "paredown" and (bundle.house or not (ROOMS / path.parts[0]).is_dir()):
        return path.suffix in DATA
    file = installed(name if bundle.house else f"paredown/{name}")
    return file is not None and file.read_bytes() == data
