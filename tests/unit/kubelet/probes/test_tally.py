"""What `/metrics/probes` tells: the page of a kubelet."""

from __future__ import annotations

import asyncio
from functools import partial

from gp4u.errors import Unavailable
from gp4u.kubelet.probes.calls import Answer
from gp4u.kubelet.probes.probing import Kind
from gp4u.kubelet.probes.tally import ProbeTally
from tests.unit.kubelet.probes.test_probing import by_command, container, probing
from tests.unit.kubelet.shown import pod
from tests.virtual_loop import run_virtual

WHO = 'container="app",namespace="default",pod="june",pod_uid="uid-1"'


def rows(tally: ProbeTally) -> dict[str, int]:
    """Labels to their count."""
    lines = [line for line in tally.text().decode().splitlines() if not line.startswith("#")]
    found = [line.removeprefix("prober_probe_total").rpartition(" ") for line in lines]
    return {labels.strip("{}"): int(number) for labels, _, number in found}


def test_every_result_is_counted_under_the_names_that_a_kubelet_uses() -> None:
    """Alerts that people have for their kubelets shall do for this node."""

    async def story() -> None:
        tally = ProbeTally()
        spec = container(
            startup=by_command(), readiness=by_command(), liveness=by_command(failureThreshold=9)
        )
        count = partial(tally.count, pod(), "app")
        async with probing(spec, count=count) as work:
            await asyncio.sleep(25)
            work.code = 1
            await asyncio.sleep(20)
            work.code = Unavailable("shown", "exec", "is away")
            await asyncio.sleep(10)
        assert rows(tally) == {
            f'{WHO},probe_type="Startup",result="successful"': 1,
            f'{WHO},probe_type="Readiness",result="successful"': 3,
            f'{WHO},probe_type="Readiness",result="failed"': 2,
            f'{WHO},probe_type="Readiness",result="unknown"': 1,
            f'{WHO},probe_type="Liveness",result="successful"': 3,
            f'{WHO},probe_type="Liveness",result="failed"': 2,
            f'{WHO},probe_type="Liveness",result="unknown"': 1,
        }

    run_virtual(story)


def test_the_page_can_be_read_by_prometheus() -> None:
    """One head, then a row for each; a page without rows has no head either."""
    tally = ProbeTally()
    assert tally.text() == b""
    tally.count(pod(), "app", Kind.LIVENESS, Answer("refused"))
    head, kind, row = tally.text().decode().splitlines()
    assert head.startswith("# HELP prober_probe_total ")
    assert kind == "# TYPE prober_probe_total counter"
    assert row == f'prober_probe_total{{{WHO},probe_type="Liveness",result="failed"}} 1'


def test_counts_go_with_their_pod() -> None:
    """Else a node that runs Jobs for a year would tell of each of them at every scrape."""
    tally = ProbeTally()
    tally.count(pod(), "app", Kind.LIVENESS, None)
    tally.count(pod("july", "uid-2"), "app", Kind.LIVENESS, None)
    tally.forget("uid-1")
    tally.forget("uid-1")
    (row,) = rows(tally)
    assert 'pod="july"' in row
