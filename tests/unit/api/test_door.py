"""The door: who gets in, what is turned away before it costs anything, and what every reply has."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
import structlog
from fastapi import APIRouter
from starlette.types import Message
from structlog.testing import capture_logs

from gp4u.api.door.door import GONE, UNROUTED
from gp4u.api.door.passages import RouteTable
from gp4u.api.door.refusals import MAX_HEAD_BYTES, MAX_HEADERS, MAX_URL_BYTES, REFUSALS
from tests.unit.api.doorway import TOKENS, Answer, Doorway
from tests.virtual_loop import run

JSON = {"content-type": "application/json"}


async def test_without_tokens_loopback_may_do_everything() -> None:
    """Whoever sits at the machine needs no ceremony."""
    doorway = Doorway()
    assert (await doorway.call()).status == 200
    assert (await doorway.call("DELETE", "/api/v1/rentals")).status == 204
    assert doorway.logged[-1]["role"] == "admin"


@pytest.mark.parametrize(
    ("client", "server"), [("192.0.2.1", "192.0.2.9"), ("192.0.2.1", "127.0.0.1")]
)
async def test_without_tokens_nobody_else_may_do_anything(client: str, server: str) -> None:
    """An ASGI server that we did not start may listen anywhere, or forward for somebody."""
    doorway = Doorway()
    headers = {"host": server} if server != "127.0.0.1" else {}
    reply = await doorway.call(client=client, server=server, headers=[*headers.items()] or ())
    assert reply.problem["code"] == "token_required"
    assert reply.status == 403
    assert (await doorway.call(path="/livez", client=client)).status == 200


@pytest.mark.parametrize(
    ("token", "allowed"),
    [
        ("read", [200, 403, 403, 403]),
        ("rent", [200, 201, 403, 403]),
        ("admin", [200, 201, 204, 200]),
    ],
)
async def test_a_role_may_do_what_it_says_and_what_lower_ones_may(
    token: str, allowed: list[int]
) -> None:
    """The last is a route that says nothing: for admins, so that forgetting it is harmless."""
    doorway = Doorway("read", "rent", "admin")
    calls = [
        ("GET", "/api/v1/gpus/x"),
        ("POST", "/api/v1/rentals"),
        ("DELETE", "/api/v1/rentals"),
        ("POST", "/api/v1/unmarked"),
    ]
    found = [(await doorway.call(method, path, token=token)).status for method, path in calls]
    assert found == allowed


async def test_a_lacking_role_is_told_which_one_is_needed() -> None:
    """Otherwise one has to try."""
    reply = await Doorway("read").call("POST", "/api/v1/rentals", token="read")
    assert (reply.problem["code"], reply.problem["needed"]) == ("role_needed", "rent")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "token_needed"),
        ({"authorization": "Basic YTpi"}, "token_needed"),
        ({"authorization": "Bearer "}, "token_needed"),
        ({"authorization": "Bearer wrong-token-0123456789"}, "token_wrong"),
        ({"authorization": f"Bearer {TOKENS['admin']}"}, "token_wrong"),
    ],
)
async def test_no_token_or_a_wrong_one_is_401(headers: Mapping[str, str], code: str) -> None:
    """A client must be able to tell that a token is wanted (RFC 6750)."""
    doorway = Doorway("read")
    reply = await doorway.call(headers=headers)
    assert (reply.status, reply.problem["code"]) == (401, code)
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert doorway.reached == []
    assert (
        await doorway.call(headers={"authorization": f"bearer  {TOKENS['read']}"})
    ).status == 200


async def test_health_needs_no_token() -> None:
    """What restarts a dead server should not hold a key to it."""
    assert (await Doorway("admin").call(path="/livez")).status == 200


async def test_guessing_is_slowed_down_even_for_a_right_token() -> None:
    """If a right one passed, the wait would hold up nobody who guesses."""
    doorway = Doorway("read")
    for number in range(10):
        assert (await doorway.call(token=f"wrong-token-{number:010}")).status == 401
    reply = await doorway.call(token="read")
    assert (reply.status, reply.problem["code"]) == (429, "too_many_guesses")
    assert 0 < int(reply.headers["retry-after"]) <= 60
    assert (await doorway.call(token="read", client="192.0.2.4")).status == 200


def test_after_a_minute_a_right_token_is_let_in_again() -> None:
    """A lock without an end would let one caller shut out everybody at its address."""

    async def scene() -> list[int]:
        doorway = Doorway("read")
        for number in range(10):
            await doorway.call(token=f"wrong-token-{number:010}")
        before = (await doorway.call(token="read")).status
        await asyncio.sleep(61)
        return [before, (await doorway.call(token="read")).status]

    assert run(scene()) == [429, 200]


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:9", "127.0.0.1:8000", "[::1]:80", "a.example.org", "b.a.example.org",
     "gp4u.lan.", "192.0.2.9:1"],
)  # fmt: skip
async def test_a_host_of_ours_is_served(host: str) -> None:
    """Loopback, the listed names, what is below a listed star, and the address that was called."""
    doorway = Doorway("read", hosts=("gp4u.lan", "*.example.org"))
    headers = [("host", host)]
    assert (await doorway.call(token="read", headers=headers, server="192.0.2.9")).status == 200


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.example", "example.org", "notexample.org", "localhost.evil.example", "a b",
     "localhost:80:80", "[::1", "@localhost", "x.example.org/", "127.0.0.1.example"],
)  # fmt: skip
async def test_a_host_that_is_not_ours_is_421(host: str | None) -> None:
    """A page whose name was bound to this machine would else read everything as our own page."""
    doorway = Doorway(hosts=("*.example.org",))
    headers = [("accept", "*/*"), *([("host", host)] if host is not None else [])]
    reply = await doorway.call(headers=headers)
    assert (reply.status, reply.problem["code"]) == (421, "host_not_allowed")
    assert doorway.reached == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_another_sites_page_cannot_change_anything(headers: dict[str, str]) -> None:
    """On loopback the browser of an operator could be made to rent machines."""
    doorway = Doorway()
    reply = await doorway.call("POST", "/api/v1/rentals", headers=headers | JSON, body=[b"{}"])
    assert (reply.status, reply.problem["code"]) == (403, "foreign_origin")
    assert doorway.reached == []
    assert (await doorway.call(headers=headers)).status == 200  # and may not read the answer


async def test_our_own_page_may() -> None:
    """The documentation's page sends requests of its own."""
    headers = {"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"} | JSON
    reply = await Doorway().call("POST", "/api/v1/rentals", headers=headers, body=[b"{}"])
    assert reply.status == 201


async def test_no_reply_opens_the_server_to_other_sites() -> None:
    """A preflight is refused, and nothing says Access-Control."""
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    doorway = Doorway()
    replies = [
        await doorway.call("OPTIONS", "/api/v1/rentals", headers=headers),
        await doorway.call(headers=headers),
    ]
    assert [each.status for each in replies] == [405, 200]
    assert not [n for each in replies for n in each.headers if n.startswith("access-control")]


@pytest.mark.parametrize(
    ("media", "status"),
    [
        ("application/json", 201),
        ("Application/JSON; charset=utf-8", 201),
        ("application/merge-patch+json", 201),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("", 415),
        ("text/json", 415),
    ],
)
async def test_a_body_must_be_json(media: str, status: int) -> None:
    """A form can be sent from any page without asking; JSON cannot."""
    headers = {"content-type": media, "content-length": "2"}
    reply = await Doorway().call("POST", "/api/v1/rentals", headers=headers, body=[b"{}"])
    assert reply.status == status


async def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    """Nothing is spent on it."""
    doorway = Doorway(max_body_bytes=10)
    headers = JSON | {"content-length": "11"}
    reply = await doorway.call("POST", "/api/v1/rentals", headers=headers, hangs=True)
    assert (reply.status, reply.problem["code"]) == (413, "body_too_large")


async def test_a_body_without_a_length_is_counted() -> None:
    """It could go on for ever."""
    doorway = Doorway(max_body_bytes=10)
    headers = JSON | {"transfer-encoding": "chunked"}
    parts = [b"12345"] * 2
    good = await doorway.call("POST", "/api/v1/rentals", headers=headers, body=parts)
    bad = await doorway.call(
        "POST", "/api/v1/rentals", headers=headers, body=[*parts, b"6"], hangs=True
    )
    assert (good.status, bad.status) == (201, 413)
    assert doorway.reached == ["1234512345"]


def test_a_body_that_does_not_end_is_408() -> None:
    """Its place would be taken for ever."""

    async def scene() -> Answer:
        headers = JSON | {"content-length": "4"}
        return await Doorway().call(
            "POST", "/api/v1/rentals", headers=headers, body=[b"12"], hangs=True
        )

    reply = run(scene())
    assert (reply.status, reply.problem["code"]) == (408, "too_slow")
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("pairs", "code"),
    [
        ([("content-length", "2"), ("transfer-encoding", "chunked")], "bad_request"),
        ([("content-length", "2"), ("content-length", "3")], "bad_request"),
        ([("content-length", "two")], "bad_request"),
        ([("content-length", "-1")], "bad_request"),
        ([("host", "localhost")], "bad_request"),
        ([("authorization", "Bearer a"), ("authorization", "Bearer b")], "bad_request"),
        ([("x", "y" * MAX_HEAD_BYTES)], "head_too_large"),
        ([("x", "y")] * MAX_HEADERS, "head_too_large"),
    ],
)
async def test_a_head_with_two_meanings_or_without_measure_is_refused(
    pairs: list[tuple[str, str]], code: str
) -> None:
    """A proxy before us and we would see two different requests in the same bytes."""
    doorway = Doorway()
    reply = await doorway.call(
        "POST", "/api/v1/rentals", headers=[("host", "localhost"), *pairs], body=[b"{}"]
    )
    assert reply.problem["code"] == code
    assert reply.status == REFUSALS[code][0]
    assert doorway.reached == []


async def test_a_long_url_is_414() -> None:
    """Path and query count together."""
    doorway = Doorway()
    fits = "/api/v1/gpus/x?q=" + "y" * (MAX_URL_BYTES - 16)
    assert (await doorway.call(path=fits)).status == 200
    assert (await doorway.call(path=fits + "y")).problem["code"] == "url_too_long"
    assert (await doorway.call(path="/api/v1/gpus/" + "y" * MAX_URL_BYTES)).status == 414


async def test_unknown_paths_are_404_and_unknown_methods_405() -> None:
    """The table of the door is the framework's; whatever is not in it cannot be reached."""
    doorway = Doorway()
    reply = await doorway.call("BREW", "/api/v1/rentals")
    assert (reply.status, reply.headers["allow"]) == (405, "DELETE, POST")
    assert reply.problem["code"] == "method_not_allowed"
    assert (await doorway.call(path="/api/v2")).problem["code"] == "no_such_path"
    assert (await doorway.call(path="/api/v1/rentals/")).status == 404


async def test_without_a_token_nobody_learns_which_paths_there_are() -> None:
    """404 or 405 would tell."""
    doorway = Doorway("read")
    assert (await doorway.call(path="/nothing")).status == 401
    assert (await doorway.call("PUT", "/api/v1/rentals")).status == 401


async def test_a_full_server_says_when_to_come_again_and_serves_its_watchers() -> None:
    """Better a quick no than a slow everything; and a full server is not a dead one."""
    doorway = Doorway(max_concurrent=2)
    async with asyncio.TaskGroup() as group:
        inside = [group.create_task(doorway.call(path="/api/v1/slow")) for _ in range(2)]
        await asyncio.sleep(0)
        headers = JSON | {"content-length": "2"}
        reply = await doorway.call("POST", "/api/v1/rentals", headers=headers, hangs=True)
        assert (reply.status, reply.problem["code"]) == (503, "saturated")
        assert reply.headers["retry-after"] == "1"
        assert (await doorway.call(path="/livez")).status == 200
        doorway.go.set()
    assert [task.result().status for task in inside] == [200, 200]
    assert (await doorway.call()).status == 200
    assert (doorway.counted.now, doorway.counted.most) == (0, 3)


async def test_streams_are_counted_apart_from_requests() -> None:
    """A hundred open dashboards must not make the server full."""
    doorway = Doorway(max_concurrent=1, max_streams=2)
    async with asyncio.TaskGroup() as group:
        streams = []
        for _ in range(2):
            streams.append(group.create_task(doorway.call(path="/api/v1/events")))
            await doorway.began.get()
        assert (await doorway.call()).status == 200
        reply = await doorway.call(path="/api/v1/events")
        assert (reply.status, reply.problem["code"]) == (503, "too_many_streams")
        doorway.go.set()
    assert [task.result().body for task in streams] == [b"one\ntwo\n"] * 2
    assert (doorway.door._streams, doorway.door._busy) == (0, 0)
    assert (await doorway.call(path="/api/v1/events")).status == 200


async def test_a_bug_is_500_without_a_word_about_it_and_is_logged() -> None:
    """The trace is for us; the caller gets the id that finds it."""
    doorway = Doorway()
    with capture_logs() as lines:
        reply = await doorway.call(path="/api/v1/bug")
    assert (reply.status, reply.problem["code"]) == (500, "internal")
    assert b"canary" not in reply.body
    (line,) = [each for each in lines if each["event"] == "request_failed"]
    assert line["exc_info"]
    assert (line["log_level"], line["route"]) == ("error", "/api/v1/bug")
    assert doorway.counted.served == [("/api/v1/bug", "GET", 500)]


async def test_a_reply_that_breaks_in_the_midst_breaks_the_connection() -> None:
    """If the door kept quiet, the server would end it as if it were whole."""
    doorway = Doorway()
    with capture_logs(), pytest.raises(Exception, match=r".*") as caught:
        await doorway.call(path="/api/v1/half")
    assert "in the midst" in "".join(str(each) for each in _leaves(caught.value))
    assert doorway.door._busy == 0


async def test_every_reply_has_the_headers_that_shut_browsers_out() -> None:
    """Whatever is sent, no browser guesses a type, runs a script in it or keeps it."""
    doorway = Doorway("read")
    for reply in (
        await doorway.call(token="read"),
        await doorway.call(),
        await doorway.call("PUT"),
    ):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert (await doorway.call()).headers["cache-control"] == "no-store"
    assert (await doorway.call(token="read")).headers["cache-control"] == "no-cache"


async def test_a_good_request_id_is_echoed_and_another_one_made_up() -> None:
    """It goes into logs: only harmless characters."""
    doorway = Doorway()
    for given in ("a.B-9_", "x" * 64):
        reply = await doorway.call(headers={"x-request-id": given})
        assert reply.headers["x-request-id"] == given
    made = set()
    for given in ("", "x" * 65, "a b", "a\r\nb", "ä", "<script>"):
        made.add((await doorway.call(headers={"x-request-id": given})).headers["x-request-id"])
    assert len(made) == 6
    assert all(each.replace("-", "").isalnum() for each in made)


async def test_what_is_logged_during_a_request_carries_its_id_and_nothing_after_it_does() -> None:
    """One search finds everything that one request did."""
    doorway = Doorway()
    with capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        await doorway.call(path="/api/v1/bug", headers={"x-request-id": "r-1"})
        structlog.get_logger().info("after")
    assert [each.get("request_id") for each in lines] == ["r-1", None]
    assert doorway.logged[0]["request_id"] == "r-1"


async def test_metrics_and_log_name_the_template_never_the_path() -> None:
    """A series for each path that somebody makes up would fill the memory."""
    doorway = Doorway("read")
    await doorway.call(path="/api/v1/gpus/vastai/1", token="read")
    await doorway.call(path="/made/up", token="read")
    await doorway.call(path="/made/up")
    assert doorway.counted.served == [
        ("/api/v1/gpus/{name:path}", "GET", 200),
        (UNROUTED, "GET", 404),
        (UNROUTED, "GET", 401),
    ]
    assert doorway.counted.refusals == ["no_such_path", "token_needed"]
    assert [each["role"] for each in doorway.logged] == ["read", "read", None]


async def test_a_caller_that_hangs_up_in_mid_body_is_not_answered() -> None:
    """There is nobody to answer; it is counted as gone, and its place is free again."""
    doorway = Doorway()
    messages = [{"type": "http.request", "body": b"1", "more_body": True}]
    messages.append({"type": "http.disconnect"})

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    async def send(message: object) -> None:
        raise AssertionError(f"sent {message}")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/rentals",
        "raw_path": b"/api/v1/rentals",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-length", b"9"),
            (b"content-type", b"application/json"),
        ],
        "client": None,
        "server": None,
    }
    await doorway.door(scope, receive, send)
    assert doorway.counted.served == [("/api/v1/rentals", "POST", GONE)]
    assert doorway.door._busy == 0


async def test_a_web_socket_is_shut() -> None:
    """There is none here, and none may pass without a token."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    await Doorway().door({"type": "websocket", "path": "/livez"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_route_with_an_unknown_role_stops_the_first_request() -> None:
    """A misspelt role must not mean anything."""
    router = APIRouter()

    async def nothing() -> None: ...

    router.add_api_route("/x", nothing, openapi_extra={"x-gp4u-role": "reed"})
    with pytest.raises(ValueError, match="reed"):
        RouteTable(router.routes)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
