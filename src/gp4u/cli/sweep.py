"""`gp4u sweep`: look twice, and release what nothing explains.

The first look also is an ordinary reconcile of everything that is open. Between the looks lies the
grace in which a rent of another process may still write what it did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from gp4u.cli.markets import need_markets
from gp4u.cli.run import Counter
from gp4u.cli.screen import Form, Screen
from gp4u.cli.tables import Cell, Column, Row
from gp4u.cli.views import STATE_STYLE
from gp4u.desk.shapes import UnexplainedShape
from gp4u.errors import NoSuch
from gp4u.telemetry import clean


async def run_sweep(
    at: Counter,
    screen: Screen,
    *,
    grace_s: float,
    dry_run: bool,
    confirm: Callable[[str], None],
) -> None:
    """Find orphans in every open market, release them, and see that they are gone.

    Raises:
        ProviderError: a market could not be listed, so nothing is known of it.
        Leave: no market is open.
    """
    asked = await need_markets(at.desk, screen)
    screen.busy(f"asking {', '.join(asked)}")
    first = await _orphans(at, screen)
    report: list[dict[str, str]] = [_row(orphan, "orphan") for orphan in first.values()]
    if first and not dry_run:
        several = f"{len(first)} machines" if len(first) > 1 else "1 machine"
        confirm(f"release {several} that nothing explains?")
        screen.busy(f"{several} found; looking again in {grace_s:.0f} s")
        await asyncio.sleep(grace_s)
        still = {p: o for p, o in (await _orphans(at, screen)).items() if p in first}
        report = []
        for place, orphan in still.items():
            try:
                await at.desk.release_orphan(*place)
            except NoSuch:
                continue  # gone, or explained, since it was looked at
            report.append(_row(orphan, "released"))
        left = dict(still)
        pause_s = 1.0
        while left:
            await asyncio.sleep(pause_s)
            pause_s = min(10.0, pause_s * 1.5)
            now = await _orphans(at, screen)
            left = {place: orphan for place, orphan in now.items() if place in left}
            screen.busy(f"waiting for {len(left)} to be gone")
    screen.rest()
    _show(screen, report)


_COLUMNS: Final = (
    Column(head="STATE"),
    Column(head="KEY", style="cyan"),
    Column(head="PROVIDER", drop=1),
    Column(head="INSTANCE"),
    Column(head="SEEN"),
)


def _show(screen: Screen, report: Sequence[Mapping[str, str]]) -> None:
    if screen.form is Form.NAME:
        screen.names(clean(row["instance_id"]) for row in report)
    elif screen.is_data:
        screen.data(report)
    elif report:
        rows: list[Row] = [
            [
                Cell(row["state"], STATE_STYLE[row["state"]]),
                row["key"],
                row["provider"],
                clean(row["instance_id"], 40),
                row["seen"],
            ]
            for row in report
        ]
        screen.table(_COLUMNS, rows)
    else:
        screen.note("nothing to sweep: every machine of ours is explained", "green")


async def _orphans(at: Counter, screen: Screen) -> dict[tuple[str, str], UnexplainedShape]:
    """Return the orphans of every market by (provider, instance id)."""
    found, warnings = await at.desk.orphans()
    for warning in warnings:
        screen.warn(warning)
    return {(each.provider, each.instance_id): each for each in found}


def _row(orphan: UnexplainedShape, state: str) -> dict[str, str]:
    return {
        "provider": orphan.provider,
        "instance_id": orphan.instance_id,
        "key": orphan.key or "",
        "state": state,
        "seen": orphan.seen,
    }
