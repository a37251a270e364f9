"""Places for a shared store: an S3-compatible server in this process, and files that fail as told."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec
import s3fs
from fsspec.implementations.memory import MemoryFileSystem

KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Starts a server and says where it is by the variables that every client of S3 reads; gives a bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    os.environ.update(KEYS, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    try:
        bucket = f"s3://bucket-{uuid.uuid4().hex[:8]}"
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
        yield bucket
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.stop()


class Failing(MemoryFileSystem):
    """Files in memory; what is written, or read, ends in an error where there is one."""

    protocol = "failing"
    writes: Exception | None = None
    reads: Exception | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("failing://", "memory://"))

    def _may(self, error: Exception | None) -> None:
        if error is not None:
            raise error

    def pipe_file(self, *words: Any, **options: Any) -> None:
        self._may(Failing.writes)
        super().pipe_file(*words, **options)

    def put_file(self, *words: Any, **options: Any) -> None:
        self._may(Failing.writes)
        super().put_file(*words, **options)

    def rm_file(self, path: str) -> None:
        self._may(Failing.writes)
        super().rm_file(path)

    def cat_file(self, *words: Any, **options: Any) -> bytes:
        self._may(Failing.reads)
        return super().cat_file(*words, **options)


@contextlib.contextmanager
def failing() -> Iterator[str]:
    """A URL of `Failing`, which fails at nothing yet."""
    fsspec.register_implementation("failing", Failing, clobber=True)
    try:
        yield f"failing://{uuid.uuid4().hex}/store"
    finally:
        Failing.writes = Failing.reads = None
