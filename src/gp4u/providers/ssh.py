"""The way into a rented machine that only has SSH: sessions, and connections to its ports.

What this file hides: keys and trust. A key is made for each rental out of a secret of ours and the
rental's own name, so that it need not be kept: whoever holds both can make it again. A machine's
host key is believed the first time and no other one after that (`pins`). An address is foreign
text: it is connected to only where `may_connect` allows.

One connection serves everything that is open into one instance. A fresh key may take its time to
reach the machine, so a refusal is met with patience, within bounds. The library is loaded when it
is first needed; it comes with the extra `ssh`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gp4u.errors import BadInput, Malformed, ProviderError, Refused, Unavailable
from gp4u.model import RentalKey
from gp4u.providers.http import addresses_of, harmless, may_connect
from gp4u.providers.session import Link, Session, Stream

if TYPE_CHECKING:
    import asyncssh

CONNECT_S: Final = 15.0
PATIENCE_S: Final = 90.0
"""How long a key may take to be known where it was attached."""
RETRY_S: Final = 3.0
KEEPALIVE_S: Final = 30
MAX_CONNECTIONS: Final = 64
HIGH_WATER: Final = 1 << 20
"""Bytes that wait for a reader before the other side is told to stop; the rest is its window's."""
_CONTEXT: Final = b"gp4u ssh client key v1\0"


class Address(msgspec.Struct, frozen=True):
    """Where a machine's SSH server may be reached."""

    host: str
    port: int


class ClientKey(msgspec.Struct, frozen=True):
    """What we show to one machine."""

    private: Any
    """As the library has it."""
    public: str
    """The line that is given to a market."""


class Ssh:
    """Connections into instances of one market."""

    def __init__(
        self,
        slug: str,
        *,
        secret: bytes,
        pins: MutableMapping[str, str] | None = None,
        allow_loopback: bool = False,
        user: str = "root",
    ) -> None:
        """`pins` keeps instance id -> host key; a mapping that lasts makes the trust last."""
        self._slug, self._secret, self._user = slug, secret, user
        self._pins = {} if pins is None else pins
        self._allow_loopback = allow_loopback
        self._open: OrderedDict[str, asyncssh.SSHClientConnection] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}

    def client_key(self, key: RentalKey) -> ClientKey:
        """Return the key of a rental: the same one each time.

        Raises:
            Refused: the extra `ssh` is not installed.
        """
        library = self._library("exec")
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        seed = hmac.new(self._secret, _CONTEXT + key.encode(), hashlib.sha256).digest()
        text = Ed25519PrivateKey.from_private_bytes(seed).private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        )
        private = library.import_private_key(text)
        public = private.export_public_key("openssh").decode("ascii").strip()
        return ClientKey(private, f"{public} {key}")

    def is_open(self, instance_id: str) -> bool:
        """Whether there is a connection that can be used at once."""
        found = self._open.get(instance_id)
        return found is not None and not found.is_closed()

    async def session(
        self,
        instance_id: str,
        key: RentalKey,
        addresses: Sequence[Address],
        command: str,
        *,
        tty: bool,
    ) -> Session:
        """Start a command, as its login shell reads it.

        Raises:
            Refused: the extra is missing, or the machine declined.
            Malformed: no address is one that we may follow, or its host key is another one.
            Unavailable: it cannot be reached; nothing was started.
        """
        library = self._library("exec")
        connection: Any = await self._connected("exec", instance_id, key, addresses)
        session = _SshSession(self._slug)
        try:
            async with asyncio.timeout(CONNECT_S):
                await connection.create_session(
                    lambda: session,
                    command,
                    term_type="xterm-256color" if tty else None,
                    encoding=None,
                )
        except library.ChannelOpenError as error:
            # The connection is well, and others of ours are open over it.
            told = harmless(error.reason, 120)
            raise Unavailable(self._slug, "exec", f"by SSH: {told}") from error
        except (library.Error, OSError, TimeoutError) as error:
            self._forget(instance_id, connection)
            raise self._unavailable("exec", error) from error
        return session

    async def link(
        self, instance_id: str, key: RentalKey, addresses: Sequence[Address], port: int
    ) -> Link:
        """Connect to a port inside.

        Raises:
            As `session`; Unavailable also where nothing listens on the port.
        """
        library = self._library("port-forward")
        connection: Any = await self._connected("port-forward", instance_id, key, addresses)
        link = _SshLink(self._slug)
        try:
            async with asyncio.timeout(CONNECT_S):
                await connection.create_connection(lambda: link, "127.0.0.1", port)
        except library.ChannelOpenError as error:
            told = harmless(error.reason, 120)
            raise Unavailable(self._slug, "port-forward", f"port {port}: {told}") from error
        except (library.Error, OSError, TimeoutError) as error:
            self._forget(instance_id, connection)
            raise self._unavailable("port-forward", error) from error
        return link

    def forget(self, instance_id: str) -> None:
        """Give up what is open into an instance that is gone, and what was believed of it."""
        connection = self._open.pop(instance_id, None)
        if connection is not None:
            connection.abort()
        with suppress(BadInput):  # their file is of no use: no reason why a release should fail
            self._pins.pop(instance_id, None)
        self._locks.pop(instance_id, None)

    async def aclose(self) -> None:
        """Close every connection."""
        while self._open:
            _, connection = self._open.popitem()
            connection.abort()
            with suppress(Exception):
                await connection.wait_closed()

    def _library(self, operation: str) -> Any:
        try:
            import asyncssh
        except ImportError as error:
            text = "needs SSH: install the extra with `pip install 'gp4u[ssh]'`"
            raise Refused(self._slug, operation, text, code="no_ssh") from error
        return asyncssh

    async def _connected(
        self, operation: str, instance_id: str, key: RentalKey, addresses: Sequence[Address]
    ) -> asyncssh.SSHClientConnection:
        lock = self._locks.setdefault(instance_id, asyncio.Lock())
        async with lock:
            found = self._open.get(instance_id)
            if found is not None and not found.is_closed():
                self._open.move_to_end(instance_id)
                return found
            made = await self._patiently(operation, instance_id, key, addresses)
            self._open[instance_id] = made
            while len(self._open) > MAX_CONNECTIONS:
                oldest, connection = self._open.popitem(last=False)
                self._locks.pop(oldest, None)
                connection.abort()
            return made

    async def _patiently(
        self, operation: str, instance_id: str, key: RentalKey, addresses: Sequence[Address]
    ) -> asyncssh.SSHClientConnection:
        """Try every address, and again while the machine does not know the key yet."""
        library = self._library(operation)
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        if not addresses:
            raise Unavailable(self._slug, operation, "the machine tells no address of its SSH")
        client = self.client_key(key)
        while True:
            trouble: ProviderError | None = None
            unknown = False
            for address in addresses:
                try:
                    return await self._dialled(operation, instance_id, client, address)
                except library.PermissionDenied as error:
                    unknown = True
                    trouble = Refused(
                        self._slug, operation, "the machine does not know our key", code="ssh_key"
                    )
                    trouble.__cause__ = error
                except library.HostKeyNotVerifiable as error:
                    text = "the machine's host key is not the one that it had"
                    raise Malformed(self._slug, operation, text) from error
                except ProviderError as error:  # its name or address leads nowhere
                    trouble = trouble or error
                except (library.Error, OSError, TimeoutError) as error:
                    trouble = trouble or self._unavailable(operation, error)
            if not unknown or loop.time() >= until:
                raise trouble or Unavailable(self._slug, operation, "cannot be reached")
            await asyncio.sleep(RETRY_S)

    async def _dialled(
        self, operation: str, instance_id: str, client: ClientKey, address: Address
    ) -> asyncssh.SSHClientConnection:
        library = self._library(operation)
        checked = await self._checked(operation, address)
        pinned = self._pins.get(instance_id)
        seen: list[str] = []

        class Client(library.SSHClient):  # type: ignore[misc, name-defined]  # loaded when needed
            """Judges the host key."""

            def validate_host_public_key(
                self, host: str, addr: str, port: int, key: asyncssh.SSHKey
            ) -> bool:
                del host, addr, port
                shown = key.export_public_key("openssh").decode("ascii").strip()
                seen.append(shown)
                return pinned is None or hmac.compare_digest(shown, pinned)

        async with asyncio.timeout(CONNECT_S):
            connection: asyncssh.SSHClientConnection = await library.connect(
                checked,
                address.port,
                client_factory=Client,
                username=self._user,
                client_keys=[client.private],
                known_hosts=([], [], []),  # trusts nobody by itself, so that we are asked
                config=None,
                agent_path=None,
                preferred_auth="publickey",
                keepalive_interval=KEEPALIVE_S,
                compression_algs=None,
            )
        if pinned is None and seen:
            try:
                self._pins[instance_id] = seen[-1]
            except BadInput:
                connection.abort()
                raise
        return connection

    async def _checked(self, operation: str, address: Address) -> str:
        """Return an address of a name that may be connected to."""
        try:
            async with asyncio.timeout(CONNECT_S):
                found = await addresses_of(address.host, address.port)
        except (OSError, ValueError, TimeoutError) as error:
            text = "the machine's name has no address"
            raise Unavailable(self._slug, operation, text, sent=False) from error
        if not all(may_connect(each, allow_loopback=self._allow_loopback) for each in found):
            raise Malformed(self._slug, operation, "the machine's address is not a public one")
        return str(found[0])

    def _forget(self, instance_id: str, connection: asyncssh.SSHClientConnection) -> None:
        if self._open.get(instance_id) is connection:
            del self._open[instance_id]
        connection.abort()

    def _unavailable(self, operation: str, error: BaseException) -> ProviderError:
        told = harmless(str(error), 160) or type(error).__name__
        return Unavailable(self._slug, operation, f"by SSH: {told}")


class _Channel:
    """What a session and a link share: pieces that wait for a reader, and room to write.

    The library calls the methods by its own names; it does not ask for a class of its own, which
    could be named here only by loading it.
    """

    def __init__(self, slug: str, operation: str) -> None:
        self._slug, self._operation = slug, operation
        self._channel: Any = None
        self._pieces: deque[tuple[Stream, bytes]] = deque()
        self._waiting = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._over = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None

    def connection_made(self, chan: Any) -> None:
        """The channel is there."""
        self._channel = chan

    def xon_xoff_requested(self, client_can_do: bool) -> None:
        """Nothing to do: what is typed passes as it is."""

    def session_started(self) -> None:
        """Nothing to do: whoever asked for it is told by the library."""

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Keep a piece; what nobody reads makes the other side wait."""
        self._pieces.append((Stream.OUT if datatype is None else Stream.ERR, data))
        self._waiting += len(data)
        if self._waiting > HIGH_WATER:
            self._channel.pause_reading()
        self._changed.set()

    def eof_received(self) -> bool:
        """Its output has ended; ours may go on."""
        self._ended = True
        self._changed.set()
        return True

    def pause_writing(self) -> None:
        """There is no room for more."""
        self._room.clear()

    def resume_writing(self) -> None:
        """There is room again."""
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self._error = exc
        self._ended = True
        for event in (self._changed, self._room, self._over):
            event.set()

    async def pieces(self) -> AsyncIterator[tuple[Stream, bytes]]:
        """Yield what comes until it ends."""
        while True:
            while self._pieces:
                stream, data = self._pieces.popleft()
                self._waiting -= len(data)
                if self._waiting <= HIGH_WATER // 2 and not self._over.is_set():
                    self._channel.resume_reading()
                yield stream, data
            if self._ended:
                break
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._broken() from self._error

    async def send(self, data: bytes) -> None:
        """Write, once there is room; what comes too late is dropped, and reading tells why."""
        await self._room.wait()
        if not self._channel.is_closing():
            with suppress(BrokenPipeError):
                self._channel.write(data)

    async def end_input(self) -> None:
        """Say that nothing more will be written."""
        if not self._channel.is_closing():
            self._channel.write_eof()

    async def aclose(self) -> None:
        """Give it up, without waiting for the other side."""
        if self._channel is not None and not self._over.is_set():
            self._channel.close()

    def _broken(self) -> Unavailable:
        told = harmless(str(self._error), 160) if self._error is not None else ""
        return Unavailable(self._slug, self._operation, told or "the connection broke")


class _SshSession(_Channel, Session):
    """A command."""

    def __init__(self, slug: str) -> None:
        super().__init__(slug, "exec")
        self._code: int | None = None

    def exit_status_received(self, status: int) -> None:
        """It ended by itself."""
        self._code = status & 0xFF

    def exit_signal_received(
        self,
        signal: str,
        core_dumped: bool,
        msg: str,
        lang: str,
    ) -> None:
        """It was killed."""
        del core_dumped, msg, lang
        self._code = 128 + _SIGNALS.get(signal, 0)

    def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        return self.pieces()

    async def resize(self, columns: int, rows: int) -> None:
        if not self._channel.is_closing():
            self._channel.change_terminal_size(columns, rows)

    async def exit_code(self) -> int:
        await self._over.wait()
        if self._code is None:
            raise self._broken() from self._error
        return self._code

    async def aclose(self) -> None:
        if self._channel is not None and self._code is None and not self._channel.is_closing():
            with suppress(OSError):
                self._channel.kill()  # a server that knows signals ends it
        await super().aclose()


class _SshLink(_Channel, Link):
    """A connection to a port."""

    def __init__(self, slug: str) -> None:
        super().__init__(slug, "port-forward")

    async def output(self) -> AsyncIterator[bytes]:
        async for _, data in self.pieces():
            yield data


_SIGNALS: Final = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8,
    "KILL": 9, "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15,
}  # fmt: skip
"""By the names of RFC 4254, 6.9, and those that OpenSSH adds; Linux numbers."""
