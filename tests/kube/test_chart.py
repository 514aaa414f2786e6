"""The Helm chart: it lints, refuses what is misspelt, and real API servers take what it renders.

What the node that it installs then does is seen in `test_install.py`, and what each of its rights
is for in `test_rbac.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import gp4u
from gp4u.settings import variables
from tests.kube.chart import CHART, NAMESPACE, ROOT, helm, of_kind, rendered, run_helm
from tests.kube.controlplane import ControlPlane, as_list
from tests.kube.manifests import Manifest
from tests.kube.town import until

pytestmark = pytest.mark.timeout(240)
JUNE = CHART / "ci" / "june-values.yaml"
EVERYTHING = (
    "replicas=3",
    "existingSecret=markets",
    "ledger.existingSecret=ledger",
    "node.names={vast-gpu-node-1,vast-gpu-spot-1=spot}",
    "node.approveOwnCertificate=true",
    "node.acceptCpu=true",
    "node.allowSplit=true",
    "relay.enabled=true",
    "rbac.decommission=true",
    "rbac.serviceAccountTokens=true",
    "serviceMonitor.enabled=true",
    "prometheusRule.enabled=true",
    "dashboard.enabled=true",
    "providerConfig.locations={US,EU}",
    "imagePullSecrets[0].name=pull",
    "extraEnv[0].name=TZ,extraEnv[0].value=UTC",
    "tolerations[0].operator=Exists",
    "podAnnotations.team=ml",
    "podLabels.team=ml",
    "serviceAccount.annotations.team=ml",
    "networkPolicy.from[0].ipBlock.cidr=10.0.0.0/8",
)
ON_A_VOLUME = ("ledger.persistence.storageClassName=fast", "replicas=1")
WAYS = {"defaults": (), "everything": EVERYTHING, "volume": ON_A_VOLUME}
OPERATOR = "monitoring.coreos.com"
IN_A_NAMESPACE = "deployments,services,configmaps,serviceaccounts,pdb,netpol,pvc"
RIGHTS = "clusterroles,clusterrolebindings,roles,rolebindings"


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("values", [None, JUNE], ids=["own", "june"])
def test_the_chart_lints(settings: Sequence[str], values: Path | None) -> None:
    """What helm itself warns of, every user would see first."""
    words = ["--values", str(values)] if values else []
    words += [word for each in settings for word in ("--set", each)]
    said = helm("lint", "--strict", str(CHART), *words)
    assert "0 chart(s) failed" in said
    assert "[WARNING]" not in said


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("node.maxGpu=4", "maxGpu"),
        ("nodes.names={a}", "nodes"),
        ("replicas=two", "replicas"),
        ("replicas=-1", "replicas"),
        ("node.acceptCpu=1", "acceptCpu"),
        ("node.names={GPU_1}", "GPU_1"),
        ("node.names={a=cheap}", "a=cheap"),
        ("node.names=null", "names"),
        ("node.secretTier=all", "secretTier"),
        ("node.auth=anonymous", "auth"),
        ("weights.price=much", "price"),
        ("weights.price=-1", "price"),
        ("weights.speed=10", "speed"),
        ("weights.price=50", "sum to 120"),
        ("ledger.persistence.size=big", "size"),
        ("settings.vast_gpu_type=A4000", "vast_gpu_type"),
        ("settings.GP4U_NODE_NAME=other", "GP4U_NODE_NAME"),
        ("settings.GP4U_DATABASE_URL=sqlite:///x", "GP4U_DATABASE_URL"),
        ("settings.GP4U_REDIS_URL=redis://me:word@cache/0", "GP4U_REDIS_URL"),
        ("extraEnv[0].name=VASTAI_API_KEY,extraEnv[0].value=word", "extraEnv/0"),
        ("serviceAccount.create=false", "serviceAccount.name"),
        ("fullnameOverride=June_1", "fullnameOverride"),
        ("nameOverride=june.", "nameOverride"),
        ("node.names={gpu..1}", "gpu..1"),
        (f"node.names={{{'a' * 64}=spot}}", "names"),
        ("node.maxGpus=null", "maxGpus"),
        ("podAnnotations.scraped=true", "podAnnotations"),
        ("podLabels.team=5", "podLabels"),
        (r"podLabels.app\.kubernetes\.io/name=mine", "app.kubernetes.io/name"),
        ("nodeSelector.gpu=false", "nodeSelector"),
        ("serviceAccount.annotations.team=5", "annotations"),
        ("extraEnv[0].name=A,extraEnv[0].value=5", "extraEnv/0"),
        ("podDisruptionBudget.minAvailable=most", "minAvailable"),
        ("podDisruptionBudget.minAvailable=-1", "minAvailable"),
        ("ledger.persistence.accessModes={RWO}", "accessModes"),
        ("serviceMonitor.interval=often", "interval"),
        ("dashboard.labels.grafana_dashboard=1", "labels"),
    ],
)
def test_a_value_that_is_wrong_is_refused_by_its_name(wrong: str, named: str) -> None:
    """A value that is quietly ignored is found when the bill comes."""
    done = run_helm("template", "it", str(CHART), "--set", wrong)
    assert done.code != 0
    assert named in done.err


@pytest.mark.parametrize("name", [e.variable for e in variables() if e.secret])
def test_no_secret_can_be_written_among_the_settings(name: str) -> None:
    """Settings are a ConfigMap, which many may read, and helm keeps values in plain text."""
    done = run_helm("template", "it", str(CHART), "--set", f"settings.{name}=word")
    assert done.code != 0
    assert name in done.err


def test_every_setting_that_the_chart_writes_exists() -> None:
    """A variable that nobody reads is a value that does nothing."""
    known = {name for each in variables() for name in each.names}
    found = rendered("it", settings=EVERYTHING, values=JUNE)
    container = of_kind(found, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    written = set(of_kind(found, "ConfigMap", "-settings")["data"])
    written |= {each["name"] for each in container["env"]} - {"TZ"}
    assert written <= known
    taken = run_helm("template", "it", str(CHART), "--set", "settings.GP4U_NODE_MAX_PODS=9")
    assert taken.code == 0, taken.err


def test_numbers_arrive_as_they_were_written(tmp_path: Path) -> None:
    """A values file makes floats of them: a budget of 1e+06 is none that anybody can read."""
    path = tmp_path / "values.yaml"
    settings = {"GP4U_BUDGET_USD_PER_DAY": 1000000, "VAST_MAX_PRICE_PER_HOUR": 0.5, "A_B": True}
    written = {
        "settings": settings,
        "node": {"maxGpus": 100000},
        "weights": {"price": 40, "performance": 15},
    }
    path.write_text(json.dumps(written))
    found = rendered("it", values=path)
    data = of_kind(found, "ConfigMap", "-settings")["data"]
    assert data["GP4U_BUDGET_USD_PER_DAY"] == "1000000"
    assert data["VAST_MAX_PRICE_PER_HOUR"] == "0.5"
    assert data["A_B"] == "true"
    assert data["GP4U_NODE_MAX_GPUS"] == "100000"
    assert of_kind(found, "ConfigMap", "weights")["data"]["price"] == "40"


def test_names_stay_text(tmp_path: Path) -> None:
    """To an API server the number 7 and the text 7 are not the same, and both may be names."""
    path = tmp_path / "values.yaml"
    path.write_text(
        json.dumps(
            {
                "existingSecret": "7",
                "node": {"names": ["1e3", "true=spot"]},
                "ledger": {"persistence": {"existingClaim": "8"}},
            }
        )
    )
    found = rendered("it", values=path)
    roles = [each for each in found if each["kind"] == "Role"]
    (beats,) = [each for each in roles if each["metadata"]["namespace"] == "kube-node-lease"]
    assert beats["rules"][1]["resourceNames"] == ["1e3", "true"]
    spec = of_kind(found, "Deployment")["spec"]["template"]["spec"]
    assert spec["containers"][0]["envFrom"][1]["secretRef"]["name"] == "7"
    (data,) = [each for each in spec["volumes"] if each["name"] == "data"]
    assert data["persistentVolumeClaim"]["claimName"] == "8"
    path.write_text(json.dumps({"ledger": {"existingSecret": "9"}}))
    spec = of_kind(rendered("it", values=path), "Deployment")["spec"]["template"]["spec"]
    assert spec["containers"][0]["env"][2]["valueFrom"]["secretKeyRef"]["name"] == "9"
    path.write_text(json.dumps({"ledger": {"persistence": {"storageClassName": "10"}}}))
    claim = of_kind(rendered("it", values=path), "PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == "10"


def test_weights_restart_nothing_and_settings_do() -> None:
    """Weights are read again while the node runs; settings only when it starts."""

    def template(*settings: str) -> Manifest:
        made: Manifest = of_kind(rendered("it", settings=settings), "Deployment")["spec"]
        return made

    assert (
        template("weights.price=50", "weights.performance=5", "providerConfig.locations={EU}")
        == template()
    )
    assert template("settings.VAST_GPU_TYPE=A4000") != template()


def test_the_example_values_make_the_deployment_of_the_guide() -> None:
    """`kubectl logs -n kube-system deployment/virtual-kubelet-vast` is what the guide says."""
    found = rendered("june", values=JUNE)
    deployment = of_kind(found, "Deployment")
    assert deployment["metadata"]["name"] == "virtual-kubelet-vast"
    assert deployment["spec"]["replicas"] == 2
    assert of_kind(found, "ConfigMap", "-settings")["data"]["VAST_GPU_TYPE"] == "RTX3060"
    preferences = of_kind(found, "ConfigMap", "vast-provider-config")["data"]
    assert "RTX3060" in preferences["vast-provider-config.yaml"]
    assert {"PodDisruptionBudget", "NetworkPolicy"} <= {each["kind"] for each in found}
    assert (ROOT / "examples" / "june" / "values.yaml").read_text() == JUNE.read_text()


def test_the_container_has_no_more_than_it_needs() -> None:
    """It holds keys that cost money: nobody who gets in should get further."""
    spec = of_kind(rendered("it"), "Deployment")["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"livenessProbe", "startupProbe"} <= container.keys()
    assert container["resources"]["limits"]["memory"]
    places = {each["mountPath"] for each in container["volumeMounts"]}
    assert places == {"/data", "/tmp"}  # noqa: S108 - of the container


def test_replicas_on_one_volume_share_a_machine() -> None:
    """A volume of one machine: the next one of a rolling update would wait for it for ever."""
    for replicas in (1, 2):
        affinity = of_kind(rendered("it", settings=[f"replicas={replicas}"]), "Deployment")["spec"][
            "template"
        ]["spec"]["affinity"]
        assert "requiredDuringSchedulingIgnoredDuringExecution" in affinity["podAffinity"]
    apart = of_kind(rendered("it", values=JUNE), "Deployment")["spec"]["template"]["spec"]
    assert "podAntiAffinity" in apart["affinity"]


def test_the_chart_is_of_this_version() -> None:
    """`helm list` shows it, and the image's tag is made of it."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == gp4u.__version__


def test_the_chart_carries_the_dashboard_and_the_alerts_as_they_are() -> None:
    """A chart can only show files of its own, and copies are forgotten."""
    script = str(ROOT / "scripts" / "dashboard.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    copied = (CHART / "files" / "alerts.yml").read_text()
    assert copied == (ROOT / "deploy" / "alerts.yml").read_text()
    rule = of_kind(rendered("it", settings=EVERYTHING), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(copied)


@pytest.fixture(params=["plane", "oldest_plane"])
def server(request: pytest.FixtureRequest) -> ControlPlane:
    """A control plane that knows the kinds of the Prometheus operator."""
    found: ControlPlane = request.getfixturevalue(request.param)
    labels = {"pod-security.kubernetes.io/warn": "restricted"}
    meta = {"name": NAMESPACE, "labels": labels}
    found.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta}, *_operator())
    for plural in ("servicemonitors", "prometheusrules"):
        condition = "--for=condition=Established"
        found.admitted("wait", condition, f"crd/{plural}.{OPERATOR}", "--timeout=30s")
    return found


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_an_api_server_takes_what_is_rendered(
    server: ControlPlane, settings: Sequence[str]
) -> None:
    """A field that this version does not know would be dropped, and nobody would hear of it."""
    found = rendered("gp4u", settings=settings)
    words = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")

    def taken() -> bool:
        done = server.kubectl(*words, stdin=as_list(found))
        is_known = "no matches for kind" not in done.err  # a kubectl finds new kinds a bit later
        assert done.code == 0 or not is_known, done.err
        assert "Warning" not in done.err
        return is_known and len(done.out.splitlines()) == len(found)

    until(taken, "the kinds of the operator to be known")


@pytest.fixture
def home(server: ControlPlane) -> Iterator[str]:
    """An empty namespace that takes none but restricted pods, to install into."""
    name = "chart-home"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    meta = {"name": name, "labels": labels}
    server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
    yield name
    server.admitted("delete", "namespace", name, "--wait=false")


def test_helm_installs_upgrades_and_uninstalls_it(server: ControlPlane, home: str) -> None:
    """The whole life of a release, as a user types it; the ledger's volume outlives it."""
    where = ("-n", home, "--kubeconfig", str(server.admin))
    sets = [word for each in EVERYTHING for word in ("--set", each)]
    volume = ["--set", "ledger.existingSecret=", "--set", "fullnameOverride=chart-proof"]
    said = helm("install", "proof", str(CHART), *sets, *volume, *where, kubeconfig=server.admin)
    assert "deployment/chart-proof" in said
    manifest = helm("get", "manifest", "proof", *where, kubeconfig=server.admin)
    kept = server.kubectl("diff", "-f", "-", stdin=manifest)
    assert kept.code == 0, kept.out

    def pods() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = server.get("pods", "-n", home)["items"]
        return found

    until(lambda: len(pods()) == 3, "its pods to be made", lambda: described(server, home))
    more = ["--set", "replicas=1", "--set", "settings.VAST_GPU_TYPE=A4000", *volume]
    helm("upgrade", "proof", str(CHART), *more, *where, kubeconfig=server.admin)
    deployment = server.get("deployment", "chart-proof", "-n", home)
    assert deployment["spec"]["replicas"] == 1
    helm("uninstall", "proof", *where, kubeconfig=server.admin)
    mine = ("-l", "app.kubernetes.io/instance=proof", "-o", "name")
    left = server.admitted("get", IN_A_NAMESPACE, "-n", home, *mine).split()
    assert left == ["persistentvolumeclaim/chart-proof-ledger"]
    wide = server.admitted("get", RIGHTS, "-A", *mine)
    assert wide == ""


def described(plane: ControlPlane, namespace: str) -> str:
    """Return what `kubectl describe` says of what makes the pods."""
    return plane.kubectl("describe", "deployments,replicasets", "-n", namespace).out


def _operator() -> list[Manifest]:
    """Return the two kinds, as far as the chart fills them in.

    Source: prometheus-operator, Documentation/api-reference/api.md, v0.86; checked 2026-11.
    """
    text, truth = {"type": "string"}, {"type": "boolean"}
    words = {"type": "object", "additionalProperties": text}
    endpoint = {
        "port": text,
        "path": text,
        "scheme": text,
        "interval": text,
        "bearerTokenFile": text,
        "tlsConfig": {"type": "object", "properties": {"insecureSkipVerify": truth}},
    }
    rule = {
        "alert": text,
        "expr": text,
        "for": text,
        "keep_firing_for": text,
        "labels": words,
        "annotations": words,
    }
    selector = {"type": "object", "properties": {"matchLabels": words}}
    group = {"name": text, "interval": text, "rules": _list_of(rule)}
    kinds = {
        "ServiceMonitor": {"selector": selector, "endpoints": _list_of(endpoint)},
        "PrometheusRule": {"groups": _list_of(group)},
    }
    return [_definition(kind, spec) for kind, spec in kinds.items()]


def _list_of(properties: Manifest) -> Manifest:
    return {"type": "array", "items": {"type": "object", "properties": properties}}


def _definition(kind: str, spec: Manifest) -> Manifest:
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": spec}}}
    plural = f"{kind.lower()}s"
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{OPERATOR}"},
        "spec": {
            "group": OPERATOR,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [version],
        },
    }
