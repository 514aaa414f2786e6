"""How a decision and the steps of a rent become shapes.

Hides that a decision is computed while it is told: sentences, relaxations and the markets left out
are all worked out here, once, and a shape needs no offers any more. Numpy is loaded when the first
decision is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, assert_never

import msgspec
from msgspec import UNSET, UnsetType, structs

from gp4u.desk.shapes import (
    CandidateShape,
    DecidedStep,
    DecisionShape,
    DroppedStep,
    IntendedStep,
    PassedOverStep,
    RejectionShape,
    RelaxationShape,
    RentedStep,
    SettledStep,
    StepShape,
    UnsettledStep,
    WaitingStep,
    WatchedStep,
    offer_shape,
    rejection_shape,
    rental_shape,
    source_shape,
)
from gp4u.desk.wording import clean_line, log_prefix, selection_lines
from gp4u.providers.turns import in_turns
from gp4u.rentals.broker import (
    Decided,
    Dropped,
    Intended,
    PassedOver,
    Progress,
    Rented,
    Settled,
    Unsettled,
    Waiting,
    Watched,
)
from gp4u.telemetry import clean

if TYPE_CHECKING:
    from gp4u.model import Candidate, Decision

STORED_TOP: Final = 20
"""Candidates kept with the decision behind a rental."""
MAX_REJECTIONS: Final = 10_000
_LOGGED: Final = 3
"""Candidates that the selection log scores."""
_encoder: Final = msgspec.json.Encoder()


def decision_shape(
    decision: Decision, *, top: int | None, rejections: bool, denied: Sequence[str] = ()
) -> DecisionShape:
    """Return a decision as it is told; `denied` names markets that refuse our key."""
    from gp4u.selection.decide import explain, left_out, relaxations  # numpy

    lines = [clean_line(line, 1000) for line in explain(decision).splitlines()]
    return DecisionShape(
        id=None,
        decided_at=decision.decided_at,
        candidates=len(decision.candidates),
        rejected=len(decision.rejections),
        ranked=[_candidate_shape(each) for each in decision.candidates[:top]],
        relaxations=[
            RelaxationShape(
                filter=one.filter,
                bound=clean(one.bound, 200),
                excluded_alone=one.excluded_alone,
                nearest=None if one.nearest is None else clean(one.nearest, 200),
            )
            for one in relaxations(decision)
        ],
        sources=[source_shape(note) for note in decision.sources],
        log=selection_lines(decision, top=_LOGGED),
        explanation="\n".join(lines),
        denied=list(denied),
        broken_by_market={
            out.provider: clean(", ".join(out.broken), 1000) for out in left_out(decision)
        },
        rejections=[rejection_shape(each) for each in decision.rejections] if rejections else UNSET,
    )


async def told_decision(
    decision: Decision, *, top: int | None, rejections: bool, denied: Sequence[str] = ()
) -> DecisionShape:
    """Return the same as `decision_shape`, with turns for everybody else in between.

    Of rejections the first `MAX_REJECTIONS` are told.
    """
    found = decision.candidates
    count = len(found) if top is None else min(top, len(found))
    if count:
        found[count - 1]  # puts that many in order at once, and not again and again
    ranked = await in_turns(_candidate_shape(found[place]) for place in range(count))
    refused: list[RejectionShape] | UnsetType = UNSET
    if rejections:
        most = min(len(decision.rejections), MAX_REJECTIONS)
        refused = await in_turns(
            rejection_shape(decision.rejections[place]) for place in range(most)
        )
    brief = decision_shape(decision, top=0, rejections=False, denied=denied)
    return structs.replace(brief, ranked=ranked, rejections=refused)


def stored_decision(decision: Decision) -> bytes:
    """Return the decision behind a rental as it is kept, so that it can be told without offers."""
    return _encoder.encode(decision_shape(decision, top=STORED_TOP, rejections=False))


class Teller:
    """Turns what the broker tells into steps; the decision is kept, as its log names the choice."""

    def __init__(self, denied: Sequence[str] = ()) -> None:
        self._denied = denied
        self._decision: Decision | None = None

    def step(self, progress: Progress, at: datetime) -> StepShape:
        """Return one step as it is told; costs are up to `at`."""
        match progress:
            case Decided(decision):
                self._decision = decision
                shape = decision_shape(decision, top=_LOGGED, rejections=False, denied=self._denied)
                return DecidedStep(decision=shape)
            case Waiting(seconds):
                return WaitingStep(seconds=seconds)
            case PassedOver(provider, reason):
                return PassedOverStep(provider=provider, reason=clean(str(reason), 1000))
            case Intended(rental, candidate):
                return IntendedStep(rental=rental_shape(rental, at), choice=self._choice(candidate))
            case Rented(rental):
                return RentedStep(rental=rental_shape(rental, at))
            case Unsettled(rental, detail):
                return UnsettledStep(rental=rental_shape(rental, at), detail=clean(detail, 1000))
            case Watched(rental, probe, problem):
                return WatchedStep(
                    rental=rental_shape(rental, at),
                    probe=clean(probe, 400),
                    problem=clean(problem, 400),
                )
            case Dropped(rental, reason):
                return DroppedStep(rental=rental_shape(rental, at), reason=clean(reason, 400))
            case Settled(rental):
                return SettledStep(rental=rental_shape(rental, at))
            case _:
                assert_never(progress)

    def _choice(self, candidate: Candidate) -> str:
        """Return the last line of the selection log, of the candidate that is really launched."""
        if self._decision is None:
            return ""
        from gp4u.selection.decide import selection_log  # numpy, loaded by now

        chosen = msgspec.structs.replace(self._decision, candidates=(candidate,))
        return clean_line(selection_log(chosen, prefix=log_prefix(self._decision), top=0)[-1])


def _candidate_shape(candidate: Candidate) -> CandidateShape:
    return CandidateShape(
        offer=offer_shape(candidate.offer), score=candidate.score, parts=dict(candidate.parts)
    )
