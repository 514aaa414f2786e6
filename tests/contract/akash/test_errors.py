"""What the adapter for Akash makes of trouble, by the table of its reference page.

The simulator's own books are the judge: what is held, what was paid, how often something was made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from gp4u.errors import (
    Denied,
    InstanceAbsent,
    Malformed,
    OutcomeUnknown,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import InstanceState
from gp4u.providers.contract import Ability, Query
from gp4u.sim.akash.market import AkashSettings
from gp4u.sim.faults import Kind, Rule
from tests.akash_simulated import (
    API_KEY,
    WANTED,
    Sim,
    everything_returned,
    told,
)

READS: dict[str, Callable[[Sim], Awaitable[object]]] = {
    "balances": lambda sim: sim.provider.ping(),
    "search": lambda sim: sim.provider.offers(Query(requirements=WANTED)),
    "list": lambda sim: sim.provider.instances(),
}


@pytest.mark.parametrize("endpoint", READS)
@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        (Rule(kind=Kind.BAD_KEY), Denied),
        (Rule(kind=Kind.THROTTLE, retry_after="3"), Throttled),
        (Rule(kind=Kind.STATUS, status=503), Unavailable),
        (Rule(kind=Kind.STATUS, status=502), Unavailable),
        (Rule(kind=Kind.RESET_BEFORE), Unavailable),
        (Rule(kind=Kind.CUT_BODY), Unavailable),
        (Rule(kind=Kind.BODY, shape="garbage"), Malformed),
        (Rule(kind=Kind.BODY, shape="html"), Malformed),
    ],
)
def test_an_error_has_the_same_name_on_every_read(
    endpoint: str, rule: Rule, kind: type[ProviderError]
) -> None:
    """Who acts on it is decided by its type alone."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(kind) as caught:
            await READS[endpoint](sim)
        assert type(caught.value) is kind

    told(tale, msgspec.structs.replace(rule, endpoint=endpoint))


def test_a_denied_rent_made_nothing() -> None:
    """A clean no."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(Denied):
            await sim.rented()
        assert sim.market.deployments == {}

    told(tale, Rule(kind=Kind.BAD_KEY, endpoint="create"))


def test_a_throttled_rent_is_told_and_not_repeated() -> None:
    """It is not safe to repeat by itself; the broker waits."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(Throttled) as caught:
            await sim.rented()
        assert caught.value.retry_after_s == 7
        assert len(sim.sent("POST", "/v1/deployments")) == 1

    told(tale, Rule(kind=Kind.THROTTLE, endpoint="create", retry_after="7"))


def test_what_it_can_do_is_declared() -> None:
    """Consumers ask there instead of trying."""

    async def tale(sim: Sim) -> None:
        can = sim.provider.spec.can
        assert Ability.AUCTION | Ability.LABELS | Ability.EXEC | Ability.MULTI_CONTAINER in can
        assert Ability.INTERRUPTIBLE not in can

    told(tale)


def test_the_default_market_with_all_its_lags_goes_the_whole_way() -> None:
    """Nothing switched off: lagging replica, late lists, slow bids."""

    async def tale(sim: Sim) -> None:
        dseq = await sim.running()
        assert (await sim.only()).state is InstanceState.RUNNING
        await sim.provider.release(dseq)
        await asyncio.sleep(30)
        listing = await sim.provider.instances()
        assert (listing.instances, listing.complete) == ((), True)
        await everything_returned(sim)

    told(tale, settings=AkashSettings(api_key=API_KEY))


@pytest.mark.parametrize(
    ("status", "code", "kind", "word"),
    [
        (400, "validation_error", Refused, "validation_error"),
        (401, "unauthorized", Denied, ""),
        (402, "insufficient_balance", Refused, "insufficient_credit"),
        (402, "payment_required", Refused, "payment_required"),
        (402, "balance_top_up_pending", Throttled, ""),
        (403, "forbidden", Denied, ""),
        (404, "not_found", Refused, "not_found"),
        (408, "", OutcomeUnknown, ""),
        (409, "conflict", Refused, "conflict"),
        (422, "validation_error", Refused, "validation_error"),
        (429, "rate_limited", Throttled, ""),
        (302, "", OutcomeUnknown, ""),
        (500, "internal_server_error", OutcomeUnknown, ""),
        (501, "", OutcomeUnknown, ""),
        (503, "service_unavailable", OutcomeUnknown, ""),
    ],
)
def test_every_no_to_an_order_has_its_meaning(
    status: int, code: str, kind: type[ProviderError], word: str
) -> None:
    """A clear no made nothing; whatever else came back may hide an order that is out."""
    body = msgspec.json.encode({"error": "E", "message": "said so", "code": code}).decode()

    async def tale(sim: Sim) -> None:
        with pytest.raises(kind) as caught:
            await sim.rented()
        assert type(caught.value) is kind
        if isinstance(caught.value, Refused):
            assert (caught.value.code, caught.value.instance_id) == (word, None)
        assert len(sim.sent("POST", "/v1/deployments")) == 1

    told(tale, Rule(kind=Kind.STATUS, endpoint="create", status=status, body=body))


@pytest.mark.parametrize("operation", ["show", "release", "extend", "logs", "exec"])
def test_what_never_was_is_absent(operation: str) -> None:
    """404 about one deployment, whatever was asked of it."""
    calls: dict[str, Callable[[Sim], Awaitable[object]]] = {
        "show": lambda sim: sim.provider._console.show("1"),
        "release": lambda sim: sim.provider.release("1"),
        "extend": lambda sim: sim.provider.extend("1"),
        "logs": lambda sim: sim.provider.logs("1"),
        "exec": lambda sim: sim.provider.exec("1", ["true"]),
    }

    async def tale(sim: Sim) -> None:
        with pytest.raises(InstanceAbsent):
            await calls[operation](sim)

    told(tale)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, Malformed),
        (400, Refused),
        (403, Denied),
        (404, Refused),
        (408, Unavailable),
        (501, Malformed),
        (504, Unavailable),
    ],
)
def test_a_read_that_fails_has_the_name_of_its_status(
    status: int, kind: type[ProviderError]
) -> None:
    """A redirect is never followed: the key would go along."""

    async def tale(sim: Sim) -> None:
        with pytest.raises(kind) as caught:
            await sim.provider.ping()
        assert type(caught.value) is kind

    told(tale, Rule(kind=Kind.STATUS, endpoint="balances", status=status))
