"""Dispersed's signature: the published algorithm's vectors, to the last digit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.errors import BadInput
from gp4u.providers.http import Request
from gp4u.providers.render.signing import (
    Signer,
    canonical_body,
    canonical_query,
    canonical_text,
    signature,
)

VECTORS = json.loads(
    (Path(__file__).parents[3] / "payloads/render/dispersed-signing-vectors.json").read_text()
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class At:
    """A clock that stands at a vector's time."""

    def __init__(self, time_ms: str) -> None:
        self._at = datetime.fromtimestamp(int(time_ms) / 1000, UTC)

    def now(self) -> datetime:
        return self._at


def leaving(vector: dict[str, Any]) -> Request:
    """Return a vector's call, its query in the order of the file."""
    body = vector["canonical_body"]
    return Request(
        vector["method"],
        vector["path"],
        urlencode(vector["query"]),
        b"" if body is None else body.encode(),
    )


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_every_vector_is_signed_as_the_official_client_signs_it(vector: dict[str, Any]) -> None:
    """One wrong byte is 401 on every call."""
    headers = vector["headers"]
    signer = Signer(
        VECTORS["public_key"],
        VECTORS["secret_key"],
        At(headers["X-Time"]),
        nonce=lambda: str(headers["X-Nonce"]),
    )
    assert signer(leaving(vector)) == {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_every_vector_has_its_canonical_text(vector: dict[str, Any]) -> None:
    """Where the signature is wrong, this says in which part."""
    call, headers = leaving(vector), vector["headers"]
    assert canonical_query(call.query) == vector["canonical_query"]
    text = canonical_text(
        VECTORS["public_key"],
        headers["X-Time"],
        headers["X-Nonce"],
        method=call.method.lower(),
        path=call.path,
        query=call.query,
        body=call.body,
    )
    assert text == vector["canonical_string"]
    assert signature(VECTORS["secret_key"], text) == headers["X-Signature"]
    if vector["body"] is not None:
        written = json.dumps(vector["body"], indent=2).encode()
        assert canonical_body(written).decode() == vector["canonical_body"]


def test_each_attempt_has_a_nonce_of_its_own() -> None:
    """A reused nonce is 401, which is why a retry cannot resend its headers."""
    signer = Signer("pk", "sk", At("1767225600000"))
    nonces = {signer(Request("GET", "/v1/jobs", "", b""))["x-nonce"] for _ in range(1000)}
    assert len(nonces) == 1000
    assert all(len(nonce) == 32 and int(nonce, 16) >= 0 for nonce in nonces)


def test_a_body_that_would_be_hashed_differently_is_not_sent() -> None:
    """The market hashes the canonical form; other bytes of the same meaning would be refused."""
    signer = Signer("pk", "sk", At("1767225600000"))
    with pytest.raises(ValueError, match="hashed"):
        signer(Request("POST", "/v1/jobs", "", b'{"b":1,"a":2}'))
    signer(Request("POST", "/v1/jobs", "", b'{"a":2,"b":1}'))


@pytest.mark.parametrize("key", ["", "a b", "a\nb", "ä"])
def test_a_key_that_cannot_stand_in_a_header_is_refused_without_being_shown(key: str) -> None:
    """A line break in a key would be a header of somebody else's making."""
    for pair in ((key, "sk"), ("pk", key)):
        with pytest.raises(BadInput) as caught:
            Signer(*pair, At("1767225600000"))
        assert "hidden" in str(caught.value)


def test_the_order_of_a_query_is_by_key_and_then_by_value() -> None:
    """The server sorts; a client that does not is refused."""
    assert canonical_query("b=2&a=1&b=1&c=") == "a=1&b=1&b=2&c="
    assert canonical_query("filter%5Bstatus%5D=B%2CA") == "filter%5Bstatus%5D=B%2CA"
    assert canonical_query("") == ""


@given(JSON)
def test_the_canonical_form_is_ascii_without_blanks_and_a_fixed_point(value: object) -> None:
    """Hashing twice must be hashing once, whatever a workload's variables hold."""
    once = canonical_body(json.dumps({"value": value}).encode())
    assert canonical_body(once) == once
    assert once.isascii()
    assert json.loads(once) == {"value": value}
    assert list(_keys(json.loads(once))) == sorted(_keys(json.loads(once)))


def _keys(value: dict[str, object]) -> Iterator[str]:
    yield from value
