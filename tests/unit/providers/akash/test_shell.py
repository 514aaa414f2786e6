"""A command with its streams open, frame by frame."""

from __future__ import annotations

import asyncio
import subprocess
from base64 import b64decode
from collections import deque
from contextlib import AsyncExitStack
from urllib.parse import parse_qs, urlsplit

import pytest

from gp4u.errors import InstanceAbsent, Malformed, ProviderError, Refused, Unavailable
from gp4u.providers.akash.dial import Closed
from gp4u.providers.akash.shell import STDIN_CHUNK, LeaseSession, session_path
from gp4u.providers.akash.wire import LeaseId
from gp4u.providers.session import Stream

LEASE = LeaseId(dseq="7", gseq=1, oseq=1, provider="akash1host")


class Line:
    """A connection whose other side has said all that it will say."""

    def __init__(self, *messages: bytes | str, end: Exception | None = None) -> None:
        self.messages, self.end = deque(messages), end or Closed()
        self.sent: list[bytes] = []

    async def send(self, message: bytes) -> None:
        self.sent.append(message)

    async def receive(self) -> bytes | str:
        if not self.messages:
            raise self.end
        return self.messages.popleft()


def session(line: Line, *, tty: bool = False) -> LeaseSession:
    """Return a session over a connection."""
    return LeaseSession(line, AsyncExitStack(), tty=tty)


async def test_outputs_are_told_apart_and_the_result_is_the_end() -> None:
    """What comes after it is nobody's."""
    line = Line(b"dout", b"eerr", b"\xc8later", b'f{"exit_code": 3}', b"dmore")
    open_one = session(line)
    heard = [piece async for piece in open_one.output()]
    assert heard == [(Stream.OUT, b"out"), (Stream.ERR, b"err")]
    assert await open_one.exit_code() == 3
    await open_one.aclose()


async def test_the_code_can_be_had_without_listening() -> None:
    """A probe wants nothing else."""
    assert await session(Line(b"dout", b'f{"exit_code": 0}')).exit_code() == 0


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (Line(b"dhalf"), Unavailable),
        (Line(end=ConnectionResetError()), Unavailable),
        (Line(end=Closed(4001, "lease not found")), InstanceAbsent),
        (Line(end=Closed(4000, "internal")), Unavailable),
        (Line(b"gno such service"), Refused),
        (Line(b'f{"message": "oops"}'), Refused),
        (Line(b"fnot JSON"), Malformed),
        (Line("text"), Malformed),
        (Line(b""), Malformed),
    ],
)
async def test_an_end_without_a_code_is_never_a_success(
    line: Line, kind: type[ProviderError]
) -> None:
    """It may have run, or not: whoever asked must hear that nobody knows."""
    with pytest.raises(kind):
        await session(line).exit_code()


async def test_who_waits_for_the_code_hears_of_a_broken_connection() -> None:
    """Though another task is the one that reads."""
    open_one = session(Line(b"dhalf"))
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_outcome(open_one))
        with pytest.raises(Unavailable):
            _ = [piece async for piece in open_one.output()]
        assert isinstance(await waiting, Unavailable)


async def _outcome(open_one: LeaseSession) -> int | ProviderError:
    await asyncio.sleep(0)
    try:
        return await open_one.exit_code()
    except ProviderError as error:
        return error


async def test_a_terminal_is_told_sizes_and_keys_as_they_are() -> None:
    """Columns first, as the gateway reads them."""
    line = Line()
    open_one = session(line, tty=True)
    await open_one.resize(300, 45)
    await open_one.send(b"ls\n")
    await open_one.end_input()
    assert line.sent == [b"i\x01\x2c\x00\x2d", b"hls\n", b"h\x04"]
    await session(line).resize(1, 1)
    assert len(line.sent) == 3, "without a terminal there is no size"


async def test_without_a_terminal_input_travels_in_lines_with_an_end() -> None:
    """The frames have none of their own."""
    line = Line()
    open_one = session(line)
    data = bytes(range(256)) * 100
    await open_one.send(data)
    await open_one.end_input()
    *pieces, last = line.sent
    assert last == b"h.\n"
    assert all(len(piece) < STDIN_CHUNK * 1.4 for piece in pieces)
    assert b"".join(b64decode(piece[1:]) for piece in pieces) == data


async def _typed(data: bytes) -> bytes:
    """Return what the host hands to the script where this is typed and ended."""
    line = Line()
    open_one = session(line)
    await open_one.send(data)
    await open_one.end_input()
    return b"".join(piece[1:] for piece in line.sent)


def _argv(*command: str) -> list[str]:
    """Return what the host is asked to run."""
    query = urlsplit(session_path(LEASE, "app", command, tty=False)).query
    params = parse_qs(query, keep_blank_values=True)
    assert (params["stdin"], params["tty"]) == (["1"], ["0"])
    return [params[f"cmd{n}"][0] for n in range(sum(name.startswith("cmd") for name in params))]


@pytest.mark.parametrize("shell", ["sh", "bash", "busybox sh"])
def test_the_script_before_a_command_ends_its_input_and_is_ended_by_it(shell: str) -> None:
    """In every shell that an image may have; and the command's words are its own."""
    sh, *words = _argv("sh", "-c", 'cat; echo "$1"; exit 3', "x", "a 'b'")
    assert sh == "sh"
    typed = asyncio.run(_typed(b"some\x00bytes\n"))
    done = subprocess.run([*shell.split(), *words], input=typed, capture_output=True, timeout=20)
    assert (done.stdout, done.returncode) == (b"some\x00bytes\na 'b'\n", 3)

    _, *words = _argv("true")
    with subprocess.Popen([*shell.split(), *words], stdin=subprocess.PIPE) as open_input:
        assert open_input.wait(timeout=20) == 0, "it waited for an input that nobody sends"
