"""A connection that was taken over: what its request says, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gp4u.kubelet.streams.pipe import ClientLeft
from gp4u.kubelet.streams.upgrade import Upgrade
from tests.unit.kubelet.streams.clients import line
from tests.virtual_loop import run_virtual


def closing(act: Callable[[Upgrade], Awaitable[None]]) -> Callable[[Upgrade], Awaitable[None]]:
    """Return a server that does one thing with a request, and closes its connection."""

    async def serve(upgrade: Upgrade) -> None:
        await act(upgrade)
        await upgrade.aclose()

    return serve


def test_the_query_keeps_order_repeats_and_escapes() -> None:
    """A command comes as one parameter for each word, percent-encoded."""

    async def go() -> None:
        async def act(upgrade: Upgrade) -> None:
            assert upgrade.path == "/exec/a/b/c"
            assert upgrade.query["command"] == ["sh", "-c", "a=1&b; echo \u00fc +x"]
            assert upgrade.query["tty"] == [""]

        at = "/exec/a/b/c?command=sh&command=-c&command=a%3D1%26b%3B+echo+%C3%BC+%2Bx&tty="
        async with line(closing(act), "POST", at, []) as there:
            await there.task

    run_virtual(go)


def test_words_of_a_header_are_joined_over_its_lines() -> None:
    """A list may stand in one line or in several; order is preference."""

    async def go() -> None:
        async def act(upgrade: Upgrade) -> None:
            assert upgrade.words("X-Stream-Protocol-Version") == ["v5", "v4", "v3"]
            assert upgrade.words("missing") == []
            assert upgrade.wants("spdy/3.1")
            assert not upgrade.wants("websocket")

        headers = [
            ("x-stream-protocol-version", "v5, v4,"),
            ("connection", "keep-alive, Upgrade"),
            ("UPGRADE", "SPDY/3.1"),
            ("X-Stream-Protocol-Version", " v3 "),
        ]
        async with line(closing(act), "POST", "/", headers) as there:
            await there.task

    run_virtual(go)


def test_an_upgrade_needs_both_headers() -> None:
    """`Upgrade` alone is a hint that a proxy may have left; it is not for us."""

    async def go() -> None:
        async def act(upgrade: Upgrade) -> None:
            assert not upgrade.wants("SPDY/3.1")

        async with line(closing(act), "POST", "/", [("Upgrade", "SPDY/3.1")]) as there:
            await there.task

    run_virtual(go)


def test_what_was_read_already_comes_first() -> None:
    """Bytes behind the head belong to what follows the 101."""

    async def go() -> None:
        heard = list[bytes]()

        async def act(upgrade: Upgrade) -> None:
            heard.extend((await upgrade.read(), await upgrade.read()))

        async with line(closing(act), "POST", "/", [], pending=b"early") as there:
            there.writer.write(b"late")
            await there.task
            assert heard == [b"early", b"late"]

    run_virtual(go)


def test_the_end_of_a_connection_is_one_exception() -> None:
    """Whoever reads or waits learns of it in the same way."""

    async def go() -> None:
        async def act(upgrade: Upgrade) -> None:
            with pytest.raises(ClientLeft):
                await upgrade.read()
            for _ in range(3):
                upgrade.write(bytes(1024 * 1024))
            await asyncio.sleep(1)
            with pytest.raises(ClientLeft):
                await upgrade.drain()
            assert upgrade.left()
            upgrade.write(b"into the void")

        async with line(closing(act), "POST", "/", []) as there:
            there.leave()
            await there.task

    run_virtual(go)


@pytest.mark.parametrize("reset", [False, True])
def test_an_end_behind_unread_bytes_is_seen(reset: bool) -> None:
    """K18: somebody who has stopped reading can still tell that the client is gone."""

    async def go() -> None:
        gone = asyncio.Event()

        async def act(upgrade: Upgrade) -> None:
            assert not upgrade.left()
            await gone.wait()
            assert upgrade.left()

        async with line(closing(act), "POST", "/", [], tcp=True) as there:
            there.writer.write(b"unread")
            await asyncio.sleep(0)
            there.leave(reset=reset)
            await asyncio.sleep(0.05)
            gone.set()
            await there.task

    asyncio.run(go())


def test_a_refusal_is_plain_text_and_the_end() -> None:
    """Nothing of the request is echoed as a page, and the connection is not used again."""

    async def go() -> None:
        async def act(upgrade: Upgrade) -> None:
            await upgrade.refuse(404, "no such pod", [("X-Why", "gone")])

        async with line(closing(act), "POST", "/", []) as there:
            status, headers, body = await there.reply()
            assert (status, body) == (404, b"no such pod\n")
            assert headers["content-type"] == ["text/plain; charset=utf-8"]
            assert headers["x-content-type-options"] == ["nosniff"]
            assert headers["connection"] == ["close"]
            assert headers["x-why"] == ["gone"]
            assert await there.reader.read() == b""

    run_virtual(go)
