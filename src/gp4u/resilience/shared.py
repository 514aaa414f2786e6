"""One pace for all processes that use the same account of a provider, kept in Redis.

A provider counts the calls of an account, not those of a process. This file hides Redis: two
scripts, the keys they touch, one connection per process, and what to do when it does not answer.
The limits are those of `bucket.py`, in the same numbers; here they are asked for turns that may lie
ahead, so that processes stand in one line and none of them can overtake for ever. Time is Redis'
own, so it does not matter what the hosts' clocks say.

It never stands in the way: without an answer in time there is no shared limit, and what each
process allows itself holds alone. When a turn is asked for, and who waits for it, is left to
`guard.py`; who shares with whom, to `providers/registry.py`. The reasons are in
docs/adr/0021-shared-limits-in-redis.md.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha1, sha256
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from gp4u.errors import BadInput
from gp4u.resilience.bucket import MAX_SLOWDOWN, Bucket, Window

if TYPE_CHECKING:
    from redis.asyncio import Redis

DEADLINE_S: Final = 0.05
"""Longer than this no call waits for Redis to answer, a new connection included."""
GRACE_S: Final = 0.01
"""The end of the deadline: time to read what has come while this process was busy itself."""
RETRY_S: Final = 1.0
"""While it does not answer, one call in this time finds out whether it does again."""
FURTHEST_S: Final = 60.0
"""No turn is given further ahead than this."""
KEPT_S: Final = 3600
"""Keys vanish after so long without a call; every limit has forgotten the last one by then."""
LANES: Final = 8
"""How many questions may be under way at once; more would each be late because of the others."""
VARIABLE: Final = "GP4U_REDIS_URL"

_CLOCK: Final = """
local time = redis.call('TIME')
local account = redis.call('HMGET', KEYS[1], 'seen', 'set_back', 'full_at')
local seen, set_back = tonumber(account[1]) or 0, tonumber(account[2]) or 0
local now = time[1] * 1000000 + time[2] + set_back
if now < seen then
  set_back, now = set_back + seen - now, seen
end
local function text(number) return string.format('%.0f', number) end
"""
"""The present in microseconds, which never goes back: where Redis' clock did, it is made up for."""

TAKE: Final = (
    _CLOCK
    + """
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local calls, span = tonumber(ARGV[3]), tonumber(ARGV[4])
local patience, kept = tonumber(ARGV[5]), ARGV[6]
local line = redis.call('HMGET', KEYS[2], 'rests_until', 'slowdown', 'slow_until', 'left')
local mark, full_at = line[1] or '0', tonumber(account[3]) or 0
if ARGV[7] == mark then return {0, mark} end
local at, left = math.max(now, tonumber(mark)), {}
for stamp in string.gmatch(line[4] or '', '%d+') do left[#left + 1] = tonumber(stamp) end
if calls > 0 then
  if now < (tonumber(line[3]) or 0) then span = span * tonumber(line[2]) end
  if #left > 0 then at = math.max(at, left[#left]) end
  if #left >= calls then at = math.max(at, left[#left - calls + 1] + span) end
end
if interval > 0 then at = math.max(at, math.ceil(full_at - (burst - 1) * interval)) end
if at - now <= patience then
  if interval > 0 then full_at = math.max(full_at, at) + interval end
  if calls > 0 then
    left[#left + 1] = at
    local kept_stamps = {}
    for i = math.max(1, #left - calls + 1), #left do
      kept_stamps[#kept_stamps + 1] = text(left[i])
    end
    redis.call('HSET', KEYS[2], 'left', table.concat(kept_stamps, ' '))
    redis.call('EXPIRE', KEYS[2], kept)
  end
end
redis.call('HSET', KEYS[1],
  'seen', text(now), 'set_back', text(set_back), 'full_at', text(full_at))
redis.call('EXPIRE', KEYS[1], kept)
return {at - now, mark}
"""
)
"""Give a turn, unless it is more than `patience` away; answer the microseconds until then.

`full_at` is when the account's bucket is full again: a token is there at any moment that comes no
more than `burst - 1` intervals before it. `left` are an endpoint's newest departures, ahead ones
too. Who had a turn ahead comes back with the mark of that answer: unless a penalty has come in
between, the turn still stands.
"""

PENALISE: Final = (
    _CLOCK
    + """
local line = redis.call('HMGET', KEYS[2], 'rests_until', 'slowdown', 'slow_until')
local rests_until = math.max(tonumber(line[1]) or 0, now + tonumber(ARGV[1]))
redis.call('HSET', KEYS[2], 'rests_until', text(rests_until))
local slow_for = tonumber(ARGV[2])
if slow_for > 0 then
  local slowdown = 2
  if now < (tonumber(line[3]) or 0) then
    slowdown = math.min(2 * tonumber(line[2]), tonumber(ARGV[4]))
  end
  redis.call('HSET', KEYS[2], 'slowdown', text(slowdown), 'slow_until', text(now + slow_for))
end
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('HSET', KEYS[1], 'seen', text(now), 'set_back', text(set_back))
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {0, text(rests_until)}
"""
)
"""Let an endpoint rest, and where nobody said for how long, halve its rate for a while."""


class Turn(msgspec.Struct, frozen=True):
    """When a call may leave, by all processes together."""

    wait_s: float
    """0.0: now. More than the patience it was asked with: not at all, nothing is taken."""
    mark: str
    """To be given back when the wait is over; empty if nothing is taken."""


ALONE: Final = Turn(0.0, "")
"""The answer where there is none: each process goes by its own limits."""


class SharedLimits:
    """The place where processes share; one connection pool, for one event loop."""

    def __init__(self, url: str, *, deadline_s: float = DEADLINE_S) -> None:
        """Connect when the first turn is asked for.

        Raises:
            BadInput: the package that speaks with Redis is missing, or the address is none.
        """
        self._redis = _client(url)
        self._deadline_s = deadline_s
        self._lanes = asyncio.Semaphore(LANES)
        self._trouble = ""
        self._next_try_at = float("-inf")

    @property
    def is_up(self) -> bool:
        """Whether the newest question was answered; True before the first."""
        return not self._trouble

    def pace(self, provider: str, key: str) -> SharedPace:
        """Return the pace of one account, which its key stands for; the key itself stays here."""
        return SharedPace(self, f"gp4u:{provider}:{_digest(provider, key)}")

    async def ask(self, script: str, keys: Sequence[str], args: Sequence[object]) -> Turn | None:
        """Run a script and return its answer; None if there is none in time."""
        async with self._lanes:
            now = asyncio.get_running_loop().time
            if self._trouble:
                if now() < self._next_try_at:
                    return None
                self._next_try_at = now() + RETRY_S  # the others need not find out as well
            try:
                async with _patience(self._deadline_s):
                    turn = _read(await self._evaluated(script, keys, args))
            except Exception as error:  # noqa: BLE001 - a rim: no failure of this place may become a call's
                self._next_try_at = now() + RETRY_S
                self._note(f"{type(error).__name__}: {error}")
                return None
        self._note("")
        return turn

    async def aclose(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    async def _evaluated(self, script: str, keys: Sequence[str], args: Sequence[object]) -> object:
        from redis.exceptions import NoScriptError

        words = [str(each) for each in (*keys, *args)]
        digest = sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            return await self._redis.evalsha(digest, len(keys), *words)
        except NoScriptError:  # a Redis that started anew has forgotten it
            return await self._redis.eval(script, len(keys), *words)

    def _note(self, trouble: str) -> None:
        """Log trouble when it begins and when it ends."""
        before, self._trouble = self._trouble, trouble
        if bool(before) == bool(trouble):
            return
        import structlog  # 60 ms that only a process in trouble has to pay

        log = structlog.get_logger()
        if trouble:
            log.warning("shared_limits_failed", error=trouble, now="each process on its own")
        else:
            log.info("shared_limits_work_again")


class SharedPace:
    """One account's limits, as all processes together have to keep them."""

    def __init__(self, limits: SharedLimits, name: str) -> None:
        """`name` is the account's key in Redis, and what its endpoints' keys begin with."""
        self._limits = limits
        self._name = name

    @property
    def is_up(self) -> bool:
        """Whether the limits are shared at the moment."""
        return self._limits.is_up

    async def take(
        self,
        endpoint: str,
        bucket: Bucket | None,
        window: Window | None,
        *,
        patience_s: float,
        mark: str = "",
    ) -> Turn:
        """Take the next turn that is free, now or ahead; who is killed before it wastes it.

        The limits are the numbers of `bucket` and `window`; what those have counted is not looked
        at. After the wait, ask again with the turn's `mark`, since a penalty may have come in
        between. `ALONE` is the answer if nobody answers in time.
        """
        patience_s = min(max(patience_s, 0.0), FURTHEST_S)
        args = (
            _micros(1.0 / bucket.rate_per_s) if bucket is not None else 0,
            bucket.capacity if bucket is not None else 0,
            window.pace.calls if window is not None else 0,
            _micros(window.span_s) if window is not None else 0,
            _micros(patience_s),
            _kept_s(window),
            mark,
        )
        turn = await self._limits.ask(TAKE, self._keys(endpoint), args) or ALONE
        return Turn(turn.wait_s, "") if turn.wait_s > patience_s else turn

    async def penalise(
        self, endpoint: str, window: Window | None, *, rest_s: float, slow_for_s: float
    ) -> None:
        """Let nothing leave for `rest_s`; `slow_for_s` above 0 halves the rate for so long."""
        args = (_micros(rest_s), _micros(slow_for_s), _kept_s(window), MAX_SLOWDOWN)
        await self._limits.ask(PENALISE, self._keys(endpoint), args)

    def _keys(self, endpoint: str) -> tuple[str, str]:
        return self._name, f"{self._name}:{endpoint}"


@asynccontextmanager
async def _patience(seconds: float) -> AsyncIterator[None]:
    """End the block after so long, not counting what this process itself was late.

    A loop that was busy finds the answer and the end of its time at once, and must not take its own
    lateness for a Redis that is slow.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        nearly = loop.call_later(seconds - GRACE_S, lambda: limit.reschedule(loop.time() + GRACE_S))
        try:
            yield
        finally:
            nearly.cancel()


def _client(url: str) -> Redis:
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        needed = "the package that speaks with Redis is missing: pip install 'gp4u[redis]'"
        raise BadInput(VARIABLE, _public(url), needed) from error
    try:
        return Redis.from_url(
            url,
            max_connections=LANES,
            retry=Retry(NoBackoff(), 0),
            # Nothing but what is needed is said at the start: each word takes a way there and back.
            protocol=2,
            driver_info=None,
        )
    except ValueError as error:
        bound = "redis://[:<password>@]<host>[:<port>][/<number>]"
        raise BadInput(VARIABLE, _public(url), bound) from error


def _public(url: str) -> str:
    """Return an address without the password that it may hold."""
    return f"{urlsplit(url).scheme}://...@{urlsplit(url).netloc.rpartition('@')[2]}"


def _digest(provider: str, key: str) -> str:
    return sha256(f"{provider} {key}".encode()).hexdigest()[:16]


def _micros(seconds: float) -> int:
    """Return whole microseconds, rounded to the slower side."""
    return math.ceil(round(seconds * 1e6, 3))


def _kept_s(window: Window | None) -> int:
    """Return how long keys are kept: the slowest window has to be over by then."""
    span_s = 0.0 if window is None else window.span_s * MAX_SLOWDOWN
    return max(KEPT_S, math.ceil(span_s + FURTHEST_S))


def _read(reply: object) -> Turn:
    match reply:
        case [int(wait_us), bytes(mark)] if 0 <= wait_us <= KEPT_S * 1_000_000:
            return Turn(wait_us / 1e6, mark.decode("ascii"))
        case _:
            raise ValueError(f"an answer of another script: {reply!r:.100}")
