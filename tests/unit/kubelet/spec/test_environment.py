"""The environment of a container is a kubelet's, though no kubelet makes it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gp4u.kubelet.spec.environment import Addresses, Env, environment, expand, service_variables
from gp4u.kubelet.spec.references import Found, Unresolved
from tests.unit.kubelet.objects import POLICY, config_map, container, found, packed, pod, secret

HERE = Addresses(host_ip="10.0.0.7", pod_ip="10.244.1.9")


def made(
    *variables: dict[str, Any],
    known: Found | None = None,
    sources: list[dict[str, Any]] | None = None,
    addresses: Addresses = HERE,
    **more: Any,
) -> Env | Unresolved:
    """Return the environment of a container with these entries."""
    of = container(env=list(variables), envFrom=sources or [], **more)
    body = pod(of, labels={"app": "june"}, serviceAccountName="june")
    body["metadata"]["annotations"] = {"note": "two\nlines"}
    return environment(body, of, known or Found(), addresses=addresses, policy=POLICY)


def values(*variables: dict[str, Any], **more: Any) -> dict[str, str]:
    """Return what is shipped."""
    env = made(*variables, **more)
    assert isinstance(env, Env)
    return dict(env.values)


def by_field(path: str) -> dict[str, Any]:
    """Return a variable that is one field of the pod."""
    return {"name": "V", "valueFrom": {"fieldRef": {"fieldPath": path}}}


def by_resource(resource: str, divisor: str | None = None, **more: Any) -> str:
    """Return what a variable of a resource is, in a container with these resources."""
    source = {"resource": resource, **({"divisor": divisor} if divisor else {})}
    return values({"name": "V", "valueFrom": {"resourceFieldRef": source}}, **more)["V"]


def test_later_sources_go_over_earlier_ones_and_env_over_all() -> None:
    """The order that charts rely on for their overrides."""
    known = found(
        maps={"one": config_map(A="1", B="1", C="1")}, secrets={"two": secret(B="2", C="2")}
    )
    sources = [{"configMapRef": {"name": "one"}}, {"secretRef": {"name": "two"}}]
    assert values({"name": "C", "value": "3"}, known=known, sources=sources) == {
        "A": "1",
        "B": "2",
        "C": "3",
    }


def test_a_prefix_stands_before_each_key() -> None:
    """Two ConfigMaps of the same keys are told apart by it."""
    known = found(maps={"one": config_map(A="1")})
    sources = [{"prefix": "X_", "configMapRef": {"name": "one"}}]
    assert values(known=known, sources=sources) == {"X_A": "1"}


def test_keys_that_can_be_no_variable_are_left_out_and_told() -> None:
    """A file name like `a=b` would break the whole list for the machine."""
    body = {"data": {"good.key": "1", "bad=key": "2", "b\u00e4d": "3"}}
    env = made(known=found(maps={"one": body}), sources=[{"configMapRef": {"name": "one"}}])
    assert isinstance(env, Env)
    assert env.values == {"good.key": "1"}
    (notice,) = env.notices
    assert notice.reason == "InvalidEnvironmentVariableNames"
    assert "bad=key, b\u00e4d" in notice.message


def test_values_refer_to_what_stands_before_them() -> None:
    """`$(NAME)` sees earlier entries and envFrom; what comes later is not known yet."""
    known = found(maps={"one": config_map(FROM="map")})
    assert values(
        {"name": "A", "value": "$(FROM)-$(B)"},
        {"name": "B", "value": "b"},
        {"name": "C", "value": "$(A) $(B) $$(B) $(none)"},
        known=known,
        sources=[{"configMapRef": {"name": "one"}}],
    ) == {"FROM": "map", "A": "map-$(B)", "B": "b", "C": "map-$(B) b $(B) $(none)"}


def test_what_comes_from_an_object_is_not_expanded() -> None:
    """A password with `$(` in it must arrive as it is."""
    known = found(secrets={"s": secret(k="$(A)$$")})
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    told = values({"name": "A", "value": "1"}, {"name": "V", "valueFrom": source}, known=known)
    assert told["V"] == "$(A)$$"


def test_a_binary_key_of_a_config_map_is_no_variable() -> None:
    """It is for files; a kubelet does not see it here either."""
    body = {"data": {"A": "1"}, "binaryData": {"B": packed(b"\xff")}}
    assert values(known=found(maps={"one": body}), sources=[{"configMapRef": {"name": "one"}}]) == {
        "A": "1"
    }


@pytest.mark.parametrize("member", ["configMapKeyRef", "secretKeyRef"])
@pytest.mark.parametrize("there", [True, False])
def test_what_is_missing_holds_the_pod_unless_it_is_optional(member: str, there: bool) -> None:
    """K14: nothing is rented for a pod that could not start."""
    kind = "ConfigMap" if member == "configMapKeyRef" else "Secret"
    body = config_map(other="1") if kind == "ConfigMap" else secret(other="1")
    objects = {"it": body} if there else {}
    known = found(maps=objects) if kind == "ConfigMap" else found(secrets=objects)
    what = "KeyNotFound" if there else "NotFound"
    source: dict[str, Any] = {"name": "it", "key": "k"}
    missing = made({"name": "V", "valueFrom": {member: source}}, known=known)
    assert isinstance(missing, Unresolved)
    assert missing.reason == f"Mandatory{kind}{what}"
    assert "default/it" in missing.message
    source["optional"] = True
    env = made({"name": "V", "valueFrom": {member: source}}, known=known)
    assert isinstance(env, Env)
    assert env.values == {}
    assert [notice.reason for notice in env.notices] == [f"Optional{kind}{what}"]


def test_a_whole_object_that_is_missing_holds_the_pod_unless_it_is_optional() -> None:
    """As a single key does."""
    missing = made(sources=[{"secretRef": {"name": "none"}}])
    assert missing == Unresolved("MandatorySecretNotFound", "Secret default/none does not exist")
    env = made(sources=[{"configMapRef": {"name": "none", "optional": True}}])
    assert isinstance(env, Env)
    assert [notice.reason for notice in env.notices] == ["OptionalConfigMapNotFound"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "june"),
        ("metadata.namespace", "default"),
        ("metadata.uid", "5c8e4f1e-0000-4000-8000-000000000001"),
        ("metadata.labels['app']", "june"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['note']", "two\nlines"),
        ("spec.nodeName", "vast-gpu-node-1"),
        ("spec.serviceAccountName", "june"),
        ("status.hostIP", "10.0.0.7"),
        ("status.hostIPs", "10.0.0.7"),
        ("status.podIP", "10.244.1.9"),
        ("status.podIPs", "10.244.1.9"),
    ],
)
def test_each_field_of_a_pod_can_be_a_variable(path: str, value: str) -> None:
    """Missing ones are what users of other virtual nodes stumble over first."""
    assert values(by_field(path)) == {"V": value}


def test_an_address_that_is_not_known_yet_is_empty_and_told() -> None:
    """A pod must not fail for it, and a made-up address would be worse than none."""
    env = made(by_field("status.podIP"), addresses=Addresses(host_ip="10.0.0.7"))
    assert isinstance(env, Env)
    assert env.values == {"V": ""}
    assert [notice.reason for notice in env.notices] == ["PodAddressUnknown"]


def test_a_field_that_there_is_not_cannot_be_resolved() -> None:
    """As a kubelet has it: the container's configuration is wrong."""
    assert made(by_field("spec.hostname")) == Unresolved(
        "CreateContainerConfigError", "fieldPath 'spec.hostname' is unknown"
    )


@pytest.mark.parametrize(
    ("resource", "divisor", "value"),
    [
        ("limits.cpu", None, "2"),
        ("limits.cpu", "1m", "1500"),
        ("requests.cpu", "0", "1"),
        ("limits.memory", "1Mi", "1025"),
        ("limits.memory", None, "1073741825"),
        ("requests.memory", None, "0"),
        ("limits.ephemeral-storage", "1Gi", "65536"),
        ("requests.ephemeral-storage", None, "0"),
        ("limits.hugepages-2Mi", None, "0"),
    ],
)
def test_resources_are_rounded_up_in_units_of_their_divisor(
    resource: str, divisor: str | None, value: str
) -> None:
    """A limit that is not set is what the node has, a request that is not set is nothing."""
    resources = {"limits": {"cpu": "1500m", "memory": "1073741825"}, "requests": {"cpu": "100m"}}
    assert by_resource(resource, divisor, resources=resources) == value


def test_a_resource_of_another_container_is_found_by_its_name() -> None:
    """And one that does not exist holds the pod."""
    source = {"resource": "limits.cpu", "containerName": "other"}
    of = container(env=[{"name": "V", "valueFrom": {"resourceFieldRef": source}}])
    body = pod(of, container("other", resources={"limits": {"cpu": "3"}}))
    env = environment(body, of, Found(), addresses=HERE, policy=POLICY)
    assert isinstance(env, Env)
    assert env.values["V"] == "3"
    source["containerName"] = "none"
    assert isinstance(environment(body, of, Found(), addresses=HERE, policy=POLICY), Unresolved)


JUNE = {
    "metadata": {"name": "june-stt"},
    "spec": {
        "clusterIP": "10.96.0.5",
        "ports": [
            {"name": "http", "port": 8001, "protocol": "TCP"},
            {"name": "stats-udp", "port": 9001, "protocol": "UDP"},
        ],
    },
}


def test_service_variables_are_those_of_a_kubelet() -> None:
    """Old programs find their peers by them, the Docker links included."""
    assert service_variables([JUNE]) == {
        "JUNE_STT_SERVICE_HOST": "10.96.0.5",
        "JUNE_STT_SERVICE_PORT": "8001",
        "JUNE_STT_SERVICE_PORT_HTTP": "8001",
        "JUNE_STT_SERVICE_PORT_STATS_UDP": "9001",
        "JUNE_STT_PORT": "tcp://10.96.0.5:8001",
        "JUNE_STT_PORT_8001_TCP": "tcp://10.96.0.5:8001",
        "JUNE_STT_PORT_8001_TCP_PROTO": "tcp",
        "JUNE_STT_PORT_8001_TCP_PORT": "8001",
        "JUNE_STT_PORT_8001_TCP_ADDR": "10.96.0.5",
        "JUNE_STT_PORT_9001_UDP": "udp://10.96.0.5:9001",
        "JUNE_STT_PORT_9001_UDP_PROTO": "udp",
        "JUNE_STT_PORT_9001_UDP_PORT": "9001",
        "JUNE_STT_PORT_9001_UDP_ADDR": "10.96.0.5",
    }
    six = {"metadata": {"name": "six"}, "spec": {"clusterIP": "fd00::5", "ports": [{"port": 80}]}}
    assert service_variables([six])["SIX_PORT"] == "tcp://[fd00::5]:80"


@pytest.mark.parametrize("address", ["None", "", None])
def test_services_without_an_address_have_no_variables(address: str | None) -> None:
    """Headless ones and ExternalNames."""
    spec = {"clusterIP": address, "ports": [{"port": 80}]}
    assert service_variables([{"metadata": {"name": "headless"}, "spec": spec}]) == {}


def test_service_variables_are_seen_by_references_and_shipped_only_on_request() -> None:
    """A rented machine cannot reach them, and they tell a stranger about the cluster."""
    of = container(env=[{"name": "URL", "value": "http://$(JUNE_STT_SERVICE_HOST)"}])
    known = found(services=[JUNE])
    env = environment(pod(of), of, known, addresses=HERE, policy=POLICY)
    assert isinstance(env, Env)
    assert env.values == {"URL": "http://10.96.0.5"}
    assert env.seen["JUNE_STT_SERVICE_PORT"] == "8001"
    policy = replace(POLICY, service_variables=True)
    shipped = environment(pod(of), of, known, addresses=HERE, policy=policy)
    assert isinstance(shipped, Env)
    assert shipped.values == {**service_variables([JUNE]), "URL": "http://10.96.0.5"}


def test_a_variable_of_a_services_name_goes_over_it() -> None:
    """Service variables only fill in what nobody has set."""
    of = container(env=[{"name": "JUNE_STT_PORT", "value": "mine"}])
    policy = replace(POLICY, service_variables=True)
    env = environment(pod(of), of, found(services=[JUNE]), addresses=HERE, policy=policy)
    assert isinstance(env, Env)
    assert env.values["JUNE_STT_PORT"] == env.seen["JUNE_STT_PORT"] == "mine"


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$A ${A}", "$A ${A}"),
        ("$(none)", "$(none)"),
        ("$(A", "$(A"),
        ("$", "$"),
        ("$()", "$()"),
        ("$($(A))", "$($(A))"),
        ("a$(A)b$(A)c", "a1b1c"),
    ],
)
def test_references_are_expanded_as_kubernetes_documents_them(text: str, expanded: str) -> None:
    """The forms of its own test table."""
    assert expand(text, {"A": "1"}) == expanded
