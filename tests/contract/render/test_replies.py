"""Both adapters of Render against single replies: every row of the error table, and odd lists.

The adapters are opened from variables, as in production; at the other end is whatever a test says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest

from gp4u.errors import (
    Denied,
    InstanceAbsent,
    Malformed,
    OfferGone,
    OutcomeUnknown,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import InstanceState, Offer, Requirements, Workload
from gp4u.providers.contract import Provider, Query
from gp4u.providers.http import Http, Judge, Sign
from gp4u.providers.render.opening import OPENING
from gp4u.resilience.guard import build_guard
from gp4u.settings import load_settings
from tests.contract.render.market import KEY, PUBLIC, SECRET
from tests.virtual_loop import VirtualClock, run_virtual

Answer = Callable[[httpx2.Request], httpx2.Response | None]
"""What a service says to a call; None: nothing, for an hour."""
QUERY = Query(requirements=Requirements())
OFFER = Offer(
    provider="render",
    offer_id="off_1@us-west-2/3fa85f64",
    gpu_model="RTX 4090",
    gpu_count=1,
    vram_gib=24.0,
    price_usd_per_hour=Decimal("0.35"),
    gpu_usd_per_hour=Decimal(0),
    storage_usd_per_hour=Decimal("0.35"),
    fetched_at=datetime(2026, 11, 1, tzinfo=UTC),
)
WORKLOAD = Workload(image="nginx", disk_gib=0)
ENVIRON = {
    "dispersed": {"RENDER_API_SECRET": SECRET},
    "legacy": {"RENDER_API_FLAVOR": "legacy", "RENDER_BASE_URL": "https://nodes.test/v1"},
}
ACTS: Mapping[str, Callable[[Any], Awaitable[object]]] = {
    "ping": lambda adapter: adapter.ping(),
    "offers": lambda adapter: adapter.offers(QUERY),
    "instances": lambda adapter: adapter.instances(),
    "rent": lambda adapter: adapter.rent(OFFER, WORKLOAD, KEY),
    "release": lambda adapter: adapter.release("job-1"),
    "logs": lambda adapter: adapter.logs("job-1"),
    "billed": lambda adapter: adapter.billed("job-1"),
}
READS = ("ping", "offers", "instances")
OF_ONE = {"dispersed": ("release", "logs"), "legacy": ("release", "billed")}


class _Body(httpx2.AsyncByteStream):
    """A body as it comes from a socket."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


class Service(httpx2.AsyncBaseTransport):
    """The other end: answers as it is told, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        whole = self._answer(request)
        if whole is None:
            await asyncio.sleep(3600)
            raise httpx2.ReadTimeout("nothing came", request=request)
        return httpx2.Response(
            whole.status_code, headers=whole.headers, stream=_Body(whole.content), request=request
        )


@asynccontextmanager
async def opened(
    flavor: str, answer: Answer, **variables: str
) -> AsyncIterator[tuple[Provider, Service]]:
    """Open the adapter of a flavour on a service that answers so."""
    service = Service(answer)
    environ = {"RENDER_API_KEY": PUBLIC, **ENVIRON[flavor], **variables}
    settings = load_settings(environ, Path("/nonexistent"))
    own, clock = settings.provider("render"), VirtualClock()

    def wire(
        judge: Judge, headers: Mapping[str, str], *, sign: Sign | None = None, part: str = ""
    ) -> Http:
        return Http(
            f"render{part}",
            guard=build_guard("render", random=Random(1), clock=clock, jitter_s=0.0),
            judge=judge,
            headers=headers,
            sign=sign,
            timeout_s=own.timeout_s,
            transport=service,
        )

    assert OPENING.lacks(own, OPENING.spec) == ""
    adapter = OPENING.open(own, settings, clock, wire)
    try:
        yield adapter, service
    finally:
        await adapter.aclose()


def always(status: int, body: object = None, **headers: str) -> Answer:
    """Return one answer to everything; a body that is no text is sent as JSON."""
    content = body if isinstance(body, str) else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: httpx2.Response(status, text=content, headers=named)


def failure(code: str, message: str = "") -> dict[str, object]:
    """Return the body of a refusal."""
    return {"error": {"code": code, "message": message}}


HTML = "<html>sign in</html>"
NO_CREDIT = failure("rejected", "Insufficient credits in this account")
ROWS: list[tuple[Answer, type[ProviderError], type[ProviderError], type[ProviderError]]] = [
    # the reply; what a read of a list raises, a rent, and a call about one job
    (always(500, HTML), Unavailable, OutcomeUnknown, Unavailable),
    (always(503, failure("busy")), Unavailable, OutcomeUnknown, Unavailable),
    (always(408, HTML), Unavailable, OutcomeUnknown, Unavailable),
    (always(429, failure("slow"), retry_after="1"), Throttled, Throttled, Throttled),
    (always(401, failure("invalid_signature")), Denied, Denied, Denied),
    (always(403, failure("forbidden")), Denied, Denied, Denied),
    (always(402, failure("broke")), Refused, Refused, Refused),
    (always(400, NO_CREDIT), Refused, Refused, Refused),
    (always(404, failure("not_found")), Refused, OfferGone, InstanceAbsent),
    (always(409, failure("no_capacity")), Refused, OfferGone, InstanceAbsent),
    (always(410, failure("gone")), Refused, OfferGone, InstanceAbsent),
    (always(302, "", location="https://x.test"), Malformed, OutcomeUnknown, Malformed),
    (always(404, HTML), Malformed, Refused, Malformed),
    (always(200, failure("internal")), Malformed, OutcomeUnknown, Malformed),
    (always(200, {"success": False}), Malformed, OutcomeUnknown, Malformed),
    (always(200, HTML), Malformed, OutcomeUnknown, Malformed),
    (always(200, ""), Malformed, OutcomeUnknown, Malformed),
    (always(400, failure("validation_error")), Refused, Refused, Refused),
    (always(422, failure("validation_error")), Refused, Refused, Refused),
]


@pytest.mark.parametrize("flavor", ["dispersed", "legacy"])
@pytest.mark.parametrize(
    ("answer", "read", "rent", "of_one"), ROWS, ids=[str(number) for number in range(len(ROWS))]
)
def test_every_row_of_the_error_table_has_its_kind_at_every_call(
    flavor: str,
    answer: Answer,
    read: type[ProviderError],
    rent: type[ProviderError],
    of_one: type[ProviderError],
) -> None:
    """Who acts on a failure depends on its type alone, and a rent's decides over money."""

    async def scene() -> None:
        wanted = dict.fromkeys(READS, read) | dict.fromkeys(OF_ONE[flavor], of_one)
        for act, kind in {**wanted, "rent": rent}.items():
            async with opened(flavor, answer) as (adapter, service):
                with pytest.raises(ProviderError) as caught:
                    await ACTS[act](adapter)
                assert type(caught.value) is kind, act
                if act == "rent" and kind is not Throttled:
                    assert len(service.asked) == 1, "a rent is sent once"

    run_virtual(scene)


@pytest.mark.parametrize("flavor", ["dispersed", "legacy"])
@pytest.mark.parametrize("answer", [always(402, failure("broke")), always(400, NO_CREDIT)])
def test_want_of_credit_is_told_by_name(flavor: str, answer: Answer) -> None:
    """Every further candidate would fail alike."""

    async def scene() -> None:
        async with opened(flavor, answer) as (adapter, _):
            with pytest.raises(Refused) as caught:
                await adapter.rent(OFFER, WORKLOAD, KEY)
            assert caught.value.code == "insufficient_credit"

    run_virtual(scene)


@pytest.mark.parametrize("flavor", ["dispersed", "legacy"])
def test_neither_key_nor_secret_stands_in_an_address_or_in_an_error(flavor: str) -> None:
    """Addresses end in logs of proxies, and errors in ours."""

    async def scene() -> None:
        async with opened(flavor, always(400, failure("x", f"your key {PUBLIC}"))) as (a, service):
            for act in ("ping", "rent", "release"):
                with pytest.raises(ProviderError) as caught:
                    await ACTS[act](a)
                assert SECRET not in str(caught.value)
                if flavor == "legacy":
                    assert PUBLIC not in str(caught.value), "a Bearer key is a secret"
            for request in service.asked:
                assert PUBLIC not in str(request.url)
                assert SECRET not in str(request.url) + str(request.headers)

    run_virtual(scene)


def lists(*, runs: Callable[[httpx2.Request], object], **job: object) -> Answer:
    """Return a service with one running job; `runs` answers for its runs."""
    row = {
        "uuid": "job-1",
        "title": KEY,
        "status": "RUNNING",
        "parameters": {"parameters": {"ports": [8000]}},
        **job,
    }

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/jobs":
            return httpx2.Response(200, json={"data": [row], "page": 1, "limit": 50, "total": 1})
        said = runs(request)
        if isinstance(said, httpx2.Response):
            return said
        return httpx2.Response(200, json={"data": said})

    return answer


def run(job: str | None, host: str = "a.proxy.test") -> dict[str, object]:
    """Return a run with an address."""
    url = {"description": "8000", "hostname": host, "port": 40001, "protocol": "tcp"}
    row: dict[str, object] = {"uuid": "run-1", "status": "RUNNING", "node_urls": [url]}
    return row if job is None else {**row, "job_uuid": job}


def is_of_one(request: httpx2.Request) -> bool:
    """Whether a call asks for the runs of one job."""
    return "filter[job_uuid]" in request.url.params


def test_a_running_job_whose_run_is_not_in_the_list_is_asked_for() -> None:
    """A run that slipped through between two pages would take the address from a live rental."""

    async def scene() -> None:
        answer = lists(runs=lambda r: [run("job-1")] if is_of_one(r) else [run("another")])
        async with opened("dispersed", answer) as (adapter, service):
            (instance,) = (await adapter.instances()).instances
            assert instance.state is InstanceState.RUNNING
            assert [e.host for e in instance.endpoints] == ["a.proxy.test"]
            assert len(service.asked) == 3

    run_virtual(scene)


@pytest.mark.parametrize("status", [400, 422])
def test_where_runs_are_listed_for_one_job_only_they_are_asked_for_one_by_one(status: int) -> None:
    """Listing all runs at once is in no document, and its refusal must not blind us to jobs."""

    async def scene() -> None:
        no = httpx2.Response(status, json=failure("validation_error", "job_uuid is required"))
        answer = lists(runs=lambda r: [run("job-1")] if is_of_one(r) else no)
        async with opened("dispersed", answer) as (adapter, _):
            listing = await adapter.instances()
            assert listing.complete
            assert listing.instances[0].endpoints

    run_virtual(scene)


def test_a_run_of_another_job_gives_no_address_and_no_log() -> None:
    """A service that ignores the filter would make us serve, and probe, a stranger's machine."""

    async def scene() -> None:
        async with opened("dispersed", lists(runs=lambda _: [run("another")])) as (adapter, _):
            (instance,) = (await adapter.instances()).instances
            assert instance.endpoints == ()
            assert instance.state is InstanceState.BOOTING
        asked: list[str] = []

        def logs(request: httpx2.Request) -> object:
            asked.append(request.url.path)
            if request.url.path == "/v1/jobs/no-such-job":
                return httpx2.Response(404, json=failure("not_found"))
            return [run("another")]

        async with opened("dispersed", lists(runs=logs)) as (adapter, _):
            with pytest.raises(InstanceAbsent):
                await adapter.logs("no-such-job")
            assert "/v1/job-runs/run-1" not in asked

    run_virtual(scene)


def test_a_list_that_comes_with_an_error_proves_no_absence() -> None:
    """Half a list and an apology: what is not in it may be there all the same."""

    async def scene() -> None:
        for flavor, under in (("dispersed", "data"), ("legacy", "jobs")):
            body = {under: [{"uuid": "a", "job_id": "a"}], "total": 1, **failure("shard_down")}
            async with opened(flavor, always(200, body)) as (adapter, _):
                with pytest.raises(Malformed):
                    await adapter.instances()

    run_virtual(scene)


def test_one_odd_row_does_not_hide_the_others_of_the_proposed_api() -> None:
    """A state that is no word must neither stop the listing nor count as gone."""

    async def scene() -> None:
        jobs = [{"job_id": "a", "status": ["running"]}, {"job_id": "b", "status": "running"}]
        body = {"jobs": jobs, "page": 1, "limit": 100, "total": 2}
        async with opened("legacy", always(200, body)) as (adapter, _):
            listing = await adapter.instances()
            assert listing.complete
            states = {i.instance_id: i.state for i in listing.instances}
            assert states == {"a": InstanceState.UNKNOWN, "b": InstanceState.RUNNING}

    run_virtual(scene)


@pytest.mark.parametrize("flavor", ["dispersed", "legacy"])
def test_the_deadline_of_a_rent_is_the_one_that_patience_is_reckoned_by(flavor: str) -> None:
    """A call that outlives it could still rent after the rental was given up."""

    async def scene() -> None:
        async with opened(flavor, lambda _: None, GP4U_RENT_TIMEOUT_S="7") as (adapter, _):
            began = asyncio.get_running_loop().time()
            with pytest.raises(OutcomeUnknown):
                await adapter.rent(OFFER, WORKLOAD, KEY)
            assert asyncio.get_running_loop().time() - began == pytest.approx(7, abs=0.5)

    run_virtual(scene)
