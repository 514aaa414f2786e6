"""Which markets have nothing that fits, and what the nearest of their offers lacks."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from gp4u.model import Demand, Offer, Requirements, Snapshot, SourceNote
from gp4u.selection.decide import decide, left_out

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def offer(provider: str, offer_id: str, usd: str, **facts: float) -> Offer:
    """Return an offer of a verified host, with what is known of it."""
    return Offer(
        provider=provider,
        offer_id=offer_id,
        gpu_model="RTX 4090",
        gpu_count=1,
        vram_gib=24.0,
        price_usd_per_hour=Decimal(usd),
        gpu_usd_per_hour=Decimal(usd),
        storage_usd_per_hour=Decimal(0),
        fetched_at=NOW,
        verified=True,
        disk_gib=100.0,
        reliability=facts.get("reliability"),
        open_ports=int(facts.get("ports", 10)),
    )


def demanding(*offers: Offer) -> list[tuple[str, int, str, tuple[str, ...]]]:
    """Decide for two ports and 95 % over the offers, and return what is left out."""
    asked = Requirements(ports=2, min_reliability=0.95)
    note = SourceNote(provider="vastai", offers=len(offers), age_s=0.0)
    snapshot = Snapshot(offers, taken_at=NOW, sources=(note,))
    decision = decide(snapshot, Demand(requirements=asked), at=NOW)
    return [(o.provider, o.offers, o.nearest.offer_id, o.broken) for o in left_out(decision)]


def test_a_market_with_an_offer_that_fits_is_not_left_out() -> None:
    """However many of its other offers do not fit."""
    good = offer("vastai", "good", "0.40", reliability=0.99)
    assert demanding(good, offer("vastai", "bad", "0.10", reliability=0.5)) == []


@pytest.mark.parametrize("swap", [False, True])
def test_the_nearest_offer_breaks_the_fewest_bounds_and_is_the_cheapest_of_those(
    swap: bool,
) -> None:
    """What is cheap and fits in nothing tells least of why; and no order of the offers counts."""
    offers = [
        offer("ionet", "cheap-and-hopeless", "0.10", ports=1),
        offer("ionet", "near", "0.30", ports=1, reliability=0.99),
        offer("ionet", "near-and-dear", "0.50", ports=1, reliability=0.99),
        offer("vastai", "good", "0.40", reliability=0.99),
    ]
    found = demanding(*(reversed(offers) if swap else offers))
    assert found == [("ionet", 3, "near", ("ports >= 2 (1)",))]


def test_every_broken_bound_is_said_and_what_is_unknown_reads_so() -> None:
    """A person who relaxes one bound and still gets nothing has been told half."""
    found = demanding(offer("render", "a", "0.20"), offer("ionet", "b", "0.20", ports=1))
    assert found == [
        ("ionet", 1, "b", ("reliability >= 0.95 (unknown)", "ports >= 2 (1)")),
        ("render", 1, "a", ("reliability >= 0.95 (unknown)",)),
    ]
