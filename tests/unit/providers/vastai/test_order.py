"""Which parts of a workload become which parts of a create call."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from msgspec.structs import replace

from gp4u.errors import BadInput
from gp4u.model import File, InstanceState, RegistryLogin, Restart, Workload
from gp4u.providers import bootstrap
from gp4u.providers.ssh import Address
from gp4u.providers.vastai.order import rent_body
from gp4u.providers.vastai.replies import to_instance, way_in
from tests.unit.providers.vastai.test_rent import OFFER, RENTAL

PLAIN = Workload(image="june/stt:1", command=("serve",))
KNOWN = replace(PLAIN, entrypoint=("python3", "-m", "june"))
ENTERED = replace(KNOWN, shell=True)  # noqa: S604 - a wish, no subprocess


def body(workload: Workload) -> dict[str, Any]:
    """Return the body that rents."""
    return rent_body(OFFER, workload, RENTAL)


def test_nothing_known_of_the_entrypoint_keeps_the_images_own() -> None:
    """As it was before anybody could ask for more; a wish for a shell changes nothing then."""
    wished = replace(PLAIN, shell=True, restart=Restart.NEVER)  # noqa: S604 - same
    for workload in (PLAIN, wished):
        assert body(workload)["runtype"] == "args"
        assert body(workload)["args"] == ["serve"]
        assert "onstart" not in body(workload)


def test_an_entrypoint_alone_needs_no_script() -> None:
    """The market replaces one by the name of a program; its words go before the arguments."""
    told = body(KNOWN)
    assert told["runtype"] == "args"
    assert (told["onstart"], told["args"]) == ("python3", ["-m", "june", "serve"])


def test_what_stands_around_a_program_is_a_script_in_its_place() -> None:
    """Without SSH the container ends with the workload, and the market says how."""
    told = body(replace(KNOWN, restart=Restart.NEVER))
    assert told["runtype"] == "args"
    assert (told["onstart"], told["args"][0]) == ("/bin/sh", "-c")
    assert told["args"][1] == bootstrap.script(replace(KNOWN, restart=Restart.NEVER))


def test_a_shell_takes_the_entrypoints_place_and_starts_it() -> None:
    """SSH replaces the entrypoint, so that only one that is known can be had with it."""
    told = body(ENTERED)
    assert told["runtype"] == "ssh_direc ssh_proxy"
    assert "args" not in told
    assert told["onstart"].endswith(bootstrap.script(ENTERED))
    assert "/proc/1/fd/1" in told["onstart"], "else the market's log has nothing of it"


def test_a_script_that_is_too_long_travels_in_variables() -> None:
    """4,096 characters hold no configuration file worth having."""
    big = replace(KNOWN, files=(File(path="/etc/x", content=bytes(range(256)) * 20),))
    told = body(big)
    assert sum(map(len, told["args"])) + len(told["onstart"]) <= 4096
    pieces = {name: value for name, value in told["env"].items() if name.startswith("GP4U_S")}
    assert all(len(value) <= 256 for value in pieces.values())
    whole = "".join(pieces[f"GP4U_S{number}"] for number in range(len(pieces)))
    unpacked = subprocess.run(
        ["sh", "-c", "base64 -d | gzip -d"], input=whole.encode(), capture_output=True, check=True
    )
    assert unpacked.stdout.decode() == bootstrap.script(big)


def test_files_beyond_all_room_are_refused_with_the_bound() -> None:
    """Cut off in the middle they would be found out by a program that cannot start."""
    noise = b"".join(number.to_bytes(4, "big") for number in range(2**31, 2**31 + 40_000_000, 977))
    with pytest.raises(BadInput, match=r"files.*Vast.ai takes 4096 characters of a script"):
        body(replace(KNOWN, files=(File(path="/etc/x", content=noise),)))


def test_a_long_variable_is_set_by_the_script_where_there_is_one() -> None:
    """The market takes 256 characters; a script any number."""
    long = {"CONFIG": "x" * 300, "SHORT": "y"}
    told = body(replace(ENTERED, env=long))
    assert "CONFIG" not in told["env"]
    assert told["env"]["SHORT"] == "y"
    assert f"export CONFIG={'x' * 300}\n" in told["onstart"]
    with pytest.raises(BadInput, match="256"):
        body(replace(PLAIN, env=long))


def test_a_login_is_written_as_the_market_reads_it() -> None:
    """One text, word by word; what would fall apart in it is refused."""
    login = RegistryLogin(server="registry.example.com", username="me", password="s3cret")
    assert (
        body(replace(PLAIN, login=login))["image_login"] == "-u me -p s3cret registry.example.com"
    )
    with pytest.raises(BadInput) as caught:
        body(replace(PLAIN, login=replace(login, password="two words")))
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [
        ("exited", "container exited with code 3", 3),
        ("exited", "Exited (137) 2 minutes ago", 137),
        ("exited", "success, running june", None),
        ("exited", "exited with code 1000", None),
        ("running", "container exited with code 3", None),
    ],
)
def test_an_exit_code_is_read_where_it_is_told(status: str, text: str, code: int | None) -> None:
    """A Job's success depends on it; a guess would be worse than none."""
    words = dict.fromkeys(("intended_status", "cur_state", "next_state"), "running")
    instance = to_instance({"id": 1, "actual_status": status, "status_msg": text, **words})
    assert instance is not None
    assert instance.exit_code == code
    assert (instance.state is InstanceState.EXITED) == (status == "exited")


def test_the_direct_way_in_comes_before_the_proxy() -> None:
    """A port belongs to the address that it stands beside; the two are never mixed."""
    row = {
        "image_runtype": "ssh_direc ssh_proxy",
        "public_ipaddr": "203.0.113.7\n",
        "ports": {"22/tcp": [{"HostPort": "40022"}], "8000/tcp": [{"HostPort": "40123"}]},
        "ssh_host": "ssh5.vast.ai",
        "ssh_port": 12345,
    }
    way = way_in(row)
    assert way.has_shell
    assert way.addresses == (Address("203.0.113.7", 40022), Address("ssh5.vast.ai", 12345))
    assert not way_in({**row, "image_runtype": "args"}).has_shell
    assert way_in({"image_runtype": "ssh", "ssh_host": "bad host;", "ssh_port": 1}).addresses == ()
