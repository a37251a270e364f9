"""What `paredown serve` lets nobody do: rebind a name, keep threads, follow links, list, frame the page."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paredown.apps.detector.web import serve
from paredown.apps.detector.web.serve import open_server

pytestmark = pytest.mark.unit


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page, and a secret beside it."""
    folder = tmp_path / "site"
    (folder / "part").mkdir(parents=True)
    for name in ("index.html", "model.json", "part/x.js"):
        (folder / name).write_text("{}")
    (tmp_path / "secret").write_text("secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "inside.js").symlink_to(folder / "part" / "x.js")
    return folder


@contextmanager
def answering(folder: Path) -> Iterator[int]:
    with open_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def answer(port: int, path: str, host: str | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.putrequest("GET", path, skip_host=host is not None)
    if host:
        connection.putheader("Host", host)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, dict(response.headers), body


def test_only_the_names_of_this_machine_are_answered(page: Path) -> None:
    with answering(page) as port:
        for host in (
            "localhost",
            f"127.0.0.1:{port}",
            "192.168.1.7",
            "[::1]:8000",
            socket.gethostname(),
            "LOCALHOST.",
        ):
            assert answer(port, "/model.json", host)[0] == 200, host
        for host in (
            "evil.example",
            f"localhost.evil.example:{port}",
            "127.0.0.1.evil.example",
            "local",
            "a@localhost",
            "",
        ):
            status, _, body = answer(port, "/model.json", host or " ")
            assert status == 421 and b"{}" not in body, host


def test_nothing_is_listed_and_no_link_leads_out(page: Path) -> None:
    with answering(page) as port:
        assert answer(port, "/")[0] == answer(port, "/inside.js")[0] == 200
        for path in ("/part/", "/out", "/folder/secret", "/folder/", "/../secret", "/%2e%2e/secret", "/none"):
            status, _, body = answer(port, path)
            assert status in (301, 404) and b"secret" not in body, path


def test_the_headers_tell_no_version_and_let_nobody_frame_the_page(page: Path) -> None:
    with answering(page) as port:
        for path in ("/", "/none"):
            headers = answer(port, path)[1]
            assert headers["Server"].strip() == "paredown"
            policy = headers["Content-Security-Policy"]
            assert "frame-ancestors 'none'" in policy and "default-src 'self'" in policy
            assert "unsafe-inline" not in policy and "*" not in policy


def test_who_says_nothing_is_sent_away(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "REQUEST_S", 0.05)
    with answering(page) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-")
        assert slow.recv(100) == b""  # the other side has closed


def test_who_comes_when_all_threads_are_taken_is_sent_away(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "THREADS", 1)
    with answering(page) as port:
        with socket.create_connection(("127.0.0.1", port)) as first:
            first.sendall(b"GET / HT")
            with socket.create_connection(("127.0.0.1", port)) as second:
                assert second.recv(100) == b""
            first.sendall(b"TP/1.0\r\nHost: localhost\r\n\r\n")
            assert first.recv(12) == b"HTTP/1.0 200"
