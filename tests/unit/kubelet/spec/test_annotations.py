"""What a pod asks for: annotations before its spec, its spec before the node's defaults."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gp4u.errors import BadInput
from gp4u.kubelet.policy import OnLoss, Tier
from gp4u.kubelet.spec.annotations import (
    KNOWN,
    Expose,
    ServicePort,
    expose_of,
    strangers,
    wish_of,
)
from gp4u.kubelet.spec.resources import asked_of_node
from gp4u.model import DEFAULT_WEIGHTS, Demand, Preferences, Requirements
from tests.unit.kubelet.objects import POLICY, container, pod

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "annotations.md"
PERMISSIVE = replace(POLICY, allow_split=True, relay_image="ghcr.io/gp4u/gp4u:1")


def wanted(**annotations: str) -> Requirements:
    """Return the hard bounds of a pod with these annotations, underscores for dashes."""
    told = {name.replace("_", "-"): text for name, text in annotations.items()}
    return wish_of(pod(annotations=told), PERMISSIVE).demand.requirements


def test_a_pod_that_says_nothing_gets_the_defaults_of_its_node() -> None:
    """The operator's live settings are what an ordinary pod is rented by."""
    mine = Requirements(
        gpu_models=("RTX 3060",),
        max_price_usd_per_hour=Decimal("0.50"),
        locations=("US",),
        min_reliability=0.95,
    )
    weights = {**dict.fromkeys(DEFAULT_WEIGHTS, 0.0), "price": 1.0}
    defaults = Demand(requirements=mine, preferences=Preferences(weights=weights))
    wish = wish_of(pod(), replace(POLICY, defaults=defaults))
    assert wish.demand == defaults
    assert (wish.tier, wish.split, wish.relay, wish.api_access) == (
        Tier.VERIFIED,
        False,
        False,
        False,
    )
    assert wish.exec
    assert wish.expose == Expose()


def test_each_annotation_of_the_demand_sets_its_bound() -> None:
    """A name that is accepted and then forgotten would rent the wrong machine."""
    asked = wanted(
        gpu_type="RTX4090, A100 80GB",
        max_price="$0.80",
        min_vram="24",
        min_reliability="0.98",
        min_download="200",
        min_cpus="8",
        min_ram="32",
        disk="64",
        locations="California, EU",
        providers="vastai,akash",
        interruptible="true",
        trust="datacenter",
    )
    assert asked == Requirements(
        gpu_models=("RTX 4090", "A100 PCIe 80GB", "A100 SXM4 80GB"),
        max_price_usd_per_hour=Decimal("0.80"),
        min_vram_gib=24,
        min_reliability=0.98,
        min_download_mbps=200,
        min_cpus=8,
        min_ram_gib=32,
        disk_gib=64,
        locations=("US-CA", "EU"),
        providers=("vastai", "akash"),
        interruptible=True,
        datacenter_only=True,
    )


def test_what_the_spec_asks_for_goes_before_defaults_and_after_annotations() -> None:
    """Charts size containers in their spec; a person's annotation is the more deliberate word."""
    resources = {
        "requests": {"cpu": "3500m", "memory": "24Gi", "ephemeral-storage": "50Gi"},
        "limits": {"nvidia.com/gpu": "2"},
    }
    selector = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB", "nvidia.com/gpu.memory": "81920"}
    body = pod(container(resources=resources), nodeSelector=selector)
    policy = replace(POLICY, defaults=Demand(requirements=Requirements(min_cpus=1, min_ram_gib=1)))
    asked = wish_of(body, policy).demand.requirements
    assert asked.gpu_models == ("A100 SXM4 80GB",)
    assert (asked.gpu_count, asked.min_vram_gib) == (2, 80)
    assert (asked.min_cpus, asked.min_ram_gib, asked.disk_gib) == (3.5, 24, 50)
    body["metadata"]["annotations"] = {"gp4u.io/min-cpus": "16", "gp4u.io/gpu-type": "H100"}
    told = wish_of(body, policy).demand.requirements
    assert told.min_cpus == 16
    assert "A100 SXM4 80GB" not in told.gpu_models


def test_a_required_node_affinity_selects_as_a_node_selector_does() -> None:
    """Many charts only offer affinity; a list of products there is a list of wishes."""
    rule: dict[str, Any] = {
        "key": "nvidia.com/gpu.product",
        "operator": "In",
        "values": ["Tesla-T4", "L4"],
    }
    terms: dict[str, Any] = {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    asked = wish_of(pod(affinity=affinity), POLICY).demand.requirements
    assert asked.gpu_models == ("Tesla T4", "L4")
    other: dict[str, Any] = {"matchExpressions": [{"key": "type", "operator": "Exists"}]}
    terms["nodeSelectorTerms"].append(other)
    assert wish_of(pod(affinity=affinity), POLICY).demand.requirements.gpu_models == ()


def test_requests_of_containers_add_up_and_init_containers_are_the_most_of_them() -> None:
    """Kubernetes sizes a pod so: one after the other, then all at once."""
    resources = {"requests": {"cpu": "2", "memory": "1Gi"}}
    init = container("first", gpus=0, resources={"requests": {"cpu": "3", "memory": "4Gi"}})
    body = pod(
        container("one", resources=resources),
        container("two", resources=resources),
        initContainers=[init],
    )
    assert asked_of_node(body) == {"cpu": Decimal(4), "memory": Decimal(4 * 2**30)}
    assert asked_of_node(body, "two") == {"cpu": Decimal(2), "memory": Decimal(2**30)}


def test_a_small_request_for_storage_leaves_room_for_the_image() -> None:
    """A kubelet does not count the image there; a rented disk holds it as well."""
    resources = {"requests": {"ephemeral-storage": "1Gi"}, "limits": {"nvidia.com/gpu": "1"}}
    asked = wish_of(pod(container(resources=resources)), POLICY).demand.requirements
    assert asked.disk_gib == Requirements().disk_gib


@pytest.mark.parametrize(
    ("name", "text", "bound"),
    [
        ("gpu-type", "RTX 9999", "unknown GPU model"),
        ("gpu-type", " , ", "is empty"),
        ("max-price", "cheap", "dollars per hour"),
        ("max-price", "-1", "above 0"),
        ("max-price", "nan", "above 0"),
        ("min-vram", "24Gi", "must be a number"),
        ("min-vram", "0", "above 0"),
        ("min-reliability", "95", "from 0 to 1"),
        ("min-reliability", "high", "from 0 to 1"),
        ("min-cpus", "", "is empty"),
        ("disk", "0.5", "from 1 to"),
        ("locations", "Atlantis", ""),
        ("providers", "aws", "known: vastai"),
        ("interruptible", "yes", "true or false"),
        ("policy", "best", "cheapest"),
        ("policy", "price=40,price=50", "once"),
        ("policy", "speed=40", "criterion must be one of"),
        ("policy", "price=x", "criterion=number"),
        ("policy", "price=90,performance=90", "sum to 100"),
        ("max-lifetime", "soon", "30m"),
        ("max-lifetime", "0s", "30m"),
        ("max-lifetime", "10000d", "at most 366d"),
        ("max-wait", "30", "30m"),
        ("on-loss", "restart", "fail, rerent"),
        ("containers", "both", "native, split"),
        ("trust", "high", "any, verified, datacenter"),
        ("expose", "june-stt", "june-stt:8001"),
        ("expose", "june-stt:99999", "june-stt:8001"),
        ("expose", "June:80", "june-stt:8001"),
        ("exec", "True", "true or false"),
    ],
)
def test_what_cannot_be_read_is_refused_with_field_value_and_bound(
    name: str, text: str, bound: str
) -> None:
    """The pod's event is all that its author sees; it has to say where, what and why."""
    with pytest.raises(BadInput) as refusal:
        wish_of(pod(annotations={name: text}), PERMISSIVE, markets=("vastai",))
    assert refusal.value.field == f"metadata.annotations[gp4u.io/{name}]"
    assert bound in refusal.value.bound
    value = refusal.value.value
    assert not isinstance(value, str) or value.partition("=")[0] in text


def test_a_price_above_what_the_node_allows_is_refused_by_name() -> None:
    """Otherwise any namespace could spend the operator's money without a limit."""
    policy = replace(POLICY, max_price_usd_per_hour=0.6)
    body = pod(annotations={"max-price": "0.61"})
    with pytest.raises(BadInput, match=r"max-price\]: '0.61' .*vast-gpu-node-1 allows at most 0.6"):
        wish_of(body, policy)
    allowed = wish_of(pod(annotations={"max-price": "0.6"}), policy).demand.requirements
    assert allowed.max_price_usd_per_hour == Decimal("0.6")


def test_the_limit_of_the_node_bounds_pods_that_name_no_price() -> None:
    """A pod that says nothing must not pay more than one that asks."""
    policy = replace(POLICY, max_price_usd_per_hour=0.6)
    assert wish_of(pod(), policy).demand.requirements.max_price_usd_per_hour == Decimal("0.6")
    lower = Demand(requirements=Requirements(max_price_usd_per_hour=Decimal("0.2")))
    asked = wish_of(pod(), replace(policy, defaults=lower)).demand.requirements
    assert asked.max_price_usd_per_hour == Decimal("0.2")


def test_weights_that_are_left_out_share_what_is_left() -> None:
    """Same words as on the command line: one parser reads both."""
    weights = wish_of(pod(annotations={"policy": "price=70"}), POLICY).demand.preferences.weights
    assert weights["price"] == pytest.approx(0.7)
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["performance"] / weights["gpu_match"] == pytest.approx(0.25 / 0.20)


@pytest.mark.parametrize(
    ("preset", "price"), [("cheapest", 1.0), ("balanced", 0.3), ("fastest", 0.0)]
)
def test_presets_are_weights_by_name(preset: str, price: float) -> None:
    """Most people want one of three things."""
    weights = wish_of(pod(annotations={"policy": preset}), POLICY).demand.preferences.weights
    assert weights["price"] == pytest.approx(price)
    assert sum(weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "lasts"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("1h30m", timedelta(minutes=90)),
        ("1d12h", timedelta(hours=36)),
    ],
)
def test_times_are_written_as_kubernetes_users_write_them(text: str, lasts: timedelta) -> None:
    """30 without a unit would be a guess."""
    wish = wish_of(pod(annotations={"max-lifetime": text, "max-wait": text}), POLICY)
    assert (wish.max_lifetime, wish.max_wait) == (lasts, lasts)


def test_bare_pods_that_always_run_are_rented_again_and_owned_ones_fail() -> None:
    """A Deployment makes a new pod by itself; nobody does for a bare one."""
    assert wish_of(pod(), POLICY).on_loss is OnLoss.RERENT
    assert wish_of(pod(owner="ReplicaSet"), POLICY).on_loss is OnLoss.FAIL
    assert wish_of(pod(restartPolicy="Never"), POLICY).on_loss is OnLoss.FAIL
    told = pod(owner="ReplicaSet", annotations={"on-loss": "rerent"})
    assert wish_of(told, POLICY).on_loss is OnLoss.RERENT


def test_secrets_raise_the_tier_to_what_the_operator_allows() -> None:
    """S16: what a Secret holds is readable for whoever owns the machine."""
    env = [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    body = pod(container(env=env), annotations={"trust": "any"})
    wish = wish_of(body, POLICY)
    assert (wish.tier, wish.raised_by_secrets) == (Tier.DATACENTER, True)
    asked = wish.demand.requirements
    assert asked.verified_only
    assert asked.datacenter_only
    lax = wish_of(body, replace(POLICY, secret_tier=Tier.VERIFIED))
    assert (lax.tier, lax.demand.requirements.datacenter_only) == (Tier.VERIFIED, False)


def test_without_secrets_a_pod_may_go_anywhere_if_it_says_so() -> None:
    """The command line has `--unverified`; pods are no worse off."""
    wish = wish_of(pod(annotations={"trust": "any"}), POLICY)
    assert (wish.tier, wish.raised_by_secrets) == (Tier.ANY, False)
    assert not wish.demand.requirements.verified_only


def test_a_pull_secret_and_a_shipped_token_count_as_secrets() -> None:
    """Both reach the machine, or the market that starts it."""
    assert wish_of(pod(imagePullSecrets=[{"name": "r"}]), POLICY).tier is Tier.DATACENTER
    projected = {"sources": [{"serviceAccountToken": {"path": "token"}}]}
    mount = {"name": "kube-api-access-x", "mountPath": TOKEN_PATH}
    body = pod(
        container(volumeMounts=[mount]),
        volumes=[{"name": "kube-api-access-x", "projected": projected}],
    )
    assert wish_of(body, POLICY).tier is Tier.VERIFIED
    body["metadata"]["annotations"] = {"gp4u.io/api-access": "true"}
    assert wish_of(body, POLICY).tier is Tier.DATACENTER


TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"


def test_what_the_node_does_not_allow_is_refused_when_it_is_asked_for() -> None:
    """Two machines instead of one, or a pod beside ours, are the operator's to allow."""
    for told in ({"containers": "split"}, {"relay": "true"}):
        with pytest.raises(BadInput, match="vast-gpu-node-1"):
            wish_of(pod(annotations=told), POLICY)
        wish = wish_of(pod(annotations=told), PERMISSIVE)
        assert wish.split or wish.relay


def test_exposed_services_are_read_in_order_and_once() -> None:
    """The worked example: two Services on one machine."""
    body = pod(annotations={"expose": "june-stt:8001, june-tts:8000,june-stt:8001"})
    services = (ServicePort("june-stt", 8001), ServicePort("june-tts", 8000))
    assert expose_of(body) == Expose(services=services)
    assert expose_of(pod(annotations={"expose": "true"})) == Expose(everything=True)
    assert expose_of(pod(annotations={"expose": "false"})) == expose_of(pod()) == Expose()


def test_an_unknown_annotation_is_told_with_the_nearest_name_and_refuses_nothing() -> None:
    """A typo must not go unseen, and another version's annotation must not stop a pod."""
    body = pod(annotations={"max-prize": "0.50", "zzz": "1", "gpu-type": "L4"})
    assert strangers(body) == (("gp4u.io/max-prize", "gp4u.io/max-price"), ("gp4u.io/zzz", ""))
    assert wish_of(body, POLICY).demand.requirements.gpu_models == ("L4",)


def test_more_gpus_than_any_machine_has_is_refused() -> None:
    """An absurd number must not become a search that never ends."""
    with pytest.raises(BadInput, match="from 1 to 64"):
        wish_of(pod(container(gpus=65)), POLICY)


def test_an_amount_that_is_no_quantity_is_refused_by_its_field() -> None:
    """The API server checks it; an old object in etcd may not have been."""
    body = pod(container(resources={"requests": {"cpu": "lots"}}))
    with pytest.raises(BadInput, match=r"spec.containers\[0\].resources\[cpu\]: 'lots'"):
        wish_of(body, POLICY)


def rows() -> dict[str, list[str]]:
    """Return the cells of the reference page's table, by annotation."""
    found = re.findall(
        r"^\| `gp4u\.io/([a-z-]+)` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.M
    )
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in found}


def test_the_reference_page_has_every_annotation_and_no_other() -> None:
    """A page that lags behind is worse than none."""
    assert tuple(sorted(rows())) == tuple(sorted(KNOWN))


@pytest.mark.parametrize("name", KNOWN)
def test_the_examples_of_the_reference_page_are_accepted(name: str) -> None:
    """People copy the example."""
    example = rows()[name][-1].strip("`")
    before, after = (
        wish_of(pod(), PERMISSIVE),
        wish_of(pod(annotations={name: example}), PERMISSIVE),
    )
    assert after != before, "the example changes nothing"
