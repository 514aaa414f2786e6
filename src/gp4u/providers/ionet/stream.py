"""Logs that come as server-sent events: how the frames of such a stream become lines of text.

How much of a stream is taken before it is left is `Http.collect`'s business.

Source: `docs/reference/ionet.md` (logs), and the HTML standard on server-sent events: frames are
lines `data: ...`, a blank line ends one; checked 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_STEERS_A_TERMINAL: Final = re.compile(r"[^\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FIELDS: Final = ("data:", "event:", "id:", "retry:", ":")
"""What a line of an event begins with; `:` alone is a comment."""


def log_text(streams: Iterable[bytes], tail: int) -> str:
    """Return the newest `tail` lines of several streams, each framed as events or as it is.

    The streams follow one another; what was cut off in the middle of a line ends there.
    """
    lines = [line for stream in streams for line in _lines(stream)]
    kept = lines[-tail:] if tail > 0 else []
    return "".join(f"{_STEERS_A_TERMINAL.sub(' ', line)}\n" for line in kept)


def _lines(stream: bytes) -> list[str]:
    lines = stream.decode("utf-8", errors="replace").replace("\r\n", "\n").split("\n")
    first = next((line for line in lines if line), "")
    if first.startswith(_FIELDS) and any(line.startswith("data:") for line in lines):
        return [line[5:].removeprefix(" ") for line in lines if line.startswith("data:")]
    return lines[:-1] if lines[-1] == "" else lines
