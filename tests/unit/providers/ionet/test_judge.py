"""What each of io.net's answers means, by status, kind of body and words."""

from __future__ import annotations

import json

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
from gp4u.providers.http import Reply
from gp4u.providers.ionet.judge import judge

JSON = {"content-type": "application/json"}
HTML = {"content-type": "text/html; charset=utf-8"}

CASES: list[tuple[str, int, dict[str, str], bytes, type[ProviderError] | None, str]] = [
    ("instances", 200, JSON, b'{"data":{"deployments":[]}}', None, ""),
    ("instances", 200, JSON, b"[]", None, ""),
    ("rent", 200, JSON, b'{"status":"ok","deployment_id":"a"}', None, ""),
    ("rent", 200, JSON, b"", None, ""),
    ("instances", 200, JSON, b'{"detail":"Deployment not found"}', Malformed, ""),
    ("instances", 200, JSON, b'{"detail":"Invalid API key"}', Denied, ""),
    ("release", 200, JSON, b'{"detail":"Deployment not found"}', InstanceAbsent, ""),
    ("rent", 200, JSON, b'{"detail":"Something went wrong"}', Unavailable, ""),
    ("instances", 200, HTML, b"<p>Sign in</p>", Malformed, ""),
    ("rent", 200, HTML, b"<p>Sign in</p>", Malformed, ""),
    ("instances", 302, HTML, b"<a>", Malformed, ""),
    ("ping", 400, JSON, b'{"key_set": true}', Denied, ""),
    ("ping", 401, JSON, b'{"detail":"no"}', Denied, ""),
    ("ping", 403, JSON, b'{"detail":"no"}', Denied, ""),
    ("ping", 403, HTML, b"<!DOCTYPE html>Just a moment", Unavailable, ""),
    ("rent", 402, JSON, b'{"detail":"pay"}', Refused, "insufficient_credit"),
    ("rent", 400, JSON, b'{"detail":"Not enough credits"}', Refused, "insufficient_credit"),
    ("extend", 400, JSON, b'{"detail":"Insufficient balance"}', Refused, "insufficient_credit"),
    ("rent", 400, JSON, b'{"detail":"Not enough capacity"}', OfferGone, ""),
    ("rent", 404, JSON, b'{"detail":"Hardware not found"}', OfferGone, ""),
    ("price", 400, JSON, b'{"detail":"sold out"}', OfferGone, ""),
    ("rent", 400, JSON, b'{"detail":"resource_private_name already exists"}', Unavailable, ""),
    ("rent", 409, JSON, b'{"detail":"Conflict"}', Unavailable, ""),
    ("rent", 400, JSON, b'{"detail":"bad image"}', Refused, "400"),
    ("release", 404, JSON, b'{"detail":"Deployment not found"}', InstanceAbsent, ""),
    ("extend", 410, JSON, b'{"detail":"gone"}', InstanceAbsent, ""),
    ("instances", 404, JSON, b'{"detail":"Not Found"}', Malformed, ""),
    ("instances", 429, JSON, b'{"detail":"Rate limit exceeded"}', Throttled, ""),
    ("rent", 429, HTML, b"<p>slow down</p>", Throttled, ""),
    ("rent", 500, HTML, b"<h1>502</h1>", Unavailable, ""),
    ("rent", 503, JSON, b'{"detail":"busy"}', Unavailable, ""),
    ("instances", 408, JSON, b"", Unavailable, ""),
    ("instances", 200, JSON, b'{"detail":"x","data":null}', Malformed, ""),
    ("instances", 200, JSON, b'{"detail":"partly stale","deployments":[]}', None, ""),
    ("offers", 200, JSON, b'{"data":{"hardware":[{"detail":"a row\'s own"}]}}', None, ""),
    ("rent", 200, JSON, b'{"detail":"slow","deployment_id":"a"}', None, ""),
    ("rent", 202, JSON, b'{"detail":"Something went wrong"}', Unavailable, ""),
    ("rent", 302, JSON, b"{}", Unavailable, ""),
    ("rent", 402, JSON, b'{"detail":"pay","deployment_id":"d-1"}', Refused, "insufficient_credit"),
    ("rent", 400, JSON, b'{"detail":"bad image","deployment_id":"d-1"}', Refused, "400"),
    ("rent", 400, JSON, b'{"detail":"Name is not available"}', Unavailable, ""),
    ("rent", 403, JSON, b'{"detail":"Insufficient IO Credits"}', Refused, "insufficient_credit"),
    ("rent", 400, JSON, b'{"detail":"registry credentials invalid"}', Refused, "400"),
    ("rent", 400, JSON, b'{"detail":"variable OPENAI_API_KEY is too long"}', Refused, "400"),
    ("ping", 400, JSON, b'{"detail":"Invalid API key"}', Denied, ""),
    ("ping", 400, JSON, b'{"detail":"API key is not valid"}', Denied, ""),
]


@pytest.mark.parametrize(("operation", "status", "headers", "body", "kind", "code"), CASES)
def test_every_row_of_the_error_table_means_one_thing(
    operation: str,
    status: int,
    headers: dict[str, str],
    body: bytes,
    kind: type[ProviderError] | None,
    code: str,
) -> None:
    """Who acts on an error depends on its kind alone."""
    error = judge(operation, Reply(status, headers, body))
    assert (type(error) if error else None) is kind
    if isinstance(error, Refused):
        assert error.code == code


def test_a_complaint_names_the_field_and_never_quotes_what_was_sent() -> None:
    """What was sent may be secret, and validators like to show it."""
    items = [
        {
            "loc": ["body", "container_config", "secret_env_variables"],
            "msg": "Input should be a string",
            "type": "string_type",
            "input": "hunter2-hunter2",
        }
    ]
    error = judge("rent", Reply(422, JSON, json.dumps({"detail": items}).encode()))
    assert isinstance(error, Refused)
    assert error.code == "string_type"
    assert "secret_env_variables" in error.detail
    assert "hunter2" not in error.detail


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("soon", None), ("1e9", None), ("99999", 300.0), (None, None)],
)
def test_retry_after_is_read_where_it_is_one(header: str | None, seconds: float | None) -> None:
    """Nonsense must not become a wait; a long one is cut."""
    headers = dict(JSON) if header is None else {**JSON, "retry-after": header}
    error = judge("instances", Reply(429, headers, b"{}"))
    assert isinstance(error, Throttled)
    assert error.retry_after_s == seconds


def test_a_retry_date_is_read_against_the_replys_own_clock() -> None:
    """The market's clock may be off from ours, but not from itself."""
    headers = {
        **JSON,
        "date": "Sun, 01 Nov 2026 10:00:00 GMT",
        "retry-after": "Sun, 01 Nov 2026 10:00:30 GMT",
    }
    error = judge("instances", Reply(429, headers, b"{}"))
    assert isinstance(error, Throttled)
    assert error.retry_after_s == 30.0


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY invalid api key", "MY_BALANCE", "REPLICA_OF", "resource_not_found"]
)
@pytest.mark.parametrize("operation", ["rent", "extend", "release"])
def test_a_field_that_was_sent_is_not_taken_for_the_markets_word(operation: str, name: str) -> None:
    """A variable called `API_KEY` with a wrong value would close the whole market for minutes."""
    item = {"loc": ["body", "secret_env_variables", name], "msg": "too long", "type": "too_long"}
    error = judge(operation, Reply(422, JSON, json.dumps({"detail": [item]}).encode()))
    assert isinstance(error, Refused)
    assert error.code == "too_long"


def test_a_taken_name_is_an_unknown_outcome_in_a_list_of_complaints_too() -> None:
    """Nobody says by which status a name in use is refused; what has it may be paid for."""
    item = {"loc": ["body", "resource_private_name"], "msg": "already exists", "type": "value"}
    error = judge("rent", Reply(422, JSON, json.dumps({"detail": [item]}).encode()))
    assert isinstance(error, Unavailable)


def test_a_refused_order_tells_what_it_made() -> None:
    """An id in an error is a deployment that somebody must end."""
    reply = Reply(400, JSON, b'{"detail":"partly failed","deployment_id":"36fc-1"}')
    error = judge("rent", reply)
    assert isinstance(error, Refused)
    assert error.instance_id == "36fc-1"
    odd = judge("rent", Reply(400, JSON, b'{"detail":"no","deployment_id":"../x"}'))
    assert isinstance(odd, Refused)
    assert odd.instance_id is None


def test_thousands_of_rows_are_not_decoded_to_find_that_nothing_is_wrong() -> None:
    """Every success is judged; to decode it there doubles the cost of a sync."""
    body = b'{"data": ' + b"[" * 200_000
    assert judge("offers", Reply(200, JSON, body)) is None
