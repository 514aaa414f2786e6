"""`gp4u sim serve`: simulated markets on loopback ports, one line of JSON each when they listen."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from gp4u.cli import parse
from gp4u.errors import BadInput
from gp4u.sim.faults import Faults
from gp4u.sim.launch import LOOPBACK
from gp4u.sim.serve import (
    FLAVORED,
    PROVIDERS,
    RENDER_FLAVORS,
    RUNTIMES,
    NoEngineError,
    NoSuchAddressError,
    serve,
)

MAX_OFFERS = 1_000_000


async def run_simulator(
    providers: Sequence[str],
    *,
    port: int,
    seed: int,
    offers: int,
    runtime: str,
    flavor: str | None,
    public_ip: str | None,
    faults: Path | None,
    meter: Path | None,
    ready: Callable[[str], None],
) -> None:
    """Serve until interrupted; `ready` gets each market's line, the file `meter` the bills.

    Raises:
        BadInput: a flag is out of bounds, or the fault script is not one.
    """
    for slug in providers:
        if slug not in PROVIDERS:
            raise BadInput("--provider", slug, f"known: {', '.join(PROVIDERS)}")
        if list(providers).count(slug) > 1:
            raise BadInput("--provider", slug, "is given twice; one market of a kind is simulated")
    if runtime not in RUNTIMES:
        raise BadInput("--runtime", runtime, f"must be one of {', '.join(RUNTIMES)}")
    if flavor is not None and flavor not in RENDER_FLAVORS:
        raise BadInput("--flavor", flavor, f"must be one of {', '.join(RENDER_FLAVORS)}")
    if flavor is not None and providers and FLAVORED not in providers:
        raise BadInput("--flavor", flavor, f"is about {FLAVORED}, which --provider leaves out")
    if not 0 <= port <= 65_535:
        raise BadInput("--port", port, "must be from 0 to 65535; 0 takes a free one")
    if not 1 <= offers <= MAX_OFFERS:
        raise BadInput("--offers", offers, f"must be from 1 to {MAX_OFFERS}")
    bills = _Bills(meter) if meter is not None else None
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
            flavor=flavor,
            public_ip=public_ip or LOOPBACK,
            faults=scripted,
            ready=lambda line: ready(json.dumps(line)),
            meter=bills.write if bills is not None else lambda _: None,
        )
    except NoSuchAddressError as error:
        raise BadInput("--public-ip", public_ip, str(error)) from error
    except NoEngineError as error:
        raise BadInput("--runtime", runtime, str(error)) from error
    except BrokenPipeError:
        raise  # whoever read the lines has gone; no port is to blame
    except OSError as error:
        raise BadInput("--port", port, f"cannot listen: {error.strerror or error}") from error


class _Bills:
    """The file that says what each market charged; it is complete as soon as it is there."""

    def __init__(self, path: Path) -> None:
        """Try at once whether it can be written, and not after hours.

        Raises:
            BadInput: it cannot.
        """
        self._path, self._draft = path, path.with_name(f".{path.name}.part")
        try:
            self._draft.touch()
            self._draft.unlink()
            path.unlink(missing_ok=True)  # that of an earlier run
        except OSError as error:
            bound = f"cannot be written: {error.strerror or error}"
            raise BadInput("--meter", str(path), bound) from error

    def write(self, charged: dict[str, object]) -> None:
        """Write what was charged, by provider."""
        self._draft.write_text(json.dumps(charged, indent=2) + "\n", encoding="utf-8")
        self._draft.replace(self._path)
