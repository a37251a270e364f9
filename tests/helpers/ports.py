"""A port for a server that is told its number."""

from __future__ import annotations

import random
import socket

#: Below those that Linux gives to who asks for any: nobody's connection gets one between now and its use.
RANGE = range(10_000, 32_000)


def free_port() -> int:
    """A port of the loopback that nobody has, for TCP and for UDP."""
    draw = random.SystemRandom()  # two processes of tests shall not draw the same, whatever their seed
    while True:
        port = draw.choice(RANGE)
        try:
            with (
                socket.create_server(("127.0.0.1", port)),
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
            ):
                datagrams.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
