"""A small server behind the real door, called without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from pydantic import SecretStr
from starlette.responses import Response, StreamingResponse
from starlette.types import Message

from gp4u.api import failing
from gp4u.api.door.door import Door
from gp4u.api.door.tokens import Tokens
from gp4u.api.replies import role

TOKENS = {role: f"{role}-token-0123456789" for role in ("read", "rent", "admin")}


@dataclass
class Counted:
    """What a door told of its requests."""

    served: list[tuple[str, str, int]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    now: int = 0
    most: int = 0

    def http(self, route: str, method: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.served.append((route, method, status))

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)

    def in_flight(self, by: int) -> None:
        self.now += by
        self.most = max(self.most, self.now)


@dataclass
class Answer:
    """A whole reply."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json", self.body
        found: dict[str, Any] = json.loads(self.body)
        assert found["status"] == self.status
        assert found["instance"] == self.headers["x-request-id"]
        return found


class Doorway:
    """An app with a route of each kind, its door, and what both were told."""

    def __init__(self, *grants: str, **door: Any) -> None:
        """`grants` are roles; each gets the token of `TOKENS`."""
        self.counted, self.logged = Counted(), list[dict[str, Any]]()
        self.reached: list[str] = []
        self.go = asyncio.Event()
        self.began = asyncio.Queue[None]()
        tokens = Tokens([(each, SecretStr(TOKENS[each])) for each in grants])
        self.door = Door(
            self._app(),
            tokens=tokens,
            metrics=self.counted,
            log=lambda **about: self.logged.append(about),
            **door,
        )

    def _app(self) -> FastAPI:
        router = APIRouter()

        @router.get("/livez", openapi_extra=role("open"))
        async def livez() -> Response:
            return Response(b"{}", media_type="application/json")

        @router.get("/api/v1/gpus/{name:path}", openapi_extra=role("read"))
        async def show(name: str) -> Response:
            self.reached.append(name)
            return Response(name.encode(), headers={"Cache-Control": "no-cache"})

        @router.post("/api/v1/rentals", openapi_extra=role("rent"))
        async def rent(request: Request) -> Response:
            self.reached.append((await request.body()).decode())
            return Response(b"{}", 201)

        @router.delete("/api/v1/rentals", openapi_extra=role("admin"))
        async def forget() -> Response:
            return Response(status_code=204)

        @router.post("/api/v1/unmarked")
        async def unmarked() -> Response:
            self.reached.append("unmarked")
            return Response(b"")

        @router.get("/api/v1/slow", openapi_extra=role("read"))
        async def slow() -> Response:
            await self.go.wait()
            return Response(b"")

        @router.get("/api/v1/events", openapi_extra=role("read"))
        async def events() -> Response:
            async def lines() -> AsyncIterator[bytes]:
                self.began.put_nowait(None)
                yield b"one\n"
                await self.go.wait()
                yield b"two\n"

            return StreamingResponse(lines())

        @router.get("/api/v1/bug", openapi_extra=role("read"))
        async def bug() -> Response:
            raise RuntimeError("canary of a bug")

        @router.get("/api/v1/half", openapi_extra=role("read"))
        async def half() -> Response:
            async def lines() -> AsyncIterator[bytes]:
                yield b"half"
                raise RuntimeError("in the midst")

            return StreamingResponse(lines(), headers={"Content-Length": "8"})

        app = FastAPI(openapi_url=None)
        app.include_router(router)
        failing.install(app)
        return app

    async def call(
        self,
        method: str = "GET",
        path: str = "/api/v1/gpus/x",
        *,
        token: str | None = None,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        body: Sequence[bytes] = (),
        client: str = "127.0.0.1",
        server: str = "127.0.0.1",
        hangs: bool = False,
    ) -> Answer:
        """Send a request and return the reply; `hangs` leaves the body without its end.

        A `headers` mapping is added to those that every client sends, a sequence stands for all.
        """
        sent: list[Message] = []
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        if isinstance(headers, Mapping) or not headers:
            pairs = [("host", "localhost:8000"), *pairs]
        if token is not None:
            pairs.append(("authorization", f"Bearer {TOKENS.get(token, token)}"))
        rest = [{"type": "http.request", "body": part, "more_body": True} for part in body]
        if not hangs:
            rest.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> Message:
            if rest:
                return rest.pop(0)
            await asyncio.Event().wait()
            raise AssertionError("never")

        async def send(message: Message) -> None:
            sent.append(message)

        plain, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": plain,
            "raw_path": plain.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in pairs],
            "client": (client, 40_000),
            "server": (server, 8000),
            "scheme": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "state": {},
        }
        await self.door(scope, receive, send)
        return Answer(
            sent[0]["status"],
            {name.decode(): value.decode() for name, value in sent[0]["headers"]},
            b"".join(message.get("body", b"") for message in sent[1:]),
        )
