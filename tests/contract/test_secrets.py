"""The account's key appears nowhere but in the header of our calls (S4, S5).

A canary key goes through a whole life with every kind of trouble, in a market that echoes it back
wherever it can, and is then searched for in everything that was written, printed, raised or sent.
"""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import structlog

from gp4u.errors import Gp4uError
from gp4u.rentals.broker import Progress
from gp4u.sim.faults import Kind, Rule
from gp4u.telemetry import configure
from tests.laws import Story, told
from tests.simulated import DEMAND, WORKLOAD

KEY = "account-key-canary"
ECHOES = [
    f"your key {KEY} is not allowed here",
    f'{{"success": false, "error": "auth_error", "msg": "Invalid key {KEY}"}}',
    f'{{"success": false, "error": "weird {KEY}", "msg": "Authorization: Bearer {KEY}"}}',
    f'{{"offers": [], "instances": "{KEY}"}}',
]
ENDPOINTS = ["search", "create", "list", "destroy", "charges", "user", "logs"]


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, at the finest level, through the ordinary rim."""
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure("DEBUG", "json", [KEY], stream)
    yield stream
    root.handlers[:], root.level = before, level
    structlog.reset_defaults()


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_key_that_the_market_echoes_reaches_no_log_error_or_disk(
    tmp_path: Path, log: io.StringIO, endpoint: str, status: int
) -> None:
    """S4: a reply is foreign text, and some of it is our own secret coming back."""
    told_texts: list[str] = []

    def hear(progress: Progress) -> None:
        told_texts.append(repr(progress))

    async def tale(story: Story) -> None:
        for echo in ECHOES:
            rule = Rule(kind="body", endpoint=endpoint, body=echo, status=status)
            story.faults.add(rule)
            await every_call(story, hear, told_texts)
            story.faults.remove(rule)
            await story.client.settle(seconds=200)

    told(tale, tmp_path, throttle=0.0)

    assert told_texts, "nothing was said"
    assert KEY not in "\n".join(told_texts)
    assert KEY not in log.getvalue()
    assert_not_on_disk(tmp_path)


@pytest.mark.parametrize("kind", ["refuse", "reset_before", "cut_body", "bad_key", "hang_before"])
def test_a_key_is_not_in_what_a_broken_connection_raises(
    tmp_path: Path, log: io.StringIO, kind: str
) -> None:
    """S4: transport errors quote requests; ours carry the key in a header."""
    told_texts: list[str] = []

    async def tale(story: Story) -> None:
        rule = story.faults.add(Rule(kind=kind, seconds=100.0))
        await every_call(story, lambda p: told_texts.append(repr(p)), told_texts)
        story.faults.remove(rule)

    told(tale, tmp_path)

    assert told_texts
    assert KEY not in "\n".join(told_texts) + log.getvalue()
    assert_not_on_disk(tmp_path)


async def every_call(story: Story, hear: object, texts: list[str]) -> None:
    """Do all that speaks to the market, and keep the text of what it raises, chain and all."""
    provider = story.app.providers["vastai"]
    broker = story.app.broker
    story.app.book.invalidate()

    async def rent() -> None:
        rental = await broker.rent("cli:a", DEMAND, WORKLOAD, wait=False, tell=hear)  # type: ignore[arg-type] # a Tell
        await story.app.reconciler.tick("vastai")
        await broker.release(rental.key, wait=False, tell=hear)  # type: ignore[arg-type] # a Tell

    async def logs() -> None:
        await provider.logs("1")

    async def tick() -> None:
        await story.app.reconciler.tick("vastai")

    async def bill() -> None:
        await provider.billed("1")

    for call in (provider.ping, rent, tick, logs, bill):
        try:
            await call()
        except Gp4uError as error:
            texts.append("".join(traceback.format_exception(error)))
            texts.append(repr(error.__dict__))
            structlog.get_logger().exception("call_failed", error=error)
    texts.append(repr(story.app.guards["vastai"].health()))
    texts.append(repr(story.app.settings) + str(story.app.settings))


def assert_not_on_disk(folder: Path) -> None:
    """No file that the program wrote holds the key, in any of its encodings."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    for path in files:
        assert KEY.encode() not in path.read_bytes(), f"the key is in {path.name}"


def test_no_body_that_is_sent_holds_the_account_key(tmp_path: Path) -> None:
    """S5: the rented machine belongs to a stranger; the key of the account is not its business."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        await story.app.providers["vastai"].logs(rental.instance_id or "")
        await story.app.broker.release(rental.key)

        rents = story.sent("PUT", "/asks/")
        assert len(rents) == 1
        assert b"workload-secret" in rents[0], "the workload's own variables must arrive"
        for method, path, body in story.market.requests:
            assert KEY.encode() not in body, f"{method} {path} carries the account key"
            assert KEY not in path

    told(tale, tmp_path)


def test_the_workload_s_variables_are_not_kept_on_disk(tmp_path: Path) -> None:
    """What a pod keeps in a Secret must not end up in a ledger that is backed up elsewhere."""

    async def tale(story: Story) -> None:
        rental = await story.rent()
        await story.app.broker.release(rental.key)

    told(tale, tmp_path)

    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"workload-secret" not in path.read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ["config"],
        ["config", "-o", "json"],
        ["ps"],
        ["offers"],
        ["decide", "--explain"],
        ["rent", "--image", "busybox", "--dry-run", "-o", "json"],
        ["sweep", "--dry-run"],
        ["release", "nobody"],
    ],
    ids=" ".join,
)
def test_no_command_prints_the_key(tmp_path: Path, words: list[str]) -> None:
    """S4: on a terminal that somebody records, against a market that is not even there."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "VASTAI_API_KEY": KEY,
        "VASTAI_BASE_URL": "http://127.0.0.1:9/api/v0",
        "GP4U_ALLOW_LOOPBACK": "1",
        "GP4U_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db",
        "GP4U_LOG_LEVEL": "DEBUG",
        "PROVIDER_MAX_RETRIES": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-m", "gp4u", *words],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ran.stdout + ran.stderr, "it said nothing at all"
    assert "Traceback" not in ran.stderr
    assert KEY not in ran.stdout + ran.stderr


def test_the_echoes_would_be_found_if_they_got_through() -> None:
    """A canary that no fault carries proves nothing."""
    assert all(KEY in echo for echo in ECHOES)
    assert Kind.BODY in set(Kind)
    assert msgspec.json.decode(ECHOES[1])
