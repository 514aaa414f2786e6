"""Renting from the dialect: the body, and the many ways in which a rent can answer."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from gp4u.sim.faults import Rule
from gp4u.sim.launch import Port
from gp4u.sim.vastai.rent import ON_START
from tests.unit.sim.vastai.dialect import EASY, market, settle
from tests.virtual_loop import run_virtual


def test_a_rent_makes_an_instance_that_gets_its_ports_once_it_runs() -> None:
    """`ports` is `{}` before, and text in random numbers after."""

    async def scene() -> None:
        async with market() as m:
            env = {"A": "1", "-p 8000:8000": "1", "-p 9000:9000/udp": "1"}
            contract = await m.rented(env=env, label="gp4u-x", runtype="args", args=["-c", "x"])
            (early,) = (await m.listed())["instances"]
            assert early["ports"] == {}
            assert early["actual_status"] is None
            await settle()
            (row,) = (await m.listed())["instances"]
            assert row["actual_status"] == "running"
            assert row["label"] == "gp4u-x"
            assert set(row["ports"]) == {"8000/tcp", "9000/udp"}
            port = row["ports"]["8000/tcp"][0]["HostPort"]
            assert port == str(contract.ports[8000, "tcp"])
            assert port != "8000"
            assert row["extra_env"] == [list(pair) for pair in env.items()]
            one = (await m.call("GET", f"/api/v0/instances/{contract.id}/?owner=me")).json()
            assert one["instances"]["ports"] == row["ports"]

    run_virtual(scene)


def test_an_instance_costs_what_its_offer_said() -> None:
    """`dph_total` of the offer, for that disk, is what the meter runs at."""

    async def scene() -> None:
        async with market() as m:
            offer_id = await m.single()
            (offer,) = await m.search(ask_contract_id={"eq": offer_id}, allocated_storage=40)
            contract = await m.rented(disk=40)
            (row,) = (await m.listed())["instances"]
            assert row["dph_total"] == offer["dph_total"]
            await settle()
            await m.world.advance()
            before = m.world.meter(contract)
            await asyncio.sleep(3600)
            cost = m.world.meter(contract) - before
            assert cost == pytest.approx(Decimal(str(offer["dph_total"])), rel=Decimal("1e-9"))

    run_virtual(scene)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"image": None}, 400, "invalid_args"),
        ({"image": "x" * 1025}, 400, "invalid_args"),
        ({"env": "-e A=1 -p 80:80"}, 400, "invalid_args"),
        ({"env": {"A": "x" * 257}}, 400, "invalid_args"),
        ({"env": {f"-p {n}:{n}": "1" for n in range(1000, 1065)}}, 400, "invalid_args"),
        ({"env": {"-p eighty": "1"}}, 400, "invalid_args"),
        ({"disk": 7}, 400, "invalid_args"),
        ({"disk": "much"}, 400, "invalid_args"),
        ({"disk": 1e7}, 400, "invalid_args"),
        ({"price": 0.0001}, 400, "invalid_price"),
        ({"price": 129}, 400, "invalid_price"),
        ({"label": "x" * 257}, 400, "invalid_args"),
        ({"args": "-c x"}, 400, "invalid_args"),
        ({"onstart": "x" * 4097}, 400, "invalid_args"),
        ({"target_state": "flying"}, 400, "invalid_args"),
        ({"vm": True}, 400, "no_ssh_key_for_vm"),
    ],
)
def test_a_bad_body_is_refused_and_rents_nothing(
    body: dict[str, Any], status: int, error: str
) -> None:
    """Every documented bound of the create call."""

    async def scene() -> None:
        async with market() as m:
            reply = await m.create(**body)
            assert (reply.status_code, reply.json()["error"]) == (status, error)
            assert reply.json()["success"] is False
            assert m.world.contracts == []

    run_virtual(scene)


def test_unknown_fields_of_a_body_are_ignored() -> None:
    """Clients send more than the documents list."""

    async def scene() -> None:
        async with market() as m:
            assert (await m.create(client_id="me", create_from=None, colour="red")).json()[
                "success"
            ]

    run_virtual(scene)


@pytest.mark.parametrize(
    ("body", "command", "entrypoint", "ports"),
    [
        (
            {"runtype": "args", "args": ["-c", "x"], "onstart": "/bin/sh"},
            ("-c", "x"),
            "/bin/sh",
            (),
        ),
        ({"args": ["serve"]}, ("serve",), None, ()),
        ({"onstart": "echo hi"}, ("-c", ON_START, "echo hi"), "/bin/sh", ()),
        ({"runtype": "ssh_direc ssh_proxy"}, None, None, (22,)),
        ({"runtype": "ssh_direct"}, None, None, (22,)),
        ({"runtype": "jupyter_direc ssh_direc ssh_proxy"}, None, None, (22, 8080)),
    ],
)
def test_the_run_type_decides_what_becomes_the_command(
    body: dict[str, Any],
    command: tuple[str, ...] | None,
    entrypoint: str | None,
    ports: tuple[int, ...],
) -> None:
    """`args` replaces CMD and `onstart` ENTRYPOINT, in that run type only; beside an SSH server
    `onstart` is a script, and its end is not the container's."""

    async def scene() -> None:
        async with market() as m:
            order = (await m.rented(**body)).order
            assert (order.command, order.entrypoint) == (command, entrypoint)
            assert order.ports == tuple(Port(number, "tcp") for number in ports)

    run_virtual(scene)


@pytest.mark.parametrize("status", [410, 404, 400, 409])
def test_a_second_rent_of_one_offer_fails_in_each_way_that_was_seen(status: int) -> None:
    """And its siblings on the same GPUs are gone from the search."""
    settings = msgspec.structs.replace(EASY, gone_status=status)

    async def scene() -> None:
        async with market(settings=settings) as m:
            offer_id = await m.single()
            await m.create(offer_id)
            again = await m.create(offer_id)
            assert again.status_code == status
            assert again.json()["ask_id"] == offer_id
            assert status == 409 or "no_such_ask" in again.text
            assert await m.search(ask_contract_id={"eq": offer_id}) == []
            assert len(m.world.leaked()) == 1

    run_virtual(scene)


def test_an_offer_that_never_was_is_404() -> None:
    """Distinct from one just taken."""

    async def scene() -> None:
        async with market() as m:
            reply = await m.create(99)
            assert (reply.status_code, reply.json()["error"]) == (404, "invalid_args")
            assert "no_such_ask" in reply.json()["msg"]

    run_virtual(scene)


def test_without_credit_nothing_is_rented() -> None:
    """By the account's own balance, and by a fault."""

    async def scene() -> None:
        async with market(credit="0") as m:
            reply = await m.create()
            assert (reply.status_code, reply.json()["error"]) == (400, "insufficient_credit")
        async with market(Rule(kind="no_credit", endpoint="create", times=1)) as m:
            assert (await m.create()).status_code == 400
            assert (await m.create()).status_code == 200

    run_virtual(scene)


@pytest.mark.parametrize("with_id", [True, False])
def test_a_bid_below_the_floor_fails_and_leaves_a_stopped_billing_contract(with_id: bool) -> None:
    """A failure that costs money, with its id or without."""
    settings = msgspec.structs.replace(EASY, low_bid_id=with_id)

    async def scene() -> None:
        async with market(settings=settings) as m:
            reply = await m.create(price=0.001, label="low")
            assert reply.json()["success"] is False
            (contract,) = m.world.leaked()
            assert reply.json().get("new_contract") == (contract.id if with_id else None)
            await settle()
            (row,) = (await m.listed())["instances"]
            states = (row["intended_status"], row["cur_state"], row["next_state"])
            assert states == ("stopped", "stopped", "stopped")
            assert m.world.meter(contract) > 0

    run_virtual(scene)


@pytest.mark.parametrize("kind", ["failed_with_id", "failed_without_id"])
def test_a_create_can_fail_and_rent(kind: str) -> None:
    """`success: false` proves nothing."""

    async def scene() -> None:
        async with market(Rule(kind=kind, endpoint="create")) as m:
            body = (await m.create(label="lost")).json()
            assert body["success"] is False
            assert ("new_contract" in body) == (kind == "failed_with_id")
            assert [c.label for c in m.world.leaked()] == ["lost"]

    run_virtual(scene)


def test_labels_can_be_doubled_or_lost() -> None:
    """A label is neither unique nor certain."""

    async def scene() -> None:
        async with market(Rule(kind="duplicate", endpoint="create", times=1)) as m:
            await m.create(label="twin")
            assert (await m.listed())["label_counts"] == {"twin": 2}
            m.faults.add(Rule(kind="label_lost", endpoint="create"))
            await m.create(label="forgotten")
            assert (await m.listed())["label_counts"] == {"twin": 2, "": 1}

    run_virtual(scene)


def test_a_bulk_rent_tells_each_result_and_goes_on_after_a_failure() -> None:
    """One offer that is gone must not hide the one that was rented."""

    async def scene() -> None:
        async with market() as m:
            offer = await m.single()
            body = {"image": "busybox", "ids": [7, offer]}
            results = (await m.call("POST", "/api/v0/asks/bulk/", json=body)).json()["results"]
            assert [result["success"] for result in results] == [False, True]
            assert [c.offer_id for c in m.world.leaked()] == [offer]

    run_virtual(scene)


@pytest.mark.parametrize(
    ("login", "may"),
    [
        ("-u me -p right registry.example.com", True),
        ("-u me -p wrong registry.example.com", False),
        (None, False),
    ],
)
def test_a_registry_that_wants_a_login_gives_nothing_out_without(
    login: str | None, may: bool
) -> None:
    """The instance is made, and says in its status that it cannot be pulled."""
    settings = msgspec.structs.replace(EASY, logins={"registry.example.com": ("me", "right")})

    async def scene() -> None:
        async with market(settings=settings) as m:
            more = {} if login is None else {"image_login": login}
            contract = await m.rented(image="registry.example.com/app:1", **more)
            await settle()
            await m.world.advance()
            assert (contract.actual == "running") is may
            assert ("pull access denied" in str(contract.status_msg)) is not may

    run_virtual(scene)


def test_a_login_that_cannot_be_read_is_refused() -> None:
    """The service hands it to `docker login`, word by word."""

    async def scene() -> None:
        async with market() as m:
            reply = await m.create(image_login="me:right@registry")
            assert reply.status_code == 400
            assert "image_login" in reply.text

    run_virtual(scene)
