"""What people and programs see of a render job: a line, a row, its stable keys.

Rentals have `views.py`; a render job shares nothing with them but the forms of
output. All text in a job is foreign and is cleaned here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gp4u.cli.screen import Form, Screen
from gp4u.cli.tables import Cell, Column
from gp4u.cli.views import UNKNOWN, short_key
from gp4u.desk.shapes import money
from gp4u.providers.render.legacy_wire import RenderProgress
from gp4u.telemetry import clean

_STYLE: Final = {
    "rendering": "yellow",
    "completed": "green",
    "failed": "bold red",
    "cancelled": "dim",
}
_JOBS: Final = (
    Column(head="KEY", style="cyan", short=2, shorten=short_key, least=16),
    Column(head="JOB", drop=4),
    Column(head="STATE"),
    Column(head="FRAMES", right=True),
    Column(head="OBH", right=True, drop=3),
    Column(head="COST $", right=True),
)
_JOBS_WIDE: Final = (*_JOBS, Column(head="NODE", drop=1), Column(head="ERROR", drop=0))


def state_of(job: RenderProgress) -> str:
    """Return the market's word for how it is."""
    return clean(job.status, 40) or UNKNOWN


def name_of(job: RenderProgress) -> str:
    """Return its key, or its id where it was submitted without one."""
    return clean(job.key, 100) or job.job_id


def frames_of(job: RenderProgress) -> str:
    """Return `30/240`."""
    return f"{job.frames_done}/{job.frames_total}"


def work_of(job: RenderProgress) -> str:
    """Return how far a job is, as a line without an end."""
    # Cut and not rounded: 99.9 % is not done yet.
    parts = [f"{state_of(job)}: {frames_of(job)} frames, {int(job.progress * 100)} %"]
    parts += [f"{job.obh_used:.2f} OBh"] if job.obh_used is not None else []
    parts += [f"${money(job.cost_usd)}"] if job.cost_usd is not None else []
    return ", ".join(parts)


def job_json(job: RenderProgress) -> dict[str, object]:
    """Return a job with the stable keys of `gp4u render`; unknown is null."""
    return {
        "key": clean(job.key, 100) or None,
        "job_id": job.job_id or None,
        "state": clean(job.status, 40) or None,
        "frames_done": job.frames_done,
        "frames_total": job.frames_total,
        "progress": job.progress,
        "obh_used": None if job.obh_used is None else float(job.obh_used),
        "cost_usd": None if job.cost_usd is None else money(job.cost_usd),
        "node_id": clean(job.node_id, 64) if job.node_id else None,
        "outputs": [clean(url, 2048) for url in job.outputs],
        "error": clean(job.error) or None,
    }


def show_jobs(screen: Screen, jobs: Sequence[RenderProgress]) -> None:
    """Print jobs in the form that was asked for."""
    match screen.form:
        case Form.NAME:
            screen.names(name_of(job) for job in jobs)
        case Form.JSON | Form.YAML:
            screen.data([job_json(job) for job in jobs])
        case Form.TABLE:
            screen.table(_JOBS, [_row(job) for job in jobs])
        case Form.WIDE:
            screen.table(_JOBS_WIDE, [[*_row(job), *_rest(job)] for job in jobs])


def show_job(screen: Screen, job: RenderProgress) -> None:
    """Print one job, as `render start` does in the end."""
    if screen.form in (Form.JSON, Form.YAML):
        screen.data(job_json(job))
    else:
        show_jobs(screen, [job])


def _row(job: RenderProgress) -> list[str | Cell]:
    return [
        clean(job.key, 100) or Cell(UNKNOWN, "dim"),
        job.job_id or Cell(UNKNOWN, "dim"),
        Cell(state_of(job), _STYLE.get(job.status, "")),
        frames_of(job),
        Cell(UNKNOWN, "dim") if job.obh_used is None else f"{job.obh_used:.2f}",
        Cell(UNKNOWN, "dim") if job.cost_usd is None else money(job.cost_usd),
    ]


def _rest(job: RenderProgress) -> list[str | Cell]:
    nothing = Cell(UNKNOWN, "dim")
    return [
        clean(job.node_id, 64) if job.node_id else nothing,
        clean(job.error, 80) if job.error else nothing,
    ]
