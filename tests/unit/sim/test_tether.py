"""The tether: what it keeps of a command's output, and what it leaves of the command: nothing."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gp4u.sim import tether


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False  # gone before it was opened, or between opening and reading
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    while not is_so():  # noqa: ASYNC110 -- another process cannot set an event of ours
        await asyncio.sleep(0.005)


class Kept:
    """A command on a tether, as the simulator holds it."""

    def __init__(self, keeper: asyncio.subprocess.Process, log: Path, room: Path) -> None:
        self.keeper, self.log, self.room = keeper, log, room

    async def report(self) -> tether.Report:
        assert self.keeper.stdout is not None
        report: tether.Report = json.loads(await self.keeper.stdout.readline())
        return report

    async def printed(self, lines: int) -> list[str]:
        """Wait until so many lines are in the log, and return them all."""
        async with asyncio.timeout(10):
            await until(lambda: self.log.read_text().count("\n") >= lines)
        return self.log.read_text().splitlines()

    async def ended(self) -> int:
        async with asyncio.timeout(10):
            return await self.keeper.wait()

    def let_go(self) -> None:
        """Do what the kernel does to the pipe of a simulator that dies."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()


@asynccontextmanager
async def kept(*argv: str, grace_s: float = 5.0, **env: str) -> AsyncIterator[Kept]:
    """Start a command on a tether; end both with the block."""
    room = Path(tempfile.mkdtemp(prefix="gp4u-test-"))
    (room / "work").mkdir()
    with (room / "log").open("w+b") as log:
        keeper = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", tether.__file__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(log.fileno(),),
            start_new_session=True,
        )
        assert keeper.stdin is not None
        order: tether.Order = {
            "argv": list(argv),
            "env": {"PATH": os.environ["PATH"]} | env,
            "directory": str(room / "work"),
            "own_root": False,
            "log_fd": log.fileno(),
            "grace_s": grace_s,
        }
        keeper.stdin.write(json.dumps(order).encode() + b"\n")
        each = Kept(keeper, room / "log", room / "work")
        try:
            yield each
        finally:
            each.let_go()
            await keeper.wait()
            shutil.rmtree(room)


async def test_both_streams_are_kept_and_the_code_is_passed_on() -> None:
    """What a container's log and exit code are made of."""
    async with kept("sh", "-c", "echo one; echo two >&2; exit 7") as it:
        assert "pid" in await it.report()
        assert await it.ended() == 7
        assert it.log.read_text() == "one\ntwo\n"


async def test_a_signalled_command_ends_with_128_and_the_signal() -> None:
    """Docker reports a killed process as 137; whoever reads exit codes knows that form."""
    async with kept("sh", "-c", "kill -KILL $$") as it:
        assert await it.ended() == 137


async def test_only_the_given_environment_and_directory_reach_the_command() -> None:
    """The simulator's own variables may hold keys."""
    async with kept("env", COLOUR="blue") as it:
        assert await it.ended() == 0
        assert sorted(it.log.read_text().splitlines()) == [
            "COLOUR=blue",
            f"PATH={os.environ['PATH']}",
        ]


@pytest.mark.parametrize("argv", [("no-such-command",), ("/no/such/file",), ("a\0b",)])
async def test_what_cannot_be_executed_is_reported(argv: tuple[str, ...]) -> None:
    """The simulator must tell a command that failed to start from one that ended."""
    async with kept(*argv) as it:
        report = await it.report()
        assert "pid" not in report
        assert report["error"]
        assert await it.ended() == 127
        assert not it.room.exists()


async def test_letting_go_ends_the_command_politely() -> None:
    """SIGTERM first: a program that cleans up must get the chance."""
    script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done"
    async with kept("sh", "-c", script) as it:
        await it.printed(1)
        it.let_go()
        assert await it.ended() == 0
        assert it.log.read_text().endswith("bye\n")
        assert not it.room.exists()


async def test_a_command_that_ignores_sigterm_is_killed_after_the_grace() -> None:
    """No program may outstay its instance."""
    script = "trap '' TERM; echo up; while :; do sleep 0.01; done"
    async with kept("sh", "-c", script, grace_s=0.1) as it:
        await it.printed(1)
        it.let_go()
        assert await it.ended() == 137


@pytest.mark.parametrize("last", ["exit 0", "exec sleep 600"])
async def test_grandchildren_in_sessions_of_their_own_end_too(last: str) -> None:
    """A daemon leaves group and session, and must go with its container all the same."""
    daemon = "setsid sh -c 'trap \"\" TERM HUP; echo $$; exec sleep 600' &"
    async with kept("sh", "-c", f"{daemon} sleep 0.05; echo up; {last}", grace_s=0.1) as it:
        pid = int((await it.printed(2))[0])
        it.let_go()
        await it.ended()
        assert not alive(pid)


async def test_a_killed_tether_takes_its_command_along() -> None:
    """Somebody may shoot the tether itself; the command must not become nobody's."""
    async with kept("sleep", "600") as it:
        pid = (await it.report())["pid"]
        it.keeper.send_signal(signal.SIGKILL)
        await it.ended()
        async with asyncio.timeout(10):
            await until(lambda: not alive(pid))


async def test_sigterm_to_the_tether_ends_the_command() -> None:
    """A machine that shuts down sends SIGTERM to everything."""
    async with kept("sleep", "600") as it:
        pid = (await it.report())["pid"]
        it.keeper.terminate()
        assert await it.ended() == 143
        assert not alive(pid)


def test_the_log_keeps_the_newest_lines_within_its_limit(tmp_path: Path) -> None:
    """A chatty program must not fill the disk, and its last words matter most."""
    path = tmp_path / "log"
    with path.open("w+b") as file:
        log = tether.Log(file.fileno(), limit=1000)
        for number in range(500):
            log.append(b"line %03d\n" % number)
            assert path.stat().st_size <= 1000
    lines = path.read_text().splitlines()
    first = 500 - len(lines)
    assert len(lines) >= 50
    assert lines == [f"line {number:03d}" for number in range(first, 500)]
