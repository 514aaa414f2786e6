"""Where the port's certificate comes from, and how it is replaced in time (S20)."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from gp4u.clock import Clock
from gp4u.errors import BadInput
from gp4u.kube.client import KubeClient
from gp4u.kube.paths import configmap, signing_request
from gp4u.kubelet.server.certificates import SIGNER, Certificates
from gp4u.kubelet.server.trust import CONFIG_MAP, KEY, NAMESPACE, ClientTrust
from tests.kube_api import KubeApi
from tests.unit.kubelet.server.authority import SERVER, Authority
from tests.virtual_loop import VirtualClock, run_virtual

CA = Authority()
REQUESTS = "certificatesigningrequests"


class Calendar(VirtualClock):
    """The virtual clock, some days ahead: years of looking are too many even without waiting."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


def certificates_of(
    client: KubeClient | None,
    *,
    address: Callable[[], str] = lambda: "10.0.0.7",
    clock: Clock | None = None,
    **more: Any,
) -> Certificates:
    """Return the certificates of a node under the virtual clock."""
    return Certificates(
        client,
        node_name="n1",
        address=address,
        trust=ClientTrust(None, random=Random(1)),
        clock=clock or VirtualClock(),
        random=Random(1),
        **more,
    )


async def beside(work: Callable[[], Awaitable[None]], *loops: Awaitable[None]) -> None:
    """Run loops while the work is done."""

    async def run(each: Awaitable[None]) -> None:
        await each

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(each)) for each in loops]
        await work()
        for task in tasks:
            task.cancel()


def requests(api: KubeApi) -> list[dict[str, Any]]:
    """Return the signing requests there are, oldest first."""
    found = api.all(REQUESTS)
    return sorted(found, key=lambda each: int(each["metadata"]["resourceVersion"]))


def approve(api: KubeApi, name: str, *, days: int = 10, signs: bool = True) -> None:
    """Approve a request, and sign it, as an administrator and the controller do."""
    found = next(each for each in requests(api) if each["metadata"]["name"] == name)
    request = base64.b64decode(found["spec"]["request"])
    signed = CA.sign(request, at=VirtualClock().now(), for_=timedelta(days=days))
    status: dict[str, Any] = {"conditions": [{"type": "Approved", "status": "True"}]}
    if signs:
        status["certificate"] = base64.b64encode(signed).decode()
    api.change(signing_request(name, "status"), {"status": status})


def test_the_cluster_is_asked_as_its_signer_wants_it() -> None:
    """The kubelet-serving signer refuses any other subject, usage or name."""

    async def inside() -> None:
        api = KubeApi()
        async with api.client() as client:
            certificates = certificates_of(client)
            certificates.begin()

            async def work() -> None:
                await asyncio.sleep(5)
                (made,) = requests(api)
                assert made["spec"]["signerName"] == SIGNER
                assert made["spec"]["usages"] == ["digital signature", "server auth"]
                asked = x509.load_pem_x509_csr(base64.b64decode(made["spec"]["request"]))
                names = asked.subject.get_attributes_for_oid
                assert [n.value for n in names(NameOID.ORGANIZATION_NAME)] == ["system:nodes"]
                assert [n.value for n in names(NameOID.COMMON_NAME)] == ["system:node:n1"]
                alternative = asked.extensions.get_extension_for_class(
                    x509.SubjectAlternativeName
                ).value
                assert [str(each.value) for each in alternative] == ["10.0.0.7"]

            await beside(work, certificates.run())

    run_virtual(inside)


def test_it_serves_at_once_and_better_as_soon_as_it_is_signed() -> None:
    """Nobody may be there to approve: logs and exec must work in the meantime."""

    async def inside() -> None:
        api = KubeApi()
        async with api.client() as client:
            certificates = certificates_of(client)
            certificates.begin()
            first = certificates.context()
            assert certificates.source == "self-signed"

            async def work() -> None:
                await asyncio.sleep(600)
                (made,) = requests(api)
                approve(api, made["metadata"]["name"], signs=False)
                await asyncio.sleep(120)
                assert certificates.source == "self-signed"
                approve(api, made["metadata"]["name"])
                await asyncio.sleep(120)
                assert certificates.source == "cluster"
                assert certificates.context() is not first

            await beside(work, certificates.run())

    run_virtual(inside)


def test_a_certificate_is_replaced_before_it_ends() -> None:
    """The next one is asked for after 70 to 80 % of its life, and used without a restart."""

    async def inside() -> None:
        api = KubeApi()
        async with api.client() as client:
            certificates = certificates_of(client, self_approve=True)
            certificates.begin()
            day = 24 * 3600

            async def sign() -> None:
                while True:
                    for each in requests(api):
                        if not (each.get("status") or {}).get("certificate"):
                            approve(api, each["metadata"]["name"], days=10)
                    await asyncio.sleep(10)

            async def work() -> None:
                await asyncio.sleep(60)
                until = certificates.until_at
                assert until is not None
                await asyncio.sleep(6.9 * day)
                assert certificates.until_at == until
                assert certificates.lifetime == timedelta(days=10)
                await asyncio.sleep(1.2 * day)
                later = certificates.until_at
                assert later is not None
                assert later > until
                assert len(requests(api)) == 2

            await beside(work, certificates.run(), sign())

    run_virtual(inside)


def test_a_denied_request_is_not_repeated_all_the_time() -> None:
    """Somebody said no: they are asked again later, not every second."""

    async def inside() -> None:
        api = KubeApi()
        async with api.client() as client:
            certificates = certificates_of(client)
            certificates.begin()

            async def work() -> None:
                await asyncio.sleep(5)
                (made,) = requests(api)
                denied = {"type": "Denied", "status": "True", "reason": "No", "message": "not you"}
                api.change(
                    signing_request(made["metadata"]["name"], "status"),
                    {"status": {"conditions": [denied]}},
                )
                await asyncio.sleep(1500)
                assert len(requests(api)) == 1
                assert certificates.source == "self-signed"
                await asyncio.sleep(1000)
                assert len(requests(api)) == 2

            await beside(work, certificates.run())

    run_virtual(inside)


def test_a_request_that_was_collected_is_made_again() -> None:
    """Clusters delete requests after an hour; an administrator may come later."""

    async def inside() -> None:
        api = KubeApi()
        async with api.client() as client:
            certificates = certificates_of(client)
            certificates.begin()

            async def work() -> None:
                await asyncio.sleep(5)
                (made,) = requests(api)
                api.remove(signing_request(made["metadata"]["name"]))
                await asyncio.sleep(300)
                (again,) = requests(api)
                assert again["metadata"]["uid"] != made["metadata"]["uid"]

            await beside(work, certificates.run())

    run_virtual(inside)


def test_without_the_right_to_ask_it_still_serves() -> None:
    """Least RBAC may leave the request out (K12)."""

    async def inside() -> None:
        api = KubeApi()
        api.deny("create", REQUESTS)
        async with api.client() as client:
            certificates = certificates_of(client)
            certificates.begin()

            async def work() -> None:
                await asyncio.sleep(3600)
                assert certificates.source == "self-signed"
                assert len(api.told("create", REQUESTS)) <= 35

            with capture_logs() as said:
                await beside(work, certificates.run())
            told = [each for each in said if each["event"] == "certificate_not_signed"]
            assert len(told) == 1, "what goes on is told once"

    run_virtual(inside)


@pytest.mark.parametrize("after_s", [25.0, 3600.0])
@pytest.mark.parametrize("verb", ["create", "get"])
def test_a_right_that_is_given_later_is_noticed_within_two_minutes(
    verb: str, after_s: float
) -> None:
    """An operator mends the role, and looks whether that was it."""

    async def inside() -> None:
        api = KubeApi()
        fault = api.deny(verb, REQUESTS)
        async with api.client() as client:
            certificates = certificates_of(client)
            certificates.begin()

            async def sign() -> None:
                while True:
                    for each in requests(api):
                        if not (each.get("status") or {}).get("certificate"):
                            approve(api, each["metadata"]["name"])
                    await asyncio.sleep(1)

            async def work() -> None:
                await asyncio.sleep(after_s)
                assert certificates.source == "self-signed"
                fault.lift()
                await asyncio.sleep(125)
                assert certificates.source == "cluster"
                assert len(requests(api)) <= 2, "each of them waits for somebody's word"

            await beside(work, certificates.run(), sign())

    run_virtual(inside)


def test_another_address_takes_another_certificate() -> None:
    """A pod that was restarted has another IP, and the API server looks for it in there."""

    async def inside() -> None:
        address = "10.0.0.7"
        certificates = certificates_of(None, address=lambda: address)
        certificates.begin()
        first = certificates.context()

        async def work() -> None:
            nonlocal address
            await asyncio.sleep(120)
            assert certificates.context() is first
            address = "10.0.0.8"
            await asyncio.sleep(120)
            assert certificates.context() is not first

        await beside(work, certificates.run())

    run_virtual(inside)


def test_one_of_our_own_does_not_run_out_either() -> None:
    """A node may run for years without anybody who approves."""

    async def inside() -> None:
        calendar = Calendar()
        certificates = certificates_of(None, clock=calendar)
        certificates.begin()

        async def work() -> None:
            for _ in range(40):
                calendar.ahead += timedelta(days=30)
                await asyncio.sleep(120)
                until = certificates.until_at
                assert until is not None
                assert until - calendar.now() > timedelta(days=30)

        await beside(work, certificates.run())

    run_virtual(inside)


def test_what_was_signed_survives_a_restart(tmp_path: Path) -> None:
    """Nobody should have to approve again because the process was restarted."""

    async def before() -> None:
        api = KubeApi()
        async with api.client() as client:
            certificates = certificates_of(client, directory=tmp_path)
            certificates.begin()

            async def work() -> None:
                await asyncio.sleep(5)
                approve(api, requests(api)[0]["metadata"]["name"])
                await asyncio.sleep(60)
                assert certificates.source == "cluster"

            await beside(work, certificates.run())

    async def after() -> None:
        await asyncio.sleep(60)
        certificates = certificates_of(None, directory=tmp_path)
        certificates.begin()
        assert certificates.source == "cluster"
        moved = certificates_of(None, directory=tmp_path, address=lambda: "10.9.9.9")
        moved.begin()
        assert moved.source == "self-signed"

    run_virtual(before)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    run_virtual(after)
    file.write_bytes(b"nonsense")
    run_virtual(lambda: _begun_self_signed(tmp_path))


async def _begun_self_signed(folder: Path) -> None:
    certificates = certificates_of(None, directory=folder)
    certificates.begin()
    assert certificates.source == "self-signed"


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    """cert-manager writes new ones into the same place; a half-written pair changes nothing."""
    files = (tmp_path / "tls.crt", tmp_path / "tls.key")

    def write(pair: tuple[bytes, bytes], stamp: int) -> None:
        files[1].write_bytes(pair[0])
        files[0].write_bytes(pair[1])
        for file in files:
            os.utime(file, ns=(stamp, stamp))

    async def inside() -> None:
        write(CA.pair("n1", usage=SERVER, address="10.0.0.7"), 1)
        certificates = certificates_of(None, files=files)
        certificates.begin()
        first = certificates.context()

        async def work() -> None:
            write((b"half", CA.pair("n1", usage=SERVER)[1]), 2)
            await asyncio.sleep(120)
            assert certificates.context() is first
            write(CA.pair("n1", usage=SERVER, address="10.0.0.7"), 3)
            await asyncio.sleep(120)
            assert certificates.context() is not first
            assert certificates.source == "files"

        await beside(work, certificates.run())

    run_virtual(inside)


def test_files_that_cannot_be_used_stop_the_start(tmp_path: Path) -> None:
    """Who names files wants them: another certificate in silence would be a surprise."""
    one, two = CA.pair("n1"), CA.pair("n1")
    (tmp_path / "crt").write_bytes(one[1])
    (tmp_path / "key").write_bytes(two[0])
    certificates = certificates_of(None, files=(tmp_path / "crt", tmp_path / "key"))
    with pytest.raises(BadInput, match="belong"):
        certificates.begin()
    (tmp_path / "key").unlink()
    with pytest.raises(BadInput, match=r"key.* cannot be read: No such file"):
        certificates.begin()


def test_the_client_ca_is_the_clusters_own() -> None:
    """It is published for extension API servers; a cluster that changes it must be followed."""

    async def inside() -> None:
        api = KubeApi()
        changes: list[bytes | None] = []
        async with api.client() as client:
            trust = ClientTrust(client, random=Random(1))
            trust.on_change = lambda: changes.append(trust.pem)
            assert not await trust.read()
            assert trust.pem is None
            about = {"name": CONFIG_MAP, "namespace": NAMESPACE}
            api.add(
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": about,
                    "data": {KEY: CA.pem.decode()},
                }
            )

            async def work() -> None:
                await asyncio.sleep(60)
                assert trust.pem == CA.pem
                other, where = Authority("other"), configmap(NAMESPACE, CONFIG_MAP)
                api.change(where, {"data": {KEY: other.pem.decode()}})
                await asyncio.sleep(400)
                assert trust.pem == other.pem
                api.change(where, {"data": {KEY: "nonsense"}})
                await asyncio.sleep(400)
                assert trust.pem == other.pem
                assert changes == [CA.pem, other.pem]

            await beside(work, trust.run())

    run_virtual(inside)


def test_a_client_ca_file_is_read_again(tmp_path: Path) -> None:
    """Operators who mount one replace it in place."""
    file = tmp_path / "ca.crt"
    file.write_bytes(CA.pem)

    async def inside() -> None:
        trust = ClientTrust(None, file=file, random=Random(1))
        assert await trust.read()

        async def work() -> None:
            other = Authority("other")
            file.write_bytes(other.pem)
            await asyncio.sleep(60)
            assert trust.pem == other.pem

        await beside(work, trust.run())

    run_virtual(inside)


def test_a_client_ca_may_have_comments_in_any_language(tmp_path: Path) -> None:
    """Bundles name their certificates between the blocks; that must not keep everybody out."""
    file = tmp_path / "ca.crt"
    file.write_bytes("# Autorité de certification\n".encode() + CA.pem)

    async def inside() -> None:
        trust = ClientTrust(None, file=file, random=Random(1))
        certificates = Certificates(
            None,
            node_name="n1",
            address=lambda: "10.0.0.7",
            trust=trust,
            clock=VirtualClock(),
            random=Random(1),
        )
        assert await trust.read()
        assert len(certificates.context().get_ca_certs()) == 1

    run_virtual(inside)
