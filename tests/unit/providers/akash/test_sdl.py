"""The SDL writer against the official samples, and what it does with a workload of ours."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from gp4u.errors import BadInput
from gp4u.model import (
    Container,
    File,
    Port,
    Protocol,
    RegistryLogin,
    RentalKey,
    Restart,
    Workload,
)
from gp4u.providers import bootstrap
from gp4u.providers.akash import sdl as akash_sdl
from gp4u.providers.akash.sdl import Wish

PAYLOADS = Path(__file__).parents[3] / "payloads" / "akash"
KEY = RentalKey("gp4u-abcde-0123456789-abcdefghij")
WISH = Wish(gpus=2, model="h100", ram="80Gi", interface="sxm", cpus=8, ram_gib=32)
WORKLOAD = Workload(image="busybox:1.36", ports=(Port(number=8000),), disk_gib=50)


def sample(name: str) -> Any:
    """Read a sample by what its name says it is."""
    text = (PAYLOADS / name).read_text()
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


def written(workload: Workload = WORKLOAD, wish: Wish = WISH, amount: int = 6000) -> Any:
    """Write an SDL as text and read it again, as the market does."""
    return yaml.safe_load(akash_sdl.to_yaml(akash_sdl.sdl(workload, KEY, wish, amount=amount)))


def test_the_official_groups_are_computed() -> None:
    """The market compares what was bid on with this; one digit off and no bid can be right."""
    sdl = sample("sdl-gpu-basic.input.yaml")
    assert akash_sdl.group_specs(sdl) == sample("sdl-gpu-basic.group-specs.json")


def test_the_official_manifest_is_computed() -> None:
    """A host refuses a manifest whose hash is not the deployment's."""
    sdl = sample("sdl-gpu-basic.input.yaml")
    assert akash_sdl.manifest(sdl) == sample("sdl-gpu-basic.manifest.json")


def test_written_text_gives_the_official_groups_and_manifest_again() -> None:
    """What is sent is text: nothing may be lost on the way through the writer."""
    sdl = yaml.safe_load(akash_sdl.to_yaml(sample("sdl-gpu-basic.input.yaml")))
    assert akash_sdl.group_specs(sdl) == sample("sdl-gpu-basic.group-specs.json")
    assert akash_sdl.manifest(sdl) == sample("sdl-gpu-basic.manifest.json")


def test_a_workload_gives_the_official_manifest_but_for_its_own_names() -> None:
    """The same program through our own writer: equal but for names, unit of money and port 80."""
    wish = Wish(gpus=1, model="rtx3080", cpus=1, ram_gib=2)
    workload = Workload(
        image="tensorflow/tensorflow:latest-gpu", ports=(Port(number=8080),), disk_gib=10
    )
    (group,) = akash_sdl.manifest(written(workload, wish, 1000))
    (official,) = sample("sdl-gpu-basic.manifest.json")
    (service,), (theirs,) = group["services"], official["services"]
    assert group["name"] == KEY
    theirs["name"] = akash_sdl.MAIN
    theirs["expose"][0]["externalPort"] = 8080
    theirs["resources"]["endpoints"] = [{"kind": 1, "sequence_number": 0}]
    assert service == theirs
    (spec,) = akash_sdl.group_specs(written(workload, wish, 1000))
    (group,) = sample("sdl-gpu-basic.group-specs.json")
    group |= {
        "name": KEY,
        "requirements": {"signed_by": {"all_of": None, "any_of": None}, "attributes": None},
    }
    group["resources"][0]["price"]["denom"] = "uact"
    group["resources"][0]["resource"]["endpoints"] = [{"kind": 1, "sequence_number": 0}]
    assert spec == group


def real(
    service: str, image: str, script: str, env: list[str] | None, resource: dict[str, Any]
) -> tuple[list[Any], list[Any]]:
    """Return the groups and the manifest of a real SDL with one service on port 8000."""
    group = {
        "name": "dcloud",
        "requirements": {"signed_by": {"all_of": None, "any_of": None}, "attributes": None},
        "resources": [
            {
                "resource": resource,
                "count": 1,
                "price": {"denom": "uact", "amount": "1000000.000000000000000000"},
            }
        ],
    }
    (official,) = sample("sdl-gpu-basic.manifest.json")
    (theirs,) = official["services"]
    theirs |= {
        "name": service,
        "image": image,
        "command": ["bash", "-c"],
        "args": [script],
        "env": env,
        "resources": resource,
    }
    theirs["expose"][0] |= {"port": 8000, "externalPort": 8000}
    return [group], [{"name": "dcloud", "services": [theirs]}]


def resource(cpus: str, gib: int, storage: list[Any], gpus: str, *models: str) -> dict[str, Any]:
    """Return resources as the chain prints them."""
    return {
        "id": 1,
        "cpu": {"units": {"val": cpus}},
        "memory": {"size": {"val": str(gib * 2**30)}},
        "storage": storage,
        "gpu": {
            "units": {"val": gpus},
            "attributes": [
                {"key": f"vendor/nvidia/model/{model}", "value": "true"} for model in models
            ],
        },
        "endpoints": [{"kind": 1, "sequence_number": 0}],
    }


def volume(name: str, gib: int, **attributes: str) -> dict[str, Any]:
    """Return a volume as the chain prints it."""
    made: dict[str, Any] = {"name": name, "size": {"val": str(gib * 2**30)}}
    if attributes:
        made["attributes"] = [{"key": key, "value": attributes[key]} for key in sorted(attributes)]
    return made


def test_a_real_sdl_of_any_model_gives_whole_groups_and_manifest() -> None:
    """It leaves `nvidia:` empty and forgets `persistent`, as many do; a reader must not crash."""
    sdl = sample("sdl-vllm.yaml")
    storage = [volume("default", 80), {**volume("shm", 10, **{"class": "ram"})}]
    groups, manifest = real(
        "vllm",
        "vllm/vllm-openai:v0.4.0.post1",
        "huggingface-cli download MaziyarPanahi/WizardLM-2-7B-AWQ && /usr/bin/python3 -m "
        "vllm.entrypoints.openai.api_server --model MaziyarPanahi/WizardLM-2-7B-AWQ",
        ["HUGGING_FACE_HUB_TOKEN=hf_********************", "VLLM_API_KEY=MYPASSWORD"],
        resource("16000", 100, storage, "1", "*"),
    )
    for document in (sdl, yaml.safe_load(akash_sdl.to_yaml(sdl))):
        assert akash_sdl.group_specs(document) == groups
        assert akash_sdl.manifest(document) == manifest


def test_a_real_sdl_with_volumes_gives_whole_groups_and_manifest() -> None:
    """Two cards of either model, a persistent volume and shared memory, mounted in the manifest."""
    sdl = sample("sdl-2gpu-persistent-shm.yaml")
    storage = [
        volume("default", 50),
        volume("data", 200, **{"class": "beta3", "persistent": "true"}),
        volume("shm", 32, **{"class": "ram", "persistent": "false"}),
    ]
    groups, manifest = real(
        "sglang1",
        "lmsysorg/sglang:v0.4.1.post4-cu124-srt",
        "python3 -m sglang.launch_server --model deepseek-ai/DeepSeek-R1-Distill-Llama-70B --tp 2 "
        "--trust-remote-code --host 0.0.0.0 --port 8000",
        None,
        resource("32000", 128, storage, "2", "a100", "h100"),
    )
    manifest[0]["services"][0]["params"] = {
        "storage": [
            {"name": "data", "mount": "/data/.cache", "readOnly": False},
            {"name": "shm", "mount": "/dev/shm", "readOnly": False},  # noqa: S108 - the sample's
        ]
    }
    for document in (sdl, yaml.safe_load(akash_sdl.to_yaml(sdl))):
        assert akash_sdl.group_specs(document) == groups
        assert akash_sdl.manifest(document) == manifest


def test_the_key_is_the_placement_and_the_group() -> None:
    """It is the only text of ours that reaches the chain; a lost rental is found by it."""
    sdl = written()
    assert list(sdl["profiles"]["placement"]) == [KEY]
    assert [group["name"] for group in akash_sdl.group_specs(sdl)] == [KEY]


def test_the_hardware_that_was_wished_for_is_asked_for() -> None:
    """Sizes in the chain's own units: milli-CPU and bytes, and the card with memory and bus."""
    resource = akash_sdl.group_specs(written())[0]["resources"][0]["resource"]
    assert resource["cpu"]["units"]["val"] == "8000"
    assert resource["memory"]["size"]["val"] == str(32 * 2**30)
    assert resource["storage"][0]["size"]["val"] == str(50 * 2**30)
    assert resource["gpu"] == {
        "units": {"val": "2"},
        "attributes": [{"key": "vendor/nvidia/model/h100/ram/80Gi/interface/sxm", "value": "true"}],
    }


def test_a_command_becomes_arguments() -> None:
    """`command` would replace the image's entrypoint; a workload's command must not."""
    workload = Workload(image="a", command=("serve", "--port=1"), env={"A": "b=c"})
    service = written(workload)["services"]["app"]
    assert service["args"] == ["serve", "--port=1"]
    assert "command" not in service
    assert service["env"] == ["A=b=c"]


def test_port_80_is_moved_and_tcp_and_udp_are_told_apart() -> None:
    """Outside number 80 would become an HTTP name; of one number twice a host keeps the first."""
    ports = (
        Port(number=80),
        Port(number=53),
        Port(number=53, protocol=Protocol.UDP),
        Port(number=akash_sdl.SPARE_PORTS),
    )
    given = akash_sdl.outside_ports(ports)
    seen = [outside for _, outside in given]
    assert [port for port, _ in given] == list(ports)
    assert len(set(seen)) == len(seen)
    assert akash_sdl.HTTP_PORT not in seen
    assert seen[1] == 53
    assert seen[3] == akash_sdl.SPARE_PORTS


def test_a_workload_without_ports_still_exposes_one() -> None:
    """The market takes no group without any way in."""
    (expose,) = written(Workload(image="a"))["services"]["app"]["expose"]
    assert expose["to"] == [{"global": True}]


def test_containers_beside_share_the_group_and_have_no_gpu() -> None:
    """They must reach each other by name, and the cards belong to the first one."""
    side = Container(name="cache", image="redis:7", ports=(Port(number=6379),))
    workload = Workload(image="a", ports=(Port(number=8000),), beside=(side,))
    sdl = written(workload)
    (group,) = akash_sdl.group_specs(sdl)
    assert [r["resource"]["gpu"]["units"]["val"] for r in group["resources"]] == ["2", "0"]
    assert sdl["services"]["app"]["expose"][0]["to"] == [{"global": True}, {"service": "cache"}]
    assert [s["name"] for s in akash_sdl.manifest(sdl)[0]["services"]] == ["app", "cache"]


def test_runs_of_every_container_are_told_in_its_log() -> None:
    """A host starts whatever ends anew and tells no exit code, of no container."""
    side = Container(name="cache", image="redis:7", entrypoint=("redis",), command=("--port", "1"))
    plain = Container(name="plain", image="nginx")
    workload = Workload(image="a", beside=(side, plain), restart=Restart.NEVER)
    services = written(workload)["services"]
    assert services["cache"]["command"] == ["/bin/sh", "-c"]
    (script,) = services["cache"]["args"]
    assert "gp4u_x redis --port 1\n" in script
    assert "&& false ||" in script  # it is not run again
    assert "command" not in services["plain"]  # what its image runs is not known
    unruled = replace(workload, restart=None)
    assert written(unruled)["services"]["cache"]["command"] == ["redis"]


def test_peers_find_a_port_under_its_own_number() -> None:
    """80 is another number outside; inside of the group it must still be 80."""
    ports = (Port(number=80), Port(number=53), Port(number=53, protocol=Protocol.UDP))
    web = Container(name="web", image="b", ports=ports)
    workload = Workload(image="a", ports=(Port(number=8000),), beside=(web,))
    (group,) = akash_sdl.manifest(written(workload))
    main, side = group["services"]
    inner = [(e["port"], e["externalPort"]) for e in side["expose"] if e["service"] == "app"]
    assert inner[:2] == [(80, 80), (53, 53)]
    assert inner[2][0] == 53
    assert inner[2][1] not in (53, 80)  # of one number the host keeps the first
    outer = [e["externalPort"] for e in side["expose"] if e["global"]]
    assert len(set(outer)) == 3
    assert 80 not in outer
    assert [(e["service"], e["global"]) for e in main["expose"]] == [("", True), ("web", False)]


@pytest.mark.parametrize(
    ("workload", "wish", "field"),
    [
        (Workload(image="a", disk_gib=40_000), WISH, "disk"),
        (Workload(image=""), WISH, "image"),
        (Workload(image="a", env={"A=B": "c"}), WISH, "env"),
        (Workload(image="a", beside=(Container(name="Web_1", image="b"),)), WISH, "container"),
        (Workload(image="a", beside=(Container(name="app", image="b"),)), WISH, "container"),
        (WORKLOAD, Wish(gpus=25, model="h100", cpus=1, ram_gib=1), "gpus"),
        (WORKLOAD, Wish(gpus=1, model="h100", cpus=float("nan"), ram_gib=1), "cpus"),
    ],
)
def test_what_the_market_cannot_take_is_refused_by_name(
    workload: Workload, wish: Wish, field: str
) -> None:
    """Before anything is sent, with the field that is wrong."""
    with pytest.raises(BadInput) as caught:
        akash_sdl.sdl(workload, KEY, wish, amount=6000)
    assert caught.value.field == field


def test_a_ceiling_is_rounded_up_and_never_zero() -> None:
    """A ceiling of 0 gets no bid; one that is rounded down would refuse the price asked for."""
    assert akash_sdl.ceiling_amount(Decimal("3.16"), Decimal(600)) == 5267
    assert akash_sdl.ceiling_amount(Decimal("0.0000001"), Decimal(600)) == 1
    assert akash_sdl.ceiling_amount(Decimal(10**9), Decimal(600)) == akash_sdl.MAX_AMOUNT


@pytest.mark.parametrize(
    ("text", "size"),
    [("2Gi", 2 * 2**30), ("500M", 5 * 10**8), ("0.5Gi", 2**29), (1024, 1024), ("1Ti", 2**40)],
)
def test_sizes_are_read_in_both_bases(text: object, size: int) -> None:
    """`Gi` and `G` differ by 7 %, which a host would refuse."""
    assert akash_sdl.size_bytes(text) == size


def test_what_is_no_size_is_refused() -> None:
    """Better no rental than one with the wrong disk."""
    with pytest.raises(BadInput):
        akash_sdl.size_bytes("lots")


def test_an_entrypoint_and_a_login_have_places_of_their_own() -> None:
    """The first is called a command here; credentials need the newer version."""
    login = RegistryLogin(server="registry.example.com", username="me", password="s3cret")
    workload = replace(WORKLOAD, entrypoint=("python3", "-m"), command=("june",), login=login)
    sdl = written(workload)
    assert sdl["version"] == "2.1"
    assert sdl["services"]["app"]["command"] == ["python3", "-m"]
    assert sdl["services"]["app"]["args"] == ["june"]
    told = {"host": "registry.example.com", "username": "me", "password": "s3cret"}
    assert sdl["services"]["app"]["credentials"] == told
    assert written()["version"] == "2.0"


def test_a_script_stands_in_the_entrypoints_place_and_stays() -> None:
    """A host starts a container anew whenever it ends; a Job would run for ever."""
    workload = replace(WORKLOAD, entrypoint=("june",), restart=Restart.NEVER)
    service = written(workload)["services"]["app"]
    assert service["command"] == ["/bin/sh", "-c"]
    assert service["args"] == [bootstrap.script(workload, hold=True)]


def test_files_beyond_one_argument_are_refused_with_the_bound() -> None:
    """A host would start nothing, and say so to nobody."""
    big = File(path="/etc/x", content=bytes(100_000))
    with pytest.raises(BadInput, match="131071 bytes"):
        written(replace(WORKLOAD, entrypoint=("june",), files=(big,)))
