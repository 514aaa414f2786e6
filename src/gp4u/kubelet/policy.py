"""What the operator allows on one virtual node; the value that everything about its pods goes by.

Made from the settings by whoever starts the node, replaced while it runs when a ConfigMap changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum

from msgspec import Struct, field

from gp4u.model import Demand


class Tier(StrEnum):
    """How far a market vouches for a host; each includes those after it."""

    ANY = "any"
    VERIFIED = "verified"
    DATACENTER = "datacenter"


class OnLoss(StrEnum):
    """What becomes of a pod whose machine is taken away or dies."""

    FAIL = "fail"
    """The pod is Failed, and whoever owns it makes another one."""
    RERENT = "rerent"
    """The same pod gets another machine, with one more restart on its count."""


class Taint(Struct, frozen=True, kw_only=True):
    """What keeps pods away that do not tolerate it."""

    key: str = "virtual-kubelet.io/provider"
    value: str = "gp4u"
    effect: str = "NoSchedule"


class NodePolicy(Struct, frozen=True, kw_only=True):
    """What one node is and allows."""

    name: str
    address: str
    """IP at which the API server reaches this process: the node's InternalIP."""
    port: int = 10250
    interruptible: bool = False
    """Whether its pods get machines that can be taken away, where they do not say otherwise."""
    defaults: Demand = field(default_factory=Demand)
    """What a pod that says nothing is rented by; live weights are in here."""
    max_price_usd_per_hour: float | None = None
    """Above this no pod of the node may ask."""
    failed_usd_per_hour: Decimal | None = Decimal(10)
    """What the failed pods of one controller may cost within an hour; None: no bound."""
    taint: Taint | None = field(default_factory=Taint)
    labels: Mapping[str, str] = field(default_factory=dict)
    """More labels for the Node object."""
    max_gpus: int = 16
    """What the node offers at most."""
    max_pods: int = 1000
    cpus: int = 1024
    memory_gib: int = 8192
    disk_gib: int = 65536
    accept_cpu: bool = False
    """Whether pods without a GPU are taken."""
    allow_split: bool = False
    """Whether a pod may ask for one machine per container."""
    secret_tier: Tier = Tier.DATACENTER
    """Where pods that reference Secrets may go."""
    on_loss: OnLoss = OnLoss.FAIL
    """For pods that do not say; bare pods with restartPolicy Always are re-rented."""
    no_offer_after: timedelta | None = None
    """How long a pod waits for an offer before it is Failed; None: for ever."""
    service_variables: bool = False
    """Whether addresses of cluster Services are in the environment, as a kubelet would have it."""
    relay_image: str | None = None
    """Image that runs `gp4u relay` inside the cluster; None: no relays."""
    kubelet_version: str = "v1.36.0-gp4u"

    @property
    def highest_usd_per_hour(self) -> Decimal | None:
        """Above this no pod of the node may ask; None: no bound."""
        most = self.max_price_usd_per_hour
        return None if most is None else Decimal(str(most))

    @property
    def default_usd_per_hour(self) -> Decimal | None:
        """What a pod that says nothing may cost at most; None: no bound."""
        bounds = (self.defaults.requirements.max_price_usd_per_hour, self.highest_usd_per_hour)
        return min((each for each in bounds if each is not None), default=None)
