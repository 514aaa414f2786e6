"""What people are told of a pod's machine: Events, and the text of a waiting container.

Hides how a decision becomes a sentence that still says everything `kubectl describe pod` should:
which machine, at what price, and why this one and not the next. Foreign text is cleaned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from msgspec import Struct

from gp4u.kubelet.pods.loss import Ending
from gp4u.kubelet.pods.memory import Why
from gp4u.model import Candidate, Decision, InstanceState
from gp4u.rentals.rental import Hopeless, Rental, RentalState
from gp4u.telemetry import clean

MAX_MESSAGE: Final = 1000
"""Characters of an Event; the API server takes 1024."""
RUNNERS_UP: Final = 3
_IMAGE_WORDS: Final = ("manifest", "pull", "image", "repository")


class News(Struct, frozen=True):
    """Something to tell about a pod: an Event's type, reason and message."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


def selected(candidate: Candidate, decision: Decision) -> str:
    """Say which machine was chosen, why, and who came next."""
    offer = candidate.offer
    parts = ", ".join(
        f"{name} {part:.2f}" for name, part in sorted(candidate.parts.items(), key=lambda p: -p[1])
    )
    fitting = len(decision.candidates)
    found = fitting + len(decision.rejections)
    others = [
        each
        for each in decision.candidates[: RUNNERS_UP + 1]
        if each.offer.id != candidate.offer.id
    ][:RUNNERS_UP]
    text = (
        f"{_offer(candidate)}: score {candidate.score:.2f} ({parts}); "
        f"{fitting} of {found} offers fit"
    )
    if offer.interruptible:
        text += "; it can be taken away by a higher bid"
    if others:
        text += "; next: " + "; ".join(f"{_offer(o)} score {o.score:.2f}" for o in others)
    return _cut(text)


def nothing_fits(decision: Decision) -> str:
    """Say why no offer fits, and what would have to give way."""
    from gp4u.selection.decide import explain  # numpy, loaded by now: it was decided

    return _cut(" ".join(clean(line, 400).strip() for line in explain(decision).splitlines()))


def waiting(rental: Rental) -> Why:
    """Say how far a machine is that does not run the workload yet."""
    if rental.instance_id is None:
        text = f"asked {rental.provider} for offer {rental.offer_id}, waiting for its answer"
        return Why("ContainerCreating", text)
    state = rental.seen.value if rental.seen is not None else "not listed yet"
    status = f": {clean(rental.seen_status, 200)}" if rental.seen_status else ""
    text = f"instance {rental.instance_id} on {rental.provider} is {state}{status}"
    return Why("ContainerCreating", text)


def progress(before: Rental | None, rental: Rental) -> Iterator[News]:
    """Yield what is worth an Event between two looks at a rental."""
    known = before if before is not None and before.key == rental.key else None
    was, now = (known.seen if known else None), rental.seen
    if now is was or not rental.is_live:
        return
    named = f"instance {rental.instance_id} on {rental.provider}"
    status = f" ({clean(rental.seen_status, 200)})" if rental.seen_status else ""
    if now is InstanceState.BOOTING and was is None:
        yield News("Normal", "Pulling", f"Booting {named}, pulling the image{status}")
    elif now is InstanceState.RUNNING and rental.state is not RentalState.RUNNING:
        yield News("Normal", "InstanceRunning", f"{named} is up{status}{_addresses(rental)}")
    elif now is InstanceState.OFFLINE:
        yield News("Warning", "InstanceOffline", f"{named} cannot be reached by its market{status}")
    elif was is InstanceState.OFFLINE and now is InstanceState.RUNNING:
        yield News("Normal", "InstanceBack", f"{named} can be reached again")


def started(containers: Sequence[str], rental: Rental) -> News:
    """Say that a run began."""
    names = ", ".join(containers)
    text = f"Started container {names} on instance {rental.instance_id} of {rental.provider}"
    return News("Normal", "Started", text + _addresses(rental))


def killing(container: str, why: str) -> News:
    """Say that a run is ended by its probes."""
    return News("Normal", "Killing", _cut(f"Container {container} will be restarted: {why}"))


def crash_loop(container: str, wait_s: float) -> Why:
    """Say when a run follows the one that ended."""
    text = f"back-off {wait_s:.0f}s restarting failed container {container}"
    return Why("CrashLoopBackOff", text)


def unserved(rental: Rental, ending: Ending) -> Why:
    """Say why nothing runs after a machine that came to nothing."""
    if failure_reason(rental) == "Failed":
        text = f'Back-off pulling image "{rental.workload.image}": {ending.message}'
        return Why("ImagePullBackOff", _cut(text))
    return Why("ContainerCreating", _cut(ending.message))


def failure_reason(rental: Rental) -> str:
    """Return the reason of the Event about a machine that came to nothing."""
    status = rental.seen_status.lower()
    is_image = any(word in status for word in _IMAGE_WORDS)
    return "Failed" if rental.reason == Hopeless.CANNOT_START and is_image else "InstanceFailed"


def _offer(candidate: Candidate) -> str:
    offer = candidate.offer
    gpus = f"{offer.gpu_count}x {offer.gpu_model}" if offer.gpu_count else "no GPU"
    about = "~" if offer.estimated else ""
    words = [
        f"{clean(gpus, 60)} on {offer.provider}",
        f"{about}${offer.price_usd_per_hour:.4f}/h",
        offer.region.code if offer.region else "region unknown",
    ]
    if offer.reliability is not None:
        words.append(f"{offer.reliability:.1%} reliable")
    return f"offer {clean(offer.offer_id, 60)} ({', '.join(words)})"


def _addresses(rental: Rental) -> str:
    if not rental.endpoints:
        return ""
    places = (
        f"{end.container_port} at {end.url or f'{end.host}:{end.port}'}" for end in rental.endpoints
    )
    return clean("; port " + ", ".join(places), 400)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"
