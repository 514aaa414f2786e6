"""The first seed's curl lines, as somebody pastes them, at a server whose markets misbehave.

Four simulated markets, each in a process of its own with a script of faults: Vast.ai is well,
io.net says 429 to every third call, Akash is down for some seconds of every twelve, Render is
dead. The server is the installed `gp4u serve`; what is run is `bash -c` with the real curl, and
only address and port of the lines are replaced.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.e2e.processes import Desk, Running, clean_environ, markets, wait_for

DOWN_S, EVERY_S, FOR_S = 4, 12, 900
OPEN_S: Final = 2
TURNS_S: Final = 65
"""How long all of one market's answer may take, its turns and tries together."""
FAULTS: Final[dict[str, list[dict[str, Any]]]] = {
    "vastai": [],
    "ionet": [{"kind": "throttle", "chance": 0.34, "retry_after": "1"}],
    "akash": [
        {"kind": "status", "status": 503, "after_s": start, "until_s": start + DOWN_S}
        for start in range(0, FOR_S, EVERY_S)
    ],
    "render": [{"kind": "refuse"}],
}
ROOT: Final = "http://localhost:8000/api/v1"

Check = Callable[[Any], bool]


def rate(value: Any) -> bool:
    """A share of 0..1."""
    return isinstance(value, (int, float)) and 0 <= value <= 1


def count(value: Any) -> bool:
    """A whole number that is not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def amount(value: Any) -> bool:
    """A number that is not negative."""
    return isinstance(value, (int, float)) and value >= 0


def moment(value: Any) -> bool:
    """RFC 3339, with an offset."""
    return datetime.fromisoformat(value).utcoffset() is not None


def maybe(check: Check) -> Check:
    """The same, or null."""
    return lambda value: value is None or check(value)


def one_of(*words: str) -> Check:
    """One of these."""
    return lambda value: value in words


STATE: Final = one_of("CLOSED", "OPEN", "HALF_OPEN")
MARKET: Final = {
    "status": one_of("HEALTHY", "DEGRADED", "UNAVAILABLE"),
    "success_rate": rate,
    "avg_response_time": maybe(amount),
    "circuit_breaker": STATE,
    "rate_limit_utilization": rate,
}
SUMMARY: Final = dict.fromkeys(("healthy", "degraded", "unavailable"), count)
HEALTH: Final = {
    "status": one_of("healthy", "degraded", "unavailable"),
    "providers": dict.fromkeys(FAULTS, MARKET),
    "summary": {"total_providers": 4, **SUMMARY},
}
BREAKER: Final = {
    "state": STATE,
    "failure_count": count,
    "success_count": count,
    "last_failure_time": maybe(moment),
    "trip_count": count,
}
LIMITER: Final = {
    "available_tokens": count,
    "utilization": rate,
    "requests_blocked": count,
}
SHELF: Final = {"hits": count, "misses": count, "hit_ratio": rate, "current_ttl": amount}
TIMES: Final = dict.fromkeys(("avg", "p50", "p95", "p99"), maybe(amount))
SCORES: Final = {"scored": count, "median": maybe(amount), "buckets": lambda b: len(b) == 10}

IN_SUMMARY: Final = {**MARKET, "uptime": rate, "response_times": TIMES, "g_score": SCORES}
SYNCED: Final = {"offers": count, "error": str}

LINES: Final[list[tuple[str, Any]]] = [
    ("curl http://localhost:8000/api/v1/provider-health/health", HEALTH),
    (
        "curl http://localhost:8000/api/v1/provider-health/providers/vastai/health",
        {**MARKET, "status": "HEALTHY", "uptime": 1.0, "response_times": TIMES},
    ),
    (
        "curl -X POST http://localhost:8000/api/v1/provider-health/providers/vastai/health-check",
        {"ok": True, "response_time": amount, "account": {"credit_usd": str}, "error": None},
    ),
    (
        "curl http://localhost:8000/api/v1/provider-health/circuit-breakers",
        dict.fromkeys(FAULTS, BREAKER),
    ),
    (
        "curl -X POST http://localhost:8000/api/v1/provider-health/circuit-breakers/vastai/reset",
        {**BREAKER, "state": "CLOSED", "provider": "vastai"},
    ),
    (
        "curl http://localhost:8000/api/v1/provider-health/rate-limiters",
        {
            "vastai": {"rate": 100, "capacity": 100, **LIMITER},
            "ionet": {"rate": 150, "capacity": 150, **LIMITER},
            "akash": {"rate": 50, "capacity": 50, **LIMITER},
            "render": {"rate": 100, "capacity": 100, **LIMITER},
        },
    ),
    (
        "curl http://localhost:8000/api/v1/provider-health/cache/stats",
        {
            "total_hits": count,
            "total_misses": count,
            "hit_ratio": rate,
            "providers": dict.fromkeys(FAULTS, SHELF),
        },
    ),
    (
        "curl -X POST "
        "http://localhost:8000/api/v1/provider-health/cache/invalidate?provider=vastai",
        {"invalidated": ["vastai"]},
    ),
    (
        "curl http://localhost:8000/api/v1/provider-health/metrics/summary",
        {
            "status": one_of("degraded"),
            "uptime": rate,
            "hit_ratio": rate,
            "g_score": SCORES,
            "providers": dict.fromkeys(FAULTS, IN_SUMMARY),
        },
    ),
    (
        "curl http://localhost:8000/api/v1/providers/sync",
        {"offers": count, "providers": dict.fromkeys(FAULTS, SYNCED)},
    ),
    ("curl http://your-api/api/v1/provider-health/health", HEALTH),
]
"""Each line of the seed that speaks to the server, and what it says of the answer."""


def hold(value: Any, pattern: Any, where: str = "") -> None:
    """Hold an answer against what is known of it; more keys than those are allowed."""
    match pattern:
        case dict():
            assert isinstance(value, dict), (where, value)
            for name, inner in pattern.items():
                assert name in value, (where, name, sorted(value))
                hold(value[name], inner, f"{where}.{name}")
        case type():
            assert isinstance(value, pattern), (where, value)
        case _ if callable(pattern):
            assert pattern(value), (where, value)
        case _:
            assert value == pattern, (where, value)


class Town(NamedTuple):
    """A running server, and the markets around it."""

    url: str
    env: dict[str, str]
    home: Path

    def paste(self, line: str) -> Any:
        """Run a line of the seed, with this server's address in it."""
        line = line.replace("http://localhost:8000", self.url).replace("http://your-api", self.url)
        done = subprocess.run(
            ["bash", "-c", f"{line} --silent --show-error --max-time 60"],
            env=self.env,
            cwd=self.home,
            capture_output=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr.decode())
        return json.loads(done.stdout)

    def get(self, path: str) -> Any:
        """Paste a line for a path."""
        return self.paste(f"curl {ROOT}/{path}")

    def post(self, path: str) -> Any:
        """Paste a line that posts."""
        return self.paste(f"curl -X POST {ROOT}/{path}")

    def breaker(self, slug: str) -> str:
        """The state of a market's breaker."""
        return str(self.get("provider-health/circuit-breakers")[slug]["state"])

    def seen(self, slug: str, state: str) -> bool:
        """Whether a market's breaker is in this state now."""
        return self.breaker(slug) == state


@contextmanager
def built(folder: Path, faults: Mapping[str, list[dict[str, Any]]]) -> Iterator[Town]:
    """Markets with these faults and a server over them, each in a process of its own."""
    env: dict[str, str] = {}
    with ExitStack() as stack:
        for slug, rules in faults.items():
            home = folder / slug
            home.mkdir()
            script = home / "faults.json"
            script.write_text(json.dumps(rules))
            env |= stack.enter_context(markets(slug, faults=script, cwd=home)).env
        desk = Desk(
            None,
            folder / "desk",
            PROVIDER_CIRCUIT_BREAKER_TIMEOUT=str(OPEN_S),
            PROVIDER_CIRCUIT_BREAKER_THRESHOLD="3",
            GP4U_LOG_LEVEL="warning",  # nobody reads along, and a full pipe would stop the server
            **env,
        )
        server: Running = stack.enter_context(desk.start("serve", "--port", "0"))
        url = server.hear(r"gp4u serves (http://[\d.]+:\d+)")[1]
        yield Town(url.replace("127.0.0.1", "localhost"), desk.env, desk.home)
        done = server.end(signal.SIGTERM)
        assert done.code == 143, done
        assert "Traceback" not in done.err, done.err


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Four misbehaving markets and a server, for all tests of this file but one."""
    with built(tmp_path_factory.mktemp("town"), FAULTS) as town:
        yield town


@pytest.mark.parametrize(("line", "pattern"), LINES, ids=[line for line, _ in LINES])
def test_a_pasted_line_has_the_seeds_answer(town: Town, line: str, pattern: Any) -> None:
    """Field by field, whatever the markets behind it do."""
    wait_for(lambda: not town.seen("render", "CLOSED"), "the dead market to be noticed")
    hold(town.paste(line), pattern)


def test_the_seeds_line_to_a_market_itself_works_at_a_simulated_one(tmp_path: Path) -> None:
    """The one line that does not ask us: whether a key is good for anything."""
    line = 'curl -H "Authorization: Bearer $VASTAI_API_KEY" https://console.vast.ai/api/v0/bundles'
    with markets("vastai", cwd=tmp_path) as one:  # for itself: searches are ten a minute
        at_market = line.replace("https://console.vast.ai/api/v0", one.env["VASTAI_BASE_URL"])
        found = Town("", clean_environ() | one.env, tmp_path).paste(at_market)
    assert found["offers"]


def test_a_dead_market_is_told_as_dead_and_the_others_serve(town: Town) -> None:
    """One market's end is no other's, and the whole is degraded, not gone."""

    def dead() -> Any:
        body = town.get("provider-health/health")
        return body if body["providers"]["render"]["status"] == "UNAVAILABLE" else None

    body = wait_for(dead, "the dead market to be UNAVAILABLE")
    assert body["status"] == "degraded"
    assert body["providers"]["render"]["success_rate"] == 0
    assert "OPEN" in body["providers"]["render"]["reason"]
    assert body["providers"]["vastai"]["status"] == "HEALTHY"
    check = town.post("provider-health/providers/render/health-check")
    assert (check["ok"], check["account"]) == (False, None)
    assert check["code"] in {"provider_unavailable", "circuit_breaker_open"}


def test_a_throttling_market_is_not_taken_for_a_failing_one(town: Town) -> None:
    """429 says that we are too fast, and not that the market is down."""

    def held_back() -> bool:
        town.post("provider-health/providers/ionet/health-check")
        limiters = town.get("provider-health/rate-limiters")
        return bool(limiters["ionet"]["requests_blocked"] > 0)

    wait_for(held_back, "a call that was held back after a 429")
    town.get("providers/sync")
    market = town.get("provider-health/providers/ionet/health")
    assert (market["circuit_breaker"], market["success_rate"]) == ("CLOSED", 1)
    assert market["breaker"]["trip_count"] == 0


def test_a_flapping_markets_breaker_is_seen_in_all_three_states(town: Town) -> None:
    """OPEN while it is down, HALF_OPEN when its time is over, CLOSED when trials went well."""
    seen: list[str] = []

    def whole_turn() -> bool:
        state = town.breaker("akash")
        if not seen or seen[-1] != state:
            seen.append(state)
        if state != "OPEN":
            town.post("provider-health/providers/akash/health-check")
        return re.search(r"OPEN (HALF_OPEN )+CLOSED", " ".join(seen)) is not None

    until = time.monotonic() + 6 * EVERY_S
    while not whole_turn():
        assert time.monotonic() < until, seen
        time.sleep(0.2)
    stats = town.get("provider-health/circuit-breakers")["akash"]
    assert stats["trip_count"] >= 1
    assert stats["success_count"] >= 1
    assert moment(stats["last_failure_time"])


def test_a_breaker_that_is_reset_by_hand_lets_the_next_call_through(town: Town) -> None:
    """The market is still dead, so the call fails; but it was sent."""
    wait_for(lambda: town.seen("render", "OPEN"), "the breaker to open")
    before = town.get("provider-health/circuit-breakers")["render"]
    told = town.post("provider-health/circuit-breakers/render/reset")
    assert (told["state"], told["failure_count"]) == ("CLOSED", 0)
    assert told["trip_count"] >= before["trip_count"]
    check = town.post("provider-health/providers/render/health-check")
    after = town.get("provider-health/circuit-breakers")["render"]
    assert check["ok"] is False
    assert after["last_failure_time"] > told["last_failure_time"]


def test_invalidating_the_cache_makes_the_server_fetch(town: Town) -> None:
    """Offers of five minutes' lifetime are replaced within seconds, without anybody asking."""

    def shelf() -> Any:
        found = town.get("provider-health/cache/stats")["providers"]["ionet"]
        return found if found["fetched_at"] else None

    before = wait_for(shelf, "the first offers")
    assert before["current_ttl"] == 300
    told = town.post("provider-health/cache/invalidate?provider=ionet")
    assert told == {"invalidated": ["ionet"]}
    after = wait_for(
        lambda: now if (now := shelf())["fetched_at"] > before["fetched_at"] else None,
        "a fresh fetch",
    )
    assert after["misses"] > before["misses"]


def test_a_sync_fetches_every_market_and_tells_of_each(tmp_path: Path) -> None:
    """200 even with a dead market: what there is, and what is wrong.

    In a town of its own: Vast.ai takes ten searches a minute, and the other tests may have had
    them; a sync that waits for its turn longer than for the other markets is told as not whole.
    """
    faults = {slug: FAULTS[slug] if slug == "render" else [] for slug in FAULTS}
    with built(tmp_path, faults) as town:
        body = town.get("providers/sync")
    dead = body["providers"].pop("render")
    assert (dead["ok"], dead["offers"]) == (False, 0)
    assert dead["error"]
    for slug, well in body["providers"].items():
        assert (well["ok"], well["error"]) == (True, ""), (slug, well)
        assert well["offers"] > 0
        assert well["seconds"] <= body["seconds"] < TURNS_S
    assert body["ok"] is False
    assert body["offers"] == sum(each["offers"] for each in body["providers"].values())


def test_an_unknown_market_is_told_the_known_ones(town: Town) -> None:
    """A typing error in a pasted line."""
    body = town.get("provider-health/providers/vastia/health")
    assert (body["status"], body["code"]) == (404, "not_found")
    assert body["known"] == list(FAULTS)
