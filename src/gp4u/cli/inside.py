"""`gp4u logs` and `gp4u exec`: what goes on inside a rented instance.

Hides which market can do it, how a log that only shows its newest lines is followed, and that what
comes from there is a stranger's text: a terminal must not obey it. Neither command changes what is
rented.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from typing import Final

from gp4u.app import App
from gp4u.cli.failures import Leave, explain
from gp4u.cli.follow import clean_line
from gp4u.cli.markets import find_rental, provider_of
from gp4u.cli.screen import Screen
from gp4u.errors import BadInput, InstanceAbsent, RateLimitExceeded, Throttled, Unavailable
from gp4u.providers.contract import Ability, Provider
from gp4u.rentals.rental import Rental

MAX_TAIL: Final = 100_000
FOLLOW_PAUSE_S: Final = 2.0
MAX_LINE: Final = 100_000
MAX_STDIN: Final = 1024 * 1024
MAX_EXEC_S: Final = 3600
_ESCAPES: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")
"""Colours and cursor moves, which a log may hold and a terminal would obey."""


async def logs(opened: App, screen: Screen, word: str, *, follow: bool, tail: int) -> None:
    """Print what the workload of a rental printed; with `follow` until it is gone.

    Raises:
        BadInput: there is no such rental, or it has no instance yet.
        ProviderError: the market does not tell.
    """
    if not 1 <= tail <= MAX_TAIL:
        raise BadInput("--tail", tail, f"must be from 1 to {MAX_TAIL}")
    rental, instance_id, provider = await _inside(opened, screen, word)
    _need(opened, provider, Ability.LOGS, word, "tells no logs")
    shown: list[str] = []
    trouble = ""
    while True:
        try:
            text = await provider.logs(instance_id, tail=tail)
        except InstanceAbsent:
            if shown:
                screen.note(f"{rental.key} is gone", "dim")
                return
            raise
        except (Unavailable, Throttled, RateLimitExceeded) as error:
            if not (follow and shown):
                raise
            if not trouble:
                explain(screen, error, opened.settings.secrets())
            trouble = str(error)
        else:
            trouble = ""
            lines = text.splitlines()
            fresh = new_lines(shown, lines)
            if fresh:
                screen.text("".join(f"{harmless(line)}\n" for line in fresh))
            shown = lines or shown
        if not follow:
            return
        await asyncio.sleep(FOLLOW_PAUSE_S)


async def execute(
    opened: App,
    screen: Screen,
    word: str,
    command: Sequence[str],
    *,
    stdin: bytes,
    timeout_s: float,
) -> None:
    """Run a command inside the instance of a rental, print what it prints, leave with its code.

    Raises:
        BadInput: there is no such rental, it has no instance yet, or its market cannot do this.
        Leave: the command ended with something else than 0.
        ProviderError: the market did not run it, or nobody knows how it ended.
    """
    if not 0 < timeout_s <= MAX_EXEC_S:
        raise BadInput("--timeout", timeout_s, f"must be above 0 and at most {MAX_EXEC_S} s")
    if len(stdin) > MAX_STDIN:
        raise BadInput("--stdin", f"{len(stdin)} bytes", f"must be at most {MAX_STDIN} bytes")
    _, instance_id, provider = await _inside(opened, screen, word)
    _need(opened, provider, Ability.EXEC, word, "runs no commands inside an instance")
    screen.busy(f"running it at {provider.spec.title}")
    done = await provider.exec(instance_id, tuple(command), stdin=stdin, timeout_s=timeout_s)
    screen.rest()
    _print(done.stdout, screen, to_stderr=False)
    _print(done.stderr, screen, to_stderr=True)
    if done.exit_code:
        raise Leave(done.exit_code)


async def _inside(opened: App, screen: Screen, word: str) -> tuple[Rental, str, Provider]:
    """Return a rental, its instance's id, and its market.

    Raises:
        BadInput: there is no such rental, or it has no instance yet.
        Leave: its market is closed to us.
    """
    rental = await find_rental(opened, word)
    if rental.instance_id is None:
        raise BadInput("KEY", word, f"the rental is {rental.state} and has no instance yet")
    return rental, rental.instance_id, provider_of(opened, screen, rental)


def _need(opened: App, provider: Provider, ability: Ability, word: str, lack: str) -> None:
    """Refuse what a market does not do, before it is asked.

    Raises:
        BadInput: it does not; the text names it, and those of the open markets that do.
    """
    if ability in provider.spec.can:
        return
    able = [each.spec.title for each in opened.providers.values() if ability in each.spec.can]
    others = f"; {', '.join(able)} would" if able else ""
    raise BadInput("KEY", word, f"is at {provider.spec.title}, which {lack}{others}")


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


def new_lines(shown: Sequence[str], lines: Sequence[str]) -> Sequence[str]:
    """Return what follows the lines that were shown already; a log is a sliding window.

    The last line shown may have been half of one: then the whole of it is new.
    """
    for start in range(len(shown)):
        rest = shown[start:]
        if lines[: len(rest)] == rest:
            return lines[len(rest) :]
        half = len(rest) - 1
        if lines[:half] == rest[:half] and "".join(lines[half : half + 1]).startswith(rest[half]):
            return lines[half:]
    return lines


def harmless(line: str) -> str:
    """Return a line of a workload's log: its indent kept, nothing in it that a terminal obeys."""
    return clean_line(_ESCAPES.sub("", line).expandtabs(8)[:MAX_LINE], MAX_LINE)
