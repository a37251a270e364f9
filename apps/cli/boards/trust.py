"""The commands of trust: key, sign, verify, trust; and status, which says what is on a device and who put it.

Whom this machine trusts is in ~/.config/paredown; whom a device trusts is there, in the same folder.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paredown.apps.cli.console import AsJson, handled, print_json, tables
from paredown.apps.cli.group import TRUST, USE

if TYPE_CHECKING:
    from paredown.pipeline.bundle.signing.release import Verified
    from paredown.targets.devices.service.signed import Trust

SHOWN = 12  # digits of a key's id
RECORD = 10  # entries
KeyFile = Annotated[Path, typer.Option("--key", help="Private key: a .key file, or its NAME.")]
Passphrase = Annotated[
    Path | None, typer.Option(help="File whose first line is the private key's passphrase.")
]
Device = Annotated[
    str | None, typer.Option(help="ssh://user@host | adb:SERIAL | local:; default: this machine.")
]

app = typer.Typer()
keys = typer.Typer(help="Make keys that sign.", no_args_is_help=True)
documents = typer.Typer(help="Say whose signatures count, here or on a device.", no_args_is_help=True)
app.add_typer(keys, name="key", rich_help_panel=TRUST)
app.add_typer(documents, name="trust", rich_help_panel=TRUST)


@keys.command("new")
def key_new(
    name: Annotated[str, typer.Argument(help="Name of the key and its files, as alice.")],
    out: Annotated[Path | None, typer.Option(help="Folder; default: ~/.config/paredown/keys.")] = None,
    passphrase_file: Passphrase = None,
    as_json: AsJson = False,
) -> None:
    """Make a pair of keys (ed25519): NAME.key signs, NAME.pub is for others."""
    with handled(as_json):
        from paredown.pipeline.bundle.signing.keys import key_folder, new_key, read_passphrase

        private, public, key = new_key(name, out or key_folder(), read_passphrase(passphrase_file))
        if as_json:
            print_json({"name": name, "keyid": key.id, "private": str(private), "public": str(public)})
            return
        print(f"key      {key.name} {key.id[:SHOWN]}")
        print(f"private  {private}")
        print(f"public   {public}")


@app.command(rich_help_panel=TRUST)
def sign(
    file: Annotated[Path, typer.Argument(help="A .paredown file or a trust document.")],
    key: KeyFile,
    release: Annotated[
        int | None, typer.Option(help="Release number, growing; default: the UTC time as YYYYMMDDHHMMSS.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Last day on which it may be deployed, as 2027-01-31.")
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Drop the signatures that are there.")] = False,
    openssf: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Leave the bundle alone: write its files to a new folder and sign them in OpenSSF's format; "
            "--key is then one of P-256.",
        ),
    ] = None,
    passphrase_file: Passphrase = None,
    as_json: AsJson = False,
) -> None:
    """Sign a bundle or a trust document, in its file.

    Signing again with another key adds a signature.
    """
    with handled(as_json):
        from paredown.pipeline.bundle.signing.keys import read_passphrase, read_private
        from paredown.pipeline.bundle.signing.release import sign_bundle, sign_trust
        from paredown.targets.devices.service.signed import Release
        from paredown.targets.errors import UsageError

        passphrase = read_passphrase(passphrase_file)
        if openssf is not None:
            from paredown.pipeline.bundle.signing.openssf import export_signed

            if release is not None or expires is not None or anew:
                raise UsageError("OpenSSF's format has no release, expiry or --anew", where="--openssf")
            signature = export_signed(file, openssf, key, passphrase)
            if as_json:
                print_json({"folder": str(openssf), "signature": str(signature)})
            else:
                print(f"{openssf}: files of {file}; signature in {signature}")
            return
        private = read_private(key, passphrase)
        if _is_trust(file):
            if release is not None or expires is not None or anew:
                raise UsageError("a trust document has no release, expiry or --anew", where=file)
            envelope, what = sign_trust(file, private), "trust document"
        else:
            envelope = sign_bundle(file, private, release, expires, anew)
            made = Release.of(envelope)
            what = f"{made.name} for {made.target}, release {made.release}"
            what += f", expires {made.expires}" if made.expires else ""
        if as_json:
            print_json({"file": str(file), "keys": sorted(envelope.signatures), "what": what})
            return
        print(f"{file}: {what}; signed by {len(envelope.signatures)}")


@app.command(rich_help_panel=TRUST)
def verify(
    bundle: Annotated[Path, typer.Argument(help="A .paredown file.")],
    key: Annotated[
        list[Path] | None,
        typer.Option(help="A .pub file that must have signed; repeatable; default: this machine's trust."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check who signed a bundle, and what the signatures cover.

    Exit code 4 = not signed, by too few of the keys, changed, or expired.
    """
    with handled(as_json):
        from paredown.pipeline.bundle.archive import unpack
        from paredown.pipeline.bundle.signing.keys import read_public
        from paredown.pipeline.bundle.signing.release import at, of_keys, verify_bundle
        from paredown.targets.devices.service import guard
        from paredown.targets.errors import InputError

        if key:
            given = [read_public(path) for path in key]
            trust: Trust | None = of_keys({each.id: each for each in given})
        else:
            with at(None):
                trust = guard.present()
        opened = unpack(bundle)
        problem: InputError | None = None
        try:
            found = verify_bundle(opened, trust)
        except InputError as error:
            if trust is None:
                raise
            problem, found = error, verify_bundle(opened, None)
        if trust is None:
            what = "signed, but by nobody whom this machine trusts: it has no trust document"
            problem = InputError(
                what, where=bundle, hint="add --key FILE.pub, or see `paredown trust --help`"
            )
        _print_verified(found, trust, problem, as_json)
        if problem is not None:
            if as_json:  # the document is out, and says it
                print(f"paredown: {problem}", file=sys.stderr)
                raise typer.Exit(problem.exit_code)
            raise problem


@documents.command("new")
def trust_new(
    key: Annotated[list[Path], typer.Argument(metavar="PUB...", help="Public keys: .pub files.")],
    out: Annotated[Path, typer.Option(help="The document's file.")] = Path("trust.json"),
    threshold: Annotated[int, typer.Option(min=1, help="How many of the keys must sign.")] = 1,
    after: Annotated[
        Path | None, typer.Option(help="The document before this one; its version and revoked keys go on.")
    ] = None,
    revoke: Annotated[
        list[Path] | None, typer.Option(help="A .pub file that is never believed again; repeatable.")
    ] = None,
) -> None:
    """Write a trust document; sign it with enough of its keys.

    One that comes after another must be signed by enough of the keys of both.
    """
    with handled(False):
        from paredown.pipeline.bundle.signing.keys import read_public
        from paredown.pipeline.bundle.signing.release import new_trust, read_trust
        from paredown.targets.devices.service.signed import Trust

        before = read_trust(after)[1] if after else None
        given = [read_public(path) for path in key]
        revoked = {read_public(path).id for path in revoke or ()} | (
            before.revoked if before else frozenset()
        )
        version = before.version + 1 if before else 1
        made = Trust(version, threshold, {each.id: each for each in given}, frozenset(revoked))
        new_trust(out, made)
        names = ", ".join(sorted(each.name for each in given))
        print(f"{out}: version {version}, {threshold} of {names}; not signed yet")
        print(f"sign it  paredown sign {out} --key FILE.key")


@documents.command("accept")
def trust_accept(
    document: Annotated[Path, typer.Argument(help="A signed trust document.")],
    device: Device = None,
    target: Annotated[
        str | None, typer.Option(help="What the device is; default: what its first release is made for.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Trust the keys of a document from now on.

    The first document is trusted as it is. A later one must have a higher version and be signed by the keys
    of the one before.
    """
    with handled(as_json):
        from paredown.pipeline.bundle.signing.release import at, read_trust
        from paredown.targets.devices.service import guard
        from paredown.targets.devices.service.service import Board, whoever

        _, trust = read_trust(document)
        if device is None:
            with at(document):
                told = guard.accept(document.read_bytes(), target, whoever())
        else:
            from paredown.targets.address import open_device

            with open_device(device) as connected:
                told = Board(connected).trust(document, target)
        if as_json:
            print_json(told)
            return
        names = ", ".join(sorted(key.name for key in trust.keys.values()))
        there = "this machine" if device is None else device
        print(f"{there} trusts {trust.threshold} of {names} (version {trust.version})")


@documents.command("show")
def trust_show(device: Device = None, as_json: AsJson = False) -> None:
    """Show whose signatures count, here or on a device."""
    with handled(as_json):
        told = _report(device)
        if as_json:
            print_json({key: told.get(key) for key in ("trust", "target", "newest")})
            return
        with _understood(device):
            _print_trust(told)


@app.command(rich_help_panel=USE)
def status(
    device: Annotated[
        str | None, typer.Option("--device", help="ssh://user@host | adb:SERIAL | local:")
    ] = None,
    fleet: Annotated[
        Path | None, typer.Option(help="A fleet.toml: what runs on each of its devices.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of a fleet: name of the app.")] = "camera",
    as_json: AsJson = False,
) -> None:
    """Show a device's apps, whom it trusts, and who put what there.

    With --fleet, what runs on each of its devices. Exit code 5 = one could not be asked.
    """
    with handled(as_json):
        from paredown.targets.errors import UsageError

        if (device is None) == (fleet is None):
            raise UsageError("give one of --device and --fleet", where="status")
        if fleet is not None:
            from paredown.apps.cli.boards.fleet import show

            show(fleet, name, as_json)
            return
        told = _report(device)
        if as_json:
            print_json(told)
            return
        with _understood(device):
            _print_status(told)


def _print_status(told: dict[str, Any]) -> None:
    from rich.table import Table

    from paredown.apps.cli.boards.fleet import remarks, state_of

    apps = Table("app", "state", "release", "service", box=None, pad_edge=False)
    for each in told["apps"]:
        apps.add_row(
            each["name"], _plain(state_of(each)), each["release"] or "-", "yes" if each["service"] else "no"
        )
    if told["apps"]:
        tables().print(apps)
        for each in told["apps"]:
            for line in remarks(each):
                print(_plain(f"{each['name']}: {line}"))
    else:
        print("no apps")
    print()
    _print_trust(told)
    if not told["record"]:
        return
    print()
    record = Table("when (UTC)", "who", "what", "signed by", box=None, pad_edge=False)
    for entry in told["record"][-RECORD:]:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry["time"]))
        what = entry["what"]
        if "release" in entry:
            what += f": {entry['name']} {entry['release']}"
        if entry.get("older"):
            what += ", older, by --allow-older"
        record.add_row(when, _plain(entry["who"]), _plain(what), ", ".join(entry.get("keys", ["-"])))
    tables().print(record)


def _report(device: str | None) -> dict[str, Any]:
    """What a machine trusts; of a device also its apps."""
    if device is None:
        from paredown.pipeline.bundle.signing.release import at
        from paredown.targets.devices.service import guard

        with at(None):
            return guard.report()
    from paredown.targets.address import open_device
    from paredown.targets.devices.service.service import Board

    with open_device(device) as connected:
        return Board(connected).report()


@contextlib.contextmanager
def _understood(device: str | None) -> Iterator[None]:
    """A device whose answer has another form than ours is one line."""
    from paredown.targets.errors import DeviceError

    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        hint = "see ~/.config/paredown and ~/.local/share/paredown there"
        raise DeviceError("what it remembers is not in our form", where=device, hint=hint) from error


def _is_trust(file: Path) -> bool:
    """Whether a file is JSON, as trust documents are, and no bundle."""
    from paredown.targets.errors import InputError

    try:
        with file.open("rb") as opened:
            return opened.read(1) == b"{"
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror}", where=file) from error


def _print_trust(told: dict[str, Any]) -> None:
    from paredown.targets.errors import visible

    trust = told["trust"]
    if trust is None:
        print("no trust document: bundles are taken from everybody")
        return
    target = told["target"] or "of its first release"
    print(f"trust document {trust['version']}: {trust['threshold']} must sign; target {visible(target)}")
    for key in trust["keys"]:
        print(f"trusted  {visible(key['name'])} {key['keyid'][:SHOWN]}")
    for each in trust["revoked"]:
        print(f"revoked  {each[:SHOWN]}")
    for product, number in sorted(told["newest"].items()):
        print(f"newest   {visible(product)}: {number}")


def _print_verified(found: Verified, trust: Trust | None, problem: Exception | None, as_json: bool) -> None:
    release = found.release
    named = {name: key.name for name, key in trust.keys.items()} if trust else {}
    revoked = trust.revoked if trust else frozenset()

    def state(name: str) -> str:
        if named.get(name) in found.signers:
            return "trusted"
        return "revoked" if name in revoked else "unknown" if name not in named else "not checked"

    rows = [(named.get(name, "-"), name, state(name)) for name in found.keys]
    if as_json:
        print_json({
            "valid": problem is None, "error": None if problem is None else str(problem),
            "name": release.name, "app": release.app, "target": release.target, "release": release.release,
            "expires": release.expires, "manifest": release.manifest, "packed": release.packed,
            "signatures": [{"name": who, "keyid": name, "state": how} for who, name, how in rows],
        })  # fmt: skip
        return
    print(f"release  {release.release} of {release.name} ({release.app}) for {release.target}")
    print(f"expires  {release.expires or 'never'}")
    packed = "" if release.packed is None else "; the packed models"
    print(f"covers   the manifest, and by it every file{packed}")
    for who, name, how in rows:
        print(f"signed   {who} {name[:SHOWN]} {how}")


def _plain(text: object) -> str:
    """What a device says, without what a terminal or a table would obey."""
    from rich.markup import escape

    from paredown.targets.errors import visible

    return escape(visible(str(text)))
