"""`kubectl exec` through the node: bytes a second of its output, and the round trip of a command.

The server runs in a process of its own and speaks TLS, as the node does. A bare client reads the
output of an endless command over SPDY and over WebSocket; a plain asyncio server that sends the
same pieces over TLS, in the same process and in turn, is the yardstick. The round trip is the whole
of it: connect, TLS, upgrade, streams, a command that ends at once, its Status; beside it stands a
bare exchange of a few bytes over a fresh TLS connection.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gp4u.kubelet.streams.remote_command import serve_exec
from gp4u.kubelet.streams.spdy_headers import DICTIONARY
from gp4u.kubelet.streams.upgrade import Upgrade
from gp4u.providers.session import Session, Stream

LEAST_OF_PLAIN: Final = 0.5
MOST_OF_PLAIN: Final = 4.0
SIZE: Final = 256 * 1024 * 1024
PIECE: Final = bytes(64 * 1024)
ROUNDS: Final = 5
TRIPS: Final = 200
EXEC: Final = "/exec/bench/pod/main?output=1&command="
PLAIN: Final = "/plain?size="
SPDY: Final = {
    "Connection": "Upgrade",
    "Upgrade": "SPDY/3.1",
    "X-Stream-Protocol-Version": "v4.channel.k8s.io",
}
WEBSOCKET: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    "Sec-WebSocket-Protocol": "v5.channel.k8s.io",
}


class Writes(Session):
    """A command that writes so many bytes and ends."""

    def __init__(self, size: int) -> None:
        self._size = size

    async def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        for _ in range(self._size // len(PIECE)):
            yield Stream.OUT, PIECE

    async def send(self, data: bytes) -> None:
        """Take it."""

    async def end_input(self) -> None:
        """It reads nothing."""

    async def resize(self, columns: int, rows: int) -> None:
        """It has no terminal."""

    async def exit_code(self) -> int:
        return 0

    async def aclose(self) -> None:
        """Nothing is open."""


async def _opened(command: tuple[str, ...], _tty: bool) -> Session:
    return Writes(int(command[0]))


async def _handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection: an exec, or the yardstick."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = head[0].split(" ")
    if target.startswith(PLAIN):
        writer.write(b"done")
        for _ in range(int(target.removeprefix(PLAIN)) // len(PIECE)):
            writer.write(PIECE)
            await writer.drain()
        writer.close()
        return
    fields = [(name, value) for name, _, value in (line.partition(": ") for line in head[1:-2])]
    await serve_exec(Upgrade(method, target, fields, reader, writer), _opened)


async def _serve(certificate: str) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    server = await asyncio.start_server(_handle, "127.0.0.1", 0, ssl=tls)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


def _certificate(directory: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    plain, pem = serialization.NoEncryption(), serialization.Encoding.PEM
    file = directory / "bench.pem"
    file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem)
    )
    return file


class Dial:
    """Connections to the server, each with one request."""

    def __init__(self, port: int, certificate: Path) -> None:
        self._port = port
        self._tls = ssl.create_default_context(cafile=str(certificate))

    def ask(self, target: str, headers: Mapping[str, str]) -> ssl.SSLSocket:
        """Return a connection on which a request was sent."""
        raw = socket.create_connection(("127.0.0.1", self._port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = self._tls.wrap_socket(raw, server_hostname="127.0.0.1")
        method = "GET" if headers.get("Upgrade") == "websocket" else "POST"
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        line.sendall(f"{method} {target} HTTP/1.1\r\n{fields}\r\n".encode())
        return line


def _spdy_streams() -> bytes:
    """Return the frames that open `error` and `stdout`."""
    packing, frames = zlib.compressobj(9, 8, 15, 9, 0, DICTIONARY), b""
    for number, name in ((1, b"error"), (3, b"stdout")):
        plain = struct.pack(">II", 1, 10) + b"streamtype" + struct.pack(">I", len(name)) + name
        block = packing.compress(plain) + packing.flush(zlib.Z_SYNC_FLUSH)
        body = struct.pack(">IIH", number, 0, 0) + block
        frames += struct.pack(">HHI", 0x8003, 1, len(body)) + body
    return frames


def _read(line: ssl.SSLSocket, size: int, last: bytes) -> None:
    """Read at least so many bytes, and on until the last ones are there."""
    buffer = bytearray(1024 * 1024)
    read, tail = 0, b""
    while read < size or last not in tail:
        count = line.recv_into(buffer)
        if not count:
            raise EOFError(f"after {read} bytes")
        read += count
        tail = (tail + bytes(buffer[max(0, count - 256) : count]))[-512:]


def _plain(dial: Dial, size: int) -> None:
    with dial.ask(f"{PLAIN}{size}", {}) as line:
        _read(line, size or 4, b"")


def _spdy(dial: Dial, size: int) -> None:
    with dial.ask(f"{EXEC}{size}", SPDY) as line:
        line.sendall(_spdy_streams())
        _read(line, size, b"Success")


def _websocket(dial: Dial, size: int) -> None:
    with dial.ask(f"{EXEC}{size}", WEBSOCKET) as line:
        _read(line, size, b"Success")


WAYS: Final[Mapping[str, Callable[[Dial, int], None]]] = {
    "plain": _plain,
    "spdy": _spdy,
    "websocket": _websocket,
}


def _seconds(way: Callable[[Dial, int], None], dial: Dial, size: int) -> float:
    began = time.perf_counter()
    way(dial, size)
    return time.perf_counter() - began


def _measure(dial: Dial) -> list[dict[str, object]]:
    """Return a line for each way and question."""
    for way in WAYS.values():
        way(dial, SIZE // 8)
    copies = [
        {name: _seconds(way, dial, SIZE) for name, way in WAYS.items()} for _ in range(ROUNDS)
    ]
    trips = [{name: _seconds(way, dial, 0) for name, way in WAYS.items()} for _ in range(TRIPS)]
    lines: list[dict[str, object]] = []
    for name in ("spdy", "websocket"):
        share = statistics.median(each["plain"] / each[name] for each in copies)
        longer = statistics.median(each[name] / each["plain"] for each in trips)
        lines += [
            {
                "name": f"exec output over {name}",
                "ours": round(SIZE / 1e6 / statistics.median(each[name] for each in copies)),
                "yardstick": round(SIZE / 1e6 / statistics.median(e["plain"] for e in copies)),
                "unit": "MB/s",
                "ratio": round(share, 2),
                "bound": LEAST_OF_PLAIN,
                "ok": share >= LEAST_OF_PLAIN,
            },
            {
                "name": f"exec round trip over {name}",
                "ours": round(1e3 * statistics.median(each[name] for each in trips), 2),
                "yardstick": round(1e3 * statistics.median(e["plain"] for e in trips), 2),
                "unit": "ms p50",
                "ratio": round(longer, 2),
                "bound": MOST_OF_PLAIN,
                "ok": longer <= MOST_OF_PLAIN,
            },
        ]
    return lines


def main() -> int:
    """Print each measure as a line of JSON; 1 if one is over its bound."""
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(_serve(sys.argv[2]))
    with TemporaryDirectory() as directory:
        certificate = _certificate(Path(directory))
        program = [sys.executable, __file__, "serve", str(certificate)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                lines = _measure(Dial(int(server.stdout.readline()), certificate))
            finally:
                server.kill()
    for line in lines:
        print(json.dumps(line))
    return 0 if all(line["ok"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
