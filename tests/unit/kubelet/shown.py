"""A market whose log, commands and ports are set by hand, and pods that run on its machines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from gp4u.errors import ProviderError, Refused
from gp4u.kubelet.held import ContainerState, Ended, Held, PodObject, Run
from gp4u.model import Endpoint, Listing, Offer, RentalKey, Workload
from gp4u.providers.contract import (
    Ability,
    Account,
    Call,
    Choose,
    Finished,
    OfferPage,
    Provider,
    ProviderSpec,
    Query,
    unsupported,
)
from gp4u.providers.session import Link, Session, Stream
from gp4u.rentals.rental import Rental, RentalState

AT = datetime(2026, 1, 1, tzinfo=UTC)


class Shown(Provider):
    """Shows `text` as the log of every machine, and `beside` as that of its further containers;
    commands end with `ended`."""

    spec = ProviderSpec(
        slug="shown",
        title="Shown",
        env="SHOWN",
        base_url="https://shown.example",
        rate_limit_per_min=100,
        key_url="https://shown.example/keys",
        can=Ability.LOGS | Ability.EXEC,
    )

    def __init__(self, *, can: Ability = Ability.LOGS | Ability.EXEC) -> None:
        self.spec = ProviderSpec(  # type: ignore[misc] # each test has a market of its own
            slug="shown",
            title="Shown",
            env="SHOWN",
            base_url="https://shown.example",
            rate_limit_per_min=100,
            key_url="https://shown.example/keys",
            can=can,
        )
        self.text = ""
        self.beside: dict[str, str] = {}
        self.error: ProviderError | None = None
        self.looks: list[int] = []
        self.commands: list[tuple[str, ...]] = []
        self.into: list[str | None] = []
        """The container that each command was for."""
        self.ended = Finished(exit_code=0)
        self.answer_s = 0.0
        self.stream: asyncio.Queue[bytes | None] | None = None
        self.session: Session | None = None
        self.link: Link | None = None

    async def logs(
        self, instance_id: str, *, tail: int = 1000, container: str | None = None
    ) -> str:
        self.looks.append(tail)
        await asyncio.sleep(self.answer_s)
        if self.error is not None:
            raise self.error
        text = self.text if container is None else self.beside[container]
        return "".join(text.splitlines(keepends=True)[-tail:])

    async def follow(
        self, instance_id: str, *, container: str | None = None
    ) -> AsyncIterator[bytes]:
        assert self.stream is not None
        while (piece := await self.stream.get()) is not None:
            yield piece

    async def exec(
        self,
        instance_id: str,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = 60,
        container: str | None = None,
    ) -> Finished:
        self.commands.append(tuple(command))
        self.into.append(container)
        if self.error is not None:
            raise self.error
        if stdin:
            return Finished(exit_code=0, stdout=stdin)
        return self.ended

    async def open_exec(
        self,
        instance_id: str,
        key: RentalKey,
        command: Sequence[str],
        *,
        tty: bool,
        container: str | None = None,
    ) -> Session:
        self.commands.append(tuple(command))
        self.into.append(container)
        if self.session is None:
            raise Refused("shown", "exec", "no shell was rented", code="no_shell")
        return self.session

    async def open_port(self, instance_id: str, key: RentalKey, port: int) -> Link:
        if self.link is None:
            raise unsupported(self.spec, "port-forward")
        return self.link

    async def ping(self) -> Account:
        return Account()

    async def offers(self, query: Query) -> OfferPage:
        return OfferPage(offers=())

    def rent_calls(self, offer: Offer, workload: Workload, key: RentalKey) -> tuple[Call, ...]:
        return ()

    async def rent(
        self, offer: Offer, workload: Workload, key: RentalKey, *, choose: Choose | None = None
    ) -> str:
        raise unsupported(self.spec, "rent")

    async def instances(self) -> Listing:
        return Listing(provider="shown", instances=(), complete=True, began_at=AT)

    async def release(self, instance_id: str) -> None:
        raise unsupported(self.spec, "release")


class Echo(Session):
    """Writes `told` and ends with `code`."""

    def __init__(self, told: bytes = b"", code: int = 0) -> None:
        self._told, self._code = told, code
        self.is_closed = False

    async def output(self) -> AsyncIterator[tuple[Stream, bytes]]:
        yield Stream.OUT, self._told

    async def send(self, data: bytes) -> None:
        return None

    async def end_input(self) -> None:
        return None

    async def resize(self, columns: int, rows: int) -> None:
        return None

    async def exit_code(self) -> int:
        return self._code

    async def aclose(self) -> None:
        self.is_closed = True


def rental(key: str = "gp4u-x-1", *, endpoints: tuple[Endpoint, ...] = ()) -> Rental:
    """Return a running rental at the market."""
    return Rental(
        key=RentalKey(key),
        owner="pod:uid-1",
        provider="shown",
        offer_id="1",
        account="",
        machine_id="m1",
        gpu_model="RTX 3060",
        gpu_count=1,
        region=None,
        workload=Workload(image="june"),
        price_usd_per_hour=Decimal("0.2"),
        gpu_usd_per_hour=Decimal("0.2"),
        storage_usd_per_hour=Decimal(0),
        ceiling_usd_per_hour=Decimal(1),
        intended_at=AT,
        provable_at=AT,
        state=RentalState.RUNNING,
        instance_id=f"i-{key}",
        endpoints=endpoints,
    )


def pod(name: str = "june", uid: str = "uid-1", **spec: Any) -> PodObject:
    """Return a pod as the API server gives it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": uid},
        "spec": {"nodeName": "vast-gpu-node-1", **spec},
        "status": {"startTime": "2026-01-01T00:00:00Z"},
    }


def state(
    name: str = "stt",
    run: Run = Run.RUNNING,
    *,
    number: int = 1,
    reason: str = "",
    last: Ended | None = None,
) -> ContainerState:
    """Return how a container stands; `number` is its run."""
    return ContainerState(
        name=name,
        image="june",
        run=run,
        reason=reason,
        container_id=f"gp4u://i-1/{number}" if run is not Run.WAITING else "",
        started_at=AT if run is not Run.WAITING else None,
        ended=Ended(exit_code=0, reason="Completed") if run is Run.TERMINATED else None,
        last_ended=last,
        restarts=number - 1,
    )


def held(
    *containers: ContainerState,
    inits: tuple[ContainerState, ...] = (),
    of: Rental | None = None,
    uid: str = "uid-1",
    name: str = "june",
) -> Held:
    """Return a pod whose containers all run on one machine, the first one first; without `of` it
    has none.
    """
    every = containers or (state(),)
    return Held(
        pod=pod(name, uid),
        containers=every,
        init_containers=inits,
        rentals={each.name: of for each in every} if of is not None else {},
        beside=frozenset(each.name for each in every[1:]),
        ready=True,
    )


class Node:
    """The pods of a node, as a test sets them."""

    def __init__(self, *every: Held) -> None:
        self.every = list(every)

    def all(self) -> Sequence[Held]:
        return self.every

    def find(self, namespace: str, name: str, uid: str | None = None) -> Held | None:
        for each in self.every:
            if (each.namespace, each.name) == (namespace, name) and uid in (None, each.uid):
                return each
        return None
