"""How the probes of a node's containers went, as `/metrics/probes` tells it.

Hides the shape of that page, which is a kubelet's: dashboards and alerts of others read it. Counts
go with the pod that they are about.

Source: kubernetes pkg/kubelet/prober/prober_manager.go (`ProberResults`), 1.32; checked 2026-11.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from gp4u.kubelet.held import PodObject
from gp4u.kubelet.probes.calls import Answer
from gp4u.kubelet.probes.probing import Kind

NAME: Final = "prober_probe_total"
_HEAD: Final = (
    f"# HELP {NAME} Results of startup, readiness and liveness probes of containers\n"
    f"# TYPE {NAME} counter\n"
)


class Result(StrEnum):
    """How one probe went."""

    SUCCESSFUL = "successful"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """The question could not be put, so it counts neither for nor against the container."""


class ProbeTally:
    """Counts for all pods of one node; whatever process of it leads, from its own start on."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[tuple[str, ...]]] = {}
        """Pod UID to its rows: container, namespace, pod, UID, kind of probe, result."""

    def count(self, pod: PodObject, container: str, kind: Kind, answer: Answer | None) -> None:
        """Take note of what a probe brought; None: nobody knows."""
        meta: Mapping[str, str] = pod["metadata"]
        row = (container, meta["namespace"], meta["name"], meta["uid"])
        how = (kind.capitalize(), _result(answer).value)
        self._counts.setdefault(meta["uid"], Counter())[(*row, *how)] += 1

    def forget(self, uid: str) -> None:
        """Drop what is counted of a pod that is gone."""
        self._counts.pop(uid, None)

    def text(self) -> bytes:
        """Return the page, in the text format of Prometheus."""
        lines = [
            f"{NAME}{{{_labels(row)}}} {number}\n"
            for counts in self._counts.values()
            for row, number in sorted(counts.items())
        ]
        return "".join((_HEAD, *lines)).encode() if lines else b""


_LABELS: Final = ("container", "namespace", "pod", "pod_uid", "probe_type", "result")


def _labels(row: tuple[str, ...]) -> str:
    # Names are DNS labels, and still they are quoted: JSON escapes what the format wants escaped.
    return ",".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}"
        for name, value in zip(_LABELS, row, strict=True)
    )


def _result(answer: Answer | None) -> Result:
    if answer is None:
        return Result.UNKNOWN
    return Result.FAILED if answer.problem else Result.SUCCESSFUL
