"""Pods that wait for what a user has to mend: a budget, an image. Each waits with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gp4u.rentals.rental import Hopeless
from tests.kube.controlplane import ControlPlane
from tests.kube.manifests import PROGRAM, pod, pod_spec
from tests.kube.town import Ground, town, until

pytestmark = pytest.mark.timeout(300)
BOOT_S = 150
"""A simulated machine takes up to a minute and a half to find out that it cannot pull."""


def waiting(ground: Ground, name: str) -> dict[str, str]:
    """Return reason and message of what a pod's container waits for."""
    made = ground.get("pod", name)
    assert made["status"]["phase"] == "Pending"
    entries = made["status"].get("containerStatuses", [])  # none yet, if nothing was told so far
    found: dict[str, str] = entries[0]["state"]["waiting"] if entries else {}
    return found


def test_a_pod_over_the_budget_waits_with_the_reason_and_rents_nothing(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """M2: whoever applied it has to see which bound of the operator's it is.

    The node has GPUs to offer, for there are cheaper ones: the scheduler cannot tell.
    """
    env = {"GP4U_BUDGET_USD_PER_HOUR": "1"}
    with town(plane, tmp_path, node="gp4u-thrifty", **env) as running:
        ground = running.namespace("thrifty")
        spec = pod_spec(running.node, PROGRAM, ports=[8000])
        ground.apply(pod("june", spec, annotations={"gpu-type": "H100 SXM"}))
        said = ground.wait_event("june", "BudgetExceeded")
        assert "GP4U_BUDGET_USD_PER_HOUR" in said, said

        def told() -> bool:
            return waiting(ground, "june") == {"reason": "BudgetExceeded", "message": said}

        until(told, "the same in its status", lambda: ground.tell("june"))
        assert said in ground.describe("pod", "june")
        assert running.rentals() == []


def test_a_node_whose_budget_fits_no_machine_says_which_budget_it_is(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """It offers no GPU, so a scheduler says only that GPUs are short; the node says why."""
    env = {"GP4U_BUDGET_USD_PER_HOUR": "0.01"}
    with town(plane, tmp_path, node="gp4u-penniless", **env) as running:
        ground = running.namespace("penniless")
        ground.apply(pod("june", pod_spec(running.node, PROGRAM, ports=[8000])))
        assert "Insufficient nvidia.com/gpu" in ground.wait_event("june", "FailedScheduling")

        def shown() -> str:
            return ground.describe("node", running.node)

        said = "GP4U_BUDGET_USD_PER_HOUR leaves no room for any machine"
        until(lambda: said in shown(), "the node to say why", shown)
        assert running.rentals() == []


def test_an_image_that_cannot_be_pulled_says_so_and_gives_its_machine_back(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """H28: people look for `ImagePullBackOff`; the machine that could not pull it still cost."""
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps([{"kind": "pull_error", "endpoint": "create", "times": 1}]))
    with town(plane, tmp_path, node="gp4u-misspelt", faults=faults) as running:
        ground = running.namespace("misspelt")
        ground.apply(pod("june", pod_spec(running.node, PROGRAM, ports=[8000])))

        def backs_off() -> bool:
            return waiting(ground, "june").get("reason") == "ImagePullBackOff"

        until(backs_off, "ImagePullBackOff", lambda: ground.tell("june"), patience_s=BOOT_S)
        message = waiting(ground, "june")["message"]
        assert message.startswith('Back-off pulling image "registry.test/june:1": '), message
        said = ground.events("june")["Failed"]
        assert "manifest" in said, said
        first = running.rentals()[0]
        assert (first.reason, first.ever_ran) == (Hopeless.CANNOT_START, False)
        ground.wait_ready("june")  # the next machine could
        until(
            lambda: (
                [each.key for each in running.open_rentals()] != [first.key]
                and first.key not in {each.key for each in running.open_rentals()}
            ),
            "the first machine to be released",
            running.said,
        )
        assert running.rentals()[1].machine_id != first.machine_id
