"""The checks of what goes on inside an instance; for adapters that let somebody in.

A market that only pretends to run things cannot show any of this, so these checks are a suite of
their own: whoever subclasses it gives a market in which a shell really runs. Each check asks for
one ability and is empty where the spec does not declare it; that an undeclared one is refused is
checked in `contract.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import ClassVar, Final

from msgspec.structs import replace

from gp4u.errors import ProviderError, Refused, Unavailable
from gp4u.model import Container, File, InstanceState, RentalKey, Restart, Workload
from gp4u.providers.contract import Ability
from gp4u.providers.session import Session, Stream
from gp4u.testing.findings import must, raises
from gp4u.testing.steps import Steps, key_of
from gp4u.testing.troubles import Market

SOME_BYTES: Final = bytes(range(256)) * 512
InsideCheck = Callable[[Market, str, RentalKey], Awaitable[None]]
STAYS: Final = 'echo "began $(date +%s%N)"; while :; do sleep 1; done'


class InsideContract(Steps):
    """What an adapter must do with its abilities inside; `image` must have a shell."""

    patience_s: ClassVar[float] = 60.0
    answer_s: ClassVar[float] = 30.0
    """How long a command may take."""
    listener: ClassVar[Sequence[str]] = ("sh", "-c", "echo hello | nc -l -p 39123")
    """A command that says `hello` to who connects to `listens_on`, and then ends."""
    listens_on: ClassVar[int] = 39_123

    def test_a_command_has_two_outputs_and_a_code(self) -> None:
        """A probe goes by the code, `kubectl exec` by all three."""

        async def check(market: Market, instance_id: str, key: RentalKey) -> None:
            script = "echo to out; echo to err >&2; exit 3"
            out, err, code = await self._ran(market, instance_id, key, ["sh", "-c", script])
            must((out, code) == (b"to out\n", 3), f"{script!r} came out as {out!r}, {code}")
            must(b"to err\n" in err, f"{script!r} said {err!r} on its second output")
            words = ["echo", "a b", "$HOME", "'", ""]
            out, _, code = await self._ran(market, instance_id, key, words)
            must(out == b"a b $HOME ' \n", f"the words {words} arrived as {out!r}")

        self._inside(Ability.SHELL, check)

    def test_a_command_reads_its_input_to_the_end(self) -> None:
        """`kubectl cp` is a tar that ends when its input does."""

        async def check(market: Market, instance_id: str, key: RentalKey) -> None:
            out, _, code = await self._ran(market, instance_id, key, ["cat"], SOME_BYTES)
            must((out, code) == (SOME_BYTES, 0), f"{len(out)} of {len(SOME_BYTES)} bytes, {code}")
            out, _, code = await self._ran(market, instance_id, key, ["head", "-c", "3"], b"abcdef")
            must((out, code) == (b"abc", 0), f"a command that ends first: {out!r}, {code}")

        self._inside(Ability.SHELL, check)

    def test_a_terminal_has_the_size_that_it_is_told(self) -> None:
        """An editor that draws 80 columns into 200 cannot be used."""

        async def check(market: Market, instance_id: str, key: RentalKey) -> None:
            script = 'read -r line; stty size; [ -t 1 ] || echo none; echo "got $line"; exit 4'
            session = await market.provider.open_exec(
                instance_id, key, ["sh", "-c", script], tty=True
            )
            try:
                await session.resize(123, 45)
                await session.send(b"word\n")
                out, _, code = await self._heard(session)
            finally:
                await session.aclose()
            must(b"45 123" in out and b"none" not in out, f"a terminal said {out!r}")
            must(b"got word" in out and code == 4, f"a terminal said {out!r}, {code}")

        self._inside(Ability.SHELL, check)

    def test_several_commands_run_at_once(self) -> None:
        """A probe does not wait for whoever sits at a shell."""

        async def check(market: Market, instance_id: str, key: RentalKey) -> None:
            sitting = await market.provider.open_exec(instance_id, key, ["cat"], tty=False)
            try:
                out, _, _ = await self._ran(market, instance_id, key, ["echo", "beside"])
                must(out == b"beside\n", f"beside another command: {out!r}")
                await sitting.end_input()
                must((await self._heard(sitting))[2] == 0, "the one that waited did not end well")
            finally:
                await sitting.aclose()

        self._inside(Ability.SHELL, check)

    def test_a_port_that_is_not_published_can_be_reached(self) -> None:
        """And one on which nobody listens is told as that."""

        async def check(market: Market, instance_id: str, key: RentalKey) -> None:
            provider = market.provider
            with raises((Unavailable,), "a port on which nobody listens"):
                await provider.open_port(instance_id, key, self.listens_on)
            listening = await provider.open_exec(instance_id, key, self.listener, tty=False)

            async def look() -> bytes | None:
                with suppress(Unavailable):
                    link = await provider.open_port(instance_id, key, self.listens_on)
                    try:
                        await link.end_input()
                        async with asyncio.timeout(self.answer_s):
                            return b"".join([piece async for piece in link.output()])
                    finally:
                        await link.aclose()
                return None

            try:
                heard = await self._until(look, lambda: f"{self.listener} is never reached")
            finally:
                await listening.aclose()
            must(heard.strip() == b"hello", f"through the port came {heard!r}")

        self._inside(Ability.FORWARD, check)

    def test_files_are_there_and_what_comes_first_has_come_first(self) -> None:
        """With their contents, modes and folders; the workload is not asked to wait."""
        some = SOME_BYTES[:1024]
        files = (
            File(path="/etc/gp4u-check/a file", content=some, mode=0o640),
            File(path="/srv/gp4u check/empty", content=b""),
        )
        script = (
            'cat /tmp/gp4u-order; wc -c <"/etc/gp4u-check/a file"; pwd;'
            ' stat -c "mode %a" "/etc/gp4u-check/a file"; wc -c <"/srv/gp4u check/empty"; ' + STAYS
        )
        workload = replace(
            self._shell(script),
            files=files,
            before=(
                ("sh", "-c", "echo one >>/tmp/gp4u-order"),
                ("sh", "-c", "echo two >>/tmp/gp4u-order"),
            ),
            working_dir="/srv/gp4u check",
            restart=Restart.NEVER,
        )

        async def check(market: Market, instance_id: str, key: RentalKey) -> None:
            del key
            expected = ["one", "two", str(len(some)), "/srv/gp4u check", "mode 640", "0"]
            last = ""

            async def look() -> bool | None:
                nonlocal last
                last = await market.provider.logs(instance_id)
                said = [line.strip() for line in last.splitlines()]
                said = [line for line in said if line and not line.startswith(("gp4u", "began"))]
                return True if said == expected else None

            await self._until(look, lambda: f"expected {expected} in the log, last: {last!r}")

        self._inside(Ability.FILES, check, workload)

    def test_what_is_printed_can_be_followed(self) -> None:
        """`kubectl logs -f` shows a line when it is printed, once."""
        script = "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.2; done"

        async def check(market: Market, instance_id: str, key: RentalKey) -> None:
            del key
            text = b""
            async with asyncio.timeout(self.answer_s):
                pieces = market.provider.follow(instance_id)
                async for piece in pieces:
                    text += piece
                    if text.count(b"line ") > 5:
                        break
            numbers = [int(line[5:]) for line in text.decode().splitlines()[:5]]
            wanted = list(range(numbers[0], numbers[0] + 5))
            must(numbers == wanted, f"followed the lines {numbers}")

        self._inside(Ability.FOLLOW, check, self._shell(script))

    def test_each_container_is_looked_into_by_its_name(self) -> None:
        """`kubectl logs -c` and `exec -c` must not lead into the neighbour."""

        async def check(market: Market, instance_id: str, key: RentalKey) -> None:
            provider, can = market.provider, market.provider.spec.can
            for who in ("first", "second"):
                name = None if who == "first" else who

                async def said(name: str | None = name, who: str = who) -> bool | None:
                    text = await provider.logs(instance_id, container=name)
                    told = [line for line in text.splitlines() if line.startswith("I am")]
                    must(set(told) <= {f"I am {who}"}, f"the log of {name} holds {told}")
                    return bool(told) or None

                await self._until(said, partial("the log of the {} stays empty".format, who))
                script = 'echo "in $WHO"'
                if Ability.SHELL in can:
                    out, _, _ = await self._ran(
                        market, instance_id, key, ["sh", "-c", script], container=name
                    )
                    must(out == f"in {who}\n".encode(), f"the shell of {name} said {out!r}")
                if Ability.EXEC in can:
                    done = await provider.exec(instance_id, ["sh", "-c", script], container=name)
                    must(done.stdout == f"in {who}\n".encode(), f"{name} said {done.stdout!r}")
            with raises((Refused,), "the log of a container that nobody rented"):
                await provider.logs(instance_id, container="third")

        script = f'echo "I am $WHO"; {STAYS}'
        self._inside(Ability.MULTI_CONTAINER, check, self._two(script))

    def test_what_each_container_prints_is_followed_apart(self) -> None:
        """Two that print at once would else be one log in pieces."""
        script = 'while :; do echo "line of $WHO"; sleep 0.2; done'

        async def check(market: Market, instance_id: str, key: RentalKey) -> None:
            del key
            if Ability.FOLLOW not in market.provider.spec.can:
                return
            for name, who in ((None, b"first"), ("second", b"second")):
                text = b""
                async with asyncio.timeout(self.answer_s):
                    async for piece in market.provider.follow(instance_id, container=name):
                        text += piece
                        if text.count(b"line of ") > 3:
                            break
                lines = set(text.splitlines()[:3])
                must(lines == {b"line of " + who}, f"followed {lines} of {name}")

        self._inside(Ability.MULTI_CONTAINER, check, self._two(script))

    def test_a_restart_begins_anew_in_the_same_machine(self) -> None:
        """A liveness probe that fails wants this, and no other machine."""

        async def check(market: Market, instance_id: str, key: RentalKey) -> None:
            provider = market.provider

            async def began() -> str | None:
                with suppress(ProviderError):
                    lines = (await provider.logs(instance_id)).splitlines()
                    return next((each for each in lines[::-1] if each.startswith("began")), None)
                return None

            first = await self._until(began, lambda: "it never began")
            await provider.restart(instance_id)

            async def again() -> str | None:
                second = await began()
                return second if second != first else None

            await self._until(again, lambda: "it was restarted, and never began anew")
            shown = await self._shown(market, key, instance_id, state=InstanceState.RUNNING)
            must(shown.instance_id == instance_id, f"{instance_id} came back as {shown}")
            must(len(await market.truth()) == 1, "a restart rented something")

        self._inside(Ability.RESTART, check)

    def _shell(self, script: str) -> Workload:
        wanted: dict[str, object] = {"entrypoint": ("sh", "-c"), "command": (script,)}
        return replace(self.workload, **wanted, shell=True)  # noqa: S604 - a wish, no subprocess

    def _two(self, script: str) -> Workload:
        """Return a workload of two containers, which know by `WHO` which they are."""
        first = replace(self._shell(script), env={"WHO": "first"})
        second = Container(
            name="second",
            image=first.image,
            entrypoint=first.entrypoint,
            command=first.command,
            env={"WHO": "second"},
        )
        return replace(first, beside=(second,))

    def _inside(
        self, ability: Ability, check: InsideCheck, workload: Workload | None = None
    ) -> None:
        """Check an ability in a running instance, and release that."""

        async def scenario(market: Market) -> None:
            if ability not in market.provider.spec.can:
                return
            key = key_of(1)
            what = workload or self._shell(STAYS)
            instance_id = await self._send_rent(market, await self._offer(market), key, what)
            await self._shown(market, key, instance_id, state=InstanceState.RUNNING)
            await check(market, instance_id, key)
            await self._release(market, key, instance_id)

        self._on_a_market(scenario)

    async def _ran(
        self,
        market: Market,
        instance_id: str,
        key: RentalKey,
        command: Sequence[str],
        stdin: bytes = b"",
        *,
        container: str | None = None,
    ) -> tuple[bytes, bytes, int]:
        session = await market.provider.open_exec(
            instance_id, key, command, tty=False, container=container
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_typed(session, stdin))
                return await self._heard(session)
        finally:
            await session.aclose()

    async def _heard(self, session: Session) -> tuple[bytes, bytes, int]:
        """Return both outputs and the code."""
        heard = {Stream.OUT: bytearray(), Stream.ERR: bytearray()}
        async with asyncio.timeout(self.answer_s):
            async for stream, data in session.output():
                heard[stream] += data
            code = await session.exit_code()
        return bytes(heard[Stream.OUT]), bytes(heard[Stream.ERR]), code


async def _typed(session: Session, data: bytes) -> None:
    for start in range(0, len(data), 16_384):
        await session.send(data[start : start + 16_384])
    await session.end_input()
