"""Which of our errors each of the market's answers is, and how long it asks us to wait."""

from __future__ import annotations

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
from gp4u.providers.http import Reply
from gp4u.providers.vastai.replies import judge
from tests.unit.providers.scripted import recorded

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


def verdict(
    status: int, body: object, *, operation: str = "offers", headers: dict[str, str] | None = None
) -> ProviderError | None:
    """Judge a reply; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return judge(operation, Reply(status, headers or {}, content))


def throttled(status: int, body: object, **headers: str) -> float | None:
    """Return how long a throttle asks us to wait."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    error = verdict(status, body, headers=named)
    assert isinstance(error, Throttled)
    return error.retry_after_s


EXPECTED: dict[tuple[int, str], tuple[str, type[ProviderError]]] = {
    (404, "auth_error"): ("ping", Denied),
    (401, "auth_error"): ("instances", Denied),
    (410, "deprecated_endpoint"): ("instances", Malformed),
    (400, "invalid_request"): ("instances", Refused),
    (404, "not_found"): ("release", InstanceAbsent),
    (429, "rate_limit_exceeded"): ("release", Throttled),
    (429, ""): ("release", Throttled),
    (400, "invalid_args"): ("release", Refused),
    (404, "no_such_instance"): ("release", InstanceAbsent),
    (404, "invalid_id"): ("logs", InstanceAbsent),
    (403, "not_authorized"): ("logs", Denied),
    (483, "invalid_args"): ("logs", Refused),
    (411, ""): ("release", Refused),
}


@pytest.mark.parametrize(
    "sample", recorded("error_bodies"), ids=lambda s: f"{s['status']} {s['where']}"
)
def test_each_sample_of_an_error_is_what_it_was_written_for(sample: dict[str, Any]) -> None:
    """The table of 2.4: status, then `error`, then words of the text."""
    operation, kind = EXPECTED[sample["status"], sample["body"].get("error", "")]
    error = verdict(sample["status"], sample["body"], operation=operation)
    assert type(error) is kind
    assert str(sample["status"]) in error.detail


def test_no_sample_of_an_error_is_left_out() -> None:
    """A row of the table above that meets no sample proves nothing."""
    met = {(s["status"], s["body"].get("error", "")) for s in recorded("error_bodies")}
    assert met == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(recorded("ok_bodies")))
@pytest.mark.parametrize("operation", ["release", "logs", "offers", "rent"])
def test_each_sample_of_a_success_is_one(name: str, operation: str) -> None:
    """`success: true`, whatever stands beside it."""
    assert verdict(200, recorded("ok_bodies")[name], operation=operation) is None


@pytest.mark.parametrize(
    "body",
    [
        {"offers": []},
        {"success": True},
        {"success": None, "offers": []},
        {"id": 1, "error": None},
        {"success": True, "error": "", "msg": "Status message"},
        {"success": True, "error": "stale text of an earlier call"},
        b"not json: the caller finds out, who knows what it should have been",
        b"[]",
    ],
    ids=str,
)
def test_a_2xx_is_a_success_unless_it_says_otherwise(body: object) -> None:
    """Most answers have no `success` at all."""
    assert verdict(200, body) is None
    assert verdict(201, body) is None


@pytest.mark.parametrize(
    ("status", "body", "operation", "kind"),
    [
        (200, {"success": False, "error": "resources_unavailable"}, "offers", Refused),
        (200, {"success": False, "msg": "no"}, "release", Refused),
        (200, {"success": "false"}, "offers", Refused),
        (200, {"success": 0}, "offers", Refused),
        (200, {"error": "something", "msg": "no success field"}, "offers", Refused),
        (200, {"success": False, "error": "no_such_instance"}, "release", InstanceAbsent),
        (200, {"success": False, "error": "no_such_instance"}, "offers", Refused),
        (200, {"success": False, "error": "auth_error"}, "offers", Denied),
        (200, {"success": False, "msg": "API requests too frequent"}, "offers", Throttled),
        (301, {"message": "moved", "code": 301}, "offers", Malformed),
        (308, b"", "offers", Malformed),
        (400, b"Please set a bid price >= 0.001.", "offers", Refused),
        (400, {"success": False, "error": "missing_billing"}, "ping", Refused),
        (403, b"<html>Forbidden</html>", "offers", Denied),
        (403, {"error": "invalid_args"}, "rent", Refused),
        (403, {"msg": "insufficient credit"}, "rent", Refused),
        (404, b"<html>Not Found</html>", "offers", Malformed),
        (404, b"", "instances", Malformed),
        (404, {"error": "auth_error"}, "rent", Denied),
        (404, {"error": "not_found"}, "offers", Refused),
        (404, b"<html>Not Found</html>", "rent", Refused),
        (405, b"", "release", Malformed),
        (408, b"", "offers", Unavailable),
        (410, b"<html>Gone</html>", "release", Malformed),
        (410, {"error": "no_such_ask", "msg": "no longer available"}, "rent", OfferGone),
        (410, {"error": "deprecated_endpoint"}, "rent", Malformed),
        (422, {"msg": "bad volume name"}, "offers", Refused),
        (500, b"<html>oops</html>", "offers", Unavailable),
        (502, b"", "release", Unavailable),
        (503, {"error": "auth_error"}, "offers", Unavailable),
        (504, b"[" * 100_000, "offers", Unavailable),
        (599, {"success": True}, "offers", Unavailable),
    ],
)
def test_a_reply_is_judged_by_status_then_error_then_text(
    status: int, body: object, operation: str, kind: type[ProviderError]
) -> None:
    """H17, H33, H39, H40: each kind has another reader, and only one of them retries."""
    assert type(verdict(status, body, operation=operation)) is kind


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (411, {"success": False, "msg": "x"}, "insufficient_credit"),
        (400, {"error": "missing_billing"}, "insufficient_credit"),
        (402, {"msg": "Your balance is too low"}, "insufficient_credit"),
        (403, {"error": "insufficient_credit"}, "insufficient_credit"),
        (400, {"error": "invalid_args", "msg": "bad image"}, "invalid_args"),
        (422, {"msg": "?"}, "422"),
    ],
)
def test_a_refusal_carries_the_markets_own_word(status: int, body: object, code: str) -> None:
    """M1: being out of money is one code, however it is said."""
    error = verdict(status, body, operation="rent")
    assert isinstance(error, Refused)
    assert (error.code, error.instance_id) == (code, None)


@pytest.mark.parametrize(
    ("body", "wait_s"),
    [
        (b"API requests too frequent", None),
        (b"API requests too frequent: endpoint threshold=2.0", 2.0),
        ({"detail": "API requests too frequent endpoint threshold=4.5"}, 4.5),
        ({"success": False, "error": "rate_limit_exceeded", "msg": "x threshold=3.0"}, 3.0),
        ({"error": "search_quota_exceeded"}, None),
        ({"detail": "slow down", "retry_after": 7.5}, 7.5),
        ({"detail": ["a", "list"]}, None),
        (b"<html>429</html>", None),
        (b"", None),
    ],
    ids=str,
)
def test_every_shape_of_a_429_is_a_throttle(body: object, wait_s: float | None) -> None:
    """H9: plain text or JSON, with an interval in it or without."""
    assert throttled(429, body) == wait_s


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("2", 2.0),
        ("0.25", 0.25),
        ("86400", 300.0),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", 0.0),
        ("Wed, 21 Oct 2026 07:28:30 -0000", 30.0),
        ("²", None),
    ],
)
def test_retry_after_is_honoured_as_far_as_it_makes_sense(
    header: str, wait_s: float | None
) -> None:
    """H10, H36: dates are taken against the reply's own clock, and nothing is waited for long."""
    assert throttled(429, b"", retry_after=header, date=DATE) == wait_s


def test_a_date_to_wait_for_means_nothing_without_a_date_to_start_from() -> None:
    """H36: our own clock may be hours away from theirs."""
    assert throttled(429, b"threshold=2.0", retry_after=DATE) == 2.0


def test_a_quota_says_when_it_is_filled_up_again() -> None:
    """A daily search allowance: asking before costs nothing but patience."""
    body = {"error": "search_quota_exceeded"}
    reset = "1792567720"  # forty seconds after DATE
    assert throttled(429, body, x_ratelimit_reset=reset, date=DATE) == 40.0
    assert throttled(429, body, x_ratelimit_reset="1792567000", date=DATE) == 0.0
    assert throttled(429, body, x_ratelimit_reset=reset) == 300.0
    assert throttled(429, body, x_ratelimit_reset="tomorrow", date=DATE) is None
    assert throttled(400, body, x_ratelimit_reset=reset, date="never") == 300.0


def test_the_text_of_an_error_is_short_and_clean() -> None:
    """H17, S8: it goes to logs and terminals."""
    error = verdict(400, {"error": "\x1b[2Jx", "msg": "y\n" * 5000})
    assert isinstance(error, Refused)
    assert error.detail.isprintable()
    assert len(error.detail) < 256
    assert error.code == "[2Jx"
