"""Amounts as Kubernetes writes them: `500m`, `1.5Gi`, `2e3`; pure.

Source: kubernetes apimachinery pkg/api/resource/quantity.go (grammar), 1.36; checked 2026-11.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from gp4u.errors import BadInput

_FORM: Final = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([numkMGTPE]?|[KMGTPE]i)|[eE]([+-]?[0-9]{1,3}))"
)
_SUFFIXES: Final = {
    **{suffix: Decimal(10) ** (3 * power) for power, suffix in enumerate("num", -3)},
    **{suffix: Decimal(10) ** (3 * power) for power, suffix in enumerate("kMGTPE", 1)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
    "": Decimal(1),
}


def parse_quantity(text: str | int | float) -> Decimal:
    """Return the amount in the resource's own unit: bytes, cores, pieces.

    Raises:
        BadInput: it is no quantity.
    """
    found = _FORM.fullmatch(str(text))
    if found is None:
        raise BadInput("quantity", text, "must be a number with a suffix such as m, k, M, Ki, Gi")
    number, suffix, exponent = found.groups()
    factor = Decimal(10) ** int(exponent) if exponent else _SUFFIXES[suffix or ""]
    return Decimal(number) * factor
