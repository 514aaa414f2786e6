"""Lines for people that the server tells and the command line prints: one wording for both.

Hides how a selection log is put together and what makes a stranger's text harmless. Numpy is loaded
only where a decision is told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gp4u.telemetry import clean

if TYPE_CHECKING:
    from gp4u.model import Decision

LAUNCHING: Final = " - launching..."
"""How the selection log ends; a dry run leaves it off."""
MAX_LINE: Final = 100_000
_COUNTS: Final = 3
"""Lines of the selection log before the first offer: what was searched, found, and remains."""
_ESCAPES: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")
"""Colours and cursor moves, which a log may hold and a terminal would obey."""


def selection_lines(decision: Decision, *, top: int) -> list[str]:
    """Return the selection log, ready to print; its last line says that it is launched."""
    from gp4u.selection.decide import left_out, selection_log

    prefix, best = log_prefix(decision), decision.best
    lines = selection_log(decision, prefix=prefix, top=top)
    if best is not None and len(decision.sources) > 1:
        # A market that has nothing to say in the ranking still was asked, and somebody wonders.
        lines[_COUNTS:_COUNTS] = [
            f"[{prefix}] Left out: {out.provider}, of {out.offers} offers the nearest breaks "
            + ", ".join(out.broken)
            for out in left_out(decision)
        ]
    return [clean_line(line) for line in lines]


def log_prefix(decision: Decision) -> str:
    """Return what the seed's log lines begin with: its own word, or ours for another market."""
    best = decision.best
    return "VAST" if best is None or best.offer.provider == "vastai" else "GP4U"


def clean_line(text: str, limit: int = 400) -> str:
    """Clean one line and keep its indent."""
    indent = " " * (len(text) - len(text.lstrip(" ")))
    return indent + clean(text, limit)


def harmless(line: str) -> str:
    """Return a line of a workload's log: its indent kept, nothing in it that a terminal obeys."""
    return clean_line(_ESCAPES.sub("", line).expandtabs(8)[:MAX_LINE], MAX_LINE)


def new_lines(shown: Sequence[str], lines: Sequence[str]) -> Sequence[str]:
    """Return what follows the lines that were shown already; a log is a sliding window.

    The last line shown may have been half of one: then the whole of it is new. It takes as long as
    both are, however little they have in common: a log that prints fast must hold nobody up.
    """
    if not shown:
        return lines
    # Knuth, Morris and Pratt: how many of `lines` all that was shown, but its last line, ends with.
    shorter = [0] * (len(lines) + 1)

    def longer(held: int, line: str) -> int:
        while held and (held == len(lines) or lines[held] != line):
            held = shorter[held]
        return held + (held < len(lines) and lines[held] == line)

    for place in range(1, len(lines)):
        shorter[place + 1] = longer(shorter[place], lines[place])
    held = 0
    for line in shown[:-1]:
        held = longer(held, line)
    while True:
        following = "".join(lines[held : held + 1])
        if following.startswith(shown[-1]):
            return lines[held + 1 :] if following == shown[-1] else lines[held:]
        if not held:
            return lines
        held = shorter[held]
