"""Hands out a page made by `paredown web`, with the headers that threads in a browser take."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from paredown.targets.errors import DeviceError, InputError

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
_DAYS = 30  # that a certificate is valid


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        ".webmanifest": "application/manifest+json",
    }

    def end_headers(self) -> None:
        """Isolates the page, and has browsers ask again: what is to be kept, the service worker keeps."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        """Says nothing: the pages say what goes wrong."""


def open_server(folder: Path, host: str = LOOPBACK, port: int = 0) -> ThreadingHTTPServer:
    """A server of a page, listening; `serve_forever` answers, `shutdown` and `server_close` end it.

    Args:
        folder: made by `paredown web`.
        host: `LOOPBACK`, or `EVERYWHERE` for other machines too.
        port: 0 is any free one.

    Raises:
        InputError: the folder is no page.
        DeviceError: the port is taken or not allowed.
    """
    if not all((folder / name).is_file() for name in ("index.html", "model.json")):
        raise InputError("no page here", where=folder, hint="make one with `paredown web BUNDLE --out site/`")
    try:
        return ThreadingHTTPServer((host, port), partial(_Handler, directory=folder))
    except OSError as error:
        what = f"port {port} cannot be opened: {error.strerror}"
        raise DeviceError(what, hint="choose another one with --port") from error


def secure(server: ThreadingHTTPServer, certificate: bytes, folder: Path) -> None:
    """Makes a server speak https.

    Args:
        server: not yet answering.
        certificate: of `self_signed`.
        folder: where the certificate is put for as long as it is being read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    path = folder / "certificate.pem"
    path.touch(mode=0o600)
    path.write_bytes(certificate)
    context.load_cert_chain(path)
    # The handshake belongs to the connection's own thread: a silent client must not keep others out.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)


def self_signed(addresses: Sequence[str]) -> bytes:
    """A new key with its certificate, PEM, valid for 30 days.

    Args:
        addresses: names and IP addresses that it is for.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "paredown serve")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(
            x509.SubjectAlternativeName([_alternative(each) for each in addresses]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def _alternative(address: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def lan_address() -> str | None:
    """This machine's address in its local network; None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: UDP only chooses a way out (RFC 5737)
        except OSError:
            return None
        return str(probe.getsockname()[0])
