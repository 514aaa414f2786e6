"""A node whose rights are taken away while it runs, by an administrator's hand.

A role is edited as anybody would edit it, and the API server is asked until it says so itself: RBAC
is live, and so is the node. A right is one verb of one resource, and of one name where the chart
gives it by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import yaml

from tests.kube.chart import CHART, NAMESPACE, account_of, rights
from tests.kube.manifests import Manifest
from tests.kube.town import Town, until


class Right(NamedTuple):
    """The least that a role can allow."""

    verb: str
    group: str
    resource: str
    """`pods`, or `pods/status`."""
    name: str
    """Of the only object that it is for; empty: of any."""
    where: str
    """Namespace of the Role; empty: the ClusterRole."""

    def __str__(self) -> str:
        """`update leases.coordination.k8s.io gp4u-node in gp4u-system`, as kubectl has groups."""
        resource, slash, sub = self.resource.partition("/")
        group = f".{self.group}" if self.group else ""
        words = [self.verb, f"{resource}{group}{slash}{sub}", self.name]
        return " ".join(filter(None, words)) + (f" in {self.where}" if self.where else "")

    def denied_in(self, text: str) -> bool:
        """Whether the API server's refusal of this very right was written down."""
        what = (
            rf"cannot {self.verb} resource \"{self.resource}\" in API group \"{self.group}\""
            if self.verb != "approve"
            else "user not permitted to approve requests with signerName"
        )
        if self.where:
            what += rf" in the namespace \"{self.where}\""
        lines = [line for line in text.replace("\\", "").splitlines() if re.search(what, line)]
        return any(f'"{self.name}"' in line or not self.name for line in lines)


def granted(manifests: Sequence[Manifest]) -> dict[str, Right]:
    """Return every right that the roles among these give, by how it is written."""
    found = [
        Right(verb, group, resource, name, role["metadata"].get("namespace", ""))
        for role in _roles(manifests)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    ]
    return {str(each): each for each in found}


def every_right(node: str) -> list[Manifest]:
    """Return account and roles of a node where every switch of the chart is on."""
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    return rights(node, node, *(f"{path}=true" for path in _switches(values)))


def _switches(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _switches(value, f"{prefix}{name}.")
        elif isinstance(value, bool):
            yield f"{prefix}{name}"


def _roles(manifests: Sequence[Manifest]) -> list[Manifest]:
    return [each for each in manifests if each["kind"] in ("Role", "ClusterRole")]


class Least(Town):
    """A town whose node has every right that the chart can give, and can be robbed of some."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.rights = every_right(self.node)

    @contextmanager
    def without(self, taken: Collection[Right]) -> Iterator[None]:
        """Take rights away, and give them back."""
        left = [self._role_without(each, taken) for each in _roles(self.rights)]
        self.plane.apply(*left)
        self._wait_known(taken, allowed=False)
        try:
            yield
        finally:
            self.plane.apply(*_roles(self.rights))
            self._wait_known(taken, allowed=True)

    @staticmethod
    def _role_without(role: Manifest, taken: Collection[Right]) -> Manifest:
        kept = [each for each in granted([role]).values() if each not in taken]
        rules = [
            {"apiGroups": [each.group], "resources": [each.resource], "verbs": [each.verb]}
            | ({"resourceNames": [each.name]} if each.name else {})
            for each in kept
        ]
        return {**role, "rules": rules}

    def _wait_known(self, changed: Collection[Right], *, allowed: bool) -> None:
        """Wait until the API server's own authoriser knows of all of them."""
        user = f"system:serviceaccount:{NAMESPACE}:{account_of(self.rights)}"
        reviews = json.dumps(
            {
                "apiVersion": "v1",
                "kind": "List",
                "items": [_review(user, each) for each in changed],
            }
        )

        def known() -> bool:
            words = ("create", "-o", "jsonpath={.status.allowed} ", "-f", "-")
            told = self.plane.admitted(*words, stdin=reviews).split()
            assert len(told) == len(changed), told
            return {"true": True, "false": False}[told[0]] is allowed and len(set(told)) == 1

        until(known, f"the API server to know that {[*map(str, changed)]} are {allowed}")


def _review(user: str, right: Right) -> Manifest:
    resource, _, sub = right.resource.partition("/")
    about = {"group": right.group, "resource": resource, "subresource": sub, "verb": right.verb}
    about |= {"namespace": right.where, "name": right.name}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": about},
    }
