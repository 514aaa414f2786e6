"""What the containers of this node printed: fetched while somebody looks, kept when it is over.

A market forgets a log together with the machine, and cannot be asked for each line that a follower
waits for. So there is one record for each container and run: it is brought up to date when somebody
asks, kept fresh as long as somebody follows, and read a last time before the machine goes. From
then on it lives for as long as the pod object does: on disk where there is a folder for it, which a
restart of this process survives, else in memory.

Hidden here: polling and following, and how many ask one market at a time. What a text of a market
means is in `source.py`; where it is kept, and how much of it, in `shelf.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from gp4u.clock import Clock
from gp4u.errors import Gp4uError, InstanceAbsent
from gp4u.kubelet.held import Held
from gp4u.kubelet.logs.run import RUN_BYTES, RunLog
from gp4u.kubelet.logs.shelf import SPOOL_BYTES, TOTAL_BYTES, Shelf
from gp4u.kubelet.logs.source import Ending, Layout, Source
from gp4u.providers.contract import Ability, Provider
from gp4u.rentals.rental import Rental

__all__ = ["Ending", "LogStore"]

FIRST_LINES: Final = 5_000
"""What is asked for where nothing is known yet, or the end is near."""
MOST_LINES: Final = 20_000
POLL_LINES: Final = 1_000
LOOK_S: Final = 15.0
FINAL_S: Final = 20.0
FRESH_S: Final = 1.0
"""A look is not repeated within this."""
SLOWEST_POLL_S: Final = 8.0
_SLOWER: Final = 1.5
_STREAM_AGAIN_S: Final = 5.0
_EARLY_BYTES: Final = 1024 * 1024
_FINAL_AGAIN_S: Final = 2.0
_SLOW_READER_S: Final = 5.0
"""For so long a stream is held up by a follower who does not read; then he misses some of it."""
_TAIL_LINES: Final = 80
"""Source: kubernetes pkg/kubelet/kuberuntime/kuberuntime_container.go, 1.32; checked 2026-11."""

Find = Callable[[], Held | None]
"""Tells how the pod stands now; None: it is gone."""


class _Watched:
    """One container of one rental's machine, and how its market has been asked for its log."""

    def __init__(self, uid: str, rental: Rental, known_as: str | None, source: Source) -> None:
        self.uid, self.rental, self.source = uid, rental, source
        self.known_as = known_as
        """What the market calls the container; None: it is the first one of its machine."""
        self.asking = asyncio.Lock()
        self.looked_s = float("-inf")
        self.tail = 0
        """How many lines the newest look asked for."""
        self.pause_s = FRESH_S
        self.problem = ""
        self.is_streaming = False
        self.stream_after_s = float("-inf")
        self.is_over = False


class LogStore:
    """All logs of one process; see the module's docstring."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        *,
        clock: Clock,
        directory: Path | None = None,
        run_bytes: int = RUN_BYTES,
        total_bytes: int = TOTAL_BYTES,
        spool_bytes: int = SPOOL_BYTES,
    ) -> None:
        """`directory` is ours alone: there logs survive us. For the bounds see `shelf.py`."""
        self._providers, self._clock = providers, clock
        self._shelf = Shelf(
            directory, run_bytes=run_bytes, total_bytes=total_bytes, spool_bytes=spool_bytes
        )
        self._watched: dict[tuple[str, str], _Watched] = {}
        """By rental key and ordinary container."""
        self._newest: dict[tuple[str, str], _Watched] = {}

    # --- what was printed ---

    def runs(self, uid: str, container: str) -> Sequence[RunLog]:
        """Return the runs of a container whose logs are kept, the newest last; two at most."""
        return self._shelf.runs(uid, container)

    def tail(self, uid: str, container: str, max_bytes: int = 2048, *, before: bool = False) -> str:
        """Return the end of what the newest run printed, for a termination message.

        A log that has not begun does not count; `before`: of the run before the newest one.
        """
        runs = self.runs(uid, container)
        has_begun = runs and (runs[-1].end or runs[-1].is_over)
        if before or (len(runs) > 1 and not has_begun):
            runs = runs[:-1]
        if not runs:
            return ""
        return runs[-1].tail(_TAIL_LINES, max_bytes).decode("utf-8", "replace")

    def ending(self, uid: str, container: str, key: str | None = None) -> Ending | None:
        """Return the newest run that our bootstrap has told of, as of the newest look.

        With a rental's `key` it is one on that machine, and not on the one before.
        """
        watched = self._newest.get((uid, container))
        if watched is None or key not in (None, watched.rental.key):
            return None
        return watched.source.endings.get(container)

    async def look(self, held: Held, container: str, *, tail: int = FIRST_LINES) -> str:
        """Ask the market for what was printed since; return "" or why it could not be read.

        Nothing is asked where there is no machine any more, or where it was asked just now.
        """
        rental = _rental_of(held, container)
        if rental is None or rental.instance_id is None:
            return ""
        watched = self._watch(held, container, rental)
        asked_s = asyncio.get_running_loop().time() - FRESH_S
        async with watched.asking:
            if watched.is_over or (watched.looked_s > asked_s and watched.tail >= tail):
                return watched.problem
            return await self._ask(watched, min(tail, MOST_LINES))

    async def keep_final(self, held: Held) -> None:
        """Read the logs of a pod's machines a last time, before they go, and keep them.

        A market that does not answer cannot hold it up for more than 20 s, and raises nothing.
        """
        every = [
            self._watch(held, name, rental)
            for name, rental in held.rentals.items()
            if rental.instance_id
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(FINAL_S), asyncio.TaskGroup() as group:
                for watched in every:
                    group.create_task(self._ask_last(watched))
        for watched in every:
            if not watched.is_over:
                watched.is_over = True
                watched.source.finish(self._clock.now())
        self._shelf.spool(held.uid)

    @asynccontextmanager
    async def attended(self, find: Find, container: str) -> AsyncIterator[None]:
        """Keep the log of a running container fresh in the meantime: somebody follows it."""
        left: GeneratorExit | None = None
        async with asyncio.TaskGroup() as group:
            attending = group.create_task(self._attend(find, container))
            try:
                yield
            except GeneratorExit as error:
                left = error  # a follower's generator is closed; the group would make a group of it
            finally:
                attending.cancel()
        if left is not None:
            raise left

    def forget(self, uid: str) -> None:
        """Drop everything of a pod whose object is gone."""
        self._shelf.forget(uid)
        for where in [each for each in self._newest if each[0] == uid]:
            del self._newest[where]
        for key in [key for key, watched in self._watched.items() if watched.uid == uid]:
            self._watched.pop(key).is_over = True

    def sweep(self, uids: Collection[str]) -> None:
        """Drop the logs of all pods but these; for the start, when the list of pods is whole."""
        for uid in self._shelf.uids - set(uids):
            self.forget(uid)

    # --- asking a market ---

    def _watch(self, held: Held, container: str, rental: Rental) -> _Watched:
        layout = _layout_of(held, container)
        watched = self._watched.get((rental.key, layout.app))
        if watched is not None:
            watched.rental = rental
            return watched

        def begin(container: str) -> RunLog:
            return self._shelf.begin(held.uid, container)

        watched = _Watched(held.uid, rental, held.known_as(layout.app), Source(layout, begin))
        self._watched[rental.key, layout.app] = watched
        for name in (*layout.inits, layout.app):
            self._newest[held.uid, name] = watched
        return watched

    async def _ask(self, watched: _Watched, tail: int) -> str:
        """Read the log once; the caller holds `asking`."""
        loop, rental = asyncio.get_running_loop(), watched.rental
        provider = self._providers.get(rental.provider)
        if provider is None or rental.instance_id is None:
            return f"{rental.provider} is not open"
        if Ability.LOGS not in provider.spec.can:
            return f"{provider.spec.title} does not show what a workload prints"
        try:
            async with asyncio.timeout(LOOK_S):
                text = await provider.logs(
                    rental.instance_id, tail=tail, container=watched.known_as
                )
        except InstanceAbsent:
            text = ""  # a machine that is gone, or not there yet, has printed nothing more
        except (Gp4uError, OSError, TimeoutError) as error:
            watched.problem = str(error) or f"{rental.provider} did not answer within {LOOK_S:g} s"
            watched.pause_s = min(2 * watched.pause_s, SLOWEST_POLL_S)
            return watched.problem
        watched.looked_s, watched.tail, watched.problem = loop.time(), tail, ""
        is_new = watched.source.show(text, tail=tail, at=self._clock.now())
        watched.pause_s = FRESH_S if is_new else min(watched.pause_s * _SLOWER, SLOWEST_POLL_S)
        self._shelf.account(len(text) if is_new else 0)
        return ""

    async def _ask_last(self, watched: _Watched) -> None:
        rental, problem = watched.rental, ""
        provider = self._providers.get(rental.provider)
        if provider is not None and Ability.LOGS not in provider.spec.can:
            return
        for wait_s in (0.0, _FINAL_AGAIN_S):
            await asyncio.sleep(wait_s)
            async with watched.asking:
                problem = "" if watched.is_over else await self._ask(watched, FIRST_LINES)
            if not problem:
                return
        about = {"provider": rental.provider, "rental": rental.key, "reason": problem}
        structlog.get_logger().warning("last_log_not_read", **about)

    async def _attend(self, find: Find, container: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pause_s = FRESH_S
            held = find()
            rental = _rental_of(held, container) if held is not None else None
            if held is not None and rental is not None and rental.instance_id is not None:
                watched = self._watch(held, container, rental)
                provider = self._providers.get(rental.provider)
                if watched.is_streaming or watched.is_over:
                    pass  # another follower sees to it, or nothing more will come
                elif (
                    provider is not None
                    and Ability.FOLLOW in provider.spec.can
                    and loop.time() >= watched.stream_after_s
                ):
                    await self._stream(watched, provider, rental.instance_id)
                else:
                    await self.look(held, container, tail=POLL_LINES)
                    pause_s = watched.pause_s
            await asyncio.sleep(pause_s)

    async def _stream(self, watched: _Watched, provider: Provider, instance_id: str) -> None:
        """Follow the market's own stream until it ends or breaks."""
        early: list[bytes] = []
        has_come, is_joined = asyncio.Event(), asyncio.Event()

        async def pump() -> None:
            with suppress(Gp4uError, OSError, TimeoutError):  # polling goes on, and will tell
                stream = provider.follow(instance_id, container=watched.known_as)
                async with aclosing(stream) as pieces:  # type: ignore[type-var] # an async generator, wherever it is written as one
                    async for piece in pieces:
                        if watched.is_over:
                            return
                        if is_joined.is_set():
                            watched.source.follow(piece, self._clock.now())
                            self._shelf.account(len(piece))
                            await self._let_read(watched)
                            continue
                        early.append(piece)
                        has_come.set()
                        if sum(map(len, early)) > _EARLY_BYTES:
                            await is_joined.wait()
            has_come.set()

        watched.is_streaming = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(pump())
                with suppress(TimeoutError):
                    async with asyncio.timeout(FRESH_S):
                        await has_come.wait()
                # What came before is read only now, so that nothing falls between the two.
                async with watched.asking:
                    await self._ask(watched, FIRST_LINES)
                watched.source.join(b"".join(early), self._clock.now())
                is_joined.set()
        finally:
            watched.is_streaming = False
            watched.stream_after_s = asyncio.get_running_loop().time() + _STREAM_AGAIN_S

    async def _let_read(self, watched: _Watched) -> None:
        """Give others their turn, and who follows the time to read: a market can be faster."""
        await asyncio.sleep(0)
        with suppress(TimeoutError):
            async with asyncio.timeout(_SLOW_READER_S):
                await watched.source.room()


def _rental_of(held: Held, container: str) -> Rental | None:
    """Return what runs a container; an init container runs where the pod's first one does."""
    return held.rentals.get(container) or next(iter(held.rentals.values()), None)


def _layout_of(held: Held, container: str) -> Layout:
    """Return what prints together with a container, in the words of the pod's spec."""
    inits = tuple(each.name for each in held.init_containers)
    names = [each.name for each in held.containers] or list(held.rentals)
    first = next((name for name in names if held.known_as(name) is None), container)
    if container in inits or container == first:
        return Layout(first, inits)
    return Layout(container)
