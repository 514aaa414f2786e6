"""The example that the project began with: one machine, two Services, as a user would type it."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest

from tests.kube.manifests import PROGRAM, pod, pod_spec, service
from tests.kube.programs import NEWEST, OLDEST
from tests.kube.town import Ground, until

pytestmark = pytest.mark.timeout(240)
PORTS = {"june-stt": 8001, "june-tts": 8000}


def addresses(ground: Ground, name: str) -> list[tuple[str, int, bool]]:
    """Return address, port and readiness of each endpoint of a Service."""
    found = ground.items("endpointslices", "-l", f"kubernetes.io/service-name={name}")
    return [
        (address, each["ports"][0]["port"], endpoint["conditions"]["ready"])
        for each in found
        for endpoint in each["endpoints"] or []
        for address in endpoint["addresses"]
    ]


@pytest.mark.parametrize("vast", [NEWEST, OLDEST], indirect=True)
def test_june_speaks_and_listens_on_one_rented_machine(ground: Ground) -> None:
    """Pod to endpoint, whole: why this machine, where it answers, and gone when it is deleted."""
    services = [service(name, port, pod="june") for name, port in PORTS.items()]
    env = {f"GP4U_SERVICE_{port}": name for name, port in PORTS.items()}
    spec = pod_spec(ground.town.node, PROGRAM, ports=list(PORTS.values()), env=env)
    ground.apply(*services, pod("june", spec, annotations={"max-price": "2.50"}))
    running = ground.wait_ready("june")
    assert running["status"]["phase"] == "Running"
    described = ground.describe("pod", "june")
    assert re.search(r"OfferSelected.*vastai.*\$?\d+\.\d+", described), described
    for name, port in PORTS.items():

        def is_ready(name: str = name) -> bool:
            return [ready for _, _, ready in addresses(ground, name)] == [True]

        until(is_ready, f"the endpoint of {name}", lambda: ground.town.said())
        [(address, host_port, _)] = addresses(ground, name)
        assert address == "203.0.113.45"
        url = f"http://{address}:{host_port}/health"
        with urllib.request.urlopen(url, timeout=20) as reply:
            answer = json.load(reply)
        assert (answer["service"], answer["port"]) == (name, port)
        seed = rf"{name}\.{ground.name}\.svc\.cluster\.local:{port} → {address}:{host_port}"
        ground.town.process.hear(seed)
    ground.admitted("delete", "pod", "june", "--wait=false")
    until(
        lambda: not any(addresses(ground, name) for name in PORTS),
        "the endpoints to be withdrawn",
        lambda: ground.town.said(),
    )
    until(lambda: ground.find("pod", "june") is None, "the pod to go")
