"""The decision as people meet it: order, laziness, explanations, and the seed's log."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from gp4u.errors import BadInput
from gp4u.gpus import canonical
from gp4u.model import (
    Candidate,
    Decision,
    Demand,
    Offer,
    Preferences,
    Region,
    Rejection,
    Requirements,
    Snapshot,
    SourceNote,
)
from gp4u.selection.decide import (
    decide,
    endpoint_log,
    explain,
    relaxations,
    selection_log,
    to_json,
    why_not,
)

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
RTX_3060 = canonical("RTX 3060")
assert RTX_3060 is not None
MODEL = RTX_3060.model
PLAIN = Offer(
    provider="vastai",
    offer_id="1",
    gpu_model=MODEL,
    gpu_count=1,
    vram_gib=12.0,
    price_usd_per_hour=Decimal("0.22"),
    gpu_usd_per_hour=Decimal("0.20"),
    storage_usd_per_hour=Decimal("0.02"),
    fetched_at=NOW,
    region=Region("US", "CA"),
    reliability=0.982,
    download_mbps=500.0,
    disk_gib=200.0,
    verified=True,
)
SEED = Requirements(gpu_models=(MODEL,), min_vram_gib=12, max_price_usd_per_hour=Decimal("0.50"))


def like(offer_id: str, **changes: Any) -> Offer:
    """Return the plain offer under another id, with changes."""
    return msgspec.structs.replace(PLAIN, offer_id=offer_id, **changes)


def decision_over(
    *offers: Offer, requirements: Requirements = SEED, sources: tuple[SourceNote, ...] = ()
) -> Decision:
    """Decide over some offers at the moment they were fetched."""
    snapshot = Snapshot(offers, taken_at=NOW, sources=sources)
    return decide(snapshot, Demand(requirements=requirements), at=NOW)


def ranked(decision: Decision) -> list[str]:
    """Offer ids, best first."""
    return [candidate.offer.offer_id for candidate in decision.candidates]


def test_the_best_offer_comes_first() -> None:
    """With all else equal the cheaper, then the more reliable one wins."""
    decision = decision_over(
        like("dear", price_usd_per_hour=Decimal("0.40")),
        like("shaky", reliability=0.5),
        PLAIN,
    )
    assert ranked(decision) == ["1", "shaky", "dear"]
    assert decision.best is not None
    assert decision.best.offer == PLAIN


def test_ties_are_broken_by_price_reliability_provider_and_id() -> None:
    """Equal scores must not leave the purchase to chance."""
    only_location = Preferences(weights={"location": 1.0})
    offers = (
        like("b"),
        like("a", provider="akash"),
        like("a"),
        like("silent", reliability=None),
        like("shaky", reliability=0.5),
        like("cheap", price_usd_per_hour=Decimal("0.10"), reliability=None),
    )
    decision = decide(
        Snapshot(offers, taken_at=NOW),
        Demand(requirements=SEED, preferences=only_location),
        at=NOW,
    )
    order = [candidate.offer.id for candidate in decision.candidates]
    assert order == [
        ("vastai", "cheap"),
        ("akash", "a"),
        ("vastai", "a"),
        ("vastai", "b"),
        ("vastai", "shaky"),
        ("vastai", "silent"),
    ]


def test_looking_further_down_never_changes_what_was_seen() -> None:
    """The order is made in growing heads; each must continue the one before."""
    offers = [
        like(f"{n:03}", price_usd_per_hour=Decimal(n % 7 + 1) / 20, reliability=n % 5 / 5)
        for n in range(300)
    ]
    stepwise, at_once = decision_over(*offers), decision_over(*offers)
    heads = [stepwise.candidates[0], stepwise.candidates[70], stepwise.candidates[200]]
    whole = list(at_once.candidates)
    assert heads == [whole[0], whole[70], whole[200]]
    assert list(stepwise.candidates) == whole
    assert whole == sorted(whole, key=lambda c: (-round(c.score, 9), c.offer.price_usd_per_hour))


def test_a_crowd_of_equals_is_ordered_as_a_whole() -> None:
    """The head that is ordered first must not cut through a tie: the best may be outside."""
    offers = [like(f"{n:03}", price_usd_per_hour=Decimal(300 - n) / 1000) for n in range(200)]
    demand = Demand(requirements=SEED, preferences=Preferences(weights={"location": 1.0}))
    ids = ranked(decide(Snapshot(offers, taken_at=NOW), demand, at=NOW))
    assert ids == [f"{n:03}" for n in reversed(range(200))]


def test_candidates_and_rejections_behave_like_tuples() -> None:
    """Callers slice, index from the end, compare, and ask for the length."""
    decision = decision_over(PLAIN, like("2"), like("3", available=False))
    assert (len(decision.candidates), len(decision.rejections)) == (2, 1)
    assert decision.candidates[-1].offer.offer_id == "2"
    assert [c.offer.offer_id for c in decision.candidates[1:]] == ["2"]
    assert decision.candidates[0] is decision.candidates[0]
    assert decision.candidates == tuple(decision.candidates)
    assert decision == decision_over(PLAIN, like("2"), like("3", available=False))
    assert decision != decision_over(PLAIN, like("2"))
    for rank in (2, -3):
        with pytest.raises(IndexError):
            decision.candidates[rank]


def test_nothing_is_built_before_it_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten thousand offers a caller reads ten; the G-Score of the others is wasted work."""
    asked: list[str] = []
    monkeypatch.setattr("gp4u.selection.decide.g_score", lambda offer: asked.append(offer.offer_id))
    decision = decision_over(PLAIN, like("2"), like("3"))
    assert len(decision.candidates) == 3
    assert asked == []
    assert decision.best is not None
    assert decision.best.g_score is None
    assert asked == ["1"]


def test_candidates_carry_a_g_score_beside_the_score() -> None:
    """The one number that is the same for every demand and every provider."""
    complete = like(
        "full", cpu_cores=8.0, ram_gib=32.0, upload_mbps=100.0, open_ports=10, datacenter=True
    )
    best = decision_over(complete).best
    assert best is not None
    assert best.g_score is not None
    assert 0 <= best.g_score <= 100


def test_a_stale_offer_is_shown_and_not_rented() -> None:
    """While a provider is away, money must not be bet on what it once said."""
    old = like("old", fetched_at=NOW - timedelta(seconds=700))
    decision = decision_over(old)
    assert decision.best is None
    assert [(r.filter, r.value) for r in decision.rejections] == [("stale", "700 s old")]
    patient = decide(
        Snapshot((old,), taken_at=NOW), Demand(requirements=SEED), at=NOW, max_age_s=900
    )
    assert patient.best is not None


def test_bad_weights_stop_the_decision() -> None:
    """Before any ranking is made that somebody could act on."""
    bad = Demand(preferences=Preferences(weights={"price": 0.9}))
    with pytest.raises(BadInput, match="sum"):
        decide(Snapshot((PLAIN,), taken_at=NOW), bad, at=NOW)


REFUSED = (
    *(like(f"p{n}", price_usd_per_hour=Decimal("0.515") + Decimal(n) / 10) for n in range(4)),
    *(like(f"r{n}", reliability=0.9312) for n in range(2)),
    like("u", reliability=None),
    like("both", price_usd_per_hour=Decimal("0.60"), reliability=0.5),
)
STRICT = msgspec.structs.replace(SEED, min_reliability=0.95)


def test_relaxations_count_what_one_bound_alone_keeps_out() -> None:
    """An offer that breaks two bounds is won by neither of them alone."""
    found = relaxations(decision_over(*REFUSED, requirements=STRICT))
    assert [(r.filter, r.bound, r.excluded_alone, r.nearest) for r in found] == [
        ("price", "<= $0.50/h", 4, "0.52"),
        ("reliability", ">= 0.95", 3, "0.9312"),
    ]


def test_explain_counts_the_reasons_as_kubectl_does() -> None:
    """One sentence for an Event, then the advice; unknown values are counted by name."""
    assert explain(decision_over(*REFUSED, requirements=STRICT)).splitlines() == [
        "0/8 offers fit: 5 price above $0.50/h, 2 reliability below 0.95, 1 reliability unknown.",
        "  price <= $0.50/h alone keeps out 4; nearest that admits some: 0.52",
        "  reliability >= 0.95 alone keeps out 3; nearest that admits some: 0.9312",
    ]


def test_explain_says_so_when_one_step_is_not_enough() -> None:
    """Advice that cannot work is worse than none."""
    text = explain(decision_over(REFUSED[-1], requirements=STRICT))
    assert "at least two must give way" in text


def test_explain_tells_of_an_empty_market_and_of_silent_providers() -> None:
    """Nothing on offer and nobody reachable are different troubles."""
    note = SourceNote(provider="vastai", offers=0, age_s=90, error="503")
    text = explain(decision_over(sources=(note,)))
    assert text.startswith("0/0 offers fit: nobody offers anything now.")
    assert "vastai could not be asked: 503" in text
    assert explain(decision_over(PLAIN)) == "1/1 offers fit."


def test_a_decision_that_was_read_back_can_still_be_explained() -> None:
    """What was decided can be told from the decision alone, lazily made or not."""
    lazy = decision_over(PLAIN, *REFUSED, requirements=STRICT)
    stored = msgspec.structs.replace(
        lazy, candidates=tuple(lazy.candidates), rejections=tuple(lazy.rejections)
    )
    assert explain(stored) == explain(lazy)
    assert relaxations(stored) == relaxations(lazy)
    assert why_not(stored, "vastai", "u") == why_not(lazy, "vastai", "u")


def test_why_not_finds_any_offer_of_the_snapshot() -> None:
    """The question is asked with an id from the provider's own web page."""
    decision = decision_over(PLAIN, *REFUSED, requirements=STRICT)
    unknown = why_not(decision, "vastai", "u")
    assert isinstance(unknown, Rejection)
    assert (unknown.filter, unknown.value, unknown.bound) == ("reliability", "unknown", ">= 0.95")
    winner = why_not(decision, "vastai", "1")
    assert isinstance(winner, Candidate)
    assert winner is decision.best
    assert why_not(decision, "akash", "1") is None


def test_the_selection_log_has_the_seeds_form() -> None:
    """People know these lines from the guide, and scripts may look for them."""
    decision = decision_over(
        like("12345"),
        like("12346", price_usd_per_hour=Decimal("0.30"), region=None, reliability=None),
        like("12347", price_usd_per_hour=Decimal("0.90")),
    )
    first, second = decision.candidates
    gpu = MODEL.replace(" ", "")
    assert selection_log(decision) == [
        f"[VAST] Searching for instances matching: {gpu}, 12GB+, <$0.50/hr",
        "[VAST] Found 3 candidates, filtering...",
        "[VAST] After filtering: 2 instances remain",
        "[VAST] Scoring instances:",
        f"  - Instance 12345: Score {first.score:.2f} ({gpu}, $0.22/hr, US-CA, 98.2% reliability)",
        f"  - Instance 12346: Score {second.score:.2f} ({gpu}, $0.30/hr, -, reliability unknown)",
        "[VAST] Selected instance 12345 - launching...",
    ]
    assert len(selection_log(decision, prefix="GP4U", top=1)) == 6


def test_an_estimate_is_marked_in_the_selection_log() -> None:
    """Where bids make the price, the log must not promise one."""
    line = selection_log(decision_over(like("1", estimated=True)))[4]
    assert "~$0.22/hr" in line


def test_the_selection_log_ends_with_the_reasons_when_nothing_fits() -> None:
    """There is no instance to launch, and the reader has to know why."""
    lines = selection_log(decision_over(like("1", available=False)))
    assert lines[3].startswith("[VAST] No instance fits: 0/1 offers fit: 1 not available.")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "any GPU"),
        ({"gpu_count": 2}, "2x any GPU"),
        ({"gpu_models": ("RTX 4090", "A 40"), "gpu_count": 4}, "4x RTX4090/A40"),
        ({"min_reliability": 0.95}, "any GPU, 95%+ reliability"),
        ({"max_price_usd_per_hour": Decimal("0.05")}, "any GPU, <$0.0500/hr"),
        (
            {"min_download_mbps": 200, "locations": ("US-CA", "US"), "min_cpus": 4},
            "any GPU, 200Mbps+, US-CA/US, 4+ CPUs",
        ),
        (
            {"min_ram_gib": 16, "disk_gib": 50.0, "ports": 2},
            "any GPU, 16GB+ RAM, 50GB+ disk, 2+ ports",
        ),
        (
            {"interruptible": True, "verified_only": False, "providers": ("vastai", "akash")},
            "any GPU, interruptible, unverified too, on vastai/akash",
        ),
    ],
)
def test_the_searching_line_lists_only_the_bounds_that_were_set(
    changes: dict[str, Any], text: str
) -> None:
    """A default nobody chose is noise in the first line people read."""
    lines = selection_log(decision_over(requirements=Requirements(**changes)))
    assert lines[0] == f"[VAST] Searching for instances matching: {text}"


def test_a_hostile_name_cannot_forge_a_log_line() -> None:
    """Names come from strangers; a line break or an escape in one must not reach the terminal."""
    evil = like("1\n[VAST] Selected", gpu_model="\x1b[2JRTX\r\nEvil")
    any_gpu = Requirements()
    lines = selection_log(decision_over(evil, requirements=any_gpu))
    assert all(line.isprintable() for line in lines)
    assert "(" + "[2JRTXEvil" in lines[4]


def test_the_endpoint_lines_have_the_seeds_form() -> None:
    """They follow the selection log once the workload answers."""
    services = [
        ("june-stt.default.svc.cluster.local", 8001, "203.0.113.45", 42352),
        ("june-tts", 8000, "2001:db8::1", 42351),
    ]
    assert endpoint_log("VAST", services) == [
        "[VAST] Instance ready, updating service endpoints:",
        "  - june-stt.default.svc.cluster.local:8001 → 203.0.113.45:42352",
        "  - june-tts:8000 → [2001:db8::1]:42351",
    ]


def test_json_holds_the_whole_answer_in_plain_values() -> None:
    """Scripts read it; money is a string, unknown is null."""
    note = SourceNote(provider="vastai", offers=3, age_s=1.5)
    decision = decision_over(
        PLAIN, like("2", reliability=None, region=None), like("3", vram_gib=8.0), sources=(note,)
    )
    answer = json.loads(json.dumps(to_json(decision, top=None, rejections=True)))
    assert (answer["offer"], answer["provider"]) == ("1", "vastai")
    assert (answer["candidates"], answer["rejected"]) == (2, 1)
    assert answer["ranked"][0]["price_usd_per_hour"] == "0.22"
    assert sum(answer["ranked"][0]["parts"].values()) == pytest.approx(answer["score"], abs=1e-9)
    assert answer["ranked"][1]["region"] is None
    assert answer["ranked"][1]["reliability"] is None
    assert answer["rejections"] == [
        {
            "provider": "vastai",
            "offer_id": "3",
            "filter": "vram",
            "value": "8 GiB",
            "bound": ">= 12 GiB",
        }
    ]
    assert answer["relaxations"][0]["nearest"] == "8"
    assert answer["sources"][0]["age_s"] == 1.5
    assert answer["decided_at"] == "2026-01-05T12:00:00+00:00"


def test_json_is_as_short_as_asked_for() -> None:
    """A dashboard wants the winner, not ten thousand rejections."""
    answer = to_json(decision_over(PLAIN, like("2")), top=1, rejections=False)
    assert "rejections" not in answer
    ranked_entries = answer["ranked"]
    assert isinstance(ranked_entries, list)
    assert len(ranked_entries) == 1
    nothing = to_json(decision_over(), top=1, rejections=False)
    assert (nothing["offer"], nothing["provider"], nothing["score"]) == (None, None, None)
