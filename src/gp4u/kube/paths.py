"""Where each kind of object lives in the API: paths as functions, so that no caller spells one.

Hides the groups, the versions and the quoting. A name that came from somebody else cannot walk
to another object: each is one segment, whatever is in it.

Source: Kubernetes API reference 1.36, "API concepts: resource URIs"; checked 2026-11.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from gp4u.errors import BadInput

CORE: Final = "/api/v1"
LEASES: Final = "/apis/coordination.k8s.io/v1"
DISCOVERY: Final = "/apis/discovery.k8s.io/v1"
CERTIFICATES: Final = "/apis/certificates.k8s.io/v1"
AUTHENTICATION: Final = "/apis/authentication.k8s.io/v1"
AUTHORIZATION: Final = "/apis/authorization.k8s.io/v1"


def pods(namespace: str | None = None) -> str:
    """Return the path of the pods of one namespace; None: of all."""
    return _many(CORE, "pods", namespace)


def pod(namespace: str, name: str, sub: str = "") -> str:
    """Return the path of one pod, or of its sub-resource (`status`, `eviction`)."""
    return _one(CORE, "pods", namespace, name, sub)


def nodes() -> str:
    """Return the path of all nodes."""
    return _many(CORE, "nodes", None)


def node(name: str, sub: str = "") -> str:
    """Return the path of one node, or of its sub-resource (`status`)."""
    return _one(CORE, "nodes", None, name, sub)


def namespace(name: str) -> str:
    """Return the path of one namespace."""
    return _one(CORE, "namespaces", None, name, "")


def configmaps(namespace: str | None = None) -> str:
    """Return the path of the ConfigMaps of one namespace; None: of all."""
    return _many(CORE, "configmaps", namespace)


def configmap(namespace: str, name: str) -> str:
    """Return the path of one ConfigMap."""
    return _one(CORE, "configmaps", namespace, name, "")


def secrets(namespace: str | None = None) -> str:
    """Return the path of the Secrets of one namespace; None: of all."""
    return _many(CORE, "secrets", namespace)


def secret(namespace: str, name: str) -> str:
    """Return the path of one Secret."""
    return _one(CORE, "secrets", namespace, name, "")


def services(namespace: str | None = None) -> str:
    """Return the path of the Services of one namespace; None: of all."""
    return _many(CORE, "services", namespace)


def service(namespace: str, name: str, sub: str = "") -> str:
    """Return the path of one Service, or of its sub-resource."""
    return _one(CORE, "services", namespace, name, sub)


def service_account(namespace: str, name: str, sub: str = "") -> str:
    """Return the path of one ServiceAccount, or of its sub-resource (`token`)."""
    return _one(CORE, "serviceaccounts", namespace, name, sub)


def events(namespace: str | None = None) -> str:
    """Return the path of the Events of one namespace; None: of all."""
    return _many(CORE, "events", namespace)


def event(namespace: str, name: str) -> str:
    """Return the path of one Event."""
    return _one(CORE, "events", namespace, name, "")


def leases(namespace: str | None = None) -> str:
    """Return the path of the Leases of one namespace; None: of all."""
    return _many(LEASES, "leases", namespace)


def lease(namespace: str, name: str) -> str:
    """Return the path of one Lease."""
    return _one(LEASES, "leases", namespace, name, "")


def endpointslices(namespace: str | None = None) -> str:
    """Return the path of the EndpointSlices of one namespace; None: of all."""
    return _many(DISCOVERY, "endpointslices", namespace)


def endpointslice(namespace: str, name: str) -> str:
    """Return the path of one EndpointSlice."""
    return _one(DISCOVERY, "endpointslices", namespace, name, "")


def signing_requests() -> str:
    """Return the path of all CertificateSigningRequests."""
    return _many(CERTIFICATES, "certificatesigningrequests", None)


def signing_request(name: str, sub: str = "") -> str:
    """Return the path of one CertificateSigningRequest, or of its `approval` or `status`."""
    return _one(CERTIFICATES, "certificatesigningrequests", None, name, sub)


def token_reviews() -> str:
    """Return where a token is asked about."""
    return _many(AUTHENTICATION, "tokenreviews", None)


def access_reviews() -> str:
    """Return where it is asked whether somebody may do something."""
    return _many(AUTHORIZATION, "subjectaccessreviews", None)


def _many(prefix: str, resource: str, namespace: str | None) -> str:
    within = "" if namespace is None else f"/namespaces/{_segment(namespace)}"
    return f"{prefix}{within}/{resource}"


def _one(prefix: str, resource: str, namespace: str | None, name: str, sub: str) -> str:
    path = f"{_many(prefix, resource, namespace)}/{_segment(name)}"
    return f"{path}/{sub}" if sub else path


def _segment(name: str) -> str:
    if name in {"", ".", ".."}:
        raise BadInput("name", name, "must name one object")
    return quote(name, safe="")
