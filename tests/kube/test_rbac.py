"""The chart's roles are least: each right that a node is given is taken away, and is missed.

The tables have a row for each right, which leads to the loss that it stands for (`losses.py`). Rows
of one table are taken away together where their losses are seen independently, since each start
of a process and each pause after a plain no costs real seconds: that a loss is of this very right
is told by the API server's refusal, which names verb, resource and group. What was seen of each
is then one test.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

import pytest

from tests.kube import losses
from tests.kube.chart import NAMESPACE
from tests.kube.controlplane import ControlPlane
from tests.kube.least import Least, Right, every_right, granted
from tests.kube.losses import PREFERENCES, WEIGHTS, Loss, Scene

pytestmark = pytest.mark.timeout(600)
NODE: Final = "gp4u-least"
Table = Mapping[str, Loss]

RUNNING: Final[tuple[Table, ...]] = (
    {
        "patch pods/status": losses.no_statuses,
        "create events": losses.no_events,
        "create endpointslices.discovery.k8s.io": losses.no_new_slices,
        "create tokenreviews.authentication.k8s.io": losses.no_token_reviews,
        "create subjectaccessreviews.authorization.k8s.io": losses.no_access_reviews,
        "create leases.coordination.k8s.io in kube-node-lease": losses.no_new_heartbeat,
    },
    {
        "delete pods": losses.no_deletion,
        "get configmaps": losses.no_configmaps,
        "get secrets": losses.no_secrets,
        "get endpointslices.discovery.k8s.io": losses.no_look_at_slices,
        "create configmaps": losses.no_relay_routes,
    },
    {
        "patch events": losses.no_events_again,
        "patch endpointslices.discovery.k8s.io": losses.no_changed_slices,
        "patch nodes": losses.no_node_patches,
        "create pods": losses.no_relays,
        "create serviceaccounts/token": losses.no_tokens,
    },
    {
        "delete endpointslices.discovery.k8s.io": losses.no_slices_removed,
        "get services": losses.no_service_variables,
        "patch nodes/status": losses.no_node_statuses,
    },
)
"""Missed while the node runs, and made good without a restart."""

LEADING: Final[tuple[Table, ...]] = (
    {f"update leases.coordination.k8s.io gp4u-node in {NAMESPACE}": losses.no_term_kept},
)
"""Missed by whoever leads, who stops all the rest for it."""

STARTING: Final[tuple[Table, ...]] = (
    {
        f"get leases.coordination.k8s.io gp4u-node in {NAMESPACE}": losses.no_term_seen,
        f"list configmaps {WEIGHTS} in {NAMESPACE}": losses.not_listed(WEIGHTS),
        f"list configmaps {PREFERENCES} in {NAMESPACE}": losses.not_listed(PREFERENCES),
        "create certificatesigningrequests.certificates.k8s.io": losses.no_request,
    },
    {
        f"create leases.coordination.k8s.io in {NAMESPACE}": losses.no_term_begun,
        f"watch configmaps {WEIGHTS} in {NAMESPACE}": losses.not_watched(WEIGHTS),
        f"watch configmaps {PREFERENCES} in {NAMESPACE}": losses.not_watched(PREFERENCES),
        "get certificatesigningrequests.certificates.k8s.io": losses.no_request,
    },
    {
        "list pods": losses.no_pods_listed,
        "list services": losses.no_services_listed,
        "list endpointslices.discovery.k8s.io": losses.no_slices_listed,
        "approve signers.certificates.k8s.io kubernetes.io/kubelet-serving": losses.no_approval,
    },
    {
        "watch pods": losses.no_pods_watched,
        "watch services": losses.no_services_watched,
        "watch endpointslices.discovery.k8s.io": losses.no_slices_watched,
        "list nodes": losses.no_node_seen,
        "get namespaces kube-system": losses.no_cluster,
        "update certificatesigningrequests.certificates.k8s.io/approval": losses.no_approval,
        f"update leases.coordination.k8s.io {NODE} in kube-node-lease": losses.no_heartbeat,
    },
    {
        "watch nodes": losses.no_node_seen,
        f"get leases.coordination.k8s.io {NODE} in kube-node-lease": losses.no_heartbeat,
    },
    {
        "get nodes": losses.no_node_read,
        "patch configmaps": losses.no_relay_changes,
        "get pods": losses.no_look_at_a_pod,
    },
    {"create nodes": losses.no_node_made},
)
"""Missed by a process that starts without them, and made good at the latest by the next one."""

LEAVING: Final[tuple[Table, ...]] = (
    {"create pods/eviction": losses.no_evictions},
    {"delete nodes": losses.no_node_deleted},
    {f"delete leases.coordination.k8s.io {NODE} in kube-node-lease": losses.no_heartbeat_deleted},
)
"""Missed by `gp4u node decommission`."""

ALL: Final = (*RUNNING, *LEADING, *STARTING, *LEAVING)
ROWS: Final = [row for table in ALL for row in table]
RIGHTS: Final = granted(every_right(NODE))


class Robbery:
    """Takes the rights of tables away, and keeps what went otherwise than their rows say."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.process = scene, scene.least.process
        self.wrong: dict[str, str] = {}
        self._plays: dict[str, Iterator[None]] = {}
        """Of what is still to be made good."""

    def take(self, table: Table, *, restarting: bool = False) -> None:
        """Take all rights of a table, see that each is missed, and give them back."""
        plays = {row: loss(self.scene) for row, loss in table.items()}
        if restarting:
            self.process.end(signal.SIGTERM)
        self.scene.told, self.scene.since = "", len(self.process.said)
        with self.scene.least.without([RIGHTS[row] for row in table]):
            self._act("before the loss", plays)
            if restarting:
                self.process.start()
            for row in table:
                self._judge(row, "it is not missed", partial(self._named, RIGHTS[row]))
            self._act("the loss", plays)
            assert self.process.is_running, self.process.tail()
        self._plays |= plays

    def make_good(self) -> None:
        """See that nothing is missed any more."""
        self._act("the healing", self._plays)
        self._plays.clear()

    def restart(self) -> None:
        """Start the process anew, with all its rights."""
        self.process.end(signal.SIGTERM)
        self.scene.since = len(self.process.said)
        self.process.start()

    def _named(self, right: Right) -> None:
        said = self.scene.said
        self.scene.until(lambda: right.denied_in(said()), f"the node to be denied to {right}")

    def _act(self, name: str, plays: Mapping[str, Iterator[None]]) -> None:
        for row, play in plays.items():
            self._judge(row, name, partial(next, play, None))

    def _judge(self, row: str, name: str, what: Callable[[], object]) -> None:
        if row in self.wrong:
            return
        try:
            what()
        except AssertionError as error:
            self.wrong[row] = f"{name}: {error}"


@pytest.fixture(scope="module")
def wrong(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Take every right away; return what went otherwise than the tables say, by row."""
    env = {"GP4U_NODE_LEADER_ELECTION": "1", "GP4U_NODE_SELF_APPROVE": "1"}
    env |= {"GP4U_NODE_SERVICE_VARIABLES": "1", "GP4U_NODE_RELAY_IMAGE": "registry.test/gp4u:1"}
    least = Least(plane, tmp_path_factory.mktemp("least"), node=NODE, **env)
    try:
        plane.apply(*least.rights, losses.live(WEIGHTS))
        least.start()
        scene = Scene(least)
        scene.begin()
        robbery = Robbery(scene)
        for table in RUNNING:
            robbery.take(table)
        robbery.make_good()
        for table in LEADING:
            robbery.take(table)
        robbery.make_good()
        for table in STARTING:
            robbery.take(table, restarting=True)
        robbery.restart()
        robbery.make_good()
        for table in LEAVING:
            robbery.take(table)
        robbery.make_good()
        least.clear()
        sold = [each for bill in least.stop().values() for each in bill.contracts]
        assert [each for each in sold if each.open] == [], "something was left behind"
    finally:
        least.kill()
        gone = ("--ignore-not-found", "--wait=false")
        plane.admitted("delete", "configmap", WEIGHTS, PREFERENCES, "-n", NAMESPACE, *gone)
        plane.admitted("delete", "clusterrolebinding", losses.VISITOR, *gone)
    return robbery.wrong


def test_the_tables_have_every_right_that_the_chart_gives() -> None:
    """A right that nobody misses is one that somebody else will use; one row is one right."""
    assert RIGHTS.keys() - set(ROWS) == set(), "given, and nobody is seen to miss them"
    assert set(ROWS) - RIGHTS.keys() == set(), "missed, and not given"
    assert len(ROWS) == len(set(ROWS))


@pytest.mark.parametrize("row", ROWS)
def test_a_right_that_is_taken_away_is_missed_by_name_and_comes_back(
    row: str, wrong: dict[str, str]
) -> None:
    """K12: denied is no crash; what fails is named, the rest goes on, and it heals."""
    assert row not in wrong, wrong[row]
