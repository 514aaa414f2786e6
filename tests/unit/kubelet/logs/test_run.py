"""What is kept of one run's log, and how its parts are told."""

import asyncio
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from gp4u.kubelet.logs.run import RunLog, Stamper
from tests.virtual_loop import run_virtual

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def text_of(run: RunLog, start: int) -> bytes:
    """Return everything from an offset on."""
    found, at = b"", start
    while True:
        pieces, at = run.read(at, 7)
        if not pieces:
            return found
        found += b"".join(data for _, data in pieces)


@given(st.lists(st.binary(max_size=40)), st.integers(0, 20))
def test_the_newest_lines_are_those_of_the_whole_text(parts: list[bytes], tail: int) -> None:
    """`--tail` must not depend on how the log came in."""
    run = RunLog()
    for number, part in enumerate(parts):
        run.append(part, AT + timedelta(seconds=number))
    whole = b"".join(parts)
    lines = whole.split(b"\n")
    ends = lines[:-1] if whole.endswith(b"\n") else lines
    wanted = b"\n".join(ends[-tail:] if tail else []) + (b"\n" if whole.endswith(b"\n") else b"")
    if not whole or not tail:
        wanted = b""
    assert text_of(run, run.first(tail=tail)) == wanted
    assert text_of(run, run.first()) == whole


def test_since_comes_before_tail() -> None:
    """`--since --tail` is the newest lines among those since then."""
    run = RunLog()
    for number in range(4):
        run.append(b"%d\n" % number, AT + timedelta(seconds=number))
    since = AT + timedelta(seconds=2)
    assert text_of(run, run.first(since=since)) == b"2\n3\n"
    assert text_of(run, run.first(since=since, tail=3)) == b"2\n3\n"
    assert text_of(run, run.first(since=since, tail=1)) == b"3\n"
    assert text_of(run, run.first(since=AT + timedelta(days=1))) == b""


def test_the_newest_bytes_stay() -> None:
    """A workload that prints for ever must not fill the node's memory (S17)."""
    run = RunLog(most_bytes=10_000)
    for number in range(1000):
        run.append(b"%05d\n" % number * 10, AT + timedelta(seconds=number))
    assert run.held_bytes <= 10_000
    assert run.end == 60_000
    assert text_of(run, 0).endswith(b"00999\n")
    assert run.dropped + len(text_of(run, 0)) == run.end
    run.append(b"x" * 50_000, AT + timedelta(days=1))
    assert run.held_bytes <= 10_000
    assert run.end == 110_000


@given(st.lists(st.tuples(st.binary(max_size=30), st.integers(0, 3))))
def test_a_log_comes_back_from_disk_as_it_was(parts: list[tuple[bytes, int]]) -> None:
    """A restart of the node must not lose the log of a pod that has ended."""
    run, at = RunLog(), AT
    for data, seconds in parts:
        at += timedelta(seconds=seconds)
        run.append(data, at)
    run.finish(137)
    back = RunLog.load(run.dump())
    assert back.read(0) == run.read(0)
    assert (back.exit_code, back.is_over, back.end) == (137, True, run.end)


def test_a_damaged_file_is_an_empty_log() -> None:
    """A disk that was full in between must not stop the node."""
    assert RunLog.load(b"nonsense").end == 0
    assert RunLog.load(b"").is_over


@given(st.lists(st.sampled_from([b"a", b"b\n", b"\n", b"c\nd", b""])))
def test_each_line_has_one_stamp(parts: list[bytes]) -> None:
    """`--timestamps` puts the time in front of lines, not of the pieces that they came in."""
    stamped = b"".join(Stamper()((AT, part) for part in parts if part))
    whole = b"".join(parts)
    stamp = b"2026-01-02T03:04:05.000000000Z "
    lines = whole.split(b"\n")
    rest = lines.pop()
    wanted = b"".join(stamp + line + b"\n" for line in lines) + (stamp + rest if rest else b"")
    assert stamped == wanted


def test_a_follower_is_waited_for_and_nobody_else() -> None:
    """A market can be faster than a terminal: its lines must not be dropped before they are seen.

    The fastest follower counts, so that one who stopped reading holds up no other.
    """
    run_virtual(a_run_is_followed)


async def has_room(run: RunLog) -> bool:
    try:
        async with asyncio.timeout(1):
            await run.room()
    except TimeoutError:
        return False
    return True


async def a_run_is_followed() -> None:
    run = RunLog(most_bytes=10_000)
    run.append(b"x" * 8_000, AT)
    assert await has_room(run), "nobody follows"
    with run.followed(0), run.followed(0):
        assert not await has_room(run)
        run.read(0, 4_000)
        assert await has_room(run), "one of the two has read enough"
    run.append(b"x" * 8_000, AT + timedelta(days=1))
    assert await has_room(run), "both have left"
