"""What is said to a device: POSIX sh and the handful of programs that busybox and toybox have too.

The device's user may have any login shell (csh, fish), and it may print whatever it likes first. So it is
given one short line that all of them read alike, `begin`; the sh that this starts says a mark and reads the
script itself, as one line, from standard input.

On the device a folder BASE holds `work`, the workspace, and `jobs`: for each program that we started a file
with the number of its process group. Three things end such a program, so that none outlives us: our standard
input, which closes when the connection goes, its own time limit, and the next who reads `jobs`. A program
that moves to another session, as daemons do, escapes them.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence

# Exit statuses with a meaning of ours.
MISSING_TOOL, DIFFERENT, NO_FILE = 90, 91, 92

_SHA256 = """
sha256() {
    { sha256sum || busybox sha256sum || toybox sha256sum || openssl dgst -sha256 -r ||
      python3 -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
    } <"$1" 2>/dev/null | cut -c1-64
}
"""

_PREPARE = f"""{_SHA256}
lacks=
for tool in cat chmod cut dirname env mkdir mktemp mv rm setsid sleep wc; do
    command -v $tool >/dev/null || lacks="$lacks $tool"
done
[ -n "$(sha256 /dev/null)" ] || lacks="$lacks sha256sum"
[ -z "$lacks" ] || {{ echo $lacks >&2; exit {MISSING_TOOL}; }}
umask 077
for parent in "$TMPDIR" /tmp /data/local/tmp "$HOME"; do
    [ -w "$parent" ] && base=$(mktemp -d "$parent/paredown.XXXXXX") || continue
    mkdir "$base/work" "$base/jobs" && echo "$base" && exit
    rm -rf "$base"
done
echo "no folder can be made in TMPDIR, /tmp, /data/local/tmp or HOME" >&2
exit 1
"""

_PUSH = f"""{_SHA256}
cd "$1/work" || exit
[ ! -d "$2" ] || {{ echo "$2 is a folder" >&2; exit 1; }}
part=$2.part
mkdir -p "$(dirname "$2")" && cat >"$part" || {{ status=$?; rm -f "$part"; exit $status; }}
arrived=$(sha256 "$part")
[ "$arrived" = "$3" ] || {{ wc -c <"$part"; rm -f "$part"; exit {DIFFERENT}; }}
chmod "$4" "$part" && mv -f "$part" "$2" || {{ status=$?; rm -f "$part"; exit $status; }}
"""

_PULL = f"""{_SHA256}
cd "$1/work" && [ -f "$2" ] || exit {NO_FILE}
echo "$(sha256 "$2") $(wc -c <"$2")"
cat "$2"
"""

_ARGUMENTS = """
base=$1 job=$2 seconds=$3 watch=$4
shift 4
cd "$base/work" || exit
exec 3<&0
"""

_WAIT = """
watcher=$!
exec 3<&-
{ echo $program >"$base/jobs/$job"; } 2>/dev/null
wait $program 2>/dev/null
status=$?
{ kill -KILL -$program; kill -KILL -$watcher || kill -KILL $watcher; rm -f "$base/jobs/$job"; } 2>/dev/null
exit $status
"""

# The program has a session, and so a process group, of its own: it is ended as a whole, with what it started.
_RUN = f"""{_ARGUMENTS}
setsid env "$@" 3<&- </dev/null &
program=$!
setsid sh -c "$watch" sh $program "$seconds" <&3 3<&- >/dev/null 2>&1 &
{_WAIT}
"""

# Only one can read standard input, and it is the watcher, who has to know when it ends; he passes on what he
# reads. Both ends of the pipe that `:` leaves are ours: not every device has a place for one with a name. An
# emulated board has one, and no /proc that would give us the other end.
_TALK = f"""{_ARGUMENTS}
: | {{
if [ -e /proc/self/fd/0 ]; then
    exec 4<&0 5>/proc/self/fd/0
else
    mkfifo "$base/jobs/$job.pipe" || exit
    exec 6<>"$base/jobs/$job.pipe"
    exec 4<"$base/jobs/$job.pipe" 5>"$base/jobs/$job.pipe" 6<&-
    rm "$base/jobs/$job.pipe"
fi
setsid env "$@" 3<&- <&4 4<&- 5>&- &
program=$!
setsid sh -c "$watch" sh $program "$seconds" <&3 3<&- 4<&- >&5 5>&- 2>/dev/null &
exec 4<&- 5>&-
{_WAIT}
}}
"""

# Ends the program when standard input does, or after so many seconds. Before `setsid` had its turn there is
# no group to end, only a process.
_WATCH = """
finish() { kill -KILL "-$1" || kill -KILL "$1"; kill -KILL -$$; }
{ sleep "$2"; finish "$1"; } &
cat
finish "$1"
"""

_END = """
base=$1
shift
for job in "$@"; do
    [ -f "$base/jobs/$job" ] && read -r group <"$base/jobs/$job" && kill -KILL "-$group" 2>/dev/null
    rm -f "$base/jobs/$job"
done
exit 0
"""

_LEAVE = """
for job in "$1"/jobs/*; do
    [ -f "$job" ] && read -r group <"$job" && kill -KILL "-$group" 2>/dev/null
done
rm -rf "$1"
"""


def begin(mark: str) -> str:
    """The line for the login shell: sh says the mark on both its streams, and does what it reads then.

    Args:
        mark: letters and digits.
    """
    return f'exec sh -c \'echo {mark}; echo {mark} >&2; IFS= read -r line; eval "$(printf %b "$line")"\''


def one_line(script: str) -> bytes:
    """A script as the sh of `begin` reads it."""
    return script.replace("\\", "\\\\").replace("\n", "\\n").encode() + b"\n"


def prepare() -> str:
    """Checks that the device has what we need and makes BASE; its last line of output is that folder."""
    return _command(_PREPARE)


def push(base: str, target: str, sha256: str, executable: bool) -> str:
    """Takes a file from standard input; ends with DIFFERENT, and how many bytes came, if it is another."""
    return _command(_PUSH, base, _below(target), sha256, "755" if executable else "644")


def pull(base: str, source: str) -> str:
    """Gives a line with sha256 and size of a file, and then the file; or ends with NO_FILE."""
    return _command(_PULL, base, _below(source))


def run(base: str, job: str, seconds: float, command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Runs a program in the workspace for at most so many seconds or until standard input ends."""
    return _started(_RUN, base, job, seconds, command, environment)


def talk(base: str, job: str, seconds: float, command: Sequence[str], environment: Mapping[str, str]) -> str:
    """As `run`; the program reads standard input."""
    return _started(_TALK, base, job, seconds, command, environment)


def _started(
    start: str, base: str, job: str, seconds: float, command: Sequence[str], environment: Mapping[str, str]
) -> str:
    variables = [f"{name}={value}" for name, value in environment.items()]
    limits = [base, job, str(math.ceil(seconds)), _WATCH]
    return _with(start, *limits, *variables, *command)


def end(base: str, jobs: Iterable[str]) -> str:
    """Ends what is left of some programs."""
    return _command(_END, base, *jobs)


def leave(base: str) -> str:
    """Ends what is left of all programs and removes BASE."""
    return _command(_LEAVE, base)


def _command(script: str, *arguments: str) -> str:
    """A script that complains in English."""
    return "export LC_ALL=C\n" + _with(script, *arguments)


def _with(script: str, *arguments: str) -> str:
    return f"{shlex.join(['set', '--', *arguments])}\n{script}"


def _below(path: str) -> str:
    """A path that no program takes for an option."""
    return f"./{path}"
