"""Stretches of time in words: `90m`, `7d`, as far back as prices are asked for.

The REST paths and the command line both take them, so what they may be is said once.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from gp4u.errors import BadInput

SHORTEST: Final = timedelta(hours=1)
LONGEST: Final = timedelta(days=90)
_UNITS: Final = (("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
"""The longest first, each with its seconds."""
_SPAN: Final = re.compile(r"([0-9]{1,8})([smhdw])")
_BOUND: Final = "must be from 1h to 90d: a whole number and s, m, h, d or w"


def span(text: str, field: str = "range") -> timedelta:
    """Return the stretch of time that a word such as `7d` means.

    Raises:
        BadInput: it means none, or one that is too short or too long; `field` says what was set.
    """
    found = _SPAN.fullmatch(text.strip().lower())
    if found is None:
        raise BadInput(field, text[:40], _BOUND)
    meant = timedelta(seconds=int(found[1]) * dict(_UNITS)[found[2]])
    if not SHORTEST <= meant <= LONGEST:
        raise BadInput(field, text[:40], _BOUND)
    return meant


def span_text(meant: timedelta) -> str:
    """Return a short word for a stretch of whole seconds, in days at most; `span` reads it back."""
    seconds = round(meant.total_seconds())
    return next(f"{seconds // size}{unit}" for unit, size in _UNITS[1:] if seconds % size == 0)
