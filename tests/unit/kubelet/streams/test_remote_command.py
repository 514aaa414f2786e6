"""`exec` and `attach` over both protocols, driven by clients of other make."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import pytest

from gp4u.errors import Unavailable
from gp4u.kubelet.streams.remote_command import serve_attach, serve_exec
from gp4u.kubelet.streams.upgrade import Upgrade
from gp4u.providers.session import Session, Stream
from tests.unit.kubelet.streams.clients import (
    Line,
    SpdyClient,
    line,
    spdy_headers,
    websocket_headers,
)
from tests.unit.kubelet.streams.sessions import V4, Cat, Told, serving, target
from tests.virtual_loop import run_virtual

ALL = ("v5.channel.k8s.io", V4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
BROKE = Unavailable("vastai", "exec", "the connection broke")


async def connected(at: Line, *names: str) -> tuple[SpdyClient, dict[str, int]]:
    """Read the 101 and open these streams."""
    status, _, _ = await at.reply()
    assert status == 101
    client = SpdyClient(at)
    streams = {name: await client.open({"streamtype": name}) for name in names}
    await client.until(lambda: len(client.replied) == len(names))
    return client, streams


def test_spdy_exec_carries_input_outputs_and_exit_code() -> None:
    """The whole of `kubectl exec -i`: what is typed, both outputs, the command's own exit code."""

    async def go() -> None:
        session, asked = Told(), list[Any]()
        at = target(input=1, output=1, error=1)
        async with line(serving(session, asked), "POST", at, spdy_headers(*ALL)) as there:
            client, of = await connected(there, "error", "stdin", "stdout", "stderr")
            await client.send(of["stdin"], b"typed", fin=True)
            session.say(b"out")
            session.say(b"err", Stream.ERR)
            await session.input_ended.wait()
            assert session.taken == b"typed"
            session.end(3)
            await client.until(lambda: of["error"] in client.fins)
            assert asked == [(("cat", "-"), False)]
            assert client.data[of["stdout"]] == b"out"
            assert client.data[of["stderr"]] == b"err"
            status = json.loads(client.data[of["error"]])
            assert status["reason"] == "NonZeroExitCode"
            assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
            assert client.fins == [of["stdout"], of["stderr"], of["error"]]

    run_virtual(go)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (ALL, V4),
        (("v3.channel.k8s.io", V4), "v3.channel.k8s.io"),
        (("channel.k8s.io",), "channel.k8s.io"),
        ((", ".join(ALL),), V4),
    ],
)
def test_the_clients_first_version_that_is_known_is_taken(
    offered: tuple[str, ...], chosen: str
) -> None:
    """As a kubelet chooses: v5 is for WebSocket only, and commas may stand in one header."""

    async def go() -> None:
        async with line(serving(Told()), "POST", target(output=1), spdy_headers(*offered)) as there:
            status, headers, _ = await there.reply()
            assert status == 101
            assert headers["x-stream-protocol-version"] == [chosen]
            assert headers["upgrade"] == ["SPDY/3.1"]

    run_virtual(go)


@pytest.mark.parametrize(
    ("at", "headers", "status", "told"),
    [
        (target(output=1), spdy_headers(), 400, b"X-Stream-Protocol-Version"),
        (target(output=1), spdy_headers("v9.channel.k8s.io"), 403, b"v4.channel.k8s.io"),
        (target(), spdy_headers(V4), 400, b"at least 1 of stdin"),
        (target(tty=1, error=1), spdy_headers(V4), 400, b"at least 1 of stdin"),
        ("/exec/a/b/c?output=1", spdy_headers(V4), 400, b"at least 1 command"),
        (target(output=1), [], 400, b"unable to upgrade"),
        (target(output=1), [("Connection", "Upgrade"), ("Upgrade", "h2c")], 400, b"upgrade"),
        (target(output=1), websocket_headers("v9.channel.k8s.io"), 403, b"v5.channel.k8s.io"),
        (target(output=1), websocket_headers(V4)[:2], 400, b"Sec-WebSocket-Key"),
    ],
)
def test_what_cannot_be_served_is_refused_in_words(
    at: str, headers: list[tuple[str, str]], status: int, told: bytes
) -> None:
    """A clear 4xx and a closed connection, never a hang (K17)."""

    async def go() -> None:
        method = "GET" if ("Upgrade", "websocket") in headers else "POST"
        async with line(serving(Told()), method, at, headers) as there:
            answered, fields, body = await there.reply()
            assert answered == status
            assert told in body
            assert await there.reader.read() == b""
            if status == 403 and method == "POST":
                assert V4 in fields["x-accepted-stream-protocol-versions"]

    run_virtual(go)


def test_bytes_read_after_the_head_belong_to_the_stream() -> None:
    """A client may send its first frames before it has the 101; none may be lost."""

    async def go() -> None:
        session = Told()
        ping = b"\x80\x03\0\6\0\0\0\4\0\0\0\1"
        at = target(output=1)
        async with line(serving(session), "POST", at, spdy_headers(V4), pending=ping) as there:
            assert (await there.reply())[0] == 101
            client = SpdyClient(there)
            await client.until(lambda: client.pongs == [1])

    run_virtual(go)


@pytest.mark.parametrize("version", ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"])
@pytest.mark.parametrize("code", [0, 7])
def test_old_clients_read_text_on_failure_and_nothing_on_success(version: str, code: int) -> None:
    """Before v4 the error stream was text, and any text was a failure."""

    async def go() -> None:
        session = Told()
        session.end(code)
        async with line(serving(session), "POST", target(output=1), spdy_headers(version)) as there:
            client, of = await connected(there, "error", "stdout")
            await client.until(lambda: of["error"] in client.fins)
            told = client.data[of["error"]]
            assert (told == b"") if code == 0 else (b"7" in told)

    run_virtual(go)


def test_success_is_a_status_with_metadata() -> None:
    """Clients decode it as a v1.Status; this is its whole text from a kubelet."""

    async def go() -> None:
        session = Told()
        session.end(0)
        async with line(serving(session), "POST", target(output=1), spdy_headers(V4)) as there:
            client, of = await connected(there, "error", "stdout")
            await client.until(lambda: of["error"] in client.fins)
            assert client.data[of["error"]] == b'{"metadata":{},"status":"Success"}'

    run_virtual(go)


def test_a_terminal_has_one_output_and_a_size() -> None:
    """With `-t` there is no error stream of the command, and resizes are passed on."""

    async def go() -> None:
        session = Told()
        at = target(input=1, output=1, error=1, tty=1)
        async with line(serving(session), "POST", at, spdy_headers(V4)) as there:
            client, of = await connected(there, "error", "stdin", "stdout", "resize")
            await client.send(of["resize"], b'{"Width":80,"Height":24}\n{"Wid')
            await session.resized.wait()
            session.resized.clear()
            await client.send(of["resize"], b'th":100,"Height":40}')
            await session.resized.wait()
            assert session.sizes == [(80, 24), (100, 40)]
            session.say(b"$ ")
            session.end()
            await client.until(lambda: of["error"] in client.fins)
            assert client.data[of["stdout"]] == b"$ "

    run_virtual(go)


@pytest.mark.parametrize(
    "nonsense",
    [b'{"Width":0,"Height":1}', b'{"Width":true,"Height":1}', b"{}", b"[" * 5000, b'{"Width":"1"}',
     b"\xff\xfe{{{{", b'{"Width":70000,"Height":5}'],
)  # fmt: skip
def test_a_size_that_is_none_is_skipped(nonsense: bytes) -> None:
    """What somebody sends as a size must not end their command."""

    async def go() -> None:
        session = Told()
        at = target(output=1, tty=1)
        async with line(serving(session), "POST", at, spdy_headers(V4)) as there:
            client, of = await connected(there, "error", "stdout", "resize")
            await client.send(of["resize"], nonsense + b'{"Width":9,"Height":8}')
            await session.resized.wait()
            assert session.sizes == [(9, 8)]

    run_virtual(go)


def test_without_stdin_the_command_reads_the_end_at_once() -> None:
    """A command that reads its input must not wait for what can never come."""

    async def go() -> None:
        session = Cat()
        async with line(serving(session), "POST", target(output=1), spdy_headers(V4)) as there:
            client, of = await connected(there, "error", "stdout")
            await client.until(lambda: of["error"] in client.fins)
            assert b"Success" in client.data[of["error"]]

    run_virtual(go)


def test_attach_leaves_the_input_of_the_container_alone() -> None:
    """Somebody who only looks must not end the input of a program that runs for others."""

    async def go() -> None:
        session = Told()

        async def opened(tty: bool) -> Session:
            assert not tty
            return session

        def serve(upgrade: Upgrade) -> Awaitable[None]:
            return serve_attach(upgrade, opened)

        headers = spdy_headers(V4)
        async with line(serve, "POST", "/attach/default/pod/main?output=1", headers) as there:
            client, of = await connected(there, "error", "stdout")
            session.say(b"line\n")
            await client.until(lambda: client.data[of["stdout"]] == b"line\n")
            assert not session.input_ended.is_set()

    run_virtual(go)


@pytest.mark.parametrize("error", [BROKE, OSError("no route to host"), TimeoutError("too late")])
def test_a_session_that_cannot_be_opened_is_told_as_a_status(error: Exception) -> None:
    """The user reads why, on the error stream; nothing of it on the output."""

    async def go() -> None:
        async def opened(command: tuple[str, ...], tty: bool) -> Session:
            raise error

        def serve(upgrade: Upgrade) -> Awaitable[None]:
            return serve_exec(upgrade, opened)

        async with line(serve, "POST", target(output=1), spdy_headers(V4)) as there:
            client, of = await connected(there, "error", "stdout")
            await client.until(lambda: of["error"] in client.fins)
            status = json.loads(client.data[of["error"]])
            assert (status["reason"], status["code"]) == ("InternalError", 500)
            assert str(error) in status["message"]
            assert not client.data[of["stdout"]]

    run_virtual(go)


def test_a_session_that_breaks_keeps_its_output_and_tells_why() -> None:
    """What came before is shown; the break is a Status, and no exit code is made up."""

    async def go() -> None:
        session = Told()
        session.say(b"half")
        session.break_with(BROKE)
        async with line(serving(session), "POST", target(output=1), spdy_headers(V4)) as there:
            client, of = await connected(there, "error", "stdout")
            await client.until(lambda: of["error"] in client.fins)
            assert client.data[of["stdout"]] == b"half"
            assert "the connection broke" in json.loads(client.data[of["error"]])["message"]
            await session.closed.wait()

    run_virtual(go)


@pytest.mark.parametrize("how", ["vanish", "reset", "goaway"])
def test_a_client_that_leaves_ends_the_session_at_once(how: str) -> None:
    """K18: within a second, however it leaves, while the command is silent."""

    async def go() -> None:
        session = Told()
        async with line(serving(session), "POST", target(output=1), spdy_headers(V4)) as there:
            client, of = await connected(there, "error", "stdout")
            left_at = asyncio.get_running_loop().time()
            match how:
                case "vanish":
                    there.leave()
                case "reset":
                    await client.reset(of["error"])
                case "goaway":
                    await client.go_away()
            await session.closed.wait()
            assert session.closed_at is not None
            assert session.closed_at - left_at <= 1.0
            await there.task

    run_virtual(go)


def test_a_client_that_leaves_while_the_session_is_opened_is_not_waited_for() -> None:
    """A machine that takes a minute to answer holds no task for somebody who has gone."""

    async def go() -> None:
        gone_at = list[float]()

        async def opened(command: tuple[str, ...], tty: bool) -> Session:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                gone_at.append(asyncio.get_running_loop().time())
                raise
            return Told()

        def serve(upgrade: Upgrade) -> Awaitable[None]:
            return serve_exec(upgrade, opened)

        async with line(serve, "POST", target(output=1), spdy_headers(V4)) as there:
            await connected(there, "error", "stdout")
            there.leave()
            await there.task
            assert gone_at
            assert gone_at[0] < 1.0

    run_virtual(go)


def test_streams_that_do_not_come_end_the_wait() -> None:
    """A client that opens too few streams is told after thirty seconds, not never."""

    async def go() -> None:
        asked = list[Any]()
        at = target(input=1, output=1)
        async with line(serving(Told(), asked), "POST", at, spdy_headers(V4)) as there:
            client, of = await connected(there, "error", "stdout")
            await client.until(lambda: of["error"] in client.fins)
            assert asyncio.get_running_loop().time() >= 30
            assert "did not open all streams" in json.loads(client.data[of["error"]])["message"]
            assert asked == []

    run_virtual(go)


@pytest.mark.parametrize("name", ["stdin", "stdout", "nonsense", ""])
def test_a_stream_nobody_expects_is_refused(name: str) -> None:
    """A second `stdout`, or an input that was not asked for, changes nothing for the others."""

    async def go() -> None:
        session = Told()
        async with line(serving(session), "POST", target(output=1), spdy_headers(V4)) as there:
            client, of = await connected(there, "error", "stdout")
            extra = await client.open({"streamtype": name})
            await client.until(lambda: extra in client.resets)
            session.say(b"fine")
            await client.until(lambda: client.data[of["stdout"]] == b"fine")

    run_virtual(go)


def test_a_command_that_ends_before_its_input_does_not_cut_its_output() -> None:
    """`cat big | kubectl exec -i -- head`: the last words come though input is still arriving."""

    async def go() -> None:
        session = Told()
        session.takes.clear()
        at = target(input=1, output=1)
        async with line(serving(session), "POST", at, spdy_headers(V4), tcp=True) as there:
            client, of = await connected(there, "error", "stdin", "stdout")
            there.meanwhile(client.send(of["stdin"], bytes(8 * 1024 * 1024)))
            await asyncio.sleep(0.05)
            session.say(b"first lines")
            session.end(0)
            await client.until(lambda: of["error"] in client.fins)
            assert client.data[of["stdout"]] == b"first lines"

    asyncio.run(go())


def test_input_that_is_not_taken_stops_the_reading() -> None:
    """A command that reads nothing costs a bounded amount of memory, whatever is typed at it."""

    async def go() -> None:
        session = Told()
        session.takes.clear()
        at = target(input=1, output=1)
        async with line(serving(session), "POST", at, spdy_headers(V4)) as there:
            client, of = await connected(there, "error", "stdin", "stdout")
            pushed = 0
            try:
                async with asyncio.timeout(60):
                    while True:
                        await client.send(of["stdin"], bytes(64 * 1024))
                        pushed += 64 * 1024
            except TimeoutError:
                pass
            assert 1024 * 1024 <= pushed <= 4 * 1024 * 1024
            session.takes.set()
            await session.has_taken(pushed)

    run_virtual(go)


@pytest.mark.parametrize(("more", "reset"), [(50 * 1024, False), (10 * 1024 * 1024, True)])
def test_a_client_that_leaves_behind_untaken_input_is_noticed(more: int, reset: bool) -> None:
    """K18: nobody reads the connection then, so its end has to be looked for."""

    async def go() -> None:
        session = Told()
        session.takes.clear()
        at = target(input=1, output=1)
        async with line(serving(session), "POST", at, spdy_headers(V4), tcp=True) as there:
            client, of = await connected(there, "error", "stdin", "stdout")
            there.meanwhile(client.send(of["stdin"], bytes(1024 * 1024 + more)))
            await asyncio.sleep(0.2)
            left_at = asyncio.get_running_loop().time()
            there.leave(reset=reset)
            async with asyncio.timeout(5):
                await session.closed.wait()
            assert not session.taken
            assert session.closed_at is not None
            assert session.closed_at - left_at <= 1.0

    asyncio.run(go())


def test_output_that_is_not_read_is_not_made() -> None:
    """Endless output and a reader that sleeps: bounded memory, and PINGs are still answered."""

    async def go() -> None:
        session = Told()
        for _ in range(1000):
            session.say(bytes(64 * 1024))
        at = target(input=1, output=1)
        async with line(serving(session), "POST", at, spdy_headers(V4)) as there:
            client, of = await connected(there, "error", "stdin", "stdout")
            await asyncio.sleep(10)
            before = session.written
            assert before <= 4 * 1024 * 1024
            await client.ping(5)
            await client.send(of["stdin"], b"still taken")
            await asyncio.sleep(1)
            assert session.taken == b"still taken"
            client.keeps = False
            await client.until(lambda: client.pongs == [5])
            session.end(0)
            await client.until(lambda: of["error"] in client.fins)
            assert client.counted[of["stdout"]] == 1000 * 64 * 1024

    run_virtual(go)


def test_output_that_is_left_half_way_is_closed_by_its_reader() -> None:
    """A session's output may hold tasks of its own, which only the task that began them can end."""

    async def go() -> None:
        session = Told()
        for _ in range(1000):
            session.say(bytes(64 * 1024))
        async with line(serving(session), "POST", target(output=1), spdy_headers(V4)) as there:
            await connected(there, "error", "stdout")
            await asyncio.sleep(1)
            there.leave()
            await session.closed.wait()
            assert session.left_by is session.closed_by is there.task

    run_virtual(go)


def test_a_session_that_does_not_close_is_left() -> None:
    """A machine that has vanished must not keep a task for ever."""

    class Stuck(Told):
        async def aclose(self) -> None:
            await super().aclose()
            await asyncio.sleep(3600)

    async def go() -> None:
        async with line(serving(Stuck()), "POST", target(output=1), spdy_headers(V4)) as there:
            await connected(there, "error", "stdout")
            there.leave()
            await there.task
            assert asyncio.get_running_loop().time() <= 15

    run_virtual(go)


def test_pings_that_nobody_reads_the_answers_of_are_bounded() -> None:
    """A client that asks and never listens must not fill our memory."""

    async def go() -> None:
        async with line(serving(Told()), "POST", target(output=1), spdy_headers(V4)) as there:
            client, _ = await connected(there, "error", "stdout")
            pings = b"".join(
                b"\x80\x03\0\6\0\0\0\4" + (2 * n + 1).to_bytes(4, "big") for n in range(4096)
            )
            pushed = 0
            try:
                async with asyncio.timeout(60):
                    while True:
                        await client.push(pings)
                        pushed += len(pings)
            except TimeoutError:
                pass
            assert pushed <= 8 * 1024 * 1024

    run_virtual(go)


def test_what_is_not_spdy_ends_the_session() -> None:
    """Nonsense on the wire is a client that is gone."""

    async def go() -> None:
        session = Told()
        async with line(serving(session), "POST", target(output=1), spdy_headers(V4)) as there:
            client, _ = await connected(there, "error", "stdout")
            await client.push(b"\x80\x03\xff\xff\0\0\0\0")
            await client.until_closed()
            assert client.gone_away
            await session.closed.wait()

    run_virtual(go)


def test_a_connection_on_which_nothing_happens_is_closed() -> None:
    """A forgotten terminal is closed after four hours; output in between keeps it."""

    async def go() -> None:
        session = Told()
        async with line(serving(session), "POST", target(output=1), spdy_headers(V4)) as there:
            client, of = await connected(there, "error", "stdout")
            await asyncio.sleep(3 * 3600)
            session.say(b"tick")
            await client.until(lambda: client.data[of["stdout"]])
            await asyncio.sleep(2 * 3600)
            assert not session.closed.is_set()
            await session.closed.wait()
            assert 6 * 3600 <= asyncio.get_running_loop().time() <= 9 * 3600

    run_virtual(go)
