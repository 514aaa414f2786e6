"""What the PROPOSED node API's replies mean: nodes as offers, jobs as instances or as progress.

Nothing is known to speak this API; `legacy.py` says why it exists. What this file hides: the
wire types and the arithmetic of OctaneBench: a node of score S that runs an hour does S
OctaneBench-hours (OBh), so its dollars per hour are S times the price of ONE OBh. Pure.

Source: `docs/reference/render.md`, the proposal; units of OctaneBench: know.rendernetwork.com,
checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, TypeGuard

import msgspec
from msgspec import Meta

from gp4u import places
from gp4u.errors import BadInput
from gp4u.model import Endpoint, Instance, InstanceState, Offer
from gp4u.providers.http import harmless
from gp4u.providers.render.offers import MAX_PORTS, card_of, positive
from gp4u.providers.render.wire import SLUG, Uuid, Word, is_host, is_tcp, usd_per_hour

TIERS: Final = (1, 2, 3)
"""1 trusted, 2 priority, 3 economy. There is no tier 4."""
TRUSTED: Final = 1
ENGINES: Final = ("octane", "redshift", "cycles")
MAX_FRAMES: Final = 1_000_000
MAX_OBH: Final = 1_000_000
"""OctaneBench-hours; some ten thousand dollars at the priority tier."""


class Node(msgspec.Struct):
    """One row of `GET /nodes`; every field but its name may be missing."""

    node_id: Uuid
    kind: Word | None = None
    gpu_model: Word | None = None
    gpu_count: Annotated[int, Meta(ge=1, le=4096)] | None = None
    gpu_memory: float | None = None
    """GB per GPU."""
    octanebench_score: Decimal | None = None
    price_per_obh: Decimal | None = None
    """Dollars per ONE OctaneBench-hour; may come as text."""
    price_per_hour_usd: Decimal | None = None
    """Of a compute node, for the whole of it."""
    location: Word | None = None
    uptime: float | None = None
    """Percent, as `reputation`."""
    reputation: float | None = None
    tier: int | None = None
    """One of `TIERS`."""


class JobRow(msgspec.Struct):
    """One job of either kind; all but its id stays loose."""

    job_id: Uuid
    kind: Any = None
    status: Any = None
    client_ref: Any = None
    error: Any = None
    endpoints: Any = None
    node_id: Any = None
    progress: Any = None
    frames_done: Any = None
    frames_total: Any = None
    obh_used: Any = None
    cost_usd: Any = None
    outputs: Any = None


class Frames(msgspec.Struct, frozen=True):
    """Which frames of a scene; `end` is one of them."""

    start: int
    end: int
    step: int = 1


class RenderProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a render job is."""

    job_id: str
    key: str
    """Under which it was submitted: ours, or foreign text; empty: none."""
    status: str
    """queued, assigned, rendering, completed, failed or cancelled."""
    frames_done: int
    frames_total: int
    progress: float
    """0..1."""
    obh_used: Decimal | None
    """OctaneBench-hours."""
    cost_usd: Decimal | None
    node_id: str | None
    outputs: tuple[str, ...]
    """Addresses of finished frames: foreign text."""
    error: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is paid for it; a word that we do not know says no."""
        return self.status in _ENDED


class Made(msgspec.Struct):
    """The answer to a create call that worked."""

    job_id: Uuid


def to_offers(nodes: Iterable[Node], kind: str, at: datetime) -> Iterator[Offer | None]:
    """Yield the nodes of a kind as offers; None for one without kind, GPU or price."""
    for node in nodes:
        if node.kind in (kind, None):
            yield to_offer(node, at) if node.kind else None


def to_offer(node: Node, at: datetime) -> Offer | None:
    """Return the node as an offer; None where GPU or price cannot be told.

    A render node's price is that of full use. The disk is unknown: the API does not speak of one.
    Only a node of tier 1 counts as verified, since that tier means trusted operators; nobody
    vouches for the others, so a demand has to ask for unverified hosts to be shown them.
    Source: know.rendernetwork.com, tiers; checked 2026-11.
    """
    gpu = card_of(node.gpu_model, positive(node.gpu_memory)) if node.gpu_model else None
    usd = _price(node)
    if usd is None or gpu is None:
        return None
    return Offer(
        provider=SLUG,
        offer_id=node.node_id,
        gpu_model=gpu[0],
        gpu_count=node.gpu_count or 1,
        vram_gib=gpu[1],
        price_usd_per_hour=usd,
        gpu_usd_per_hour=usd,
        storage_usd_per_hour=Decimal(0),
        fetched_at=at,
        region=places.parse(node.location),
        reliability=_reliability(node),
        open_ports=MAX_PORTS if node.kind == "compute" else 0,
        machine_id=node.node_id,
        verified=True if node.tier == TRUSTED else None,
    )


def _price(node: Node) -> Decimal | None:
    """Return dollars per hour; the two kinds of node have two price lists, never mixed."""
    if node.kind == "compute":
        return None if node.price_per_hour_usd is None else usd_per_hour(node.price_per_hour_usd)
    score, per_obh = node.octanebench_score, node.price_per_obh
    if score is None or per_obh is None or not (score.is_finite() and per_obh.is_finite()):
        return None
    if not 0 < score < _MOST_SCORE or not 0 < per_obh < _MOST_SCORE:
        return None  # also keeps the product within the arithmetic
    return usd_per_hour(score * per_obh)


_MOST_SCORE: Final = 10**6


def _reliability(node: Node) -> float | None:
    """Return the mean of uptime and reputation, or whichever there is, 0..1."""
    known = [v / 100 for v in (node.uptime, node.reputation) if v is not None and 0 <= v <= 100]
    return sum(known) / len(known) if known else None


_STATES: Final = {
    "queued": InstanceState.BOOTING,
    "assigned": InstanceState.BOOTING,
    "running": InstanceState.RUNNING,
}
_ENDED: Final = frozenset({"completed", "failed", "cancelled"})


def has_ended(job: JobRow) -> bool:
    """Whether nothing of a job is left to pay for; a word that we do not know says no."""
    return _text(job.status) in _ENDED


def to_instance(job: JobRow) -> Instance:
    """Return a compute job as an instance."""
    return Instance(
        provider=SLUG,
        instance_id=job.job_id,
        label=job.client_ref if isinstance(job.client_ref, str) else None,
        state=_STATES.get(_text(job.status), InstanceState.UNKNOWN),
        status=harmless(_text(job.error) or _text(job.status)),
        endpoints=tuple(sorted(_endpoints(job.endpoints), key=lambda e: e.container_port)),
        machine_id=job.node_id if isinstance(job.node_id, str) else None,
    )


def _endpoints(entries: object) -> Iterator[Endpoint]:
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, Mapping) or not is_tcp(entry):
            continue
        port, host, outside = (entry.get(name) for name in ("container_port", "host", "port"))
        if _is_port(port) and _is_port(outside) and is_host(host):
            yield Endpoint(container_port=port, host=host, port=outside)


def _is_port(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65_536


def to_progress(job: JobRow) -> RenderProgress:
    """Return how far a render job is; what it does not say counts as nothing done."""
    outputs = job.outputs if isinstance(job.outputs, list) else []
    share = job.progress if isinstance(job.progress, int | float) else 0.0
    return RenderProgress(
        job_id=job.job_id,
        key=harmless(_text(job.client_ref)),
        status=harmless(_text(job.status), 40),
        frames_done=_count(job.frames_done),
        frames_total=_count(job.frames_total),
        progress=float(min(1.0, max(0.0, share))),  # bounded first: an int can be past any float
        obh_used=decimal_of(job.obh_used),
        cost_usd=decimal_of(job.cost_usd),
        node_id=job.node_id if isinstance(job.node_id, str) else None,
        outputs=tuple(harmless(url, 2048) for url in outputs if isinstance(url, str)),
        error=harmless(_text(job.error)),
    )


def frames_body(frames: Frames | int) -> object:
    """Return frames as they are sent.

    Raises:
        BadInput: none, or more than a million.
    """
    if isinstance(frames, int):
        if not 1 <= frames <= MAX_FRAMES:
            raise BadInput("frames", frames, f"1 to {MAX_FRAMES}")
        return frames
    if frames.step < 1 or not 0 <= frames.start <= frames.end <= MAX_FRAMES:
        text = f"{frames.start}-{frames.end}/{frames.step}"
        raise BadInput("frames", text, f"0 <= start <= end <= {MAX_FRAMES}, step of 1 or more")
    return {"start": frames.start, "end": frames.end, "step": frames.step}


def tier_of(tier: int) -> int:
    """Return the tier.

    Raises:
        BadInput: there is no such tier.
    """
    if tier not in TIERS:
        raise BadInput("tier", tier, "1, 2 or 3")
    return tier


def bound_of(max_obh: Decimal) -> Decimal:
    """Return a bound on OctaneBench-hours.

    Raises:
        BadInput: it is none.
    """
    if not max_obh.is_finite() or not 0 < max_obh <= MAX_OBH:
        raise BadInput("max_obh", str(max_obh), f"above 0 and at most {MAX_OBH}")
    return max_obh


def decimal_of(value: object) -> Decimal | None:
    """Return a number, which may come as text; None for anything else, and below zero."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(str(value))
    except (ArithmeticError, ValueError):  # no number; or one of more digits than Python prints
        return None
    return +number if number.is_finite() and 0 <= number < 10**12 else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
