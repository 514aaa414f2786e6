"""What runs around a workload where a market has no word for it: a shell script.

Files, commands that come first, a working directory and restarting are no business of a market that
starts one container. Where the entrypoint is known, this script stands in its place: it writes the
files, runs what comes first, then the workload, again and again if that is wanted, and says in the
log what it does. It needs `sh`, `mkdir`, `chmod`, `base64`, `sleep` and `date` in the image. Pure.

The log lines (`gp4u: ...`) stand at the end of a line, after whatever the workload left unfinished:

    gp4u: init 0             the first of `before` starts
    gp4u: init 0 exit 0      it ended; where it may be tried again, it is
    gp4u: run 1              the workload starts for the first time
    gp4u: exit 137           it ended; 128 + n for signal n

How a market takes such a script, and how long it may be there, is its adapter's business.
"""

from __future__ import annotations

import base64
import gzip
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, assert_never

from gp4u.errors import BadInput
from gp4u.model import File, Restart, Workload

PID_FILE: Final = "/tmp/.gp4u.pid"  # noqa: S108 - inside of a rented container, which is ours alone
"""Holds the number of the script's own process."""
ENV_FILE: Final = "/tmp/.gp4u.env"  # noqa: S108 - same; readable for its owner only
"""What to source to see the workload's variables and directory, as a shell session may not."""
FIRST_DELAY_S: Final = 10
MAX_DELAY_S: Final = 300
GOOD_RUN_S: Final = 600
"""After a run of this length the delay begins anew. Source: kubernetes documentation, pod
lifecycle, container restart policy; checked 2026-11."""
MARKER: Final = re.compile(r"gp4u: (?:(run) (\d+)|(exit) (\d+)|(init) (\d+)(?: exit (\d+))?)$")
"""Matches a line's end: (run, n), (exit, code), (init, index) or (init, index, code)."""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
STOP_COMMAND: Final = (
    "sh",
    "-c",
    f'kill -TERM "$(cat "${{GP4U_ROOT:-}}{PID_FILE}")"',
)
"""Run inside, it ends the workload as a container's stop would: TERM, and no other run."""

_PRELUDE: Final = f"""\
gp4u_r=${{GP4U_ROOT:-}}
mkdir -p "$gp4u_r/tmp"
(umask 077; export -p >"$gp4u_r{ENV_FILE}")
echo $$ >"$gp4u_r{PID_FILE}"
gp4u_c= gp4u_t= gp4u_e=0
trap 'gp4u_t=1; [ -z "$gp4u_c" ] || kill -TERM $gp4u_c 2>/dev/null' TERM
gp4u_x() {{
"$@" & gp4u_c=$!
[ -z "$gp4u_t" ] || kill -TERM $gp4u_c 2>/dev/null
wait $gp4u_c; gp4u_e=$?
while kill -0 $gp4u_c 2>/dev/null; do wait $gp4u_c; gp4u_e=$?; done
gp4u_c=
}}
gp4u_z() {{ gp4u_o=$gp4u_e; gp4u_x sleep $gp4u_d; gp4u_e=$gp4u_o
gp4u_d=$((gp4u_d*2)); [ $gp4u_d -le {MAX_DELAY_S} ] || gp4u_d={MAX_DELAY_S}; }}
"""
"""`gp4u_x` runs a command, forwards TERM to it and leaves its exit code; `gp4u_z` waits a while.

A shell ignores a signal's arrival until its foreground command ends; so the command runs in the
background and is waited for, again after a trap has cut the waiting short.
"""
_FILE: Final = """\
gp4u_f() { mkdir -p "$gp4u_r$1" && printf %s "$4" | base64 -d >"$gp4u_r$1/$2" \
&& chmod "$3" "$gp4u_r$1/$2" || { echo "cannot write $1/$2"; gp4u_e=126; gp4u_q; }; }
"""


def is_needed(workload: Workload) -> bool:
    """Tell whether a workload asks for something that takes the script, and can be had by it."""
    around = workload.files or workload.directories or workload.before
    wanted = around or workload.working_dir or workload.restart
    return bool(wanted) and bool(workload.entrypoint)


def script(workload: Workload, *, hold: bool = False) -> str:
    """Return the script; with `hold` it stays when the workload is over, and waits for TERM.

    To be held is for markets that would start a container anew whenever it ends.

    Raises:
        BadInput: the entrypoint is not known, or something in it can be no text of a program.
    """
    if not workload.entrypoint:
        raise BadInput("entrypoint", "", "must be known where something is done around a workload")
    lines = [_PRELUDE, _quit(hold=hold)]
    if workload.directories:
        lines.append(_made(workload.directories))
    if workload.files:
        lines += [_FILE, *(_written(file) for file in workload.files)]
    if workload.working_dir:
        there = _absolute("working_dir", workload.working_dir)
        place = '"${GP4U_ROOT:-}"' + _quoted("working_dir", [there])
        lines.append(f"mkdir -p {place} && cd {place} || {{ gp4u_e=126; gp4u_q; }}\n")
        lines.append(f"printf '%s\\n' {shlex.quote(f'cd {place}')} >>\"$gp4u_r{ENV_FILE}\"\n")
    for number, command in enumerate(workload.before):
        lines.append(_first(number, command, workload.restart))
    words = _quoted("command", [*workload.entrypoint, *workload.command])
    lines.append(_again(words, workload.restart))
    return "".join(lines)


def exported(variables: Mapping[str, str]) -> str:
    """Return lines that set variables, for a script to begin with.

    Raises:
        BadInput: one has a name that a shell cannot set.
    """
    for name in variables:
        if not _NAME.fullmatch(name):
            raise BadInput("env", name[:40], "a shell cannot set a variable of this name")
    return "".join(
        f"export {name}={_quoted('env', [value])}\n" for name, value in variables.items()
    )


def inside(command: Sequence[str]) -> str:
    """Return a shell line that runs a command with the workload's variables and directory."""
    env = f'"${{GP4U_ROOT:-}}{ENV_FILE}"'
    return f"[ ! -r {env} ] || . {env}; exec {shlex.join(command)}"


def packed(text: str, *, prefix: str, piece: int) -> tuple[str, Mapping[str, str]]:
    """Return a short script and variables that hold a long one, in pieces of so many characters.

    Needs `gzip` in the image. The variables are gone when the long script begins.
    """
    whole = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    pieces = [whole[at : at + piece] for at in range(0, len(whole), piece)]
    short = (
        f"gp4u_s= gp4u_i=0;while [ $gp4u_i -lt {len(pieces)} ];do "
        f'eval "gp4u_s=\\$gp4u_s\\${prefix}$gp4u_i;unset {prefix}$gp4u_i";'
        "gp4u_i=$((gp4u_i+1));done;"
        'eval "$(printf %s "$gp4u_s"|base64 -d|gzip -d)"'
    )
    return short, {f"{prefix}{number}": part for number, part in enumerate(pieces)}


def markers(log: str) -> Iterator[tuple[str, ...]]:
    """Yield what the lines of a log say, in order, as `MARKER` finds it."""
    for line in log.splitlines():
        if found := MARKER.search(line):
            yield tuple(part for part in found.groups() if part is not None)


def _quit(*, hold: bool) -> str:
    wait = 'gp4u_o=$gp4u_e; while [ -z "$gp4u_t" ]; do gp4u_x sleep 3600; done; gp4u_e=$gp4u_o; '
    return f"gp4u_q() {{ {wait if hold else ''}exit $gp4u_e; }}\n"


def _made(directories: Sequence[str]) -> str:
    paths = [_absolute("directories", each) for each in directories]
    return (
        f"for gp4u_p in {_quoted('directories', paths)}; do\n"
        'mkdir -p -m 777 "$gp4u_r$gp4u_p" || '
        '{ echo "cannot make $gp4u_p"; gp4u_e=126; gp4u_q; }; done\n'
    )


def _written(file: File) -> str:
    folder, name = posixpath.split(_absolute("files", file.path))
    if not name:
        raise BadInput("files", file.path, "must name a file")
    content = base64.b64encode(file.content).decode()
    where = _quoted("files", [folder.rstrip("/"), name])
    return f"gp4u_f {where} {file.mode & 0o7777:o} {content or _NOTHING}\n"


def _first(number: int, command: Sequence[str], restart: Restart | None) -> str:
    if not command:
        raise BadInput("before", number, "must not be an empty command")
    again = restart in (Restart.ALWAYS, Restart.ON_FAILURE)
    otherwise = 'gp4u_z; [ -z "$gp4u_t" ] || gp4u_q' if again else "gp4u_q"
    return (
        f"gp4u_d={FIRST_DELAY_S}\n"
        f'while :; do echo "gp4u: init {number}"\n'
        f"gp4u_x {_quoted('before', command)}\n"
        f'echo "gp4u: init {number} exit $gp4u_e"\n'
        f'[ -z "$gp4u_t" ] || gp4u_q\n[ $gp4u_e -ne 0 ] || break\n{otherwise}; done\n'
    )


def _again(words: str, restart: Restart | None) -> str:
    """Return the loop around the workload itself."""
    match restart:
        case Restart.ALWAYS:
            wanted = ":"
        case Restart.ON_FAILURE:
            wanted = "[ $gp4u_e -ne 0 ]"
        case Restart.NEVER | None:
            wanted = "false"
        case _:
            assert_never(restart)
    return (
        f"gp4u_n=0 gp4u_d={FIRST_DELAY_S}\n"
        "while :; do gp4u_n=$((gp4u_n+1)) gp4u_s=$(date +%s)\n"
        'echo "gp4u: run $gp4u_n"\n'
        f"gp4u_x {words}\n"
        'echo "gp4u: exit $gp4u_e"\n'
        f'[ -z "$gp4u_t" ] && {wanted} || gp4u_q\n'
        f"[ $(($(date +%s)-gp4u_s)) -lt {GOOD_RUN_S} ] || gp4u_d={FIRST_DELAY_S}\n"
        'gp4u_z; [ -z "$gp4u_t" ] || gp4u_q; done\n'
    )


def _absolute(field: str, path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/"):
        raise BadInput(field, path[:80], "must be an absolute path without ..")
    return path


def _quoted(field: str, words: Sequence[str]) -> str:
    if any("\0" in word for word in words):
        raise BadInput(field, "...", "must not hold a zero byte")
    return shlex.join(words)


_NOTHING: Final = "''"
