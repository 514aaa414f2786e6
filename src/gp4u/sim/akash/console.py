"""The Console's API: market reads for anybody, renting with a key.

Hides its envelopes and quirks: writes wrapped in `data` but for two, success that is a failed
transaction, a list that mixes leases up, answers that come from hosts which may not answer.

Source: akash-network/console d84c9e93d (2026-08-22) and its OpenAPI, as restated in
docs/reference/akash.md 4 and 5; checked 2026-11.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gp4u.sim.akash.gate import refused
from gp4u.sim.akash.market import AkashMarket, Deployment, Host, Placed
from gp4u.sim.akash.rows import Row, bid_row, coin, console_deployment
from gp4u.sim.akash.sdl import SdlError, group_spec, read_sdl
from gp4u.sim.akash.supply import address, place
from gp4u.sim.akash.token import DEFAULT_TTL_S, TokenError, check_leases, sign
from gp4u.sim.faults import Kind, Strike
from gp4u.sim.gate import Call, Handler

LEAST_DEPOSIT_USD = Decimal("0.5")
DEFAULT_DEPOSIT_USD = Decimal(5)
NEWER_LIMIT = 100
HOURS_PER_MONTH = Decimal("730.488")
_CARD = ("model", "ram", "interface")


class Console:
    """The Console's handlers."""

    def __init__(self, market: AkashMarket, secret: bytes) -> None:
        self._market, self._world, self._secret = market, market.world, secret
        self._settings = market.settings

    def calls(self) -> list[tuple[str, str, str, Handler]]:
        """Return (method, path, endpoint, handler); those of `PUBLIC` need no key."""
        return [
            ("GET", "/v1/gpu-prices", "search", self._prices),
            ("GET", "/v1/gpu", "inventory", self._gpu),
            ("GET", "/v1/providers", "providers", self._providers),
            ("GET", "/v1/providers/{owner}", "provider", self._provider),
            ("GET", "/v1/market-data/{coin}", "market_data", self._market_data),
            ("GET", "/v1/network-capacity", "capacity", self._capacity),
            ("POST", "/v1/deployments", "create", self._create),
            ("GET", "/v1/deployments", "list", self._list),
            ("GET", "/v1/deployments/{dseq}", "show", self._show),
            ("DELETE", "/v1/deployments/{dseq}", "destroy", self._destroy),
            ("GET", "/v1/bids", "bids", self._bids),
            ("POST", "/v1/leases", "lease", self._lease),
            ("POST", "/v1/deposit-deployment", "deposit", self._deposit),
            ("POST", "/v1/create-jwt-token", "token", self._token),
            ("GET", "/v1/balances", "balances", self._balances),
        ]

    PUBLIC = frozenset(("search", "inventory", "providers", "provider", "market_data", "capacity"))

    # Market reads.

    async def _prices(self, call: Call) -> Response:
        debug = call.request.query_params.get("debug") == "true" and self._settings.debug_prices
        kinds: defaultdict[tuple[str, str, str], list[Host]] = defaultdict(list)
        for host in self._market.online().values():
            card = host.card
            kinds[card.model, card.ram, card.interface].append(host)
        uri = host_uri(call.request)
        models = [
            self._price_row(kind, hosts, uri if debug else None)
            for kind, hosts in sorted(kinds.items())
        ]
        total = sum(row["availability"]["total"] for row in models)
        free = sum(row["availability"]["available"] for row in models)
        return JSONResponse({"availability": {"total": total, "available": free}, "models": models})

    def _price_row(self, kind: tuple[str, str, str], hosts: list[Host], uri: str | None) -> Row:
        """Return what is known of a kind; `uri` is where hosts are, if they are told apart."""
        model, ram, interface = kind
        stock = [self._stock(host, uri) for host in hosts]
        free = [max(0, each["allocatable"] - each["allocated"]) for each in stock]
        prices = sorted(round(float(self._market.hourly_usd(host)), 2) for host in hosts)
        weights = [each["allocatable"] for each in stock]
        weighted = sum(
            float(self._market.hourly_usd(host)) * weight
            for host, weight in zip(hosts, weights, strict=True)
        ) / max(1, sum(weights))
        row: Row = {
            "vendor": "nvidia",
            "model": model,
            "ram": ram,
            "interface": interface,
            "availability": {"total": sum(weights), "available": sum(free)},
            "providerAvailability": {
                "total": len(hosts),
                "available": sum(1 for each in free if each),
            },
            "price": {
                "currency": "USD",
                "min": prices[0],
                "max": prices[-1],
                "avg": round(sum(prices) / len(prices), 2),
                "weightedAverage": round(weighted, 2),
                "med": prices[len(prices) // 2],
            },
            "priceUakt": None,
        }
        if uri is not None:
            row["providerAvailability"]["providers"] = stock
            row["bidCount"] = len(hosts)
            row["providersWithBestBid"] = [
                {"provider": each, "bestBid": self._best_bid(host)}
                for host, each in zip(hosts, stock, strict=True)
            ]
        return row

    def _stock(self, host: Host, uri: str | None) -> Row:
        return {
            "owner": host.owner,
            "hostUri": uri,
            "allocated": self._market.allocated(host),
            "allocatable": host.machine.gpu_count,
        }

    def _best_bid(self, host: Host) -> Row:
        usd = self._market.hourly_usd(host)
        amount = self._market.per_block(usd)
        akt = self._settings.akt_usd
        price = coin(amount / akt, "uakt") if host.pays_akt else coin(amount)
        uakt = float(amount / akt * 600)
        bot, words = address("pricing bot"), dict(zip(_CARD, host.card.words, strict=True))
        size = "268435456"
        return {
            "height": self._market.height - 100,
            "txHash": f"{host.machine.machine_id:064X}",
            "datetime": "2026-09-28T12:26:10.406Z",
            "provider": host.owner,
            "aktTokenPrice": float(akt),
            "hourlyPrice": round(float(usd), 2),
            "monthlyPrice": round(float(usd * HOURS_PER_MONTH), 2),
            "hourlyPriceUakt": round(uakt, 2),
            "monthlyPriceUakt": round(uakt * float(HOURS_PER_MONTH), 2),
            "deployment": {
                "owner": bot,
                "cpuUnits": 100,
                "memoryUnits": 268435456,
                "storageUnits": 268435456,
                "gpus": [{"vendor": "nvidia", **words}],
            },
            "data": {
                "id": {
                    "owner": bot,
                    "dseq": "1790598358092",
                    "gseq": 1,
                    "oseq": 1,
                    "provider": host.owner,
                },
                "price": price,
                "resources_offer": [
                    {
                        "resources": {
                            "id": 1,
                            "cpu": {"units": {"val": "100"}},
                            "memory": {"quantity": {"val": size}},
                            "storage": [{"name": "default", "quantity": {"val": size}}],
                            "gpu": {
                                "units": {"val": "1"},
                                "attributes": [{"key": host.card.key, "value": "true"}],
                            },
                            "endpoints": [{}],
                        },
                        "count": 1,
                    }
                ],
            },
        }

    async def _gpu(self, call: Call) -> Response:
        params = call.request.query_params
        rows: dict[tuple[str, str, str], Row] = {}
        for host in self._market.online().values():
            card = host.card
            if params.get("provider") not in (None, "", host.owner):
                continue
            if params.get("model") not in (None, "", card.model):
                continue
            kind = (card.model, card.ram, card.interface)
            fresh: Row = {
                "model": card.model,
                "ram": card.ram,
                "interface": card.interface,
                "allocatable": 0,
                "allocated": 0,
            }
            row = rows.setdefault(kind, fresh)
            row["allocatable"] += host.machine.gpu_count
            row["allocated"] += self._market.allocated(host)
        total = {
            name: sum(row[name] for row in rows.values()) for name in ("allocatable", "allocated")
        }
        details = {"nvidia": list(rows.values())}
        return JSONResponse({"gpus": {"total": total, "details": details}})

    async def _providers(self, call: Call) -> Response:
        wanted = call.request.query_params.get("addresses")
        chosen = set(wanted.split(",")) if wanted else None
        online = self._market.online()
        return JSONResponse(
            [
                self._provider_row(call.request, host, owner in online)
                for owner, host in self._market.hosts.items()
                if chosen is None or owner in chosen
            ]
        )

    async def _provider(self, call: Call) -> Response:
        owner = call.request.path_params["owner"]
        if not owner.startswith("akash1"):
            return PlainTextResponse("Invalid address", 400)
        host = self._market.hosts.get(owner)
        if host is None:
            return PlainTextResponse("Provider not found", 404)
        online = owner in self._market.online()
        return JSONResponse(self._provider_row(call.request, host, online))

    def _provider_row(self, request: Request, host: Host, online: bool) -> Row:
        machine = host.machine
        country, region, code = place(machine)
        busy = self._market.allocated(host)
        share = 1 - busy / machine.gpu_count
        uptime = machine.reliability

        def stat(total: float) -> Row:
            free = int(total * share)
            return {
                "active": int(total) - free,
                "available": free,
                "pending": 0,
                "total": int(total),
            }

        return {
            "owner": host.owner,
            "name": f"{host.owner[-8:]}.akash.test" if online else None,
            "hostUri": host_uri(request),
            "createdHeight": 1_000_000,
            "email": None,
            "website": None,
            "isOnline": online,
            "isValidVersion": True,
            "isAudited": machine.verification == "verified",
            "akashVersion": "2.1.0",
            "ipRegion": region,
            "ipRegionCode": code,
            "ipCountry": None,
            "ipCountryCode": country,
            "ipLat": None,
            "ipLon": None,
            "stats": {
                "cpu": stat(machine.cpu_cores * 1000),
                "gpu": stat(machine.gpu_count),
                "memory": stat(machine.ram_mb * 2**20),
                "storage": {
                    "ephemeral": stat(machine.disk_gb * 10**9),
                    "persistent": stat(0),
                    "total": stat(machine.disk_gb * 10**9),
                },
            },
            "uptime1d": uptime,
            "uptime7d": uptime,
            "uptime30d": uptime if machine.machine_id % 9 else None,
            "gpuModels": [
                {
                    "vendor": "nvidia",
                    "model": host.card.model,
                    "ram": host.card.ram,
                    "interface": host.card.interface,
                }
            ],
            "attributes": [{"key": "host", "value": "akash", "auditedBy": []}],
            "locationRegion": None,
            "country": country,
            "networkSpeedDown": machine.down_mbps if machine.machine_id % 5 else 0,
            "networkSpeedUp": machine.up_mbps if machine.machine_id % 5 else 0,
            "featEndpointIp": False,
        }

    async def _market_data(self, call: Call) -> Response:
        if call.request.path_params["coin"] != "akash-network":
            raise refused(404, "No such coin")
        price = float(self._settings.akt_usd)
        return JSONResponse({"coin": "akash-network", "price": price, "volume": 0, "marketCap": 0})

    async def _capacity(self, call: Call) -> Response:
        del call
        hosts = self._market.online().values()
        busy = sum(self._market.allocated(host) for host in hosts)
        total = sum(host.machine.gpu_count for host in hosts)
        gpu = {"active": busy, "pending": 0, "available": total - busy, "total": total}
        return JSONResponse({"activeProviderCount": len(hosts), "resources": {"gpu": gpu}})

    # Renting.

    async def _create(self, call: Call) -> Response:
        data = _data(call)
        if (rule := call.strike.get(Kind.NO_CREDIT)) is not None:
            # `body` names the code: one is for good, one passes, one is of a trial account.
            word = rule.body or "insufficient_balance"
            text = "The account cannot pay for this now."
            raise refused(402, text, word, data={}, retry_after=rule.retry_after)
        try:
            groups = read_sdl(data.get("sdl"))
        except SdlError as error:
            raise refused(400, f"Invalid SDL: {error}", "validation_error") from error
        deposit = DEFAULT_DEPOSIT_USD
        if "deposit" in data and not self._settings.ignores_deposit:
            deposit = _money(data["deposit"])
        failed = call.strike.get(Kind.FAILED_WITHOUT_ID) is not None
        tx = {"code": 11 if failed else 0, "transactionHash": "AB" * 32, "rawLog": ""}
        manifest = msgspec.json.encode([group_spec(group) for group in groups]).decode()
        if failed:
            tx["rawLog"] = "out of gas in location: WriteFlat"
            dseq = str(int(self._world.epoch(self._world.now_s) * 1000))
            return JSONResponse({"data": {"dseq": dseq, "manifest": manifest, "signTx": tx}}, 201)
        no_bids = call.strike.get(Kind.OFFER_GONE) is not None
        made = self._market.create(groups, deposit, no_bids=no_bids)
        self._mark(made, call.strike)
        if call.strike.get(Kind.DUPLICATE) is not None:
            self._market.create(groups, deposit)
        return JSONResponse({"data": {"dseq": made.dseq, "manifest": manifest, "signTx": tx}}, 201)

    def _mark(self, made: Deployment, strike: Strike) -> None:
        made.trouble = strike.trouble
        late = strike.get(Kind.LATE_LISTING)
        if late is not None:
            made.shown_from = made.on_chain_from = self._world.now_s + (late.seconds or 15.0)

    async def _bids(self, call: Call) -> Response:
        deployment = self._market.deployments.get(call.request.query_params.get("dseq", ""))
        if deployment is None:
            raise refused(404, "Deployment not found")
        rows = [
            bid_row(self._market, deployment, placed, bid)
            for placed in deployment.placed
            for bid in self._market.bids(deployment, placed)
        ]
        return JSONResponse({"data": rows})

    async def _lease(self, call: Call) -> Response:
        wanted = call.body.get("leases")
        if not isinstance(wanted, list) or not wanted or "data" in call.body:
            raise refused(400, "leases is required", "validation_error")
        if not isinstance(call.body.get("manifest", ""), str):
            raise refused(400, "manifest must be text", "validation_error")
        if call.strike.get(Kind.OFFER_GONE) is not None:
            raise refused(400, "bid not open")
        accepted = [self._wanted(each) for each in wanted]
        deployment = accepted[0][0]
        if {placed.gseq for _, placed, _ in accepted} != {p.gseq for p in deployment.placed}:
            raise refused(400, "all groups of a deployment must be leased in one call")
        trouble, _ = call.strike.trouble
        if trouble is not None:
            deployment.trouble = call.strike.trouble
        arrived = [self._market.accept(*each) for each in accepted]
        if not all(arrived):
            text = "The lease was created, but its manifest was not delivered."
            raise refused(502, text, "manifest_not_delivered")
        return JSONResponse({"data": console_deployment(self._market, deployment)})

    def _wanted(self, lease: object) -> tuple[Deployment, Placed, str]:
        told: Mapping[str, Any] = lease if isinstance(lease, dict) else {}
        deployment = self._market.deployments.get(str(told.get("dseq")))
        if deployment is None:
            raise refused(404, "Deployment not found")
        for placed in deployment.placed:
            if placed.gseq == told.get("gseq") and told.get("oseq") == 1:
                return deployment, placed, str(told.get("provider"))
        raise refused(400, "no such order", "validation_error")

    async def _list(self, call: Call) -> Response:
        params = call.request.query_params
        skip, limit = _number(params.get("skip"), 0), _number(params.get("limit"), 0)
        newer = self._settings.newer_lists
        if newer and limit > NEWER_LIMIT:
            raise refused(400, f"limit must be at most {NEWER_LIMIT}", "validation_error")
        shown = self._listed(call.strike, params.get("state"))
        page = shown[skip : skip + limit] if limit else shown[skip:]
        if call.strike.get(Kind.LIST_LOST_PAGE) is not None:
            page = page[1:]
        rows = [console_deployment(self._market, each) for each in page]
        if not newer and len(rows) > 1:
            # Seen on the August 2026 server: each deployment beside the leases of another.
            leases = [row["leases"] for row in rows]
            for row, others in zip(rows, leases[1:] + leases[:1], strict=True):
                row["leases"] = others
        more = skip + len(page) < len(shown) if newer or "skip" in params else False
        total = len(shown) if newer else len(page)
        if call.strike.get(Kind.LIST_WRONG_TOTAL) is not None:
            total += 1
        pagination = {"total": total, "skip": skip, "limit": limit, "hasMore": more}
        return JSONResponse({"data": {"deployments": rows, "pagination": pagination}})

    def _listed(self, strike: Strike, state: str | None) -> list[Deployment]:
        """Return what the list shows; newer servers keep what is closed, and filter by state."""
        if strike.get(Kind.LIST_EMPTY) is not None:
            return []
        stale = strike.get(Kind.LIST_STALE)
        at = self._world.now_s - (0.0 if stale is None else stale.seconds or 15.0)
        wanted = state if self._settings.newer_lists else "active"
        return [
            d
            for d in self._market.deployments.values()
            if d.shown_from <= at
            and wanted in (None, "active" if d.open or at < d.hidden_from else "closed")
        ]

    async def _show(self, call: Call) -> Response:
        return JSONResponse({"data": console_deployment(self._market, self._named(call))})

    async def _destroy(self, call: Call) -> Response:
        deployment = self._named(call)
        if call.strike.get(Kind.RELEASE_IGNORED) is None:
            await self._market.close(deployment)
        return JSONResponse({"data": {"success": True}})

    async def _deposit(self, call: Call) -> Response:
        data = _data(call)
        deployment = self._market.deployments.get(str(data.get("dseq")))
        if deployment is None:
            raise refused(404, "Deployment not found")
        self._market.deposit(deployment, _money(data.get("deposit")))
        return JSONResponse({"data": console_deployment(self._market, deployment)})

    async def _token(self, call: Call) -> Response:
        data = _data(call)
        ttl = data.get("ttl", DEFAULT_TTL_S)
        if isinstance(ttl, bool) or not isinstance(ttl, int) or ttl < 1:
            raise refused(400, "ttl must be a positive number", "validation_error")
        try:
            leases = check_leases(data.get("leases"))
        except TokenError as error:
            raise refused(400, str(error), "validation_error") from error
        at = self._world.epoch(self._world.now_s)
        token = sign(self._secret, self._market.account, leases, at=at, ttl_s=ttl)
        return JSONResponse({"data": {"token": token}}, 201)

    async def _balances(self, call: Call) -> Response:
        del call
        balance, locked = self._market.balance_usd, self._market.locked_usd
        told = {"balance": balance, "deployments": locked, "total": balance + locked}
        return JSONResponse({"data": {name: float(usd) for name, usd in told.items()}})

    def _named(self, call: Call) -> Deployment:
        deployment = self._market.deployments.get(call.request.path_params["dseq"])
        if deployment is None:
            raise refused(404, "Deployment not found")
        return deployment


def host_uri(request: Request) -> str:
    """Return where the gateways of all hosts are: here."""
    return f"{request.url.scheme}://{request.url.netloc}"


def _data(call: Call) -> Mapping[str, Any]:
    data = call.body.get("data")
    if not isinstance(data, dict):
        raise refused(400, "data is required", "validation_error")
    return data


def _money(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refused(400, "deposit must be a number", "validation_error")
    try:
        usd = Decimal(str(value))
    except InvalidOperation:
        usd = Decimal(0)
    if not usd >= LEAST_DEPOSIT_USD:
        raise refused(400, f"deposit must be at least {LEAST_DEPOSIT_USD}", "validation_error")
    return usd


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isdecimal():
        raise refused(400, "skip and limit must be numbers", "validation_error")
    return int(text)
