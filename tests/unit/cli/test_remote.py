"""The desk that asks a server: what is sent, what comes back, and what a connection can do."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import msgspec
import pytest

from gp4u.api.problems import problem_of
from gp4u.api.rentals.bodies import DecisionBody, RentBody
from gp4u.cli import inside
from gp4u.cli.failures import Code, code_of, hints_of
from gp4u.cli.remote import RemoteDesk, demand_body, open_remote_desk, workload_body
from gp4u.cli.run import Counter
from gp4u.cli.screen import Screen
from gp4u.cli.server import PATIENT_S, QUICK_S
from gp4u.desk.desk import NoOfferFits
from gp4u.desk.shapes import (
    DoneStep,
    IntendedStep,
    ProblemStep,
    RentedStep,
    StepShape,
    WatchedStep,
    rental_shape,
)
from gp4u.desk.telling import decision_shape
from gp4u.errors import (
    BadInput,
    BudgetRefused,
    CircuitBreakerOpen,
    Denied,
    Gp4uError,
    InstanceAbsent,
    MarketClosed,
    NoSuch,
    OutcomeUnknown,
    OwnerHasRental,
    Refused,
    ServerDenied,
    ServerUnavailable,
    Throttled,
    Unavailable,
)
from gp4u.model import (
    DEFAULT_WEIGHTS,
    Demand,
    HealthCheck,
    Port,
    Preferences,
    Protocol,
    RentalKey,
    Requirements,
    Snapshot,
    Workload,
)
from gp4u.rentals.rental import close
from gp4u.selection.decide import decide
from gp4u.settings import load_settings
from tests.unit.cli.paper import Paper
from tests.unit.rentals.builders import AT, intended, releasing, running
from tests.virtual_loop import run_virtual

URL = "http://gp4u.test:8000"
TOKEN = "canary-0123456789"
KEY = RentalKey("gp4u-abcdef-abcdefghij-abcdefghij")
Handler = Callable[[httpx2.Request], httpx2.Response]
SHOWN = rental_shape(intended("cli:june"), AT)
RUNNING = rental_shape(running("cli:june"), AT)
WORKLOAD = Workload(
    image="vllm/vllm-openai",
    command=("serve", "--x"),
    env={"A": "b"},
    ports=(Port(8000, name="web"), Port(53, Protocol.UDP)),
    disk_gib=42.5,
    health=(HealthCheck(port=8000, path="/health"), HealthCheck(port=8000)),
)
DEMAND = Demand(
    requirements=Requirements(
        gpu_models=("RTX 4090", "RTX 3090"),
        gpu_count=2,
        max_price_usd_per_hour=Decimal("0.512345"),
        min_reliability=0.95,
        min_ram_gib=16,
        disk_gib=42.5,
        ports=2,
        locations=("US-CA", "EU"),
        providers=("akash",),
        interruptible=True,
        verified_only=False,
        datacenter_only=True,
    ),
    preferences=Preferences(weights={**dict.fromkeys(DEFAULT_WEIGHTS, 0.0), "price": 1.0}),
)


class Wire(httpx2.AsyncBaseTransport):
    """What a server answers, request by request; the last answer stands for all that follow."""

    def __init__(self, *answers: Handler) -> None:
        self._answers = list(answers)
        self.sent: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.sent.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return answer(request)


class Torn(httpx2.AsyncByteStream):
    """A body whose connection breaks after some lines."""

    def __init__(self, *lines: bytes) -> None:
        self._lines = lines

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for line in self._lines:
            yield line + b"\n"
        raise httpx2.ReadError("gone")


def ask(wire: Wire, wish: Callable[[RemoteDesk], Awaitable[Any]]) -> Any:
    """Ask a desk something, on a virtual clock."""

    async def job() -> Any:
        async with open_remote_desk(URL, TOKEN, Random(1), transport=wire) as desk:
            return await wish(desk)

    return run_virtual(job)


def refusal(wire: Wire, wish: Callable[[RemoteDesk], Awaitable[Any]]) -> Gp4uError:
    """Return what a wish comes to that is not granted."""
    with pytest.raises(Gp4uError) as caught:
        ask(wire, wish)
    return caught.value


def json_reply(value: object, status: int = 200) -> Handler:
    """Answer with JSON."""
    body, headers = msgspec.json.encode(value), {"Content-Type": "application/json"}
    return lambda _: httpx2.Response(status, content=body, headers=headers)


def problem(body: Mapping[str, object], **headers: str) -> Handler:
    """Answer with a problem."""
    given = {"Content-Type": "application/problem+json", **headers}
    content, status = msgspec.json.encode(body), int(str(body["status"]))
    return lambda _: httpx2.Response(status, content=content, headers=given)


def told(*steps: object) -> Handler:
    """Answer with lines of JSON."""
    body = b"".join(msgspec.json.encode(step) + b"\n" for step in steps)
    headers = {"Content-Type": "application/x-ndjson"}
    return lambda _: httpx2.Response(200, content=body, headers=headers)


def torn(*steps: object) -> Handler:
    """Answer with lines of JSON, and break the connection after them."""
    stream = Torn(*(msgspec.json.encode(step) for step in steps))
    headers = {"Content-Type": "application/x-ndjson"}
    return lambda _: httpx2.Response(200, stream=stream, headers=headers)


def broken(kind: type[httpx2.TransportError]) -> Handler:
    """Fail as a connection does."""

    def fail(request: httpx2.Request) -> httpx2.Response:
        raise kind("broken", request=request)

    return fail


async def markets(desk: RemoteDesk) -> Any:
    """The quickest of all wishes."""
    return await desk.markets()


def rent(tell: Callable[[StepShape], None] = lambda _: None) -> Callable[[RemoteDesk], Any]:
    """The dearest of all wishes."""
    return lambda desk: desk.rent("cli:june", DEMAND, WORKLOAD, wait=True, tell=tell)


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (broken(httpx2.ConnectError), Code.UNAVAILABLE, "cannot be reached"),
        (broken(httpx2.ConnectTimeout), Code.UNAVAILABLE, "cannot be reached within"),
        (broken(httpx2.ReadTimeout), Code.UNAVAILABLE, "does not answer"),
        (broken(httpx2.RemoteProtocolError), Code.UNAVAILABLE, "broke"),
        (
            lambda _: httpx2.Response(200, html="<h1>It works!</h1>"),
            Code.UNAVAILABLE,
            "answers with text/html",
        ),
        (lambda _: httpx2.Response(404, html="nothing here"), Code.UNAVAILABLE, "HTTP 404"),
        (lambda _: httpx2.Response(301, text="moved"), Code.UNAVAILABLE, "HTTP 301"),
        (lambda _: httpx2.Response(401, text="who is there?"), Code.NOT_ALLOWED, "HTTP 401"),
        (json_reply({"rows": []}), Code.UNAVAILABLE, "something else than it should"),
        (json_reply([1, 2]), Code.UNAVAILABLE, "something else than it should"),
        (
            problem({"status": 401, "code": "token_needed", "title": "A token is needed"}),
            Code.NOT_ALLOWED,
            "does not let us in: A token is needed",
        ),
        (
            problem({"status": 403, "code": "role_needed", "title": "", "detail": "needs rent"}),
            Code.NOT_ALLOWED,
            "needs rent",
        ),
        (
            problem({"status": 503, "code": "saturated", "title": "The server is full"}),
            Code.UNAVAILABLE,
            "too busy",
        ),
        (
            problem({"status": 404, "code": "no_such_path", "title": "There is no such path"}),
            Code.UNAVAILABLE,
            "another version",
        ),
        (
            problem({"status": 421, "code": "host_not_allowed", "title": "not known here"}),
            Code.UNAVAILABLE,
            "does not go by that name",
        ),
        (
            problem({"status": 409, "code": "nothing_fits", "title": "", "decision": 7}),
            Code.UNAVAILABLE,
            "cannot be read",
        ),
    ],
)
def test_what_is_no_server_of_ours_is_told_and_says_which_variable_is_to_blame(
    answer: Handler, code: Code, words: str
) -> None:
    """A wrong address, a proxy, an old server, a token: four different things to mend."""
    error = refusal(Wire(answer), markets)
    assert code_of(error) is code
    assert words in str(error)
    assert URL in str(error)
    assert TOKEN not in str(error)
    blamed = "GP4U_API_TOKEN" if code is Code.NOT_ALLOWED else "GP4U_API_URL"
    assert blamed in [what for what, _ in hints_of(error)]


FAILURES: list[Gp4uError] = [
    BadInput("demand.gpus", "0", "must be from 1 to 64"),
    NoSuch("key", "nobody", hint="no rental has this key"),
    OwnerHasRental("cli:june", KEY),
    OutcomeUnknown("vastai", "rent", "lost", key=KEY),
    Denied("vastai", "offers", "auth_error"),
    Refused("vastai", "rent", "no money", code="insufficient_credit"),
    Throttled("vastai", "offers", "too often", retry_after_s=3.0),
    InstanceAbsent("vastai", "logs", "gone"),
    MarketClosed("ionet", "IONET_API_KEY is not set"),
    BudgetRefused("GP4U_MAX_RENTALS", "3", "2"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_is_the_same_failure_on_this_side(error: Gp4uError) -> None:
    """Its code tells a script what to do, its text a person; neither may depend on a server."""
    back = refusal(Wire(problem(problem_of(error))), markets)
    assert (type(back), str(back), code_of(back)) == (type(error), str(error), code_of(error))
    assert hints_of(back) == hints_of(error)
    streamed = refusal(Wire(told(ProblemStep(problem=problem_of(error)))), rent())
    assert (type(streamed), str(streamed)) == (type(error), str(error))


def test_nothing_fits_brings_the_reasons_with_it() -> None:
    """They are told on this side, and there are no offers here to work them out from."""
    shape = decision_shape(
        decide(Snapshot([], taken_at=AT), DEMAND, at=AT), top=0, rejections=False
    )
    back = refusal(Wire(told(ProblemStep(problem=problem_of(NoOfferFits(shape))))), rent())
    assert isinstance(back, NoOfferFits)
    assert back.decision.explanation == shape.explanation


def test_the_steps_of_a_rent_are_told_in_order_and_its_end_is_the_rental() -> None:
    """The key comes before the money here too; a step of a newer server is passed over."""
    steps = [
        IntendedStep(rental=SHOWN, choice="[VAST] Selected instance 5001 - launching..."),
        RentedStep(rental=SHOWN),
        {"step": "polished", "rental": "?"},
        WatchedStep(rental=SHOWN, probe="http 503", problem=""),
        DoneStep(rental=RUNNING),
    ]
    heard: list[StepShape] = []
    wire = Wire(told(*steps))
    assert ask(wire, rent(heard.append)) == RUNNING
    assert [type(step) for step in heard] == [IntendedStep, RentedStep, WatchedStep]
    [request] = wire.sent
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert "application/x-ndjson" in request.headers["Accept"]
    body = json.loads(request.content)
    assert (body["name"], body["wait"]) == ("june", True)


def test_a_rent_that_is_answered_in_one_piece_is_understood() -> None:
    """A reply that is replayed for its Idempotency-Key need not be a stream."""
    assert ask(Wire(json_reply(RUNNING, 201)), rent()) == RUNNING


def test_a_rent_whose_connection_broke_before_any_reply_is_sent_once_more_under_its_key() -> None:
    """The server may have it already: with the same key it rents one machine, whatever it heard."""
    wire = Wire(broken(httpx2.ReadError), told(DoneStep(rental=RUNNING)))
    assert ask(wire, rent()) == RUNNING
    keys = {request.headers["Idempotency-Key"] for request in wire.sent}
    assert (len(wire.sent), len(keys)) == (2, 1)
    assert len(keys.pop()) > 30
    wire = Wire(broken(httpx2.ReadError))
    error = refusal(wire, rent())
    assert (len(wire.sent), isinstance(error, ServerUnavailable) and error.sent) == (2, True)


def test_a_rent_that_is_sent_again_waits_for_its_first_try() -> None:
    """Both are one rent; the second request is answered with what the first one comes to."""
    busy = problem(
        {"status": 409, "code": "request_in_progress", "title": "It goes on"},
        **{"Retry-After": "5"},
    )
    wire = Wire(broken(httpx2.ReadError), busy, busy, told(DoneStep(rental=RUNNING)))

    async def job() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with open_remote_desk(URL, None, Random(1), transport=wire) as desk:
            assert await rent()(desk) == RUNNING
        return loop.time() - began

    assert run_virtual(job) == pytest.approx(10)


def test_a_release_is_asked_for_until_it_is_proven() -> None:
    """A server waits for a quarter of an hour; who waits for the proof gets it all the same."""
    going = rental_shape(releasing(running("cli:june")), AT)
    over = rental_shape(close(releasing(running("cli:june")), at=AT), AT)

    def asked(*, wait: bool) -> tuple[int, str]:
        wire = Wire(told(DoneStep(rental=going)), told(DoneStep(rental=over)))
        end = ask(wire, lambda desk: desk.release("june", reason="x", wait=wait, tell=print))
        return len(wire.sent), end.state

    assert asked(wait=True) == (2, "released")
    assert asked(wait=False) == (1, "releasing")


def test_what_runs_inside_an_instance_is_never_sent_twice() -> None:
    """Nobody knows whether the first one ran, and a command is not made to run twice."""
    wire = Wire(broken(httpx2.ReadError))
    error = refusal(
        wire, lambda desk: desk.execute("june", ("rm", "x"), stdin=b"\xff", timeout_s=5)
    )
    assert isinstance(error, ServerUnavailable)
    [request] = wire.sent
    assert json.loads(request.content) == {"command": ["rm", "x"], "stdin": "/w==", "timeout_s": 5}


def test_a_container_is_named_to_the_server() -> None:
    """It alone knows the market; where none is named, servers of before are asked as before."""
    wire = Wire(lambda _: httpx2.Response(200, text="second"), broken(httpx2.ReadError))
    assert ask(wire, lambda desk: desk.logs("june", tail=5, container="side")) == "second"
    refusal(
        wire,
        lambda desk: desk.execute("june", ("id",), stdin=b"", timeout_s=5, container="side"),
    )
    log, command = wire.sent
    assert log.url.params["container"] == "side"
    assert json.loads(command.content)["container"] == "side"


def test_a_stream_that_breaks_after_the_key_says_that_nobody_knows() -> None:
    """The server goes on: it may cost money, so the key is in the error, and the code is 9."""
    for answer in (torn, told):
        cut = answer(IntendedStep(rental=SHOWN, choice=""), RentedStep(rental=SHOWN))
        error = refusal(Wire(cut), rent())
        assert isinstance(error, OutcomeUnknown)
        assert (error.key, code_of(error)) == (SHOWN.key, Code.UNKNOWN)
    early = refusal(Wire(torn()), rent())
    assert isinstance(early, ServerUnavailable)
    assert early.sent


def test_an_answer_without_an_end_is_not_read_to_it() -> None:
    """A server, or who pretends to be one, must not fill this machine's memory."""

    class Endless(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                yield b" " * (1 << 20)

    for media in ("application/json", "application/x-ndjson"):
        reply = httpx2.Response(200, stream=Endless(), headers={"Content-Type": media})
        error = refusal(Wire(lambda _, reply=reply: reply), rent())  # type: ignore[misc] # bound early
        assert isinstance(error, ServerUnavailable)


def test_a_server_that_hangs_is_noticed_soon_where_no_market_is_asked() -> None:
    """`gp4u ps` begins with such a question; four minutes of silence would look like ours."""
    wire = Wire(json_reply({"items": []}))
    ask(wire, markets)
    empty: dict[str, object] = {
        "items": [],
        "unexplained": [],
        "warnings": [],
        "failed": None,
        "next_cursor": None,
    }
    wire = Wire(json_reply({"items": []}), json_reply(empty))

    async def both(desk: RemoteDesk) -> None:
        await desk.markets()
        await desk.look(everything=False, ask=True)

    ask(wire, both)
    waits = [request.extensions["timeout"]["read"] for request in wire.sent]
    assert waits == [QUICK_S, PATIENT_S]


def test_a_list_of_rentals_is_read_to_its_last_page_and_the_markets_are_asked_once() -> None:
    """A page is how the server sends them, and nothing a person should have to know."""
    page = {"unexplained": [], "warnings": ["careful"], "failed": "provider_denied"}
    first = {**page, "items": [SHOWN], "next_cursor": "more"}
    last = {**page, "items": [RUNNING], "next_cursor": None, "warnings": [], "failed": None}
    wire = Wire(json_reply(first), json_reply(last))
    found = ask(wire, lambda desk: desk.look(everything=True, ask=True))
    assert [rental.key for rental in found.rentals] == [SHOWN.key, RUNNING.key]
    assert (found.warnings, found.failed) == (["careful"], "provider_denied")
    assert [request.url.params.get("ask") for request in wire.sent] == ["true", None]
    assert [request.url.params.get("cursor") for request in wire.sent] == [None, "more"]


@pytest.mark.parametrize("word", ["", "..", "a/b", "a?b=c", "\x1b[2J", "x" * 300])
def test_a_word_that_no_rental_has_never_becomes_a_path(word: str) -> None:
    """`..` names the list and not a rental; what is typed must not choose another route."""
    wire = Wire(json_reply(RUNNING))
    error = refusal(wire, lambda desk: desk.find(word))
    assert isinstance(error, NoSuch)
    assert error.field == "key"
    assert wire.sent == []


@pytest.mark.parametrize("demand", [Demand(), DEMAND], ids=["plain", "full"])
def test_a_demand_arrives_as_it_was_meant_whatever_the_servers_settings_are(
    demand: Demand, tmp_path: Path
) -> None:
    """The user's flags and variables were applied here; the server's must not fill the gaps."""
    server = {
        "VAST_GPU_TYPE": "RTX3060",
        "VAST_MAX_PRICE_PER_HOUR": "0.1",
        "VAST_MIN_RELIABILITY": "0.5",
        "VAST_DATACENTER_LOCATION": "US-NY",
    }
    settings = load_settings(server, tmp_path)
    assert settings.demand.gpu_types, "the settings do say something"
    whole = msgspec.structs.replace(
        demand, preferences=Preferences(weights=demand.preferences.weights or DEFAULT_WEIGHTS)
    )
    sent = msgspec.json.encode({"demand": demand_body(whole), "top": None})
    assert DecisionBody.model_validate_json(sent).wanted(settings) == whole


def test_a_workload_arrives_as_it_was_meant() -> None:
    """A port that lost its protocol on the way would be another port."""
    sent = msgspec.json.encode({"workload": workload_body(WORKLOAD)})
    assert RentBody.model_validate_json(sent).workload.workload() == WORKLOAD


def test_asking_a_server_loads_neither_numpy_nor_sql_nor_a_web_framework() -> None:
    """They take half a second, and a server has them."""
    code = (
        "import sys, gp4u.cli.remote, gp4u.cli.renting, gp4u.cli.market, gp4u.cli.inside, "
        "gp4u.cli.sweep; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "httpx2" in loaded
    assert not loaded & {"numpy", "sqlalchemy", "fastapi", "starlette", "gp4u.app"}


def test_a_token_that_will_not_do_is_no_market_that_denies() -> None:
    """The next step is another one: the server's token, and no market's key."""
    error = refusal(Wire(lambda _: httpx2.Response(403, text="no")), markets)
    assert isinstance(error, ServerDenied)


@pytest.mark.parametrize("first", ["", "made it\n"])
def test_a_log_is_followed_through_trouble_until_its_instance_is_gone(first: str) -> None:
    """A market that fails often enough opens its breaker, which is no other trouble than what led
    to it; and a workload that has printed nothing yet is followed like any other."""
    text = httpx2.Response(200, text=first)
    wire = Wire(
        json_reply(RUNNING),
        lambda _: text,
        problem(problem_of(Unavailable("vastai", "logs", "HTTP 500"))),
        problem(problem_of(CircuitBreakerOpen("vastai", "logs", retry_in_s=60.0))),
        lambda _: httpx2.Response(200, text=f"{first}more\n"),
        problem(problem_of(InstanceAbsent("vastai", "logs", "no such instance"))),
    )
    out, err = Paper(tty=False), Paper(tty=False)

    async def follow(desk: RemoteDesk) -> None:
        at = Counter(desk=desk, now=lambda: AT, secrets=())
        shown = Screen(out=out, err=err)
        await inside.logs(at, shown, "june", follow=True, tail=10, container=None)

    ask(wire, follow)

    assert out.plain == f"{first}more\n"
    assert "is gone" in err.plain
    assert {request.url.path.split("/")[4] for request in wire.sent[2:]} == {str(RUNNING.key)}
