"""The ways into a pod's container: a command, what it prints, a port.

Where a market opens a command with its streams, that is used; where it only runs one to its end,
that is made to look like one; where it does neither, the refusal names the market. A port is
reached where it is published, else through the market. How a client speaks to us is not known here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from gp4u.errors import BadInput, Refused, Unavailable
from gp4u.kubelet.held import ContainerState, Held, Run
from gp4u.kubelet.probes.calls import Place, place_of
from gp4u.kubelet.services.by_name import NamedLink
from gp4u.kubelet.streams.links import CONNECT_S, READ_BYTES, TcpLink
from gp4u.model import Endpoint, Protocol
from gp4u.providers.contract import Ability, Finished, Provider
from gp4u.providers.http import addresses_of, may_connect
from gp4u.providers.session import Link, Session, Stream
from gp4u.rentals.rental import Rental

ONE_SHOT_S: Final = 3600.0
ONE_SHOT_INPUT: Final = 1024 * 1024


def waits(held: Held, state: ContainerState) -> str:
    """Return why nothing can be done with a container that does not run, in a kubelet's words."""
    where = f'container "{state.name}" in pod "{held.name}"'
    if state.run is Run.TERMINATED:
        return f"{where} is terminated"
    match state.reason:
        case "ErrImagePull":
            return f"{where} is waiting to start: image can't be pulled"
        case "ImagePullBackOff":
            return f"{where} is waiting to start: trying and failing to pull image"
        case reason:
            return f"{where} is waiting to start: {reason}"


def state_of(held: Held, container: str) -> ContainerState | None:
    """Return a container of a pod, init or ordinary; None where it has no such one."""
    return next(
        (each for each in (*held.containers, *held.init_containers) if each.name == container),
        None,
    )


class WaysIn:
    """Opens ways into containers."""

    def __init__(self, providers: Mapping[str, Provider], *, allow_loopback: bool = False) -> None:
        """`allow_loopback`: simulated machines, which have addresses of this one."""
        self._providers, self._allow_loopback = providers, allow_loopback

    def problem_of_exec(self, held: Held, container: str) -> str:
        """Return why no command can be run in a running container; empty where one can be."""
        provider, rental = self._machine(held, container)
        if provider is None or rental is None or rental.instance_id is None:
            return f'the machine of pod "{held.name}" is not there'
        if not provider.spec.can & (Ability.SHELL | Ability.EXEC):
            return f"{provider.spec.title} runs no command inside a machine: exec is not possible"
        return ""

    async def command(
        self, held: Held, container: str, command: Sequence[str], *, tty: bool
    ) -> Session:
        """Start a command.

        Raises:
            Refused: the market cannot, or not with a terminal.
            ProviderError: it could not be started.
        """
        provider, rental = self._machine(held, container)
        if provider is None or rental is None or rental.instance_id is None:
            raise Unavailable("gp4u", "exec", "the machine is not there", sent=False)
        can, known_as = provider.spec.can, held.known_as(container)
        if Ability.SHELL in can:
            try:
                return await provider.open_exec(
                    rental.instance_id, rental.key, list(command), tty=tty, container=known_as
                )
            except Refused as error:
                if Ability.EXEC not in can or tty or error.code not in ("no_shell", "unsupported"):
                    raise
        if Ability.EXEC not in can:
            detail = f"{provider.spec.title} runs no command inside a machine"
            raise Refused(provider.spec.slug, "exec", detail, code="unsupported")
        if tty:
            detail = f"{provider.spec.title} has no terminals: leave out -t"
            raise Refused(provider.spec.slug, "exec", detail, code="unsupported")
        return OneShot(provider, rental.instance_id, command, container=known_as)

    async def port(self, held: Held, number: int) -> Link:
        """Connect to a port of a pod.

        Raises:
            BadInput: it is not published, and the market reaches no other; names those that are.
            ProviderError: nothing answers there.
        """
        endpoints = [each for rental in held.rentals.values() for each in rental.endpoints]
        for endpoint in endpoints:
            if endpoint.container_port == number and endpoint.protocol is Protocol.TCP:
                return await self._published(endpoint)
        for rental in held.rentals.values():
            provider = self._providers.get(rental.provider)
            if provider is not None and rental.instance_id and Ability.FORWARD in provider.spec.can:
                return await provider.open_port(rental.instance_id, rental.key, number)
        known = sorted({each.container_port for each in endpoints})
        told = ", ".join(map(str, known)) if known else "none"
        raise BadInput("port", number, f"is not published; published ports are: {told}")

    async def _published(self, endpoint: Endpoint) -> Link:
        place: Place | None = Place(host=endpoint.host, port=endpoint.port)
        if endpoint.url:
            place = place_of(endpoint.url)
        if place is None:
            raise Unavailable("gp4u", "connect", "the published address cannot be called")
        link = await self._connected(place)
        return NamedLink(link, place) if place.by_name else link

    async def _connected(self, place: Place) -> Link:
        host, port = place.host, place.port
        tls = ssl.create_default_context() if place.tls else None
        where = f"{host}:{port}"
        try:
            async with asyncio.timeout(CONNECT_S):
                addresses = await addresses_of(host, port)
                # The address is the market's word: it must lead out, not to us or our neighbours.
                if not all(
                    may_connect(each, allow_loopback=self._allow_loopback) for each in addresses
                ):
                    raise Unavailable("gp4u", "connect", f"{where} is no public address")
                reader, writer = await asyncio.open_connection(
                    str(addresses[0]),
                    port,
                    ssl=tls,
                    server_hostname=host if tls else None,
                    limit=READ_BYTES,
                )
        except TimeoutError:
            raise Unavailable("gp4u", "connect", f"{where} did not answer") from None
        except (OSError, IndexError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise Unavailable("gp4u", "connect", f"{where}: {why}") from error
        return TcpLink(where, reader, writer)

    def _machine(self, held: Held, container: str) -> tuple[Provider | None, Rental | None]:
        rental = held.rentals.get(container) or next(iter(held.rentals.values()), None)
        return (self._providers.get(rental.provider), rental) if rental else (None, None)


class OneShot(Session):
    """A command that a market runs to its end, as a session: its input first, then its output."""

    def __init__(
        self,
        provider: Provider,
        instance_id: str,
        command: Sequence[str],
        *,
        container: str | None = None,
    ) -> None:
        """`container` is as a market knows it."""
        self._provider, self._instance_id, self._command = provider, instance_id, command
        self._container = container
        self._input = bytearray()
        self._has_input, self._is_over = asyncio.Event(), asyncio.Event()
        self._too_much: Refused | None = None
        self._code: int | None = None

    async def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        """Run it once its input is whole, and yield what it wrote.

        Raises:
            Refused: its input was more than can be kept.
        """
        try:
            await self._has_input.wait()
            if self._too_much is not None:
                raise self._too_much
            ended: Finished = await self._provider.exec(
                self._instance_id,
                self._command,
                stdin=bytes(self._input),
                timeout_s=ONE_SHOT_S,
                container=self._container,
            )
            self._code = ended.exit_code
            if ended.stdout:
                yield Stream.OUT, ended.stdout
            if ended.stderr:
                yield Stream.ERR, ended.stderr
        finally:
            self._is_over.set()

    async def send(self, data: bytes) -> None:
        """Keep input until it is whole.

        Raises:
            Refused: it is more than can be kept.
        """
        self._input += data
        if len(self._input) > ONE_SHOT_INPUT:
            detail = f"takes at most {ONE_SHOT_INPUT} bytes of input"
            self._too_much = Refused(self._provider.spec.slug, "exec", detail)
            self._has_input.set()  # whoever reads the output must not wait for an end of the input
            raise self._too_much

    async def end_input(self) -> None:
        """Let it run."""
        self._has_input.set()

    async def resize(self, columns: int, rows: int) -> None:
        """Do nothing: there is no terminal."""
        del columns, rows

    async def exit_code(self) -> int:
        """Return with what it ended, once `output` is through.

        Raises:
            Unavailable: it did not get that far.
        """
        await self._is_over.wait()
        if self._code is None:
            raise Unavailable(self._provider.spec.slug, "exec", "ended without a result")
        return self._code

    async def aclose(self) -> None:
        """Forget it; what runs at the market runs on."""
        self._is_over.set()


class Watching(Session):
    """What a container prints, as if one were attached to it: output only, until it ends."""

    def __init__(self, printed: AsyncGenerator[bytes, None]) -> None:
        self._printed = printed
        self._is_over = asyncio.Event()

    async def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        """Yield what is printed from now on."""
        try:
            async with aclosing(self._printed) as printed:
                async for piece in printed:
                    yield Stream.OUT, piece
        finally:
            self._is_over.set()

    async def send(self, data: bytes) -> None:
        """Drop it: nobody reads it there."""
        del data

    async def end_input(self) -> None:
        """Do nothing."""

    async def resize(self, columns: int, rows: int) -> None:
        """Do nothing: there is no terminal."""
        del columns, rows

    async def exit_code(self) -> int:
        """Return 0 once nothing more is printed: how the container ended is in its status."""
        await self._is_over.wait()
        return 0

    async def aclose(self) -> None:
        """Leave it."""
        self._is_over.set()
