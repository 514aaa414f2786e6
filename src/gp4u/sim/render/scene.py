"""A scene on a render node of the PROPOSED API: its frames, and how far they are at any moment.

Hides the arithmetic of OctaneBench: a node of score S does S OctaneBench-hours (OBh) an hour, so a
frame of b OBh takes b / S hours. Nothing here changes: progress is read off the clock.

Source: `docs/reference/render.md`, the proposal; checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import msgspec

from gp4u.sim.render.gate import refusal

ASSIGN_S, BEGIN_S = 2.0, 5.0
"""After the submission: a node is assigned; the first frame begins."""
FRAMES_MAX = 1_000_000
_KEYS = frozenset(
    (
        "kind",
        "node_id",
        "tier",
        "scene_file",
        "engine",
        "frames",
        "priority",
        "max_obh",
        "client_ref",
    )
)


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """A render job's work, and when it is done."""

    tier: int
    engine: str
    frames_total: int
    obh_per_frame: Decimal
    max_obh: Decimal | None
    score: int = 0
    submitted_at: float = 0.0
    stopped_at: float | None = None

    def on(self, score: int, at: float) -> Scene:
        """Return the scene as submitted at a time to a node of a score."""
        return msgspec.structs.replace(self, score=score, submitted_at=at)

    def stopped(self, at: float) -> Scene:
        """Return the scene as it stands at a time, for good."""
        return msgspec.structs.replace(self, stopped_at=min(at, self.ends_at))

    @property
    def begins_at(self) -> float:
        return self.submitted_at + BEGIN_S

    @property
    def is_capped(self) -> bool:
        """Whether its bound on OBh ends it before its last frame."""
        return self.max_obh is not None and self.max_obh < self._obh_in_all

    @property
    def ends_at(self) -> float:
        obh = self.max_obh if self.is_capped and self.max_obh is not None else self._obh_in_all
        return self.begins_at + float(obh * 3600 / self.score)

    def status(self, now: float) -> str:
        if now < self.submitted_at + ASSIGN_S:
            return "queued"
        return "assigned" if now < self.begins_at else "rendering"

    def obh_used(self, now: float) -> Decimal:
        end = self.ends_at if self.stopped_at is None else self.stopped_at
        worked_s = max(0.0, min(now, end) - self.begins_at)
        return self.score * Decimal(str(worked_s)) / 3600

    def frames_done(self, now: float) -> int:
        if not self.is_capped and self._reached(now) >= self.ends_at:
            return self.frames_total  # without the last digit's error
        return min(self.frames_total, int(self.obh_used(now) / self.obh_per_frame))

    def progress(self, now: float) -> float:
        if self.frames_done(now) == self.frames_total:
            return 1.0
        return float(self.obh_used(now) / self._obh_in_all)

    def outputs(self, now: float, job_id: str) -> list[str]:
        """Return where finished frames would be; nothing is there."""
        first = range(min(self.frames_done(now), 100))
        return [f"https://outputs.invalid/{job_id}/{number:06d}.exr" for number in first]

    def _reached(self, now: float) -> float:
        return now if self.stopped_at is None else self.stopped_at

    @property
    def _obh_in_all(self) -> Decimal:
        return self.obh_per_frame * self.frames_total


def scene_of(body: Mapping[str, object], obh_per_frame: Decimal) -> Scene:
    """Return what a render body asks for.

    Raises:
        CallRefusedError: 400, with the reason.
    """
    others = sorted(body.keys() - _KEYS)
    if others:
        raise refusal(400, "validation_error", f"unknown field {others[0]}")
    tier, engine, scene = body.get("tier"), body.get("engine"), body.get("scene_file")
    if tier not in (1, 2, 3) or isinstance(tier, bool) or not isinstance(tier, int):
        raise refusal(400, "validation_error", "tier must be 1, 2 or 3")
    if engine not in ("octane", "redshift", "cycles") or not isinstance(engine, str):
        raise refusal(400, "validation_error", "engine must be octane, redshift or cycles")
    if not isinstance(scene, str) or not scene:
        raise refusal(400, "validation_error", "scene_file must be text")
    most = body.get("max_obh")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int | float)):
        raise refusal(400, "validation_error", "max_obh must be a number")
    if most is not None and most <= 0:
        raise refusal(400, "validation_error", "max_obh must be above 0")
    return Scene(
        tier=tier,
        engine=engine,
        frames_total=_frames(body.get("frames")),
        obh_per_frame=obh_per_frame,
        max_obh=None if most is None else Decimal(str(most)),
    )


def _frames(frames: object) -> int:
    """Return how many: a number, or a range whose end is one of them."""
    if isinstance(frames, int) and not isinstance(frames, bool) and 1 <= frames <= FRAMES_MAX:
        return frames
    if isinstance(frames, dict) and frames.keys() <= {"start", "end", "step"}:
        said = (frames.get("start"), frames.get("end"), frames.get("step", 1))
        start, end, step = (_whole(number) for number in said)
        if 0 <= start <= end <= FRAMES_MAX and step >= 1:
            return len(range(start, end + 1, step))
    raise refusal(400, "validation_error", "frames must be a number, or start, end and step")


def _whole(value: object) -> int:
    """Return a whole number as it is, and anything else as one that no bound admits."""
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
