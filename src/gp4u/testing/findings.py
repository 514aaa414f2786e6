"""How a broken rule is told, and the checks of single values: offers, stamps, errors, workloads.

Everything here is about one value or one call. What happens in which order is in `contract.py`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Final

from msgspec.structs import replace

from gp4u.errors import BadInput, InstanceAbsent, ProviderError, Refused
from gp4u.model import (
    Container,
    File,
    Listing,
    Offer,
    Port,
    Protocol,
    RegistryLogin,
    Workload,
)
from gp4u.providers.contract import Ability, Provider

UNSUPPORTED: Final = "unsupported"
"""The code by which an adapter refuses what its spec does not declare."""


class ContractBroken(AssertionError):
    """The adapter breaks the contract; the text says which rule and what came instead."""


class Caught:
    """What came of a call that should fail."""

    error: ProviderError | BadInput | None = None
    allowed = False
    """No error is good as well."""
    detail = ""


@contextmanager
def raises(kinds: tuple[type[Exception], ...], what: str) -> Iterator[Caught]:
    """Insist on one of these errors."""
    caught = Caught()
    names = " or ".join(kind.__name__ for kind in kinds)
    try:
        yield caught
    except ContractBroken:
        raise
    except kinds as error:
        caught.error = error if isinstance(error, ProviderError | BadInput) else None
        return
    except Exception as error:
        raise ContractBroken(
            f"{what} must raise {names}, and raised {type(error).__name__}: {error}"
        ) from error
    must(caught.allowed, f"{what} must raise {names}, and raised nothing; {caught.detail}")


@contextmanager
def may_be_absent(what: str) -> Iterator[None]:
    """Allow one error: that there is no such instance."""
    try:
        yield
    except InstanceAbsent:
        return
    except ProviderError as error:
        text = f"{what} must succeed or raise InstanceAbsent, and raised {type(error).__name__}"
        raise ContractBroken(f"{text}: {error}") from error


async def check_unsupported(ability: str, call: Awaitable[object]) -> None:
    """Insist that a call is refused as something that this market does not do."""
    with raises((Refused,), f"{ability}, which is not declared,") as caught:
        await call
    code = caught.error.code if isinstance(caught.error, Refused) else ""
    must(code == UNSUPPORTED, f"{ability} is refused with the code {code!r}, not {UNSUPPORTED}")


async def first_of(provider: Provider, instance_id: str) -> bytes:
    """Return the first piece of what is followed."""
    async for piece in provider.follow(instance_id):
        return piece
    return b""


def must(holds: bool, otherwise: str) -> None:
    """Raise `ContractBroken` with a text unless something holds."""
    if not holds:
        raise ContractBroken(otherwise)


def check_stamp(listing: Listing) -> None:
    """Insist on a time that can be compared with ours."""
    must(listing.began_at.tzinfo is not None, "began_at has no time zone")


def problems(offer: Offer, slug: str, can: Ability) -> Iterator[str]:
    """Yield what is wrong with an offer."""
    if offer.provider != slug:
        yield f"its provider is {offer.provider!r}, not {slug!r}"
    prices = (offer.price_usd_per_hour, offer.gpu_usd_per_hour, offer.storage_usd_per_hour)
    if not all(price.is_finite() and price >= 0 for price in prices) or not prices[0] > 0:
        yield f"its prices are {prices}"
    elif abs(prices[0] - prices[1] - prices[2]) > prices[0] / 100:
        yield f"the price {prices[0]} is not its parts together: {prices[1]} + {prices[2]}"
    if offer.gpu_count < 1 or not (math.isfinite(offer.vram_gib) and offer.vram_gib > 0):
        yield f"{offer.gpu_count} GPUs of {offer.vram_gib} GiB"
    if offer.reliability is not None and not 0 <= offer.reliability <= 1:
        yield f"its reliability is {offer.reliability}, not within 0..1"
    sizes = (offer.download_mbps, offer.upload_mbps, offer.cpu_cores, offer.ram_gib, offer.disk_gib)
    if any(size is not None and not (math.isfinite(size) and size >= 0) for size in sizes):
        yield f"network, CPU, memory or disk: {sizes}"
    if offer.fetched_at.tzinfo is None:
        yield "fetched_at has no time zone"
    if offer.estimated and Ability.AUCTION not in can:
        yield "its price is an estimate, and AUCTION is not declared"


def beyond(workload: Workload) -> Iterator[tuple[Ability, Workload]]:
    """Yield each ability that a workload can need, with one that needs it and is else the same."""
    number = workload.ports[0].number if workload.ports else 8000
    tcp = Port(number=number)
    beside = (Container(name="beside", image=workload.image),)
    yield Ability.COMMAND, replace(workload, command=("true",))
    yield Ability.MULTI_CONTAINER, replace(workload, beside=beside)
    yield Ability.PORTS, replace(workload, ports=(tcp,))
    yield Ability.MANY_PORTS, replace(workload, ports=(tcp, Port(number=number + 1)))
    yield Ability.UDP, replace(workload, ports=(Port(number=number, protocol=Protocol.UDP),))
    replaced = replace(workload, entrypoint=("true",))
    yield Ability.ENTRYPOINT, replaced
    yield Ability.FILES, replace(replaced, files=(File(path="/etc/gp4u", content=b"x"),))
    login = RegistryLogin(server="registry.example.com", username="user", password="-")  # noqa: S106 - nobody's
    yield Ability.REGISTRY_LOGIN, replace(workload, login=login)
