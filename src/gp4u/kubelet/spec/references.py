"""What else a pod names in the cluster: ConfigMaps, Secrets, Services, tokens; and reading it.

Hides which fields of a pod name objects, that a volume which no container mounts names none, and
what each failure to read means. Everything is read by name, straight from the API server: a cache
that is still cold would report as missing what exists. Only 404 means missing; any other failure
is never taken for it.

What is made of the objects is left to `environment.py`, `volumes.py` and `pull_secrets.py`, which
are pure functions of what was `Found` here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct, field

from gp4u.errors import KubeAbsent, KubeDenied
from gp4u.kube import paths
from gp4u.kube.client import KubeClient
from gp4u.kubelet.held import PodObject

API_ACCESS_PATH: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where the token of its ServiceAccount is mounted into almost every pod.

Source: kubernetes plugin/pkg/admission/serviceaccount/admission.go, 1.32; checked 2026-11.
"""
TOKEN_LIFE_S: Final = 3600
"""What a projected token lives where it does not say. Source: kubernetes core/v1 types, 1.32."""
_SERVICE_VARIABLE: Final = re.compile(r"\$\([A-Z0-9_]*_(?:SERVICE|PORT)[A-Z0-9_]*\)")


class Kind(StrEnum):
    """What can be missing."""

    CONFIG_MAP = "ConfigMap"
    SECRET = "Secret"  # noqa: S105 - a kind of object, no password


class Ref(Struct, frozen=True):
    """One object that a pod names; where it names it twice, it counts as mandatory if one does."""

    kind: Kind
    name: str
    optional: bool
    where: str
    """The field that names it first: `spec.containers[0].envFrom[1]`."""


class TokenAsk(Struct, frozen=True):
    """A token that a pod wants of its ServiceAccount."""

    audience: str
    """Empty: the API server itself."""
    lives_s: int


class Unresolved(Struct, frozen=True):
    """What a pod needs is not there yet; nothing may be rented, and it is looked for again."""

    reason: str
    """Of the Warning event, as users of virtual nodes know them: `MandatoryConfigMapNotFound`."""
    message: str


class Found(Struct, frozen=True, kw_only=True):
    """What was read for one pod, at one moment."""

    objects: Mapping[tuple[Kind, str], Mapping[str, Any] | None] = field(default_factory=dict)
    """None: there is no such object."""
    services: Sequence[Mapping[str, Any]] = ()
    """Of the pod's namespace, with `default/kubernetes`; empty where nobody asks for them."""
    tokens: Mapping[TokenAsk, str] = field(default_factory=dict)
    settled: bool = False
    """Whether the pod's machine is there already: what is missing by now is left out of it."""

    def of(self, kind: Kind, name: str) -> Mapping[str, Any] | None:
        """Return an object that the pod names, or None where there is none."""
        return self.objects.get((kind, name))


def references_of(pod: PodObject, *, api_access: bool = False) -> tuple[Ref, ...]:
    """Return every ConfigMap and Secret that a pod names, each once.

    `api_access`: whether the token of its ServiceAccount is shipped; without it, what stands beside
    the token (the cluster's CA) is not read either. Pull secrets count as optional: without them an
    image may still be public.
    """
    found: dict[tuple[Kind, str], Ref] = {}
    for ref in _named(pod, api_access=api_access):
        known = found.setdefault((ref.kind, ref.name), ref)
        if known.optional and not ref.optional:
            found[ref.kind, ref.name] = Ref(ref.kind, ref.name, False, ref.where)
    return tuple(found.values())


def uses_secrets(pod: PodObject, *, api_access: bool = False) -> bool:
    """Tell whether anything secret would reach the machine: a Secret, a pull secret, a token."""
    if any(ref.kind is Kind.SECRET for ref in references_of(pod, api_access=api_access)):
        return True
    return api_access and bool(tokens_of(pod, api_access=True))


def tokens_of(pod: PodObject, *, api_access: bool) -> tuple[TokenAsk, ...]:
    """Return the tokens that the pod's mounted volumes want."""
    return tuple(
        dict.fromkeys(
            token_ask(source["serviceAccountToken"])
            for _, volume in mounted_volumes(pod, api_access=api_access)
            for source in (volume.get("projected") or {}).get("sources") or ()
            if "serviceAccountToken" in source
        )
    )


def token_ask(source: Mapping[str, Any]) -> TokenAsk:
    """Return what a projected token asks for."""
    lives_s = source.get("expirationSeconds") or TOKEN_LIFE_S
    return TokenAsk(source.get("audience") or "", int(lives_s))


def mounted_volumes(pod: PodObject, *, api_access: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (place in `spec.volumes`, volume) of those that some container mounts.

    The one with the ServiceAccount's token, which almost every pod is given without having asked,
    is left out unless `api_access`.
    """
    spec = pod["spec"]
    mounted = {
        mount["name"]
        for each in (*spec["containers"], *(spec.get("initContainers") or ()))
        for mount in each.get("volumeMounts") or ()
    }
    for place, volume in enumerate(spec.get("volumes") or ()):
        if volume["name"] in mounted and (api_access or not is_api_access(pod, volume)):
            yield place, volume


def is_api_access(pod: PodObject, volume: Mapping[str, Any]) -> bool:
    """Tell whether a volume is the one with the token that admission puts into every pod."""
    sources = (volume.get("projected") or {}).get("sources") or ()
    if not any("serviceAccountToken" in source for source in sources):
        return False
    spec = pod["spec"]
    where = {
        mount.get("mountPath")
        for each in (*spec["containers"], *(spec.get("initContainers") or ()))
        for mount in each.get("volumeMounts") or ()
        if mount["name"] == volume["name"]
    }
    return where <= {API_ACCESS_PATH}


def wants_services(pod: PodObject, *, shipped: bool) -> bool:
    """Tell whether anybody would see the variables of Services: shipped, or in a `$(NAME)`."""
    texts = (
        text
        for each in (*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or ()))
        for text in (
            *(each.get("command") or ()),
            *(each.get("args") or ()),
            *(variable.get("value") or "" for variable in each.get("env") or ()),
        )
    )
    return shipped or any(_SERVICE_VARIABLE.search(text) for text in texts)


class Objects:
    """Reads what pods name; keeps nothing, so that what was missing can appear."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client

    async def read(
        self,
        pod: PodObject,
        *,
        api_access: bool,
        service_variables: bool,
        settled: bool = False,
    ) -> Found | Unresolved:
        """Read everything that a pod names, each object once; for `settled` see `Found`.

        Raises:
            KubeError: the API server could not be asked; nothing is known, try again.
        """
        namespace = pod["metadata"]["namespace"]
        objects: dict[tuple[Kind, str], Mapping[str, Any] | None] = {}
        for ref in references_of(pod, api_access=api_access):
            try:
                objects[ref.kind, ref.name] = await self._get(ref.kind, namespace, ref.name)
            except KubeDenied as error:
                if settled:
                    continue
                how = "Optional" if ref.optional else "Mandatory"
                told = f"{ref.kind} {namespace}/{ref.name}, which {ref.where} names, cannot be read"
                return Unresolved(f"FailedToRead{how}{ref.kind}", f"{told}: {error.detail}")
        services: Sequence[Mapping[str, Any]] = ()
        if wants_services(pod, shipped=service_variables):
            services = await self._services(pod)
        tokens = {ask: await self._token(pod, ask) for ask in tokens_of(pod, api_access=api_access)}
        return Found(objects=objects, services=services, tokens=tokens, settled=settled)

    async def _get(self, kind: Kind, namespace: str, name: str) -> Mapping[str, Any] | None:
        if not name:
            return None
        path = paths.secret if kind is Kind.SECRET else paths.configmap
        try:
            return await self._client.get(path(namespace, name))
        except KubeAbsent:
            return None

    async def _services(self, pod: PodObject) -> Sequence[Mapping[str, Any]]:
        """Services whose addresses a kubelet would tell; that of the API server comes always."""
        found: list[Mapping[str, Any]] = []
        namespace = pod["metadata"]["namespace"]
        if pod["spec"].get("enableServiceLinks", True):
            found.extend((await self._client.list(paths.services(namespace))).items)
        if not any(each["metadata"].get("name") == "kubernetes" for each in found):
            try:
                found.append(await self._client.get(paths.service("default", "kubernetes")))
            except KubeAbsent:
                return found
        return found

    async def _token(self, pod: PodObject, ask: TokenAsk) -> str:
        """Have a token made that is bound to this very pod, and dies with it."""
        about = pod["metadata"]
        account = pod["spec"].get("serviceAccountName") or "default"
        bound = {"apiVersion": "v1", "kind": "Pod", "name": about["name"], "uid": about["uid"]}
        spec: dict[str, Any] = {"expirationSeconds": ask.lives_s, "boundObjectRef": bound}
        if ask.audience:
            spec["audiences"] = [ask.audience]
        made = await self._client.create(
            paths.service_account(about["namespace"], account, "token"),
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        token: str = made["status"]["token"]
        return token


def _named(pod: PodObject, *, api_access: bool) -> Iterator[Ref]:
    spec = pod["spec"]
    for group in ("initContainers", "containers"):
        for place, container in enumerate(spec.get(group) or ()):
            yield from _of_environment(container, f"spec.{group}[{place}]")
    for place, volume in mounted_volumes(pod, api_access=api_access):
        yield from _of_volume(volume, f"spec.volumes[{place}]")
    for place, pull in enumerate(spec.get("imagePullSecrets") or ()):
        if pull.get("name"):
            yield Ref(Kind.SECRET, pull["name"], True, f"spec.imagePullSecrets[{place}]")


def _of_environment(container: Mapping[str, Any], where: str) -> Iterator[Ref]:
    for place, source in enumerate(container.get("envFrom") or ()):
        for member, kind in (("configMapRef", Kind.CONFIG_MAP), ("secretRef", Kind.SECRET)):
            if (named := source.get(member)) is not None:
                at = f"{where}.envFrom[{place}]"
                yield Ref(kind, named.get("name") or "", bool(named.get("optional")), at)
    for place, variable in enumerate(container.get("env") or ()):
        source = variable.get("valueFrom") or {}
        for member, kind in (("configMapKeyRef", Kind.CONFIG_MAP), ("secretKeyRef", Kind.SECRET)):
            if (named := source.get(member)) is not None:
                at = f"{where}.env[{place}]"
                yield Ref(kind, named.get("name") or "", bool(named.get("optional")), at)


def _of_volume(volume: Mapping[str, Any], where: str) -> Iterator[Ref]:
    if (told := volume.get("configMap")) is not None:
        yield Ref(Kind.CONFIG_MAP, told.get("name") or "", bool(told.get("optional")), where)
    if (told := volume.get("secret")) is not None:
        yield Ref(Kind.SECRET, told.get("secretName") or "", bool(told.get("optional")), where)
    for place, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
        for member, kind in (("configMap", Kind.CONFIG_MAP), ("secret", Kind.SECRET)):
            if (told := source.get(member)) is not None:
                at = f"{where}.projected.sources[{place}]"
                yield Ref(kind, told.get("name") or "", bool(told.get("optional")), at)
