"""What is asked of whatever runs rented instances: the interface between markets and reality.

The simulated providers start, enter and stop instances through `Runtime`, `Running` and `Inside`,
and so need not know how real a rented machine is. What stands behind them is in `runtime.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

LOOPBACK: Final = "127.0.0.1"
OUT, ERR = 1, 2
"""Which of a command's outputs a piece belongs to."""

Output = Callable[[int, bytes], Awaitable[None]]
"""Takes a piece of output; with a terminal all of it is `OUT`."""

PortMap = Mapping[tuple[int, str], int]
"""(container port, protocol) to host port at the runtime's address."""


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
    own_root: bool = False
    """Whether it writes files where an image has its own; see `process`."""
    login: tuple[str, str, str] | None = None
    """Registry, user and password that the image is pulled with."""


class LaunchFailed(RuntimeError):
    """An instance could not be started; the text is what a host's Docker daemon would say."""


class Inside(Protocol):
    """A command that runs inside an instance, beside what was started there."""

    async def run(self, out: Output) -> int:
        """Hand on what it writes until it ends; return its exit code. Once."""

    async def write(self, data: bytes) -> None:
        """Write to its input; what comes too late is dropped."""

    async def end_input(self) -> None:
        """Close its input."""

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the size of its terminal, if it has one."""

    async def end(self) -> None:
        """Kill it with all that it started; doing so again changes nothing."""


class Running(Protocol):
    """One started instance."""

    @property
    def ports(self) -> Mapping[tuple[int, str], int]:
        """(container port, protocol) to host port at the runtime's address."""

    async def logs(self, tail: int) -> str:
        """Return the last `tail` lines of what it printed; empty once it is stopped."""

    async def enter(self, argv: Sequence[str], *, tty: bool) -> Inside:
        """Start a command inside, with the instance's variables, where its own one started.

        Raises:
            LaunchFailed: it cannot be started, or the instance does not run.
        """

    async def reach(self, port: int) -> tuple[str, int]:
        """Return where a TCP port inside can be connected to from here, published or not.

        Raises:
            LaunchFailed: it cannot be.
        """

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

    @property
    def address(self) -> str:
        """The IP address at which the instances' ports are."""

    async def start(self, launch: Launch) -> Running:
        """Start an instance.

        Raises:
            LaunchFailed: it could not be started, and nothing of it is left.
        """

    async def aclose(self) -> None:
        """Wait for starts under way, then stop everything; later starts fail."""


def last_lines(text: str, count: int) -> str:
    """Return the newest lines of a text."""
    lines = text.removesuffix("\n").split("\n")
    return "\n".join([*lines[-count:], ""]) if text and count > 0 else ""
