"""Hands out a page made by `paredown web`, with the headers that threads in a browser take."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from paredown.targets.errors import DeviceError, InputError

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
THREADS = 64  # connections that are answered at once
SILENCE_S, REQUEST_S = 10.0, 20.0  # without a byte; until a request is whole
_DAYS = 30  # that a certificate is valid
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class _Handler(SimpleHTTPRequestHandler):
    server_version, sys_version = "paredown", ""  # no version of anything
    timeout = SILENCE_S
    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        ".webmanifest": "application/manifest+json",
    }

    def setup(self) -> None:
        """Gives the request its time: a byte now and then does not keep a thread."""
        super().setup()
        self._late = threading.Timer(REQUEST_S, self._cut)
        self._late.daemon = True
        self._late.start()

    def finish(self) -> None:
        """Ends the request's clock too."""
        self._late.cancel()
        with contextlib.suppress(OSError):  # the client has gone
            super().finish()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def parse_request(self) -> bool:
        """Refuses requests that were meant for another name: a page elsewhere whose name leads here."""
        read = super().parse_request()
        self._late.cancel()
        if read and not _is_here(self.headers.get_all("Host", [])):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "Not the name of this server")
            return False
        return read

    def send_head(self) -> Any:
        """Opens a file of the page; none that a link leads to elsewhere, and nothing that is no file."""
        root, asked = Path(self.directory).resolve(), Path(self.translate_path(self.path))
        asked = asked / "index.html" if asked.is_dir() else asked
        file = asked.resolve()
        if not file.is_file() or not file.is_relative_to(root):
            self.send_error(HTTPStatus.NOT_FOUND, "No such file")
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> None:
        """Lists nothing."""
        self.send_error(HTTPStatus.NOT_FOUND, "No such file")

    def end_headers(self) -> None:
        """Isolates the page, and has browsers ask again: what is to be kept, the service worker keeps."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        """Says nothing: the pages say what goes wrong."""


class _Server(ThreadingHTTPServer):
    """Answers at most so many at once; who comes then is sent away."""

    request_queue_size = 2 * THREADS

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self._free = threading.Semaphore(THREADS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for a connection, if one is free."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What the thread does."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that go away, or speak no TLS."""


def _is_here(hosts: Sequence[str]) -> bool:
    """Whether a request names this machine: by address, as localhost, or by its own name."""
    if len(hosts) != 1:
        return False
    name = re.sub(r":\d{1,5}$", "", hosts[0]).lower().removesuffix(".")
    own = socket.gethostname().lower()
    if name in ("localhost", own, f"{own}.local"):
        return True
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name.strip("[]")))
    return False


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
        return _Server((host, port), partial(_Handler, directory=folder))
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
