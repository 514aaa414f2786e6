"""The yardstick of streams: where a kubelet would be, a server that does the least for each call.

To a log it answers with as many bytes as the tape has; each command has ended at once. It asks
nobody who is calling.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

from node_tape import Ended, pieces

from gp4u.kubelet.streams.remote_command import serve_exec
from gp4u.kubelet.streams.upgrade import Upgrade
from gp4u.providers.session import Session

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"


async def _opened(_command: tuple[str, ...], _tty: bool) -> Session:
    return Ended()


async def _handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = head[0].split(" ")
    if target.startswith("/exec/"):
        fields = [(name, value) for name, _, value in (line.partition(": ") for line in head[1:-2])]
        await serve_exec(Upgrade(method, target, fields, reader, writer), _opened)
        return
    writer.write(HEAD)
    try:
        for piece in pieces():
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        return  # the reader has enough
    writer.close()


async def _serve(host: str, port: int, certificate: str, key: str) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server = await asyncio.start_server(_handle, host, port, ssl=tls)
    async with server:
        print("listening", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]))
