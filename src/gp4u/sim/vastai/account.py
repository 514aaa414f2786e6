"""The Vast.ai calls around instances: the account, its keys and variables, charges, small lists.

Hides nothing that the world needs to know: keys and variables are only kept and handed back, and
charges are the world's meter in the service's form. Volumes and templates are empty markets.

Source: show_charges.yaml, prepay_instance.yaml and neighbours of the vendor's documentation,
requests of package `vastai` 1.9.1; checked 2026-11.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal

from starlette.responses import JSONResponse, Response

from gp4u.sim.contracts import Contract
from gp4u.sim.gate import Call, Handler
from gp4u.sim.vastai.gate import VastSettings, refusal
from gp4u.sim.vastai.search import Row, SearchError, offers_found, row_filter
from gp4u.sim.world import World

_DAY_S = 86_400
_CHARGES_MAX = 100


class Account:
    """What the one account of this simulator has stored, and its handlers."""

    def __init__(self, world: World, settings: VastSettings) -> None:
        self._world, self._settings = world, settings
        self.ssh_keys: dict[int, str] = {}
        self._instance_keys: dict[int, dict[int, str]] = {}
        self._known_from: dict[int, float] = {}
        """When a key that was attached reaches its machine."""
        self._secrets: dict[str, str] = {}
        self._next_key = 1001

    def calls(self) -> list[tuple[str, str, str, Handler]]:
        """Return (method, path, endpoint name, handler) of every call of this file."""
        v0 = "/api/v0"
        of_one = f"{v0}/instances/{{id:int}}/ssh"
        return [
            ("GET", f"{v0}/users/current", "user", self._user),
            ("GET", f"{v0}/gpu_names/unique", "gpu_names", self._gpu_names),
            ("GET", f"{v0}/gpu_types", "gpu_types", self._gpu_types),
            ("GET", f"{v0}/instances/filters", "filters", self._filters),
            ("GET", f"{v0}/instances/balance/{{id:int}}", "balance", self._balance),
            ("PUT", f"{v0}/instances/prepay/{{id:int}}", "prepay", self._prepay),
            ("GET", f"{v0}/instances/pending-price-increases", "increases", self._increases),
            ("POST", f"{v0}/instances/take_snapshot/{{id:int}}", "snapshot", self._accepted),
            ("GET", f"{v0}/charges", "charges", self._charges),
            ("GET", "/api/v1/invoices", "invoices", self._invoices),
            ("GET", f"{v0}/ssh", "ssh", self._show_keys),
            ("POST", f"{v0}/ssh", "ssh_write", self._add_key),
            ("DELETE", f"{v0}/ssh/{{id:int}}", "ssh_write", self._drop_key),
            ("GET", of_one, "ssh", self._show_attached),
            ("POST", of_one, "ssh_write", self._attach),
            ("DELETE", f"{of_one}/{{key_id:int}}", "ssh_detach", self._detach),
            ("GET", f"{v0}/secrets", "secrets", self._show_secrets),
            ("POST", f"{v0}/secrets", "secrets_write", self._set_secret),
            ("PUT", f"{v0}/secrets", "secrets_write", self._set_secret),
            ("DELETE", f"{v0}/secrets", "secrets_write", self._drop_secret),
            ("GET", f"{v0}/volumes", "volumes", self._volumes),
            ("POST", f"{v0}/volumes/search", "volumes_search", self._volume_offers),
            ("GET", f"{v0}/template", "templates", self._templates),
            ("GET", f"{v0}/machines", "machines", self._machines),
            ("PUT", f"{v0}/commands/copy_direct", "copy", self._accepted),
            ("PUT", f"{v0}/commands/rsync", "copy", self._accepted),
            ("POST", f"{v0}/commands/rclone", "copy", self._accepted),
        ]

    # Whose account, and what there is.

    async def _user(self, call: Call) -> Response:
        del call
        credit = float(self._world.credit_usd)
        return JSONResponse(
            {
                "id": self._settings.account_id,
                "username": "simulated",
                "user": "simulated",
                "fullname": "Simulated Account",
                "email": "simulated@example.com",
                "email_verified": True,
                "credit": credit,
                "balance": 0,
                "balance_threshold": 0,
                "balance_threshold_enabled": False,
                "billed_expected": 0,
                "can_pay": True,
                "has_billing": True,
                "got_signup_credit": 1,
                "ssh_key": next(iter(self.ssh_keys.values()), ""),
                "sid": "1",
                "key_id": 1,
            }
        )

    async def _gpu_names(self, call: Call) -> Response:
        del call
        return JSONResponse({"gpu_names": sorted({m.gpu.name for m in self._world.machines})})

    async def _gpu_types(self, call: Call) -> Response:
        del call
        known = {(m.gpu.name, m.gpu.ram_mb) for m in self._world.machines}
        types = [{"canonical_name": name, "gpu_ram_mb": ram} for name, ram in sorted(known)]
        return JSONResponse({"gpu_types": types})

    async def _filters(self, call: Call) -> Response:
        del call
        names = ("actual_status", "verification", "gpu_name")
        combinations = {
            (contract.actual or "", contract.machine.verification, contract.machine.gpu.name)
            for contract in self._world.leaked()
        }
        rows = [dict(zip(names, values, strict=True)) for values in sorted(combinations)]
        return JSONResponse({"success": True, "filters": rows})

    async def _machines(self, call: Call) -> Response:
        del call
        return JSONResponse({"machines": []})

    async def _volumes(self, call: Call) -> Response:
        del call
        return JSONResponse({"volumes": []})

    async def _volume_offers(self, call: Call) -> Response:
        try:
            offers_found(self._world, call.body, strict=False)  # its filters must still make sense
        except SearchError as error:
            raise refusal(400, "invalid_request", str(error)) from error
        return JSONResponse({"offers": []})

    async def _templates(self, call: Call) -> Response:
        del call
        return JSONResponse({"success": True, "templates_found": 0, "templates": []})

    async def _increases(self, call: Call) -> Response:
        del call
        none: list[object] = []
        return JSONResponse(
            {"success": True, "count": 0, "truncated": False, "pending_price_increases": none}
        )

    async def _accepted(self, call: Call) -> Response:
        del call
        return JSONResponse({"success": True, "msg": "Accepted."})

    # Money.

    async def _balance(self, call: Call) -> Response:
        contract = self._held(call)
        spent = self._world.meter(contract)
        return JSONResponse({"success": True, "balance": 0, "charged": float(spent)})

    async def _prepay(self, call: Call) -> Response:
        self._held(call)
        amount = call.body.get("amount")
        if isinstance(amount, bool) or not isinstance(amount, int | float) or amount <= 0:
            raise refusal(400, "invalid_args", "amount must be a positive number")
        if Decimal(str(amount)) > self._world.credit_usd:
            return JSONResponse({"success": False, "msg": "Insufficient credit"}, 411)
        return JSONResponse({"success": True, "timescale": 3.5, "discount_rate": 0.3})

    async def _charges(self, call: Call) -> Response:
        params = call.request.query_params
        rows = list(self._charge_rows())
        try:
            filters = json.loads(params.get("select_filters") or "{}")
            start = int(params.get("after_token") or 0)
            limit = min(max(int(params.get("limit") or 20), 1), _CHARGES_MAX)
            passes = row_filter(filters, allowed={"day", "type", "source"})
        except (ValueError, SearchError) as error:
            raise refusal(400, "invalid_request", f"Error in query parameters: {error}") from error
        found = [row for row in rows if passes(row)]
        found.sort(key=_day, reverse=params.get("latest_first") == "true")
        page = found[start : start + limit]
        end = start + len(page)
        return JSONResponse(
            {
                "success": True,
                "count": len(page),
                "total": len(found),
                "next_token": str(end) if end < len(found) else None,
                "results": [{k: v for k, v in row.items() if k != "day"} for row in page],
            }
        )

    def _charge_rows(self) -> Iterator[Row]:
        """Yield one row per contract and day, oldest first, as far as charges have caught up."""
        known_to = self._world.epoch(self._world.now_s) - self._settings.charges_lag_s
        for contract in self._world.contracts:
            charges = self._world.charges(contract)
            for day in sorted({day for day, _ in charges}):
                if day * _DAY_S <= known_to:
                    parts = {kind: usd for (on, kind), usd in charges.items() if on == day and usd}
                    yield _charge_row(self._world, contract, day, parts)

    async def _invoices(self, call: Call) -> Response:
        del call
        none: list[object] = []
        return JSONResponse(
            {"success": True, "count": 0, "total": 0, "next_token": None, "results": none}
        )

    # Keys and variables.

    async def _show_keys(self, call: Call) -> Response:
        if "id" in call.request.path_params:
            return await self._show_attached(call)
        if not self.ssh_keys:
            raise refusal(404, "not_found", "No ssh keys found.")
        return JSONResponse(
            [
                _key_row(self._settings.account_id, number, key)
                for number, key in self.ssh_keys.items()
            ]
        )

    async def _add_key(self, call: Call) -> Response:
        number, key = self._new_key(call)
        self.ssh_keys[number] = key
        return JSONResponse(
            {"success": True, "key": _key_row(self._settings.account_id, number, key)}
        )

    async def _drop_key(self, call: Call) -> Response:
        if self.ssh_keys.pop(call.number, None) is None:
            raise refusal(404, "not_found", "No such ssh key.")
        return JSONResponse({"success": True})

    async def _show_attached(self, call: Call) -> Response:
        keys = self._instance_keys.get(self._held(call).id, {})
        rows = [_key_row(self._settings.account_id, number, key) for number, key in keys.items()]
        return JSONResponse({"success": True, "ssh_keys": rows})

    async def _attach(self, call: Call) -> Response:
        contract = self._held(call)
        number, key = self._new_key(call)
        self._instance_keys.setdefault(contract.id, {})[number] = key
        self._known_from[number] = self._world.now_s + self._settings.key_delay_s
        return JSONResponse({"success": True, "msg": "SSH key attached."})

    def keys_of(self, contract_id: int) -> list[str]:
        """Return the SSH keys that an instance lets in now: the account's, and its own."""
        own = self._instance_keys.get(contract_id, {})
        now = self._world.now_s
        known = [key for number, key in own.items() if self._known_from.get(number, now) <= now]
        return [*self.ssh_keys.values(), *known]

    async def _detach(self, call: Call) -> Response:
        keys = self._instance_keys.get(self._held(call).id, {})
        if keys.pop(int(call.request.path_params["key_id"]), None) is None:
            raise refusal(404, "not_found", "No such ssh key.")
        return JSONResponse({"success": True, "msg": "SSH key detached."})

    def _new_key(self, call: Call) -> tuple[int, str]:
        key = call.body.get("ssh_key")
        if not isinstance(key, str) or not key.startswith(("ssh-", "ecdsa-", "sk-")):
            raise refusal(400, "invalid_args", "Invalid ssh key.")
        self._next_key += 1
        return self._next_key, key

    async def _show_secrets(self, call: Call) -> Response:
        del call
        return JSONResponse({"success": True, "secrets": self._secrets})

    async def _set_secret(self, call: Call) -> Response:
        key, value = call.body.get("key"), call.body.get("value")
        if not isinstance(key, str) or not isinstance(value, str) or not key:
            raise refusal(400, "invalid_args", "key and value must be text")
        self._secrets[key] = value
        return JSONResponse({"success": True, "msg": "Saved."})

    async def _drop_secret(self, call: Call) -> Response:
        if self._secrets.pop(str(call.body.get("key")), None) is None:
            raise refusal(404, "not_found", "No such environment variable.")
        return JSONResponse({"success": True, "msg": "Deleted."})

    def _held(self, call: Call) -> Contract:
        contract = self._world.contract(call.number)
        if contract is None:
            raise refusal(404, "no_such_instance", "Instance with that ID does not exist.")
        return contract


def _charge_row(world: World, contract: Contract, day: int, parts: Mapping[str, Decimal]) -> Row:
    begin = max(world.epoch(contract.created_at), float(day * _DAY_S))
    end = float((day + 1) * _DAY_S)
    ended_at = world.now_s if contract.destroyed_at is None else contract.destroyed_at
    end = min(end, world.epoch(ended_at))
    texts = {"gpu": "GPU time", "disk": "Storage", "bwd": "Download", "bwu": "Upload"}
    items: list[Row] = [
        {
            "start": begin,
            "end": end,
            "type": kind,
            "source": None,
            "description": texts[kind],
            "amount": float(usd),
            "metadata": {},
            "items": [],
        }
        for kind, usd in parts.items()
    ]
    return {
        "day": day * _DAY_S,
        "start": begin,
        "end": end,
        "type": "instance",
        "source": f"instance-{contract.id}",
        "description": f"Instance {contract.id} Charges",
        "amount": float(sum(parts.values(), Decimal(0))),
        "metadata": {"label": contract.label},
        "items": items,
    }


def _day(row: Row) -> float:
    day = row["day"]
    return float(day) if isinstance(day, int | float) else 0.0


def _key_row(user_id: int, number: int, key: str) -> Row:
    return {
        "id": number,
        "user_id": user_id,
        "key": key,
        "public_key": key,
        "created_at": "2026-11-01T00:00:00",
        "deleted_at": None,
    }
