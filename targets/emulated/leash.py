"""Programs that end when we do, also where we are killed: a shell holds them and listens for our end."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Runs a program until it ends, or until standard input does, which nobody but us holds open. The signal is
#: repeated: what is just being started may miss one.
_HOLD = """
signal=$1
shift
exec 3<&0
"$@" 3<&- </dev/null &
program=$!
{ cat; while kill -s "$signal" $program; do sleep 0.1; done; } <&3 3<&- >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait $program
kill $watcher
"""


@contextmanager
def held(
    command: Sequence[str], signal: str, log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program in the background, in a session of its own: the terminal's Ctrl-C is ours to answer.

    Args:
        command: program and arguments.
        signal: that ends it, "TERM".
        log: the file for what it says.
        environment: of it; PATH leads to `cat` and `sleep`.

    Yields:
        What holds it: over, where the program is.
    """
    with log.open("wb") as output:
        holder = subprocess.Popen(
            ["/bin/sh", "-c", _HOLD, "sh", signal, *command], env=environment, start_new_session=True,
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    assert holder.stdin
    try:
        yield holder
    finally:
        holder.stdin.close()
        holder.wait()
