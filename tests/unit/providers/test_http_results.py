"""Documents that a provider points to: fetched without the key, and from public addresses alone."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import httpx2
import pytest

from gp4u.errors import Malformed, Unavailable
from gp4u.providers.http import (
    may_connect,
)
from tests.unit.providers.loopback import (
    MIB,
    Wire,
    bomb,
    caught,
    client,
    closed_port,
    replying,
    serving,
)
from tests.unit.providers.scripted import KEY, Script, http_over


async def test_a_result_is_fetched_without_the_key_once_it_is_there() -> None:
    """H41: hosts upload logs late; the storage host is a stranger to our key."""

    async def answer(wire: Wire, writer: asyncio.StreamWriter) -> None:
        missing = wire.connections < 3
        reply = replying(b"no such key", status="403 no") if missing else replying(b"line\xff\n")
        await reply(wire, writer)

    async with serving(answer) as wire, client(allow_loopback=True) as http:
        assert await http.fetch_result(f"{wire.url}/a%2Fb.log?sig=x%3D&e=1") == "line\ufffd\n"
    assert wire.heads[0].startswith("GET /a%2Fb.log?sig=x%3D&e=1 HTTP/1.1\r\n")
    assert wire.connections == 3
    assert not [head for head in wire.heads if KEY in head or "authorization" in head.lower()]


async def test_a_result_that_never_comes_is_empty_and_no_error() -> None:
    """H41: no log is not an error."""
    async with (
        serving(replying(b"", status="404 no")) as wire,
        client(allow_loopback=True) as http,
    ):
        assert await http.fetch_result(f"{wire.url}/1.log", deadline_s=0.3) == ""


async def test_a_result_whose_host_cannot_be_reached_is_an_error() -> None:
    """An empty log would look like a silent workload."""
    async with client(allow_loopback=True) as http:
        url = f"http://127.0.0.1:{closed_port()}/1.log"
        error = await caught(http.fetch_result(url, deadline_s=0.3))
    assert isinstance(error, Unavailable)


async def test_a_result_that_leads_on_is_not_followed() -> None:
    """S6: the second address was never checked."""
    async with (
        serving(replying(b"secret")) as inner,
        serving(replying(b"", status="302 on", headers=f"Location: {inner.url}/\r\n")) as wire,
        client(allow_loopback=True) as http,
    ):
        assert isinstance(await caught(http.fetch_result(wire.url)), Malformed)
        assert inner.connections == 0


async def test_a_result_is_bounded_like_a_reply() -> None:
    """H18: a workload can print for ever."""
    answer = replying(bomb(64 * MIB), headers="Content-Encoding: gzip\r\n")
    async with serving(answer) as wire, client(allow_loopback=True) as http:
        assert isinstance(await caught(http.fetch_result(wire.url)), Malformed)


REFUSED_URLS = [
    "http://127.0.0.1:9/x",
    "https://127.0.0.1:9/x",
    "https://[::1]/x",
    "https://[::ffff:127.0.0.1]/x",
    "https://10.1.2.3/x",
    "https://192.168.1.1/x",
    "https://172.16.0.1/x",
    "https://100.64.0.1/x",
    "https://169.254.169.254/latest/meta-data/",
    "https://[fe80::1]/x",
    "https://[fd00::1]/x",
    "https://[64:ff9b::7f00:1]/x",
    "https://0.0.0.0/x",
    "https://224.0.0.1/x",
    "http://8.8.8.8/x",
    "ftp://8.8.8.8/x",
    "file:///etc/passwd",
    "https://user:secret@8.8.8.8/x",
    "https:///x",
    "not a url",
    "https://8.8.8.8:99999/x",
    "https://8.8.8.8/" + "x" * 3000,
    "",
]


@pytest.mark.parametrize("url", REFUSED_URLS, ids=lambda url: url[:40] or "empty")
async def test_a_result_url_that_is_not_plain_https_to_a_public_address_is_refused(
    url: str,
) -> None:
    """S6: it is foreign text, and would be fetched from inside our network."""
    script = Script(httpx2.Response(200, text="secret"))
    assert isinstance(await caught(http_over(script).fetch_result(url)), Malformed)
    assert script.requests == []


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name resolve to these addresses."""

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        kinds = [socket.AF_INET6 if ":" in a else socket.AF_INET for a in addresses]
        return [
            (k, socket.SOCK_STREAM, 6, "", (a, port)) for k, a in zip(kinds, addresses, strict=True)
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    "addresses",
    [("10.0.0.1",), ("127.0.0.1",), ("8.8.8.8", "10.0.0.1"), ("8.8.8.8", "fe80::1%2")],
    ids=str,
)
async def test_a_name_that_resolves_to_a_private_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]
) -> None:
    """S6: the check is on the address, and one bad one among many spoils the name."""
    resolving(monkeypatch, *addresses)
    http = http_over(Script(httpx2.Response(200, text="secret")))
    assert isinstance(await caught(http.fetch_result("https://logs.example/1")), Malformed)


async def test_a_name_is_connected_to_at_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S6: a second look-up could give another answer; certificate and `Host` stay the name's."""
    resolving(monkeypatch, "8.8.8.8")
    script = Script(httpx2.Response(200, text="log"))
    assert await http_over(script).fetch_result("https://logs.example:8443/1?a=b") == "log"
    (sent,) = script.requests
    assert str(sent.url) == "https://8.8.8.8:8443/1?a=b"
    assert sent.headers["host"] == "logs.example:8443"
    assert sent.extensions["sni_hostname"] == "logs.example"
    assert sent.headers["connection"] == "close", "its session must not serve the next name"
    assert "authorization" not in sent.headers


async def test_the_next_address_of_a_name_is_tried_where_one_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Storage hosts publish IPv6 addresses that not every network can reach."""
    resolving(monkeypatch, "2001:4860:4860::8888", "8.8.8.8")
    script = Script(httpx2.ConnectError("unreachable"), httpx2.Response(200, text="log"))
    assert await http_over(script).fetch_result("https://logs.example/1") == "log"
    assert [r.url.host for r in script.requests] == ["2001:4860:4860::8888", "8.8.8.8"]


def test_an_ipv6_address_that_stands_for_an_ipv4_one_is_judged_as_that() -> None:
    """S6: else `::ffff:` would be a way round every rule."""

    def may(text: str, **more: bool) -> bool:
        return may_connect(ipaddress.ip_address(text), **more)

    assert may("8.8.8.8")
    assert may("2606:4700::1111")
    assert may("::ffff:8.8.8.8")
    assert not may("::ffff:10.0.0.1")
    assert not may("2002:0a00:0001::1")
    assert not may("2001:0:4136:e378:8000:63bf:3fff:fdd2")
    assert not may("fec0::1")
    assert not may("::1")
    assert may("::1", allow_loopback=True)
    assert may("::ffff:127.0.0.1", allow_loopback=True)
    assert not may("10.0.0.1", allow_loopback=True)
