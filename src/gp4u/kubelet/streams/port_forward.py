"""`kubectl port-forward`: connections to a pod's ports, many on one connection.

Each forwarded connection is a pair of streams, one for its bytes and one for what went wrong. Pairs
know nothing of each other: they begin and end one by one. A port that cannot be reached is told in
words on the error stream. A connection that breaks later is reset like any TCP connection: words
about it would make kubectl drop all the others.

Source: kubernetes kubelet pkg/cri/streaming/portforward and client-go tools/portforward, 1.32;
checked 2026-11.
"""

from __future__ import annotations

from typing import Final

from gp4u.kubelet.streams.forward_spdy import SpdyForward
from gp4u.kubelet.streams.forward_websocket import SUBPROTOCOLS, WebSocketForward, ports_of
from gp4u.kubelet.streams.forwarding import Connect
from gp4u.kubelet.streams.pipe import IDLE_S, ClientLeft
from gp4u.kubelet.streams.spdy_wire import SPDY, accept_spdy
from gp4u.kubelet.streams.upgrade import Upgrade
from gp4u.kubelet.streams.websocket import PROTOCOL, WebSocketPipe, accept_websocket

PORT_FORWARD: Final = "portforward.k8s.io"
TUNNEL: Final = f"{SPDY}+{PORT_FORWARD}"
"""SPDY inside the messages of a WebSocket."""


async def serve_port_forward(upgrade: Upgrade, connect: Connect, *, idle_s: float = IDLE_S) -> None:
    """Forward connections to ports until the client leaves; then the connection is closed.

    `connect` opens a connection to a container's port; a `Gp4uError` or `OSError` of its is told to
    the client. Links are closed here.
    """
    try:
        if upgrade.wants("websocket"):
            await _serve_websocket(upgrade, connect, idle_s)
        elif upgrade.wants(SPDY):
            if await accept_spdy(upgrade, (PORT_FORWARD,)) is not None:
                await SpdyForward(upgrade, connect, idle_s=idle_s).run()
        else:
            await upgrade.refuse(400, f"unable to upgrade: ask for {SPDY} or websocket")
    except ClientLeft:
        pass
    finally:
        await upgrade.aclose()


async def _serve_websocket(upgrade: Upgrade, connect: Connect, idle_s: float) -> None:
    """Serve a tunnel, or the ports that the query names."""
    tunnelled = TUNNEL in upgrade.words(PROTOCOL)
    ports: tuple[int, ...] = ()
    if not tunnelled:
        try:
            ports = ports_of(upgrade.query)
        except ValueError as error:
            await upgrade.refuse(400, str(error))
            return
    protocol = await accept_websocket(upgrade, (TUNNEL,) if tunnelled else SUBPROTOCOLS)
    if protocol is None:
        return
    if tunnelled:
        tunnel = WebSocketPipe(upgrade)
        await SpdyForward(tunnel, connect, idle_s=idle_s).run()
        tunnel.close()
    else:
        await WebSocketForward(upgrade, protocol, ports, connect, idle_s=idle_s).run()
