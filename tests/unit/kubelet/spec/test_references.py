"""What a pod names in the cluster, and that only a 404 means that it is missing."""

from __future__ import annotations

from typing import Any

import pytest

from gp4u.errors import KubeUnavailable
from gp4u.kubelet.spec.references import (
    API_ACCESS_PATH,
    Found,
    Kind,
    Objects,
    Ref,
    TokenAsk,
    Unresolved,
    references_of,
    tokens_of,
    uses_secrets,
    wants_services,
)
from tests.kube_api import KubeApi
from tests.unit.kubelet.objects import UID, container, pod


def named(kind: str, name: str, **more: Any) -> dict[str, Any]:
    """Return an object of namespace `default`."""
    about = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": kind, "metadata": about, **more}


ACCESS: dict[str, Any] = {
    "name": "kube-api-access-x",
    "projected": {
        "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "kube-root-ca.crt"}},
        ]
    },
}


def with_access(**spec: Any) -> dict[str, Any]:
    """Return a pod as admission leaves it: with a token that nobody asked for."""
    mount = {"name": "kube-api-access-x", "mountPath": API_ACCESS_PATH}
    return pod(container(volumeMounts=[mount]), volumes=[ACCESS], **spec)


def test_everything_that_a_pod_names_is_found_once() -> None:
    """What is overlooked here would be missing on the machine."""
    env = [
        {
            "name": "A",
            "valueFrom": {"configMapKeyRef": {"name": "m1", "key": "k", "optional": True}},
        },
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s1", "key": "k"}}},
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "m1", "key": "l"}}},
    ]
    sources = [{"configMapRef": {"name": "m2"}}, {"secretRef": {"name": "s2", "optional": True}}]
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in ("v1", "v2", "v3")]
    volumes = [
        {"name": "v1", "configMap": {"name": "m3"}},
        {"name": "v2", "secret": {"secretName": "s3"}},
        {"name": "v3", "projected": {"sources": [{"secret": {"name": "s4"}}]}},
        {"name": "v4", "secret": {"secretName": "nobody-mounts-it"}},
    ]
    first = {"name": "first", "envFrom": [{"configMapRef": {"name": "m4"}}]}
    body = pod(
        container(env=env, envFrom=sources, volumeMounts=mounts),
        initContainers=[first],
        volumes=volumes,
        imagePullSecrets=[{"name": "s5"}],
    )
    assert {(ref.kind, ref.name, ref.optional) for ref in references_of(body)} == {
        (Kind.CONFIG_MAP, "m1", False),
        (Kind.CONFIG_MAP, "m2", False),
        (Kind.CONFIG_MAP, "m3", False),
        (Kind.CONFIG_MAP, "m4", False),
        (Kind.SECRET, "s1", False),
        (Kind.SECRET, "s2", True),
        (Kind.SECRET, "s3", False),
        (Kind.SECRET, "s4", False),
        (Kind.SECRET, "s5", True),
    }
    where = {ref.name: ref.where for ref in references_of(body)}
    assert where["s4"] == "spec.volumes[2].projected.sources[0]"
    assert uses_secrets(body)


def test_the_token_of_every_pod_is_nothing_that_the_pod_asked_for() -> None:
    """Never refuse, hold or distrust a pod because of it."""
    body = with_access()
    assert references_of(body) == ()
    assert not uses_secrets(body)
    asked = references_of(body, api_access=True)
    assert [ref.name for ref in asked] == ["kube-root-ca.crt"]
    assert uses_secrets(body, api_access=True)
    assert tokens_of(body, api_access=True) == (TokenAsk("", 3607),)


def test_a_token_that_the_pod_asks_for_itself_is_not_taken_for_that_one() -> None:
    """Somebody's login to a vault, say, mounted where they want it."""
    source = {"serviceAccountToken": {"path": "t", "audience": "vault"}}
    body = pod(
        container(volumeMounts=[{"name": "vault", "mountPath": "/vault"}]),
        volumes=[{"name": "vault", "projected": {"sources": [source]}}],
    )
    assert tokens_of(body, api_access=False) == (TokenAsk("vault", 3600),)


async def read(api: KubeApi, body: dict[str, Any], **how: Any) -> Found | Unresolved:
    """Read what a pod names."""
    asked = {"api_access": False, "service_variables": False, **how}
    async with api.client() as client:
        return await Objects(client).read(body, **asked)


def needing(*maps: str, optional: bool = False) -> dict[str, Any]:
    """Return a pod that takes these ConfigMaps into its environment."""
    refs = [{"configMapRef": {"name": name, "optional": optional}} for name in maps]
    return pod(container(envFrom=refs))


async def test_each_object_is_read_by_name_and_once() -> None:
    """A pod with ten keys of one ConfigMap costs one call, and nothing else is looked at."""
    api = KubeApi()
    api.add(named("ConfigMap", "one", data={"A": "1"}))
    known = await read(api, needing("one", "one", "two"))
    assert isinstance(known, Found)
    one = known.of(Kind.CONFIG_MAP, "one")
    assert one is not None
    assert one["data"] == {"A": "1"}
    assert known.of(Kind.CONFIG_MAP, "two") is None
    assert len(api.told("get")) == 2
    assert not api.told("list")


async def test_what_appears_later_is_found_the_next_time() -> None:
    """Nothing is kept between two looks, or a missing Secret would stay missing."""
    api = KubeApi()
    async with api.client() as client:
        objects = Objects(client)
        how = {"api_access": False, "service_variables": False}
        first = await objects.read(needing("one"), **how)
        api.add(named("ConfigMap", "one", data={}))
        second = await objects.read(needing("one"), **how)
    assert isinstance(first, Found)
    assert isinstance(second, Found)
    assert first.of(Kind.CONFIG_MAP, "one") is None
    assert second.of(Kind.CONFIG_MAP, "one") is not None


@pytest.mark.parametrize(("optional", "how"), [(False, "Mandatory"), (True, "Optional")])
async def test_what_may_not_be_read_holds_the_pod_by_name(optional: bool, how: str) -> None:
    """K12: a missing permission is not a missing object, not even for an optional one."""
    api = KubeApi()
    api.deny("get", "configmaps")
    answer = await read(api, needing("one", optional=optional))
    assert isinstance(answer, Unresolved)
    assert answer.reason == f"FailedToRead{how}ConfigMap"
    assert "default/one" in answer.message
    assert "spec.containers[0].envFrom[0]" in answer.message


async def test_an_api_server_that_is_away_is_never_taken_for_a_missing_object() -> None:
    """K14: an optional Secret that could not be read would be left out of a paid machine."""
    api = KubeApi()
    api.set_down()
    with pytest.raises(KubeUnavailable):
        await read(api, needing("one", optional=True))


async def test_services_are_read_only_where_somebody_would_see_them() -> None:
    """A list of all Services for every pod would be read for nothing."""
    api = KubeApi()
    spec = {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}
    api.add(named("Service", "june-stt", spec=spec))
    api.add(named("Service", "kubernetes", spec=spec))
    plain = await read(api, pod())
    assert isinstance(plain, Found)
    assert plain.services == ()
    assert not api.told("list")
    of = container(args=["--peer=$(JUNE_STT_SERVICE_HOST)"])
    assert wants_services(pod(of), shipped=False)
    known = await read(api, pod(of))
    assert isinstance(known, Found)
    assert sorted(each["metadata"]["name"] for each in known.services) == ["june-stt", "kubernetes"]
    bare = await read(api, pod(of, enableServiceLinks=False))
    assert isinstance(bare, Found)
    assert [each["metadata"]["name"] for each in bare.services] == ["kubernetes"]


async def test_a_token_is_made_for_this_very_pod() -> None:
    """One that is bound to nothing would outlive the machine."""
    api = KubeApi()
    api.add(named("ConfigMap", "kube-root-ca.crt", data={}))
    known = await read(api, with_access(serviceAccountName="june"), api_access=True)
    assert isinstance(known, Found)
    assert known.tokens == {TokenAsk("", 3607): "token-of-default-june"}
    (request,) = api.told("create", "serviceaccounts/june/token")
    assert request.body["spec"] == {
        "expirationSeconds": 3607,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "june", "uid": UID},
    }


def test_one_mandatory_mention_is_enough() -> None:
    """An object that is optional here and mandatory there is mandatory."""
    env = [
        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]
    assert references_of(pod(container(env=env))) == (
        Ref(Kind.SECRET, "s", False, "spec.containers[0].env[1]"),
    )
