"""`gp4u render start`, `ls` and `cancel`: a scene from its key to its last frame, or to its end.

A render job ends by itself, so it is no rental and stands in no ledger: the market's own list, with
our key in it, is where it is found again. So the key is said before anything is sent, a submission
whose reply was lost is looked for and never repeated, and a job counts as cancelled only once the
market shows that it has ended. The API is a proposal (`providers/render/legacy.py`); where it is
not open, that is said with what would open it. What flags mean is left to `scenes.py`, how jobs
look to `jobs.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from random import Random
from typing import Final

from gp4u.app import App
from gp4u.cli.failures import Code, Leave, explain
from gp4u.cli.follow import duration
from gp4u.cli.jobs import frames_of, name_of, show_job, show_jobs, state_of, work_of
from gp4u.cli.scenes import Scene
from gp4u.cli.screen import Screen
from gp4u.errors import (
    BadInput,
    CircuitBreakerOpen,
    InstanceAbsent,
    Malformed,
    OutcomeUnknown,
    ProviderError,
    RateLimitExceeded,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import RentalKey
from gp4u.providers.render.legacy import RenderLegacy
from gp4u.providers.render.legacy_wire import RenderProgress
from gp4u.telemetry import clean

LOOK_S: Final = 2.0
"""Between two looks at a job: well within a hundred calls a minute."""
MAX_PAUSE_S: Final = 30.0
_SLUG: Final = "render"
_NAMING_DASHES: Final = 2
"""What stands before the second dash is the same in every key of an installation."""
_PASSING: Final = (Unavailable, Throttled, RateLimitExceeded, CircuitBreakerOpen, Malformed)
"""What may have gone by the next look."""


async def start(opened: App, screen: Screen, scene: Scene, random: Random, *, wait: bool) -> None:
    """Submit a scene once, and print its job; with `wait` once the job has ended.

    Raises:
        ProviderError: it was not submitted.
        Leave: the API is not open; nobody knows whether there is a job; or the job has ended
            without its last frame.
    """
    market = _open_market(opened, screen)
    key = opened.ledger.mint(random)
    # The key comes before the call, and no ledger has it: whoever reads it can find the job.
    screen.note(f"render job {key}: {scene.frame_count} frames, {market.spec.title}", "bold")
    what = "may have been made; if so, it goes on"
    try:
        job = await _submitted(opened, screen, market, scene, key)
        what = "goes on"
        if wait:
            job = await _followed(opened, screen, market, job)
    except asyncio.CancelledError:
        screen.rest()
        screen.fail(f"interrupted; render job {key} {what} and costs money")
        screen.steps(_steps(key))
        raise
    finally:
        screen.rest()
    show_job(screen, job)
    if not wait:
        screen.hint("`gp4u render ls` shows how far it is")
    elif job.status != "completed":
        why = f": {clean(job.error)}" if job.error else ""
        screen.fail(f"render job {key} ended as {state_of(job)} after {frames_of(job)} frames{why}")
        raise Leave(Code.FAILED)


async def ls(opened: App, screen: Screen) -> None:
    """Print every render job of the account, oldest first.

    Raises:
        ProviderError: the market does not tell, or not of all.
        Leave: the API is not open.
    """
    market = _open_market(opened, screen)
    screen.busy("asking render")
    found = await market.find_renders()
    screen.rest()
    show_jobs(screen, found)
    if not found and not screen.is_data:
        screen.note("there are no render jobs")


async def cancel(opened: App, screen: Screen, word: str) -> None:
    """Stop the render jobs that a job id or a key means, and print them once they have ended.

    Raises:
        BadInput: it means none, or several.
        ProviderError: the market does not let us.
        Leave: the API is not open.
    """
    market = _open_market(opened, screen)
    screen.busy("looking for it")
    found = await _meant(opened, market, word)
    done: list[RenderProgress] = []
    for job in found:
        name = name_of(job)
        try:
            done.append(await _cancelled(opened, screen, market, job))
        except asyncio.CancelledError:
            screen.rest()
            screen.fail(f"interrupted; nothing proves yet that render job {name} has ended")
            screen.steps(_steps(job.job_id))  # a key is foreign text, and this gets copied
            raise
    screen.rest()
    show_jobs(screen, done)


def named(jobs: Sequence[RenderProgress], word: str) -> Sequence[RenderProgress]:
    """Return the jobs that an id, a key or the start of one key means; none if it means nothing.

    Raises:
        BadInput: it begins more than one key, or is how all of them begin.
    """
    exact = [job for job in jobs if job.job_id == word] or [job for job in jobs if job.key == word]
    if exact or not word:
        return exact if word else ()
    begun = [job for job in jobs if job.key.startswith(word)]
    if begun and (word.count("-") < _NAMING_DASHES or word.endswith("-")):
        raise BadInput("JOB|KEY", word, "is how many keys begin; give more of it")
    keys = sorted({clean(job.key, 100) for job in begun})
    if len(keys) > 1:
        raise BadInput("JOB|KEY", word, f"is not one job but {len(keys)}: {', '.join(keys[:5])}")
    return begun


def _open_market(opened: App, screen: Screen) -> RenderLegacy:
    """Return the market that renders scenes.

    Raises:
        Leave: it is not open, or speaks the dialect that has no scenes; it was said what to set.
    """
    market = opened.providers.get(_SLUG)
    if isinstance(market, RenderLegacy):
        return market
    why = "is open in flavour dispersed, which runs containers and no scenes"
    if market is None:
        why = f"is not open: {clean(opened.disabled.get(_SLUG, 'no such market here'), 300)}"
    screen.fail(f"scenes need Render in flavour legacy, a proposed API; Render {why}")
    screen.steps(
        (
            ("RENDER_API_FLAVOR=legacy", "chooses it; no service is known to speak it"),
            ("RENDER_BASE_URL", "is the address of what does"),
            ("RENDER_API_KEY", "is a key for it"),
            ("gp4u sim serve --provider render --flavor legacy", "serves a simulated one"),
        )
    )
    raise Leave(Code.NOT_ALLOWED)


def _steps(name: str) -> Sequence[tuple[str, str]]:
    return (
        ("gp4u render ls", "shows how far it is"),
        (f"gp4u render cancel {name}", "ends it"),
    )


async def _submitted(
    opened: App, screen: Screen, market: RenderLegacy, scene: Scene, key: RentalKey
) -> RenderProgress:
    """Return the job that one submission made, as far as it can be seen yet."""
    screen.busy("submitting the scene")
    try:
        job_id = await market.submit_render(
            scene.address,
            scene.engine,
            scene.frames,
            scene.tier,
            key,
            priority=scene.priority,
            max_obh=scene.max_obh,
        )
    except OutcomeUnknown as error:
        screen.warn(f"the reply was lost ({clean(error.detail, 200)}); looking for the key")
        return await _sought(opened, screen, market, _unseen("", key, scene.frame_count))
    except Refused as error:
        if error.instance_id is not None:
            screen.warn("it was refused, and a job was made all the same; cancelling that")
            made = _unseen(error.instance_id, key, scene.frame_count)
            await _cancelled(opened, screen, market, made)
        raise
    screen.note(f"job {job_id} submitted")
    try:
        return await market.render_job(job_id)
    except ProviderError as error:  # it is made, and that is what counts
        explain(screen, error, opened.settings.secrets())
        return _unseen(job_id, key, scene.frame_count)


def _unseen(job_id: str, key: str, frames: int) -> RenderProgress:
    """Return a job that was made and that nobody has looked at."""
    return RenderProgress(
        job_id=job_id,
        key=key,
        status="",
        frames_done=0,
        frames_total=frames,
        progress=0.0,
        obh_used=None,
        cost_usd=None,
        node_id=None,
        outputs=(),
        error="",
    )


async def _sought(
    opened: App, screen: Screen, market: RenderLegacy, unseen: RenderProgress
) -> RenderProgress:
    """Return the job of a submission whose reply was lost.

    That nothing was made is proven by a whole list alone, and only once a late effect would have
    shown in it.

    Raises:
        Leave: nothing was made, or nobody knows.
    """
    key = RentalKey(unseen.key)
    screen.busy("looking for the key in the market's list")
    settle_s, late_s = _waits_s(opened, market)
    clock = asyncio.get_running_loop().time
    provable_at = clock() + settle_s + late_s
    while True:
        began, trouble = clock(), ""
        try:
            found = await market.find_renders(key)
        except ProviderError as error:
            found, trouble = (), clean(str(error), 300)
            if not isinstance(error, _PASSING):
                break
        if found:
            screen.note(f"found: job {found[0].job_id}")
            if len(found) > 1:
                screen.warn(f"{len(found)} jobs were made of it; `gp4u render cancel JOB` ends one")
            return found[0]
        if began > provable_at:
            break
        await asyncio.sleep(LOOK_S)
    screen.rest()
    if trouble:
        show_job(screen, unseen)
        screen.fail(f"nobody knows whether render job {key} was made: {trouble}")
        screen.steps(_steps(key))
        raise Leave(Code.UNKNOWN)
    screen.fail(f"render job {key} was not made: the market's whole list does not hold it")
    raise Leave(Code.FAILED)


async def _followed(
    opened: App, screen: Screen, market: RenderLegacy, job: RenderProgress
) -> RenderProgress:
    """Return the job once it has ended; until then say how far it is, whenever that has changed."""
    began_at, trouble = opened.clock.now(), ""
    _tell(opened, screen, job, began_at)
    while not job.has_ended:
        await asyncio.sleep(LOOK_S)
        try:
            newer = await market.render_job(job.job_id)
        except _PASSING as error:
            if not trouble:
                screen.warn(f"{clean(str(error), 300)}; it goes on, and is looked at again")
            trouble = str(error)
            continue
        trouble = ""
        if (newer.status, newer.frames_done) != (job.status, job.frames_done):
            _tell(opened, screen, newer, began_at)
        job = newer
    return job


def _tell(opened: App, screen: Screen, job: RenderProgress, began_at: datetime) -> None:
    """Say how far a job is: on a terminal in one line that moves, else in a line of its own."""

    def elapsed_s() -> float:
        return (opened.clock.now() - began_at).total_seconds()

    if screen.err.moves and not job.has_ended:
        screen.busy(lambda: f"{duration(elapsed_s())}  {work_of(job)}")
    else:
        style = "green" if job.status == "completed" else ""
        screen.note(f"[{elapsed_s():4.0f} s] {work_of(job)}", style)


async def _meant(opened: App, market: RenderLegacy, word: str) -> Sequence[RenderProgress]:
    """Return the jobs that a word means; one that was just submitted may take a while to be listed.

    Raises:
        BadInput: it means none, or several.
    """
    ours = opened.ledger.key_in(word)
    key = ours if ours == word else None
    settle_s, late_s = _waits_s(opened, market)
    clock = asyncio.get_running_loop().time
    until = clock() + (settle_s if key else 0.0)
    while True:
        began = clock()
        if found := named(await market.find_renders(key), word):
            return found
        if began >= until:
            break
        await asyncio.sleep(LOOK_S)
    late = f"; one that was just submitted may show within {settle_s + late_s:.0f} s" if key else ""
    bound = f"no render job has this id or key; `gp4u render ls` lists all{late}"
    raise BadInput("JOB|KEY", clean(word, 80), bound)


async def _cancelled(
    opened: App, screen: Screen, market: RenderLegacy, job: RenderProgress
) -> RenderProgress:
    """Return the job once the market shows that it has ended; until then it is asked again."""
    name = name_of(job)
    if job.has_ended:
        screen.note(f"render job {name} has ended before: {state_of(job)}")
        return job
    screen.busy(f"cancelling {name}")
    pause_s, trouble = LOOK_S, ""
    while True:
        try:
            with suppress(InstanceAbsent):  # it may have ended by itself: the look below tells
                await market.cancel_render(job.job_id)
            job = await market.render_job(job.job_id)
        except _PASSING as error:
            if not trouble:
                explain(screen, error, opened.settings.secrets())
            trouble = str(error)
        else:
            trouble = ""
            if job.has_ended:
                screen.note(f"render job {name} is {state_of(job)}", "green")
                return job
            screen.warn(f"not cancelled yet: {work_of(job)}")
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)


def _waits_s(opened: App, market: RenderLegacy) -> tuple[float, float]:
    """Return how long a list may be blind to a change, and how late a lost call may take effect."""
    own, spec = opened.settings.provider(_SLUG), market.spec
    settle_s = spec.settle_s if own.settle_s is None else own.settle_s
    late_s = spec.late_window_s if own.late_window_s is None else own.late_window_s
    return settle_s, late_s
