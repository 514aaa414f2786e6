"""Trouble with markets, machines, processes and secrets, seen from pods.

Beside `test_controller.py` and `test_controller_ends.py`, which tell how a pod usually fares. Here
everything goes wrong that the fault table names, and what counts is money and what is told of it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import structlog

from gp4u.kubelet.policy import Tier
from gp4u.model import Demand
from gp4u.rentals.ledger import Hear
from gp4u.sim.faults import Rule
from gp4u.telemetry import configure
from tests.simulated import API_KEY
from tests.unit.kubelet.cluster import Cluster, Node, by, told, with_policy
from tests.unit.kubelet.pods.test_faults_cluster import machine, serving

TOKEN = "pod-secret-canary"
ENV = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "x"}}}]
ECHOES = (
    Rule(kind="body", endpoint="create", body=f"no: Bearer {API_KEY}", status=500, calls=(1,)),
    Rule(kind="body", endpoint="create", body=f'{{"msg": "{API_KEY}"}}', status=401, calls=(2,)),
    Rule(kind="body", endpoint="list", body=f"bad key {API_KEY}", status=500, calls=(3, 4)),
    Rule(kind="body", endpoint="logs", body=f"? {API_KEY}", status=500, calls=(1,)),
    Rule(kind="body", endpoint="destroy", body=f"? {API_KEY}", status=500, calls=(1,)),
)


def token() -> dict[str, Any]:
    """Return a Secret with the value that is looked for."""
    data = {"x": base64.b64encode(TOKEN.encode()).decode()}
    return {"kind": "Secret", "metadata": {"name": "token"}, "data": data}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, at the finest level, through the ordinary rim."""
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure("DEBUG", "json", [API_KEY], stream)
    yield stream
    root.handlers[:], root.level = before, level
    structlog.reset_defaults()


def hearing(node: Node, rental: str, left: list[str]) -> Hear:
    """Return what notes in `left` how a rental leaves its live states."""
    before = node.app.ledger.on_event

    def hear(number: int, key: str, at: datetime, kind: str, text: str) -> None:
        if before is not None:
            before(number, key, at, kind, text)
        if key == rental and kind == "releasing":
            left.append(text)

    return hear


async def books(node: Node) -> Decimal:
    """Return what the ledger says that everything cost."""
    _, cost = await node.client.books()
    return cost


@pytest.mark.parametrize("after_s", [0.05, 0.5, 1.5, 2.5, 3.2, 4.0, 6.0, 9.0, 12.5])
def test_a_node_that_is_killed_goes_on_with_one_machine(after_s: float, tmp_path: Path) -> None:
    """P1: between decision, intent, call, reply, boot and readiness; the next one takes it over."""
    slow = Rule(kind="latency", endpoint="create", seconds=2.0)

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await asyncio.sleep(after_s)
            await node.kill()
        async with cluster.node(seed=2) as node:
            await cluster.until_ready("a", within_s=400)
            await asyncio.sleep(200)
            assert len(cluster.market.live) == 1
            assert cluster.market.rents() == 1, "bought twice"
            assert cluster.status("a")["containerStatuses"][0]["restartCount"] == 0
            cluster.delete("a")
            await cluster.until("gone", within_s=60)
            await cluster.until_nothing_costs()
            await asyncio.sleep(60)
            assert abs(await books(node) - cluster.market.world.meter_total()) < Decimal("0.00001")

    told(tale, tmp_path, rules=[slow], boot_s=(8.0, 8.0))


@pytest.mark.parametrize("commit", [1, 2, 3, 4, 5, 6, 7])
def test_a_node_that_dies_before_a_commit_goes_on_with_one_machine(
    commit: int, tmp_path: Path
) -> None:
    """P1: what happened and what is on disk differ by one write, whichever it is."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            node.client.die_at_commit(commit)
            cluster.create("a")
            await asyncio.sleep(40)
            await node.kill()
        async with cluster.node(seed=2):
            await cluster.until_ready("a", within_s=400)
            await asyncio.sleep(200)
            assert len(cluster.market.live) == cluster.market.rents() == 1

    told(tale, tmp_path)


def test_a_node_that_is_killed_while_it_lets_go_is_followed_by_one_that_does(
    tmp_path: Path,
) -> None:
    """P1: a pod whose object is gone already is known from the ledger alone."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            cluster.create("b")
            await cluster.until_ready("a", "b")
            kept = machine(cluster, "b")
            await node.kill()
        cluster.delete("a", grace_s=0)
        async with cluster.node(seed=2):
            await cluster.until_true(lambda: len(cluster.market.live) == 1, within_s=200)
            await cluster.until_ready("b")
            assert machine(cluster, "b") == kept

    told(tale, tmp_path)


def test_an_end_by_sigterm_releases_nothing_and_changes_no_status(tmp_path: Path) -> None:
    """P4: an upgrade of the node is no business of the pods."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            before = cluster.status("a")
            loop = asyncio.get_running_loop()
            began = loop.time()
            await node.stop()
            assert loop.time() - began <= 20
        assert len(cluster.market.live) == 1
        assert cluster.status("a") == before
        async with cluster.node(seed=2) as node:
            await cluster.until_true(lambda: bool(node.controller.all()))
            await asyncio.sleep(60)
            for member in ("phase", "startTime", "containerStatuses"):
                assert cluster.status("a")[member] == before[member]
            assert cluster.market.rents() == 1

    told(tale, tmp_path)


@pytest.mark.parametrize("kind", ["status", "hang_before", "refuse", "bad_key"])
def test_a_market_that_is_down_costs_no_running_pod(kind: str, tmp_path: Path) -> None:
    """K10: nothing is known of the machine meanwhile, and that is no reason to give it up."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_ready("a")
            before = machine(cluster, "a")
            down = Rule(kind=kind, status=503, seconds=60.0)
            cluster.market.faults.add(down)
            await asyncio.sleep(1500)
            assert cluster.status("a")["phase"] == "Running"
            cluster.market.faults.clear()
            await cluster.until_ready("a")
            await asyncio.sleep(60)
            assert machine(cluster, "a") == before
            assert [r.is_live for r in await node.rentals()] == [True]

    told(tale, tmp_path)


def test_an_account_whose_machines_all_vanish_at_once_is_not_believed(tmp_path: Path) -> None:
    """K10, H30: an empty list of instances is mostly a bug of the market's, or another account."""

    async def tale(cluster: Cluster) -> None:
        with_policy(cluster, defaults=Demand())
        async with cluster.node() as node:
            for number in range(6):
                cluster.create(f"p-{number}", owner=by("ReplicaSet"))
            await cluster.until_ready(*(f"p-{number}" for number in range(6)), within_s=600)
            empty = Rule(kind="list_empty", endpoint="list")
            cluster.market.faults.add(empty)
            await asyncio.sleep(400)
            cluster.market.faults.clear()
            await asyncio.sleep(60)
            assert {cluster.status(f"p-{number}")["phase"] for number in range(6)} == {"Running"}
            assert sum(r.is_live for r in await node.rentals()) == 6

    told(tale, tmp_path, offers=200)


def test_nobody_is_sent_to_a_machine_that_vanished(tmp_path: Path) -> None:
    """H30, K19: the address belongs to a stranger soon; endpoints go within ten seconds."""

    async def tale(cluster: Cluster) -> None:
        cluster.api.add(serving("a"))
        async with cluster.node() as node:
            cluster.create("a", owner=by("ReplicaSet"))
            await cluster.until_ready("a")
            await cluster.until_true(lambda: bool(cluster.api.all("endpointslices")))
            (rental,) = await node.rentals()
            await cluster.market.world.destroy(cluster.market.live[0])

            def led() -> bool:
                return any(
                    each["conditions"].get("ready")
                    for part in cluster.api.all("endpointslices")
                    for each in part["endpoints"]
                )

            left: list[str] = []
            node.app.ledger.on_event = hearing(node, rental.key, left)
            await cluster.until_true(lambda: bool(left), within_s=120)
            await cluster.until_true(lambda: not led(), within_s=10)
            await cluster.until("Failed", within_s=30)

    told(tale, tmp_path)


@pytest.mark.parametrize("trouble", ["stuck", "host_loss", "outbid_loading"])
def test_a_machine_that_does_not_serve_is_replaced_and_none_is_left(
    trouble: str, tmp_path: Path
) -> None:
    """H28: whatever ails the first machine, the pod comes up on another one; the first is free."""
    sick = Rule(kind=trouble, endpoint="create", calls=(1,), seconds=5.0)

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a")
            await cluster.until_true(lambda: cluster.market.rents() > 1, within_s=3600)
            await cluster.until_ready("a", within_s=3600)
            await asyncio.sleep(60)
            assert len(cluster.market.live) == 1
            first, *_, last = await node.rentals()
            assert first.machine_id != last.machine_id
            assert machine(cluster, "a").startswith(f"gp4u://{last.instance_id}/")

    told(tale, tmp_path, rules=[sick])


def test_pods_of_a_spot_node_are_rented_by_bid_and_lose_by_it(tmp_path: Path) -> None:
    """M4: the class of the node decides; the condition lets a Job's policy look past the loss."""

    async def tale(cluster: Cluster) -> None:
        with_policy(cluster, interruptible=True)
        async with cluster.node() as node:
            cluster.create("a", owner=by("Job"), restart="Never")
            cluster.create("b", annotations={"gp4u.io/interruptible": "false"})
            await cluster.until_ready("a", "b")
            (spot,) = [c for c in cluster.market.live if c.bid is not None]
            assert len(await node.rentals()) == 2
            cluster.market.world.script(spot, "outbid")
            await cluster.until("Failed", within_s=60)
            targets = [
                c for c in cluster.status("a")["conditions"] if c["type"] == "DisruptionTarget"
            ]
            assert [(t["status"], t["reason"]) for t in targets] == [
                ("True", "TerminationByKubelet")
            ]
            await cluster.until_true(lambda: len(cluster.market.live) == 1, within_s=60)
            assert cluster.is_ready("b")

    told(tale, tmp_path)


def test_a_pod_without_an_offer_has_said_so_within_a_minute(tmp_path: Path) -> None:
    """L4: the reason is never older than sixty seconds, and a market that changes is noticed."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node():
            cluster.create("a", annotations={"gp4u.io/max-price": "0.0001"})
            await cluster.until_true(
                lambda: cluster.state("a").get("waiting", {}).get("reason") == "NoOffer",
                within_s=60,
            )
            for _ in range(5):
                asked = cluster.market.faults.calls("search")
                await asyncio.sleep(75)
                assert cluster.market.faults.calls("search") > asked, "it no longer looks"

    told(tale, tmp_path)


def test_a_budget_that_is_too_small_rents_nothing_and_says_which(tmp_path: Path) -> None:
    """M2: the bound that refused is in the Event, by its name and amount."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node(GP4U_BUDGET_USD_PER_HOUR="0.001") as node:
            cluster.create("a")
            await cluster.until_true(lambda: "BudgetExceeded" in cluster.reasons("a"), within_s=60)
            (text, *_) = cluster.messages("a", "BudgetExceeded")
            assert "0.001" in text
            await asyncio.sleep(300)
            assert cluster.status("a")["phase"] == "Pending"
            assert cluster.market.rents() == 0
            assert [r.is_live for r in await node.rentals()] in ([], [False])

    told(tale, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("max-price", "cheap", "dollars per hour"),
        ("min-vram", "-4", "min-vram"),
        ("policy", "quickest", "balanced"),
        ("trust", "blind", "verified"),
        ("max-lifetime", "soon", "max-lifetime"),
        ("on-loss", "cry", "rerent"),
    ],
)
def test_a_bad_annotation_is_refused_with_field_value_and_bound(
    name: str, value: str, bound: str, tmp_path: Path
) -> None:
    """A wish that was misread would be paid for: Failed at once, in words to mend it by."""

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", annotations={f"gp4u.io/{name}": value})
            await cluster.until("Failed", within_s=10)
            message = cluster.status("a")["message"]
            assert f"gp4u.io/{name}" in message
            assert value in message
            assert bound in message
            await asyncio.sleep(60)
            assert await node.rentals() == []

    told(tale, tmp_path)


def test_secrets_go_to_trusted_hosts_only_and_the_event_says_so(tmp_path: Path) -> None:
    """S16: also where there is none, so that nobody wonders why nothing fits."""

    async def tale(cluster: Cluster) -> None:
        cluster.api.add(token())
        with_policy(cluster, secret_tier=Tier.VERIFIED)
        wish = {"gp4u.io/trust": "any"}
        async with cluster.node() as node:
            cluster.create("a", containers=[{"env": ENV}], annotations=wish)
            await cluster.until_ready("a")
            await asyncio.sleep(5)
            (text,) = cluster.messages("a", "OfferSelected")
            assert text.startswith("only verified hosts, for the pod's Secrets")
            assert cluster.market.live[0].machine.verification == "verified"
            assert "TrustRaisedBySecrets" in cluster.reasons("a")

            with_policy(cluster, secret_tier=Tier.DATACENTER)
            cluster.create("b", containers=[{"env": ENV}], annotations=wish)
            await asyncio.sleep(90)
            (text, *_) = cluster.messages("b", "NoOffer")
            assert text.startswith("only datacenter hosts, for the pod's Secrets")
            assert len(await node.rentals()) == 1

    told(tale, tmp_path)


def test_no_secret_is_said_anywhere_whatever_the_market_says_back(
    tmp_path: Path, log: io.StringIO
) -> None:
    """S4, S5: not in logs, Events, statuses or on disk; the account's key in no rent call."""
    told_texts: list[str] = []

    async def tale(cluster: Cluster) -> None:
        cluster.api.add(token())
        with_policy(cluster, secret_tier=Tier.ANY)
        async with cluster.node() as node:
            cluster.create("a", containers=[{"env": ENV}], restart="Never")
            await cluster.until_ready("a", within_s=3600)
            cluster.market.end(cluster.market.live[0], 1)
            await cluster.until("Failed", within_s=200)
            cluster.delete("a")
            await cluster.until("gone", within_s=60)
            await cluster.until_nothing_costs(within_s=1000)
            assert node.is_alive
        assert {kind for _, _, kind in cluster.market.faults.fired} == {"body"}
        said = json.dumps([[call.path, call.body] for call in cluster.api.calls])
        said += json.dumps(cluster.api.all("events")) + log.getvalue()
        assert "RentOutcomeUnknown" in said, "what the market said back was never told"
        told_texts.append(said)
        bodies = b"".join(body for _, _, body in cluster.market.requests)
        assert TOKEN.encode() in bodies, "the pod never got its secret"
        assert API_KEY.encode() not in bodies

    told(tale, tmp_path, rules=ECHOES)

    said = "".join(told_texts + [e.read_bytes().decode("latin-1") for e in tmp_path.glob("*")])
    assert API_KEY not in said
    assert TOKEN not in said


def test_what_a_host_says_moves_no_money(tmp_path: Path) -> None:
    """S17: forged marks and an endless log neither end a pod nor fill the node's memory."""
    forged = ["gp4u: exit 0", "gp4u: run 1", "gp4u: exit 42"]

    async def tale(cluster: Cluster) -> None:
        async with cluster.node() as node:
            cluster.create("a", owner=by("ReplicaSet"))
            await cluster.until_ready("a")
            (program,) = cluster.market.programs.running.values()
            program.lines += forged + ["x" * 1000] * 20000
            await asyncio.sleep(300)
            assert cluster.status("a")["phase"] == "Running"
            assert len(await node.rentals()) == 1

    told(tale, tmp_path)
