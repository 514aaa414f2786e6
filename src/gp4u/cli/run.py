"""From a command's coroutine to its exit code: settings, signals, failures, broken pipes.

Hides the event loop. Ctrl-C and SIGTERM cancel the coroutine, which may still say something; then
the process ends with 130 or 143. Whatever fails is explained by `failures.py`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gp4u.cli.failures import Code, Leave, code_of, explain, explain_nothing
from gp4u.cli.screen import Form, Screen
from gp4u.errors import Gp4uError, NothingFits

if TYPE_CHECKING:
    from gp4u.app import App
    from gp4u.clock import Clock
    from gp4u.model import Decision
    from gp4u.rentals.ledger import Ledger
    from gp4u.settings import Settings

T = TypeVar("T")


def read_settings(screen: Screen) -> Settings:
    """Return the settings in force; what looks like one of ours and is not gets a warning.

    Raises:
        SettingsError: some variables are bad.
    """
    from gp4u.providers.plugins import known_providers
    from gp4u.settings import load_settings  # pydantic takes a tenth of a second

    settings = load_settings(os.environ, Path.cwd(), providers=known_providers())
    for warning in settings.unknown:
        screen.warn(warning)
    return settings


def run_with_app(
    settings: Settings, work: Callable[[App], Awaitable[None]], screen: Screen
) -> None:
    """Run a command on the open app, to its end, and leave with its code."""
    logging.getLogger().addHandler(_OnFirstRecord(settings))

    async def job() -> None:
        from gp4u.app import open_app  # everything; the quick commands get by with less

        async with open_app(settings) as opened:
            gc.freeze()  # code stays: to look through it for garbage takes 30 ms each time
            try:
                await work(opened)
            except NothingFits as error:
                decision = await _with_reasons(opened, error.decision)
                screen.rest()
                denied = [slug for slug, g in opened.guards.items() if g.health().denied]
                if screen.form in (Form.JSON, Form.YAML) and not screen.told:
                    from gp4u.selection.decide import to_json  # numpy is loaded by now

                    screen.data(to_json(decision, top=0, rejections=False))
                raise Leave(explain_nothing(screen, decision, denied)) from error

    run(job(), screen, settings.secrets())


def run_with_ledger(
    settings: Settings, work: Callable[[Ledger, Clock], Awaitable[None]], screen: Screen
) -> None:
    """Run a command that asks no provider: the ledger is all that is opened."""

    async def job() -> None:
        from gp4u.clock import SystemClock
        from gp4u.rentals.ledger import open_ledger  # SQLAlchemy, only where it is asked

        secret = settings.installation_secret
        given = secret.get_secret_value().encode() if secret else None
        async with open_ledger(settings.database_url, installation_secret=given) as ledger:
            await work(ledger, SystemClock())

    run(job(), screen, settings.secrets())


async def _with_reasons(opened: App, decision: Decision) -> Decision:
    """Return the same answer over more offers, where the search itself kept all of them out.

    A market is only asked for the wanted GPU, so an empty reply gives no reasons.
    """
    if decision.rejections or any(note.error for note in decision.sources):
        return decision
    from msgspec.structs import replace

    from gp4u.providers.contract import Query
    from gp4u.selection.decide import decide

    wider = replace(decision.demand.requirements, gpu_models=(), verified_only=False)
    snapshot = await opened.book.snapshot(Query(requirements=wider))
    if not snapshot.offers:
        return decision
    return decide(snapshot, decision.demand, at=opened.clock.now())


def log_now(settings: Settings) -> None:
    """Set up logging: one stream, one shape, secrets hidden."""
    from gp4u.telemetry import configure

    configure(
        level=settings.log_level,
        fmt=settings.log_format,
        secrets=settings.secrets(),
        stream=sys.stderr,
    )


class _OnFirstRecord(logging.Handler):
    """Sets up logging when there is something to log: a quick command seldom has."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        log_now(self._settings)
        logging.getLogger(record.name).handle(record)


def run(job: Coroutine[Any, Any, None], screen: Screen, secrets: Sequence[str] = ()) -> None:
    """Run a command to its end, and leave with its code."""
    import asyncio  # 20 ms that a help page can spare

    terminated = False

    async def main() -> None:
        nonlocal terminated
        task = cast("asyncio.Task[None]", asyncio.current_task())

        def stop() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        try:
            await job
        finally:
            screen.rest()

    def attempt() -> None:
        try:
            asyncio.run(main())
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise Leave(Code.TERMINATED if terminated else Code.INTERRUPTED) from None

    guarded(attempt, screen, secrets)


def guarded(attempt: Callable[[], T], screen: Screen, secrets: Sequence[str] = ()) -> T:
    """Return what `attempt` returns; if it fails as programs do, explain it and leave."""
    try:
        return attempt()
    except Leave as leave:
        code = leave.code
    except BrokenPipeError:
        # The reader of our output has gone. What Python flushes at its end must not fail again.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Code.BROKEN_PIPE
    except (Gp4uError, BaseExceptionGroup) as error:
        failure = _only(error)
        if failure is None:
            raise
        explain(screen, failure, secrets)
        code = code_of(failure)
    sys.exit(code)


def _only(error: BaseException) -> Gp4uError | None:
    """Return the one failure of ours in a group, or None where there is something else."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, Gp4uError) else None
