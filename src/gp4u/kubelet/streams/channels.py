"""What a remote command is asked for and how it ends, and its streams whatever carries them.

`command_spdy.py` and `command_websocket.py` carry them; `remote_command.py` runs a command over
them and knows of neither.
"""

from __future__ import annotations

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from msgspec import Struct

from gp4u.kubelet.streams.intake import Intake, Room
from gp4u.kubelet.streams.pipe import IDLE_S, Flow, Pipe
from gp4u.providers.session import Stream

ROOM_BYTES: Final = 1024 * 1024
"""What one command may hold of what was typed and it did not take."""
MOST_SIZE_BYTES: Final = 256
"""One object with the size of a terminal."""
SIZE: Final = re.compile(rf"\{{[^{{}}]{{0,{MOST_SIZE_BYTES}}}\}}")
MOST_SIDE: Final = 65535


class Wish(Struct, frozen=True, kw_only=True):
    """What somebody who calls `exec` or `attach` wants."""

    command: tuple[str, ...] = ()
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False

    @classmethod
    def of(cls, query: Mapping[str, Sequence[str]]) -> Wish:
        """Read the query of a request; with a terminal there is no error output of its own.

        Source: kubernetes pkg/kubelet and kubelet pkg/cri/streaming/remotecommand, 1.32; checked
        2026-11.
        """

        def flag(name: str) -> bool:
            return query.get(name, ("",))[0] in ("1", "true")

        tty = flag("tty")
        return cls(
            command=tuple(query.get("command", ())),
            stdin=flag("input"),
            stdout=flag("output"),
            stderr=flag("error") and not tty,
            tty=tty,
        )

    @property
    def streams(self) -> bool:
        """Whether there is a stream at all."""
        return self.stdin or self.stdout or self.stderr


class Outcome(Struct, frozen=True, kw_only=True):
    """How a remote command ended: with an exit code, or never properly."""

    code: int | None = None
    """0..255; None where it is not known, or the command did not begin."""
    why: str = ""
    """Where there is no code."""

    def told(self, *, as_json: bool) -> bytes:
        """Return what the error stream carries: a v1.Status, or for old clients text on failure."""
        if as_json:
            return json.dumps(self._status(), separators=(",", ":")).encode()
        if self.code == 0:
            return b""
        return (self.why or f"command ended with exit code {self.code}").encode()

    def _status(self) -> dict[str, Any]:
        if self.code == 0:
            return {"metadata": {}, "status": "Success"}
        if self.code is None:
            return {
                "metadata": {},
                "status": "Failure",
                "reason": "InternalError",
                "message": self.why,
                "code": 500,
            }
        return {
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": f"command ended with exit code {self.code}",
            "details": {"causes": [{"reason": "ExitCode", "message": str(self.code)}]},
        }


class Sizes:
    """The newest size of the terminal, for the one who passes it on; older ones are skipped."""

    def __init__(self) -> None:
        self._text = ""
        self._newest: tuple[int, int] | None = None
        self._came = asyncio.Event()

    def put(self, data: bytes) -> None:
        """Add bytes of JSON objects, one after the other; what is none is thrown away."""
        self._text += data.decode("utf-8", "replace")
        end = 0
        for found in SIZE.finditer(self._text):
            end = found.end()
            self._add(found[0])
        self._text = self._text[end:][-MOST_SIZE_BYTES:]

    async def next(self) -> tuple[int, int]:
        """Return columns and rows once they changed."""
        while self._newest is None:
            self._came.clear()
            await self._came.wait()
        newest, self._newest = self._newest, None
        return newest

    def _add(self, text: str) -> None:
        try:
            size = json.loads(text)
        except ValueError:
            return
        columns, rows = size.get("Width"), size.get("Height")
        if all(type(each) is int and 0 < each <= MOST_SIDE for each in (columns, rows)):
            self._newest = (columns, rows)
            self._came.set()


class Channels(ABC):
    """The streams of one remote command, on one connection."""

    def __init__(self, pipe: Pipe, wish: Wish, *, idle_s: float = IDLE_S) -> None:
        room = Room(ROOM_BYTES)
        self.wish = wish
        self.stdin = Intake(room)
        self.sizes = Sizes()
        self._flow = Flow(pipe, room, idle_s=idle_s)

    @abstractmethod
    async def run(self) -> NoReturn:
        """Read the connection for as long as there is one.

        Raises:
            ClientLeft: it ended.
        """

    @abstractmethod
    async def ready(self) -> None:
        """Return once every stream that was asked for is there."""

    @abstractmethod
    async def write(self, stream: Stream, data: bytes) -> None:
        """Send output and return once there is room for more; what nobody asked for is dropped.

        Raises:
            ClientLeft: the connection ended.
        """

    @abstractmethod
    async def finish(self, outcome: Outcome) -> None:
        """End the outputs, tell the outcome, and say that this was all.

        Raises:
            ClientLeft: the connection ended.
        """
