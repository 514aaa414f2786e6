"""The control plane itself: what the other tests stand on is what it is said to be."""

from __future__ import annotations

from tests.kube.controlplane import ControlPlane
from tests.kube.programs import OLDEST, program, run


def test_the_newest_version_is_the_one_that_was_built(plane: ControlPlane) -> None:
    """A cache that holds another version would let every other test lie about what it ran on."""
    done = run([program("kube-apiserver"), "--version"], env={})
    assert plane.get_version() == done.out.split()[1]


def test_the_oldest_version_is_the_one_that_was_built(oldest_plane: ControlPlane) -> None:
    """Two control planes of one version would be one claim made twice."""
    assert oldest_plane.get_version() == OLDEST


def test_the_api_server_comes_back_with_what_it_knew(plane: ControlPlane) -> None:
    """Nodes are tested against its restart: that has to be one, with the store kept."""
    plane.admitted("create", "configmap", "kept", "--from-literal=a=1")
    before = plane.parts["kube-apiserver"].pid
    plane.restart_api_server()
    assert plane.parts["kube-apiserver"].pid != before
    assert plane.get("configmap", "kept")["data"] == {"a": "1"}
    plane.admitted("delete", "configmap", "kept")


def test_pods_go_through_a_real_scheduler(plane: ControlPlane) -> None:
    """Without it no pod is ever bound, and without admission none has a ServiceAccount."""
    plane.admitted("run", "waiter", "--image=nobody/here")
    plane.wait(
        ("wait", "pod/waiter", "--for=condition=PodScheduled=False", "--timeout=10s"), "a verdict"
    )
    pod = plane.get("pod", "waiter")
    assert pod["spec"]["serviceAccountName"] == "default"
    assert pod["status"]["conditions"][0]["reason"] == "Unschedulable", "nodes of ours are tainted"
    plane.admitted("delete", "pod", "waiter")
