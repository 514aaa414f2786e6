"""The demo where a container engine answers: the same story, with real containers."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.podman import IMAGE, service
from tests.e2e.processes import Desk


def test_the_demo_rents_real_containers_where_an_engine_answers(tmp_path: Path) -> None:
    """`auto` takes containers where it can, and a container's port is really mapped."""
    with service() as socket:
        desk = Desk(None, tmp_path, DOCKER_HOST=f"unix://{socket}")
        done = desk.gp4u("demo", "--once", "-o", "json", "--image", IMAGE)

    assert done.code == 0, done
    assert "containers" in done.err
    answer = done.json
    assert [(e["name"], e["status"]) for e in answer["endpoints"]] == (
        [("june-stt", 200), ("june-tts", 200)]
    )
    assert answer["rental"]["state"] == "released"
    assert answer["cost_usd"] == answer["meter_usd"]
    assert answer["leaked"] == 0
