"""The streams of a remote command over SPDY: one SPDY stream each, opened by the client.

Source: kubernetes kubelet pkg/cri/streaming/remotecommand and client-go tools/remotecommand, 1.32;
checked 2026-11.
"""

from __future__ import annotations

import asyncio
from typing import Final, NoReturn

from gp4u.kubelet.streams.channels import Channels, Outcome, Wish
from gp4u.kubelet.streams.pipe import IDLE_S, ClientLeft, Pipe
from gp4u.kubelet.streams.spdy import Code, Data, Ended, Event, Opened, Reset, WentAway
from gp4u.kubelet.streams.spdy_wire import SpdyWire
from gp4u.providers.session import Stream

VERSIONS: Final = tuple(f"{each}channel.k8s.io" for each in ("v4.", "v3.", "v2.", ""))
"""v5 differs on WebSocket only, and no kubelet takes it here."""
WITH_JSON: Final = VERSIONS[:1]
WITH_RESIZE: Final = VERSIONS[:2]
MOST_STREAMS: Final = 16
"""Five are needed."""


class SpdyChannels(Channels):
    """`error` first, then those of `stdin`, `stdout`, `stderr` and `resize` that are wished for."""

    def __init__(self, pipe: Pipe, wish: Wish, version: str, *, idle_s: float = IDLE_S) -> None:
        super().__init__(pipe, wish, idle_s=idle_s)
        self._wire = SpdyWire(self._flow, most_streams=MOST_STREAMS)
        self._as_json = version in WITH_JSON
        wanted = {
            "error": True,
            "stdin": wish.stdin,
            "stdout": wish.stdout,
            "stderr": wish.stderr,
            "resize": wish.tty and version in WITH_RESIZE,
        }
        self._missing = {name for name, is_wanted in wanted.items() if is_wanted}
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._complete = asyncio.Event()

    async def run(self) -> NoReturn:
        await self._wire.run(self._on)

    async def ready(self) -> None:
        await self._complete.wait()

    async def write(self, stream: Stream, data: bytes) -> None:
        number = self._numbers.get("stdout" if stream is Stream.OUT else "stderr")
        if number is not None:
            await self._wire.send(self._wire.spdy.send(number, data))

    async def finish(self, outcome: Outcome) -> None:
        # A client reads the outputs to their ends before it reads the error stream to its own.
        spdy = self._wire.spdy
        frames = [spdy.end(self._numbers[name]) for name in ("stdout", "stderr") if self._has(name)]
        if self._has("error"):
            error = self._numbers["error"]
            frames += [spdy.send(error, outcome.told(as_json=self._as_json)), spdy.end(error)]
        await self._wire.send(b"".join([*frames, spdy.go_away()]))

    def _has(self, name: str) -> bool:
        return name in self._numbers

    def _on(self, event: Event) -> None:
        match event:
            case Opened(stream, headers):
                self._opened(stream, headers.get("streamtype", ("",))[0])
            case Data(stream, data):
                match self._names.get(stream):
                    case "stdin":
                        self.stdin.put(data)
                    case "resize":
                        self.sizes.put(data)
            case Ended(stream):
                if self._names.get(stream) == "stdin":
                    self.stdin.end()
            case Reset(stream, _):
                match self._names.get(stream):
                    case "stdin":
                        self.stdin.end()
                    case "error":
                        raise ClientLeft("the client gave the command up")
            case WentAway():
                raise ClientLeft("the client is going away")

    def _opened(self, stream: int, name: str) -> None:
        if name not in self._missing:
            self._wire.answer(self._wire.spdy.reset(stream, Code.REFUSED_STREAM))
            return
        self._missing.remove(name)
        self._numbers[name], self._names[stream] = stream, name
        self._wire.answer(self._wire.spdy.reply(stream))
        if not self._missing:
            self._complete.set()
