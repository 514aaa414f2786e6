"""The Vast.ai dialect: its HTTP API as an ASGI app over the world.

Hides which path does what, what is visible when, and the many ways in which a rent can answer.
Written from the vendor's documents and from what third parties saw, never from an adapter, and it
shares no code with one. Its parts: `gate.py` (identity, throttle, faults),
`search.py` (offers), `rent.py` (the create body), `instances.py` (rows and
pages), `account.py` (everything around instances). Each behaviour and its origin is listed
in docs/reference/vastai-sim.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from gp4u.sim.contracts import Contract, Door, Order, Trouble
from gp4u.sim.faults import Faults, Kind, Strike
from gp4u.sim.gate import Call, CallRefusedError, Handler
from gp4u.sim.vastai.account import Account
from gp4u.sim.vastai.gate import VastGate, VastSettings, refusal
from gp4u.sim.vastai.instances import (
    ListQuery,
    TokenError,
    decoded_token,
    encoded_token,
    instance_row,
    list_page,
    list_query,
)
from gp4u.sim.vastai.rent import BID_MAX_PER_GPU, BadOrderError, bid_of, order_of
from gp4u.sim.vastai.search import Row, SearchError, offers_found
from gp4u.sim.vastai.shell import host_key, open_door
from gp4u.sim.world import World

LABEL_MAX = 1024
"""Of the label call; a rent takes less."""
_RESULTS_MAX = 1000
_GONE = {
    410: ("no_such_ask", "error 410/3907: no_such_ask Instance type {} is no longer available."),
    404: ("invalid_args", "error 404/3603: no_such_ask Instance type by id {} is not available."),
    400: ("no_such_ask", "error 400/3901: no_such_ask Instance type {} is not available."),
    409: ("conflict", "Offer {} is no longer available."),
}


def vast_app(world: World, faults: Faults, settings: VastSettings | None = None) -> Starlette:
    """Return the API as an ASGI app. The caller moves the world, or leaves that to the calls."""
    market = VastMarket(world, faults, settings or VastSettings())
    return Starlette(routes=market.routes())


class VastMarket:
    """The handlers, and what the service remembers beside the contracts themselves."""

    def __init__(self, world: World, faults: Faults, settings: VastSettings) -> None:
        self._world, self._settings = world, settings
        self._gate = VastGate(world, faults, settings)
        self._account = Account(world, settings)
        self._listed_from: dict[int, float] = {}
        self._listed_until: dict[int, float] = {}
        self._results: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._host_keys: dict[int, Any] = {}
        world.environment, world.attend = self._environment, self._attend

    def routes(self) -> list[BaseRoute]:
        """Return every path, each with and without its trailing slash."""
        v0, one = "/api/v0", "/api/v0/instances/{id:int}"
        calls: list[tuple[str, str, str, Handler]] = [
            ("POST", f"{v0}/bundles", "search", self._search),
            ("GET", f"{v0}/bundles", "search", self._search),
            ("PUT", f"{v0}/search/asks", "search", self._search),
            ("PUT", f"{v0}/asks/{{id:int}}", "create", self._create),
            ("POST", f"{v0}/asks/bulk", "create", self._create_many),
            ("PUT", f"{v0}/launch_instance", "launch", self._launch),
            ("GET", "/api/v1/instances", "list", self._list),
            ("GET", f"{v0}/instances", "old_list", self._old_list),
            ("PUT", f"{v0}/instances", "bulk_update", self._update_many),
            ("DELETE", f"{v0}/instances", "destroy", self._destroy_many),
            ("GET", one, "show", self._show),
            ("PUT", one, "update", self._update),
            ("DELETE", one, "destroy", self._destroy),
            ("PUT", f"{v0}/instances/reboot/{{id:int}}", "reboot", self._reboot),
            ("PUT", f"{v0}/instances/recycle/{{id:int}}", "recycle", self._recycle),
            ("PUT", f"{v0}/instances/update_template/{{id:int}}", "update", self._update_template),
            ("PUT", f"{v0}/instances/bid_price/{{id:int}}", "bid", self._bid),
            ("PUT", f"{v0}/instances/request_logs/{{id:int}}", "logs", self._logs),
            ("PUT", f"{v0}/instances/command/{{id:int}}", "command", self._command),
            ("POST", f"{v0}/contracts/fetch", "contracts", self._contracts),
            *self._account.calls(),
        ]
        public = {"search", "gpu_names", "gpu_types", "result"}
        routes: list[BaseRoute] = []
        for method, path, endpoint, handler in calls:
            answer = self._gate.wrap(
                endpoint,
                handler,
                public=endpoint in public,
                bad_json=483 if endpoint == "command" else 400,
            )
            routes += [Route(form, answer, methods=[method]) for form in (path, f"{path}/")]
        result = self._gate.wrap("result", self._result, public=True)
        routes.append(Route("/instance_logs/{name}", result, methods=["GET"]))
        return routes

    # Offers.

    async def _search(self, call: Call) -> Response:
        return JSONResponse({"offers": self._found(_query_of(call))})

    def _found(self, query: Mapping[str, object]) -> list[Row]:
        settings = self._settings
        try:
            return offers_found(
                self._world, query, cap=settings.rows_cap, strict=settings.strict_fields
            )
        except SearchError as error:
            raise refusal(400, "invalid_request", str(error)) from error

    # Renting.

    async def _create(self, call: Call) -> Response:
        return self._rent(call.number, call.body, call.strike)

    async def _create_many(self, call: Call) -> Response:
        wanted = call.body.get("ids")
        if not isinstance(wanted, list) or not all(isinstance(i, int) for i in wanted):
            raise refusal(400, "invalid_args", "ids must be a list of offer ids")
        done: list[object] = []
        for offer_id in wanted:
            try:
                reply = self._rent(offer_id, call.body, call.strike)
            except CallRefusedError as refused:
                reply = refused.response  # of this offer; others may have been rented
            done.append(msgspec.json.decode(bytes(reply.body)))
        return JSONResponse({"success": True, "results": done})

    async def _launch(self, call: Call) -> Response:
        query = call.body.get("q")
        if not isinstance(query, dict):
            raise refusal(400, "invalid_args", "q must be an object")
        found = self._found(query)
        if not found:
            raise refusal(404, "no_such_ask", "No matching offers found.")
        offer_id = found[0]["id"]
        assert isinstance(offer_id, int)  # noqa: S101 -- our own row
        return self._rent(offer_id, call.body, call.strike)

    def _rent(self, offer_id: int, body: Mapping[str, object], strike: Strike) -> Response:
        world = self._world
        if (rule := strike.get(Kind.OFFER_GONE)) is not None:
            raise _gone(offer_id, rule.status or self._settings.gone_status)
        if strike.get(Kind.NO_CREDIT) is not None or world.credit_usd <= 0:
            raise refusal(400, "insufficient_credit", "Your account lacks credit.", ask_id=offer_id)
        try:
            order = order_of(body)
        except BadOrderError as error:
            raise refusal(400, error.slug, str(error), ask_id=offer_id) from error
        if body.get("vm") is True and not self._account.ssh_keys:
            raise refusal(400, "no_ssh_key_for_vm", "Add an ssh key first.", ask_id=offer_id)
        self._check_offer(offer_id, order)
        floor_met = self._bid_wins(offer_id, order)
        failing = strike.get(Kind.FAILED_WITH_ID) or strike.get(Kind.FAILED_WITHOUT_ID)
        order = msgspec.structs.replace(
            order,
            label=None if strike.get(Kind.LABEL_LOST) else order.label,
            start=order.start and floor_met and failing is None,
        )
        contract = self._take(offer_id, order, strike)
        if strike.get(Kind.DUPLICATE) is not None:
            self._duplicate(contract, order, strike)
        if not floor_met or failing is not None:
            return self._failed(contract, strike)
        key = f"{world.random.getrandbits(256):064x}"
        return JSONResponse({"success": True, "new_contract": contract.id, "instance_api_key": key})

    def _check_offer(self, offer_id: int, order: Order) -> None:
        found = self._world.find_offer(offer_id)
        if found is None:
            retired = self._world.was_offered(offer_id)
            raise _gone(offer_id, self._settings.gone_status if retired else 404)
        machine, part, free = found
        if not free:
            raise _gone(offer_id, self._settings.gone_status)
        most = Decimal(str(machine.disk_gb)) * len(part.gpus) / machine.gpu_count
        if order.disk_gb > most:
            msg = f"disk {order.disk_gb} GB is larger than the {most:.1f} GB of this offer"
            raise refusal(400, "invalid_args", msg, ask_id=offer_id)

    def _bid_wins(self, offer_id: int, order: Order) -> bool:
        found = self._world.find_offer(offer_id)
        if order.bid_usd_per_hour is None or found is None:
            return True
        machine, part, _ = found
        floor = machine.min_bid_per_gpu
        return floor is not None and order.bid_usd_per_hour >= floor * len(part.gpus)

    def _take(self, offer_id: int, order: Order, strike: Strike) -> Contract:
        world = self._world
        trouble, trouble_s = strike.trouble
        if trouble is None and not self._may_pull(order):
            trouble = Trouble.PULL_DENIED
        contract = world.rent(offer_id, order, trouble=trouble, trouble_s=trouble_s)
        lag = world.random.uniform(*self._settings.list_lag_s)
        if (rule := strike.get(Kind.LATE_LISTING)) is not None:
            lag = rule.seconds or 15.0
        self._listed_from[contract.id] = world.now_s + lag
        return contract

    def _may_pull(self, order: Order) -> bool:
        """Whether the image's registry gives it out: freely, or for the login that was sent."""
        registry = order.image.partition("/")[0] if "/" in order.image else "docker.io"
        wanted = self._settings.logins.get(registry)
        if wanted is None:
            return True
        return order.login is not None and order.login == (registry, *wanted)

    def _duplicate(self, first: Contract, order: Order, strike: Strike) -> None:
        like = [
            part.offer_id
            for machine, part, free in self._world.offers()
            if free and len(part.gpus) == len(first.gpus)
        ]
        if like:
            self._take(like[0], order, strike)

    def _failed(self, contract: Contract, strike: Strike) -> Response:
        """Return an error for a contract that exists all the same, stopped and billing its disk."""
        body: Row = {"success": False, "error": "resources_unavailable"}
        body["msg"] = "Required resources are currently unavailable."
        with_id = strike.get(Kind.FAILED_WITH_ID)
        if with_id or (self._settings.low_bid_id and not strike.get(Kind.FAILED_WITHOUT_ID)):
            body["new_contract"] = contract.id
        return JSONResponse(
            body, (with_id.status if with_id else None) or (400 if with_id else 200)
        )

    # Reading.

    async def _list(self, call: Call) -> Response:
        try:
            query = list_query(call.request.query_params)
            return JSONResponse(self._page(query, call.strike))
        except SearchError as error:
            msg = f"Error in query parameters: {error}"
            return JSONResponse({"error": "invalid_request", "msg": msg}, 400)
        except TokenError as error:
            raise refusal(400, "invalid_token", "Invalid pagination token.") from error

    def _page(self, query: ListQuery, strike: Strike) -> Row:
        stale = strike.get(Kind.LIST_STALE)
        stale_s = None if stale is None else stale.seconds or 15.0
        shown = [] if strike.get(Kind.LIST_EMPTY) else self._visible(stale_s)
        page = list_page(self._world, shown, query)
        if strike.get(Kind.LIST_LOST_PAGE) is not None:
            page = self._next_page(page, query, shown)
        if strike.get(Kind.LIST_LOOP) is not None and page["instances"]:
            again = query.after or (None,) * len(query.order)
            page["next_token"] = encoded_token(again)
        if strike.get(Kind.LIST_WRONG_TOTAL) is not None:
            total = page["total_instances"]
            assert isinstance(total, int)  # noqa: S101 -- our own answer
            page["total_instances"] = total + 1
        return page

    def _next_page(self, page: Row, query: ListQuery, shown: Sequence[Contract]) -> Row:
        """Leave a page out: show the one behind it, or nothing where there is none."""
        if not isinstance(page["next_token"], str):
            return {**page, "instances": [], "instances_found": 0}
        after = decoded_token(page["next_token"], len(query.order))
        behind = msgspec.structs.replace(query, after=after)
        return list_page(self._world, shown, behind)

    def _visible(self, stale_s: float | None) -> list[Contract]:
        """What the list shows: not yet the newest, and for a moment still the destroyed."""
        at = self._world.now_s - (stale_s or 0.0)
        return [
            contract
            for contract in self._world.contracts
            if self._listed_from.get(contract.id, contract.created_at) <= at
            and (contract.destroyed_at is None or at < self._listed_until.get(contract.id, 0.0))
        ]

    async def _old_list(self, call: Call) -> Response:
        del call
        msg = "/api/v0/instances/ is deprecated. Use /api/v1/instances/ instead."
        raise refusal(410, "deprecated_endpoint", msg)

    async def _show(self, call: Call) -> Response:
        contract = self._world.contract(call.number)
        if contract is None:
            if self._settings.show_gone_404:
                raise self._absent()
            return JSONResponse({"instances": None})
        return JSONResponse({"instances": instance_row(self._world, contract)})

    async def _contracts(self, call: Call) -> Response:
        label, ids = call.body.get("label"), call.body.get("contract_ids")
        rows = [
            instance_row(self._world, contract)
            for contract in self._visible(None)
            if (label is None or contract.label == label)
            and (not isinstance(ids, list) or contract.id in ids)
        ]
        return JSONResponse({"success": True, "contracts": rows})

    # Operating.

    async def _update(self, call: Call) -> Response:
        contract = self._held(call)
        if "label" in call.body:
            label = call.body["label"]
            if label is not None and (not isinstance(label, str) or len(label) > LABEL_MAX):
                raise refusal(400, "label_too_long", f"Labels have at most {LABEL_MAX} characters.")
            contract.label = label
        if "state" in call.body:
            return await self._set_state(contract, call.body["state"], call.strike)
        return JSONResponse({"success": True})

    async def _set_state(self, contract: Contract, state: object, strike: Strike) -> Response:
        if state == "stopped":
            await self._world.stop(contract)
        elif state == "running":
            if strike.get(Kind.START_REFUSED) is not None:
                self._world.change_machine(contract.machine.machine_id, taken=True)
            if not await self._world.start(contract):
                msg = "Required resources are currently unavailable, state change queued."
                body = {"success": False, "error": "resources_unavailable", "msg": msg}
                return JSONResponse(body)
        else:
            raise refusal(400, "invalid_args", f"invalid state {state!r}")
        return JSONResponse({"success": True})

    async def _update_many(self, call: Call) -> Response:
        for contract in self._several(call.body.get("ids")):
            await self._set_state(contract, call.body.get("state"), call.strike)
        return JSONResponse({"success": True})

    async def _destroy(self, call: Call) -> Response:
        contract = self._held(call)
        await self._release(contract, call.strike)
        return JSONResponse({"success": True, "msg": "Instance destroyed successfully"})

    async def _destroy_many(self, call: Call) -> Response:
        for contract in self._several(call.body.get("instance_ids")):
            await self._release(contract, call.strike)
        return JSONResponse({"success": True})

    async def _release(self, contract: Contract, strike: Strike) -> None:
        if strike.get(Kind.RELEASE_IGNORED) is not None:
            return
        lag = self._world.random.uniform(*self._settings.list_lag_s)
        self._listed_until[contract.id] = self._world.now_s + lag
        await self._world.destroy(contract)

    async def _reboot(self, call: Call) -> Response:
        await self._world.restart(self._held(call), fresh=False)
        return JSONResponse({"success": True})

    async def _recycle(self, call: Call) -> Response:
        await self._world.restart(self._held(call), fresh=True)
        return JSONResponse({"success": True})

    async def _update_template(self, call: Call) -> Response:
        contract = self._held(call)
        image = call.body.get("image")
        if isinstance(image, str) and image:
            contract.order = msgspec.structs.replace(contract.order, image=image)
        await self._world.restart(contract, fresh=True)
        return JSONResponse({"success": True})

    async def _bid(self, call: Call) -> Response:
        contract = self._held(call)
        price = call.body.get("price")
        per_gpu = contract.machine.min_bid_per_gpu or contract.machine.usd_per_gpu_hour
        try:
            bid = bid_of(price) or per_gpu * len(contract.gpus)
        except BadOrderError as error:
            msg = "Please set a bid price >= 0.001."
            raise refusal(400, "invalid_args", msg) from error
        if bid > BID_MAX_PER_GPU * len(contract.gpus):
            raise refusal(400, "invalid_args", f"At most {BID_MAX_PER_GPU} per GPU.")
        if contract.bid is None:
            raise refusal(400, "invalid_args", "Instance is not interruptible.")
        self._world.set_bid(contract, bid)
        if contract.cur == "stopped" and bid >= per_gpu * len(contract.gpus):
            await self._world.start(contract)
        return JSONResponse({"success": True})

    # Logs and commands: an address at first, the text behind it a little later.

    async def _logs(self, call: Call) -> Response:
        contract = self._world.contract(call.number)
        if contract is None:
            return JSONResponse({"error": "invalid_id", "msg": "Invalid instance id."}, 404)
        tail = call.body.get("tail", "1000")
        try:
            lines = max(int(str(tail)), 0)
        except ValueError:
            raise refusal(400, "invalid_args", "tail must be a number") from None
        if call.body.get("daemon_logs") in ("true", True):
            text = f"{contract.status_msg or 'no status yet'}\n"
        elif contract.running is not None:
            text = await contract.running.logs(lines)
        elif contract.logs_kept:
            text = "".join(contract.logs_kept.splitlines(keepends=True)[-lines:] if lines else [])
        else:
            return JSONResponse({"success": True, "msg": "Logs are not available yet."})
        wanted = call.body.get("filter")
        if isinstance(wanted, str) and wanted:
            kept = [line for line in text.splitlines(keepends=True) if wanted in line]
            text = "".join(kept)
        return self._uploaded(call, text, "Logs requested.")

    async def _command(self, call: Call) -> Response:
        self._held(call)
        command = call.body.get("command")
        if not isinstance(command, str) or len(command) > 512:
            raise refusal(400, "invalid_args", "Invalid command given.")
        words = command.split()
        if not words or words[0] not in ("ls", "rm", "du"):
            raise refusal(400, "invalid_args", "Invalid command given.")
        text = {"ls": "workspace\n", "du": "4\t/workspace\n", "rm": ""}[words[0]]
        msg = "Command is executing, wait a few seconds and then view the result_url"
        return self._uploaded(call, text, msg, writeable_path="/workspace")

    def _uploaded(self, call: Call, text: str, msg: str, **more: object) -> Response:
        name = f"{self._world.random.getrandbits(160):040x}.log"
        self._results[name] = (self._world.now_s + self._settings.log_delay_s, text)
        while len(self._results) > _RESULTS_MAX:
            self._results.popitem(last=False)
        url = f"{call.request.base_url}instance_logs/{name}"
        return JSONResponse({"success": True, **more, "result_url": url, "msg": msg})

    async def _result(self, call: Call) -> Response:
        ready_at, text = self._results.get(call.request.path_params["name"], (float("inf"), ""))
        if self._world.now_s < ready_at:
            return PlainTextResponse("Not Found", 404)
        return PlainTextResponse(text)

    # Lookups.

    def _environment(self, contract: Contract) -> Mapping[str, str]:
        """What the service tells a container about itself."""
        return {
            "CONTAINER_ID": str(contract.id),
            "VAST_CONTAINERLABEL": f"C.{contract.id}",
            "PUBLIC_IPADDR": self._world.runtime.address,
        }

    async def _attend(self, contract: Contract) -> Door | None:
        """Put an SSH server into an instance that was rented with one, where anything runs."""
        running, runtime = contract.running, self._world.runtime
        if not contract.order.served or running is None or runtime.name == "pretend":
            return None
        key = self._host_keys.setdefault(contract.id, host_key())
        if key is None:
            return None
        return await open_door(
            running, key, lambda: self._account.keys_of(contract.id), runtime.address
        )

    def _held(self, call: Call) -> Contract:
        contract = self._world.contract(call.number)
        if contract is None:
            raise self._absent()
        return contract

    def _several(self, ids: object) -> list[Contract]:
        if not isinstance(ids, list):
            raise refusal(400, "invalid_args", "ids must be a list")
        found = [self._world.contract(i) for i in ids if isinstance(i, int)]
        return [contract for contract in found if contract is not None]

    def _absent(self) -> Exception:
        slug = self._settings.absent_error
        texts = {"not_found": "Instance not found"}
        return refusal(404, slug, texts.get(slug, "Instance with that ID does not exist."))


def _gone(offer_id: int, status: int) -> Exception:
    slug, text = _GONE.get(status, _GONE[410])
    return refusal(status, slug, text.format(offer_id), ask_id=offer_id)


def _query_of(call: Call) -> Mapping[str, object]:
    """The search object: the body, the body's `q`, or the query string's `q`."""
    inner: object = call.body.get("q")
    if call.request.method == "GET":
        try:
            inner = msgspec.json.decode(call.request.query_params.get("q") or "{}")
        except msgspec.DecodeError as error:
            raise refusal(400, "invalid_request", "Invalid json body") from error
    if inner is None:
        return call.body
    if not isinstance(inner, dict):
        raise refusal(400, "invalid_request", "Invalid json body")
    return inner
