"""Instances that are containers of an engine; the runtime of `container`.

A container carries a label that says whose it is, by which the next simulator finds and removes
what a dead one left. A running container owns a task, which waits for its end; it is cancelled and
awaited in `stop`. What the engine is told, byte by byte, is the business of `engine.py`.
"""

from __future__ import annotations

import asyncio
import resource
import secrets
from collections.abc import Callable, Sequence
from types import MappingProxyType

from gp4u.sim.engine import Engine, EngineError
from gp4u.sim.launch import Inside, Launch, LaunchFailed, PortMap, Running
from gp4u.sim.owner import identity
from gp4u.sim.starting import Gate, stop_all

LABEL = "gp4u.sim.owner"
"""On each container: which simulator started it, by `owner.py`, and which of its runtimes."""

_GRACE_S = 3
"""Between SIGTERM and SIGKILL when an instance is stopped."""

_MOST_FILES, _MOST_PROCESSES = 65536, 32768
"""Limits of a container, where ours are not lower. By default engines ask for more, and an engine
without CAP_SYS_RESOURCE cannot give a container more than it has itself; podman lowers itself to
the kernel's `pid_max`, 32768 by default (seen with 4.3.1, November 2026)."""


class _Container:
    """A container and the task that waits for its end."""

    def __init__(self, engine: Engine, container_id: str, ports: PortMap, address: str) -> None:
        self.ports = ports
        self._engine, self._id, self._address = engine, container_id, address
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

    async def enter(self, argv: Sequence[str], *, tty: bool) -> Inside:
        if self._stopping or self._end.done():
            raise LaunchFailed("container is not running")
        try:
            return await self._engine.enter(self._id, argv, tty=tty)
        except EngineError as error:
            raise LaunchFailed(str(error)) from error

    async def reach(self, port: int) -> tuple[str, int]:
        published = self.ports.get((port, "tcp"))
        if published is not None:
            return self._address, published
        try:
            found = await self._engine.address(self._id)
        except EngineError as error:
            raise LaunchFailed(str(error)) from error
        if not found:
            raise LaunchFailed(f"port {port} is not published, and the container has no address")
        return found, port

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


class Containers:
    """The runtime of `container`."""

    name = "container"

    def __init__(self, engine: Engine, address: str) -> None:
        self._engine, self.address = engine, address
        self._owner = f"{identity()} {secrets.token_hex(4)}"
        self._running: list[_Container] = []
        self._gate = Gate()

    async def start(self, launch: Launch) -> Running:
        with self._gate.passed():
            try:
                running = await self._started(launch)
            except EngineError as error:
                raise LaunchFailed(str(error)) from error
            self._running.append(running)
        return running

    async def aclose(self) -> None:
        await self._gate.shut()
        try:
            await stop_all(self._running)
            # A start that was cut short may have made a container that nobody was told of.
            await sweep(self._engine, lambda owner: owner == self._owner)
        finally:
            await self._engine.aclose()

    async def _started(self, launch: Launch) -> _Container:
        engine = self._engine
        specification = _specification(launch, self._owner, self.address)
        try:
            container_id = await engine.create(specification)
        except EngineError as error:
            if error.status != 404:
                raise
            await engine.pull(launch.image, launch.login)
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
        return _Container(engine, container_id, MappingProxyType(ports), self.address)


def _specification(launch: Launch, owner: str, address: str) -> dict[str, object]:
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
            "PortBindings": {key: [{"HostIp": address, "HostPort": ""}] for key in keys},
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


async def sweep(engine: Engine, is_left: Callable[[str], bool]) -> None:
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
