"""The objects of a cluster as an API server keeps them: versions, UIDs, graceful deletion, history.

The synchronous heart of `tests/kube_api.py`. Written from the API's rules and from nothing in the
package.

Source: Kubernetes API reference 1.36, "API concepts"; kubernetes pkg/registry/core/pod/strategy.go
and apiserver pkg/registry/generic/registry/store.go (graceful deletion), 1.36; checked 2026-11.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

from gp4u.clock import Clock
from tests import kube_merge

Object = dict[str, Any]
HISTORY = 10_000
"""Changes that can still be watched from."""

KINDS = {
    "pods": "Pod",
    "nodes": "Node",
    "namespaces": "Namespace",
    "services": "Service",
    "endpoints": "Endpoints",
    "endpointslices": "EndpointSlice",
    "events": "Event",
    "configmaps": "ConfigMap",
    "secrets": "Secret",
    "serviceaccounts": "ServiceAccount",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "leases": "Lease",
    "certificatesigningrequests": "CertificateSigningRequest",
    "tokenreviews": "TokenReview",
    "subjectaccessreviews": "SubjectAccessReview",
    "jobs": "Job",
    "deployments": "Deployment",
}
PLURALS = {kind: resource for resource, kind in KINDS.items()}
CLUSTER_WIDE = {"nodes", "namespaces", "certificatesigningrequests"}
SELECTABLE = {
    "pods": {"spec.nodeName", "spec.restartPolicy", "status.phase", "status.podIP"},
    "nodes": {"spec.unschedulable"},
    "secrets": {"type"},
    "events": {
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.uid",
        "reason",
        "type",
    },
    "certificatesigningrequests": {"spec.signerName"},
}
WITH_STATUS = {"pods", "nodes", "services", "certificatesigningrequests"}
"""Whose status is written by its sub-resource alone."""


LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(
    r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
SERVER_OWNED = (
    "uid",
    "creationTimestamp",
    "name",
    "namespace",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
"""Of an object's metadata: what no client can change."""


class Trouble(Exception):
    """A `Status` that says no."""

    def __init__(self, code: int, reason: str, message: str, **more: Any) -> None:
        self.code, self.more = code, more
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }
        super().__init__(f"{code} {reason}: {message}")


@dataclass(frozen=True, slots=True)
class Target:
    """What a path means."""

    group: str
    """`v1` or `coordination.k8s.io/v1`, ...: the `apiVersion`."""
    resource: str
    namespace: str = ""
    name: str = ""
    sub: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the history: `old` and `new` as they were and are; None: not there."""

    version: int
    group: str
    resource: str
    old: Object | None
    new: Object | None
    """With the version of this change; None where the object is gone."""


def target_of(path: str) -> Target:
    """Read a URL path."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[:2] == ["api", "v1"]:
        group, rest = "v1", parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, rest = "/".join(parts[1:3]), parts[3:]
    else:
        raise Trouble(404, "NotFound", "the server could not find the requested resource")
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in {"status", "finalize"}:
        namespace, rest = rest[1], rest[2:]
    resource, name, *sub = [*rest, "", ""][: max(len(rest), 2)]
    if resource not in KINDS:
        raise Trouble(404, "NotFound", "the server could not find the requested resource")
    return Target(group, resource, namespace, name, "/".join(sub))


class Store:
    """Every object, by resource, namespace and name."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._numbers = itertools.count(1)
        self.version = 1000
        self.objects: dict[tuple[str, str, str], Object] = {}
        """Keyed by resource, namespace, name."""
        self.history: deque[Change] = deque(maxlen=HISTORY)
        self.oldest = self.version
        """A watch from before this version is answered with 410."""
        self.on_change: Callable[[], None] = lambda: None

    # Reading

    def find(self, target: Target) -> Object:
        found = self.objects.get((target.resource, target.namespace, target.name))
        if found is None:
            what = f'{target.resource} "{target.name}" not found'
            raise Trouble(404, "NotFound", what)
        return found

    def listed(self, target: Target, matches: Callable[[Object], bool]) -> list[Object]:
        keys = sorted(key for key in self.objects if key[0] == target.resource)
        return [
            self.objects[key]
            for key in keys
            if target.namespace in {"", key[1]} and matches(self.objects[key])
        ]

    # Writing

    def create(self, target: Target, body: Mapping[str, Any], *, raw: bool = False) -> Object:
        """`raw`: as somebody who may also set the status, for tests that set up a scene."""
        new = deepcopy(dict(body))
        meta = new["metadata"] = dict(new.get("metadata") or {})
        number = next(self._numbers)
        if not meta.get("name"):
            if not meta.get("generateName"):
                message = "name or generateName is required"
                raise Trouble(422, "Invalid", message)
            meta["name"] = f"{meta['generateName']}{number:05x}"
        if meta.setdefault("namespace", target.namespace) != target.namespace:
            raise Trouble(400, "BadRequest", "the namespace of the object is not that of the path")
        if not meta["namespace"]:
            del meta["namespace"]
        key = (target.resource, target.namespace, meta["name"])
        if key in self.objects:
            what = f'{target.resource} "{meta["name"]}" already exists'
            raise Trouble(409, "AlreadyExists", what)
        self._valid_event(target, new)
        _valid_labels(target, meta)
        new.setdefault("apiVersion", target.group)
        new.setdefault("kind", KINDS[target.resource])
        if not raw:
            meta.pop("deletionTimestamp", None)
            meta.pop("uid", None)
        meta.setdefault("uid", f"{number:08x}-0000-4000-8000-{number:012x}")
        meta.setdefault("creationTimestamp", self._stamp())
        meta.setdefault("generation", 1)
        if target.resource == "pods":
            _default_pod(new, raw=raw)
        elif target.resource in WITH_STATUS - {"nodes"} and not raw:
            new["status"] = {}
        return self._put(key, None, new, target.group)

    def update(self, target: Target, body: Mapping[str, Any]) -> Object:
        old = self.find(target)
        if target.resource == "leases" and not (body.get("metadata") or {}).get("resourceVersion"):
            text = "metadata.resourceVersion: Invalid value: 0: must be specified for an update"
            raise Trouble(422, "Invalid", f'leases "{target.name}" is invalid: {text}')
        return self._write(target, old, deepcopy(dict(body)))

    def patch(self, target: Target, kind: str, body: Any) -> Object:
        old = self.find(target)
        try:
            match kind.partition(";")[0]:
                case "application/strategic-merge-patch+json":
                    new = kube_merge.strategic(old, body)
                case "application/merge-patch+json":
                    new = kube_merge.merge(old, body)
                case "application/json-patch+json":
                    new = kube_merge.json_patch(old, body)
                case other:
                    raise Trouble(415, "UnsupportedMediaType", f"no such patch: {other}")
        except kube_merge.BadPatch as error:
            raise Trouble(422, "Invalid", str(error)) from error
        uid = old["metadata"]["uid"]
        if (asked := new["metadata"].get("uid", uid)) != uid:  # no precondition, as in a PUT
            text = f"metadata.uid: Invalid value: {asked!r}: field is immutable"
            raise Trouble(422, "Invalid", f'{target.resource} "{target.name}" is invalid: {text}')
        return self._write(target, old, new)

    def _write(self, target: Target, old: Object, new: Object) -> Object:
        was, meta = old["metadata"], new.get("metadata") or {}
        what = f'Operation cannot be fulfilled on {target.resource} "{target.name}"'
        if meta.get("uid", was["uid"]) != was["uid"]:
            raise Trouble(409, "Conflict", f"{what}: Precondition failed: UID in precondition")
        if meta.get("resourceVersion", was["resourceVersion"]) != was["resourceVersion"]:
            raise Trouble(409, "Conflict", f"{what}: the object has been modified")
        if meta.get("name", was["name"]) != was["name"]:
            raise Trouble(400, "BadRequest", "the name of the object does not match the path")
        if target.sub in {"status", "approval"}:
            # Labels and annotations can be written by this way as well; owners cannot.
            meta = {k: v for k, v in new["metadata"].items() if k != "ownerReferences"}
            meta |= {k: was[k] for k in ("ownerReferences",) if k in was}
            new = {**old, "status": new.get("status") or {}, "metadata": meta}
        elif target.resource in WITH_STATUS:
            new = {**new, "status": old.get("status") or {}}
        meta = {key: value for key, value in new["metadata"].items() if key not in SERVER_OWNED}
        meta |= {key: was[key] for key in SERVER_OWNED if key in was}
        if new.get("spec") != old.get("spec"):
            meta["generation"] = was.get("generation", 1) + 1
        new = {**new, "metadata": meta}
        _valid_labels(target, meta)
        _keeps_provider_id(old, new)
        key = (target.resource, target.namespace, target.name)
        if "deletionTimestamp" in meta and not meta.get("finalizers") and _is_over(new):
            return self._drop(key, new, target.group)
        if {**new, "metadata": {**meta, "resourceVersion": was["resourceVersion"]}} == old:
            return old  # a write that changes nothing makes no version
        return self._put(key, old, new, target.group)

    def delete(
        self, target: Target, *, uid: str | None = None, grace_s: int | None = None
    ) -> Object:
        old = self.find(target)
        if uid is not None and uid != old["metadata"]["uid"]:
            raise Trouble(409, "Conflict", "the UID in the precondition does not match")
        key = (target.resource, target.namespace, target.name)
        new = deepcopy(old)
        meta = new["metadata"]
        grace = _grace(old, grace_s) if target.resource == "pods" else 0
        if "deletionTimestamp" in meta and target.resource == "pods":
            grace = min(grace, meta["deletionGracePeriodSeconds"])
        if not grace and not meta.get("finalizers"):
            if "deletionTimestamp" in meta:  # told of before it goes
                meta["deletionGracePeriodSeconds"] = 0
                old = self._put(key, old, new, target.group)
            return self._drop(key, old, target.group)
        if grace == meta.get("deletionGracePeriodSeconds"):
            return old
        meta["deletionTimestamp"] = self._stamp(grace)
        meta["deletionGracePeriodSeconds"] = grace
        meta["generation"] = meta.get("generation", 1) + 1
        return self._put(key, old, new, target.group)

    def since(self, version: int) -> list[Change]:
        """Return what changed after this version; each change has its own, without gaps."""
        if not self.history:
            return []
        return list(
            itertools.islice(self.history, max(0, version + 1 - self.history[0].version), None)
        )

    def forget(self) -> None:
        """Compact: no earlier version can be watched from."""
        self.history.clear()
        self.oldest = self.version

    def _drop(self, key: tuple[str, str, str], old: Object, group: str) -> Object:
        del self.objects[key]
        last = self._versioned(old)
        self._tell(Change(self.version, group, key[0], last, None))
        return last

    def _put(
        self, key: tuple[str, str, str], old: Object | None, new: Object, group: str
    ) -> Object:
        self.objects[key] = new = self._versioned(new)
        self._tell(Change(self.version, group, key[0], old, new))
        return new

    def _versioned(self, new: Object) -> Object:
        self.version += 1
        return {**new, "metadata": {**new["metadata"], "resourceVersion": str(self.version)}}

    def _tell(self, change: Change) -> None:
        if len(self.history) == HISTORY:
            self.oldest = self.history[0].version
        self.history.append(change)
        self.on_change()

    def _valid_event(self, target: Target, new: Object) -> None:
        if target.resource != "events":
            return
        about = new.get("involvedObject") or {}
        if about.get("namespace", "default") != target.namespace:
            message = "involvedObject.namespace: does not match event.namespace"
            raise Trouble(422, "Invalid", message)

    def _stamp(self, later_s: int = 0) -> str:
        return (self._clock.now() + timedelta(seconds=later_s)).strftime("%Y-%m-%dT%H:%M:%SZ")


def selector(target: Target, query: Mapping[str, str]) -> Callable[[Object], bool]:
    """Return what the selectors of a request let through.

    Raises:
        Trouble: 400, a field that this resource cannot be selected by, or what is no label.
    """
    fields = [_term(term) for term in query.get("fieldSelector", "").split(",") if term]
    known = {"metadata.name", "metadata.namespace"} | SELECTABLE.get(target.resource, set())
    for field, _, _ in fields:
        if field not in known:
            raise Trouble(400, "BadRequest", f"field label not supported: {field}")
    labels = [_term(term) for term in query.get("labelSelector", "").split(",") if term]
    for key, value, _ in labels:
        if not (LABEL_KEY.fullmatch(key) and LABEL_VALUE.fullmatch(value or "")):
            raise Trouble(400, "BadRequest", f"unable to parse requirement: {key}={value}")

    def matches(each: Object) -> bool:
        have = each["metadata"].get("labels") or {}
        return all(
            (str(_at(each, field) or "") == value) is equal for field, value, equal in fields
        ) and all(
            key in have if value is None else (have.get(key) == value) is equal
            for key, value, equal in labels
        )

    if target.name:
        return lambda each: each["metadata"]["name"] == target.name and matches(each)
    return matches


def _valid_labels(target: Target, meta: Mapping[str, Any]) -> None:
    for key, value in (meta.get("labels") or {}).items():
        if not (LABEL_KEY.fullmatch(key) and LABEL_VALUE.fullmatch(value)):
            text = f"metadata.labels: Invalid value: {key}={value!r}"
            raise Trouble(422, "Invalid", f'{target.resource} "{meta["name"]}" is invalid: {text}')


def _term(term: str) -> tuple[str, str | None, bool]:
    for sign, equal in (("!=", False), ("==", True), ("=", True)):
        left, found, right = term.partition(sign)
        if found:
            return left.strip(), right.strip(), equal
    return term.strip(), None, True


def _at(each: Object, path: str) -> Any:
    found: Any = each
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _default_pod(pod: Object, *, raw: bool) -> None:
    spec = pod.setdefault("spec", {})
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("serviceAccountName", "default")
    if not raw:
        pod["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
    pod.setdefault("status", {"phase": "Pending", "qosClass": "BestEffort"})


def _grace(pod: Object, asked_s: int | None) -> int:
    over = pod["status"].get("phase") in {"Succeeded", "Failed"}
    if over or not pod["spec"].get("nodeName"):
        return 0
    if asked_s is None:
        return int(pod["spec"]["terminationGracePeriodSeconds"])
    return 1 if asked_s < 0 else asked_s


def _is_over(each: Object) -> bool:
    """Whether nothing but finalizers kept an object that is being deleted."""
    return not each["metadata"].get("deletionGracePeriodSeconds")


def _keeps_provider_id(old: Object, new: Object) -> None:
    if old.get("kind") != "Node":
        return
    was = (old.get("spec") or {}).get("providerID")
    if was and (new.get("spec") or {}).get("providerID") != was:
        raise Trouble(422, "Invalid", "spec.providerID: Forbidden: node updates may not change it")
    types = [each["type"] for each in (new.get("status") or {}).get("addresses") or ()]
    if len(types) != len(set(types)):
        raise Trouble(422, "Invalid", "status.addresses: Duplicate value")
