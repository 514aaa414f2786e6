"""What renting sends, once, and what is concluded from each kind of answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from gp4u.errors import (
    BadInput,
    Denied,
    OfferGone,
    OutcomeUnknown,
    ProviderError,
    Refused,
    Throttled,
    Unavailable,
)
from gp4u.model import Offer, Port, Protocol, RentalKey, Requirements, Workload
from gp4u.providers.contract import Query
from gp4u.providers.vastai.order import rent_body
from tests.unit.providers.scripted import KEY, Script, market, recorded
from tests.virtual_loop import EPOCH, run_virtual

RENTAL = RentalKey("gp4u-1-abc")
OFFER = Offer(
    provider="vastai",
    offer_id="1234567",
    gpu_model="RTX 4090",
    gpu_count=1,
    vram_gib=24.0,
    price_usd_per_hour=Decimal("0.1517"),
    gpu_usd_per_hour=Decimal("0.1317"),
    storage_usd_per_hour=Decimal("0.02"),
    fetched_at=EPOCH,
)
BID = Offer(**{f: getattr(OFFER, f) for f in OFFER.__struct_fields__} | {"interruptible": True})
WORKLOAD = Workload(
    image="june/stt:1",
    command=("serve", "--port", "8000"),
    env={"MODEL": "small"},
    ports=(Port(8000), Port(9000, Protocol.UDP)),
    disk_gib=40,
)
Reply = httpx2.Response | Exception | dict[str, object]


def rent(script: Script, *, tries: int = 3) -> str:
    """Rent the offer under our key; the guard would retry, if it were allowed to."""
    return run_virtual(lambda: market(script, tries=tries).rent(OFFER, WORKLOAD, RENTAL))


def error_of(reply: Reply) -> tuple[ProviderError, Script]:
    """Return what a rent ends in, and what was sent for it."""
    script = Script(reply, reply, reply)
    with pytest.raises(ProviderError) as info:
        rent(script)
    return info.value, script


def vendors(name: str) -> httpx2.Response:
    """Return one of the vendor's examples of an answer to a create call."""
    example = recorded("create_responses")[name]
    return httpx2.Response(example["status"], json=example["body"])


# What is sent.


def test_the_body_is_the_whole_wish_and_nothing_else() -> None:
    """`args` keeps the image's entrypoint, and `cancel_unavail` forbids a stopped, billing stub."""
    assert rent_body(OFFER, WORKLOAD, RENTAL) == {
        "client_id": "me",
        "image": "june/stt:1",
        "env": {"MODEL": "small", "-p 8000:8000": "1", "-p 9000:9000/udp": "1"},
        "args": ["serve", "--port", "8000"],
        "price": None,
        "disk": 40.0,
        "label": RENTAL,
        "runtype": "args",
        "cancel_unavail": True,
        "target_state": "running",
    }


def test_an_image_without_a_command_keeps_its_own() -> None:
    """An empty `args` would replace it by nothing."""
    assert "args" not in rent_body(OFFER, Workload(image="x"), RENTAL)


def test_an_interruptible_offer_is_rented_with_its_price() -> None:
    """Without one, the market rents on demand at another price and says nothing."""
    assert rent_body(BID, WORKLOAD, RENTAL)["price"] == 0.1317


def test_the_disk_is_at_least_what_is_sold() -> None:
    """8 GB; the price was made for as much."""
    assert rent_body(OFFER, Workload(image="x", disk_gib=1), RENTAL)["disk"] == 8.0


@pytest.mark.parametrize(
    ("workload", "field"),
    [
        (Workload(image="x" * 1025), "image"),
        (Workload(image="x", command=("a" * 4000, "b" * 97)), "command"),
        (Workload(image="x", env={"-v /:/host": "1"}), "env"),
        (Workload(image="x", env={"": "1"}), "env"),
        (Workload(image="x", env={"A" * 257: "1"}), "env"),
        (Workload(image="x", env={"A": "1" * 257}), "env"),
        (Workload(image="x", env={f"A{n}": "1" * 250 for n in range(130)}), "env"),
        (Workload(image="x", ports=tuple(map(Port, range(1, 66)))), "port"),
    ],
    ids=["image", "command", "flag", "nameless", "long name", "long value", "much", "ports"],
)
def test_a_workload_that_the_market_cannot_take_is_refused_before_anything_is_sent(
    workload: Workload, field: str
) -> None:
    """S10: a variable that starts with a dash would be a flag of Docker's."""
    script = Script()
    with pytest.raises(BadInput) as info:
        run_virtual(lambda: market(script).rent(OFFER, workload, RENTAL))
    assert info.value.field == field
    assert script.requests == []


def test_what_a_dry_run_shows_is_what_a_rent_sends() -> None:
    """Else the dry run would be a promise about another call."""
    script = Script(recorded("create_responses")["ok"]["body"])
    (call,) = market(script).rent_calls(OFFER, WORKLOAD, RENTAL)
    rent(script)
    (sent,) = script.requests
    assert (sent.method, str(sent.url)) == (call.method, call.url)
    assert sent.url.path == "/api/v0/asks/1234567/"
    assert json.loads(sent.content) == call.body


@pytest.mark.parametrize(
    "base_url",
    [
        "https://m.example/api/v0",
        "https://m.example/api/v0/",
        "https://m.example",
        "https://m.example/api/v1",
    ],
)
def test_both_versions_of_the_api_are_found_from_any_form_of_its_address(base_url: str) -> None:
    """The list is v1, the rest v0, and people paste what they have."""
    page = {"instances": [], "total_instances": 0, "next_token": None}
    script = Script({"success": True, "new_contract": 1}, page)

    async def both() -> None:
        there = market(script, base_url=base_url)
        await there.rent(OFFER, WORKLOAD, RENTAL)
        await there.instances()

    run_virtual(both)
    assert script.paths == ["PUT /api/v0/asks/1234567/", "GET /api/v1/instances/"]


def test_the_account_key_is_in_no_body_and_no_url_of_any_call() -> None:
    """S5: the body of a rent is read inside the rented machine."""
    offers: dict[str, object] = {"offers": []}
    listing = {"instances": [], "total_instances": 0, "next_token": None}
    script = Script(
        {"id": 1}, offers, {"new_contract": 1}, listing, {"success": True}, {}, {"results": []}
    )

    async def everything() -> None:
        there = market(script)
        await there.ping()
        await there.offers(Query(requirements=Requirements()))
        await there.rent(BID, WORKLOAD, RENTAL)
        await there.instances()
        await there.release("1")
        await there.logs("1")
        await there.billed("1")

    run_virtual(everything)
    assert len(script.requests) == 7
    for request in script.requests:
        assert KEY.encode() not in request.content
        assert KEY not in str(request.url)
        assert [n for n, v in request.headers.items() if KEY in v] == ["authorization"]


# What is concluded.


@pytest.mark.parametrize("name", ["ok", "ok_with_instance_key"])
def test_a_success_is_the_id_of_the_contract(name: str) -> None:
    """`new_contract` is the instance id."""
    assert rent(Script(vendors(name))) == "1234568"


def test_an_id_that_comes_as_text_is_the_same_id() -> None:
    """H20: id as a number, then as text."""
    assert rent(Script({"success": True, "new_contract": "1234568"})) == "1234568"


CLEAR: list[tuple[str, type[ProviderError]]] = [
    ("bad_args", Refused),
    ("not_your_machine", Refused),
    ("offer_unknown", OfferGone),
    ("offer_gone", OfferGone),
    ("too_fast", Throttled),
]


@pytest.mark.parametrize(("name", "kind"), CLEAR)
def test_the_vendors_examples_of_a_no_are_a_clear_no(name: str, kind: type[ProviderError]) -> None:
    """Each of them is on its list of answers, and none of them rented."""
    error, script = error_of(vendors(name))
    assert type(error) is kind
    assert len(script.requests) == 1


def declined(**body: object) -> dict[str, object]:
    """Return a body that says no."""
    return {"success": False, **body}


UNCLEAR: dict[str, Reply] = {
    "200 without an id": httpx2.Response(200, json=declined(error="invalid_price", msg="too low")),
    "200 with only a text": httpx2.Response(200, json=declined(msg="sorry")),
    "200 queued": httpx2.Response(200, json=declined(error="resources_unavailable", msg="queued")),
    "200 and too frequent": httpx2.Response(200, json=declined(msg="API requests too frequent")),
    "success without an id": httpx2.Response(200, json={"success": True}),
    "success with a strange id": httpx2.Response(200, json={"success": True, "new_contract": "²"}),
    "empty": httpx2.Response(200, content=b""),
    "html": httpx2.Response(200, html="<html>Log in</html>"),
    "a list": httpx2.Response(200, json=[]),
    "deep": httpx2.Response(200, content=b"[" * 100_000),
    "500": httpx2.Response(500, json=declined(error="no_such_ask")),
    "502": httpx2.Response(502, html="<html>Bad Gateway</html>"),
    "503": httpx2.Response(503, text="API requests too frequent"),
    "504": httpx2.Response(504, text=""),
    "408": httpx2.Response(408, text=""),
    "redirect": httpx2.Response(307, headers={"location": "https://elsewhere.example/"}),
    "read timeout": httpx2.ReadTimeout("slow"),
    "reset": httpx2.ReadError("reset"),
    "half a request": httpx2.WriteError("broken pipe"),
    "no reply": httpx2.RemoteProtocolError("disconnected"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_whatever_is_not_a_clear_answer_leaves_the_outcome_unknown(name: str) -> None:
    """H2, H4, H17: it may have rented; it is never sent again, and the key will find it."""
    error, script = error_of(UNCLEAR[name])
    assert isinstance(error, OutcomeUnknown)
    assert error.key == RENTAL
    assert len(script.requests) == 1


@pytest.mark.parametrize("status", [200, 400, 403, 409, 410, 429, 500, 503])
def test_an_id_in_an_error_is_never_lost(status: int) -> None:
    """H5: a bid below the floor leaves a stopped contract that bills its disk."""
    body = declined(error="invalid_price", msg="bid below minimum", new_contract=777)
    error, script = error_of(httpx2.Response(status, json=body))
    assert isinstance(error, Refused)
    assert (error.instance_id, error.code) == ("777", "invalid_price")
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    "make",
    [httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout],
    ids=lambda m: m.__name__,
)
def test_a_rent_that_never_left_is_tried_again_and_then_known_not_to_have_happened(
    make: Callable[[str], Exception],
) -> None:
    """H1: no byte left, so no verb is dangerous."""
    error, script = error_of(make("no way"))
    assert isinstance(error, Unavailable)
    assert not error.sent
    assert len(script.requests) == 3


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, declined(error="auth_error", msg="Invalid user key"), Denied),
        (401, declined(error="auth_error"), Denied),
        (403, declined(error="auth_error", msg="This action requires login."), Denied),
        (400, declined(error="no_such_ask"), OfferGone),
        (409, declined(msg="taken"), OfferGone),
        (200, declined(error="no_such_ask", msg="no longer there"), OfferGone),
        (400, declined(error="missing_billing"), Refused),
        (400, declined(error="insufficient_credit", msg="Your credit is 0"), Refused),
    ],
)
def test_a_clear_no_is_told_by_its_words(
    status: int, body: dict[str, Any], kind: type[ProviderError]
) -> None:
    """H25, H39, M1: gone, denied and out of money call for different people."""
    error, _ = error_of(httpx2.Response(status, json=body))
    assert type(error) is kind


def test_the_key_of_an_instance_is_in_no_error() -> None:
    """It is a secret, and has leaked into public reports through exactly these texts."""
    secret = "c0ffee" * 8
    for reply in (
        httpx2.Response(200, json={"success": False, "instance_api_key": secret}),
        httpx2.Response(400, json={"success": False, "instance_api_key": secret}),
        httpx2.Response(200, content=b'{"instance_api_key": "' + secret.encode() + b'", "new'),
    ):
        error, _ = error_of(reply)
        assert secret not in str(error)
        assert secret[:12] not in repr(error.args)
