"""A cluster with one virtual node over a simulated market: what each test of the node stands in.

The market and `gp4u node run` are processes of their own, started as a user starts them. Nothing is
asked of the node but by Kubernetes and by its command line; what it bought is read from the
market's own meter, once that has stopped.
"""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from gp4u.rentals.ledger import open_ledger
from gp4u.rentals.rental import Rental
from tests.e2e.processes import GP4U, Charged, Done, Sold, clean_environ
from tests.kube.chart import NAMESPACE, account_of, rights
from tests.kube.controlplane import ControlPlane
from tests.kube.manifests import Manifest
from tests.kube.programs import MARKET_ADDRESS, WORKER, Process, run

KUBELET_PORT = 10250
SERVING = "kubernetes.io/kubelet-serving"
PATIENCE_S = 120.0
"""Markets grant few calls: what happens on a machine of Akash shows after a minute at times."""
T = TypeVar("T")
_numbers = count()
_addresses = count(46 + 20 * WORKER)
"""Last numbers of the addresses that `scripts/namespace.sh` makes: twenty for each test process."""


def new_address() -> str:
    """Return an address that no other node of this run has."""
    return f"203.0.113.{next(_addresses)}"


class Town:
    """A node, its market, and the administrator who looks at both."""

    def __init__(
        self,
        plane: ControlPlane,
        folder: Path,
        *,
        node: str,
        address: str | None = None,
        markets: Sequence[str] = ("vastai",),
        faults: Path | None = None,
        offers: int = 60,
        switches: Sequence[str] = (),
        **env: str,
    ) -> None:
        """`switches` are values of the chart that give the node more rights."""
        # As many offers as one search of Vast.ai shows: it grants ten of those a minute.
        self.plane, self.folder, self.node = plane, folder, node
        self._meter = folder / "meter.json"
        words = [GP4U, "sim", "serve", "--runtime", "process", "--seed", "3", "--port", "0"]
        words += ["--public-ip", MARKET_ADDRESS, "--meter", str(self._meter)]
        words += ["--offers", str(offers)] + (["--faults", str(faults)] if faults else [])
        words += [word for slug in markets for word in ("--provider", slug)]
        self.market = Process("market", words, env=clean_environ(), folder=folder)
        self.address = address or new_address()
        self._markets, self._more = markets, env
        self.rights = rights(node, node, *switches)
        self.namespaces: list[str] = []

    @cached_property
    def process(self) -> Process:
        """`gp4u node run`; its market has to run."""
        return Process("node", [GP4U, "node", "run"], env=self.env, folder=self.folder)

    def replica(self, name: str, address: str) -> Process:
        """Return another process that is the same node, at another address."""
        env = self.env | self._at(address)
        return Process(name, [GP4U, "node", "run"], env=env, folder=self.folder)

    @staticmethod
    def _at(address: str) -> dict[str, str]:
        """Return what puts a node at an address: all towns of a run share one network."""
        return {"GP4U_NODE_ADDRESS": address, "GP4U_NODE_LISTEN": address}

    @cached_property
    def env(self) -> dict[str, str]:
        """Of the node and of every `gp4u` beside it."""
        env = clean_environ() | self.offered_env()
        env |= {
            "HOME": str(self.folder),
            "KUBECONFIG": str(self.plane.token_kubeconfig(NAMESPACE, account_of(self.rights))),
            "GP4U_NODE_NAME": self.node,
            **self._at(self.address),
            "GP4U_NODE_NAMESPACE": NAMESPACE,
            "GP4U_NODE_MAX_GPUS": "64",
            "GP4U_NODE_PORT": str(KUBELET_PORT),
            "GP4U_DATABASE_URL": f"sqlite:///{self.folder / 'ledger.db'}",
            # Tests ask the market as well, often right before the node does: both take turns.
            "PROVIDER_RETRY_BASE_DELAY": "0.4",
            "PROVIDER_RETRY_JITTER": "0.1",
        }
        return env | self._more

    def offered_env(self) -> dict[str, str]:
        """Return what the markets tell their customers to set, keys among it."""
        every = rf"(\{{.*\}}\n){{{len(self._markets)}}}"
        lines = [json.loads(line) for line in self.market.hear(every)[0].splitlines()]
        return {name: text for line in lines for name, text in line["env"].items()}

    def start(self) -> None:
        """Start the market and the node, approve its certificate, and wait until it is Ready."""
        self.plane.apply(*self.rights)
        self.market.start()
        self.process.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the node is Ready, approving the certificates that it asks for."""

        def ready() -> bool:
            assert self.process.is_running, self.process.tail()
            self.approve()
            done = self.plane.kubectl("get", "node", self.node, "-o", "json")
            if done.code:
                return False
            conditions = done.json["status"].get("conditions", [])
            if not any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
                return False
            # The API server reaches it: the approved certificate is in force.
            path = f"/api/v1/nodes/{self.node}/proxy/healthz"
            return self.plane.kubectl("get", "--raw", path).code == 0

        until(ready, "the node to be Ready", self.said)

    def approve(self) -> None:
        """Approve the serving certificates that wait for it, as an administrator does."""
        for each in self.plane.get("csr")["items"]:
            if each["spec"]["signerName"] == SERVING and not each["status"].get("conditions"):
                self.plane.admitted("certificate", "approve", each["metadata"]["name"])

    def said(self) -> str:
        """Return the last words of the node, for a failure."""
        return self.process.tail(6000)

    def call(
        self, path: str, *, certificate: tuple[Path, Path] | None = None, token: str = ""
    ) -> int:
        """Ask the node itself, past the API server; return the status of its answer."""
        context = ssl.create_default_context(cafile=str(self.plane.authority))
        if certificate is not None:
            context.load_cert_chain(*certificate)
        url = f"https://{self.address}:{KUBELET_PORT}{path}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        asked = urllib.request.Request(url, headers=headers)
        try:
            with urllib.request.urlopen(  # noqa: S310 - https, as written above
                asked, timeout=10, context=context
            ) as reply:
                code: int = reply.status
                return code
        except urllib.error.HTTPError as refused:
            return refused.code

    def namespace(self, name: str) -> Ground:
        """Make a namespace of its own for one test."""
        made = f"{name}-{next(_numbers)}"
        self.plane.admitted("create", "namespace", made)
        self.plane.wait(("get", "serviceaccount", "default", "-n", made), "its account")
        self.namespaces.append(made)
        return Ground(self, made)

    def clear(self) -> None:
        """Delete everything that tests made, and wait until the node has let go of all of it."""
        for each in self.namespaces:
            words = ("delete", "namespace", each, "--wait=false", "--ignore-not-found")
            self.plane.admitted(*words)
        selector = f"--field-selector=spec.nodeName={self.node}"

        def gone() -> bool:
            return not self.plane.get("pods", "-A", selector)["items"]

        until(gone, "the last pod to go", self.said, patience_s=120)
        self.namespaces.clear()
        until(
            lambda: not self.open_rentals(),
            "the last machine to be released",
            self.said,
            patience_s=120,
        )

    def gp4u(self, *words: str) -> Done:
        """Run a command beside the node, on its ledger."""
        return run([GP4U, *words], env=self.env, cwd=self.folder)

    def rentals(self) -> list[Rental]:
        """Return every rental that there ever was, by the ledger, oldest first.

        The markets are not asked, as `gp4u ps` would: they grant few calls, which the node needs.
        """

        async def read() -> list[Rental]:
            async with open_ledger(self.env["GP4U_DATABASE_URL"]) as ledger:
                return (await ledger.all_rentals(limit=1000))[::-1]

        return asyncio.run(read())

    def open_rentals(self) -> list[Rental]:
        """Return those of which something may be left."""
        return [each for each in self.rentals() if each.is_open]

    def costs(self) -> dict[str, Decimal]:
        """Return what each rental has cost, by key, once `gp4u ps` could ask all markets."""

        def told() -> Done | None:
            done = self.gp4u("ps", "--all", "-o", "json")
            return done if done.code == 0 else None

        rows = until(told, "every market to answer").json
        return {row["key"]: Decimal(row["cost_usd"]) for row in rows}

    def stop(self) -> dict[str, Charged]:
        """Stop the node and its market; return what the market charged, by market."""
        if self.process.is_running:
            self.process.end(signal.SIGTERM)
        assert self.market.end(signal.SIGTERM) == 0, self.market.tail()
        bills = json.loads(self._meter.read_text())
        return {
            slug: Charged(
                Decimal(bill["total_usd"]),
                [
                    Sold(row["id"], row["label"], Decimal(row["usd"]), row["open"])
                    for row in bill["contracts"]
                ],
            )
            for slug, bill in bills.items()
        }

    def kill(self) -> None:
        """End what still runs."""
        if "process" in self.__dict__:
            self.process.kill()
        self.market.kill()


class Ground:
    """One namespace of a town, for one test."""

    def __init__(self, town: Town, name: str) -> None:
        self.town, self.plane, self.name = town, town.plane, name

    def kubectl(self, *words: str, stdin: str | bytes = b"", **env: str) -> Done:
        """Run kubectl in this namespace."""
        return self.plane.kubectl("-n", self.name, *words, stdin=stdin, env=env)

    def admitted(self, *words: str) -> str:
        """Run a kubectl that has to succeed, in this namespace."""
        return self.plane.admitted("-n", self.name, *words)

    def apply(self, *manifests: Manifest) -> None:
        """Apply manifests here."""
        self.plane.apply(*manifests, namespace=self.name)

    def get(self, *words: str) -> dict[str, Any]:
        """Return what `kubectl get` says, as JSON."""
        return self.plane.get("-n", self.name, *words)

    def items(self, *words: str) -> list[dict[str, Any]]:
        """Return the objects that `kubectl get` lists."""
        found: list[dict[str, Any]] = self.get(*words)["items"]
        return found

    def leave(self) -> None:
        """Delete the namespace and everything in it, without waiting for the end of that."""
        self.plane.admitted("delete", "namespace", self.name, "--wait=false")

    def find(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object, or None where there is none."""
        done = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        assert done.code == 0, done
        found: dict[str, Any] | None = json.loads(done.out) if done.out.strip() else None
        return found

    def wait_ready(self, name: str) -> dict[str, Any]:
        """Wait until a pod is Ready, and return it."""

        def ready() -> dict[str, Any] | None:
            pod = self.find("pod", name)
            found = pod["status"].get("conditions", []) if pod else []
            is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in found)
            return pod if is_ready else None

        return until(ready, f"{name} to be Ready", lambda: self.tell(name))

    def wait_phase(self, name: str, phase: str) -> dict[str, Any]:
        """Wait until a pod is in a phase, and return it."""

        def there() -> dict[str, Any] | None:
            pod = self.find("pod", name)
            return pod if pod and pod["status"]["phase"] == phase else None

        return until(there, f"{name} to be {phase}", lambda: self.tell(name))

    def tell(self, pod: str) -> str:
        """Return what there is to know of a pod that does not do as it should."""
        return f"{self.describe('pod', pod)}\n{self.town.said()}"

    def describe(self, kind: str, name: str) -> str:
        """Return what `kubectl describe` shows."""
        return self.kubectl("describe", kind, name).out

    def events(self, name: str) -> dict[str, str]:
        """Return the events of an object by reason, each with its newest message."""
        found = self.items("events", f"--field-selector=involvedObject.name={name}")
        return {each["reason"]: each.get("message", "") for each in found}

    def wait_event(self, name: str, reason: str) -> str:
        """Wait for an event of an object, and return its message."""
        return until(lambda: self.events(name).get(reason), reason, lambda: self.tell(name))


def until(
    what: Callable[[], T | None],
    name: str,
    said: Callable[[], str] = str,
    *,
    patience_s: float = PATIENCE_S,
) -> T:
    """Return the first answer that is not None, False or empty. Real processes take real time.

    Raises:
        AssertionError: there was none in time; with `said`, what was seen.
    """
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        answer = what()
        if answer:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"waited {patience_s} s for {name}\n{said()}")


@contextmanager
def town(plane: ControlPlane, folder: Path, *, node: str, **more: Any) -> Iterator[Town]:
    """Run a town. At its end nothing may be left, and the ledger is what the market charged."""
    made = Town(plane, folder, node=node, **more)
    try:
        made.start()
        yield made
        made.clear()
        owed = made.costs()
        bills = made.stop()
        plane.admitted("delete", "node", node, "--ignore-not-found")
        sold = [each for bill in bills.values() for each in bill.contracts]
        paid = sum((each.usd for each in sold), Decimal(0))
        assert [each for each in sold if each.open] == [], "something was left behind"
        assert {each.label for each in sold} <= owed.keys(), "bought, and not in the ledger"
        assert abs(sum(owed.values(), Decimal(0)) - paid) < Decimal("0.001")
    finally:
        made.kill()
