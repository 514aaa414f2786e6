"""One machine's log, taken apart into the runs of the containers that it serves.

A market gives one text for a machine. Which container printed what is told by our bootstrap's marks
(init containers come first, then run after run of the workload), and where a market runs several
containers side by side, by the name that it puts in front of each line. Pure: fetching the text is
`store.py`'s business.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable
from datetime import datetime
from typing import Final

from msgspec import Struct

from gp4u.kubelet.logs.overlap import MAX_OPEN, Mark, Overlap, Sections
from gp4u.kubelet.logs.run import RunLog

Begin = Callable[[str], RunLog]
"""Starts the log of one more run of the container of this name."""
_LONGEST_NAME: Final = 253


class Layout(Struct, frozen=True):
    """Which containers a machine runs."""

    apps: tuple[str, ...]
    """Ordinary containers; the first one is the machine's main one."""
    inits: tuple[str, ...] = ()
    """In the order in which they run before the main one, in its place."""


class Ending(Struct, frozen=True):
    """The newest run of a container that was seen in a log, and how it ended."""

    run: int
    """Counted by the machine, from 1; it begins anew when the machine is started anew."""
    exit_code: int | None = None
    """None: it has not ended yet."""


class Source:
    """The log of one rental's machine, as it comes."""

    def __init__(self, layout: Layout, begin: Begin) -> None:
        self._layout, self._begin = layout, begin
        self._overlap = Overlap()
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._lanes = {name: Sections() for name in layout.apps}
        self._line = ""
        """Of several containers' text: a line whose end has not come."""
        self._runs: dict[str, RunLog] = {}
        self._init: int | None = None
        """Which init container prints; None: the main container does."""
        self.endings: dict[str, Ending] = {}
        """Container to its newest run, as far as marks were seen."""
        if layout.inits:
            self._init = 0
        else:
            self._run_of(layout.apps[0])

    async def room(self) -> None:
        """Wait until those who follow what is printed here have nearly caught up with it."""
        for run in list(self._runs.values()):
            await run.room()

    def show(self, text: str, *, tail: int, at: datetime) -> bool:
        """Take the newest `tail` lines at most; return whether there was anything new."""
        is_first = not self._overlap.has_seen
        told = self._overlap.new(text, tail=tail)
        if is_first and text.count("\n") + (not text.endswith("\n")) >= tail:
            self._init = None  # the beginning is not there: most likely that of the init containers
        if told:
            self._take(told, at)
        elif self._lanes[self._layout.apps[0]].has_whole_mark:
            # Markets trim the last line's end, and twice the same text is no line in the making.
            self._flush(at)
        return bool(told)

    def join(self, data: bytes, at: datetime) -> None:
        """Take what was followed while the log was shown."""
        told = self._overlap.join(self._decoder.decode(data))
        if told:
            self._take(told, at)

    def follow(self, data: bytes, at: datetime) -> None:
        """Take what comes right behind what is known."""
        text = self._decoder.decode(data)
        if text:
            self._overlap.follow(text)
            self._take(text, at)

    def finish(self, at: datetime) -> None:
        """Take what was held back, and say that nothing more will come."""
        if self._line:
            self._route(self._line, at)
            self._line = ""
        self._flush(at)
        for run in self._runs.values():
            run.finish()
        self._overlap = Overlap()  # of no more use, and the largest part

    def _flush(self, at: datetime) -> None:
        for name, sections in self._lanes.items():
            for each in sections.flush():
                self._apply(name, each, at)

    def _take(self, text: str, at: datetime) -> None:
        if len(self._lanes) == 1:
            self._feed(self._layout.apps[0], text, at)
            return
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._route(f"{line}\n", at)
        if len(self._line) > MAX_OPEN:
            self._route(self._line, at)
            self._line = ""

    def _route(self, line: str, at: datetime) -> None:
        """Give a line to the container whose name stands in front of it."""
        prefix, colon, rest = line.partition(": ")
        main, *others = self._layout.apps
        if not colon or len(prefix) > _LONGEST_NAME:
            self._feed(main, line, at)
            return
        of = [name for name in others if prefix == name or prefix.startswith(f"{name}-")]
        self._feed(max(of, key=len, default=main), rest, at)

    def _feed(self, name: str, text: str, at: datetime) -> None:
        for each in self._lanes[name].feed(text.encode(errors="replace")):
            self._apply(name, each, at)

    def _apply(self, name: str, each: bytes | Mark, at: datetime) -> None:
        if isinstance(each, bytes):
            self._run_of(self._printing(name)).append(each, at)
            return
        if each.init is not None:
            self._init_ended(each.init, each.exit_code or 0)
        elif each.run is not None:
            self._init = None
            self.endings[name] = Ending(each.run)
            self._fresh(name)
        else:
            run = self.endings[name].run if name in self.endings else 1
            self.endings[name] = Ending(run, each.exit_code)
            self._run_of(name).finish(each.exit_code)

    def _init_ended(self, number: int, code: int) -> None:
        inits = self._layout.inits
        if number >= len(inits):
            return
        tries = self.endings[inits[number]].run if inits[number] in self.endings else 0
        self.endings[inits[number]] = Ending(tries + 1, code)
        self._run_of(inits[number]).finish(code)
        del self._runs[inits[number]]  # another try has a log of its own
        following = number if code else number + 1
        self._init = following if following < len(inits) else None

    def _printing(self, name: str) -> str:
        is_main = name == self._layout.apps[0]
        return self._layout.inits[self._init] if is_main and self._init is not None else name

    def _run_of(self, name: str) -> RunLog:
        """Return the log that a container prints to."""
        run = self._runs.get(name)
        if run is None:
            run = self._runs[name] = self._begin(name)
        return run

    def _fresh(self, name: str) -> None:
        """Begin a run; the log that nothing has been printed to is its own already."""
        run = self._runs.get(name)
        if run is not None and not run.end and not run.is_over:
            return
        if run is not None:
            run.finish()
        self._runs[name] = self._begin(name)
