"""Values for the tests of `rentals/`: a rental in a given state, an instance, a listing."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

from gp4u.model import Endpoint, Instance, InstanceState, Listing, Offer, RentalKey, Workload
from gp4u.rentals import rental as rentals
from gp4u.rentals.plan import Policy
from gp4u.rentals.rental import Rental, mint_key

AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
POLICY = Policy(settle_s=30, late_window_s=120)
SECRET = b"only for tests"
INSTALLATION = "abcdef"
_random = Random(5)


def after(seconds: float) -> datetime:
    """The moment so many seconds after `AT`."""
    return AT + timedelta(seconds=seconds)


def key() -> RentalKey:
    """A key of this installation, never the same twice."""
    return mint_key(INSTALLATION, SECRET, _random)


def offer(**changes: Any) -> Offer:
    """An offer at $0.36 for the GPU and $0.036 for its disk per hour."""
    values: dict[str, Any] = {
        "provider": "vastai",
        "offer_id": "5001",
        "gpu_model": "RTX 4090",
        "gpu_count": 1,
        "vram_gib": 24,
        "price_usd_per_hour": Decimal("0.396"),
        "gpu_usd_per_hour": Decimal("0.36"),
        "storage_usd_per_hour": Decimal("0.036"),
        "fetched_at": AT,
        "machine_id": "77",
    }
    return Offer(**(values | changes))


def intended(owner: str = "cli:a", *, workload: Workload | None = None, **changes: Any) -> Rental:
    """A rental whose rent call is about to be sent at `AT`."""
    return rentals.intend(
        key=key(),
        owner=owner,
        offer=offer(**changes),
        workload=workload or Workload(image="busybox", env={"TOKEN": "hidden"}),
        ceiling_usd_per_hour=Decimal("0.5"),
        at=AT,
        patience=POLICY.patience,
        epoch=1,
    )


def starting(owner: str = "cli:a", instance_id: str = "901") -> Rental:
    """A rental that the provider confirmed at `AT`."""
    return rentals.confirm(intended(owner), instance_id, at=AT, settle=POLICY.settle)


def seen(rental: Rental, state: InstanceState, seconds: float = 0.0) -> Rental:
    """The rental after a listing showed its instance in a state."""
    return rentals.observe(rental, instance(rental, state), at=after(seconds))


def running(owner: str = "cli:a", instance_id: str = "901") -> Rental:
    """A rental whose workload answered at `AT`."""
    shown = seen(starting(owner, instance_id), InstanceState.RUNNING)
    return rentals.answer(shown, at=AT)


def releasing(rental: Rental | None = None, *, reason: str = "asked") -> Rental:
    """A rental on its way out since `AT`."""
    return rentals.give_up(rental or running(), reason, at=AT)


def instance(
    rental: Rental, state: InstanceState = InstanceState.RUNNING, **changes: Any
) -> Instance:
    """The rental's instance as a listing would show it."""
    values: dict[str, Any] = {
        "provider": rental.provider,
        "instance_id": rental.instance_id or "901",
        "label": rental.key,
        "state": state,
        "endpoints": (Endpoint(container_port=8000, host="127.0.0.1", port=40001),),
        "price_usd_per_hour": Decimal("0.396"),
    }
    return Instance(**(values | changes))


def listing(
    instances: Iterable[Instance] = (), *, began: float = 1000.0, complete: bool = True
) -> Listing:
    """A listing begun so many seconds after `AT`."""
    return Listing(
        provider="vastai", instances=tuple(instances), complete=complete, began_at=after(began)
    )
