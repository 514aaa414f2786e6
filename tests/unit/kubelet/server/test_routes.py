"""A kubelet's paths, and what must be allowed for each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp4u.kubelet.server.routes import INTO, Route, What, read


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/containerLogs/ns/p/c", Route(what=What.LOGS, namespace="ns", pod="p", container="c")),
        ("/exec/ns/p/c", Route(what=What.EXEC, namespace="ns", pod="p", container="c")),
        (
            "/exec/ns/p/u1/c",
            Route(what=What.EXEC, namespace="ns", pod="p", uid="u1", container="c"),
        ),
        ("/attach/ns/p/c", Route(what=What.ATTACH, namespace="ns", pod="p", container="c")),
        ("/run/ns/p/u/c", Route(what=What.RUN, namespace="ns", pod="p", uid="u", container="c")),
        ("/portForward/ns/p", Route(what=What.PORT_FORWARD, namespace="ns", pod="p")),
        ("/portForward/ns/p/u", Route(what=What.PORT_FORWARD, namespace="ns", pod="p", uid="u")),
        ("/pods", Route(what=What.PODS)),
        ("/runningpods", Route(what=What.RUNNING_PODS)),
        ("/runningpods/", Route(what=What.RUNNING_PODS)),
        ("/stats/summary", Route(what=What.SUMMARY)),
        ("/metrics/resource", Route(what=What.RESOURCE)),
        ("/healthz/ping", Route(what=What.HEALTH, rest="ping")),
        ("/logs/kern.log", Route(what=What.NODE_LOGS, rest="kern.log")),
    ],
)
def test_each_path_of_a_kubelet_is_known(path: str, wanted: Route) -> None:
    """The API server and its clients have these paths built in."""
    assert read(path) == wanted


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//pods",
        "/pods//",
        "/metrics/../exec/ns/p/c",
        "/metrics/%2e%2e/exec/ns/p/c",
        "/exec/ns/p%2fc",
        "/exec/ns/../c",
        "/exec/ns/p",
        "/exec/ns/p/u/c/more",
        "/exec/NS/p/c",
        "/containerLogs/ns/p/c\x00",
        "/containerLogs/ns/p%00/c",
        "/containerLogs/ns/p/c/uid",
        "/checkpoint/ns/p/c",
        "/debug/pprof/heap",
        "/stats",
        "/Exec/ns/p/c",
    ],
)
def test_what_could_be_read_in_two_ways_is_no_path(path: str) -> None:
    """A right for `/metrics` must not lead to a command by way of a crooked path (S11)."""
    assert read(path) is None


@given(st.text())
def test_any_text_is_read_or_refused(path: str) -> None:
    """Paths come from whoever reaches the port."""
    found = read(path)
    assert found is None or isinstance(found, Route)


@pytest.mark.parametrize("what", sorted(INTO))
def test_whoever_reaches_into_a_container_needs_create(what: What) -> None:
    """A WebSocket is a GET: to read nodes/proxy must not mean to run commands (S2)."""
    route = Route(what=what)
    assert set(route.verbs("GET")) == {"get", "create"}
    assert route.verbs("POST") == ("create",)
    assert route.subresources == ("proxy",)


@pytest.mark.parametrize(
    ("path", "subresources"),
    [
        ("/pods", ("pods", "proxy")),
        ("/runningpods/", ("pods", "proxy")),
        ("/healthz/log", ("healthz", "proxy")),
        ("/configz", ("configz", "proxy")),
        ("/stats/summary", ("stats",)),
        ("/metrics", ("metrics",)),
        ("/metrics/cadvisor", ("metrics",)),
        ("/logs/x", ("log",)),
        ("/containerLogs/ns/p/c", ("proxy",)),
    ],
)
def test_narrow_rights_are_asked_for_first(path: str, subresources: tuple[str, ...]) -> None:
    """Clusters grant monitoring `nodes/metrics` without the whole node; old ones know no more."""
    route = read(path)
    assert route is not None
    assert route.subresources == subresources
    assert route.verbs("GET") == ("get",)
