"""The one registry login that a market is given for an image, out of a pod's pull secrets.

Hides both forms of such a Secret, and which of many logins an image is for. Markets take one login
for a machine, so the best match is chosen here, where a kubelet would try one after the other. A
Secret that is missing or broken is told and otherwise counts for nothing: the image may be public.

Source: kubernetes pkg/credentialprovider (keyring.go, config.go, plugin/config.go), 1.32; checked
2026-11.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from msgspec import Struct

from gp4u.kubelet.spec.admission import Notice
from gp4u.kubelet.spec.environment import texts_of
from gp4u.kubelet.spec.references import Kind
from gp4u.model import RegistryLogin

FAILED: Final = "FailedToRetrieveImagePullSecret"
DOCKER_HUB: Final = "docker.io"
_HUB_KEY: Final = "index.docker.io"
_FORMS: Final = (".dockerconfigjson", ".dockercfg")
_GLOB: Final = frozenset("*?[")


class Login(Struct, frozen=True, kw_only=True):
    """What was found for one image."""

    login: RegistryLogin | None
    """None: it is pulled without one."""
    notices: tuple[Notice, ...] = ()


def login_for(
    image: str, secrets: Sequence[tuple[str, Mapping[str, Any] | None]], *, namespace: str
) -> Login:
    """Return the login whose registry, and path within it, is nearest to the image's.

    `secrets` are (name, Secret or None where there is none), in the pod's order, which decides
    between logins that are as near.
    """
    notices: list[Notice] = []
    known: list[tuple[str, str, str]] = []
    for name, secret in secrets:
        try:
            known.extend(_logins(secret))
        except _Unusable as why:
            told = f"pull secret {namespace}/{name} {why}; image {image} is pulled without it"
            notices.append(Notice(FAILED, told))
    where = reference(image)
    fitting = [each for each in known if _is_for(each[0], where)]
    if not fitting:
        return Login(login=None, notices=tuple(notices))
    _, username, password = max(fitting, key=lambda each: _nearness(each[0]))
    login = RegistryLogin(server=where.partition("/")[0], username=username, password=password)
    return Login(login=login, notices=tuple(notices))


def reference(image: str) -> str:
    """Return where an image is, without tag and digest: `docker.io/library/nginx` for `nginx`."""
    name = image.partition("@")[0]
    head, slash, rest = name.partition("/")
    if not slash or not (set(head) & {".", ":"} or head == "localhost"):
        rest = name if slash else f"library/{name}"
        head = DOCKER_HUB
    elif head == _HUB_KEY:
        head = DOCKER_HUB
    if head == DOCKER_HUB and "/" not in rest:
        rest = f"library/{rest}"
    folder, slash, last = rest.rpartition("/")
    return f"{head}/{folder}{slash}{last.partition(':')[0]}"


class _Unusable(Exception):
    """A pull secret that holds no logins; its text says why."""


def _logins(secret: Mapping[str, Any] | None) -> Iterator[tuple[str, str, str]]:
    """Yield (registry with path, user, password) of one Secret.

    Raises:
        _Unusable: there are none to be had.
    """
    if secret is None:
        raise _Unusable("does not exist")
    held = texts_of(Kind.SECRET, secret)
    form = next((each for each in _FORMS if each in held), None)
    if form is None:
        raise _Unusable(f"has none of {' and '.join(_FORMS)}")
    try:
        document = json.loads(held[form])
    except (ValueError, RecursionError):
        raise _Unusable(f"holds no JSON under {form}") from None
    auths = document.get("auths") if form == _FORMS[0] and isinstance(document, dict) else document
    if not isinstance(auths, dict):
        raise _Unusable(f"holds no logins under {form}")
    for server, entry in auths.items():
        if isinstance(entry, dict) and (pair := _pair(entry)) is not None:
            yield (_key(server), *pair)


def _pair(entry: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return user and password of one entry; what is packed together goes first."""
    packed = entry.get("auth")
    if isinstance(packed, str) and packed:
        try:
            text = base64.b64decode(packed).decode()
        except (binascii.Error, ValueError):
            return None
        user, colon, password = text.partition(":")
        return (user, password) if colon else None
    told = entry.get("username"), entry.get("password")
    match told:
        case (str(user), str(password)) if user:
            return user, password
    return None


def _key(server: str) -> str:
    """Return a registry as images are compared with: without scheme, and API version at its end."""
    bare = server.partition("://")[2] or server
    host, slash, path = bare.partition("/")
    path = f"{slash}{path}"
    for version in ("/v1/", "/v2/"):
        if path.startswith(version):
            path = path[len(version) - 1 :]
    if host == _HUB_KEY:
        host = DOCKER_HUB
    return f"{host}{path}".rstrip("/")


def _is_for(key: str, where: str) -> bool:
    """Tell whether a login's registry covers an image; each label of the host may be a glob."""
    host, _, path = key.partition("/")
    at, _, below = where.partition("/")
    name, _, port = host.partition(":")
    name_at, _, port_at = at.partition(":")
    labels, labels_at = name.split("."), name_at.split(".")
    if port != port_at or len(labels) != len(labels_at) or not below.startswith(path):
        return False
    return all(fnmatchcase(one, other) for one, other in zip(labels_at, labels, strict=True))


def _nearness(key: str) -> tuple[int, bool]:
    """Longer paths are nearer, and a host by name is nearer than one by glob."""
    host, _, path = key.partition("/")
    return len(path), not set(host) & _GLOB
