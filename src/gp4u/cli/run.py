"""From a command's coroutine to its exit code: settings, signals, failures, broken pipes.

Hides the event loop, and which desk a command stands at: this process's own, or a server's where
`GP4U_API_URL` is set. Ctrl-C and SIGTERM cancel the coroutine, which may still say something; then
the process ends with 130 or 143. Whatever fails is explained by `failures.py`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import typer
from msgspec import Struct

from gp4u.cli.failures import Code, Leave, code_of, explain
from gp4u.cli.screen import Screen
from gp4u.errors import BadInput, Gp4uError

if TYPE_CHECKING:
    from datetime import datetime

    from gp4u.app import App
    from gp4u.clock import Clock
    from gp4u.desk.desk import Desk
    from gp4u.rentals.ledger import Ledger
    from gp4u.settings import Settings

T = TypeVar("T")

_WORDS: Final = {"key": "KEY"}
"""What the desk calls a value, and what it is called in front of it; flags are `parse.py`'s."""


class Counter(Struct, frozen=True, kw_only=True):
    """Where a command stands."""

    desk: Desk
    now: Callable[[], datetime]
    secrets: Sequence[str]
    """What must not be printed, wherever it comes from."""
    server: str = ""
    """Address of the server that does the work, and goes on with it when the command ends."""


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


def run_with_desk(
    settings: Settings, work: Callable[[Counter], Awaitable[None]], screen: Screen
) -> None:
    """Run a command on the desk, to its end, and leave with its code."""

    async def job() -> None:
        async with open_counter(settings) as counter:
            try:
                await work(counter)
            except BadInput as error:
                if error.field not in _WORDS:
                    raise
                raise BadInput(_WORDS[error.field], error.value, error.bound) from error

    logging.getLogger().addHandler(_OnFirstRecord(settings))
    run(job(), screen, settings.secrets())


@asynccontextmanager
async def open_counter(settings: Settings) -> AsyncIterator[Counter]:
    """Open the server's desk if there is a server, else everything."""
    from gp4u.clock import SystemClock

    secrets = settings.secrets()
    if settings.api.url is not None:
        from gp4u.cli.remote import open_remote_desk  # HTTP, and little else

        token = settings.api.token
        async with open_remote_desk(
            settings.api.url, token.get_secret_value() if token else None, SystemRandom()
        ) as remote:
            yield Counter(
                desk=remote, now=SystemClock().now, secrets=secrets, server=settings.api.url
            )
        return
    from gp4u.app import open_app  # everything; the quick commands get by with less

    async with open_app(settings) as opened:
        gc.freeze()  # code stays: to look through it for garbage takes 30 ms each time
        yield Counter(desk=opened.desk, now=opened.clock.now, secrets=secrets)


def run_with_app(
    settings: Settings, work: Callable[[App], Awaitable[None]], screen: Screen
) -> None:
    """Run a command on the open parts themselves, to its end, and leave with its code."""
    logging.getLogger().addHandler(_OnFirstRecord(settings))

    async def job() -> None:
        from gp4u.app import open_app  # everything; the quick commands get by with less

        async with open_app(settings) as opened:
            gc.freeze()  # as above
            await work(opened)

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


def confirmed(screen: Screen, question: str, yes: bool) -> None:
    """Ask, unless `--yes` was given.

    Raises:
        Leave: the answer was no, or nobody is there to ask.
    """
    if yes:
        return
    screen.rest()
    if not sys.stdin.isatty():
        screen.fail(f"{question} Nobody is at the terminal to say so: add --yes")
        raise Leave(Code.USAGE)
    with signals_heard():
        agreed = typer.confirm(question, err=True)
    if not agreed:
        raise Leave(Code.FAILED)


@contextmanager
def signals_heard() -> Iterator[None]:
    """Leave at once on Ctrl-C and SIGTERM while the loop waits for somebody who types.

    Both are told to the loop, which hears nothing before the wait is over.

    Raises:
        Leave: one of them came.
    """

    def stop(number: int, _frame: object) -> None:
        raise Leave(Code.TERMINATED if number == signal.SIGTERM else Code.INTERRUPTED)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
