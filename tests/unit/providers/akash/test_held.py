"""What Akash tells of a deployment: states, endpoints, money, times."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gp4u.model import InstanceState, Protocol
from gp4u.providers.akash import held
from gp4u.providers.akash.held import Block, Held, Status
from gp4u.providers.akash.wire import Money

PAYLOADS = Path(__file__).parents[3] / "payloads" / "akash"
DSEQ = "1790598358092"
AT = datetime.fromtimestamp(1790598358.092, UTC) + timedelta(minutes=1)
MONEY = Money(block_time_s=6.0)
OWNER = "akash1owner"


def lease(**changes: Any) -> dict[str, Any]:
    """Return a lease that runs."""
    row = {
        "id": {"owner": OWNER, "dseq": DSEQ, "gseq": 1, "oseq": 1, "provider": "akash1host"},
        "state": "active",
        "price": {"denom": "uact", "amount": "1000.000000000000000000"},
        "status": {
            "services": {"app": {"name": "app", "available": 1, "total": 1, "uris": None}},
            "forwarded_ports": {
                "app": [{"host": "p.example.com", "port": 8000, "externalPort": 31000}]
            },
            "ips": None,
        },
    }
    return row | changes


def told(*leases: dict[str, Any], state: str = "active", **more: Any) -> Held:
    """Return a deployment as the Console tells it."""
    head = {"id": {"owner": OWNER, "dseq": DSEQ}, "state": state, "created_at": "1000"}
    body = {"deployment": head, "leases": list(leases), "escrow_account": None} | more
    return msgspec.json.decode(json.dumps(body), type=Held)


def on_chain(name: str = "gp4u-key", ports: int = 1) -> Held:
    """Return the same as a node tells it: no leases, but the name."""
    endpoints = [{"kind": "RANDOM_PORT", "sequence_number": 0}] * ports
    spec = {"name": name, "resources": [{"resource": {"endpoints": [*endpoints, {}]}}]}
    return told(groups=[{"group_spec": spec}])


def state_of(deployment: Held | None, chain: Held | None = None) -> InstanceState:
    """Return the state that a deployment is in."""
    instance = held.to_instance(DSEQ, deployment, chain or on_chain(), MONEY, at=AT)
    assert instance is not None
    return instance.state


def test_an_order_in_nobodys_hands_has_failed() -> None:
    """Whoever placed it died in mid-auction: waiting on would only keep its deposit."""
    late = AT + timedelta(minutes=4)
    order = held.to_instance(DSEQ, told(), on_chain(), MONEY, at=late)
    assert order is not None
    assert order.state is InstanceState.FAILED
    leased = held.to_instance(DSEQ, told(lease(status=None)), on_chain(), MONEY, at=late)
    assert leased is not None
    assert leased.state is InstanceState.UNKNOWN


@pytest.mark.parametrize(
    ("deployment", "state"),
    [
        (told(), InstanceState.BOOTING),
        (told(lease(status=None)), InstanceState.UNKNOWN),
        (told(lease(status={"services": {}})), InstanceState.BOOTING),
        (
            told(lease(status={"services": {"app": {"available": 0, "total": 1}}})),
            InstanceState.BOOTING,
        ),
        (
            told(lease(status={"services": {"app": {"available": 1, "total": 1}}})),
            InstanceState.BOOTING,
        ),
        (told(lease()), InstanceState.RUNNING),
        (told(lease(state="reclaiming")), InstanceState.RUNNING),
        (told(lease(state="closed", reason="lease_closed_unstable")), InstanceState.FAILED),
        (told(lease(state="closed", reason=10003)), InstanceState.FAILED),
        (told(lease(state="insufficient_funds")), InstanceState.FAILED),
    ],
)
def test_states_are_read_together(deployment: Held, state: InstanceState) -> None:
    """No single field says that something runs; a lease without its wanted port does not."""
    assert state_of(deployment) is state


def test_a_second_service_that_is_down_keeps_it_booting() -> None:
    """All containers of a workload belong to it."""
    services = {"app": {"available": 1, "total": 1}, "cache": {"available": 0, "total": 1}}
    assert state_of(told(lease(status={"services": services}))) is InstanceState.BOOTING


@pytest.mark.parametrize(("ready", "state"), [(1, "booting"), (2, "running"), (None, "running")])
def test_a_service_is_up_with_all_its_replicas(ready: int | None, state: str) -> None:
    """Some are there before all are; an older host does not count those that are ready."""
    services = {"app": {"available": 2, "total": 2, "ready_replicas": ready}}
    row = lease()
    row["status"]["services"] = services
    assert state_of(told(row)) == state


def test_a_name_at_the_ingress_is_no_forwarded_port() -> None:
    """Two ports were asked for besides it, and one is there."""
    row = lease()
    row["status"]["services"]["app"]["uris"] = ["x.ingress.example.com"]
    assert state_of(told(row), on_chain(ports=2)) is InstanceState.BOOTING


@pytest.mark.parametrize("status", [7, {"services": []}, {"forwarded_ports": {"app": "x"}}])
def test_what_a_host_says_amiss_spoils_nothing_else(status: Any) -> None:
    """It is passed on unread: a host could keep its rental from being paid for, or counted."""
    instance = held.to_instance(DSEQ, told(lease(status=status)), on_chain(), MONEY, at=AT)
    assert instance is not None
    assert instance.state is InstanceState.UNKNOWN
    assert instance.price_usd_per_hour == Decimal("0.6")


def test_what_is_closed_is_over_whatever_a_node_says() -> None:
    """A node may lag; nothing opens a closed deployment again."""
    assert held.to_instance(DSEQ, told(lease(), state="closed"), on_chain(), MONEY, at=AT) is None


def test_what_a_node_shows_exists_even_where_the_console_cannot_be_read() -> None:
    """An unreadable answer is never proof that nothing is there."""
    instance = held.to_instance(DSEQ, None, on_chain(), MONEY, at=AT)
    assert instance is not None
    assert (instance.state, instance.label) == (InstanceState.UNKNOWN, "gp4u-key")


def test_the_notice_of_a_host_is_told() -> None:
    """It still runs, and somebody must be able to see for how long."""
    row = lease(state="reclaiming", reclamation={"window": "3600s", "deadline": "1795000000"})
    instance = held.to_instance(DSEQ, told(row), on_chain(), MONEY, at=AT)
    assert instance is not None
    assert "1795000000" in instance.status


def test_the_reason_of_an_end_is_told_in_words() -> None:
    """Numbers are printed by some servers."""
    instance = held.to_instance(DSEQ, told(lease(state="closed", reason=10003)), None, MONEY, at=AT)
    assert instance is not None
    assert "manifest_timeout" in instance.status


def test_the_recorded_udp_ports_are_endpoints() -> None:
    """A real lease of a game server: container port to a random port of the host's name."""
    body = (PAYLOADS / "provider-lease-status-forwarded-ports.json").read_bytes()
    first, second = held.endpoints(msgspec.json.decode(body, type=Status))
    assert (first.container_port, first.port, first.protocol) == (16261, 31336, Protocol.UDP)
    assert first.host == second.host == "provider.europlots.com"


def test_addresses_and_names_are_endpoints_too() -> None:
    """A leased IP keeps its port; an HTTP name is reached by URL."""
    status = {
        "services": {"app": {"available": 1, "uris": ["x.ingress.example.com"]}},
        "ips": {"app": [{"IP": "192.0.2.7", "Port": 53, "ExternalPort": 53, "Protocol": "UDP"}]},
    }
    found = list(held.endpoints(msgspec.json.decode(json.dumps(status), type=Status)))
    assert [(e.host, e.port, e.url) for e in found] == [
        ("192.0.2.7", 53, None),
        ("x.ingress.example.com", 80, "http://x.ingress.example.com"),
    ]


def test_of_two_containers_on_one_port_the_workloads_own_is_reached() -> None:
    """A health check would ask the other one, and call the rental healthy for it."""
    row = lease()
    row["status"]["forwarded_ports"] = {
        name: [{"host": "p.example.com", "port": 8000, "externalPort": port}]
        for name, port in (("aside", 31001), ("app", 31002), ("beside", 31003))
    }
    instance = held.to_instance(DSEQ, told(row), on_chain(), MONEY, at=AT)
    assert instance is not None
    assert [e.port for e in instance.endpoints] == [31002]


def test_a_host_that_forwards_everything_is_cut_short() -> None:
    """What it says is kept with the rental."""
    row = lease()
    row["status"]["forwarded_ports"]["app"] = [
        {"host": "p.example.com", "port": port, "externalPort": port} for port in range(1, 5000)
    ]
    instance = held.to_instance(DSEQ, told(row), on_chain(), MONEY, at=AT)
    assert instance is not None
    assert len(instance.endpoints) == held.MAX_ENDPOINTS


@pytest.mark.parametrize(
    "forwarded",
    [
        {"host": "a b", "port": 1, "externalPort": 2},
        {"host": "http://evil/", "port": 1, "externalPort": 2},
        {"host": "p.example.com", "port": 0, "externalPort": 2},
        {"host": "p.example.com", "port": 1, "externalPort": 70000},
        {"host": "p.example.com", "port": 1, "externalPort": 2, "proto": "SCTP"},
    ],
)
def test_an_endpoint_that_cannot_be_one_is_left_out(forwarded: dict[str, Any]) -> None:
    """All of it is the host's own text."""
    status = msgspec.convert({"forwarded_ports": {"app": [forwarded]}}, Status)
    assert list(held.endpoints(status)) == []


def test_prices_of_all_leases_add_up() -> None:
    """Groups on two hosts are two leases of one deployment."""
    instance = held.to_instance(DSEQ, told(lease(), lease()), on_chain(ports=2), MONEY, at=AT)
    assert instance is not None
    assert instance.price_usd_per_hour == Decimal("1.2")


def test_the_escrow_tells_until_when_it_is_paid() -> None:
    """1,000 blocks of funds from block 1,100 on; block 1,000 is the time in the number."""
    escrow = {"state": {"funds": [{"denom": "uact", "amount": "1000000"}], "settled_at": "1100"}}
    instance = held.to_instance(DSEQ, told(lease(), escrow_account=escrow), None, MONEY, at=AT)
    assert instance is not None
    assert instance.created_at == datetime.fromtimestamp(1790598358.092, UTC)
    assert instance.paid_until == instance.created_at + timedelta(seconds=6 * (100 + 1000))


def test_the_newest_block_tells_the_time_of_the_others() -> None:
    """Of 1,000 blocks from block 1,100 on 600 are left at block 1,500, at 6 s each."""
    escrow = {"state": {"funds": [{"denom": "uact", "amount": "1000000"}], "settled_at": "1100"}}
    newest = Block(1500, datetime(2026, 11, 1, tzinfo=UTC))
    instance = held.to_instance(
        DSEQ, told(lease(), escrow_account=escrow), None, MONEY, newest, at=AT
    )
    assert instance is not None
    assert instance.paid_until == newest.at + timedelta(seconds=6 * 600)


@pytest.mark.parametrize(
    "changes",
    [
        {"escrow_account": None},
        {"escrow_account": {"state": {"funds": [], "settled_at": "x"}}},
        {"escrow_account": {"state": {"funds": [{"denom": "uact", "amount": "1e40"}]}}},
    ],
)
def test_an_end_that_cannot_be_told_is_unknown(changes: dict[str, Any]) -> None:
    """Better none than a wrong one: money is moved by it."""
    instance = held.to_instance(DSEQ, told(lease(), **changes), None, MONEY, at=AT)
    assert instance is not None
    assert instance.paid_until is None


def test_what_hosts_were_paid_is_the_bill() -> None:
    """In dollars only; AKT of another day cannot be counted."""
    escrow = {"state": {"transferred": [{"denom": "uact", "amount": "2937300.003"}]}}
    assert told(escrow_account=escrow).transferred_usd == Decimal("2.937300003")
    escrow = {"state": {"transferred": [{"denom": "uakt", "amount": "1"}]}}
    assert told(escrow_account=escrow).transferred_usd is None


def test_a_token_names_its_account() -> None:
    """It is the only thing that tells an account's address."""
    claims = base64.urlsafe_b64encode(b'{"iss":"akash1abc"}').rstrip(b"=").decode()
    assert held.issuer(f"e30.{claims}.sig") == "akash1abc"


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "a.e30.c", "a.eyJpc3MiOiAiYSBiIn0.c"])
def test_a_token_that_names_nobody_names_nobody(token: str) -> None:
    """The address goes into the query of other nodes: it must be one."""
    assert held.issuer(token) is None
