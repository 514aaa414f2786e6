"""`gp4u logs` and `gp4u exec`: what goes on inside a rented instance.

Hides how a log that only shows its newest lines is followed, and that what comes from there is a
stranger's text: a terminal must not obey it. Neither command changes what is rented.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

from gp4u.cli.failures import Leave, explain
from gp4u.cli.renting import say_closed
from gp4u.cli.run import Counter
from gp4u.cli.screen import Screen
from gp4u.desk.wording import harmless, new_lines
from gp4u.errors import (
    BadInput,
    CircuitBreakerOpen,
    InstanceAbsent,
    MarketClosed,
    RateLimitExceeded,
    ServerUnavailable,
    Throttled,
    Unavailable,
)

MAX_TAIL: Final = 100_000
FOLLOW_PAUSE_S: Final = 2.0
MAX_STDIN: Final = 1024 * 1024
MAX_EXEC_S: Final = 3600


async def logs(
    at: Counter, screen: Screen, word: str, *, follow: bool, tail: int, container: str | None
) -> None:
    """Print what the workload of a rental printed, or a container beside it; with `follow` until
    it is gone.

    Raises:
        BadInput: there is no such rental or container, or it has no instance yet.
        ProviderError: the market does not tell.
        Leave: its market is closed to us.
    """
    if not 1 <= tail <= MAX_TAIL:
        raise BadInput("--tail", tail, f"must be from 1 to {MAX_TAIL}")
    # Followed by its key: a name may mean another rental once this one is gone.
    key = (await at.desk.find(word)).key
    shown: list[str] = []
    heard, trouble = False, ""
    while True:
        try:
            text = await at.desk.logs(key if heard else word, tail=tail, container=container)
        except InstanceAbsent:
            if heard:
                screen.note(f"{key} is gone", "dim")
                return
            raise
        except MarketClosed as error:
            raise say_closed(screen, key, error.provider, error.why) from error
        except (
            Unavailable,
            Throttled,
            RateLimitExceeded,
            CircuitBreakerOpen,
            ServerUnavailable,
        ) as error:
            if not (follow and heard):
                raise
            if not trouble:
                explain(screen, error, at.secrets)
            trouble = str(error)
        else:
            heard, trouble = True, ""
            lines = text.splitlines()
            fresh = new_lines(shown, lines)
            if fresh:
                screen.text("".join(f"{harmless(line)}\n" for line in fresh))
            shown = lines or shown
        if not follow:
            return
        await asyncio.sleep(FOLLOW_PAUSE_S)


async def execute(
    at: Counter,
    screen: Screen,
    word: str,
    command: Sequence[str],
    *,
    stdin: bytes,
    timeout_s: float,
    container: str | None,
) -> None:
    """Run a command inside the instance of a rental, print what it prints, leave with its code.

    Raises:
        BadInput: there is no such rental or container, it has no instance yet, or its market cannot
            do this.
        Leave: the command ended with something else than 0, or the market is closed to us.
        ProviderError: the market did not run it, or nobody knows how it ended.
    """
    if not 0 < timeout_s <= MAX_EXEC_S:
        raise BadInput("--timeout", timeout_s, f"must be above 0 and at most {MAX_EXEC_S} s")
    if len(stdin) > MAX_STDIN:
        raise BadInput("--stdin", f"{len(stdin)} bytes", f"must be at most {MAX_STDIN} bytes")
    key = (await at.desk.find(word)).key
    screen.busy("running it")
    try:
        done = await at.desk.execute(
            word, tuple(command), stdin=stdin, timeout_s=timeout_s, container=container
        )
    except MarketClosed as error:
        screen.rest()
        raise say_closed(screen, key, error.provider, error.why) from error
    screen.rest()
    _print(done.stdout, screen, to_stderr=False)
    _print(done.stderr, screen, to_stderr=True)
    if done.exit_code:
        raise Leave(done.exit_code)


def _print(output: bytes, screen: Screen, *, to_stderr: bool) -> None:
    """Pass on what a command printed: as it is to a program, harmless to a terminal."""
    stream = screen.err if to_stderr else screen.out
    if not output:
        return
    if not stream.is_terminal:
        raw = sys.stderr.buffer if to_stderr else sys.stdout.buffer
        raw.write(output)
        raw.flush()
        return
    lines = output.decode("utf-8", errors="replace").splitlines()
    stream.write("".join(f"{harmless(line)}\n" for line in lines))
