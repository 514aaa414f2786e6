"""What becomes of a call when the other side misbehaves, on real loopback sockets."""

from __future__ import annotations

import asyncio
import gzip
import io
import random
import re
import traceback
import tracemalloc
import zlib
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest

from gp4u.errors import BadInput, Malformed, ProviderError, Throttled, Unavailable
from gp4u.providers.contract import Call
from gp4u.providers.http import (
    MAX_BYTES,
    UNPACK_BYTES,
    Request,
    _trusted,
    _unpack,
    decode,
    excerpt,
    harmless,
)
from tests.unit.providers.loopback import (
    MIB,
    Wire,
    bomb,
    caught,
    client,
    closed_port,
    get,
    replying,
    reset,
    serving,
)
from tests.unit.providers.scripted import KEY, http_over


async def test_a_refused_connection_is_known_not_to_have_sent_anything() -> None:
    """H1: only then may even a rent be tried again."""
    async with client() as http:
        error = await caught(get(http, f"http://127.0.0.1:{closed_port()}/"))
    assert isinstance(error, Unavailable)
    assert not error.sent


async def test_a_name_without_an_address_is_known_not_to_have_sent_anything() -> None:
    """H1: `.invalid` never resolves, and a failed look-up is a failed connection."""
    async with client() as http:
        error = await caught(get(http, "http://nobody.invalid/"))
    assert isinstance(error, Unavailable)
    assert not error.sent


async def test_a_failed_tls_handshake_is_known_not_to_have_sent_anything() -> None:
    """H37: the request comes after the handshake, and there is no switch to go on without it."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 this is no TLS\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server, client() as http:
        port = server.sockets[0].getsockname()[1]
        error = await caught(get(http, f"https://127.0.0.1:{port}/"))
    assert isinstance(error, Unavailable)
    assert not error.sent


async def test_a_reset_before_the_headers_may_have_had_its_effect() -> None:
    """H2: the request was read; what became of it nobody knows."""

    async def answer(wire: Wire, writer: asyncio.StreamWriter) -> None:
        reset(writer)

    async with serving(answer) as wire, client() as http:
        error = await caught(get(http, wire.url))
    assert isinstance(error, Unavailable)
    assert error.sent


async def test_a_close_without_a_reply_may_have_had_its_effect() -> None:
    """H2: a polite end says as little as a reset."""

    async def answer(wire: Wire, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with serving(answer) as wire, client() as http:
        error = await caught(get(http, wire.url))
    assert isinstance(error, Unavailable)
    assert error.sent


async def test_a_reset_in_mid_body_is_a_transport_failure() -> None:
    """H16: what arrived before it is a prefix, and a prefix is never parsed."""

    async def answer(wire: Wire, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{"offers": []}')
        await writer.drain()
        await asyncio.sleep(0.02)  # else the reset overtakes the bytes in the kernel
        reset(writer)

    async with serving(answer) as wire, client() as http:
        error = await caught(get(http, wire.url))
    assert isinstance(error, Unavailable)
    assert error.sent


async def test_a_truncated_body_is_a_transport_failure_although_it_is_valid_json() -> None:
    """H16: the length says that something is missing."""
    async with serving(replying(b'{"offers": []}', length=15)) as wire, client() as http:
        error = await caught(get(http, wire.url))
    assert isinstance(error, Unavailable)
    assert error.sent


async def test_a_length_that_is_too_short_leaves_no_json() -> None:
    """H16: the bytes beyond the length do not count, and what is left breaks its syntax."""
    async with serving(replying(b'{"offers": []}', length=9)) as wire, client() as http:
        body = await get(http, wire.url)
    with pytest.raises(Malformed):
        decode("vastai", "offers", body, dict[str, Any])


async def test_contradicting_lengths_are_a_transport_failure() -> None:
    """S12: two readings of one reply are how a reply is smuggled."""
    answer = replying(b"{}", headers="Content-Length: 20\r\n")
    async with serving(answer) as wire, client() as http:
        assert isinstance(await caught(get(http, wire.url)), Unavailable)


@pytest.mark.parametrize(
    "noise",
    [b"\x00\xff" * 40, b"SSH-2.0-OpenSSH_9.7\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * 200_000],
    ids=["noise", "another protocol", "an endless header"],
)
async def test_what_is_no_http_is_a_transport_failure(noise: bytes) -> None:
    """H17: whatever listens there, it is not the provider."""

    async def answer(wire: Wire, writer: asyncio.StreamWriter) -> None:
        writer.write(noise)
        await writer.drain()

    async with serving(answer) as wire, client() as http:
        error = await caught(get(http, wire.url))
    assert isinstance(error, Unavailable)
    assert error.sent


async def test_a_body_that_trickles_ends_at_the_deadline_of_the_whole_call() -> None:
    """H15: each byte comes in time; the reply does not."""

    async def answer(wire: Wire, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    now = asyncio.get_running_loop().time
    async with serving(answer) as wire, client(timeout_s=0.25) as http:
        began = now()
        error = await caught(get(http, wire.url))
        took_s = now() - began
    assert isinstance(error, Unavailable)
    assert error.sent
    assert took_s < 2.0


async def test_a_call_may_have_a_longer_deadline_than_the_others() -> None:
    """A rent is given a minute, and must not be cut off by the shorter limit of a read."""

    async def answer(wire: Wire, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        await replying(b"{}")(wire, writer)

    async with serving(answer) as wire, client(timeout_s=0.05) as http:
        assert await get(http, wire.url, timeout_s=5.0) == b"{}"


@pytest.mark.parametrize(
    ("safe", "tries"), [(True, 3), (False, 1)], ids=["safe calls", "unsafe calls"]
)
async def test_only_a_safe_call_is_repeated_once_a_byte_may_have_left(
    safe: bool, tries: int
) -> None:
    """H6: a repeated rent is a second machine."""

    async def answer(wire: Wire, writer: asyncio.StreamWriter) -> None:
        reset(writer)

    async with serving(answer) as wire, client(tries=3) as http:
        await caught(get(http, wire.url, safe=safe))
        assert wire.connections == tries


async def test_an_unsafe_call_that_never_left_is_tried_again() -> None:
    """H1: nothing of it can have had an effect."""
    seen: list[ProviderError | None] = []
    async with client(tries=3, observe=lambda *told: seen.append(told[2])) as http:
        await caught(get(http, f"http://127.0.0.1:{closed_port()}/", safe=False))
    assert len(seen) == 3


async def test_a_gzip_body_is_unpacked() -> None:
    """The market packs large replies; the caller never sees how."""
    body = gzip.compress(b'{"offers": []}')
    answer = replying(body, headers="Content-Encoding: gzip\r\n")
    async with serving(answer) as wire, client() as http:
        assert await get(http, wire.url) == b'{"offers": []}'


async def test_all_ways_out_share_what_this_machine_trusts() -> None:
    """Certificates take 25 ms to read, and each market has a way out, some of them three."""
    async with client() as one, client() as other:
        contexts = {id(each._client._transport._pool._ssl_context) for each in (one, other)}  # type: ignore[attr-defined]  # where it ends up, deep inside
        assert contexts == {id(_trusted())}


@pytest.mark.parametrize("size", [0, UNPACK_BYTES - 1, UNPACK_BYTES, UNPACK_BYTES + 1, 5 * MIB])
@pytest.mark.parametrize("byte", [b"0", None], ids=["repeating", "random"])
async def test_a_large_gzip_body_is_unpacked_whole(size: int, byte: bytes | None) -> None:
    """It is unpacked in pieces; one that fills a piece to the brim is not the end of it."""
    body = random.Random(size).randbytes(size) if byte is None else byte * size
    answer = replying(gzip.compress(body, 1), headers="Content-Encoding: gzip\r\n")
    async with serving(answer) as wire, client() as http:
        assert await get(http, wire.url) == body


async def test_others_run_while_a_small_body_becomes_a_large_one() -> None:
    """One chunk of a few kB can hold all of the cap: to unpack it at once stops everything."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    body = b"".join([bytes(16 * MIB), b"end"])
    unzip, unpacked = zlib.decompressobj(wbits=31), io.BytesIO()
    async with asyncio.TaskGroup() as group:
        counting = group.create_task(count())
        await _unpack(unzip, gzip.compress(body, 1), unpacked)
        counting.cancel()
    assert unpacked.getvalue() == body
    assert turns >= 16


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (gzip.compress(b'{"offers": []}')[:-12], Unavailable),
        (gzip.compress(b"{}") + b"more", Malformed),
        (b"this is not gzip", Malformed),
    ],
    ids=["cut short", "something behind it", "no gzip"],
)
async def test_a_broken_gzip_body_is_never_parsed(body: bytes, kind: type[ProviderError]) -> None:
    """H16: half of a packed body can unpack to valid JSON."""
    answer = replying(body, headers="Content-Encoding: gzip\r\n")
    async with serving(answer) as wire, client() as http:
        assert type(await caught(get(http, wire.url))) is kind


async def test_a_packing_that_was_not_asked_for_is_malformed() -> None:
    """H18: each further format is one more way to make a little become a lot."""
    answer = replying(b"\x1b[31mred", headers="Content-Encoding: br\r\n")
    async with serving(answer) as wire, client() as http:
        assert isinstance(await caught(get(http, wire.url)), Malformed)


async def test_a_gzip_bomb_is_put_down_before_it_has_gone_off() -> None:
    """H18: 200 kB became 200 MB in the library's own decoder."""
    packed = bomb(256 * MIB)
    answer = replying(packed, headers="Content-Encoding: gzip\r\n")
    async with serving(answer) as wire, client() as http:
        tracemalloc.start()
        try:
            error = await caught(get(http, wire.url))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert isinstance(error, Malformed)
    assert "unpacks to over" in str(error)
    assert peak < 4 * MAX_BYTES


async def test_a_body_that_never_ends_is_cut_off_at_the_cap() -> None:
    """H18: the cap holds on the wire too, and for errors as for successes."""

    async def answer(wire: Wire, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 busy\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(bytes(MIB))
            await writer.drain()
            wire.sent += MIB

    async with serving(answer) as wire, client() as http:
        error = await caught(get(http, wire.url))
        assert isinstance(error, Malformed)
        assert MAX_BYTES - MIB <= wire.sent <= 2 * MAX_BYTES


async def test_a_body_just_under_the_cap_is_read() -> None:
    """The caps are bounds, not habits: what keeps them arrives whole."""
    packed = bomb(MAX_BYTES)
    answer = replying(packed, headers="Content-Encoding: gzip\r\n")
    async with serving(answer) as wire, client() as http:
        assert len(await get(http, wire.url)) == MAX_BYTES


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Please log in to the hotel's network</html>",
        b"[" * 100_000,
        b'{"a": 1',
        b"\xff\xfe",
    ],
    ids=["empty", "html", "deep", "cut", "no text"],
)
async def test_a_200_that_is_not_json_is_malformed_and_quoted_briefly(body: bytes) -> None:
    """H17, H19: at most 256 clean characters of it reach a log."""
    async with serving(replying(body)) as wire, client() as http:
        answer = await get(http, wire.url)
    with pytest.raises(Malformed) as info:
        decode("vastai", "offers", answer, dict[str, Any])
    said = excerpt(body)
    assert len(said) <= 256
    assert said.isprintable()
    assert said in str(info.value)


async def test_a_redirect_is_not_followed_with_the_key_in_hand() -> None:
    """H38: wherever it leads, it would be handed our key."""
    async with (
        serving(replying(b"{}")) as elsewhere,
        serving(
            replying(b"", status="307 moved", headers=f"Location: {elsewhere.url}/\r\n")
        ) as wire,
        client() as http,
    ):
        error = await caught(get(http, wire.url))
        assert isinstance(error, Malformed)
        assert elsewhere.connections == 0


async def test_the_key_travels_in_its_header_and_nowhere_else() -> None:
    """S4: URLs stand in every proxy's log."""
    call = Call(method="PUT", url="", body={"price": Decimal("0.10"), "label": "gp4u"})
    async with serving(replying(b"{}")) as wire, client() as http:
        put = Call(method="PUT", url=f"{wire.url}/asks/1/", body=call.body)
        await http.send("rent", put, safe=False, params={"a": "b c"})
    lines = wire.heads[0].split("\r\n")
    assert lines[0] == "PUT /asks/1/?a=b+c HTTP/1.1"
    assert [line for line in lines if KEY in line] == [f"authorization: Bearer {KEY}"]
    assert wire.bodies == [b'{"price":0.10,"label":"gp4u"}']


async def test_no_error_shows_the_key_even_with_all_its_locals_printed() -> None:
    """S4: a traceback is the most talkative log line there is."""

    async def answer(wire: Wire, writer: asyncio.StreamWriter) -> None:
        await replying(
            f'{{"error": "auth_error", "msg": "bad key {KEY}"}}'.encode(), status="401 no"
        )(wire, writer)

    async with serving(answer) as wire, client() as http:
        errors = [
            await caught(get(http, wire.url)),
            await caught(get(http, f"http://127.0.0.1:{closed_port()}/")),
        ]
        assert KEY not in repr(http)
    for error in errors:
        assert KEY not in str(error)
        assert KEY not in repr(error)
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        assert not [frame for frame in told.format() if KEY in frame]


async def test_a_key_that_the_provider_echoes_is_blotted_out_of_successes_too() -> None:
    """S4: what is decoded may be logged, stored or printed later."""
    async with serving(replying(f'{{"you": "{KEY}"}}'.encode())) as wire, client() as http:
        assert await get(http, wire.url) == b'{"you": "[redacted]"}'


@pytest.mark.parametrize("before", [0, UNPACK_BYTES - 5, 3 * UNPACK_BYTES])
async def test_a_key_in_a_large_body_is_blotted_out_wherever_it_stands(before: int) -> None:
    """A large body is looked through in pieces; a key may lie over the edge of two."""
    body = b"x" * before + KEY.encode() + b"x" * UNPACK_BYTES
    async with serving(replying(body)) as wire, client() as http:
        found = await get(http, wire.url)
    assert found == body.replace(KEY.encode(), b"[redacted]")


@pytest.mark.parametrize("key", ["two\r\nx-injected: 1", "schlüssel", "tab\there"])
def test_a_key_that_cannot_stand_in_a_header_is_refused_without_being_shown(key: str) -> None:
    """S4: the library would quote it in its complaint, long after the start."""
    with pytest.raises(BadInput) as info:
        http_over(None, key=key)
    assert key not in str(info.value)


async def test_a_cookie_is_not_kept() -> None:
    """One call must not shape the next, and what is kept is bounded: nothing."""
    answer = replying(b"{}", headers="Set-Cookie: session=1; Path=/\r\n")
    async with serving(answer) as wire, client() as http:
        await get(http, wire.url)
        await get(http, wire.url)
    assert "cookie" not in wire.heads[1].lower()


async def test_a_proxy_from_the_environment_never_sees_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S4: it would see the key."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    async with serving(replying(b"{}")) as wire, client() as http:
        assert await get(http, wire.url) == b"{}"


async def test_the_observer_is_told_how_each_try_ended() -> None:
    """Metrics count tries, and a try that ran out of time is not a success."""

    async def hang(wire: Wire, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    seen: list[tuple[str, str, type[object]]] = []

    def observe(provider: str, operation: str, error: ProviderError | None, _s: float) -> None:
        seen.append((provider, operation, type(error)))

    slow = replying(b"too frequent", status="429 wait")
    async with (
        serving(replying(b"{}")) as fine,
        serving(slow) as throttled,
        serving(hang) as silent,
        client(timeout_s=1.5, observe=observe) as http,
    ):
        await get(http, fine.url)
        await caught(get(http, silent.url))
        await caught(get(http, throttled.url))
    assert seen == [
        ("vastai", "offers", type(None)),
        ("vastai", "offers", Unavailable),
        ("vastai", "offers", Throttled),
    ]


def test_foreign_text_cannot_steer_a_terminal() -> None:
    """S8: escapes, controls and direction marks become spaces, and a line stays a line."""
    said = harmless("a\x1b[31mb\r\nc\u202ed\x9be")
    assert said == "a [31mb  c d e"
    assert len(harmless("x" * 1000)) == 160


async def test_every_attempt_is_signed_anew_over_the_bytes_that_leave() -> None:
    """A nonce that was sent is worthless, so a retry with its old signature would be refused."""
    signed: list[Request] = []

    def sign(request: Request) -> dict[str, str]:
        signed.append(request)
        return {"x-nonce": str(len(signed))}

    async def throttled_once(wire: Wire, writer: asyncio.StreamWriter) -> None:
        status = "503 Busy" if wire.connections == 1 else "200 OK"
        await replying(b"{}", status=status)(wire, writer)

    async with serving(throttled_once) as wire, client(tries=2, sign=sign) as http:
        call = Call(method="PUT", url=f"{wire.url}/v1/a%20b", body={"a": Decimal("0.10"), "b": "é"})
        params = {"filter[gpu]": "1,2", "q": "a b"}
        assert await http.send("offers", call, safe=True, params=params) == b"{}"
    assert [request.body for request in signed] == wire.bodies
    assert [f"{r.method} {r.path}?{r.query} HTTP/1.1" for r in signed] == [
        head.partition("\r\n")[0] for head in wire.heads
    ]
    assert signed[0].body == '{"a":0.10,"b":"é"}'.encode()
    nonces = [re.findall(r"(?i)x-nonce: (\d)", head) for head in wire.heads]
    assert nonces == [["1"], ["2"]]


async def test_a_stranger_gets_no_signature() -> None:
    """A result URL is foreign text; what proves our account goes to the market alone."""

    def sign(request: Request) -> dict[str, str]:
        raise AssertionError(f"asked to sign {request.path}")

    async with serving(replying(b"log")) as wire, client(sign=sign, allow_loopback=True) as http:
        assert await http.fetch_result(f"{wire.url}/log") == "log"


async def test_a_call_may_carry_headers_of_its_own() -> None:
    """Some markets want one for a single path; the next call must not have it."""
    async with serving(replying(b"{}")) as wire, client() as http:
        await get(http, wire.url, headers={"x-idempotency": "k1"})
        await get(http, wire.url)
    assert "x-idempotency: k1" in wire.heads[0].lower()
    assert "x-idempotency" not in wire.heads[1].lower()
    assert KEY in wire.heads[0]


async def test_a_stream_that_stays_open_is_left_once_it_is_silent() -> None:
    """A log that is followed never ends by itself; what came so far is what there is."""
    gone = asyncio.Event()

    async def open_ended(_wire: Wire, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: a\n\n")
        await writer.drain()
        await gone.wait()  # it has nothing more to say

    async with serving(open_ended) as wire, client() as http:
        call = Call(method="GET", url=wire.url)
        assert await http.collect("logs", call, for_s=0.1) == b"data: a\n\n"
        gone.set()
    assert "text/event-stream" in wire.heads[0]
    assert KEY in wire.heads[0]


async def test_a_stream_that_cannot_be_reached_is_known_not_to_have_been_asked() -> None:
    """The guard may then try it again, and the adapter need not guess."""
    async with client() as http:
        call = Call(method="GET", url=f"http://127.0.0.1:{closed_port()}/")
        error = await caught(http.collect("logs", call, for_s=0.1))
    assert isinstance(error, Unavailable)
    assert error.sent is False


async def test_a_stream_that_is_never_silent_is_left_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A log with a line every second is worth reading too; what came so far is what there is."""
    monkeypatch.setattr("gp4u.providers.http.LISTEN_S", 0.3)

    async def chatty(_wire: Wire, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"data: a\n\n")
                await writer.drain()
                await asyncio.sleep(0.02)

    async with serving(chatty) as wire, client(timeout_s=0.5) as http:
        told = await http.collect("logs", Call(method="GET", url=wire.url), for_s=0.2)
    assert told.startswith(b"data: a\n\ndata: a\n\n")
    assert len(wire.heads) == 1
