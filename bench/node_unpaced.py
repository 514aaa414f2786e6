"""`gp4u` with the documented pace of Vast.ai lifted, and one more market: what it rents from here
is simulated.

The real market takes one rent in 4.5 seconds, so a thousand pods would measure that for an hour.
Nothing else differs from the installed program.
"""

from __future__ import annotations

from typing import cast

from node_tape import OPENING

from gp4u.__main__ import main
from gp4u.providers.registry import get_provider_registry
from gp4u.providers.vastai.adapter import SPEC
from gp4u.resilience.bucket import Pace

if __name__ == "__main__":
    cast("dict[str, Pace]", SPEC.paces).clear()
    get_provider_registry().register(OPENING)
    main()
