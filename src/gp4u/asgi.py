"""`uvicorn gp4u.asgi:app`: the API for those who bring their own server program.

Everything opens with the server's lifespan and closes with it, so importing this file does nothing.
Settings come from where every command takes them. What the server program is told by its own flags
(address, port) is not ours to check: the door refuses strangers itself while there are no tokens.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from gp4u.errors import Gp4uError
from gp4u.providers.plugins import known_providers
from gp4u.serving import open_server
from gp4u.settings import load_settings
from gp4u.telemetry import configure


class Application:
    """The app of one server process: opened by its lifespan, then passed every request."""

    def __init__(self) -> None:
        self._api: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._api is None:
            raise RuntimeError("the server program must run the lifespan: `uvicorn --lifespan on`")
        else:
            await self._api(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Open everything, say so, and run the loops until the server program ends."""
        await receive()  # the request to start
        started = False
        try:
            settings = load_settings(os.environ, Path.cwd(), providers=known_providers())
            configure(
                level=settings.log_level,
                fmt=settings.log_format,
                secrets=settings.secrets(),
                stream=sys.stderr,
            )
            async with open_server(settings) as server, asyncio.TaskGroup() as group:
                held = asyncio.Event()

                async def tell() -> None:
                    held.set()

                loops = group.create_task(server.run(tell))
                await held.wait()  # the ledger may be another process's: then this is cancelled
                self._api, started = server.api, True
                await send({"type": "lifespan.startup.complete"})
                await receive()  # the request to stop
                self._api = None
                loops.cancel()
        except (Gp4uError, BaseExceptionGroup) as error:
            if not started:
                await send({"type": "lifespan.startup.failed", "message": _words(error)})
                return
            # Restart is the recovery: a server without its loops would forget paid machines.
            structlog.get_logger().exception("loops_failed")
            signal.raise_signal(signal.SIGTERM)
            return
        await send({"type": "lifespan.shutdown.complete"})


def _words(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return str(error)


app = Application()
