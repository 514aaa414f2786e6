"""The io.net dialect: containers, virtual machines and the seed's list, as an ASGI app.

Hides which path does what, what is visible when, and prepaid time: whole hours are charged to the
meter when they are bought, and at the end of the last one the deployment is over. Written from the
market's documents and from what third parties saw, never from an adapter, and it shares no code
with one. Its parts: `gate.py` (identity, throttle, errors), `supply.py` and
`sales.py` (what is sold), `orders.py` (bodies), `held.py` (rows). Each behaviour
and its origin is listed in docs/reference/ionet.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import httpx2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from gp4u.sim.contracts import Contract
from gp4u.sim.faults import Faults, Kind, Strike
from gp4u.sim.gate import Call, Handler
from gp4u.sim.ionet.gate import IoNetGate, IoNetSettings, answer, refused, reply
from gp4u.sim.ionet.held import STATUSES, Held, Teller
from gp4u.sim.ionet.orders import (
    Wish,
    changed_config,
    container_order,
    container_wish,
    hours_of,
    machine_wish,
)
from gp4u.sim.ionet.sales import Sales, count_of
from gp4u.sim.ionet.supply import Supply
from gp4u.sim.world import World

ENTERPRISE, CONSOLE = "/enterprise/v1/io-cloud", "/v1/io-cloud"
PAGE_MAX, PAGE_DEFAULT = 100, 10
_HEALTH_S = 2.0
_FIRST_PAGE = {"caas": 0, "vmaas": 1}


def ionet_app(world: World, faults: Faults, settings: IoNetSettings | None = None) -> Starlette:
    """Return the API as an ASGI app. The caller moves the world, or leaves that to the calls."""
    market = IoNetMarket(world, faults, settings or IoNetSettings())
    return Starlette(routes=market.routes(), exception_handlers={HTTPException: _no_such_path})


async def _no_such_path(request: Request, error: Exception) -> Response:
    del request
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "Not Found", 405: "Method Not Allowed"}
    return JSONResponse({"detail": words.get(status, "Error")}, status)


class IoNetMarket:
    """The handlers, and what the service remembers beside the contracts themselves."""

    def __init__(self, world: World, faults: Faults, settings: IoNetSettings) -> None:
        self._world, self._settings = world, settings
        self._gate = IoNetGate(world, faults, settings)
        self._supply = Supply(world)
        self._sales = Sales(world, self._supply, settings)
        self._teller = Teller(world, settings)
        self.held: list[Held] = []
        """Everything ever deployed, oldest first."""

    def routes(self) -> list[BaseRoute]:
        """Return every path, under both roots where both have it."""
        one, vm = "/deployment/{id}", "/vmaas"
        both: list[tuple[str, str, str, Handler]] = [
            ("POST", "/caas/deploy", "create", self._create_container),
            ("GET", "/caas/deployments", "list", self._containers_held),
            ("GET", f"/caas{one}", "show", self._show),
            ("PATCH", f"/caas{one}", "update", self._update),
            ("DELETE", f"/caas{one}", "destroy", self._destroy),
            ("POST", f"/caas{one}/extend", "extend", self._extend),
            ("GET", f"/caas{one}/containers", "containers", self._containers),
            ("GET", f"/caas{one}/container/{{container}}", "container", self._container),
            ("GET", f"/caas{one}/log/{{container}}", "logs", self._logs),
            ("GET", "/caas/containers-jobs/{container}", "jobs", self._jobs),
            ("GET", "/caas/clusters/check_cluster_name_availability", "name", self._name_free),
            ("PUT", "/caas/clusters/{id}/update-name", "rename", self._rename),
            ("POST", f"{vm}/deploy", "create", self._create_machine),
            ("GET", f"{vm}/deployments", "list", self._machines_held),
            ("GET", f"{vm}{one}", "show", self._show),
            ("DELETE", f"{vm}{one}", "destroy", self._destroy),
            ("POST", f"{vm}{one}/extend", "extend", self._extend),
            ("GET", f"{vm}{one}/vms", "containers", self._machines),
            *self._sales.calls(),
        ]
        calls = [(m, root + p, name, h) for root in (ENTERPRISE, CONSOLE) for m, p, name, h in both]
        calls += [
            ("GET", f"{ENTERPRISE}{vm}/hardware", "shapes", self._sales.machine_hardware),
            ("GET", "/v1/devices", "devices", self._sales.devices),
        ]
        public = [(m, CONSOLE + p, name, h) for m, p, name, h in self._sales.public_calls()]
        routes: list[BaseRoute] = []
        for each, is_public in ((calls, False), (public, True)):
            for method, path, name, handler in each:
                wrapped = self._gate.wrap(name, self._seen(handler), public=is_public)
                routes.append(Route(path, wrapped, methods=[method]))
        return routes

    def _seen(self, handler: Handler) -> Handler:
        """Return the handler, with every health check brought up to date before it looks."""

        async def looking(call: Call) -> Response:
            for held in self.held:
                held.healthy = held.contract.up and (held.healthy or await self._passes(held))
            return await handler(call)

        return looking

    async def _passes(self, held: Held) -> bool:
        """The market's own health check: an HTTP request to the one port must answer 2xx."""
        contract, world = held.contract, self._world
        if held.product != "caas" or contract.hides_ports or contract.ran_since is None:
            return False
        if world.runtime.name == "pretend":
            return world.now_s >= contract.ran_since + self._settings.health_s
        port = next(iter(contract.ports.values()), None)
        try:
            async with httpx2.AsyncClient(trust_env=False, timeout=_HEALTH_S) as client:
                return (await client.get(f"http://{world.runtime.address}:{port}/")).is_success
        except httpx2.HTTPError:
            return False

    # Creating.

    async def _create_container(self, call: Call) -> Response:
        held = self._create("caas", container_wish(call.body), call.strike)
        return self._made(held, call.strike)

    async def _create_machine(self, call: Call) -> Response:
        held = self._create("vmaas", machine_wish(call.body), call.strike)
        made = self._made(held, call.strike)
        empty = self._settings.vm_reply_empty and made.status_code == 200
        return Response(b"", 200) if empty else made

    def _made(self, held: Held, strike: Strike) -> Response:
        if strike.get(Kind.FAILED_WITHOUT_ID) is not None:
            return JSONResponse({"detail": "Something went wrong"})
        if (rule := strike.get(Kind.FAILED_WITH_ID)) is not None:
            body = {"detail": "Something went wrong", "deployment_id": held.id}
            return JSONResponse(body, rule.status or 500)
        return reply({"status": self._teller.status(held), "deployment_id": held.id})

    def _create(self, product: str, wish: Wish, strike: Strike) -> Held:
        world = self._world
        if not self._is_free(wish.name):
            raise refused(400, "resource_private_name already exists")
        country = self._supply.country(wish.location) or ""
        found = self._supply.find(wish.hardware_id, wish.gpus, country)
        if found is None:
            raise refused(404, "Hardware not found")
        usd = self._sales.block_usd(found) * wish.hours
        if strike.get(Kind.NO_CREDIT) is not None or world.credit_usd < usd:
            raise refused(402, "Insufficient IO Credits balance")
        parts = self._supply.slices(found)
        if strike.get(Kind.OFFER_GONE) is not None or not parts:
            raise refused(400, "Not enough capacity for the requested hardware")
        trouble, trouble_s = strike.trouble
        contract = world.rent(parts[0].offer_id, wish.order, trouble=trouble, trouble_s=trouble_s)
        # Time is paid in advance: nothing runs up by the second.
        world.reprice(contract, gpu=Decimal(0), disk=Decimal(0))
        lag_s = world.random.uniform(*self._settings.list_lag_s)
        if (rule := strike.get(Kind.LATE_LISTING)) is not None:
            lag_s = rule.seconds or 15.0
        bits = f"{world.random.getrandbits(128):032x}"
        held = Held(
            product=product,
            own_id="-".join((bits[:8], bits[8:12], bits[12:16], bits[16:20], bits[20:])),
            name=bits[:12] if strike.get(Kind.LABEL_LOST) is not None else wish.name,
            wish=wish,
            configuration=found,
            contract=contract,
            block_usd=self._sales.block_usd(found),
            listed_from_s=world.now_s + lag_s,
        )
        contract.name, contract.label = held.id, wish.name
        self.held.append(held)
        self._pay(held, usd)
        self._expire_later(held)
        return held

    def _pay(self, held: Held, usd: Decimal) -> None:
        held.paid_usd += usd
        self._world.charge(held.contract, "prepaid", usd)

    def _expire_later(self, held: Held) -> None:
        async def expire() -> None:
            if held.contract.alive and self._world.now_s >= held.paid_until_s:
                held.expired = True
                await self._world.destroy(held.contract)
            elif held.contract.alive:
                self._expire_later(held)  # it was extended meanwhile

        self._world.later(max(0.0, held.paid_until_s - self._world.now_s), expire)

    def _is_free(self, name: str) -> bool:
        return all(each.name != name for each in self.held)

    async def _name_free(self, call: Call) -> Response:
        return reply(self._is_free(call.request.query_params.get("cluster_name", "")))

    # Reading.

    async def _containers_held(self, call: Call) -> Response:
        return self._list("caas", call)

    async def _machines_held(self, call: Call) -> Response:
        return self._list("vmaas", call)

    def _list(self, product: str, call: Call) -> Response:
        query, strike = call.request.query_params, call.strike
        number = count_of(query, "page", _FIRST_PAGE[product], least=_FIRST_PAGE[product])
        number -= _FIRST_PAGE[product]
        size = count_of(query, "page_size", PAGE_DEFAULT, most=PAGE_MAX)
        stale = strike.get(Kind.LIST_STALE)
        at = self._world.now_s - (0.0 if stale is None else stale.seconds or 15.0)
        shown = [h for h in self.held if h.product == product and h.listed_from_s <= at]
        if strike.get(Kind.LIST_EMPTY) is not None:
            shown = []
        rows = [self._teller.list_row(held) for held in shown]
        if status := query.get("status"):
            rows = [row for row in rows if row["status"] == status]
        total = len(rows) + (strike.get(Kind.LIST_WRONG_TOTAL) is not None)
        if strike.get(Kind.LIST_LOST_PAGE) is not None:
            number += 1
        if strike.get(Kind.LIST_LOOP) is not None:
            number = 0
        page = rows[number * size : (number + 1) * size]
        return answer(
            self._settings,
            {
                "deployments": page,
                "total": 0 if self._settings.total_zero else total,
                "statuses": list(STATUSES),
            },
        )

    async def _show(self, call: Call) -> Response:
        held = self._find(call)
        return answer(
            self._settings,
            self._teller.detail(held, self._supply.places[held.configuration.country]),
        )

    async def _containers(self, call: Call) -> Response:
        held = self._find(call)
        shown = [self._teller.container(held)] if held.contract.actual is not None else []
        return answer(self._settings, {"total": len(shown), "workers": shown})

    async def _machines(self, call: Call) -> Response:
        held = self._find(call)
        if count_of(call.request.query_params, "page", 1) > 1:
            return answer(self._settings, {"total": 1, "workers": []})
        return answer(self._settings, {"total": 1, "workers": [self._teller.machine(held)]})

    async def _container(self, call: Call) -> Response:
        return reply(self._teller.container(self._find_container(call)))

    async def _jobs(self, call: Call) -> Response:
        name = call.request.path_params["container"]
        found = [each for each in self.held if each.container_id == name]
        rows = [self._teller.container(each) for each in found]
        return answer(self._settings, {"total": len(rows), "workers": rows})

    async def _logs(self, call: Call) -> Response:
        held = self._find_container(call)
        stream = call.request.query_params.get("stream", "stdout")
        if stream not in ("stdout", "stderr"):
            raise refused(422, "stream")
        if call.request.url.path.startswith(CONSOLE):
            return PlainTextResponse(await _printed(held.contract))
        if stream == "stderr" or call.strike.rules:
            text = "" if stream == "stderr" else await _printed(held.contract)
            return Response(_events(text), media_type="text/event-stream")
        return StreamingResponse(self._stream(held), media_type="text/event-stream")

    async def _stream(self, held: Held) -> AsyncIterator[bytes]:
        """Yield what was printed, and then what is printed, until nothing came for long."""
        sent, silent_s = 0, 0.0
        while True:
            text = await _printed(held.contract)
            if len(text) > sent:
                yield _events(text[sent:])
                sent, silent_s = len(text), 0.0
            if silent_s >= self._settings.log_open_s:
                return
            await asyncio.sleep(0.5)
            silent_s += 0.5

    # Changing and ending.

    async def _update(self, call: Call) -> Response:
        held = self._find(call)
        changed_config(call.body)
        held.config.update({k: v for k, v in call.body.items() if k not in ("args", "command")})
        image = {"image_url": call.body.get("image_url", held.contract.order.image)}
        held.contract.order = container_order(held.config, image)
        held.healthy = False
        await self._world.restart(held.contract, fresh=True)
        return reply({"status": self._teller.status(held), "deployment_id": held.id})

    async def _extend(self, call: Call) -> Response:
        held = self._find(call)
        hours = hours_of(call.body)
        if not held.contract.alive:
            raise refused(400, "Deployment is not running")
        usd = held.block_usd * hours
        if call.strike.get(Kind.NO_CREDIT) is not None or self._world.credit_usd < usd:
            raise refused(402, "Insufficient IO Credits balance")
        held.hours += hours
        self._pay(held, usd)
        return answer(
            self._settings,
            self._teller.detail(held, self._supply.places[held.configuration.country]),
        )

    async def _destroy(self, call: Call) -> Response:
        held = self._find(call)
        if call.strike.get(Kind.RELEASE_IGNORED) is not None:
            return reply({"status": "termination requested", "deployment_id": held.id})
        if held.contract.alive:
            self._give_back(held)
            await self._world.destroy(held.contract)
        return reply({"status": self._teller.status(held), "deployment_id": held.id})

    def _give_back(self, held: Held) -> None:
        """Refund what the settings say: nothing, or unused time beyond the first hour."""
        if self._settings.refund != "after_first_hour":
            return
        used_s = max(3600.0, self._world.now_s - held.contract.created_at)
        unused = Decimal(str(held.hours)) - Decimal(str(used_s)) / 3600
        if unused > 0:
            self._pay(held, -(held.block_usd * unused).quantize(Decimal("0.000001")))

    async def _rename(self, call: Call) -> Response:
        held, name = self._find(call), call.body.get("cluster_name")
        if not isinstance(name, str) or not self._is_free(name):
            raise refused(400, "resource_private_name already exists")
        held.name = name
        return reply({"status": "succeeded", "message": "Cluster name updated"})

    # Lookups.

    def _find(self, call: Call) -> Held:
        wanted = call.request.path_params["id"]
        product = "vmaas" if "/vmaas/" in call.request.url.path else "caas"
        for each in self.held:
            if each.id == wanted and each.product == product:
                return each
        raise refused(404, "Deployment not found")

    def _find_container(self, call: Call) -> Held:
        held = self._find(call)
        if call.request.path_params["container"] != held.container_id:
            raise refused(404, "Container not found")
        return held


async def _printed(contract: Contract) -> str:
    return contract.logs_kept if contract.running is None else await contract.running.logs(10_000)


def _events(text: str) -> bytes:
    return "".join(f"data: {line}\n\n" for line in text.splitlines()).encode()
