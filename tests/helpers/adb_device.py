"""Android-style devices for the tests: Debian's own adbd on the loopback, and one that asks for leave.

adbd listens to everybody, so a few lines of C keep it on the loopback.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import threading
from pathlib import Path

from device_contract import until
from needs import missing, needs
from ports import free_port

HOST = "127.0.0.1"
ADBD = Path("/usr/lib/android-sdk/platform-tools/adbd")

_LOOPBACK = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>

/* What adbd starts must not inherit this library. */
__attribute__((constructor)) static void once(void) { unsetenv("LD_PRELOAD"); }

int bind(int fd, const struct sockaddr *given, socklen_t length) {
    int (*system_bind)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "bind");
    struct sockaddr_in6 six;
    struct sockaddr_in four;
    int off = 0;
    switch (given->sa_family) {
    case AF_INET:
        four = *(const struct sockaddr_in *)given;
        four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return system_bind(fd, (struct sockaddr *)&four, sizeof four);
    case AF_INET6:
        six = *(const struct sockaddr_in6 *)given;
        inet_pton(AF_INET6, "::ffff:127.0.0.1", &six.sin6_addr);
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        return system_bind(fd, (struct sockaddr *)&six, sizeof six);
    case AF_UNIX:
        return system_bind(fd, given, length);
    default: /* sockets of a hypervisor, for one */
        errno = EACCES;
        return -1;
    }
}
"""


def loopback_library(folder: Path) -> Path:
    """Compiles what keeps adbd on the loopback."""
    (folder / "loopback.c").write_text(_LOOPBACK)
    library = folder / "loopback.so"
    subprocess.run([needs("cc", "gcc"), "-shared", "-fPIC", "-o", library, folder / "loopback.c"], check=True)
    return library


class Adbd:
    """A device.

    Attributes:
        port: on the loopback.
        serial: as `adb connect` makes it.
    """

    def __init__(self, library: Path, home: Path) -> None:
        if not ADBD.exists():
            missing("`adbd` is not installed (Debian: adbd, from bookworm-backports)")
        if os.geteuid():
            missing("adbd must be started by root")
        self.port = free_port()
        self.serial = f"{HOST}:{self.port}"
        self._command, self._home = [str(ADBD)], home
        self._environment = {
            "PATH": os.environ["PATH"], "HOME": str(home), "ADBD_PORT": str(self.port),
            "LD_PRELOAD": str(library), "LD_LIBRARY_PATH": "/usr/lib/x86_64-linux-gnu/android",
        }  # fmt: skip
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, env=self._environment, cwd=self._home, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: listens_on(self.port), "adbd listens")

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def listens_on(port: int) -> set[str]:
    """The addresses on which this machine listens on a port, as /proc has them."""
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}


class Unauthorising:
    """A device that speaks adb's protocol, asks for a key, and whose user does not look at the screen.

    The protocol: AOSP's packages/modules/adb/protocol.txt.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self.serial = f"{HOST}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._ask, args=(connection.makefile("rwb"),), daemon=True).start()

    def _ask(self, stream) -> None:
        token, signature = 1, 2
        while len(head := stream.read(24)) == 24:
            command, kind, _, size, _, _ = struct.unpack("<4s5I", head)
            stream.read(size)
            if command == b"CNXN" or (command == b"AUTH" and kind == signature):
                data = b"any twenty bytes do."
                magic = int.from_bytes(b"AUTH", "little") ^ 0xFFFFFFFF
                stream.write(struct.pack("<4s5I", b"AUTH", token, 0, len(data), sum(data), magic) + data)
                stream.flush()
