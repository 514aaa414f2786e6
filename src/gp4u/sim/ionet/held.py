"""What an io.net account holds: deployments, their words for states, and their rows.

Hides how a contract of the world is told in this market's words, and how a moment of prepaid time
is counted in whole minutes. Time is bought from the moment of the order, which is the harder case
for a client. What a call does to a deployment is in `app.py`.

Source: io.net/docs/reference/caas (get-all-deployments, get-deployment-details, container-job-
details) and vmaas/get-deployment-vms, as restated in docs/reference/ionet.md; checked 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal

from gp4u.sim.contracts import Contract
from gp4u.sim.ionet.gate import IoNetSettings
from gp4u.sim.ionet.orders import Wish
from gp4u.sim.ionet.supply import Configuration, Row
from gp4u.sim.world import World

STATUSES = (
    "deployment requested",
    "running",
    "completed",
    "failed",
    "termination requested",
    "destroyed",
)


class Held:
    """One deployment of either product."""

    def __init__(
        self,
        *,
        product: str,
        own_id: str,
        name: str,
        wish: Wish,
        configuration: Configuration,
        contract: Contract,
        block_usd: Decimal,
        listed_from_s: float,
    ) -> None:
        self.product, self.id, self.name, self.wish = product, own_id, name, wish
        self.configuration, self.contract = configuration, contract
        self.container_id = f"{own_id[:8]}-c0"
        self.block_usd = block_usd
        """What one hour costs, fees and all; fixed when it was made."""
        self.hours = wish.hours
        self.paid_usd = Decimal(0)
        self.listed_from_s = listed_from_s
        self.config: dict[str, object] = dict(wish.config)
        self.expired = False
        self.healthy = False

    @property
    def paid_until_s(self) -> float:
        """When the time that was bought runs out, on the world's clock."""
        return self.contract.created_at + self.hours * 3600

    def status(self, now: float, settings: IoNetSettings) -> str:
        """Return the documented word for its state."""
        contract = self.contract
        if self.expired:
            return "completed"
        if contract.destroyed_at is not None:
            over = now >= contract.destroyed_at + settings.terminate_s
            return "destroyed" if over else "termination requested"
        if contract.actual == "exited" or "Error response" in (contract.status_msg or ""):
            return "failed"
        up = contract.up or contract.offline
        return "running" if up else "deployment requested"

    def minutes(self, now: float) -> tuple[int, int]:
        """Return whole minutes served and remaining; together they are what was bought."""
        end = self.contract.destroyed_at
        served_s = (now if end is None else end) - self.contract.created_at
        served = min(int(served_s // 60), self.hours * 60)
        return served, 0 if end is not None else self.hours * 60 - served


class Teller:
    """Tells deployments as rows, in the spelling that the settings ask for."""

    def __init__(self, world: World, settings: IoNetSettings) -> None:
        self._world, self._settings = world, settings

    def status(self, held: Held) -> str:
        """Return the status as it is spelled."""
        word = held.status(self._world.now_s, self._settings)
        return word.upper().replace(" ", "_") if self._settings.upper_case_status else word

    def stamp(self, at: float | None) -> str | None:
        """Return a time of the world's clock as text."""
        if at is None:
            return None
        moment = datetime.fromtimestamp(self._world.epoch(at), UTC).replace(microsecond=0)
        return (moment.replace(tzinfo=None) if self._settings.naive_stamps else moment).isoformat()

    def list_row(self, held: Held) -> Row:
        """Return a row of the list: it has the name, and no address."""
        served, left = held.minutes(self._world.now_s)
        return {
            "id": held.id,
            "status": self.status(held),
            "name": held.name,
            "completed_percent": round(100 * served / (held.hours * 60)),
            "hardware_quantity": held.configuration.gpus,
            "brand_name": held.configuration.brand,
            "hardware_name": held.configuration.title,
            "served": f"{served // 60}h {served % 60}m",
            "remaining": f"{left // 60}h {left % 60}m",
            "compute_minutes_served": served,
            "compute_minutes_remaining": left,
            "created_at": self.stamp(held.contract.created_at),
        }

    def detail(self, held: Held, place: int) -> Row:
        """Return the details: they have what was paid, and no name."""
        served, left = held.minutes(self._world.now_s)
        contract, sold = held.contract, held.configuration
        secret = held.config.get("secret_env_variables")
        row: Row = {
            "id": held.id,
            "status": self.status(held),
            "created_at": self.stamp(contract.created_at),
            "started_at": self.stamp(contract.ran_since),
            "finished_at": self.stamp(contract.destroyed_at),
            "amount_paid": held.paid_usd,
            "completed_percent": round(100 * served / (held.hours * 60)),
            "total_gpus": sold.gpus,
            "hardware_name": sold.title,
            "hardware_id": sold.hardware_id,
            "locations": [{"id": place, "iso2": sold.country, "name": sold.country}],
            "brand_name": sold.brand,
            "compute_minutes_served": served,
            "compute_minutes_remaining": left,
        }
        if held.product == "caas":
            row |= {
                "gpus_per_container": sold.gpus,
                "total_containers": 1,
                "container_config": {
                    "entrypoint": held.config.get("entrypoint"),
                    "env_variables": held.config.get("env_variables"),
                    "traffic_port": held.config.get("traffic_port"),
                    "image_url": contract.order.image,
                    "secret_env_keys": sorted(secret) if isinstance(secret, Mapping) else [],
                },
            }
        return row

    def container(self, held: Held) -> Row:
        """Return the one container of a deployment; its URL is there once it is healthy."""
        contract = held.contract
        ports = contract.ports if held.healthy and contract.up else {}
        url = next(
            (f"http://{self._world.runtime.address}:{port}" for port in ports.values()), None
        )
        return {
            "device_id": f"dev-{contract.machine.machine_id}",
            "container_id": held.container_id,
            "hardware": held.configuration.title,
            "brand_name": held.configuration.brand,
            "created_at": self.stamp(contract.created_at),
            "uptime_percent": 100,
            "gpus_per_container": held.configuration.gpus,
            "status": self._worker_status(held),
            "container_events": self._events(held),
            "public_url": url,
        }

    def machine(self, held: Held) -> Row:
        """Return the one virtual machine of a deployment, with its addresses once it is up."""
        contract = held.contract
        services: Row = {}
        for name, service in held.wish.services.items():
            key = (int(str(service["port"])), str(service["protocol"]))
            outside = None if contract.hides_ports else contract.ports.get(key)
            services[name] = {
                **service,
                "public_port": outside,
                "public_ip": None if outside is None else self._world.runtime.address,
                "srv_record": None,
            }
        return {
            "device_id": f"dev-{contract.machine.machine_id}",
            "vm_id": f"{held.id[:8]}-v0",
            "hardware": held.configuration.title,
            "brand_name": held.configuration.brand,
            "created_at": self.stamp(contract.created_at),
            "uptime_percent": 100,
            "gpus_per_vm": held.configuration.gpus,
            "status": self._worker_status(held),
            "vm_events": self._events(held),
            "network_services": services,
            "ssh_access": f"ubuntu@{self._world.runtime.address}" if contract.up else None,
            "is_external": held.configuration.resold,
        }

    def _worker_status(self, held: Held) -> str:
        word = held.status(self._world.now_s, self._settings)
        return {"deployment requested": "pending", "running": "running", "failed": "failed"}.get(
            word, "complete"
        )

    def _events(self, held: Held) -> list[Row] | None:
        text = held.contract.status_msg
        return [{"time": self.stamp(held.contract.created_at), "message": text}] if text else None
