"""What runs in a rented instance: nothing, a real local process, or a real container.

The simulated providers start, enter and stop instances through the interface of `launch.py`, and
so need not know how real a rented machine is. `pretend` makes up ports and logs. `process` runs the
instance's command on this machine (`processes.py`), each kept by `tether.py`. `container` runs the
image asked for (`containers.py`) through the engine behind `engine.py`. None of them knows of
prices, contracts or states of an instance: that is the world's and the dialects' part.

Nothing outlives the simulator: a process dies with it, and a container carries a label that says
whose it is, by which the next simulator finds and removes it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from random import Random, SystemRandom
from types import MappingProxyType

from gp4u.sim import engine as engines
from gp4u.sim.containers import Containers, sweep
from gp4u.sim.engine import Engine, EngineError
from gp4u.sim.inside import Pretended
from gp4u.sim.launch import (
    LOOPBACK,
    Inside,
    Launch,
    LaunchFailed,
    PortMap,
    Running,
    Runtime,
    last_lines,
)
from gp4u.sim.owner import is_dead
from gp4u.sim.processes import Processes

_PRETENDED_PORTS = range(40000, 65536)


def pretend(random: Random, address: str = LOOPBACK) -> Runtime:
    """Return a runtime without processes: random ports, made-up logs, nothing listens."""
    return _Pretending(random, address)


def process(address: str = LOOPBACK) -> Runtime:
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
        GP4U_ADDRESS          the address to listen at
        GP4U_ROOT             only with `own_root`: empty where the instance has a view of this
                              machine's files in which it may write without changing them (that
                              takes root, and a kernel that allows it), else the temporary
                              directory, which then stands for the root of its files
    """
    return Processes(SystemRandom(), address)


async def container(socket: str | None = None, *, address: str = LOOPBACK) -> Runtime | None:
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
            await sweep(engine, is_dead)
        except EngineError as error:
            await engine.aclose()
            raise LaunchFailed(str(error)) from error
        return Containers(engine, address)
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
        return last_lines("".join(f"{line}\n" for line in self._story), tail)

    async def enter(self, argv: Sequence[str], *, tty: bool) -> Inside:
        del tty
        return Pretended(argv)

    async def reach(self, port: int) -> tuple[str, int]:
        raise LaunchFailed(f"nothing listens on {port}: this instance is pretended")

    async def stop(self) -> None:
        self._story = []

    def exited(self) -> int | None:
        return None


class _Pretending:
    """The runtime of `pretend`."""

    name = "pretend"

    def __init__(self, random: Random, address: str) -> None:
        self._random, self.address = random, address

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
