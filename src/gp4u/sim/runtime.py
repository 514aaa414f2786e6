"""What runs in a rented instance: nothing, a real local process, or a real container.

The simulated providers start and stop instances through one small interface, `Runtime`, and so
need not know how real a rented machine is. `pretend` makes up ports and logs. `process` runs the
instance's command on this machine, each kept by `tether.py`. `container` runs the image asked
for through the engine behind `engine.py`. None of them knows of prices, contracts or states of
an instance: that is the world's and the dialects' part.

Nothing outlives the simulator: a process dies with it, and a container carries a label that says
whose it is, by which the next simulator finds and removes it.

On tasks: a running container owns one, which waits for the container's end. It is cancelled and
awaited in `stop`; a runtime awaits every `stop` in `aclose`. There is no other background work.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import resource
import secrets
import shutil
import socket as net
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from random import Random, SystemRandom
from types import MappingProxyType
from typing import IO, Protocol

import msgspec

from gp4u.sim import engine as engines
from gp4u.sim import program, tether
from gp4u.sim.engine import Engine, EngineError
from gp4u.sim.owner import identity, is_dead

LABEL = "gp4u.sim.owner"
"""On each container: which simulator started it, by `owner.py`, and which of its runtimes."""

_GRACE_S = 3
"""Between SIGTERM and SIGKILL when an instance is stopped."""

_HOST_PORTS = range(20000, 32000)
"""Below the kernel's range for outgoing connections (32768 up, ip(7)): none of those can take a
port between our choosing it and the instance's listening on it."""

_PRETENDED_PORTS = range(40000, 65536)

_MOST_FILES, _MOST_PROCESSES = 65536, 32768
"""Limits of a container, where ours are not lower. By default engines ask for more, and an engine
without CAP_SYS_RESOURCE cannot give a container more than it has itself; podman lowers itself to
the kernel's `pid_max`, 32768 by default (seen with 4.3.1, November 2026)."""

PortMap = Mapping[tuple[int, str], int]
"""(container port, protocol) to host port on 127.0.0.1."""


class Port(msgspec.Struct, frozen=True):
    """A container port that shall be reachable from outside."""

    number: int
    protocol: str
    """`tcp` or `udp`."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What to start, as a provider was told."""

    instance_id: str
    image: str
    command: tuple[str, ...] | None = None
    """Arguments to the entrypoint; None: what the image does by itself."""
    entrypoint: str | None = None
    """One executable that replaces the image's own."""
    env: dict[str, str] = {}
    ports: tuple[Port, ...] = ()


class LaunchFailed(RuntimeError):
    """An instance could not be started; the text is what a host's Docker daemon would say."""


class Running(Protocol):
    """One started instance."""

    @property
    def ports(self) -> Mapping[tuple[int, str], int]:
        """(container port, protocol) to host port on 127.0.0.1."""

    async def logs(self, tail: int) -> str:
        """Return the last `tail` lines of what it printed; empty once it is stopped."""

    async def stop(self) -> None:
        """End it and whatever it started; doing so again changes nothing.

        Raises:
            EngineError: the container engine does not answer any more; it may be tried again.
        """

    def exited(self) -> int | None:
        """Return the exit code if it ended by itself, 128 + n for signal n; else None."""


class Runtime(Protocol):
    """Starts instances."""

    @property
    def name(self) -> str:
        """`pretend`, `process` or `container`."""

    async def start(self, launch: Launch) -> Running:
        """Start an instance.

        Raises:
            LaunchFailed: it could not be started, and nothing of it is left.
        """

    async def aclose(self) -> None:
        """Wait for starts under way, then stop everything; later starts fail."""


def pretend(random: Random) -> Runtime:
    """Return a runtime without processes: random ports, made-up logs, nothing listens."""
    return _Pretending(random)


def process() -> Runtime:
    """Return a runtime whose instances are processes of this machine.

    Images are ignored; an instance without a command runs `program.py`. A command runs in a
    temporary directory of its own, in a session of its own, with this environment:

        PATH                  as the simulator has it
        HOME, TMPDIR          the temporary directory
        (the launch's own)    may replace the three above
        PORT_8000             the host port to listen on for container port 8000/tcp
        PORT_53_UDP           the same for 53/udp
        PORT                  the host port of the first port asked for
        GP4U_PORTS            all of them, in `program.py`'s form
    """
    return _Processes(SystemRandom())


async def container(socket: str | None = None) -> Runtime | None:
    """Return a runtime whose instances are containers, or None where no engine answers.

    `socket` is the path of the engine's unix socket; None looks in `DOCKER_HOST`, then where
    Docker and podman listen. Containers that a dead simulator of this machine left are removed.

    Raises:
        LaunchFailed: an engine answers, but will not list or remove those.
    """
    for path in engines.sockets(os.environ) if socket is None else (socket,):
        engine = await Engine.connect(path)
        if engine is None:
            continue
        try:
            await _sweep(engine, is_dead)
        except EngineError as error:
            await engine.aclose()
            raise LaunchFailed(str(error)) from error
        return _Containers(engine)
    return None


async def can_run(image: str, socket: str | None = None) -> bool:
    """Tell whether an engine answers that can start a container of this image, pulled if absent.

    It is tried for real, with the image's own `true`: an engine may answer and have the image on
    a machine whose kernel, limits or registry then refuse.
    """
    try:
        runtime = await container(socket)
        if runtime is None:
            return False
        try:
            trial = await runtime.start(Launch(instance_id="trial", image=image, entrypoint="true"))
            await trial.stop()
        finally:
            await runtime.aclose()
    except (LaunchFailed, EngineError):
        return False
    return True


class _Pretended:
    """An instance that is nothing but its ports and a story."""

    def __init__(self, ports: PortMap, story: list[str]) -> None:
        self.ports = ports
        self._story = story

    async def logs(self, tail: int) -> str:
        return _last_lines("".join(f"{line}\n" for line in self._story), tail)

    async def stop(self) -> None:
        self._story = []

    def exited(self) -> int | None:
        return None


class _Pretending:
    """The runtime of `pretend`."""

    name = "pretend"

    def __init__(self, random: Random) -> None:
        self._random = random

    async def start(self, launch: Launch) -> Running:
        chosen = self._random.sample(_PRETENDED_PORTS, len(launch.ports))
        ports = {(p.number, p.protocol): n for p, n in zip(launch.ports, chosen, strict=True)}
        story = [
            f"[boot] image {launch.image}",
            f"[boot] {self._random.randint(8, 64)} CPU threads, GPU 0 is up",
            *(f"[main] listening on 0.0.0.0:{p.number}/{p.protocol}" for p in launch.ports),
            f"[main] ready after {self._random.uniform(0.5, 9.0):.1f} s",
        ]
        return _Pretended(MappingProxyType(ports), story)

    async def aclose(self) -> None:
        pass


class _Gate:
    """Lets starts begin until it is shut, so that closing sees all that they bring about."""

    def __init__(self) -> None:
        self._open = True
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def passed(self) -> Iterator[None]:
        if not self._open:
            raise LaunchFailed("the container runtime is shutting down")
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def shut(self) -> None:
        self._open = False
        await self._empty.wait()


class _Process:
    """A command and the tether that keeps it."""

    def __init__(self, ports: PortMap, keeper: asyncio.subprocess.Process, log: IO[bytes]) -> None:
        self.ports = ports
        self._keeper, self._log = keeper, log
        self._stopping = False
        self._code: int | None = None
        self._lock = asyncio.Lock()

    async def logs(self, tail: int) -> str:
        async with self._lock:
            if self._log.closed:
                return ""
            data = await asyncio.to_thread(self._read_log)
        return _last_lines(data.decode(errors="replace"), tail)

    def _read_log(self) -> bytes:
        fd = self._log.fileno()
        with tether.locked(fd, fcntl.LOCK_SH):
            return os.pread(fd, os.fstat(fd).st_size, 0)

    async def stop(self) -> None:
        self._code, self._stopping = self.exited(), True
        async with self._lock:
            if not self._log.closed:
                await _let_go(self._keeper)
                self._log.close()

    def exited(self) -> int | None:
        code = self._code if self._stopping else self._keeper.returncode
        return 128 - code if code is not None and code < 0 else code


class _Processes:
    """The runtime of `process`."""

    name = "process"

    def __init__(self, random: Random) -> None:
        self._random = random
        self._running: list[_Process] = []
        self._taken: set[int] = set()
        self._gate = _Gate()

    async def start(self, launch: Launch) -> Running:
        argv = ([launch.entrypoint] if launch.entrypoint else []) + list(launch.command or ())
        if not argv:
            argv = [sys.executable, "-I", "-S", program.__file__]
        with self._gate.passed():
            ports = {(p.number, p.protocol): self._free_port(p.protocol) for p in launch.ports}
            running = await self._tethered(argv, launch.env, MappingProxyType(ports))
            self._running.append(running)
        return running

    async def aclose(self) -> None:
        await self._gate.shut()
        await _stop_all(self._running)

    def _free_port(self, protocol: str) -> int:
        kind = net.SOCK_DGRAM if protocol == "udp" else net.SOCK_STREAM
        for number in self._random.sample(_HOST_PORTS, 256):
            if number in self._taken:
                continue
            with net.socket(net.AF_INET, kind) as probe, suppress(OSError):
                probe.bind(("127.0.0.1", number))
                self._taken.add(number)
                return number
        raise LaunchFailed("driver failed programming external connectivity: no host port is free")

    async def _tethered(self, argv: list[str], env: dict[str, str], ports: PortMap) -> _Process:
        directory, log = _room()
        order: tether.Order = {
            "argv": argv,
            "env": _environment(directory, env, ports),
            "directory": directory,
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
        return _Process(ports, keeper, log)


def _room() -> tuple[str, IO[bytes]]:
    """Make a directory for one process, and a log file without a name: it goes with its users."""
    directory = tempfile.mkdtemp(prefix="gp4u-instance-")
    return directory, tempfile.TemporaryFile(prefix="gp4u-log-")


def _environment(directory: str, env: dict[str, str], ports: PortMap) -> dict[str, str]:
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


class _Container:
    """A container and the task that waits for its end."""

    def __init__(self, engine: Engine, container_id: str, ports: PortMap) -> None:
        self.ports = ports
        self._engine, self._id = engine, container_id
        # Owned: `stop` cancels and awaits it, and what it raises comes out of `exited`.
        self._end = asyncio.get_running_loop().create_task(self._await_end())
        self._stopping = self._removed = False
        self._code: int | None = None
        self._lock = asyncio.Lock()

    async def logs(self, tail: int) -> str:
        if self._stopping:
            return ""
        try:
            data = await self._engine.logs(self._id, max(0, tail))
        except EngineError as error:
            return f"Error response from daemon: {error}\n"  # as `docker logs` shows it
        return data.decode(errors="replace")

    async def stop(self) -> None:
        self._code, self._stopping = self.exited(), True
        async with self._lock:
            if self._removed:
                return
            self._end.cancel()
            await asyncio.wait([self._end])
            try:
                await self._engine.stop(self._id, _GRACE_S)
            except EngineError as error:
                if error.status is None:
                    raise
            await _remove(self._engine, self._id)
            self._removed = True

    def exited(self) -> int | None:
        if self._stopping:
            return self._code
        return self._end.result() if self._end.done() else None

    async def _await_end(self) -> int:
        while True:
            try:
                await self._engine.wait(self._id)
                return await self._engine.exit_code(self._id)
            except EngineError as error:
                if error.status == 404:
                    return 137  # removed behind our back, which kills
            await asyncio.sleep(1.0)  # an engine that restarts keeps its containers


class _Containers:
    """The runtime of `container`."""

    name = "container"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._owner = f"{identity()} {secrets.token_hex(4)}"
        self._running: list[_Container] = []
        self._gate = _Gate()

    async def start(self, launch: Launch) -> Running:
        with self._gate.passed():
            try:
                running = await self._started(_specification(launch, self._owner))
            except EngineError as error:
                raise LaunchFailed(str(error)) from error
            self._running.append(running)
        return running

    async def aclose(self) -> None:
        await self._gate.shut()
        try:
            await _stop_all(self._running)
            # A start that was cut short may have made a container that nobody was told of.
            await _sweep(self._engine, lambda owner: owner == self._owner)
        finally:
            await self._engine.aclose()

    async def _started(self, specification: dict[str, object]) -> _Container:
        engine = self._engine
        try:
            container_id = await engine.create(specification)
        except EngineError as error:
            if error.status != 404:
                raise
            await engine.pull(str(specification["Image"]))
            container_id = await engine.create(specification)
        try:
            await engine.start(container_id)
            bound = await engine.ports(container_id)
        except BaseException:
            await _remove(engine, container_id)
            raise
        ports = {}
        for key, bindings in bound.items():
            number, _, protocol = key.partition("/")
            ports[int(number), protocol] = int(bindings[0].host_port)
        return _Container(engine, container_id, MappingProxyType(ports))


def _specification(launch: Launch, owner: str) -> dict[str, object]:
    """Return the body of the engine's create call."""
    keys = [f"{port.number}/{port.protocol}" for port in launch.ports]
    specification: dict[str, object] = {
        "Image": launch.image,
        "Env": [f"{name}={value}" for name, value in launch.env.items()],
        "ExposedPorts": {key: {} for key in keys},
        "Labels": {LABEL: owner, "gp4u.sim.instance": launch.instance_id},
        "Tty": False,  # a terminal's logs are not framed
        "HostConfig": {
            # An empty host port: the engine takes a free one.
            "PortBindings": {key: [{"HostIp": "127.0.0.1", "HostPort": ""}] for key in keys},
            "Ulimits": [
                _ulimit("nofile", resource.RLIMIT_NOFILE, _MOST_FILES),
                _ulimit("nproc", resource.RLIMIT_NPROC, _MOST_PROCESSES),
            ],
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
        },
    }
    if launch.command is not None:
        specification["Cmd"] = list(launch.command)
    if launch.entrypoint is not None:
        specification["Entrypoint"] = [launch.entrypoint]
    return specification


def _ulimit(name: str, kind: int, most: int) -> dict[str, object]:
    hard = resource.getrlimit(kind)[1]
    limit = most if hard == resource.RLIM_INFINITY else min(hard, most)
    return {"Name": name, "Soft": limit, "Hard": limit}


async def _sweep(engine: Engine, is_left: Callable[[str], bool]) -> None:
    """Remove the containers whose owner is judged to have left them."""
    for container_id, owner in (await engine.labelled(LABEL)).items():
        if is_left(owner):
            await _remove(engine, container_id)


async def _remove(engine: Engine, container_id: str) -> None:
    try:
        await engine.remove(container_id)
    except EngineError as error:
        if error.status not in (404, 409):  # gone; on its way by another hand
            raise


async def _stop_all(running: list[_Process] | list[_Container]) -> None:
    async with asyncio.TaskGroup() as group:
        for each in running:
            group.create_task(each.stop())


def _last_lines(text: str, count: int) -> str:
    lines = text.removesuffix("\n").split("\n")
    return "\n".join([*lines[-count:], ""]) if text and count > 0 else ""
