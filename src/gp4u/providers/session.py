"""What is open into a rented machine: a command with its streams, and a connection to a port.

Both are what an adapter gives and the virtual node hands to whoever typed `kubectl exec`. They say
nothing of how: SSH, a market's WebSocket, a process. Whoever opens one closes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from enum import IntEnum


class Stream(IntEnum):
    """Which of a command's outputs."""

    OUT = 1
    ERR = 2


class Session(ABC):
    """A command that runs inside an instance. With a terminal everything comes as `OUT`."""

    @abstractmethod
    def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        """Yield what it writes, as it comes, until both outputs have ended. Once per session.

        Raises:
            Unavailable: the connection broke; the command may run on.
        """

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Write to its input; returns once there is room for more."""

    @abstractmethod
    async def end_input(self) -> None:
        """Close its input."""

    @abstractmethod
    async def resize(self, columns: int, rows: int) -> None:
        """Tell the size of the terminal, in characters; without one nothing happens."""

    @abstractmethod
    async def exit_code(self) -> int:
        """Return with what it ended, once it has: 0..255.

        Raises:
            Unavailable: the connection broke before that.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Leave it; where that can be done it is ended. Never raises."""


class Link(ABC):
    """A connection to a port inside an instance; bytes both ways."""

    @abstractmethod
    def output(self) -> AsyncIterator[bytes]:
        """Yield what comes from the port until it ends. Once per link.

        Raises:
            Unavailable: the connection broke.
        """

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Write to the port; returns once there is room for more."""

    @abstractmethod
    async def end_input(self) -> None:
        """Say that nothing more will come."""

    @abstractmethod
    async def aclose(self) -> None:
        """Leave it. Never raises."""
