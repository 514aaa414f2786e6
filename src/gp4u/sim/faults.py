"""Scripted trouble as data: which call, which kind, how long.

Hides how a fault is matched to a call. A `Rule` says when it strikes (endpoint, call numbers, a
window of the world's time, a chance) and what happens; a dialect asks `strike` once per call and
then looks for the kinds it knows. What a kind looks like on the wire is the dialect's business.
Rules are drawn from a seed (`weather`), read from a file, or added and removed while running.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from random import Random

import msgspec

from gp4u.sim.contracts import Trouble


class Kind(StrEnum):
    """What can go wrong with a call. `Trouble` lists what can go wrong with an instance."""

    LATENCY = "latency"
    """The call is done, `seconds` later."""
    REFUSE = "refuse"
    """No connection: nothing was sent."""
    RESET_BEFORE = "reset_before"
    """The connection dies before the call takes effect."""
    RESET_AFTER = "reset_after"
    """It dies after the effect, before the reply."""
    HANG_BEFORE = "hang_before"
    """No effect, and no reply for `seconds`; then the connection dies."""
    HANG_AFTER = "hang_after"
    """Effect at once, and no reply for `seconds`; then the connection dies."""
    LATE_EFFECT = "late_effect"
    """The reply is lost at once, the effect comes `seconds` later."""
    CUT_BODY = "cut_body"
    """The connection dies in mid-reply."""
    STATUS = "status"
    """`status` with `body` instead of the call."""
    STATUS_AFTER = "status_after"
    """The same after the effect: the 503 that rented."""
    BODY = "body"
    """The reply's body is replaced, as `shape` says (`BODY_SHAPES`)."""
    THROTTLE = "throttle"
    """429 in one of `THROTTLE_SHAPES`, with `retry_after` if given."""
    BAD_KEY = "bad_key"
    NO_CREDIT = "no_credit"
    OFFER_GONE = "offer_gone"
    """Taken between decision and rent; `status` chooses among the market's ways to say so."""
    FAILED_WITH_ID = "failed_with_id"
    """An error reply that carries the id of what was made; `status`."""
    FAILED_WITHOUT_ID = "failed_without_id"
    """200 and `success: false`, although something was made."""
    DUPLICATE = "duplicate"
    """One call makes two contracts of one label."""
    LABEL_LOST = "label_lost"
    LATE_LISTING = "late_listing"
    """The new contract is listed `seconds` later than made."""
    RELEASE_IGNORED = "release_ignored"
    """Answered as done, and nothing happens."""
    START_REFUSED = "start_refused"
    """Another customer has taken the machine meanwhile; the wish to start stays queued."""
    LIST_EMPTY = "list_empty"
    LIST_STALE = "list_stale"
    """The list as it was up to `seconds` ago: no contracts younger than that."""
    LIST_LOST_PAGE = "list_lost_page"
    """A page is left out, and the cursor goes on behind it."""
    LIST_LOOP = "list_loop"
    """The cursor points at the page just shown."""
    LIST_WRONG_TOTAL = "list_wrong_total"


BODY_SHAPES = ("garbage", "html", "truncated", "deep", "empty", "list", "null")
THROTTLE_SHAPES = ("text", "text_threshold", "detail", "error", "quota")

ANY_ENDPOINT = "*"


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault. All conditions must hold; every field but `kind` may be left out."""

    kind: str
    """A `Kind` or a `Trouble`; a trouble strikes the contract that the call makes."""
    endpoint: str = ANY_ENDPOINT
    """A dialect's name of an endpoint, or `*`. Troubles look at creating calls only."""
    calls: tuple[int, ...] = ()
    """Call numbers on that endpoint, from 1; empty: any."""
    after_s: float = 0.0
    """Seconds since the world began."""
    until_s: float | None = None
    chance: float = 1.0
    times: int | None = None
    """How often it may strike in all; None: without bound."""
    seconds: float | None = None
    status: int | None = None
    body: str | None = None
    shape: str | None = None
    retry_after: str | None = None
    """Verbatim value of the header: seconds, a date, or nonsense."""


class Strike(msgspec.Struct, frozen=True):
    """The faults that hit one call, by kind."""

    rules: Mapping[str, Rule] = {}

    def get(self, kind: Kind) -> Rule | None:
        """Return the rule of this kind, if it struck."""
        return self.rules.get(kind)

    @property
    def trouble(self) -> tuple[Trouble | None, float | None]:
        """The first trouble for the contract this call makes, with its seconds."""
        for kind, rule in self.rules.items():
            if kind in _TROUBLES:
                return Trouble(kind), rule.seconds
        return None, None


_TROUBLES = frozenset(trouble.value for trouble in Trouble)
_KINDS = frozenset(kind.value for kind in Kind) | _TROUBLES


class _Armed:
    """A rule in force, and how often it has struck."""

    def __init__(self, rule: Rule) -> None:
        self.rule, self.struck = rule, 0


class Faults:
    """The rules in force, and a record of which struck."""

    def __init__(self, rules: Iterable[Rule] = (), random: Random | None = None) -> None:
        self._random = random or Random(0)  # noqa: S311 -- weather, not secrets
        self._armed: list[_Armed] = []
        self._calls: Counter[str] = Counter()
        self.fired: list[tuple[float, str, str]] = []
        """(seconds since the world began, endpoint, kind), in order."""
        for rule in rules:
            self.add(rule)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in force, in the order they were added."""
        return tuple(armed.rule for armed in self._armed)

    def add(self, rule: Rule) -> Rule:
        """Put a rule in force and return it.

        Raises:
            ValueError: no such kind, or a number out of range.
        """
        if rule.kind not in _KINDS:
            raise ValueError(f"kind: {rule.kind!r} is not one of {', '.join(sorted(_KINDS))}")
        if not 0 <= rule.chance <= 1:
            raise ValueError(f"chance: {rule.chance!r} is not within 0..1")
        if rule.kind == Kind.BODY and rule.shape not in (*BODY_SHAPES, None):
            raise ValueError(f"shape: {rule.shape!r} is not one of {', '.join(BODY_SHAPES)}")
        if rule.kind == Kind.THROTTLE and rule.shape not in (*THROTTLE_SHAPES, None):
            raise ValueError(f"shape: {rule.shape!r} is not one of {', '.join(THROTTLE_SHAPES)}")
        self._armed.append(_Armed(rule))
        return rule

    def remove(self, rule: Rule) -> None:
        """Take a rule out of force; nothing happens if it is not in force."""
        self._armed = [armed for armed in self._armed if armed.rule is not rule]

    def clear(self) -> None:
        """Heal everything."""
        self._armed.clear()

    def calls(self, endpoint: str) -> int:
        """Return how many calls an endpoint has seen."""
        return self._calls[endpoint]

    def strike(self, endpoint: str, *, at: float) -> Strike:
        """Count a call and return the faults that hit it; of one kind, the first rule wins.

        Args:
            at: seconds since the world began.
        """
        self._calls[endpoint] += 1
        number = self._calls[endpoint]
        hits: dict[str, Rule] = {}
        for armed in self._armed:
            rule = armed.rule
            if rule.kind in hits or not self._holds(armed, endpoint, number, at):
                continue
            hits[rule.kind] = rule
            armed.struck += 1
            self.fired.append((at, endpoint, rule.kind))
        return Strike(hits) if hits else _CALM

    def _holds(self, armed: _Armed, endpoint: str, number: int, at: float) -> bool:
        rule = armed.rule
        if rule.endpoint not in (ANY_ENDPOINT, endpoint):
            return False
        if rule.calls and number not in rule.calls:
            return False
        if at < rule.after_s or (rule.until_s is not None and at >= rule.until_s):
            return False
        if rule.times is not None and armed.struck >= rule.times:
            return False
        return rule.chance >= 1 or self._random.random() < rule.chance

    @classmethod
    def from_json(cls, text: bytes | str, random: Random | None = None) -> Faults:
        """Read a list of rules.

        Raises:
            ValueError: not JSON, an unknown field or kind, or a number out of range.
        """
        try:
            return cls(msgspec.json.decode(text, type=list[Rule]), random)
        except msgspec.MsgspecError as error:
            raise ValueError(f"faults: {error}") from error

    @classmethod
    def weather(cls, random: Random, severity: float) -> Faults:
        """Draw a mixture of everything that heals by itself, from calm (0) to bad (1)."""
        rules: list[Rule] = []

        def may(kind: str, chance: float, endpoint: str = ANY_ENDPOINT, **more: object) -> None:
            fields = {
                "kind": kind,
                "chance": min(1.0, chance * severity),
                "endpoint": endpoint,
                **more,
            }
            rules.append(msgspec.convert(fields, Rule))

        may(Kind.LATENCY, 0.3, seconds=round(random.uniform(0.1, 3.0), 3))
        may(Kind.STATUS, 0.12, status=random.choice((500, 502, 503, 504)))
        may(Kind.RESET_BEFORE, 0.05)
        may(Kind.REFUSE, 0.05)
        may(Kind.THROTTLE, 0.08, shape=random.choice(THROTTLE_SHAPES[:4]))
        may(Kind.BODY, 0.04, shape=random.choice(BODY_SHAPES))
        for endpoint in ("create", "destroy"):
            may(Kind.RESET_AFTER, 0.10, endpoint)
            may(Kind.STATUS_AFTER, 0.08, endpoint, status=random.choice((500, 502, 503, 504)))
            may(Kind.HANG_AFTER, 0.05, endpoint, seconds=round(random.uniform(30, 200), 1))
        may(Kind.LATE_EFFECT, 0.08, "create", seconds=round(random.uniform(1, 110), 1))
        may(Kind.OFFER_GONE, 0.15, "create", status=random.choice((400, 404, 409, 410)))
        may(Kind.FAILED_WITH_ID, 0.04, "create")
        may(Kind.FAILED_WITHOUT_ID, 0.03, "create")
        may(Kind.DUPLICATE, 0.02, "create")
        may(Kind.LATE_LISTING, 0.3, "create", seconds=round(random.uniform(1, 20), 1))
        may(Kind.RELEASE_IGNORED, 0.05, "destroy")
        may(Kind.LIST_STALE, 0.15, "list", seconds=round(random.uniform(1, 20), 1))
        may(Kind.LIST_LOST_PAGE, 0.03, "list")
        may(Kind.LIST_LOOP, 0.02, "list")
        may(Kind.LIST_WRONG_TOTAL, 0.02, "list")
        for trouble in Trouble:
            may(trouble, 0.03, "create")
        return cls(rules, Random(random.getrandbits(64)))  # noqa: S311 -- weather, not secrets


_CALM = Strike()
