"""What a node loses with each of its rights: how that shows, and how it comes right again.

Each loss is a play in three acts. First somebody does what the right is for; the node is then heard
to name it. In the second act the loss is seen, by what an administrator or a user would see, before
the right is given back. In the third it is made good; no play does anything for that but what would
happen in any cluster.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from tests.kube.chart import NAMESPACE
from tests.kube.least import Least
from tests.kube.manifests import PROGRAM, Manifest, pod, pod_spec, service
from tests.kube.town import Ground, until

LEASES: Final = "kube-node-lease"
WEIGHTS: Final = "vast-selection-weights"
PREFERENCES: Final = "vast-provider-config"
VISITOR: Final = "visitor-of-the-least"
Loss = Callable[["Scene"], Iterator[None]]


class Scene:
    """The node, with two pods that run, and what else a loss is provoked with."""

    def __init__(self, least: Least) -> None:
        self.least, self.plane, self.node = least, least.plane, least.node
        self.ground: Ground = least.namespace("least")
        self.since = 0
        """Where in the node's log the newest robbery begins."""
        self.told = ""
        """What commands said during it."""

    def begin(self) -> None:
        """Have pods that run, with Services that lead to them, and one that waits for ever."""
        self.refused("lingering")
        spec = pod_spec(self.node, PROGRAM, ports=[8000])
        backed = {"june": "steady", "early": "steady", "brief": "brief"}
        services = [service(name, 8000, pod=each) for name, each in backed.items()]
        self.ground.apply(*services, *[pod(each, spec) for each in ("steady", "brief")])
        self.steady: str = self.ground.wait_ready("steady")["metadata"]["uid"]
        self.ground.wait_ready("brief")
        for name in backed:
            self.until(partial(self.slices, name), f"a slice of {name}")
        self.until(lambda: self.applied(WEIGHTS), "the weights to be in force")

    def until(self, what: Callable[[], Any], name: str) -> Any:
        """Wait for something; a failure shows what the node said last."""
        return until(what, name, self.least.said)

    def said(self) -> str:
        """Return what the node and commands said since the newest robbery."""
        return self.least.process.said[self.since :] + self.told

    def hears(self, word: str) -> None:
        """Wait until the node has said something since the newest robbery."""
        self.until(lambda: word in self.said(), f"the node to say {word!r}")

    def leads(self) -> None:
        """Wait until the node takes pods."""
        self.hears(f"node {self.node} takes pods")

    def refused(self, name: str, wishes: Mapping[str, str] | None = None, **more: Any) -> None:
        """Make a pod that costs nothing, for it may pay nothing, and wait until it is ours."""
        spec = pod_spec(self.node, PROGRAM, **more)
        wished = {"max-price": "0.001", "trust": "any"} | dict(wishes or {})
        self.ground.apply(pod(name, spec, annotations=wished))
        self.until(lambda: "nodeName" in self.ground.get("pod", name)["spec"], f"{name} to be here")

    def reading(self, name: str, **wanted: Any) -> None:
        """Make such a pod with a variable that is read from somewhere."""
        self.refused(name, container={"env": [{"name": "WORD", "valueFrom": wanted}]})

    def waits_for_its_environment(self, name: str) -> bool:
        """Whether a pod cannot be made, for want of what its environment comes from."""
        listed = self.ground.get("pod", name)["status"].get("containerStatuses", [])
        waiting = [each["state"].get("waiting", {}) for each in listed]
        return any(each.get("reason") == "CreateContainerConfigError" for each in waiting)

    def message(self, name: str) -> str:
        """Return what a pod's status says in words."""
        return str(self.ground.get("pod", name)["status"].get("message", ""))

    def labels(self) -> Manifest:
        """Return the labels of the node."""
        found: Manifest = self.plane.get("node", self.node)["metadata"]["labels"]
        return found

    def slices(self, name: str) -> list[Manifest]:
        """Return the slices of a Service."""
        return self.ground.items("endpointslices", "-l", f"kubernetes.io/service-name={name}")

    def ports(self, name: str) -> list[str]:
        """Return the names of the ports of a Service's slices."""
        return [port["name"] for each in self.slices(name) for port in each["ports"]]

    def leads_to_steady(self, name: str) -> None:
        """Make one more Service of the pod."""
        self.ground.apply(service(name, 8000, pod="steady"))

    def served(self, name: str) -> None:
        """Wait until a Service leads somewhere."""
        self.until(partial(self.slices, name), f"a slice of {name}")

    def touch(self, name: str) -> None:
        """Change a live ConfigMap in a way that means nothing: it is read again."""
        now = len(self.least.process.said)
        words = ("annotate", "configmap", name, f"touched=at-{now}", "--overwrite")
        self.plane.admitted(*words, "-n", NAMESPACE)

    def applied(self, name: str) -> int:
        """Return how often this node said that a ConfigMap is in force."""
        selector = f"--field-selector=involvedObject.name={name},reason=ConfigApplied"
        found = self.plane.get("events", "-n", NAMESPACE, selector)["items"]
        return sum(each["count"] for each in found if each["source"]["host"] == self.node)

    def relays(self, kind: str) -> list[Manifest]:
        """Return what there is of the pod's relay."""
        return self.ground.items(kind, f"--selector=gp4u.io/relay-for={self.steady}")

    def lacks(self) -> list[str]:
        """Return the rights that the node's health says it lacks."""
        path = f"/api/v1/nodes/{self.node}/proxy/healthz?verbose=1"
        done = self.plane.kubectl("get", "--raw", path)
        found = re.search(r"rights: may not ([^;]+)", done.out + done.err)
        return found[1].split(", ") if found else []

    def decommission(self) -> int:
        """Take the node out of service; return the command's exit code."""
        words = ("node", "decommission", self.node, "--yes", "--timeout", "50")
        done = self.least.gp4u(*words)
        self.told += done.err
        return done.code


def live(name: str) -> Manifest:
    """Return one of the ConfigMaps that are read while a node runs; it changes nothing."""
    data = {"vast-provider-config.yaml": "{}"} if name == PREFERENCES else {}
    meta = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


# What pods are


def no_statuses(scene: Scene) -> Iterator[None]:
    """What became of a pod is written nowhere."""
    scene.ground.apply(pod("mute", pod_spec(scene.node, hostNetwork=True)))
    yield
    assert "startTime" not in scene.ground.get("pod", "mute")["status"]
    yield
    scene.ground.wait_phase("mute", "Failed")


def no_deletion(scene: Scene) -> Iterator[None]:
    """A pod of which nothing is left stays Terminating: nobody else may remove its object."""
    scene.ground.admitted("delete", "pod", "lingering", "--wait=false")
    yield
    assert "deletionTimestamp" in scene.ground.get("pod", "lingering")["metadata"]
    yield
    scene.until(lambda: not scene.ground.find("pod", "lingering"), "it to go")


def no_look_at_a_pod(scene: Scene) -> Iterator[None]:
    """Nothing proves that a pod went while no node was there: its machine is kept, and paid."""
    scene.ground.admitted("delete", "pod", "brief", "--force", "--grace-period=0")
    yield
    assert len(scene.least.open_rentals()) == 2
    assert scene.slices("brief")
    yield
    scene.until(lambda: not scene.slices("brief"), "nobody to be sent there")
    scene.until(lambda: len(scene.least.open_rentals()) == 1, "its machine to be released")


def no_pods_listed(scene: Scene) -> Iterator[None]:
    """Nothing is known of any pod: the node does not say that it takes some."""
    yield
    assert f"node {scene.node} takes pods" not in scene.said()
    yield
    scene.leads()


def no_pods_watched(scene: Scene) -> Iterator[None]:
    """A pod that comes later is not met."""
    scene.refused("later")
    yield
    yield
    scene.until(lambda: "startTime" in scene.ground.get("pod", "later")["status"], "it to be met")


# What pods need


def no_configmaps(scene: Scene) -> Iterator[None]:
    """A pod that names a ConfigMap cannot be made, and says so."""
    scene.ground.admitted("create", "configmap", "plain", "--from-literal=word=x")
    scene.reading("reader", configMapKeyRef={"name": "plain", "key": "word"})
    yield
    scene.ground.wait_event("reader", "FailedToReadMandatoryConfigMap")
    yield
    scene.until(lambda: not scene.waits_for_its_environment("reader"), "it to be read")


def no_secrets(scene: Scene) -> Iterator[None]:
    """The same for a Secret."""
    scene.ground.admitted("create", "secret", "generic", "hidden", "--from-literal=word=x")
    scene.reading("trusted", secretKeyRef={"name": "hidden", "key": "word"})
    yield
    scene.ground.wait_event("trusted", "FailedToReadMandatorySecret")
    yield
    scene.until(lambda: not scene.waits_for_its_environment("trusted"), "it to be read")


def no_service_variables(scene: Scene) -> Iterator[None]:
    """The API server's own Service, whose address every pod is told, cannot be read."""
    scene.refused("lonely")
    yield
    scene.until(lambda: "services/kubernetes" in scene.message("lonely"), "the pod to say so")
    yield
    scene.until(lambda: "services/kubernetes" not in scene.message("lonely"), "it to be read")


def no_tokens(scene: Scene) -> Iterator[None]:
    """A pod that asks for its ServiceAccount's token waits for it, and says so."""
    scene.refused("caller", {"api-access": "true"})
    yield
    scene.until(lambda: "default/token" in scene.message("caller"), "the pod to say so")
    yield
    scene.until(lambda: "default/token" not in scene.message("caller"), "it to be given")


# What users are told, and where they are led


def no_events(scene: Scene) -> Iterator[None]:
    """Nobody is told anything."""
    scene.plane.apply(live(PREFERENCES))
    yield
    assert not scene.applied(PREFERENCES)
    yield
    scene.touch(PREFERENCES)
    scene.until(lambda: scene.applied(PREFERENCES), "an event about it")


def no_events_again(scene: Scene) -> Iterator[None]:
    """What was told once is not told again."""
    before = scene.applied(WEIGHTS)
    scene.touch(WEIGHTS)
    yield
    assert scene.applied(WEIGHTS) == before
    yield
    scene.touch(WEIGHTS)
    scene.until(lambda: scene.applied(WEIGHTS) > before, "it to be told again")


def no_services_listed(scene: Scene) -> Iterator[None]:
    """Services lead nowhere that were made since."""
    scene.leads_to_steady("unlisted")
    yield
    assert scene.slices("unlisted") == []
    yield
    scene.served("unlisted")


def no_services_watched(scene: Scene) -> Iterator[None]:
    """The same where it was begun to look."""
    yield
    scene.leads_to_steady("unwatched")
    assert scene.slices("unwatched") == []
    yield
    scene.served("unwatched")


def no_new_slices(scene: Scene) -> Iterator[None]:
    """A Service leads nowhere."""
    scene.leads_to_steady("late")
    yield
    assert scene.slices("late") == []
    yield
    scene.served("late")


def no_look_at_slices(scene: Scene) -> Iterator[None]:
    """A slice whose creation failed, for all that is known, is not tried again unseen."""
    scene.leads_to_steady("doubtful")  # and all that was not written is tried again
    yield
    assert scene.slices("late") == []
    yield
    scene.served("late")


def no_changed_slices(scene: Scene) -> Iterator[None]:
    """A Service that changes still leads as it did."""
    patch = '{"spec":{"ports":[{"name":"other","port":8000,"targetPort":8000}]}}'
    scene.ground.admitted("patch", "service", "june", "-p", patch)
    yield
    assert scene.ports("june") == ["http"]
    yield
    scene.until(lambda: scene.ports("june") == ["other"], "its slice to follow")


def no_slices_removed(scene: Scene) -> Iterator[None]:
    """Who no longer shall be led there still is."""
    scene.ground.admitted("annotate", "service", "early", "gp4u.io/pod-")
    yield
    assert scene.slices("early")
    yield
    scene.until(lambda: not scene.slices("early"), "its slice to go")


def no_slices_listed(scene: Scene) -> Iterator[None]:
    """What leads to pods that went meanwhile is not found, and nothing is published."""
    scene.leads_to_steady("blind")
    yield
    assert scene.slices("blind") == []
    yield
    scene.served("blind")


def no_slices_watched(scene: Scene) -> Iterator[None]:
    """What somebody else does to a slice is not seen, and not mended."""
    yield
    scene.ground.admitted("delete", "endpointslices", "-l", "kubernetes.io/service-name=june")
    assert scene.slices("june") == []
    yield
    scene.served("june")


def no_relay_routes(scene: Scene) -> Iterator[None]:
    """A relay has nothing that says what leads where, so it is not made."""
    scene.ground.admitted("annotate", "pod", "steady", "gp4u.io/relay=true")
    yield
    assert "configmaps" in scene.ground.wait_event("steady", "RelayFailed")
    yield
    scene.until(lambda: scene.relays("configmaps"), "the routes")


def no_relays(scene: Scene) -> Iterator[None]:
    """The relay itself cannot be made."""
    yield
    assert scene.relays("pods") == []
    yield
    scene.until(lambda: scene.relays("pods"), "the relay")


def no_relay_changes(scene: Scene) -> Iterator[None]:
    """A relay that stands cannot be told another way."""

    def routes() -> Any:
        [found] = scene.relays("configmaps")
        return found["data"]

    [made], before = scene.relays("configmaps"), routes()
    [key] = before
    change = json.dumps({"data": {key: "nowhere"}})
    scene.ground.admitted("patch", "configmap", made["metadata"]["name"], "-p", change)
    yield
    assert routes() == {key: "nowhere"}
    yield
    scene.until(lambda: routes() == before, "the routes to be right")


# Who may look in


def no_token_reviews(scene: Scene) -> Iterator[None]:
    """Whoever comes with a token is nobody."""
    words = ("create", "token", "default", "-n", scene.ground.name)
    ask = partial(scene.least.call, "/pods", token=scene.plane.admitted(*words).strip())
    first = ask()
    yield
    assert first == 401
    yield
    scene.until(lambda: ask() == 403, "a clear no")


def no_access_reviews(scene: Scene) -> Iterator[None]:
    """Whoever is known still cannot be let in: nobody can say what they may do."""
    bound = ("clusterrolebinding", VISITOR, f"--user={VISITOR}")
    scene.plane.admitted("create", *bound, "--clusterrole=system:kubelet-api-admin")
    certificate = scene.plane.client_certificate(VISITOR, VISITOR)
    ask = partial(scene.least.call, "/pods", certificate=certificate)
    first = ask()
    yield
    assert first >= 500
    yield
    scene.until(lambda: ask() == 200, "the visitor to be let in")


def no_request(scene: Scene) -> Iterator[None]:
    """No certificate of the cluster: the node goes on with one that it signed itself."""
    yield
    scene.hears("certificate_not_signed")
    assert '"source": "cluster"' not in scene.said()
    yield
    scene.hears('"source": "cluster"')


def no_approval(scene: Scene) -> Iterator[None]:
    """Its own request waits for somebody else's word."""
    yield
    scene.hears("certificate_not_self_approved")
    assert '"source": "cluster"' not in scene.said()
    yield
    scene.hears('"source": "cluster"')


# What the node is


def no_cluster(scene: Scene) -> Iterator[None]:
    """Rentals of another cluster on the same ledger cannot be told from its own."""
    yield
    scene.hears("cluster_unknown")
    yield
    scene.leads()


def no_node_made(scene: Scene) -> Iterator[None]:
    """A node that somebody deleted stays away."""
    scene.plane.admitted("delete", "node", scene.node)
    yield
    assert scene.plane.kubectl("get", "node", scene.node).code != 0
    yield
    scene.plane.wait(("get", "node", scene.node), "the node")


def no_node_read(scene: Scene) -> Iterator[None]:
    """A node that is registered cannot be taken over by the next process."""
    yield
    assert f"node {scene.node} takes pods" not in scene.said()
    yield
    scene.leads()


def no_node_seen(scene: Scene) -> Iterator[None]:
    """What somebody takes off the node is not noticed."""
    yield
    scene.plane.admitted("label", "node", scene.node, "kubernetes.io/arch-")
    assert "kubernetes.io/arch" not in scene.labels()
    yield
    scene.until(lambda: "kubernetes.io/arch" in scene.labels(), "the label to be back")


def no_node_patches(scene: Scene) -> Iterator[None]:
    """It is noticed, and stays away all the same; health names what is missing, until it is not."""
    scene.plane.admitted("label", "node", scene.node, "type-")
    yield
    assert "type" not in scene.labels()
    assert "patch nodes" in scene.lacks()
    yield
    scene.until(lambda: "type" in scene.labels(), "the label to be back")
    scene.until(lambda: "patch nodes" not in scene.lacks(), "the node to be well")


def no_node_statuses(scene: Scene) -> Iterator[None]:
    """A node that was called not ready stays so."""
    change = {"type": "Ready", "status": "False", "reason": "Test", "message": "somebody says so"}
    patch = json.dumps({"status": {"conditions": [change]}})
    scene.plane.admitted("patch", "node", scene.node, "--subresource=status", "-p", patch)
    yield
    conditions = scene.plane.get("node", scene.node)["status"]["conditions"]
    assert "somebody says so" in [each["message"] for each in conditions]
    yield
    ready = ("wait", f"node/{scene.node}", "--for=condition=Ready", "--timeout=50s")
    scene.plane.admitted(*ready)


def renewed_at(scene: Scene) -> str:
    """Return when the heartbeat was last renewed."""
    found = scene.plane.get("lease", scene.node, "-n", LEASES, "--ignore-not-found")
    return str(found["spec"]["renewTime"])


def no_heartbeat(scene: Scene) -> Iterator[None]:
    """The Lease is not renewed, and the node would be given up within a minute."""
    yield
    before = renewed_at(scene)
    yield
    scene.until(lambda: renewed_at(scene) > before, "the heartbeat")


def no_new_heartbeat(scene: Scene) -> Iterator[None]:
    """A Lease that somebody deleted is not made anew."""
    scene.plane.admitted("delete", "lease", scene.node, "-n", LEASES)
    yield
    assert scene.plane.kubectl("get", "lease", scene.node, "-n", LEASES).code != 0
    yield
    scene.plane.wait(("get", "lease", scene.node, "-n", LEASES), "the Lease")


# Who acts, and by which weights


def no_term_kept(scene: Scene) -> Iterator[None]:
    """Whoever leads gives it up before another one may begin, and goes on standing by."""
    yield
    scene.hears("no_longer_leading")
    yield
    scene.leads()


def no_term_seen(scene: Scene) -> Iterator[None]:
    """Nobody leads where nobody can see who does."""
    yield
    assert '"event": "leading"' not in scene.said()
    yield
    scene.leads()


def no_term_begun(scene: Scene) -> Iterator[None]:
    """Nobody leads where the Lease cannot be made."""
    scene.plane.admitted("delete", "lease", "gp4u-node", "-n", NAMESPACE)
    yield
    assert '"event": "leading"' not in scene.said()
    yield
    scene.leads()


def is_heard(scene: Scene, name: str) -> None:
    """Wait until a live ConfigMap that changes is read again."""
    before = scene.applied(name)
    scene.touch(name)
    scene.until(lambda: scene.applied(name) > before, f"{name} to be read")


def not_listed(name: str) -> Loss:
    """Return the loss of a live ConfigMap: what it says is not in force."""

    def loss(scene: Scene) -> Iterator[None]:
        before = scene.applied(name)
        yield
        assert scene.applied(name) == before
        yield
        is_heard(scene, name)

    return loss


def not_watched(name: str) -> Loss:
    """Return the loss of one that changes: what it said first is gone by, and not what it says."""

    def loss(scene: Scene) -> Iterator[None]:
        before = scene.applied(name)
        yield
        scene.until(lambda: scene.applied(name) > before, f"{name} to be read at the start")
        before = scene.applied(name)
        scene.touch(name)
        assert scene.applied(name) == before
        yield
        is_heard(scene, name)

    return loss


# Taken out of service


def no_evictions(scene: Scene) -> Iterator[None]:
    """Pods cannot be asked to leave."""
    assert scene.decommission() != 0
    yield
    assert scene.ground.find("pod", "steady")
    yield


def no_node_deleted(scene: Scene) -> Iterator[None]:
    """The node stays, although nothing of it is left."""
    assert scene.decommission() != 0
    yield
    assert scene.least.open_rentals() == []
    assert scene.plane.get("node", scene.node)
    yield


def no_heartbeat_deleted(scene: Scene) -> Iterator[None]:
    """Whether the heartbeat is over cannot be said; the next try does it all."""
    assert scene.decommission() != 0
    yield
    assert scene.plane.kubectl("get", "node", scene.node).code != 0
    yield
    assert scene.decommission() == 0
