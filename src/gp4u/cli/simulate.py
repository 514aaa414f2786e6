"""`gp4u sim serve`: simulated markets on loopback ports, one line of JSON each when they listen."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from gp4u.cli import parse
from gp4u.errors import BadInput
from gp4u.sim.faults import Faults
from gp4u.sim.serve import PROVIDERS, RUNTIMES, NoEngineError, serve

MAX_OFFERS = 1_000_000


async def run_simulator(
    providers: Sequence[str],
    *,
    port: int,
    seed: int,
    offers: int,
    runtime: str,
    faults: Path | None,
    ready: Callable[[str], None],
) -> None:
    """Serve until interrupted; `ready` gets each market's line.

    Raises:
        BadInput: a flag is out of bounds, or the fault script is not one.
    """
    for slug in providers:
        if slug not in PROVIDERS:
            raise BadInput("--provider", slug, f"known: {', '.join(PROVIDERS)}")
    if runtime not in RUNTIMES:
        raise BadInput("--runtime", runtime, f"must be one of {', '.join(RUNTIMES)}")
    if not 0 <= port <= 65_535:
        raise BadInput("--port", port, "must be from 0 to 65535; 0 takes a free one")
    if not 1 <= offers <= MAX_OFFERS:
        raise BadInput("--offers", offers, f"must be from 1 to {MAX_OFFERS}")
    script = parse.read_faults(faults)
    try:
        scripted = Faults.from_json(script) if script is not None else None
    except ValueError as error:
        raise BadInput("--faults", str(faults), str(error)) from error
    try:
        await serve(
            list(providers) or PROVIDERS,
            port=port,
            seed=seed,
            offers=offers,
            runtime_name=runtime,
            faults=scripted,
            ready=lambda line: ready(json.dumps(line)),
        )
    except NoEngineError as error:
        raise BadInput("--runtime", runtime, str(error)) from error
    except OSError as error:
        raise BadInput("--port", port, f"cannot listen: {error.strerror or error}") from error
