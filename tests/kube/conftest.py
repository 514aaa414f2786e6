"""One control plane per version for all tests of a run, and what it said beside each failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from tests.kube.controlplane import ControlPlane, control_plane
from tests.kube.programs import NEWEST, OLDEST, require_namespace
from tests.kube.town import Ground, Town, town

NODE = "vast-gpu-node-1"
pytest.register_assert_rewrite("tests.kube.losses")  # its asserts are those of tests


@pytest.fixture(scope="session")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ControlPlane]]:
    """Give the control plane of a version, started when it is first asked for."""
    require_namespace()
    with ExitStack() as stack:

        @cache
        def find(version: str) -> ControlPlane:
            folder = tmp_path_factory.mktemp(f"kubernetes-{version}")
            return stack.enter_context(control_plane(folder, version=version))

        yield find


@pytest.fixture(scope="session")
def towns(
    planes: Callable[[str], ControlPlane], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Town]]:
    """Give the node over Vast.ai that most tests share, one per version, made when first asked."""
    with ExitStack() as stack:

        @cache
        def find(version: str) -> Town:
            folder = tmp_path_factory.mktemp(f"vast-{version}")
            return stack.enter_context(town(planes(version), folder, node=NODE))

        yield find


@pytest.fixture(scope="session")
def plane(planes: Callable[[str], ControlPlane]) -> ControlPlane:
    """The newest Kubernetes."""
    return planes(NEWEST)


@pytest.fixture(scope="session")
def oldest_plane(planes: Callable[[str], ControlPlane]) -> ControlPlane:
    """The oldest Kubernetes that is tested."""
    return planes(OLDEST)


@pytest.fixture
def vast(towns: Callable[[str], Town], request: pytest.FixtureRequest) -> Town:
    """The shared node of the newest version, or of the one that the test is parametrized with."""
    return towns(getattr(request, "param", NEWEST))


@pytest.fixture
def ground(vast: Town, request: pytest.FixtureRequest) -> Iterator[Ground]:
    """A namespace for one test of the shared node."""
    words = request.node.name.removeprefix("test_").split("[")[0].split("_")
    made = vast.namespace("-".join(words)[:40].rstrip("-"))
    yield made
    made.leave()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Put what the processes said last beside a failure: their files may be gone by then."""
    report: pytest.TestReport = yield  # type: ignore[assignment] # a wrapper is sent it
    if report.failed and isinstance(item, pytest.Function):
        for name, value in item.funcargs.items():
            if isinstance(value, Ground):
                report.sections.append((f"node of {name}", value.town.said()))
            elif isinstance(value, Town):
                report.sections.append((f"node of {name}", value.said()))
    return report  # type: ignore[return-value] # a wrapper hands it on
