"""What a job asks for, what it cannot ask for, and the form in which it is hashed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gp4u.errors import BadInput
from gp4u.model import Container, Offer, Port, Protocol, RentalKey, Workload
from gp4u.providers.render.adapter import DISPERSED_URL, SEED_URL, dispersed_url, flavor_of
from gp4u.providers.render.job import job_body
from gp4u.providers.render.signing import canonical_body

KEY = RentalKey("gp4u-abc-def-ghi")
OFFER = Offer(
    provider="render",
    offer_id="off_1@us-west-2/3fa85f64-5717",
    gpu_model="RTX 4090",
    gpu_count=1,
    vram_gib=24.0,
    price_usd_per_hour=Decimal("0.35"),
    gpu_usd_per_hour=Decimal(0),
    storage_usd_per_hour=Decimal("0.35"),
    fetched_at=datetime(2026, 11, 1, tzinfo=UTC),
    cpu_cores=15.9,
    ram_gib=63.7,
    disk_gib=500,
)
WORKLOAD = Workload(
    image="ghcr.io/someone/app:1.2",
    env={"B": "2", "A": "line\nline"},
    ports=(Port(number=8000), Port(number=22)),
    disk_gib=20.5,
)
PAYLOADS = Path(__file__).parents[3] / "payloads" / "render"


def body(**changes: Any) -> Any:
    """Return the body for a changed workload."""
    return job_body(OFFER, msgspec.structs.replace(WORKLOAD, **changes), KEY)


def test_a_job_pins_the_offer_and_opens_its_ports() -> None:
    """Type, number and place as offered; minimums never above what was offered."""
    made = body()
    assert made["gpu_registry_uuid"] == "3fa85f64-5717"
    assert "gpu_name" not in made
    assert made["allowed_region_codes"] == ["us-west-2"]
    assert (made["cpu_count"], made["min_ram_gb"], made["min_vram_gb"]) == (15, 63, 22)
    assert made["min_storage_gb"] == 21
    docker = made["parameters"]["parameters"]
    assert (docker["host"], docker["image"], docker["tag"]) == ("ghcr.io", "someone/app", "1.2")
    assert docker["ports"] == [22, 8000]
    assert docker["allowed_ips"] == ["0.0.0.0/0"]


def test_a_job_runs_until_it_is_cancelled_within_the_documented_bounds() -> None:
    """PERSISTENT must have no run time; 5 and 2 minutes are the least of the other two."""
    made = body()
    assert (made["task"], made["max_timeout_run_ms"]) == ("PERSISTENT", None)
    assert made["max_timeout_assign_ms"] >= 300_000
    assert made["max_timeout_start_ms"] >= 120_000
    assert (made["max_node_count"], made["max_retry_count"]) == (1, 0)


def test_a_job_has_the_fields_of_the_markets_own_example_and_a_few_documented_more() -> None:
    """The example is known to work; what it has and we lack would be a guess."""
    example = json.loads((PAYLOADS / "dispersed-job-persistent.json").read_text())
    made = body()
    assert example.keys() <= made.keys()
    assert made.keys() - example.keys() == {
        "allowed_region_codes",
        "gpu_registry_uuid",
        "min_ram_gb",
    }
    assert example["parameters"]["parameters"].keys() == made["parameters"]["parameters"].keys()


def test_the_encoded_body_is_its_own_canonical_form() -> None:
    """The encoder sends what the signer hashes, byte by byte."""
    encoded = msgspec.json.encode(body())
    assert canonical_body(encoded) == encoded


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("nginx", ("", "nginx", "latest")),
        ("nginx:1.27", ("", "nginx", "1.27")),
        ("someone/app", ("", "someone/app", "latest")),
        ("localhost/app:1", ("localhost", "app", "1")),
        ("registry.example:5000/a/b:c", ("registry.example:5000", "a/b", "c")),
    ],
)
def test_an_image_is_said_in_three_parts(image: str, parts: tuple[str, str, str]) -> None:
    """A port of a registry is no tag."""
    docker = body(image=image)["parameters"]["parameters"]
    assert (docker["host"], docker["image"], docker["tag"]) == parts


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"command": ("serve",)}, "command"),
        ({"beside": (Container(name="b", image="x"),)}, "containers"),
        ({"ports": (Port(number=53, protocol=Protocol.UDP),)}, "port"),
        ({"ports": tuple(Port(number=n) for n in range(1, 22))}, "port"),
        ({"env": {"A": "grün"}}, "env"),
        ({"env": {"Ä": "x"}}, "env"),
        ({"env": {"": "x"}}, "env"),
        ({"env": {"A": "\x7f"}}, "env"),
        ({"image": ""}, "image"),
        ({"image": "a b"}, "image"),
        ({"image": "app@sha256:" + "0" * 64}, "image"),
        ({"image": "app:"}, "image"),
        ({"image": "a/app:1/2"}, "image"),
    ],
)
def test_what_the_market_cannot_take_is_told_by_name(changes: Any, field: str) -> None:
    """Before anything is written down, and before any money."""
    with pytest.raises(BadInput) as caught:
        body(**changes)
    assert caught.value.field == field


def test_an_offer_that_cannot_be_pinned_is_not_rented() -> None:
    """The job would be put on whatever has as many GPUs."""
    with pytest.raises(BadInput, match="GPU type"):
        job_body(msgspec.structs.replace(OFFER, offer_id="off_1"), WORKLOAD, KEY)


@pytest.mark.parametrize(
    ("chosen", "base_url", "has_secret", "flavor"),
    [
        ("auto", SEED_URL, True, "dispersed"),
        ("auto", SEED_URL, False, "legacy"),
        ("auto", "https://api.dispersed.com", False, "dispersed"),
        ("auto", "https://api.compute.x.io", False, "dispersed"),
        ("auto", "https://notdispersed.com", False, "legacy"),
        ("legacy", "https://api.dispersed.com", True, "legacy"),
        ("dispersed", SEED_URL, False, "dispersed"),
    ],
)
def test_auto_means_the_real_market_where_its_keys_or_its_address_are_set(
    chosen: str, base_url: str, has_secret: bool, flavor: str
) -> None:
    """The seed's own variables must go on meaning what they meant."""
    assert flavor_of(chosen, base_url=base_url, has_secret=has_secret) == flavor


@pytest.mark.parametrize(
    ("configured", "url"),
    [
        (SEED_URL, DISPERSED_URL),
        ("https://api.compute.x.io", "https://api.compute.x.io"),
        ("http://127.0.0.1:9000/v1", "http://127.0.0.1:9000"),
        ("http://127.0.0.1:9000/v1/", "http://127.0.0.1:9000"),
    ],
)
def test_the_default_address_gives_way_to_the_real_one(configured: str, url: str) -> None:
    """The seed's default address belongs to no service of the market's."""
    assert dispersed_url(configured) == url
