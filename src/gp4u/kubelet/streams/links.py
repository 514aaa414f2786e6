"""A connection to a published port, as a `Link`: TCP, with TLS where the port is behind a URL."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from typing import Final

from gp4u.errors import Unavailable
from gp4u.providers.session import Link

CONNECT_S: Final = 10.0
READ_BYTES: Final = 64 * 1024
CLOSE_S: Final = 1.0


class TcpLink(Link):
    """A socket to `host:port`."""

    def __init__(
        self, where: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._where, self._reader, self._writer = where, reader, writer

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        within_s: float = CONNECT_S,
    ) -> TcpLink:
        """Connect; with `tls` the certificate is checked against `host`.

        Raises:
            Unavailable: it does not answer, or its certificate is not good.
        """
        where = f"{host}:{port}"
        try:
            async with asyncio.timeout(within_s):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=tls, limit=READ_BYTES
                )
        except TimeoutError:
            told = f"{where} did not answer within {within_s:.0f} s"
            raise Unavailable("tcp", "connect", told, sent=False) from None
        except OSError as error:
            raise Unavailable("tcp", "connect", f"{where}: {_why(error)}", sent=False) from error
        return cls(where, reader, writer)

    async def output(self) -> AsyncIterator[bytes]:
        """Yield what comes until it ends; see `Link`."""
        try:
            while data := await self._reader.read(READ_BYTES):
                yield data
        except OSError as error:
            raise self._broken(error) from error

    async def send(self, data: bytes) -> None:
        """Write, and return once there is room for more.

        Raises:
            Unavailable: the connection broke.
        """
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise self._broken(error) from error

    async def end_input(self) -> None:
        """Say that nothing more will come; TLS cannot say so without ending the connection."""
        try:
            if self._writer.can_write_eof():
                self._writer.write_eof()
        except OSError as error:
            raise self._broken(error) from error

    async def aclose(self) -> None:
        """Leave it; what was sent still goes out, if that is quick."""
        try:
            async with asyncio.timeout(CLOSE_S):
                self._writer.close()
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            pass
        finally:  # also where the wait is cut short: what has been closed already is left alone
            self._writer.transport.abort()

    def _broken(self, error: OSError) -> Unavailable:
        return Unavailable("tcp", "copy", f"{self._where}: {_why(error)}")


def _why(error: OSError) -> str:
    """Return the system's words; asyncio has its own for some of them, and TLS no number."""
    if isinstance(error, ssl.SSLError) or not error.errno or error.errno < 0:
        return error.strerror or str(error)
    return os.strerror(error.errno)
