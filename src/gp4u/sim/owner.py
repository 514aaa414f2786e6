"""Who owns what a simulator leaves in an engine, and whether that owner still lives.

It exists because a container outlives a killed simulator, and because two simulators may share
an engine: the next one must remove what nobody will ever stop, and touch nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path


def identity() -> str:
    """Name this process so that a later one can tell whether it lives: five words.

    The machine, its boot, the PID namespace, the PID, and when the process with it started: a
    PID alone is given away again, and means nothing in another namespace or after a boot.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = Path("/proc/self/ns/pid").readlink().name
    pid = os.getpid()
    return f"{os.uname().nodename} {boot} {namespace} {pid} {_started_at(pid)}"


def is_dead(owner: str) -> bool:
    """Tell whether the process has certainly ended; when in doubt, it lives.

    `owner` begins with the words of `identity`; what follows them is the caller's.
    """
    theirs, ours = owner.split(), identity().split()
    if len(theirs) < len(ours) or theirs[0] != ours[0]:
        return False
    if theirs[1] != ours[1]:
        return True  # the machine was booted since
    if theirs[2] != ours[2] or not theirs[3].isdecimal():
        return False
    return theirs[4] != _started_at(int(theirs[3]))


def _started_at(pid: int) -> str:
    """Return the kernel's start time of a process, "-" where there is none or it is a zombie.

    Source: /proc/pid/stat, proc(5), checked November 2026: fields 3 (state) and 22 (starttime).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "-"
    return "-" if fields[0] in "ZX" else fields[19]
