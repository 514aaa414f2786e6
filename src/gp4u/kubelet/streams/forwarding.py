"""One forwarded connection: bytes both ways between what the client sent and a port.

`forward_spdy.py` and `forward_websocket.py` have many of them on one connection each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gp4u.errors import Gp4uError
from gp4u.kubelet.streams.closing import drawn
from gp4u.kubelet.streams.intake import Intake
from gp4u.providers.session import Link

Connect = Callable[[int], Awaitable[Link]]
"""Opens a connection to a container's port."""
MOST_PORT = 65535


async def copy(
    link: Link,
    intake: Intake,
    send: Callable[[bytes], Awaitable[None]],
    ended: Callable[[], Awaitable[None]],
) -> str:
    """Copy until both ends have said that nothing more comes; return why it broke, if it did.

    `send` takes what the port says; `ended` is called once the port says no more.
    """
    async with asyncio.TaskGroup() as tasks:
        feeding = tasks.create_task(_feed(link, intake))
        try:
            async with drawn(link.output()) as output:
                async for data in output:
                    await send(data)
        except (Gp4uError, OSError) as error:
            feeding.cancel()
            return str(error)
        await ended()
    return ""


async def _feed(link: Link, intake: Intake) -> None:
    """Pass on what the client sends; a port that takes no more of it may still answer."""
    try:
        while data := await intake.take():
            await link.send(data)
        await link.end_input()
    except (Gp4uError, OSError):
        intake.discard()


def port_of(text: str) -> int:
    """Return a port number.

    Raises:
        ValueError: it is none; the text names it and the bounds.
    """
    if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= MOST_PORT:
        return int(text)
    raise ValueError(f"port {text[:40]!r} is not valid: 1..{MOST_PORT}")
