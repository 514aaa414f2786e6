"""A command inside a rented machine whose output nobody wants: exec probes, and the asking to stop.

Hides which of its two ways a market has for it. What people type goes through `streams/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gp4u.providers.bootstrap import STOP_COMMAND
from gp4u.providers.contract import Ability, Provider, unsupported
from gp4u.rentals.rental import Rental

STOP_AND_WAIT = (
    *STOP_COMMAND[:2],
    f'{STOP_COMMAND[2]} || exit 1; p="$(cat "${{GP4U_ROOT:-}}/tmp/.gp4u.pid")"; '
    "while kill -0 $p 2>/dev/null; do sleep 1; done",
)
"""Ends the workload as a container's stop would, and returns once it has ended."""


def can_run(provider: Provider) -> bool:
    """Whether the market has a way in."""
    return bool(provider.spec.can & (Ability.SHELL | Ability.EXEC))


async def run_inside(
    provider: Provider,
    rental: Rental,
    command: Sequence[str],
    *,
    within_s: float,
    container: str | None = None,
) -> int:
    """Run a command where a container of the rental runs, and return its exit code.

    `container` is as the market knows it; None: the first one.

    Raises:
        TimeoutError: it did not end in time; it may go on.
        ProviderError: it was not run, or nobody knows.
    """
    instance_id = rental.instance_id or ""
    async with asyncio.timeout(within_s):
        if Ability.SHELL in provider.spec.can:
            session = await provider.open_exec(
                instance_id, rental.key, command, tty=False, container=container
            )
            try:
                async for _ in session.output():
                    pass
                return await session.exit_code()
            finally:
                await session.aclose()
        if Ability.EXEC in provider.spec.can:
            done = await provider.exec(
                instance_id, command, timeout_s=within_s, container=container
            )
            return done.exit_code
    raise unsupported(provider.spec, "exec")
