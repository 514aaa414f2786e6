"""Reading from the dialect: rows, pages, filters, and the ways in which a list can lie."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from gp4u.sim.faults import Rule
from tests.unit.sim.vastai.dialect import EASY, Market, fill, market, settle
from tests.virtual_loop import run_virtual


def test_the_rows_carry_every_field_of_the_documented_samples() -> None:
    """The minimum of the official SDK, and all that the vendor's examples show."""
    offer_fields = """id ask_contract_id bundle_id bundled_results bw_nvlink compute_cap cpu_arch
        cpu_cores cpu_cores_effective cpu_ghz cpu_name cpu_ram credit_discount_max cuda_max_good
        direct_port_count disk_bw disk_name disk_space dlperf dlperf_per_dphtotal dph_base dph_total
        driver_version driver_vers duration end_date external flops_per_dphtotal geolocation
        geolocode gpu_arch gpu_display_active gpu_frac gpu_ids gpu_lanes gpu_mem_bw gpu_name gpu_ram
        gpu_total_ram gpu_max_power gpu_max_temp has_avx host_id hosting_type hostname inet_down
        inet_down_cost inet_up inet_up_cost is_bid logo machine_id min_bid mobo_name num_gpus
        os_version pci_gen pcie_bw public_ipaddr reliability reliability_mult rentable rented score
        start_date static_ip storage_cost storage_total_cost total_flops verification vericode
        vram_costperhour webpage vms_enabled expected_reliability is_vm_deverified resource_type
        cluster_id avail_vol_ask_id avail_vol_dph avail_vol_size nw_disk_min_bw nw_disk_max_bw
        nw_disk_avg_bw rn dph_total_adj reliability2 discount_rate discounted_hourly
        discounted_dph_total search instance time_remaining time_remaining_isbid
        internet_up_cost_per_tb internet_down_cost_per_tb"""
    instance_fields = """id actual_status cur_state next_state intended_status label template_id
        template_hash_id template_name image_uuid image_args image_runtype extra_env onstart
        jupyter_token status_msg public_ipaddr local_ipaddrs ssh_host ssh_idx ssh_port
        machine_dir_ssh_port machine_id start_date end_date uptime_mins duration cpu_arch cpu_cores
        cpu_cores_effective cpu_name cpu_ram cpu_util mem_limit mem_usage vmem_usage gpu_name
        gpu_arch gpu_totalram gpu_ram gpu_util gpu_temp gpu_frac gpu_lanes gpu_mem_bw bw_nvlink
        disk_name disk_space disk_bw disk_util disk_usage direct_port_count direct_port_start
        direct_port_end ports static_ip geolocation verification rentable host_id min_bid is_bid
        dph_base dph_total dlperf dlperf_per_dphtotal flops_per_dphtotal total_flops score
        reliability2 os_version mobo_name pci_gen pcie_bw num_gpus webpage search instance
        storage_cost storage_total_cost vram_costperhour credit_balance credit_discount
        credit_discount_max client_run_time host_run_time external time_remaining
        time_remaining_isbid country_code volume_info"""

    async def scene() -> None:
        async with market() as m:
            for offer in await m.search():
                assert set(offer_fields.split()) <= offer.keys()
            await m.rented()
            for _ in range(2):
                (row,) = (await m.listed())["instances"]
                assert set(instance_fields.split()) <= row.keys()
                assert isinstance(row["extra_env"], list)
                assert isinstance(row["ports"], dict)
                assert isinstance(row["local_ipaddrs"], str)
                assert isinstance(row["start_date"], float)
                assert isinstance(row["ssh_port"], int)
                await settle()

    run_virtual(scene)


def test_the_list_lags_behind_rents_and_releases() -> None:
    """Read-after-write is not to be had from it; a single instance shows at once."""
    settings = msgspec.structs.replace(EASY, list_lag_s=(5.0, 5.0))

    async def scene() -> None:
        async with market(settings=settings) as m:
            contract = await m.rented()
            path = f"/api/v0/instances/{contract.id}/"
            assert (await m.listed())["instances"] == []
            assert (await m.call("GET", path)).json()["instances"]["id"] == contract.id
            await asyncio.sleep(6)
            assert len((await m.listed())["instances"]) == 1
            assert (await m.call("DELETE", path)).json()["success"] is True
            assert len((await m.listed())["instances"]) == 1
            assert (await m.call("GET", path)).json() == {"instances": None}
            await asyncio.sleep(6)
            assert (await m.listed())["instances"] == []
            assert m.world.leaked() == []

    run_virtual(scene)


async def walk(m: Market, **params: str) -> list[dict[str, Any]]:
    """Read all pages of the list."""
    pages: list[dict[str, Any]] = []
    token: dict[str, str] = {}
    while True:
        page = await m.listed(**params, **token)
        pages.append(page)
        if page["next_token"] is None or len(pages) > 20:
            return pages
        token = {"after_token": page["next_token"]}


@pytest.mark.parametrize(
    ("limit", "first"), [(None, 25), ("25", 25), ("100", 25), ("10", 10), ("0", 5), ("-3", 5)]
)
def test_a_page_has_at_most_twenty_five_and_the_cursor_reaches_all(
    limit: str | None, first: int
) -> None:
    """One page is never the whole truth."""

    async def scene() -> None:
        async with market(offers=150) as m:
            made = await fill(m, 30)
            pages = await walk(m, **({} if limit is None else {"limit": limit}))
            assert pages[0]["instances_found"] == first == len(pages[0]["instances"])
            assert all(page["total_instances"] == 30 for page in pages)
            assert [row["id"] for page in pages for row in page["instances"]] == sorted(made)

    run_virtual(scene)


def test_the_list_filters_orders_and_selects() -> None:
    """As the official client asks: by label, newest first, few columns."""

    async def scene() -> None:
        async with market(offers=150) as m:
            made = await fill(m, 12)
            pages = await walk(
                m,
                select_filters=json.dumps({"label": {"in": ["l1"]}}),
                order_by=json.dumps([{"col": "label", "dir": "asc"}, {"col": "id", "dir": "desc"}]),
                select_cols=json.dumps(["id", "label", "nonsense"]),
                limit="4",
            )
            rows = [row for page in pages for row in page["instances"]]
            assert [row["id"] for row in rows] == sorted(made[1::2], reverse=True)
            assert rows[0] == {"id": max(made[1::2]), "label": "l1", "nonsense": None}
            unlabelled = json.dumps({"label": {"in": [None]}})
            assert (await m.listed(select_filters=unlabelled))["instances"] == []

    run_virtual(scene)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"select_filters": '{"dph_total": {"lt": 1}}'}, "invalid_request"),
        ({"select_filters": '{"num_gpus": {"eq": 1}}'}, "invalid_request"),
        ({"select_filters": '{"label": {"like": "x"}}'}, "invalid_request"),
        ({"select_filters": "["}, "invalid_request"),
        ({"order_by": '[{"col": "dph_total"}]'}, "invalid_request"),
        ({"order_by": '[{"col": []}]'}, "invalid_request"),
        ({"limit": "many"}, "invalid_request"),
        ({"after_token": "xyz"}, "invalid_token"),
        ({"after_token": "WzFd" * 3}, "invalid_token"),
    ],
)
def test_a_bad_parameter_of_the_list_is_refused(params: dict[str, str], error: str) -> None:
    """Computed columns look like stored ones, and are not."""

    async def scene() -> None:
        async with market() as m:
            reply = await m.call("GET", "/api/v1/instances/", params=params)
            assert (reply.status_code, reply.json()["error"]) == (400, error)

    run_virtual(scene)


def test_the_old_list_is_gone() -> None:
    """410, which must not read as "no instances"."""

    async def scene() -> None:
        async with market() as m:
            for slash in ("", "/"):
                reply = await m.call("GET", f"/api/v0/instances{slash}")
                assert (reply.status_code, reply.json()["error"]) == (410, "deprecated_endpoint")

    run_virtual(scene)


def test_faults_of_the_list_lie_in_the_documented_ways() -> None:
    """Empty, stale, a page lost, a loop, a total that does not fit."""

    async def scene() -> None:
        async with market(offers=150) as m:
            made = await fill(m, 30)

            async def under(kind: str, **more: Any) -> list[dict[str, Any]]:
                rule = m.faults.add(Rule(kind=kind, endpoint="list", **more))
                pages = await walk(m)
                m.faults.remove(rule)
                return pages

            assert (await under("list_empty"))[0]["instances"] == []
            assert (await under("list_stale", seconds=60))[0]["total_instances"] == 0
            (lost,) = await under("list_lost_page", times=1)
            assert lost["instances_found"] == 5
            assert lost["total_instances"] == 30
            loop = await under("list_loop")
            assert len(loop) > 20
            assert loop[0]["instances"] == loop[1]["instances"]
            wrong = await under("list_wrong_total")
            assert wrong[0]["total_instances"] == 31
            assert len(made) == 30

    run_virtual(scene)


def test_contracts_are_fetched_by_label_and_by_id() -> None:
    """A second way to reconcile."""

    async def scene() -> None:
        async with market(offers=150) as m:
            ids = await fill(m, 4)
            by_label = await m.call("POST", "/api/v0/contracts/fetch/", json={"label": "l1"})
            assert [row["id"] for row in by_label.json()["contracts"]] == ids[1::2]
            by_id = await m.call("POST", "/api/v0/contracts/fetch/", json={"contract_ids": ids[:1]})
            assert [row["id"] for row in by_id.json()["contracts"]] == ids[:1]

    run_virtual(scene)


@pytest.mark.parametrize("kind", ["no_ports", "oci_error", "outbid_running", "wrong_machine"])
def test_a_trouble_shows_in_the_row(kind: str) -> None:
    """The four that a client must tell from the row alone."""

    async def scene() -> None:
        async with market(Rule(kind=kind, endpoint="create", seconds=1)) as m:
            contract = await m.rented(env={"-p 8000:8000": "1"})
            offered = m.world.find_offer(contract.offer_id)
            assert offered is not None
            await asyncio.sleep(60)
            (row,) = (await m.listed())["instances"]
            match kind:
                case "no_ports":
                    assert (row["actual_status"], row["ports"]) == ("running", {})
                    assert row["direct_port_start"] == -1
                case "oci_error":
                    assert row["actual_status"] == "created"
                    assert ": OCI runtime create failed:" in row["status_msg"]
                case "outbid_running":
                    assert row["actual_status"] == "exited"
                    assert row["intended_status"] == row["next_state"] == "stopped"
                case _:
                    assert row["machine_id"] != offered[0].machine_id

    run_virtual(scene)


def test_every_path_is_answered_with_and_without_its_slash() -> None:
    """Documents and clients spell them both ways."""

    async def scene() -> None:
        async with market() as m:
            contract = await m.rented()
            for path in (
                "/api/v0/users/current",
                "/api/v1/instances",
                f"/api/v0/instances/{contract.id}",
                "/api/v0/charges",
                "/api/v0/secrets",
            ):
                for slash in ("", "/"):
                    assert (await m.call("GET", f"{path}{slash}")).status_code == 200

    run_virtual(scene)


def test_a_search_can_come_in_three_forms() -> None:
    """The body itself, the body's `q`, and the query string."""

    async def scene() -> None:
        async with market() as m:
            query = {"gpu_name": {"eq": "RTX 4090"}, "order": [["dph_total", "asc"]]}
            plain = await m.search(**query)
            new = await m.call(
                "PUT", "/api/v0/search/asks/", json={"select_cols": ["*"], "q": query}
            )
            old = await m.call("GET", "/api/v0/bundles/", params={"q": json.dumps(query)})
            assert [row["id"] for row in plain] == [row["id"] for row in new.json()["offers"]]
            assert [row["id"] for row in plain] == [row["id"] for row in old.json()["offers"]]
            assert plain
            bad = await m.call("GET", "/api/v0/bundles/", params={"q": "{"})
            assert bad.status_code == 400

    run_virtual(scene)
