"""Which cluster, and as whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gp4u.errors import BadInput, KubeDenied
from gp4u.kube.access import find_access
from gp4u.kube.client import open_client


def kubeconfig(folder: Path, name: str = "config", **user: Any) -> Path:
    """Write a kubeconfig with two contexts, `here` (the current one) and `there`."""
    path = folder / name
    clusters = [
        {"name": each, "cluster": {"server": f"http://{each}.invalid:6443"}}
        for each in ("here", "there")
    ]
    contexts = [
        {"name": each, "context": {"cluster": each, "user": "me", "namespace": f"ns-{each}"}}
        for each in ("here", "there")
    ]
    users = [{"name": "me", "user": user or {"token": "secret-token"}}]
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": clusters,
                "contexts": contexts,
                "users": users,
            }
        )
    )
    return path


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    """KUBECONFIG is how a user points kubectl, and so us."""
    access = find_access(environ={"KUBECONFIG": str(kubeconfig(tmp_path))})

    assert (access.server, access.namespace) == ("http://here.invalid:6443", "ns-here")


def test_a_context_can_be_chosen(tmp_path: Path) -> None:
    """One file often holds several clusters, and the current one is not always meant."""
    access = find_access(kubeconfig=str(kubeconfig(tmp_path)), context="there", environ={})

    assert access.server == "http://there.invalid:6443"


def test_a_named_file_goes_before_the_pods_own_account(tmp_path: Path) -> None:
    """Inside a pod, too, somebody who names a cluster means that one."""
    environ = {"KUBECONFIG": str(kubeconfig(tmp_path)), "KUBERNETES_SERVICE_HOST": "10.0.0.1"}

    assert find_access(environ=environ).server == "http://here.invalid:6443"


def test_inside_a_pod_the_service_account_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual way: no file, a token that is renewed where it lies."""
    for name, text in (("token", "t0"), ("namespace", "gp4u"), ("ca.crt", "")):
        (tmp_path / name).write_text(text)
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    access = find_access(environ=environ, service_account=str(tmp_path))

    assert (access.server, access.namespace) == ("https://[fd00::1]:443", "gp4u")


def test_a_token_is_sent_as_a_bearer(tmp_path: Path) -> None:
    """The credential that a ServiceAccount's kubeconfig has."""
    auth = find_access(kubeconfig=str(kubeconfig(tmp_path)), environ={}).auth()

    assert auth is not None
    request = next(auth.auth_flow(httpx.Request("GET", "http://here.invalid")))
    assert request.headers["authorization"] == "Bearer secret-token"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("not: [a, kubeconfig", "no use"),
        ("- a list", "no use"),
        ("clusters: []", "no use"),
        ("", "no use"),
        ('{"clusters": [], "contexts": []}', "no current context"),
        ('{"clusters": [], "contexts": [], "current-context": "x"}', "not found"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, word: str) -> None:
    """Whoever reads the refusal must know which file and why."""
    path = tmp_path / "broken"
    path.write_text(text)

    with pytest.raises(BadInput, match=f"(?i)KUBECONFIG.*broken.*{word}"):
        find_access(environ={"KUBECONFIG": str(path)})


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    """A typo in KUBECONFIG must not fall through to another cluster."""
    with pytest.raises(BadInput, match="nowhere"):
        find_access(environ={"KUBECONFIG": str(tmp_path / "nowhere")})


def test_several_files_are_refused(tmp_path: Path) -> None:
    """kubectl merges them; taking one of them in silence could be the wrong cluster."""
    with pytest.raises(BadInput, match="several files"):
        find_access(environ={"KUBECONFIG": f"{kubeconfig(tmp_path)}:{tmp_path / 'other'}"})


def test_a_certificate_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """At the start, and not in the log of a node that never gets Ready."""
    path = kubeconfig(tmp_path, **{"client-certificate": "/none.crt", "client-key": "/none.key"})

    with pytest.raises(BadInput, match="certificates"):
        find_access(kubeconfig=str(path), environ={}).transport()


@pytest.mark.parametrize("command", ["/nowhere/plugin", "echo"])
async def test_a_plugin_that_gives_no_credentials_is_a_plain_no(
    tmp_path: Path, command: str
) -> None:
    """It is not there, or says nonsense: the informer asks again, and the node lives on."""
    plugin = {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": command}
    access = find_access(environ={"KUBECONFIG": str(kubeconfig(tmp_path, exec=plugin))})

    async with open_client(access) as client:
        with pytest.raises(KubeDenied, match="no credentials"):
            await client.get("/api/v1/pods")
