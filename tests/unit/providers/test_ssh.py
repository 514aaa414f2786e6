"""Keys, trust and patience on the way in by SSH, against a real server on loopback."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import httpx2
import pytest

from gp4u.errors import BadInput, InstanceAbsent, Malformed, Refused, Unavailable
from gp4u.model import RentalKey
from gp4u.providers import ssh
from gp4u.providers.pins import FilePins
from gp4u.providers.session import Stream
from gp4u.providers.ssh import Address, Ssh
from gp4u.providers.vastai.adapter import VastAI
from tests.unit.providers.scripted import BASE_URL, Script, http_over, market
from tests.virtual_loop import VirtualClock

KEY, OTHER = RentalKey("gp4u-1-abc"), RentalKey("gp4u-1-def")


def way(pins: dict[str, str] | None = None, *, secret: bytes = b"secret") -> Ssh:
    """Return a way in to machines on loopback."""
    return Ssh("vastai", secret=secret, pins=pins, allow_loopback=True)


class Machine:
    """A server that lets in the keys it was told."""

    def __init__(self, *, most: int = 100) -> None:
        """`most` sessions are let in."""
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.keys: set[str] = set()
        self.logins = self.sessions = 0
        self.most = most
        self.inside: list[asyncssh.SSHServerConnection] = []

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Address]:
        """Listen for as long as the block lasts."""
        machine, inside = self, self.inside

        class Server(asyncssh.SSHServer):
            """Counts who comes in."""

            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                inside.append(conn)

            def session_requested(self) -> Any:
                machine.sessions += 1
                if machine.sessions > machine.most:
                    raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "no more")
                channel = inside[-1].create_server_channel(encoding=None)
                return channel, asyncssh.SSHServerProcess(serve, None, 3, False)

            def public_key_auth_supported(self) -> bool:
                return True

            def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
                assert username == "root"
                return key.export_public_key().decode().split()[1] in machine.keys

            def auth_completed(self) -> None:
                machine.logins += 1

        async def serve(process: asyncssh.SSHServerProcess[bytes]) -> None:
            told = (process.command or "").encode()
            process.stdout.write(await process.stdin.read() if told == b"cat" else told)
            process.exit(0)

        listener = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Server,
            server_host_keys=[self.host_key],
        )
        try:
            yield Address("127.0.0.1", listener.get_port())
        finally:
            listener.close()
            await listener.wait_closed()
            for connection in inside:
                connection.abort()
                await connection.wait_closed()


async def said(way_in: Ssh, address: Address, key: RentalKey = KEY) -> bytes:
    """Run a command on the machine, and return what it says."""
    session = await way_in.session("7", key, [address], "hello", tty=False)
    out = b"".join([data async for stream, data in session.output() if stream is Stream.OUT])
    assert await session.exit_code() == 0
    await session.aclose()
    return out


def public(way_in: Ssh, key: RentalKey = KEY) -> str:
    """Return what a machine knows a key by."""
    return way_in.client_key(key).public.split()[1]


def test_a_key_is_the_rentals_and_can_be_made_again() -> None:
    """It is stored nowhere; another rental or another secret gives another one."""
    first = way().client_key(KEY)
    assert first.public == way().client_key(KEY).public
    assert first.public.startswith("ssh-ed25519 ")
    assert first.public.endswith(KEY)
    assert len({public(way()), public(way(), OTHER), public(way(secret=b"another"))}) == 3


async def test_one_connection_serves_all_that_is_open() -> None:
    """A probe every second must not shake hands every second."""
    machine, way_in = Machine(), way()
    machine.keys.add(public(way_in))
    async with machine.up() as address:
        for _ in range(3):
            assert await said(way_in, address) == b"hello"
        assert machine.logins == 1
        await way_in.aclose()


async def test_a_host_key_is_believed_once_and_no_other_after_that() -> None:
    """Whoever takes over the address of a machine must not be given what is typed."""
    pins: dict[str, str] = {}
    machine, way_in = Machine(), way(pins)
    machine.keys.add(public(way_in))
    async with machine.up() as address:
        await said(way_in, address)
        await way_in.aclose()
        assert pins["7"].split()[1] == machine.host_key.export_public_key().decode().split()[1]
        await said(way(pins), address)
    impostor = Machine()
    impostor.keys = machine.keys
    later = way(pins)
    async with impostor.up() as address:
        with pytest.raises(Malformed, match="host key"):
            await said(later, address)
        later.forget("7")  # the instance is gone: its number may come again on another machine
        assert await said(later, address) == b"hello"
        await later.aclose()


async def test_a_key_that_arrives_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was attached a moment ago, and takes its time to reach the machine."""
    monkeypatch.setattr(ssh, "RETRY_S", 0.01)
    machine, way_in = Machine(), way()
    async with machine.up() as address, asyncio.TaskGroup() as tasks:
        hearing = tasks.create_task(said(way_in, address))
        await asyncio.sleep(0.1)
        machine.keys.add(public(way_in))
        assert await hearing == b"hello"
        await way_in.aclose()


async def test_patience_with_a_key_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that never learns of it must not hold up whoever waits."""
    monkeypatch.setattr(ssh, "RETRY_S", 0.01)
    monkeypatch.setattr(ssh, "PATIENCE_S", 0.05)
    async with Machine().up() as address:
        with pytest.raises(Refused) as caught:
            await said(way(), address)
    assert caught.value.code == "ssh_key"


async def test_the_proxy_is_tried_where_the_direct_way_is_shut() -> None:
    """Some hosts forward no port; the market's proxy is slower, and there."""
    machine, way_in = Machine(), way()
    machine.keys.add(public(way_in))
    async with machine.up() as address:
        nobody = Address("127.0.0.1", 1)
        session = await way_in.session("7", KEY, [nobody, address], "hello", tty=False)
        assert [data async for _, data in session.output()] == [b"hello"]
        await session.aclose()
        await way_in.aclose()


@pytest.mark.parametrize("host", ["10.0.0.1", "169.254.169.254", "192.168.1.1"])
async def test_an_address_inside_our_network_is_not_followed(host: str) -> None:
    """The market's text must not make us speak to a neighbour of ours."""
    with pytest.raises(Malformed, match="public"):
        await way().session("7", KEY, [Address(host, 22)], "hello", tty=False)


async def test_nobody_at_home_is_unavailable() -> None:
    """So that the caller tries again, and blames nobody."""
    with pytest.raises(Unavailable):
        await way().session("7", KEY, [Address("127.0.0.1", 1)], "hello", tty=False)
    with pytest.raises(Unavailable):
        await way().session("7", KEY, [], "hello", tty=False)


async def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not installed with the rest, so the words must say what to do."""
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(Refused, match=r"gp4u\[ssh\]"):
        await way().session("7", KEY, [Address("127.0.0.1", 1)], "hello", tty=False)


async def test_a_machine_that_takes_no_further_session_keeps_those_it_has() -> None:
    """SSH servers bound the sessions of a connection: ten at most, as OpenSSH comes."""
    machine, way_in = Machine(most=1), way()
    machine.keys.add(public(way_in))
    async with machine.up() as address:
        first = await way_in.session("7", KEY, [address], "cat", tty=False)
        with pytest.raises(Unavailable, match="no more"):
            await way_in.session("7", KEY, [address], "hello", tty=False)
        await first.send(b"still here")
        await first.end_input()
        assert [data async for _, data in first.output()] == [b"still here"]
        assert machine.logins == 1
        await first.aclose()
        await way_in.aclose()


@pytest.mark.parametrize("host", ["10.0.0.1", "no such name"])
async def test_an_address_that_leads_nowhere_does_not_hide_the_next_one(host: str) -> None:
    """A machine behind a router may tell its inner address; the market's proxy is there."""
    machine, way_in = Machine(), way()
    machine.keys.add(public(way_in))
    async with machine.up() as address:
        session = await way_in.session("7", KEY, [Address(host, 22), address], "hello", tty=False)
        assert [data async for _, data in session.output()] == [b"hello"]
        await session.aclose()
        await way_in.aclose()


@pytest.mark.parametrize("trouble", ["unreadable", "read-only"])
async def test_a_machine_that_is_gone_is_forgotten_whatever_the_file_of_host_keys(
    tmp_path: Path, trouble: str
) -> None:
    """A release must not fail by a file that only exec needs."""
    path = tmp_path / "known_hosts.json"
    path.mkdir()
    pins = FilePins(path)
    if trouble == "read-only":
        pins._read = {"7": "ssh-ed25519 AAAA"}
    way_in = Ssh("vastai", secret=b"secret", pins=pins, allow_loopback=True)
    way_in.forget("7")
    if trouble == "unreadable":
        with pytest.raises(BadInput, match="GP4U_KNOWN_HOSTS"):
            await way_in.session("7", KEY, [Address("192.0.2.1", 22)], "hello", tty=False)


async def test_a_connection_whose_trust_cannot_be_kept_is_given_up() -> None:
    """Else each try leaves one behind, open for as long as both ends live."""
    machine = Machine()
    way_in = Ssh(
        "vastai",
        secret=b"secret",
        pins=FilePins(Path("/proc/gp4u/known_hosts.json")),
        allow_loopback=True,
    )
    machine.keys.add(public(way_in))
    async with machine.up() as address:
        with pytest.raises(BadInput, match="GP4U_KNOWN_HOSTS"):
            await way_in.session("7", KEY, [address], "hello", tty=False)
        assert machine.logins == 1
        async with asyncio.timeout(5):
            await machine.inside[0].wait_closed()


async def test_a_key_that_could_not_be_attached_is_attached_by_the_next_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal may mean that the market has it already, or that the machine is not there yet."""
    monkeypatch.setattr(ssh, "RETRY_S", 0.01)
    monkeypatch.setattr(ssh, "PATIENCE_S", 0.05)
    machine = Machine()
    async with machine.up() as address:
        row = {"id": 7, "image_runtype": "ssh_proxy", "ssh_host": address.host}
        listed = {"instances": [row | {"ssh_port": address.port}]}
        no = httpx2.Response(400, json={"success": False, "error": "bad", "msg": "not yet"})
        script = Script(listed, no, listed, {"success": True})
        vast = market(script)
        with pytest.raises(Refused, match="does not know our key"):
            await vast.open_exec("7", KEY, ["hello"], tty=False)
        machine.keys.add(public(way()))
        session = await vast.open_exec("7", KEY, ["hello"], tty=False)
        await session.aclose()
        assert script.left == 0
        await vast.aclose()


async def test_one_list_without_a_machine_does_not_unmake_the_trust_in_it() -> None:
    """A list that lags or is empty proves nothing; whoever answers next would be believed."""
    pins = {"7": "ssh-ed25519 AAAA"}
    http = http_over(Script({"instances": []}))
    vast = VastAI(http, base_url=BASE_URL, clock=VirtualClock(), ssh=way(pins))
    with pytest.raises(InstanceAbsent):
        await vast.open_exec("7", KEY, ["hello"], tty=False)
    assert pins == {"7": "ssh-ed25519 AAAA"}
