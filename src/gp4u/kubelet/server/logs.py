"""`/containerLogs`: what is asked for, whether there is such a log, and the log itself.

The parameters and the words of each refusal are a kubelet's, because kubectl shows them to people.
What was printed is in `logs/store.py`. A market does not tell which of its lines went to which
stream, so all of it is standard output.

Source: kubernetes pkg/kubelet/server/server.go (getContainerLogs), pkg/kubelet/kubelet_pods.go
(validateContainerLogStatus), pkg/apis/core/validation (ValidatePodLogOptions), 1.32 and 1.36;
checked 2026-11.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from gp4u.clock import Clock
from gp4u.kubelet.held import ContainerState, Held, Run
from gp4u.kubelet.logs.run import PIECE_BYTES, RunLog, Stamper
from gp4u.kubelet.logs.store import FIRST_LINES, Find, LogStore
from gp4u.kubelet.server.http import Reply, told
from gp4u.kubelet.server.ways_in import waits

LOOK_S: Final = 0.5
"""How often a follower looks whether the container still runs."""
_MOST: Final = 2**63 - 1


class LogQuery(Struct, frozen=True, kw_only=True):
    """What part of a log is wanted, and how it shall look."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    since: datetime | None = None
    limit_bytes: int | None = None
    stderr_only: bool = False


def read_query(query: Mapping[str, Sequence[str]], now: datetime) -> LogQuery | str:
    """Return what the parameters ask for, or what is wrong with them."""
    first = {name: values[0] for name, values in query.items() if values}
    try:
        seconds = _number(first, "sinceSeconds", 1)
        since = _moment(first.get("sinceTime"))
        if seconds is not None and since is not None:
            return "at most one of sinceTime or sinceSeconds may be specified"
        if seconds is not None:
            since = now - timedelta(seconds=min(seconds, 10**9))
        stream = first.get("stream") or "All"
        if stream not in ("All", "Stdout", "Stderr"):
            return f"stream: {stream[:20]!r} is not All, Stdout or Stderr"
        tail = _number(first, "tailLines", 0)
        if tail is not None and stream != "All":
            return "tailLines and a specific stream are mutually exclusive for now"
        return LogQuery(
            follow=_flag(first, "follow"),
            previous=_flag(first, "previous"),
            timestamps=_flag(first, "timestamps"),
            tail_lines=tail,
            since=since,
            limit_bytes=_number(first, "limitBytes", 1),
            stderr_only=stream == "Stderr",
        )
    except ValueError as error:
        return str(error)


def _flag(first: Mapping[str, str], name: str) -> bool:
    """Return a flag as the API's decoder takes it: there, and neither false nor 0.

    Source: kubernetes apimachinery pkg/runtime/converter.go, Convert_Slice_string_To_bool;
    checked 2026-11.
    """
    value = first.get(name)
    return value is not None and value.lower() not in ("false", "0")


def _number(first: Mapping[str, str], name: str, least: int) -> int | None:
    text = first.get(name)
    if not text:
        return None
    number = int(text) if text.lstrip("-").isdecimal() and len(text) <= 20 else None
    if number is None or not least <= number <= _MOST:
        raise ValueError(f"{name}: {text[:20]!r} is not a whole number of {least} or more")
    return number


def _moment(text: str | None) -> datetime | None:
    if not text:
        return None
    whole, dot, rest = text.partition(".")
    if dot:  # nanoseconds, of which Python takes six digits
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        text = f"{whole}.{digits[:6].ljust(6, '0')}{rest[len(digits) :]}"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"sinceTime: {text[:40]!r} is no RFC 3339 time")
    return moment


class Logs:
    """Answers requests for logs."""

    def __init__(self, store: LogStore, *, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def reply(
        self, held: Held, state: ContainerState, query: Mapping[str, Sequence[str]], find: Find
    ) -> Reply:
        """Return the log of one container; `find` tells how its pod stands from then on."""
        asked = read_query(query, self._clock.now())
        if isinstance(asked, str):
            return told(422, f"Invalid request: {asked}")
        problem = _absence(held, state, previous=asked.previous)
        if problem:
            return told(400, problem)
        # Few lines would be all that is ever known of what came before them.
        tail = max(asked.tail_lines or 0, FIRST_LINES)
        trouble = await self._store.look(held, state.name, tail=tail)
        run = self._run(held, state, previous=asked.previous)
        if trouble and (run is None or not run.end):
            where = f'the log of container "{state.name}" in pod "{held.name}"'
            return told(500, f"{where} cannot be read: {trouble}")
        if run is None and asked.previous:
            return told(400, _no_previous(held, state))
        run = run or RunLog()
        if asked.stderr_only:
            return Reply()
        start = run.first(since=asked.since, tail=asked.tail_lines)
        if asked.follow and not asked.previous and state.run is not Run.TERMINATED:
            pieces = self._follow(run, start, state, find)
        else:
            pieces = _all(run, start)
        return Reply(body=_shown(pieces, asked))

    async def printed(
        self, state: ContainerState, held: Held, find: Find
    ) -> AsyncGenerator[bytes, None]:
        """Yield what a running container prints from now on, until it ends."""
        await self._store.look(held, state.name)
        run = self._run(held, state, previous=False) or RunLog()
        async with aclosing(self._follow(run, run.end, state, find)) as every:
            async for pieces in every:
                for _, data in pieces:
                    yield data

    def _run(self, held: Held, state: ContainerState, *, previous: bool) -> RunLog | None:
        """Return the log of the newest run that began, or of the one before it."""
        runs = self._store.runs(held.uid, state.name)
        if state.run is Run.WAITING and len(runs) > 1 and not (runs[-1].end or runs[-1].is_over):
            runs = runs[:-1]  # of a machine that is made ready
        # While a container waits for its next run, the newest log is of the run before that.
        place = 2 if previous and state.run is not Run.WAITING else 1
        return runs[-place] if len(runs) >= place else None

    async def _follow(
        self, run: RunLog, start: int, state: ContainerState, find: Find
    ) -> AsyncGenerator[list[tuple[datetime, bytes]], None]:
        """Yield what is there and what comes, until this run of the container is over."""
        position = start
        with run.followed(position):
            async with self._store.attended(find, state.name):
                while True:
                    pieces, position = run.read(position)
                    if pieces:
                        yield pieces
                        continue
                    if run.is_over or not await self._goes_on(run, state, find):
                        break
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_S):
                            await run.grown(position)
        pieces, position = run.read(position)
        while pieces:
            yield pieces
            pieces, position = run.read(position)

    async def _goes_on(self, run: RunLog, state: ContainerState, find: Find) -> bool:
        """Whether more can come; where not, the market is asked for the last of it."""
        held = find()
        now = None if held is None else _named(held, state.name)
        if held is None or now is None:
            return False
        if now.run is Run.RUNNING and now.container_id == state.container_id:
            return True
        if now.run is Run.WAITING and not now.last_ended:
            return True
        if not run.is_over:
            await self._store.look(held, state.name)
        return False


def _named(held: Held, name: str) -> ContainerState | None:
    every = (*held.containers, *held.init_containers)
    return next((each for each in every if each.name == name), None)


def _absence(held: Held, state: ContainerState, *, previous: bool) -> str:
    """Return why there is no such log, in a kubelet's words; empty where there may be one."""
    if previous:
        return "" if state.last_ended is not None else _no_previous(held, state)
    if state.run is not Run.WAITING or state.last_ended is not None:
        return ""
    return waits(held, state)


def _no_previous(held: Held, state: ContainerState) -> str:
    return f'previous terminated container "{state.name}" in pod "{held.name}" not found'


async def _all(run: RunLog, start: int) -> AsyncGenerator[list[tuple[datetime, bytes]], None]:
    """Yield what there is, and no more."""
    position, end = start, run.end
    while position < end:
        pieces, position = run.read(position, min(PIECE_BYTES, end - position))
        if not pieces:
            return
        yield pieces


async def _shown(
    every: AsyncGenerator[list[tuple[datetime, bytes]], None], asked: LogQuery
) -> AsyncIterator[bytes]:
    """Yield a log as it was asked for, in large pieces."""
    stamper, left = Stamper(), asked.limit_bytes
    async with aclosing(every):
        async for pieces in every:
            if asked.timestamps:
                data = b"".join(stamper(pieces))
            else:
                data = pieces[0][1] if len(pieces) == 1 else b"".join(each for _, each in pieces)
            if left is not None:
                data = data[:left]
                left -= len(data)
            yield data
            if left == 0:
                return
