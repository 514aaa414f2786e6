"""Where the logs of runs are kept: in memory, and on disk when they are over.

Two runs of each container are kept, the newest and the one before it. Memory and disk are bounded
for all logs together; what has been read least lately goes first, on disk what is oldest. A folder
survives this process, so that the log of a pod that has ended outlives a restart. What is printed,
and when a run is over, is told by `store.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from gp4u.kubelet.logs.run import RUN_BYTES, RunLog

TOTAL_BYTES: Final = 64 * 1024 * 1024
"""Of all logs in memory."""
SPOOL_BYTES: Final = 1024 * 1024 * 1024
"""Of all logs on disk."""
RUNS_KEPT: Final = 2
"""The newest run, and the one that `previous` shows."""
_LOOK_ROUND_BYTES: Final = 256 * 1024
_SPOOLED: Final = re.compile(r"([0-9A-Za-z-]{1,64})_([0-9a-z-]{1,63})_(\d{1,9})\.log")


class _Kept:
    """One run: in memory, on disk, or both."""

    def __init__(self, number: int, run: RunLog | None, path: Path | None = None) -> None:
        self.number, self.run, self.path = number, run, path
        self.used = 0

    def discard(self) -> None:
        """Take it from disk."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            self.path = None


class Shelf:
    """The logs of all containers of a process."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        run_bytes: int = RUN_BYTES,
        total_bytes: int = TOTAL_BYTES,
        spool_bytes: int = SPOOL_BYTES,
    ) -> None:
        """`directory` is ours alone; it is made where it is missing, and read once, here."""
        self._directory = directory
        self._run_bytes, self._total_bytes = run_bytes, total_bytes
        self._spool_bytes = spool_bytes
        self._records: dict[tuple[str, str], list[_Kept]] = {}
        self._uses = self._unaccounted = 0
        if directory is not None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._find_spooled(directory)

    @property
    def uids(self) -> set[str]:
        """The pods of which there is something."""
        return {uid for uid, _ in self._records}

    def runs(self, uid: str, container: str) -> Sequence[RunLog]:
        """Return the runs of a container that are kept, the newest last."""
        return [self._loaded(kept) for kept in self._records.get((uid, container), ())]

    def begin(self, uid: str, container: str) -> RunLog:
        """Begin the log of one more run of a container."""
        record = self._records.setdefault((uid, container), [])
        run = RunLog(most_bytes=self._run_bytes)
        record.append(_Kept(record[-1].number + 1 if record else 1, run))
        for kept in record[:-RUNS_KEPT]:
            kept.discard()
        del record[:-RUNS_KEPT]
        return run

    def forget(self, uid: str) -> None:
        """Drop everything of a pod."""
        for place in [each for each in self._records if each[0] == uid]:
            for kept in self._records.pop(place):
                kept.discard()

    def account(self, grown_bytes: int) -> None:
        """Be told that logs have grown; now and then it is seen whether that is too much."""
        self._unaccounted += grown_bytes
        if self._unaccounted < min(_LOOK_ROUND_BYTES, self._total_bytes // 8):
            return
        self._unaccounted = 0
        in_memory = [
            (kept.path is None, kept.used, kept, kept.run)
            for record in self._records.values()
            for kept in record
            if kept.run is not None
        ]
        over = sum(run.held_bytes for *_, run in in_memory) - self._total_bytes
        for _, _, kept, run in sorted(in_memory, key=lambda each: each[:2]):
            if over <= 0:
                return
            before = run.held_bytes
            if kept.path is not None:
                kept.run = None
                over -= before
            else:
                run.shrink(max(before // 2, before - over))
                over -= before - run.held_bytes

    def spool(self, uid: str) -> None:
        """Put on disk what is over of a pod. Some milliseconds: a run is a few MiB at most."""
        if self._directory is None:
            return
        for (of, container), record in self._records.items():
            for kept in record if of == uid else ():
                path = self._directory / f"{uid}_{container}_{kept.number}.log"
                run = kept.run
                if run is None or not run.is_over or not _SPOOLED.fullmatch(path.name):
                    continue
                try:
                    _write(path, run.dump())
                except OSError as error:
                    # A full disk loses no log: it stays in memory, as without a folder.
                    structlog.get_logger().warning("log_not_spooled", error=type(error).__name__)
                    continue
                kept.path, kept.run = path, None
        self._trim_spool()

    def _loaded(self, kept: _Kept) -> RunLog:
        self._uses += 1
        kept.used = self._uses
        if kept.run is None:
            block = b""
            with suppress(OSError):  # somebody has tidied up: then it is empty
                block = kept.path.read_bytes() if kept.path is not None else b""
            kept.run = RunLog.load(block, most_bytes=self._run_bytes)
            self.account(len(block))
        return kept.run

    def _find_spooled(self, directory: Path) -> None:
        for path in sorted(directory.glob("*.log"), key=_number_in):
            found = _SPOOLED.fullmatch(path.name)
            if found is None:
                continue
            uid, container, number = found.groups()
            self._records.setdefault((uid, container), []).append(_Kept(int(number), None, path))

    def _trim_spool(self) -> None:
        """Delete the oldest logs where there are too many on disk."""
        sized: list[tuple[float, int, _Kept]] = []
        for kept in (kept for record in self._records.values() for kept in record):
            with suppress(OSError):
                if kept.path is not None:
                    about = kept.path.stat()
                    sized.append((about.st_mtime, about.st_size, kept))
        over = sum(size for _, size, _ in sized) - self._spool_bytes
        for _, size, kept in sorted(sized, key=lambda each: each[0]):
            if over <= 0:
                return
            kept.discard()
            kept.run = RunLog.load(b"")
            over -= size


def _number_in(path: Path) -> int:
    found = _SPOOLED.fullmatch(path.name)
    return int(found[3]) if found else 0


def _write(path: Path, block: bytes) -> None:
    """Write a file as a whole, or not at all; only we may read it."""
    part = path.with_suffix(".part")
    part.touch(mode=0o600)
    part.write_bytes(block)
    part.replace(path)
