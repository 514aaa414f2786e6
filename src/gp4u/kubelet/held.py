"""What the node holds for its pods at this moment: the value that its parts hand to each other.

The controller is the one writer; the kubelet API, the publisher and the metrics read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct

from gp4u.rentals.rental import Rental

PodObject = Mapping[str, Any]
"""A v1.Pod as the API server gave it, JSON decoded; never changed in place."""


class Run(StrEnum):
    """Whether a container runs; the three states of a `containerStatuses` entry."""

    WAITING = "waiting"
    RUNNING = "running"
    TERMINATED = "terminated"


class Ended(Struct, frozen=True, kw_only=True):
    """How one run of a container ended."""

    exit_code: int
    reason: str
    """`Completed`, `Error`, `OOMKilled`, `ContainerStatusUnknown`, ..."""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    container_id: str = ""


class ContainerState(Struct, frozen=True, kw_only=True):
    """One container of a pod, init or ordinary."""

    name: str
    image: str
    run: Run = Run.WAITING
    reason: str = "ContainerCreating"
    """Of a waiting one."""
    message: str = ""
    started_at: datetime | None = None
    container_id: str = ""
    """`gp4u://<instance>/<run>`; a new one for each run."""
    ended: Ended | None = None
    """Of a terminated one."""
    last_ended: Ended | None = None
    """The run before this one."""
    restarts: int = 0
    started: bool = False
    """Running, and the startup probe, if there is one, has passed."""
    ready: bool = False


class Held(Struct, frozen=True, kw_only=True):
    """One pod of the node, and what stands behind it."""

    pod: PodObject
    containers: tuple[ContainerState, ...] = ()
    init_containers: tuple[ContainerState, ...] = ()
    rentals: Mapping[str, Rental] = {}
    """Container to the open rental that runs it; one rental serves all but under `split`."""
    beside: frozenset[str] = frozenset()
    """Containers that run beside the first one of their machine."""
    ready: bool = False
    leaving: bool = False
    """Whether its teardown has begun: it is out of `/runningpods/`, and serves nobody."""

    def known_as(self, container: str) -> str | None:
        """Return the name by which a market tells a container; None: the first of its machine,
        and what runs in that one's place."""
        return container if container in self.beside else None

    @property
    def uid(self) -> str:
        """What tells two pods of one name apart."""
        uid: str = self.pod["metadata"]["uid"]
        return uid

    @property
    def name(self) -> str:
        """Its name within its namespace."""
        name: str = self.pod["metadata"]["name"]
        return name

    @property
    def namespace(self) -> str:
        """Where it lives."""
        namespace: str = self.pod["metadata"]["namespace"]
        return namespace


class Pods(Protocol):
    """What is asked of the controller by those who only read."""

    def all(self) -> Sequence[Held]:
        """Return every pod bound to the node, in no order."""

    def find(self, namespace: str, name: str, uid: str | None = None) -> Held | None:
        """Return the pod of this name, and of this UID where one is given."""
