"""How io.net says no: which of our errors a reply is, by its status, its kind and its words.

What this file hides: that a 200 can carry an error, that an error can be a page of the network in
between, and that most refusals differ only in a sentence. A sentence is only ever trusted where the
market itself wrote it: a list of complaints names the fields that we sent, and a field may be
called `API_KEY`. Pure. What a success holds is read elsewhere.

Source: `docs/reference/ionet.md`, errors; checked 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

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
from gp4u.providers.http import UNREADABLE, Reply, excerpt, harmless, retry_after_s
from gp4u.providers.ionet.order import SLUG
from gp4u.providers.ionet.wire import own_id

_ABOUT_ONE: Final = frozenset({"release", "extend", "logs", "billed", "detail", "workers"})
_ABOUT_MONEY: Final = frozenset({"price", "rent", "extend"})
_NO_CREDIT: Final = re.compile(r"\bcredits?\b|\bbalance\b|\bfunds\b|payment required|top up")
_TAKEN: Final = re.compile(
    r"capacity|replica|sold out|out of stock|no longer available|not available|unavailable"
    r"|hardware (?:\S+ )?not found|insufficient resources"
)
_NAME_USED: Final = re.compile(
    r"already (?:exists|taken|in use|used)|not unique|must be unique|name\b.*\bnot available"
)
_BAD_KEY: Final = re.compile(
    r"(?:invalid|wrong|unknown|missing|expired|revoked|no) (?:x-)?api.?key"
    r"|api.?key (?:is |was |has )?(?:invalid|wrong|unknown|missing|expired|revoked|not)"
    r"|not authenticated|unauthori[sz]ed|invalid token"
)
_ERROR_WORDS: Final = frozenset({"detail", "status", "message", "code", "error"})


class _No(msgspec.Struct, frozen=True):
    """An answer that is no success, in its parts."""

    status: int
    words: str
    """What the market wrote in one sentence, in lower case; empty for a list of complaints."""
    complaints: str
    """What a list of complaints says, without the names of what was sent."""
    code: str
    made: str | None
    """The id of what was made all the same."""
    other_project: bool


def judge(operation: str, reply: Reply) -> ProviderError | None:
    """Say what a reply means: its status, whether it is the market's at all, then its words.

    For a rent, whatever is not a clear no becomes `Unavailable`, which the caller must take for an
    unknown outcome. A name that is taken is such a case: names are ours alone, so an earlier try
    must have worked. A no that names a deployment is `Refused` with its id, as the market has it.
    """
    ok, is_page = 200 <= reply.status < 300, _is_page(reply)
    if ok and not is_page and b'"detail"' not in reply.content:
        return None  # thousands of rows are not read twice to find that nothing is wrong
    said = None if is_page else _said(reply.content)
    if ok and not is_page and (said is None or not _declines(said)):
        return None
    text, complaints, code = _words(said or {})
    who = (SLUG, operation, f"HTTP {reply.status}: {text or excerpt(reply.content)}"[:240])
    if is_page and (ok or 300 <= reply.status < 400):
        return Malformed(*who)
    if reply.status >= 500 or reply.status == 408 or (is_page and reply.status == 403):
        return Unavailable(*who)
    if reply.status == 429:
        return Throttled(*who, retry_after_s=retry_after_s(reply))
    no = _No(
        status=reply.status,
        words="" if complaints else text.lower(),
        complaints=complaints.lower(),
        code=code,
        made=own_id({"id": _plain((said or {}).get("deployment_id"))}),
        other_project="key_set" in (said or {}),
    )
    return _judge_rent(no, who) if operation == "rent" else _judge_no(operation, no, who)


def _judge_rent(no: _No, who: tuple[str, str, str]) -> ProviderError:
    """Tell apart the ways to refuse an order; all but a clear no may have made something."""
    if no.made is not None:
        code = "insufficient_credit" if _lacks_credit("rent", no) else no.code or str(no.status)
        return Refused(*who, code=code, instance_id=no.made)
    if no.status == 409 or _NAME_USED.search(no.words or no.complaints):
        return Unavailable(*who)
    error = _judge_no("rent", no, who)
    doubtful = no.status < 400 and isinstance(error, Malformed)
    return Unavailable(*who) if doubtful else error


def _judge_no(operation: str, no: _No, who: tuple[str, str, str]) -> ProviderError:
    """Tell apart the ways to have understood and said no: 4xx, and 200 with a `detail`."""
    if _lacks_credit(operation, no):
        return Refused(*who, code="insufficient_credit")
    if no.status in (401, 403) or no.other_project or _BAD_KEY.search(no.words):
        # Machines are a product that an account need not have: no word on its key.
        return Refused(*who, code=str(no.status)) if operation == "shapes" else Denied(*who)
    if operation in ("price", "rent") and _TAKEN.search(no.words):
        return OfferGone(*who)
    if operation in _ABOUT_ONE and (no.status in (404, 410) or "not found" in no.words):
        return InstanceAbsent(*who)
    if no.status < 400 or (no.status in (404, 405, 410) and operation not in ("rent", "price")):
        return Malformed(*who)
    return Refused(*who, code=no.code or str(no.status))


def _lacks_credit(operation: str, no: _No) -> bool:
    if no.status == 402:
        return True
    return operation in _ABOUT_MONEY and _NO_CREDIT.search(no.words) is not None


def _is_page(reply: Reply) -> bool:
    """Whether it is a page for people: the network in between, or a hotel's."""
    kind = reply.headers.get("content-type", "")
    return "html" in kind or reply.content[:64].lstrip()[:1] == b"<"


def _said(content: bytes) -> dict[str, msgspec.Raw] | None:
    try:
        return msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except UNREADABLE:
        return None


def _plain(raw: msgspec.Raw | None) -> Any:
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except UNREADABLE:
        return None


def _declines(said: Mapping[str, msgspec.Raw]) -> bool:
    """Whether a 200 is an error: it has `detail`, and nothing else that was asked for."""
    asked_for = (raw for name, raw in said.items() if name not in _ERROR_WORDS)
    return bool(_plain(said.get("detail"))) and all(bytes(raw) == b"null" for raw in asked_for)


def _words(said: Mapping[str, msgspec.Raw]) -> tuple[str, str, str]:
    """Return what an error says, the part of it that complaints say, and its own code.

    What was sent is never quoted back, though the field that is wrong is named.
    """
    detail = _plain(said.get("detail", said.get("message")))
    if isinstance(detail, str):
        return harmless(detail, 200), "", ""
    shown, complaints, code = [], [], ""
    for each in detail if isinstance(detail, list) else ():
        if isinstance(each, Mapping):
            place, text = each.get("loc"), harmless(str(each.get("msg")), 120)
            where = ".".join(map(str, place)) if isinstance(place, list) else ""
            shown.append(harmless(f"{where}: {text}", 120))
            complaints.append(text)
            code = code or harmless(str(each.get("type") or ""), 64)
    return "; ".join(shown)[:200], "; ".join(complaints), code
