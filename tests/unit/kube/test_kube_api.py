"""The rules of the fake API server, on which many tests lean; tests/kube plays them for real."""

from __future__ import annotations

from typing import Any

import pytest

from tests import kube_merge
from tests.kube_api import KubeApi
from tests.kube_store import Trouble

POD: dict[str, Any] = {
    "kind": "Pod",
    "metadata": {"name": "a"},
    "spec": {"nodeName": "n1"},
    "status": {"phase": "Running"},
}
PATH = "/api/v1/namespaces/default/pods/a"


def test_a_strategic_merge_knows_the_lists_with_a_key() -> None:
    """Conditions and podIPs are merged by key, containerStatuses are replaced as a whole."""
    old = {
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "r"}, {"type": "Theirs"}],
            "podIPs": [{"ip": "1.1.1.1"}],
            "containerStatuses": [{"name": "a"}, {"name": "b"}],
        }
    }
    patch = {
        "status": {
            "conditions": [{"type": "Ready", "status": "False"}],
            "podIPs": [{"ip": "1.1.1.1", "$patch": "delete"}, {"ip": "2.2.2.2"}],
            "containerStatuses": [{"name": "a"}],
        }
    }

    assert kube_merge.strategic(old, patch) == {
        "status": {
            "conditions": [{"type": "Ready", "status": "False", "reason": "r"}, {"type": "Theirs"}],
            "podIPs": [{"ip": "2.2.2.2"}],
            "containerStatuses": [{"name": "a"}],
        }
    }
    assert len(old["status"]["conditions"]) == 2, "the old object was changed"


def test_a_list_can_be_replaced_as_a_whole() -> None:
    """As a kubelet does with the addresses of its node."""
    old = {"status": {"addresses": [{"type": "Hostname", "address": "h"}]}}
    new = {"type": "InternalIP", "address": "1.1.1.1"}
    patch = {"status": {"addresses": [{"$patch": "replace"}, new]}}

    assert kube_merge.strategic(old, patch) == {"status": {"addresses": [new]}}


def test_an_entry_without_its_key_is_refused() -> None:
    """The API has no place to put it."""
    with pytest.raises(kube_merge.BadPatch):
        kube_merge.strategic({}, {"status": {"conditions": [{"status": "True"}]}})


def test_a_pod_is_deleted_gracefully_and_the_grace_only_shrinks() -> None:
    """The node has until then; and the object stays until the node itself removes it."""
    api = KubeApi()
    api.add(POD)

    assert api.remove(PATH)["metadata"]["deletionGracePeriodSeconds"] == 30
    assert api.remove(PATH, grace_s=60)["metadata"]["deletionGracePeriodSeconds"] == 30
    assert api.remove(PATH, grace_s=5)["metadata"]["deletionGracePeriodSeconds"] == 5
    api.remove(PATH, grace_s=0)
    assert api.find(PATH) is None


@pytest.mark.parametrize(
    "change", [{"status": {"phase": "Failed"}}, {"spec": {}}, {"status": {"phase": "Succeeded"}}]
)
def test_a_pod_that_does_not_run_is_gone_at_once(change: dict[str, Any]) -> None:
    """Nobody has to stop anything: there will be no second look at it."""
    api = KubeApi()
    api.add({**POD, **change})
    api.remove(PATH)

    assert api.find(PATH) is None


def test_a_finalizer_keeps_a_deleted_object() -> None:
    """Pods of Jobs have one: they stay until the Job controller has counted them."""
    api = KubeApi()
    api.add({**POD, "metadata": {"name": "a", "finalizers": ["batch.kubernetes.io/job-tracking"]}})

    api.remove(PATH, grace_s=0)
    assert api.find(PATH) is not None
    api.change(PATH, {"metadata": {"finalizers": None}})
    assert api.find(PATH) is None


def test_status_and_the_rest_are_written_apart() -> None:
    """What is sent to the wrong place is ignored without a word, as in the API."""
    api = KubeApi()
    api.add(POD)

    api.change(PATH, {"status": {"phase": "Failed"}, "metadata": {"labels": {"x": "1"}}})
    api.change(f"{PATH}/status", {"status": {"reason": "why"}, "spec": {"nodeName": "n2"}})

    found = api.find(PATH)
    assert found is not None
    assert found["status"]["phase"] == "Running"
    assert found["status"]["reason"] == "why"
    assert found["spec"]["nodeName"] == "n1"


def test_a_write_that_changes_nothing_makes_no_version() -> None:
    """Else every no-op would wake every watcher."""
    api = KubeApi()
    api.add(POD)
    version = api.store.version
    api.change(PATH, {"spec": {"nodeName": "n1"}})

    assert api.store.version == version


@pytest.mark.parametrize("labels", [{"x": "a/b"}, {"x": "-a"}, {"x": "a" * 64}, {"a b": "c"}])
def test_what_is_no_label_is_refused(labels: dict[str, str]) -> None:
    """The real server does, and a fake that does not hides the bug."""
    with pytest.raises(Trouble, match="422"):
        KubeApi().add({**POD, "metadata": {"name": "a", "labels": labels}})
