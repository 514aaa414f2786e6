"""What is refused before any money is spent, by which name, and what is ignored out loud."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gp4u.kubelet.spec.admission import is_daemon, is_mirror, notices_of, refusal_of
from gp4u.providers.contract import Ability
from tests.unit.kubelet.objects import POLICY, container, pod

SPLITTING = replace(POLICY, allow_split=True)


def test_an_ordinary_gpu_pod_is_taken() -> None:
    """The node is there to take pods; defaults of the API server must not get in the way."""
    spec: dict[str, Any] = {
        "dnsPolicy": "ClusterFirst",
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "serviceAccountName": "default",
        "terminationGracePeriodSeconds": 30,
        "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
        "topologySpreadConstraints": [{"maxSkew": 1}],
    }
    more: dict[str, Any] = {
        "imagePullPolicy": "IfNotPresent",
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
    }
    body = pod(container(**more), **spec)
    assert refusal_of(body, POLICY, abilities={"vastai": ~Ability.NONE}) is None
    assert notices_of(body) == ()


def of_container(**members: Any) -> dict[str, Any]:
    """Return a pod whose container has these members."""
    return pod(container(**members))


def of_init(**members: Any) -> dict[str, Any]:
    """Return a pod with an init container that could run, but for these members."""
    first = {"name": "first", "image": "ozzu/june:1", "command": ["fetch"], **members}
    return pod(initContainers=[first])


REFUSED: list[tuple[dict[str, Any], str]] = [
    (pod(hostNetwork=True), "spec.hostNetwork"),
    (pod(hostPID=True), "spec.hostPID"),
    (pod(hostIPC=True), "spec.hostIPC"),
    (pod(resourceClaims=[{"name": "gpu"}]), "spec.resourceClaims"),
    (pod(volumes=[{"name": "v", "hostPath": {"path": "/"}}]), "spec.volumes[0].hostPath"),
    (
        pod(volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]),
        "spec.volumes[0].persistentVolumeClaim",
    ),
    (pod(volumes=[{"name": "v", "csi": {"driver": "d"}}]), "spec.volumes[0].csi"),
    (pod(volumes=[{"name": "v", "nfs": {"server": "s"}}]), "spec.volumes[0].nfs"),
    (pod(volumes=[{"name": "v", "image": {"reference": "r"}}]), "spec.volumes[0].image"),
    (pod(volumes=[{"name": "v", "ephemeral": {}}]), "spec.volumes[0].ephemeral"),
    (
        pod(volumes=[{"name": "v", "projected": {"sources": [{"clusterTrustBundle": {}}]}}]),
        "spec.volumes[0].projected.sources[0].clusterTrustBundle",
    ),
    (
        of_container(securityContext={"privileged": True}),
        "spec.containers[0].securityContext.privileged",
    ),
    (
        of_container(ports=[{"containerPort": 80, "hostPort": 80}]),
        "spec.containers[0].ports[0].hostPort",
    ),
    (
        of_container(ports=[{"containerPort": 80, "protocol": "SCTP"}]),
        "spec.containers[0].ports[0].protocol",
    ),
    (
        of_container(env=[{"name": "A", "valueFrom": {"fileKeyRef": {"key": "k"}}}]),
        "spec.containers[0].env[0].valueFrom.fileKeyRef",
    ),
    (of_container(volumeDevices=[{"name": "d"}]), "spec.containers[0].volumeDevices"),
    (of_container(imagePullPolicy="Never"), "spec.containers[0].imagePullPolicy"),
    (of_container(restartPolicyRules=[{}]), "spec.containers[0].restartPolicyRules"),
    (
        of_container(lifecycle={"postStart": {"exec": {"command": ["x"]}}}),
        "spec.containers[0].lifecycle.postStart.exec",
    ),
    (
        of_container(lifecycle={"preStop": {"httpGet": {"port": 80}}}),
        "spec.containers[0].lifecycle.preStop.httpGet",
    ),
    (of_init(restartPolicy="Always"), "spec.initContainers[0].restartPolicy"),
    (of_init(image="busybox"), "spec.initContainers[0].image"),
    (of_init(command=[]), "spec.initContainers[0].command"),
    (
        pod(
            container(command=None),
            initContainers=[{"name": "first", "image": "ozzu/june:1", "command": ["x"]}],
        ),
        "spec.containers[0].command",
    ),
    (pod(container(gpus=0)), "spec.containers[0].resources.limits"),
]


@pytest.mark.parametrize(("body", "field"), REFUSED, ids=[field for _, field in REFUSED])
def test_what_a_rented_container_cannot_honour_is_refused_by_field(
    body: dict[str, Any], field: str
) -> None:
    """K13: a pod that runs without what it asked for is worse than one that says why not."""
    refusal = refusal_of(body, POLICY)
    assert refusal is not None
    assert refusal.reason == "UnsupportedPodSpec"
    assert refusal.message.startswith(f"{field}: ")


def test_an_init_container_with_the_same_image_and_a_command_is_taken() -> None:
    """It can run first, in the machine's own container."""
    assert refusal_of(of_init(), POLICY) is None


def test_resources_beyond_the_node_are_refused_as_a_kubelet_does() -> None:
    """Controllers and people know these reasons."""
    refusal = refusal_of(pod(container(gpus=4)), POLICY, held_gpus=14)
    assert refusal is not None
    assert refusal.reason == "OutOfnvidia.com/gpu"
    assert "requested: 4, used: 14, capacity: 16" in refusal.message
    assert refusal_of(pod(container(gpus=2)), POLICY, held_gpus=14) is None
    for resource, amount, reason in (
        ("cpu", "2000", "OutOfcpu"),
        ("memory", "10Ti", "OutOfmemory"),
        ("ephemeral-storage", "100Ti", "OutOfephemeral-storage"),
        ("amd.com/gpu", "1", "OutOfamd.com/gpu"),
        ("hugepages-2Mi", "1Gi", "OutOfhugepages-2Mi"),
    ):
        resources = {"limits": {"nvidia.com/gpu": "1", resource: amount}}
        found = refusal_of(pod(container(resources=resources)), POLICY)
        assert found is not None
        assert found.reason == reason


@pytest.mark.parametrize(
    "spec", [{"os": {"name": "windows"}}, {"nodeSelector": {"kubernetes.io/os": "windows"}}]
)
def test_windows_pods_are_refused_by_the_kubelets_word(spec: dict[str, Any]) -> None:
    """A pod that names its node passes no scheduler, which would have kept it away."""
    refusal = refusal_of(pod(**spec), POLICY)
    assert refusal is not None
    assert refusal.reason == "PodOSNotSupported"


def test_pods_without_gpu_are_taken_where_the_operator_says_so() -> None:
    """Every machine has a GPU and costs like one, so it must be meant."""
    assert refusal_of(pod(container(gpus=0)), replace(POLICY, accept_cpu=True)) is None


def test_a_bad_annotation_refuses_the_pod_with_its_own_words() -> None:
    """It never becomes right by waiting."""
    refusal = refusal_of(pod(annotations={"max-price": "cheap"}), POLICY)
    assert refusal is not None
    assert refusal.reason == "InvalidPodSpec"
    assert "metadata.annotations[gp4u.io/max-price]: 'cheap'" in refusal.message


@pytest.mark.parametrize("name", ["", "../etc", "A", "a_b", "-a", "a" * 64, "a/b", "a\n", "a.b"])
def test_container_names_that_are_no_dns_label_are_refused(name: str) -> None:
    """S11: they become parts of paths and of owners; the API server is not the only source."""
    refusal = refusal_of(pod(container(name)), POLICY)
    assert refusal is not None
    assert (refusal.reason, "containers[0].name" in refusal.message) == ("InvalidPodSpec", True)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a..b", "a.", "A", "a" * 254])
def test_pod_names_that_are_no_dns_name_are_refused(name: str) -> None:
    """S11: a name like `..` would lead out of where its log is kept."""
    body = pod()
    body["metadata"]["name"] = name
    refusal = refusal_of(body, POLICY)
    assert refusal is not None
    assert "metadata.name" in refusal.message
    body["metadata"]["name"] = "june-7.x-0"
    assert refusal_of(body, POLICY) is None


def test_several_containers_need_a_market_that_runs_them_side_by_side() -> None:
    """Where there is one, they are taken; else they are refused with the way out, if there is."""
    body = pod(container("one"), container("two", gpus=0))
    can = {"vastai": Ability.LABELS, "akash": Ability.MULTI_CONTAINER}
    assert refusal_of(body, POLICY, abilities=can) is None
    refusal = refusal_of(body, POLICY, abilities={"vastai": Ability.LABELS})
    assert refusal is not None
    assert refusal.message.startswith("spec.containers: no open market runs 2 containers")
    assert "split" not in refusal.message
    told = refusal_of(body, SPLITTING, abilities={"vastai": Ability.LABELS})
    assert told is not None
    assert "gp4u.io/containers: split" in told.message


def test_two_containers_with_gpus_need_a_machine_each() -> None:
    """Markets give the GPUs of a machine to one container."""
    body = pod(container("one"), container("two"))
    refusal = refusal_of(body, POLICY, abilities={"akash": Ability.MULTI_CONTAINER})
    assert refusal is not None
    assert "one, two want some" in refusal.message
    body["metadata"]["annotations"] = {"gp4u.io/containers": "split"}
    assert refusal_of(body, SPLITTING) is None
    assert refusal_of(body, POLICY) is not None


def test_init_containers_are_refused_where_each_container_has_a_machine() -> None:
    """They run before all others, and there is no machine that is all of theirs."""
    first = {"name": "first", "image": "ozzu/june:1", "command": ["x"]}
    body = pod(
        container("one"),
        container("two"),
        annotations={"containers": "split"},
        initContainers=[first],
    )
    refusal = refusal_of(body, SPLITTING)
    assert refusal is not None
    assert refusal.message.startswith("spec.initContainers: ")


def test_what_is_ignored_is_said_once_each_by_field() -> None:
    """Silence would let somebody believe that it holds."""
    body = pod(
        container(
            securityContext={"readOnlyRootFilesystem": True, "runAsUser": 1000},
            lifecycle={"preStop": {"sleep": {"seconds": 5}}},
        ),
        annotations={"max-prize": "1"},
        hostAliases=[{"ip": "10.0.0.1"}],
        dnsPolicy="None",
        dnsConfig={"nameservers": ["10.0.0.1"]},
        securityContext={"fsGroup": 2000},
        volumes=[{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}],
        ephemeralContainers=[{"name": "debug"}],
    )
    assert refusal_of(body, POLICY) is None
    notices = notices_of(body)
    assert notices[0].reason == "UnknownAnnotation"
    assert "did you mean gp4u.io/max-price?" in notices[0].message
    told = "\n".join(notice.message for notice in notices)
    for field in (
        "spec.hostAliases",
        "spec.dnsConfig",
        "spec.dnsPolicy",
        "spec.securityContext.fsGroup",
        "spec.volumes[0].emptyDir.medium",
        "spec.volumes[0].emptyDir.sizeLimit",
        "spec.containers[0].securityContext.readOnlyRootFilesystem",
        "spec.containers[0].securityContext.runAsUser",
        "spec.containers[0].lifecycle.preStop.sleep",
        "spec.ephemeralContainers",
    ):
        assert told.count(field) == 1, field
    assert len(set(notices)) == len(notices)


def test_daemons_and_mirrors_are_known() -> None:
    """Failing a DaemonSet's pod makes its controller create another one at once, for ever."""
    assert is_daemon(pod(owner="DaemonSet"))
    assert not is_daemon(pod(owner="ReplicaSet"))
    assert not is_daemon(pod())
    body = pod()
    assert not is_mirror(body)
    body["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
    assert is_mirror(body)
