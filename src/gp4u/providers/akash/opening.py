"""From settings to an open Akash adapter: its three surfaces, each with what it may see."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import ClassVar, Final

from msgspec.structs import replace

from gp4u.clock import Clock
from gp4u.errors import Refused
from gp4u.model import RentalKey
from gp4u.provider_settings import ProviderSettings
from gp4u.providers.akash.adapter import SPEC, Akash
from gp4u.providers.akash.chain import Chain, Node, rest_urls
from gp4u.providers.akash.console import Console
from gp4u.providers.akash.dial import dial
from gp4u.providers.akash.gateway import Gateway
from gp4u.providers.akash.wire import judge
from gp4u.providers.contract import Ability, Finished, ProviderSpec
from gp4u.providers.opening import Opening, Wire, key_of
from gp4u.providers.session import Session
from gp4u.settings import Settings


class _QuotedAkash(Akash):
    """Akash without a key: its market is public, what one holds there is not."""

    # What it shows are estimates, whoever looks; the rest needs an account.
    spec: ClassVar[ProviderSpec] = replace(
        SPEC,
        can=Ability.AUCTION,
        quoted_only=f"is quoted only: renting needs AKASH_CONSOLE_API_KEY, made at {SPEC.key_url}",
    )

    async def release(self, instance_id: str) -> None:
        raise _needs_key("release", instance_id)

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        del tail, container
        raise _needs_key("logs", instance_id)

    async def exec(
        self,
        instance_id: str,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = 60,
        container: str | None = None,
    ) -> Finished:
        del command, stdin, timeout_s, container
        raise _needs_key("exec", instance_id)

    async def extend(self, instance_id: str) -> None:
        raise _needs_key("extend", instance_id)

    async def billed(self, instance_id: str) -> Decimal | None:
        del instance_id
        return None

    async def open_exec(
        self,
        instance_id: str,
        key: RentalKey,
        command: Sequence[str],
        *,
        tty: bool,
        container: str | None = None,
    ) -> Session:
        del key, command, tty, container
        raise _needs_key("open_exec", instance_id)

    def follow(self, instance_id: str, *, container: str | None = None) -> AsyncIterator[bytes]:
        del container
        raise _needs_key("follow", instance_id)


def _needs_key(operation: str, instance_id: str) -> Refused:
    detail = f"{instance_id}: what one holds needs AKASH_CONSOLE_API_KEY"
    return Refused(SPEC.slug, operation, detail, code="unsupported")


def _open(own: ProviderSettings, settings: Settings, clock: Clock, wire: Wire) -> Akash:
    key = key_of(own)
    console = Console(
        wire(judge, {"x-api-key": key} if key else {}),
        url=own.console_url,
        block_time_s=own.block_time_s,
        clock=clock,
    )

    def node(url: str) -> Node:
        # Each fails in its own way, which says nothing of the others; and none sees the key.
        return Node(url, wire(judge, {}, part=f"node {url}"))

    kind = Akash if key else _QuotedAkash
    return kind(
        console,
        Chain(
            rest=[node(url) for url in rest_urls(own.rest_urls, own.base_url)],
            rpc=node(own.base_url),
        ),
        Gateway(dial, allow_loopback=settings.allow_loopback),
        has_key=bool(key),
        block_time_s=own.block_time_s,
        bid_window_s=own.bid_window_s,
        clock=clock,
    )


def _lacks(own: ProviderSettings, spec: ProviderSpec) -> str:
    """Say why it stays closed: without a key, it is asked only by those who want it.

    Its market is public, so it would be open to everybody; and somebody with a key of another
    market would wait for it, on every search, without ever having heard of it.
    """
    if own.api_key is not None or own.mentioned:
        return ""
    return (
        "no AKASH_CONSOLE_API_KEY; AKASH_ENABLED=true shows its public prices, "
        f"and a key to rent with is made at {spec.key_url}"
    )


OPENING: Final = Opening(SPEC, _open, _lacks)
