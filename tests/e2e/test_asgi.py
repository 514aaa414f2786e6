"""`uvicorn gp4u.asgi:app`, as the first seed starts a server: a real process, a real market."""

from __future__ import annotations

import json
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import Desk, Running, markets, wait_for

UVICORN = str(Path(sys.executable).with_name("uvicorn"))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A user at one simulated market."""
    with markets("vastai", cwd=tmp_path) as market:
        yield Desk(market, tmp_path / "home")


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_uvicorn(desk: Desk, *words: str) -> tuple[Running, str]:
    """Start the server program; return it, and the address it will have."""
    port = free_port()
    command = [UVICORN, "gp4u.asgi:app", "--port", str(port), *words]
    return Running(command, desk.env, desk.home), f"http://127.0.0.1:{port}"


def get(url: str) -> Any:
    """Return the JSON of an answer, or None while nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - http on loopback
            return json.load(reply)
    except urllib.error.URLError:
        return None


def test_the_app_starts_serves_and_stops(desk: Desk) -> None:
    """The seed's own way to start it, from the first request to a clean end."""
    server, url = run_uvicorn(desk)
    with server:
        health = wait_for(lambda: get(f"{url}/api/v1/provider-health/health"), "health")
        assert health["providers"]["vastai"]["circuit_breaker"] == "CLOSED"
        found = wait_for(
            lambda: page if (page := get(f"{url}/api/v1/gpus?limit=2"))["total"] else None, "offers"
        )
        assert len(found["items"]) == 2
        ready = get(f"{url}/readyz")
        assert ready["parts"]["ledger"] == "ok"
        assert "reconcile vastai" in ready["parts"]
        done = server.end(signal.SIGINT)
    assert done.code in (0, -signal.SIGINT, 130), done
    assert "Traceback" not in done.err


def test_a_second_server_on_one_ledger_does_not_start(desk: Desk) -> None:
    """Two reconcilers would act on each other's rentals; the second one says who holds it."""
    first, url = run_uvicorn(desk)
    with first:
        wait_for(lambda: get(f"{url}/livez"), "the first server")
        second, _ = run_uvicorn(desk)
        with second:
            done = second.end()
        assert done.code not in (0, None)
        assert "is held by" in done.err
        assert get(f"{url}/livez") == {"status": "ok"}


def test_a_bad_variable_stops_the_start_and_is_named(desk: Desk) -> None:
    """As with every command; the server program only passes our words on."""
    desk.env["GP4U_API_MAX_CONCURRENT"] = "many"
    server, _ = run_uvicorn(desk)
    with server:
        done = server.end()
    assert done.code not in (0, None)
    assert "GP4U_API_MAX_CONCURRENT" in done.err
    assert "whole number from 1" in done.err
