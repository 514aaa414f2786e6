"""One container's log as a market gives it, taken apart into runs.

Init containers run before a pod's main one, in its place, so all of them print one text. What is
whose, and where a run ends and the next begins, is told by our bootstrap's marks. Pure: fetching
the text is `store.py`'s business.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable
from datetime import datetime

from msgspec import Struct

from gp4u.kubelet.logs.overlap import Mark, Overlap, Sections
from gp4u.kubelet.logs.run import RunLog

Begin = Callable[[str], RunLog]
"""Starts the log of one more run of the container of this name."""


class Layout(Struct, frozen=True):
    """Which containers of a pod print one text."""

    app: str
    """The ordinary one."""
    inits: tuple[str, ...] = ()
    """In the order in which they run before it, in its place."""


class Ending(Struct, frozen=True):
    """The newest run of a container that was seen in a log, and how it ended."""

    run: int
    """Counted by the machine, from 1; it begins anew when the machine is started anew."""
    exit_code: int | None = None
    """None: it has not ended yet."""


class Source:
    """The log of one container of one rental's machine, as it comes."""

    def __init__(self, layout: Layout, begin: Begin) -> None:
        self._layout, self._begin = layout, begin
        self._overlap = Overlap()
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._sections = Sections()
        self._runs: dict[str, RunLog] = {}
        self._init: int | None = None
        """Which init container prints; None: the ordinary one does."""
        self.endings: dict[str, Ending] = {}
        """Container to its newest run, as far as marks were seen."""
        if layout.inits:
            self._init = 0
        else:
            self._run_of(layout.app)

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
        elif self._sections.has_whole_mark:
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
        self._flush(at)
        for run in self._runs.values():
            run.finish()
        self._overlap = Overlap()  # of no more use, and the largest part

    def _flush(self, at: datetime) -> None:
        for each in self._sections.flush():
            self._apply(each, at)

    def _take(self, text: str, at: datetime) -> None:
        for each in self._sections.feed(text.encode(errors="replace")):
            self._apply(each, at)

    def _apply(self, each: bytes | Mark, at: datetime) -> None:
        name = self._layout.app
        if isinstance(each, bytes):
            inits = self._layout.inits
            printing = name if self._init is None else inits[self._init]
            self._run_of(printing).append(each, at)
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
