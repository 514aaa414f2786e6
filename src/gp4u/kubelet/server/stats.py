"""`/stats/summary` and `/metrics/resource`: what node and pods use, for metrics-server and HPA.

The text is written by hand, because stamps and the order of labels matter to those who read it.
The node's figures are this process's own: nothing else runs on it. What is not known is left out,
never 0. Pure but for the reading of this process's own accounting.

Source: kubernetes pkg/kubelet/metrics/collectors/resource_metrics.go and
staging/src/k8s.io/kubelet/pkg/apis/stats/v1alpha1/types.go, 1.32; checked 2026-11.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from gp4u.kubelet.held import ContainerState, Held, Run
from gp4u.kubelet.server.sampling import Key, Sample, keys_of

_NS: Final = 1_000_000_000
_STATM: Final = Path("/proc/self/statm")
_TABLE: Final = (
    ("node_cpu_usage_seconds_total", "counter", "CPU time used by the node in seconds"),
    ("node_memory_working_set_bytes", "gauge", "Working set of the node in bytes"),
    ("pod_cpu_usage_seconds_total", "counter", "CPU time used by the pod in seconds"),
    ("pod_memory_working_set_bytes", "gauge", "Working set of the pod in bytes"),
    ("container_cpu_usage_seconds_total", "counter", "CPU time used by the container in seconds"),
    ("container_memory_working_set_bytes", "gauge", "Working set of the container in bytes"),
    ("container_start_time_seconds", "gauge", "Start of the container since the epoch in seconds"),
    ("resource_scrape_error", "gauge", "1 if there was an error while reading, 0 otherwise"),
)


class Usage(Struct, frozen=True):
    """What this process uses."""

    at: datetime
    cpu_ns: int
    memory_bytes: int
    major_faults: int
    minor_faults: int


def own_usage(at: datetime) -> Usage:
    """Return what this process has used, and the memory that it holds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(_STATM.read_text().split()[1])
    cpu_ns = int((used.ru_utime + used.ru_stime) * _NS)
    return Usage(at, cpu_ns, pages * os.sysconf("SC_PAGE_SIZE"), used.ru_majflt, used.ru_minflt)


def summary(
    *,
    node_name: str,
    started_at: datetime,
    own: Usage,
    before: Usage | None,
    pods: Sequence[Held],
    samples: Mapping[Key, Sample],
    only_cpu_and_memory: bool,
) -> dict[str, Any]:
    """Return the body of `/stats/summary`; every running pod is in it, each container named.

    `before` is an earlier `own`, from which the node's rate is made.
    """
    cpu: dict[str, Any] = {"time": _time(own.at), "usageCoreNanoSeconds": own.cpu_ns}
    if before is not None and own.at > before.at:
        seconds = (own.at - before.at).total_seconds()
        cpu["usageNanoCores"] = max(0, int((own.cpu_ns - before.cpu_ns) / seconds))
    memory = {
        "time": _time(own.at),
        "usageBytes": own.memory_bytes,
        "workingSetBytes": own.memory_bytes,
        "rssBytes": own.memory_bytes,
        "pageFaults": own.minor_faults,
        "majorPageFaults": own.major_faults,
    }
    node = {
        "nodeName": node_name,
        "startTime": _time(started_at),
        "cpu": cpu,
        "memory": memory,
    }
    told = [_pod(held, samples, brief=only_cpu_and_memory) for held in pods if _running(held)]
    return {"node": node, "pods": told}


def _pod(held: Held, samples: Mapping[Key, Sample], *, brief: bool) -> dict[str, Any]:
    started = (held.pod.get("status") or {}).get("startTime")
    told: dict[str, Any] = {
        "podRef": {"name": held.name, "namespace": held.namespace, "uid": held.uid},
        "startTime": started,
        "containers": [],
    }
    of = _samples(held, samples)
    for each in _running(held):
        container: dict[str, Any] = {"name": each.name}
        if each.started_at is not None:
            container["startTime"] = _time(each.started_at)
        if each.name in of:
            container.update(_figures(of[each.name]))
        if not brief:
            container["logs"] = {}
        told["containers"].append(container)
    if of:
        told.update(_figures(_sum(list(of.values()))))
    return told


def _figures(sample: Sample) -> dict[str, Any]:
    at = _time(sample.at)
    return {
        "cpu": {"time": at, "usageCoreNanoSeconds": sample.cpu_ns},
        "memory": {"time": at, "workingSetBytes": sample.memory_bytes},
    }


def resource_text(own: Usage, pods: Sequence[Held], samples: Mapping[Key, Sample]) -> bytes:
    """Return the page of `/metrics/resource`; figures carry the moment of their reading, in ms."""
    rows: dict[str, list[str]] = {name: [] for name, _, _ in _TABLE}
    _add(rows, "node", "", own.cpu_ns, own.memory_bytes, own.at)
    for held in pods:
        of = _samples(held, samples)
        where = f'namespace="{held.namespace}",pod="{held.name}"'
        if of:
            whole = _sum(list(of.values()))
            _add(rows, "pod", where, whole.cpu_ns, whole.memory_bytes, whole.at)
        for each in _running(held):
            labels = f'container="{each.name}",pod="{held.name}",namespace="{held.namespace}"'
            if each.name in of:
                sample = of[each.name]
                _add(rows, "container", labels, sample.cpu_ns, sample.memory_bytes, sample.at)
            if each.started_at is not None:
                started = f"{{{labels}}} {each.started_at.timestamp():.3f}"
                rows["container_start_time_seconds"].append(started)
    rows["resource_scrape_error"].append(" 0")
    return "".join(_page(rows)).encode()


def _page(rows: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for name, kind, meaning in _TABLE:
        if rows[name]:
            yield f"# HELP {name} [STABLE] {meaning}\n# TYPE {name} {kind}\n"
            for row in rows[name]:
                yield f"{name}{row}\n"


def _add(
    rows: dict[str, list[str]], of: str, labels: str, cpu_ns: int, memory: int, at: datetime
) -> None:
    where = f"{{{labels}}}" if labels else ""
    at_ms = int(at.timestamp() * 1000)
    rows[f"{of}_cpu_usage_seconds_total"].append(f"{where} {cpu_ns / _NS:.9f} {at_ms}")
    rows[f"{of}_memory_working_set_bytes"].append(f"{where} {memory} {at_ms}")


def _running(held: Held) -> list[ContainerState]:
    every = (*held.init_containers, *held.containers)
    return [each for each in every if each.run is Run.RUNNING]


def _samples(held: Held, samples: Mapping[Key, Sample]) -> dict[str, Sample]:
    """Return samples by container."""
    return {name: samples[key] for name, key in keys_of(held).items() if key in samples}


def _sum(of: Sequence[Sample]) -> Sample:
    return Sample(
        min(each.at for each in of),
        sum(each.cpu_ns for each in of),
        sum(each.memory_bytes for each in of),
    )


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
