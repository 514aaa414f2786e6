"""What io.net is told, and what is refused before anything is sent."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gp4u.errors import BadInput
from gp4u.model import Container, Port, Protocol, RentalKey, Workload
from gp4u.providers.ionet.legacy import dialect, headers
from gp4u.providers.ionet.order import Product, Sold, create_call, price_call, sold

CONTAINER = Sold(Product.CAAS, 203, 1, "US", 1)
MACHINE = Sold(Product.VMAAS, "B200_sxm6x8", 8, "AU", None)
KEY = RentalKey("gp4u-abcd-abcdefghij-klmnopqrst")
WEB = Workload(image="org/app:1", ports=(Port(number=8000),))
VM = Workload(image="vm:general", env={"SSH_PUBLIC_KEY": "ssh-ed25519 AAAA"})


def changed(workload: Workload, **changes: Any) -> Workload:
    """Return the workload with some of its fields changed."""
    fields = {name: getattr(workload, name) for name in workload.__struct_fields__}
    return Workload(**{**fields, **changes})


def test_a_container_is_ordered_by_name_for_one_hour() -> None:
    """The key is the name, which is unique: that is how a lost reply is settled."""
    call = create_call("https://x", CONTAINER, WEB, KEY)
    assert (call.method, call.url) == ("POST", "https://x/caas/deploy")
    assert call.body == {
        "resource_private_name": KEY,
        "duration_hours": 1,
        "gpus_per_container": 1,
        "hardware_id": 203,
        "location_ids": [1],
        "container_config": {
            "replica_count": 1,
            "traffic_port": 8000,
            "secret_env_variables": {},
        },
        "registry_config": {"image_url": "org/app:1"},
    }


def test_the_command_is_the_entrypoint_and_a_dollar_is_doubled() -> None:
    """`args` is dropped by the market, and `$HOME` would be filled in by its scheduler."""
    work = changed(WEB, command=("sh", "-c", "echo $HOME$$"))
    body = create_call("https://x", CONTAINER, work, KEY).body
    assert body is not None
    config: Any = body["container_config"]
    assert config["entrypoint"] == ["sh", "-c", "echo $$HOME$$$$"]
    assert "args" not in config


def test_every_variable_is_sent_as_a_secret_one() -> None:
    """The plain ones can be read back by whoever can read the account."""
    body = create_call("https://x", CONTAINER, changed(WEB, env={"TOKEN": "t"}), KEY).body
    assert body is not None
    config: Any = body["container_config"]
    assert config["secret_env_variables"] == {"TOKEN": "t"}
    assert "env_variables" not in config


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"ports": ()}, "port"),
        ({"ports": (Port(number=1), Port(number=2))}, "port"),
        ({"ports": (Port(number=53, protocol=Protocol.UDP),)}, "port"),
        ({"beside": (Container(name="b", image="b"),)}, "containers"),
        ({"image": "1.dkr.ecr.us-east-1.amazonaws.com/x"}, "image"),
        ({"image": "vm:general"}, "image"),
    ],
)
def test_what_a_container_cannot_carry_is_refused_by_name(
    changes: dict[str, Any], field: str
) -> None:
    """Before an intent is written and before money."""
    with pytest.raises(BadInput) as caught:
        create_call("https://x", CONTAINER, changed(WEB, **changes), KEY)
    assert caught.value.field == field


def test_a_bare_machine_gets_its_ports_and_its_ssh_key() -> None:
    """That is all a virtual machine can be told."""
    ports = (Port(number=22), Port(number=53, protocol=Protocol.UDP))
    call = create_call("https://x", MACHINE, changed(VM, ports=ports), KEY)
    assert call.url == "https://x/vmaas/deploy"
    assert call.body == {
        "resource_private_name": KEY,
        "duration_hours": 1,
        "gpus_per_vm": 8,
        "hardware_id": "B200_sxm6x8",
        "location_ids": ["AU"],
        "vm_image_type": "general",
        "ssh_keys": {"gp4u": "ssh-ed25519 AAAA"},
        "network_services": {
            "p22-tcp": {"port": 22, "protocol": "tcp", "whitelist": ["0.0.0.0/0"]},
            "p53-udp": {"port": 53, "protocol": "udp", "whitelist": ["0.0.0.0/0"]},
        },
    }


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"image": "org/app:1"}, "image"),
        ({"command": ("sh",)}, "image"),
        ({"beside": (Container(name="b", image="b"),)}, "image"),
        ({"env": {}}, "env"),
        ({"env": {"SSH_PUBLIC_KEY": "x", "TOKEN": "y"}}, "env"),
        ({"ports": tuple(Port(number=n) for n in range(1, 34))}, "port"),
    ],
)
def test_a_machine_that_could_not_run_the_workload_is_refused_before_money(
    changes: dict[str, Any], field: str
) -> None:
    """Nothing here logs into a machine to start a container; it would be paid for and idle."""
    with pytest.raises(BadInput) as caught:
        create_call("https://x", MACHINE, changed(VM, **changes), KEY)
    assert caught.value.field == field


def test_a_price_call_has_its_locations_as_json_text() -> None:
    """In the query a text, in the body a list: the documents differ."""
    query = parse_qs(urlsplit(price_call("https://x", CONTAINER).url).query)
    assert query == {
        "location_ids": ["[1]"],
        "hardware_id": ["203"],
        "gpus_per_container": ["1"],
        "duration_hours": ["1"],
        "replica_count": ["1"],
    }
    query = parse_qs(urlsplit(price_call("https://x", MACHINE).url).query)
    assert query["location_ids"] == ['["AU"]']
    assert query["gpus_per_vm"] == ["8"]


@pytest.mark.parametrize(
    ("flavor", "base_url", "spoken"),
    [
        ("auto", "https://api.io.net/v1", "legacy"),
        ("auto", "https://api.io.solutions/enterprise/v1/io-cloud", "auto"),
        ("auto", "https://api.io.net.example.com/v1", "auto"),
        ("legacy", "https://api.io.solutions/enterprise/v1/io-cloud", "legacy"),
        ("vmaas", "https://api.io.net/v1", "vmaas"),
    ],
)
def test_the_dialect_follows_the_flavour_and_then_the_host(
    flavor: str, base_url: str, spoken: str
) -> None:
    """An address from the seed speaks the seed's dialect, unless told otherwise."""
    assert dialect(flavor, base_url) == spoken
    carried = headers("k", flavor, base_url)
    assert carried["x-api-key"] == "k"
    assert ("authorization" in carried) == (spoken == "legacy")


def test_an_unknown_flavour_names_the_variable() -> None:
    """Whoever mistyped it must find it."""
    with pytest.raises(BadInput, match="IONET_API_FLAVOR"):
        dialect("ray", "https://api.io.net/v1")


@pytest.mark.parametrize("hardware", [203, "203", "8H100.80S.176V", "B200_sxm6x8"])
@pytest.mark.parametrize("place", [None, 7])
def test_an_offers_id_carries_all_that_renting_needs(
    hardware: int | str, place: int | None
) -> None:
    """Numbers stay numbers and texts stay texts: the market takes the other for unknown."""
    whole = Sold(Product.CAAS, hardware, 8, "US", place)
    back = sold(whole.offer_id)
    assert back == whole
    assert type(back.hardware) is type(hardware)
    assert whole.locations == (["US"] if place is None else [7])


@pytest.mark.parametrize("text", ["", "203", "caas:203", "caas:203x1@us", "xaas:203x1@US"])
def test_another_offers_id_is_refused_by_name(text: str) -> None:
    """An id of another market or release must not become a hardware id."""
    with pytest.raises(BadInput, match="offer"):
        sold(text)
