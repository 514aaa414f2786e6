"""How the simulated Akash prints what it holds: deployments, groups, bids, leases, statuses.

Hides the spelling that Console and chain share (64-bit numbers as text, amounts with 18 places) and
where they differ: only the Console knows what runs, only the chain names the groups.

Source: chain-sdk proto and the Console's OpenAPI, as restated in docs/reference/akash.md 2.3 and
5.1; checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from gp4u.sim.akash.market import AkashMarket, Bid, Deployment, Lease, Placed, services_of
from gp4u.sim.akash.sdl import group_spec, resource
from gp4u.sim.world import World

Row = dict[str, Any]


def coin(amount: Decimal, denom: str = "uact") -> Row:
    """Return an amount as the chain prints it."""
    return {"denom": denom, "amount": f"{amount:.18f}"}


def deployment_row(market: AkashMarket, deployment: Deployment, state: str) -> Row:
    """Return the head of a deployment, in the state that a node knows of."""
    return {
        "id": {"owner": market.account, "dseq": deployment.dseq},
        "state": state,
        "hash": "3q2+7w==",
        "created_at": str(deployment.height),
    }


def escrow_row(market: AkashMarket, deployment: Deployment) -> Row:
    """Return a deployment's money."""
    return {
        "id": {"scope": "deployment", "xid": f"{market.account}/{deployment.dseq}"},
        "state": {
            "owner": market.account,
            "state": "open" if deployment.open else "closed",
            "transferred": [coin(deployment.transferred)],
            "settled_at": str(deployment.settled_at),
            "funds": [coin(deployment.funds if deployment.open else Decimal(0))],
            "deposits": [
                {
                    "owner": market.account,
                    "height": str(deployment.height),
                    "source": "grant",
                    "balance": coin(deployment.funds if deployment.open else Decimal(0)),
                }
            ],
        },
    }


def chain_deployment(market: AkashMarket, deployment: Deployment, state: str) -> Row:
    """Return a deployment with its groups and its money, as nodes do."""
    return {
        "deployment": deployment_row(market, deployment, state),
        "groups": [
            {
                "id": {**_id(market, deployment), "gseq": placed.gseq},
                "state": placed.state,
                "group_spec": group_spec(placed.group),
                "created_at": str(deployment.height),
            }
            for placed in deployment.placed
        ],
        "escrow_account": escrow_row(market, deployment),
    }


def bid_row(market: AkashMarket, deployment: Deployment, placed: Placed, bid: Bid) -> Row:
    """Return a bid with its own escrow."""
    return {
        "bid": {
            "id": _order_id(market, deployment, placed) | {"provider": bid.host.owner, "bseq": 0},
            "state": bid.state,
            "price": coin(bid.price),
            "created_at": str(deployment.height + 1),
            "resources_offer": [
                {
                    "resources": _offered(number, service, bid),
                    "count": service.count,
                }
                for number, service in enumerate(placed.group.services, 1)
            ],
        },
        "escrow_account": {
            "id": {"scope": "bid", "xid": f"{deployment.dseq}/{bid.host.owner}"},
            "state": {"owner": bid.host.owner, "state": "open", "funds": [coin(Decimal(500_000))]},
        },
    }


def _offered(number: int, service: Any, bid: Bid) -> Row:
    """Return the resources of a bid, which name the card that it is for."""
    row = resource(number, service)
    if service.gpus:
        row["gpu"]["attributes"] = [{"key": bid.card.key, "value": "true"}]
    return row


def lease_row(market: AkashMarket, deployment: Deployment, placed: Placed) -> Row:
    """Return a lease as the chain knows it."""
    lease = placed.lease
    assert lease is not None  # noqa: S101 -- the caller's part
    row: Row = {
        "id": _order_id(market, deployment, placed) | {"provider": lease.bid.host.owner, "bseq": 0},
        "state": lease.state,
        "price": coin(lease.bid.price),
        "created_at": str(lease.height),
        "closed_on": str(lease.closed_on),
        "reason": f"lease_closed_{lease.reason}" if lease.reason else "lease_closed_invalid",
    }
    if lease.deadline is not None:
        deadline = int(market.world.epoch(lease.deadline))
        row["reclamation"] = {"window": "3600s", "deadline": str(deadline)}
    return row


def console_deployment(market: AkashMarket, deployment: Deployment) -> Row:
    """Return a deployment as the Console shows it alone: with what its hosts say."""
    return {
        "deployment": deployment_row(market, deployment, deployment.state),
        "leases": [
            lease_row(market, deployment, placed)
            | {"status": lease_status(market, placed, placed.lease)}
            for placed in deployment.placed
            if placed.lease is not None
        ],
        "escrow_account": escrow_row(market, deployment),
    }


def lease_status(market: AkashMarket, placed: Placed, lease: Lease) -> Row | None:
    """Return what a host says of a lease; None where it does not answer, or not yet."""
    silent = (
        not lease.live
        or lease.withheld is not None
        or market.world.now_s < lease.answers_from
        or lease.bid.host.owner in market.unreachable
        or lease.contract.offline
    )
    return None if silent else told_status(market.world, market, placed, lease)


def told_status(world: World, market: AkashMarket, placed: Placed, lease: Lease) -> Row:
    """Return a lease's services and where they can be reached."""
    del world
    services: Row = {}
    forwarded: dict[str, list[Row]] = {}
    for service, up, ports in services_of(lease, placed.group):
        replicas = service.count if up else 0
        http = [port for port in service.ports if port.is_http]
        services[service.name] = {
            "name": service.name,
            "available": replicas,
            "total": service.count,
            "uris": [_uri(lease, service.name)] if http else None,
            "observed_generation": 1,
            "replicas": service.count,
            "updated_replicas": service.count,
            "ready_replicas": replicas,
            "available_replicas": replicas,
        }
        rows = _forwarded(market, service, ports)
        if rows:
            forwarded[service.name] = rows
    return {"services": services, "forwarded_ports": forwarded, "ips": None}


def _forwarded(
    market: AkashMarket, service: Any, ports: Mapping[tuple[int, str], int]
) -> list[Row]:
    rows = []
    for port in service.ports:
        number = ports.get((port.inside, port.protocol))
        if port.is_http or number is None:
            continue
        row: Row = {
            "host": market.world.runtime.address,
            "port": port.inside,
            "externalPort": number,
        }
        if market.settings.forwards_name_proto:
            row |= {"proto": port.protocol.upper(), "name": service.name}
        rows.append(row)
    return rows


def _uri(lease: Lease, service: str) -> str:
    """Return the name that an HTTP port gets at the host's ingress."""
    return f"{service}-{lease.contract.id}.ingress.{lease.bid.host.owner[-8:]}.akash.test"


def _id(market: AkashMarket, deployment: Deployment) -> Row:
    return {"owner": market.account, "dseq": deployment.dseq}


def _order_id(market: AkashMarket, deployment: Deployment, placed: Placed) -> Row:
    return _id(market, deployment) | {"gseq": placed.gseq, "oseq": 1}
