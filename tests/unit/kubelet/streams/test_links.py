"""Connections to published ports, over real loopback sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gp4u.errors import Unavailable
from gp4u.kubelet.streams.links import TcpLink

Program = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(program: Program, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Yield the port behind which a program waits."""
    server = await asyncio.start_server(program, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def all_of(link: TcpLink) -> bytes:
    """Return what comes until the end."""
    return b"".join([data async for data in link.output()])


async def test_half_a_connection_can_end() -> None:
    """The answer to a request comes after the end of the request."""

    async def program(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read()
        writer.write(request[::-1])
        writer.close()

    async with listening(program) as port:
        link = await TcpLink.open("127.0.0.1", port)
        await link.send(b"abc")
        await link.end_input()
        assert await all_of(link) == b"cba"
        await link.aclose()


async def test_nobody_there_is_unavailable_with_the_address() -> None:
    """The user reads which address refused; nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}: Connection refused") as told:
        await TcpLink.open("127.0.0.1", port)
    assert not told.value.sent


async def test_a_reset_is_unavailable() -> None:
    """A connection that breaks is not one that ended."""

    async def program(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with listening(program) as port:
        link = await TcpLink.open("127.0.0.1", port)
        with pytest.raises(Unavailable):
            await all_of(link)
        with pytest.raises(Unavailable):
            await link.send(b"late")
        await link.aclose()
        await link.aclose()


def certified(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server at 127.0.0.1 and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "port")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    file = directory / "port.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=str(file))


async def test_a_port_behind_a_url_is_reached_through_tls(tmp_path: Path) -> None:
    """Some markets publish a URL; the client at home still speaks plain bytes."""

    async def program(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"heard " + await reader.readexactly(3))
        await writer.drain()
        writer.close()

    server, client = certified(tmp_path)
    async with listening(program, tls=server) as port:
        link = await TcpLink.open("127.0.0.1", port, tls=client)
        await link.send(b"abc")
        await link.end_input()
        assert await all_of(link) == b"heard abc"
        await link.aclose()


async def test_a_certificate_that_is_not_good_is_unavailable(tmp_path: Path) -> None:
    """Bytes are not handed to whoever answers."""

    async def program(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server, _ = certified(tmp_path)
    async with listening(program, tls=server) as port:
        with pytest.raises(Unavailable, match="certificate"):
            await TcpLink.open("127.0.0.1", port, tls=ssl.create_default_context())
