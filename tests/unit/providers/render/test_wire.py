"""What Dispersed's jobs, runs and refusals mean to us."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gp4u.errors import (
    Denied,
    InstanceAbsent,
    Malformed,
    OfferGone,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import InstanceState
from gp4u.providers.http import Reply
from gp4u.providers.render.paging import parse_page
from gp4u.providers.render.wire import (
    ACTIVE,
    ENDED,
    Job,
    Run,
    judge,
    newest,
    to_instance,
)

PAYLOADS = Path(__file__).parents[3] / "payloads" / "render"


def instance(run: dict[str, Any] | None = None, **job: Any) -> Any:
    """Return the instance that a job and its run become."""
    whole = {"uuid": "job-1", "title": "gp4u-x", "status": "RUNNING", **job}
    found = None if run is None else msgspec.convert({"uuid": "run-1", **run}, Run)
    return to_instance(msgspec.convert(whole, Job), found)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("PENDING", InstanceState.BOOTING),
        ("ASSIGNED", InstanceState.BOOTING),
        ("PREPARING", InstanceState.BOOTING),
        ("RUNNING", InstanceState.RUNNING),
        ("running", InstanceState.RUNNING),
        ("FAILING", InstanceState.FAILED),
        ("CANCELLING", InstanceState.STOPPED),
        ("HIBERNATING", InstanceState.UNKNOWN),
        (None, InstanceState.UNKNOWN),
        (7, InstanceState.UNKNOWN),
    ],
)
def test_states(status: object, state: InstanceState) -> None:
    """A word that we do not know is neither ready, nor failed, nor gone."""
    assert instance(status=status).state is state


def test_active_and_ended_states_have_nothing_in_common() -> None:
    """A state in both would be listed and dropped at once."""
    assert not ENDED & set(ACTIVE)


PORTS = {"type": "docker", "parameters": {"ports": [8000, 22]}}


def url(description: object, port: object = 40123, **more: object) -> dict[str, object]:
    """Return an entry of `node_urls`."""
    return {
        "description": description,
        "hostname": "a-eu.proxy.example",
        "port": port,
        "protocol": "tcp",
        **more,
    }


def test_addresses_are_matched_by_description_and_ssh_is_port_22() -> None:
    """Never by position: the order is nowhere promised."""
    found = instance({"node_urls": [url("ssh", 40022), url("8000")]}, parameters=PORTS)
    assert found.state is InstanceState.RUNNING
    assert [(e.container_port, e.port) for e in found.endpoints] == [(22, 40022), (8000, 40123)]
    assert {e.host for e in found.endpoints} == {"a-eu.proxy.example"}


def test_a_tls_address_is_told_as_a_url() -> None:
    """A plain request to it would get no answer."""
    found = instance({"node_urls": [url("8000", tls=True)]})
    assert found.endpoints[0].url == "https://a-eu.proxy.example:40123"


def test_a_host_that_is_an_address_of_six_parts_stands_in_brackets() -> None:
    """Without them its colons read as a port."""
    found = instance({"node_urls": [url("8000", hostname="2001:db8::1", tls=True)]})
    assert found.endpoints[0].host == "2001:db8::1"
    assert found.endpoints[0].url == "https://[2001:db8::1]:40123"


def test_a_port_that_is_described_twice_is_one_endpoint() -> None:
    """`ssh` and `22` are one container port; a service with two of a name would be refused."""
    found = instance({"node_urls": [url("ssh", 40022), url("22", 40022)]})
    assert [(e.container_port, e.port) for e in found.endpoints] == [(22, 40022)]


@pytest.mark.parametrize("protocol", ["tcp", "TCP"])
def test_the_protocol_may_be_written_either_way(protocol: str) -> None:
    """The documents name it once, in a single example."""
    assert instance({"node_urls": [url("8000", protocol=protocol)]}).endpoints


@pytest.mark.parametrize(
    "urls",
    [
        None,
        "x",
        [7],
        [url("8000", protocol="udp")],
        [url("8000", protocol=6)],
        [url("eighty")],
        [url("8000", 0)],
        [url("8000", 70_000)],
        [url("8000", True)],
        [url("8000", hostname=None)],
        [url("8000", hostname="evil/../host")],
        [url("8000", hostname="two hosts")],
        [url("0")],
    ],
)
def test_an_address_that_is_none_keeps_the_instance_booting(urls: object) -> None:
    """What cannot be reached is not running, whatever the job says."""
    found = instance({"node_urls": urls}, parameters={"parameters": {"ports": [8000]}})
    assert found.endpoints == ()
    assert found.state is InstanceState.BOOTING


def test_the_documents_example_of_runs_is_read() -> None:
    """It lacks `job_uuid`, and shows an address before the job runs."""
    body = (PAYLOADS / "dispersed-job-runs-docs-example.json").read_bytes()
    (run,) = parse_page("render", "runs", body, Run).rows
    assert run.job_uuid is None
    found = to_instance(msgspec.convert({"uuid": "j", "status": "ASSIGNED"}, Job), run)
    assert found.state is InstanceState.BOOTING
    assert [(e.container_port, e.host) for e in found.endpoints] == [(22, "123.45.67.89")]


@pytest.mark.parametrize(
    ("pricing", "usd"),
    [
        ({"hourly_rate_usd": 4.14}, Decimal("4.14")),
        ({"hourly_rate_usd": "0.35"}, Decimal("0.35")),
        ({"hourly_rate_usd": True}, None),
        ({"hourly_rate_usd": "much"}, None),
        ({"hourly_rate_usd": -1}, None),
        ({}, None),
        (7, None),
        (None, None),
    ],
)
def test_a_rate_on_the_run_is_the_instances_price(pricing: object, usd: Decimal | None) -> None:
    """No document names it there; where it stands, an oversized node shows by it."""
    assert instance({"pricing": pricing}).price_usd_per_hour == usd


def test_the_newest_run_counts() -> None:
    """A job that was tried again has a run for each try."""
    runs = [Run("a", started_at_ms=5), Run("b", started_at_ms=9), Run("c", started_at_ms=None)]
    best = newest(runs)
    assert best is not None
    assert best.uuid == "b"
    assert newest([]) is None


@pytest.mark.parametrize("title", [None, 7, ["gp4u-x"]])
def test_a_job_without_a_title_is_listed_without_a_label(title: object) -> None:
    """It is somebody's, and not ours."""
    assert instance(title=title).label is None


def test_foreign_text_is_harmless() -> None:
    """A status may come from a container's own output."""
    found = instance(status_reason="bad\x1b[2J\nworse", created_at="2026-11-01T10:00:00Z")
    assert found.status == "bad [2J worse"
    assert found.created_at == datetime(2026, 11, 1, 10, 0, tzinfo=UTC)
    assert instance(created_at="soon").created_at is None


def error(code: str, message: str = "") -> bytes:
    """Return the body of a refusal."""
    return json.dumps({"error": {"code": code, "message": message}}).encode()


HTML = b"<html>sign in</html>"


@pytest.mark.parametrize(
    ("operation", "status", "body", "kind", "code"),
    [
        ("offers", 500, b"", Unavailable, None),
        ("offers", 408, b"", Unavailable, None),
        ("offers", 401, error("invalid_signature"), Denied, None),
        ("offers", 403, error("forbidden"), Denied, None),
        ("offers", 302, b"", Malformed, None),
        ("offers", 404, HTML, Malformed, None),
        ("offers", 400, error("validation_error", "limit"), Refused, "validation_error"),
        ("offers", 422, error("invalid"), Refused, "invalid"),
        ("instances", 200, error("oops"), Malformed, None),
        ("instances", 200, b'{"data":[{"uuid":"j"}],"error":{"code":"partial"}}', Malformed, None),
        ("rent", 200, error("oops"), Unavailable, None),
        ("rent", 503, HTML, Unavailable, None),
        ("rent", 402, error("insufficient_balance"), Refused, "insufficient_credit"),
        ("rent", 400, error("x", "Insufficient credits"), Refused, "insufficient_credit"),
        ("rent", 422, error("validation_error", "tag"), Refused, "validation_error"),
        ("rent", 404, error("not_found", "gpu_registry_uuid"), OfferGone, None),
        ("rent", 409, error("no_capacity"), OfferGone, None),
        ("rent", 404, HTML, Refused, "404"),
        ("release", 404, error("not_found"), InstanceAbsent, None),
        ("release", 409, error("invalid_state"), InstanceAbsent, None),
        ("release", 404, HTML, Malformed, None),
        ("release", 401, error("nonce_reused"), Denied, None),
        ("logs", 404, error("not_found"), InstanceAbsent, None),
    ],
)
def test_every_refusal_has_its_kind(
    operation: str, status: int, body: bytes, kind: type[ProviderError], code: str | None
) -> None:
    """Who acts on a failure depends on its type alone."""
    found = judge(operation, Reply(status, {}, body))
    assert type(found) is kind
    if code is not None:
        assert isinstance(found, Refused)
        assert found.code == code


@pytest.mark.parametrize("status", [400, 402, 404, 409, 422])
@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"code":"x"},"uuid":"j-1"}',
        b'{"error":{"code":"x"},"data":{"uuid":"j-1"}}',
        b'{"error":{"code":"x"},"job_id":"j-1"}',
    ],
)
def test_a_refused_create_that_names_a_job_is_no_clean_no(status: int, body: bytes) -> None:
    """What was made all the same costs money until it is released by its id."""
    found = judge("rent", Reply(status, {}, body))
    assert isinstance(found, Refused)
    assert found.instance_id == "j-1"
    assert judge("release", Reply(200, {}, body)) is None
    plain = judge("rent", Reply(400, {}, b'{"error":{"code":"x"},"uuid":"../other"}'))
    assert isinstance(plain, Refused)
    assert plain.instance_id is None, "an id that leads elsewhere is none"


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[],"total":0}',
        b"[]",
        b'{"uuid":"j","error":null}',
        b'{"uuid":"j","error":{"code":"x"}}',
        b'{"data":{"uuid":"j"},"error":{"code":"x"}}',
        b'{"job_id":"j","error":{"code":"x"}}',
        b'{"job_id":"j","error":"max_obh is used up"}',
    ],
)
def test_a_success_is_a_success(body: bytes) -> None:
    """An `error` that belongs to a job is no refusal of the call."""
    assert judge("instances", Reply(200, {}, body)) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "1e9"}, None),
        ({}, None),
        (
            {
                "retry-after": "Sun, 01 Nov 2026 12:00:30 GMT",
                "date": "Sun, 01 Nov 2026 12:00:00 GMT",
            },
            30.0,
        ),
        ({"retry-after": "Sun, 01 Nov 2026 12:00:30 GMT"}, None),
        ({"retry-after": "later"}, None),
    ],
)
def test_a_429_says_how_long(headers: dict[str, str], seconds: float | None) -> None:
    """Times of day are taken against the market's own clock."""
    found = judge("offers", Reply(429, headers, b""))
    assert isinstance(found, Throttled)
    assert found.retry_after_s == seconds


def test_a_401_names_the_clock() -> None:
    """The key is right, and nobody would think of it."""
    found = judge("ping", Reply(401, {}, error("invalid_time")))
    assert found is not None
    assert "clock" in found.detail
