"""The Helm chart, rendered by the real helm: what a virtual node is installed with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.processes import Done, clean_environ
from tests.kube.programs import program, run

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "gp4u"
NAMESPACE = "gp4u-system"


def run_helm(*words: str, kubeconfig: Path | None = None) -> Done:
    """Run the real helm, on a cluster if one is given."""
    env = clean_environ()
    if kubeconfig is not None:
        env |= {"KUBECONFIG": str(kubeconfig), "HOME": str(kubeconfig.parent)}
    return run([program("helm", thing="helm"), *words], env=env)


def helm(*words: str, kubeconfig: Path | None = None) -> str:
    """Run a helm that has to succeed, and return what it printed."""
    done = run_helm(*words, kubeconfig=kubeconfig)
    assert done.code == 0, (words, done.err)
    return done.out


def rendered(
    release: str,
    *,
    settings: Sequence[str] = (),
    only: Sequence[str] = (),
    values: Path | None = None,
) -> list[dict[str, Any]]:
    """Return the manifests of a release with `--set` settings; of the named templates, or all."""
    words = ["template", release, str(CHART), "--namespace", NAMESPACE]
    words += ["--values", str(values)] if values else []
    words += [word for each in settings for word in ("--set", each)]
    words += [word for each in only for word in ("--show-only", f"templates/{each}")]
    return [each for each in yaml.safe_load_all(helm(*words)) if each]


def of_kind(manifests: Sequence[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """Return the one manifest of a kind whose name ends so."""
    found = [each for each in manifests if each["kind"] == kind]
    [one] = [each for each in found if each["metadata"]["name"].endswith(name)]
    return one


def rights(release: str, node: str, *more: str) -> list[dict[str, Any]]:
    """Return the account of a node and what it may do, by the chart; and their namespace."""
    settings = [f"node.names={{{node}}}", f"fullnameOverride={release}", "rbac.decommission=true"]
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    only = ("serviceaccount.yaml", "rbac.yaml")
    return [namespace, *rendered(release, settings=[*settings, *more], only=only)]


def account_of(manifests: Sequence[dict[str, Any]]) -> str:
    """Return the name of the ServiceAccount among these."""
    return str(of_kind(manifests, "ServiceAccount")["metadata"]["name"])
