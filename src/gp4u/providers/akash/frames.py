"""What is said over a host's gateway: the frames of a shell, and what an end means; bytes, no I/O.

A frame is a message whose first byte is its kind; what follows is data. The connections that they
travel on are `dial.py`'s business, commands as a whole `gateway.py`'s and `shell.py`'s.

Source: provider:gateway/rest and chain-sdk:go/provider, 2026-06 (docs/reference/akash.md).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from gp4u.errors import Denied, InstanceAbsent, Malformed, Refused, Unavailable
from gp4u.providers.akash.dial import Closed, Declined
from gp4u.providers.akash.wire import SLUG
from gp4u.providers.contract import Finished
from gp4u.providers.http import UNREADABLE, harmless

MAX_OUTPUT: Final = 32 << 20
"""Bytes that are taken of a command's output, or of a log."""
LEASE_NOT_FOUND: Final = 4001


class Frame(IntEnum):
    """The first byte of a shell message."""

    STDOUT = 100
    STDERR = 101
    RESULT = 102
    FAILURE = 103
    STDIN = 104
    RESIZE = 105
    """Columns and rows, two bytes each, the greater one first."""


class _Told(msgspec.Struct):
    exit_code: int | None = None
    message: str | None = None


class Result(msgspec.Struct, frozen=True):
    """How a command ended: with a code, or not at all."""

    exit_code: int | None
    failure: str = ""
    """Why it could not be run."""

    @classmethod
    def of(cls, message: bytes) -> Result:
        """Read a frame of the kind `RESULT` or `FAILURE`.

        Raises:
            Malformed: it cannot be read.
        """
        body = message[1:]
        if message[0] == Frame.FAILURE:
            return cls(None, harmless(body.decode("utf-8", "replace")) or "no reason told")
        try:
            told = msgspec.json.decode(body, type=_Told)
        except UNREADABLE as error:
            raise Malformed(SLUG, "exec", "its result cannot be read") from error
        if told.exit_code is None:
            return cls(None, harmless(told.message or "") or "ended without an exit code")
        return cls(told.exit_code)

    def code(self) -> int:
        """Return the exit code.

        Raises:
            Refused: it could not be run.
        """
        if self.exit_code is None:
            raise Refused(SLUG, "exec", self.failure, code="exec_failed")
        return self.exit_code


class Shell:
    """What came out of a command so far; bytes in, no I/O."""

    def __init__(self) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self.exit_code: int | None = None
        """None until the host said how it ended."""
        self.failure = ""
        """Why it could not be run."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.exit_code is not None or bool(self.failure)

    def feed(self, message: bytes | str) -> None:
        """Take in a message.

        Raises:
            Malformed: it is no frame, or there is more output than anybody wants.
        """
        if isinstance(message, str) or not message:
            raise Malformed(SLUG, "exec", "a message that is no frame")
        body = message[1:]
        match message[0]:
            case Frame.STDOUT:
                self.stdout += body
            case Frame.STDERR:
                self.stderr += body
            case Frame.RESULT | Frame.FAILURE:
                result = Result.of(message)
                self.exit_code, self.failure = result.exit_code, result.failure
            case _:
                pass  # a kind that came later than this program
        if len(self.stdout) + len(self.stderr) > MAX_OUTPUT:
            raise Malformed(SLUG, "exec", f"over {MAX_OUTPUT} bytes of output")

    def finished(self) -> Finished:
        """Return how it ended.

        Raises:
            Refused: it could not be run.
            Unavailable: nobody said how it ended; it may have run.
        """
        if not self.is_over:
            raise Unavailable(SLUG, "exec", "the connection ended without a result")
        code = Result(self.exit_code, self.failure).code()
        return Finished(exit_code=code, stdout=bytes(self.stdout), stderr=bytes(self.stderr))


def explain(operation: str, ended: Closed | Declined) -> None:
    """Raise what an end means; an end without a meaning is only an end."""
    text = harmless(str(ended), 200)
    if isinstance(ended, Closed):
        if ended.code == LEASE_NOT_FOUND:
            raise InstanceAbsent(SLUG, operation, text) from ended
        if ended.code is not None and ended.code >= 4000:
            raise Unavailable(SLUG, operation, text) from ended
        return
    if ended.status in (401, 403):
        raise Denied(SLUG, operation, text) from ended
    if ended.status == 404:
        raise InstanceAbsent(SLUG, operation, text) from ended
    if 400 <= ended.status < 500:
        raise Refused(SLUG, operation, text, code=str(ended.status)) from ended
    if 300 <= ended.status < 400:
        raise Malformed(SLUG, operation, "the host's address leads on") from ended
    raise Unavailable(SLUG, operation, text) from ended
