"""Reading the chain: the nodes' addresses, and the protobuf of one query."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import httpx2
import pytest

from gp4u.errors import Malformed, ProviderError
from gp4u.providers.akash.chain import Chain, Node, read_providers, rest_urls
from gp4u.providers.akash.held import Block
from gp4u.providers.akash.wire import judge
from gp4u.providers.http import Http
from gp4u.resilience.guard import build_guard
from tests.virtual_loop import VirtualClock, run_virtual

# Written out by hand from the field numbers: two providers and the key of the next page.
MESSAGE = bytes.fromhex(
    "0a2b"  # providers, 43 bytes
    "0a06616b61736831"  # owner "akash1"
    "1210"
    + b"https://h.test:1".hex()  # host_uri, 16 bytes
    + "1a0d0a04686f73741205616b617368"  # attribute host=akash
    "2200"  # info
    "0a080a06616b61736832"  # a provider with nothing but an owner
    "12060a0261621802"  # pagination: next_key "ab", total 2
)


def test_the_nodes_that_are_given_go_before_the_twin() -> None:
    """Several are asked, so several can be given; whoever names them knows best."""
    given = ("https://a.test/x", "https://b.test")
    assert rest_urls(given, "https://rpc.c.test") == given


def test_an_rpc_address_has_a_rest_twin() -> None:
    """The seed's own variable is enough: its host says `rpc.` and its twin `rest.`."""
    assert rest_urls((), "https://rpc.cosmos.directory/akash") == (
        "https://rest.cosmos.directory/akash",
    )
    assert rest_urls((), "https://node.test/akash") == ()


def test_providers_are_read_from_protobuf() -> None:
    """The fall-back where no REST node answers."""
    hosts, key = read_providers(MESSAGE)
    assert [(h.owner, h.host_uri) for h in hosts] == [
        ("akash1", "https://h.test:1"),
        ("akash2", ""),
    ]
    assert [(a.key, a.value) for a in hosts[0].attributes] == [("host", "akash")]
    assert key == b"ab"


@pytest.mark.parametrize("cut", range(1, 45))
def test_a_message_that_is_cut_off_is_an_error(cut: int) -> None:
    """Never half a provider."""
    with pytest.raises((ValueError, IndexError)):
        read_providers(MESSAGE[:cut])


SAMPLE = Path(__file__).parents[3] / "payloads" / "akash" / "lcd-provider-docs-example.json"
OWNER = "akash1qpy7waukp7nxlcxmwjcgtmyzu2auk3p5dc3gg6"


def nodes(
    handler: Callable[[httpx2.Request], httpx2.Response] | None = None, **answers: httpx2.Response
) -> Chain:
    """Return a chain of nodes `a`, `b` and an RPC node `rpc` that answer as told."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        none = httpx2.Response(404, json={"code": 5})
        told = answers.get(request.url.host.split(".")[0], none)
        # A body that was made from bytes counts as read already; a real one does not.
        return httpx2.Response(told.status_code, stream=httpx2.ByteStream(told.content))

    def node(name: str) -> Node:
        guard = build_guard(
            name,
            threshold=50,
            timeout_s=60,
            half_open_max_calls=3,
            rate_per_min=None,
            burst=50,
            paces={},
            max_retries=1,
            base_delay_s=1,
            max_delay_s=1,
            jitter_s=0,
            random=Random(1),
            clock=VirtualClock(),
        )
        transport = httpx2.MockTransport(handler or answer)
        http = Http("akash", guard=guard, judge=judge, headers={}, timeout_s=5, transport=transport)
        return Node(f"https://{name}.test", http)

    return Chain(rest=(node("a"), node("b")), rpc=node("rpc"))


def test_the_documented_provider_is_read_from_any_node() -> None:
    """The first node does not know it; the second one does."""
    chain = nodes(b=httpx2.Response(200, content=SAMPLE.read_bytes()))
    host = run_virtual(lambda: chain.host(OWNER))
    assert host.host_uri == "https://provider.forgeelectronics.uk:8443"


def test_pages_that_do_not_end_are_an_error() -> None:
    """A node whose key leads back to the same page would hold us for ever."""
    loop = httpx2.Response(200, json={"providers": [], "pagination": {"next_key": "AA=="}})
    with pytest.raises(Malformed):
        run_virtual(lambda: nodes(a=loop, b=loop, rpc=httpx2.Response(200, json={})).hosts())


@pytest.mark.parametrize("value", ["!!", "CgU=", "//8="])
def test_an_rpc_answer_that_is_no_protobuf_is_malformed(value: str) -> None:
    """Not base64, cut off, or nonsense."""
    reply = {"result": {"response": {"code": 0, "value": value}}}
    with pytest.raises(Malformed):
        run_virtual(lambda: nodes(rpc=httpx2.Response(200, json=reply)).hosts())


def test_an_rpc_error_is_told_in_its_own_words() -> None:
    """HTTP says 200 all the same."""
    reply = {"result": {"response": {"code": 6, "log": "unknown query path"}}}
    with pytest.raises(Malformed, match="unknown query path"):
        run_virtual(lambda: nodes(rpc=httpx2.Response(200, json=reply)).hosts())


def test_a_node_with_rows_that_cannot_be_read_has_not_answered() -> None:
    """What it shows exists; that there is nothing else is not proven."""
    good = {"deployment": {"id": {"dseq": "7"}, "state": "active"}}
    page = {"deployments": [good, {"deployment": 1}], "pagination": {"next_key": None}}
    seen = run_virtual(lambda: nodes(a=httpx2.Response(200, json=page)).deployments("akash1x"))
    assert (list(seen.deployments), seen.answers) == (["7"], 0)


def test_certificates_are_none_where_nobody_tells() -> None:
    """Then only one that an authority vouches for will do."""
    assert run_virtual(lambda: nodes().certificates(OWNER)) == ()


def test_a_registered_certificate_is_returned_as_it_is_shown() -> None:
    """In the chain it is PEM, in base64 once more; a connection shows DER."""
    pem = (SAMPLE.parent / "gateway-cert.pem").read_text()
    row = {"certificate": {"state": "valid", "cert": b64encode(pem.encode()).decode()}}
    chain = nodes(a=httpx2.Response(200, json={"certificates": [row]}))
    assert run_virtual(lambda: chain.certificates(OWNER)) == (ssl.PEM_cert_to_DER_cert(pem),)


HEAD = {"id": {"owner": "akash1x", "dseq": "7"}, "state": "active"}


@pytest.mark.parametrize(
    "head",
    [
        HEAD | {"id": {"owner": "akash1y", "dseq": "8"}},
        HEAD | {"state": "closed", "id": {"owner": "akash1x", "dseq": "8"}},
        HEAD | {"id": {"owner": "akash1x", "dseq": "8/../../leases"}},
        HEAD | {"id": {"owner": "akash1x", "dseq": -8}},
    ],
)
def test_a_node_that_shows_what_was_not_asked_for_has_not_answered(head: object) -> None:
    """What it shows becomes a number in paths at the Console, under our key."""
    page = {"deployments": [{"deployment": HEAD}, {"deployment": head}]}
    seen = run_virtual(lambda: nodes(a=httpx2.Response(200, json=page)).deployments("akash1x"))
    assert (list(seen.deployments), seen.answers) == (["7"], 0)


def test_a_certificate_that_cannot_be_read_hides_no_other() -> None:
    """A provider registers a new one each time, and old ones stay."""
    pem = (SAMPLE.parent / "gateway-cert.pem").read_text()
    good = {"certificate": {"cert": b64encode(pem.encode()).decode()}}
    bad = [{"certificate": {"cert": cert}} for cert in ("!", "AAAA")]
    reply = httpx2.Response(200, json={"certificates": [*bad, {"certificate": 1}, good]})
    found = run_virtual(lambda: nodes(a=reply).certificates(OWNER))
    assert found == (ssl.PEM_cert_to_DER_cert(pem),)


def status(height: str, at: str) -> httpx2.Response:
    """Return what CometBFT tells of itself."""
    sync = {"latest_block_height": height, "latest_block_time": at, "catching_up": False}
    return httpx2.Response(200, json={"jsonrpc": "2.0", "id": -1, "result": {"sync_info": sync}})


def test_the_newest_block_is_told_with_its_time() -> None:
    """Times have nine digits there."""
    chain = nodes(rpc=status("28826831", "2026-09-28T12:26:10.406123456Z"))
    block = run_virtual(chain.newest)
    assert block == Block(28826831, datetime(2026, 9, 28, 12, 26, 10, 406123, UTC))


@pytest.mark.parametrize(
    "answer",
    [
        status("x", "2026-09-28T12:26:10Z"),
        status("1", "2026-09-28T12:26:10"),
        status("1", "noon"),
        httpx2.Response(503),
        httpx2.Response(200, json={"error": {"code": -32601}}),
    ],
)
def test_a_block_that_cannot_be_told_is_none(answer: httpx2.Response) -> None:
    """Money is moved by its time: better none than a wrong one."""
    assert run_virtual(nodes(rpc=answer).newest) is None


def test_a_hosts_address_is_no_part_of_a_path() -> None:
    """It stands in a lease, which others write."""
    asked: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.raw_path)
        return httpx2.Response(503, stream=httpx2.ByteStream(b""))

    with pytest.raises(ProviderError):
        run_virtual(lambda: nodes(answer).host("../x?y"))
    assert asked[0] == b"/akash/provider/v1beta4/providers/..%2Fx%3Fy"
