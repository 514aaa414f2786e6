"""Instances that are processes of this machine, each kept by a tether; the runtime of `process`.

An image is not looked at, so what an instance sees of files is this machine's. One that writes
files of its own is given a view of them where the kernel allows it (see `tether.py`), and commands
that enter it later see what it sees. Ports are numbers of this machine: the environment tells a
process which one to listen on for which container port.

What the interface means is in `launch.py`, what a command inside is made of in `inside.py`.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import shutil
import socket as net
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from types import MappingProxyType
from typing import IO, Final

import msgspec

from gp4u.sim import program, tether
from gp4u.sim.inside import Spawned, spawned
from gp4u.sim.launch import (
    LOOPBACK,
    Inside,
    Launch,
    LaunchFailed,
    PortMap,
    Running,
    last_lines,
)
from gp4u.sim.starting import Gate, stop_all

_GRACE_S = 3
"""Between SIGTERM and SIGKILL when an instance is stopped."""

_HOST_PORTS = range(20000, 32000)
"""Below the kernel's range for outgoing connections (32768 up, ip(7)): none of those can take a
port between our choosing it and the instance's listening on it."""

_NOT_RUNNING: Final = "container is not running"


class _Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process runs, and by which numbers it is reached."""

    directory: str
    env: dict[str, str]
    ports: PortMap
    address: str
    own_root: bool = False


class _Process:
    """A command and the tether that keeps it."""

    def __init__(
        self, place: _Place, keeper: asyncio.subprocess.Process, log: IO[bytes], pid: int
    ) -> None:
        self.ports = place.ports
        self._place, self._keeper, self._log, self._pid = place, keeper, log, pid
        self._inside: list[Spawned] = []
        self._stopping = False
        self._code: int | None = None
        self._lock = asyncio.Lock()

    async def logs(self, tail: int) -> str:
        async with self._lock:
            if self._log.closed:
                return ""
            data = await asyncio.to_thread(self._read_log)
        return last_lines(data.decode(errors="replace"), tail)

    def _read_log(self) -> bytes:
        fd = self._log.fileno()
        with tether.locked(fd, fcntl.LOCK_SH):
            return os.pread(fd, os.fstat(fd).st_size, 0)

    async def enter(self, argv: Sequence[str], *, tty: bool) -> Inside:
        if self._stopping or self._keeper.returncode is not None:
            raise LaunchFailed(_NOT_RUNNING)
        place = self._place
        try:
            made = await spawned(
                argv,
                place.env,
                tty=tty,
                directory=place.directory,
                root=f"/proc/{self._pid}/root" if place.own_root else None,
            )
        except OSError as error:
            raise LaunchFailed(_refusal(argv[0], {"errno": error.errno or 0})) from error
        self._inside = [each for each in self._inside if not each.is_over]
        self._inside.append(made)
        return made

    async def reach(self, port: int) -> tuple[str, int]:
        published = self.ports.get((port, "tcp"))
        if published is None:
            return LOOPBACK, port  # it has no network of its own
        return self._place.address, published

    async def stop(self) -> None:
        self._code, self._stopping = self.exited(), True
        for each in self._inside:
            await each.end()
        async with self._lock:
            if not self._log.closed:
                await _let_go(self._keeper)
                self._log.close()

    def exited(self) -> int | None:
        code = self._code if self._stopping else self._keeper.returncode
        return 128 - code if code is not None and code < 0 else code


class Processes:
    """The runtime of `process`."""

    name = "process"

    def __init__(self, random: Random, address: str) -> None:
        self._random, self.address = random, address
        self._running: list[_Process] = []
        self._taken: set[int] = set()
        self._gate = Gate()

    async def start(self, launch: Launch) -> Running:
        argv = ([launch.entrypoint] if launch.entrypoint else []) + list(launch.command or ())
        if not argv:
            argv = [sys.executable, "-I", "-S", program.__file__]
        with self._gate.passed():
            ports = {(p.number, p.protocol): self._free_port(p.protocol) for p in launch.ports}
            running = await self._tethered(argv, launch, MappingProxyType(ports))
            self._running.append(running)
        return running

    async def aclose(self) -> None:
        await self._gate.shut()
        await stop_all(self._running)

    def _free_port(self, protocol: str) -> int:
        kind = net.SOCK_DGRAM if protocol == "udp" else net.SOCK_STREAM
        for number in self._random.sample(_HOST_PORTS, 256):
            if number in self._taken:
                continue
            with net.socket(net.AF_INET, kind) as probe, suppress(OSError):
                probe.bind((self.address, number))
                self._taken.add(number)
                return number
        raise LaunchFailed("driver failed programming external connectivity: no host port is free")

    async def _tethered(self, argv: list[str], launch: Launch, ports: PortMap) -> _Process:
        directory, log = _room()
        env = _environment(directory, launch.env, ports, self.address)
        order: tether.Order = {
            "argv": argv,
            "env": env,
            "directory": directory,
            "own_root": launch.own_root,
            "log_fd": log.fileno(),
            "grace_s": _GRACE_S,
        }
        try:
            keeper = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", tether.__file__),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={},
                cwd="/",
                pass_fds=(log.fileno(),),
                start_new_session=True,
            )
            try:
                report = await _hand_over(keeper, order)
                if "pid" not in report:
                    raise LaunchFailed(_refusal(argv[0], report))
            except BaseException:
                await _let_go(keeper)
                raise
        except BaseException:
            log.close()
            shutil.rmtree(directory, ignore_errors=True)
            raise
        own_root = report.get("own_root", False)
        place = _Place(
            directory=directory,
            env=tether.told(order, own_root=own_root),
            ports=ports,
            address=self.address,
            own_root=own_root,
        )
        return _Process(place, keeper, log, report["pid"])


def _room() -> tuple[str, IO[bytes]]:
    """Make a directory for one process, and a log file without a name: it goes with its users."""
    directory = tempfile.mkdtemp(prefix="gp4u-instance-")
    return directory, tempfile.TemporaryFile(prefix="gp4u-log-")


def _environment(
    directory: str, env: dict[str, str], ports: PortMap, address: str
) -> dict[str, str]:
    """Return all of a process's environment, as `process` documents it."""
    told = {
        f"PORT_{port}" if protocol == "tcp" else f"PORT_{port}_{protocol.upper()}": str(number)
        for (port, protocol), number in ports.items()
    }
    if ports:
        told["PORT"] = str(next(iter(ports.values())))
    told["GP4U_PORTS"] = ",".join(
        f"{port}/{protocol}={number}" for (port, protocol), number in ports.items()
    )
    told["GP4U_ADDRESS"] = address
    own = {"PATH": os.environ.get("PATH", os.defpath), "HOME": directory, "TMPDIR": directory}
    return own | env | told


async def _hand_over(keeper: asyncio.subprocess.Process, order: tether.Order) -> tether.Report:
    """Give the tether its order, and return what became of it."""
    assert keeper.stdin is not None and keeper.stdout is not None  # noqa: PT018, S101 -- for the type checker: both are pipes
    with suppress(ConnectionError):  # a tether that died says so by an empty report
        keeper.stdin.write(json.dumps(order).encode() + b"\n")
        await keeper.stdin.drain()
    line = await keeper.stdout.readline()
    if not line:
        return {"errno": 0, "error": "the process that keeps it ended at once"}
    return msgspec.json.decode(line, type=tether.Report)


async def _let_go(keeper: asyncio.subprocess.Process) -> None:
    """Close the tether's stdin, by which it ends what it keeps, and wait for that."""
    assert keeper.stdin is not None  # noqa: S101 -- for the type checker: it is a pipe
    keeper.stdin.close()
    await keeper.wait()


def _refusal(executable: str, report: tether.Report) -> str:
    """Say why a command did not start, in the words of a Docker host.

    Source: opencontainers/runc and moby/moby 24, their texts for a command that is absent or may
    not be executed, seen November 2026.
    """
    match report.get("errno"):
        case errno.ENOENT if "/" in executable:
            reason = f"stat {executable}: no such file or directory"
        case errno.ENOENT:
            reason = "executable file not found in $PATH"
        case int() as number if number:
            reason = os.strerror(number).lower()
        case _:
            reason = report.get("error", "")
    return (
        "failed to create task for container: failed to create shim task: "
        "OCI runtime create failed: runc create failed: unable to start container process: "
        f"exec: {json.dumps(executable)}: {reason}: unknown"
    )
