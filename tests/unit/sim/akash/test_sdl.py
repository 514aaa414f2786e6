"""The market's reader of SDL: what it takes, what it refuses, and what the chain makes of it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from gp4u.sim.akash.sdl import SdlError, group_spec, read_sdl
from tests.unit.sim.akash.dialect import SDL

PAYLOADS = Path(__file__).parents[3] / "payloads" / "akash"


def test_a_clean_text_becomes_a_group() -> None:
    """Everything that a host needs to run it."""
    (group,) = read_sdl(SDL)
    (service,) = group.services
    assert (group.name, group.ceiling) == ("gp4u-key", Decimal(2000))
    assert (service.image, service.args, service.env) == ("busybox:1.36", ("serve",), {"A": "b"})
    assert (service.cpu_milli, service.memory, service.gpus) == (2000, 4 * 2**30, 1)
    assert service.cards == (("rtx3090", "", ""),)


def test_the_real_one_with_two_cards_is_taken() -> None:
    """Persistent and shared-memory volumes, a list of models."""
    (group,) = read_sdl((PAYLOADS / "sdl-2gpu-persistent-shm.yaml").read_text())
    assert group.services[0].cards == (("a100", "", ""), ("h100", "", ""))
    assert group.services[0].storage == (50 + 200 + 32) * 2**30


@pytest.mark.parametrize(
    ("name", "why"),
    [("sdl-gpu-basic.input.yaml", "uact"), ("sdl-vllm.yaml", "persistent")],
)
def test_samples_that_the_chain_takes_no_more_are_refused(name: str, why: str) -> None:
    """One is priced in AKT, one forgets that memory is not persistent."""
    with pytest.raises(SdlError, match=why):
        read_sdl((PAYLOADS / name).read_text())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('version: "2.0"', "version: 2.0"),
        ("image: busybox:1.36", "image: ''"),
        ("image: busybox:1.36", "cmd: [a]"),
        ("denom: uact", "denom: uakt"),
        ("amount: 2000", "amount: 0"),
        ("amount: 2000", "amount: 20000000"),
        ("port: 8000, as: 8000", "port: 0"),
        ("port: 8000, as: 8000", "port: 70000"),
        ("proto: tcp", "proto: sctp"),
        ("global: true", "service: nobody"),
        ("global: true", "service: app"),
        ("vendor: {nvidia", "vendor: {amd"),
        ("model: rtx3090", "model: 3090"),
        ("model: rtx3090", "model: h100, interface: sxm5"),
        ("gpu: {units: 1, attributes: {vendor: {nvidia: [{model: rtx3090}]}}}", "gpu: {units: 1}"),
        ("size: 4Gi", "size: lots"),
        ("units: 2}", "units: 999}"),
        ("count: 1", "count: 0"),
        ("storage: [{size: 10Gi}]", "storage: [{size: 1Gi, attributes: {class: ram}}]"),
        ("services:", "services: [1]\nx:"),
        ("version", "- version"),
    ],
)
def test_what_breaks_the_schema_is_refused(old: str, new: str) -> None:
    """A client must never get away here with what the real market refuses."""
    assert old in SDL
    with pytest.raises(SdlError):
        read_sdl(SDL.replace(old, new))


def test_text_that_is_none_is_refused() -> None:
    """Whatever stands in the body."""
    for text in (None, 7, "[", "just words"):
        with pytest.raises(SdlError):
            read_sdl(text)


def test_the_chain_prints_what_it_holds() -> None:
    """`quantity` where the manifest says `size`, and 18 places."""
    (group,) = read_sdl(SDL)
    (row,) = group_spec(group)["resources"]
    assert row["price"] == {"denom": "uact", "amount": "2000.000000000000000000"}
    assert row["resource"]["memory"]["quantity"]["val"] == str(4 * 2**30)
    assert row["resource"]["gpu"]["attributes"] == [
        {"key": "vendor/nvidia/model/rtx3090", "value": "true"}
    ]
    assert row["resource"]["endpoints"] == [{"kind": "RANDOM_PORT", "sequence_number": 0}]


def test_of_one_outside_number_the_first_port_is_kept() -> None:
    """TCP and UDP of one number cannot both be had."""
    both = (
        "{port: 8000, to: [{global: true}]}\n      - {port: 8000, proto: udp, to: [{global: true}]}"
    )
    line = "{port: 8000, as: 8000, proto: tcp, to: [{global: true}]}"
    (group,) = read_sdl(SDL.replace(line, both))
    assert [p.protocol for p in group.services[0].ports] == ["tcp"]
