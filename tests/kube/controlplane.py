"""A real Kubernetes control plane, without any machine in it: etcd and the three servers.

RBAC is on, certificates are real and checked in every direction, kubelets' certificates among them.
Everything listens in a network of the tests' own (`scripts/namespace.sh`). What each part wrote is
in `folder`, and stays there for whoever looks into a failure.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.processes import Done, clean_environ
from tests.kube.authority import Authority, key_pair
from tests.kube.programs import NEWEST, PATIENCE_S, Process, free_port, program, run

ADDRESS = "203.0.113.99"
"""Of the API server, as the `kubernetes` Service has it: never loopback, that would be refused."""
CLUSTER_IP = "10.96.0.1"
"""Of that Service: the first of the range."""
ISSUER = "https://kubernetes.default.svc.cluster.local"
AUDITED = ("gp4u-system",)
"""Namespaces whose ServiceAccounts' calls are written down."""
KUBELET_CLIENT = "kube-apiserver-kubelet-client"
"""Whom a node meets when the API server calls it; no more than the role for that is bound to it."""


class Call(NamedTuple):
    """One call that reached the API server, by its audit log."""

    verb: str
    group: str
    resource: str
    """`pods`, or `pods/status`."""
    namespace: str
    name: str
    code: int
    """Status of the reply."""


class ControlPlane:
    """The four processes, and a kubectl with the rights of an administrator."""

    def __init__(self, folder: Path, *, version: str = NEWEST) -> None:
        self.folder, self.version = folder, version
        self.url = f"https://127.0.0.1:{free_port()}"
        self._store = f"http://127.0.0.1:{free_port()}"
        self._pki = folder / "pki"
        self._pki.mkdir()
        self._audit = folder / "audit.log"
        self._authority = Authority(self._pki, "ca")
        self._front = Authority(self._pki, "front-proxy-ca")
        self.authority = self._authority.certificate
        """The cluster's authority, as a file in PEM."""
        self.front_authority = self._front.certificate
        self.admin = self.client_kubeconfig("admin", "kubernetes-admin", "system:masters")
        self.parts = self._make_parts()

    def client_kubeconfig(self, name: str, common_name: str, *groups: str) -> Path:
        """Write a kubeconfig with a client certificate of its own."""
        certificate, key = self.client_certificate(name, common_name, *groups)
        user = {
            "client-certificate-data": _encoded(certificate),
            "client-key-data": _encoded(key),
        }
        return self._kubeconfig(name, user)

    def client_certificate(self, name: str, common_name: str, *groups: str) -> tuple[Path, Path]:
        """Issue a client certificate; return its file and that of its key."""
        return self._authority.issue(name, common_name=common_name, groups=groups)

    def server_certificate(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """Issue what a server shows that the cluster shall trust; return its file and its key's."""
        return self._authority.issue(name, common_name=name, hosts=hosts)

    def token_kubeconfig(self, namespace: str, account: str) -> Path:
        """Write the kubeconfig of a ServiceAccount that exists, with a token of a day."""
        words = ("create", "token", account, "-n", namespace, "--duration", "24h")
        return self._kubeconfig(f"{namespace}-{account}", {"token": self.admitted(*words).strip()})

    def _kubeconfig(self, name: str, user: Mapping[str, str]) -> Path:
        cluster = {"server": self.url, "certificate-authority-data": _encoded(self.authority)}
        written = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": dict(user)}],
            "contexts": [{"name": name, "context": {"cluster": "test", "user": name}}],
            "current-context": name,
        }
        path = self.folder / f"{name}.kubeconfig"
        path.touch(0o600)
        path.write_text(json.dumps(written))
        return path

    def start(self) -> None:
        """Start everything, and wait until pods can be created in the namespace `default`."""
        for part in self.parts.values():
            part.start()
            if part is self.parts["etcd"]:
                self._wait_for_store(part)
        self.wait_ready()
        words = ("create", "clusterrolebinding", KUBELET_CLIENT, f"--user={KUBELET_CLIENT}")
        self.wait((*words, "--clusterrole=system:kubelet-api-admin"), "the roles of RBAC")
        self.wait(("get", "serviceaccount", "default"), "the default ServiceAccount")

    def stop(self) -> None:
        """End everything, the store last."""
        for part in reversed(self.parts.values()):
            part.kill()

    def restart_api_server(self) -> None:
        """Kill the API server and start it again; return when it answers."""
        server = self.parts["kube-apiserver"]
        server.kill()
        server.start()
        self.wait_ready()

    def _wait_for_store(self, part: Process) -> None:
        """Wait until etcd listens: what fails there is said there, and not by who waits for it."""
        host, _, port = self._store.rpartition("/")[2].partition(":")
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            assert part.is_running, part.tail()
            with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                return
            time.sleep(0.05)
        raise AssertionError(f"etcd does not listen: {part.tail()}")

    def wait_ready(self) -> None:
        """Wait until the API server says that it is ready."""
        context = ssl.create_default_context(cafile=str(self.authority))
        part = self.parts["kube-apiserver"]
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            assert part.is_running, part.tail()
            try:
                with urllib.request.urlopen(  # noqa: S310 - https on loopback
                    f"{self.url}/readyz", timeout=5, context=context
                ):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError(f"the API server is not ready: {part.tail()}")

    def kubectl(
        self,
        *words: str,
        stdin: str | bytes = b"",
        kubeconfig: Path | None = None,
        patience_s: float = PATIENCE_S,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run the kubectl of this version, as the administrator unless told otherwise."""
        return run(
            [self.kubectl_path, *words],
            env=self.kubectl_env(kubeconfig) | dict(env or {}),
            stdin=stdin,
            cwd=self.folder,
            patience_s=patience_s,
        )

    @property
    def kubectl_path(self) -> str:
        """Where the kubectl of this version is."""
        return program("kubectl", version=self.version)

    def kubectl_env(self, kubeconfig: Path | None = None) -> dict[str, str]:
        """Return what a kubectl of this cluster needs in its environment."""
        home = {"HOME": str(self.folder), "KUBECONFIG": str(kubeconfig or self.admin)}
        return clean_environ() | home

    def admitted(self, *words: str, stdin: str | bytes = b"") -> str:
        """Run a kubectl that has to succeed, and return what it printed."""
        done = self.kubectl(*words, stdin=stdin)
        assert done.code == 0, (words, done.err, done.out)
        return done.out

    def apply(self, *manifests: Mapping[str, Any], namespace: str | None = None) -> None:
        """Apply manifests, in a namespace unless they say it themselves."""
        where = ("-n", namespace) if namespace else ()
        self.admitted("apply", *where, "-f", "-", stdin=as_list(manifests))

    def get(self, *words: str) -> dict[str, Any]:
        """Return what `kubectl get` gives as JSON."""
        found: dict[str, Any] = json.loads(self.admitted("get", "-o", "json", *words))
        return found

    def get_version(self) -> str:
        """Return the version that the API server says it is, `v1.36.3` for one."""
        said: str = json.loads(self.admitted("get", "--raw", "/version"))["gitVersion"]
        return said

    def wait(self, words: tuple[str, ...], name: str) -> str:
        """Repeat a kubectl until it succeeds, and return what it printed."""
        until = time.monotonic() + PATIENCE_S
        while True:
            done = self.kubectl(*words)
            if done.code == 0:
                return done.out
            assert time.monotonic() < until, (name, done)
            time.sleep(0.2)

    def calls_of(self, namespace: str, account: str) -> list[Call]:
        """Return every call that a ServiceAccount ever made and that is over, oldest first."""
        user = f"system:serviceaccount:{namespace}:{account}"
        found = []
        for line in self._audit.read_text("utf-8").splitlines():
            each = json.loads(line)
            if each["user"]["username"] == user and (about := each.get("objectRef")):
                resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
                place = (about.get("namespace", ""), about.get("name", ""))
                code = each.get("responseStatus", {}).get("code", 0)
                group = about.get("apiGroup", "")
                found.append(Call(each["verb"], group, resource, *place, code))
        return found

    def _audit_policy(self) -> Path:
        """Write down who called what, of the accounts that nodes run as."""
        groups = [f"system:serviceaccounts:{each}" for each in AUDITED]
        rules = [{"level": "Metadata", "userGroups": groups}, {"level": "None"}]
        stages = {"omitStages": ["RequestReceived", "ResponseStarted"]}
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules} | stages
        path = self.folder / "audit-policy.json"
        path.write_text(json.dumps(policy))
        return path

    def _make_parts(self) -> dict[str, Process]:
        """Return the processes in the order of their start."""
        client, peer = self._store, f"http://127.0.0.1:{free_port()}"
        account_public, account_key = key_pair(self._pki, "service-account")
        etcd = [program("etcd", thing="etcd"), "--data-dir", str(self.folder / "etcd")]
        etcd += ["--listen-client-urls", client, "--advertise-client-urls", client]
        etcd += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        etcd += ["--initial-cluster", f"default={peer}", "--unsafe-no-fsync"]
        etcd += ["--log-level", "warn"]
        server = self._api_server(client, account_public, account_key)
        manager = self._manager(account_key)
        scheduler = self._kubernetes("kube-scheduler")
        kubeconfig = self.client_kubeconfig("scheduler", "system:kube-scheduler")
        scheduler += ["--kubeconfig", str(kubeconfig), "--leader-elect=false", "--secure-port=0"]
        scheduler += ["--kube-api-qps=200", "--kube-api-burst=400"]
        words = {
            "etcd": etcd,
            "kube-apiserver": server,
            "kube-controller-manager": manager,
            "kube-scheduler": scheduler,
        }
        env = clean_environ()
        return {
            name: Process(name, each, env=env, folder=self.folder) for name, each in words.items()
        }

    def _kubernetes(self, name: str) -> list[str]:
        return [program(name, version=self.version)]

    def _api_server(self, store: str, account_public: Path, account_key: Path) -> list[str]:
        hosts = ["127.0.0.1", "localhost", ADDRESS, CLUSTER_IP, "kubernetes.default.svc"]
        names = {
            "tls": self._authority.issue("apiserver", common_name="apiserver", hosts=hosts),
            "kubelet": self._authority.issue(
                "apiserver-kubelet-client",
                common_name=KUBELET_CLIENT,
            ),
            "proxy": self._front.issue("front-proxy", common_name="front-proxy-client"),
        }
        flags = {
            "advertise-address": ADDRESS,
            "secure-port": self.url.rpartition(":")[2],
            "etcd-servers": store,
            "tls-cert-file": names["tls"][0],
            "tls-private-key-file": names["tls"][1],
            "client-ca-file": self.authority,
            "kubelet-certificate-authority": self.authority,
            "kubelet-client-certificate": names["kubelet"][0],
            "kubelet-client-key": names["kubelet"][1],
            "proxy-client-cert-file": names["proxy"][0],
            "proxy-client-key-file": names["proxy"][1],
            "requestheader-client-ca-file": self.front_authority,
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-username-headers": "X-Remote-User",
            "service-account-issuer": ISSUER,
            "service-account-key-file": account_public,
            "service-account-signing-key-file": account_key,
            "service-cluster-ip-range": "10.96.0.0/16",
            "authorization-mode": "Node,RBAC",
            "allow-privileged": "true",
            "shutdown-delay-duration": "0s",
            "audit-policy-file": self._audit_policy(),
            "audit-log-path": self._audit,
        }
        return self._kubernetes("kube-apiserver") + _flags(flags)

    def _manager(self, account_key: Path) -> list[str]:
        kubeconfig = self.client_kubeconfig("manager", "system:kube-controller-manager")
        flags = {
            "kubeconfig": kubeconfig,
            "service-account-private-key-file": account_key,
            "root-ca-file": self.authority,
            "cluster-signing-cert-file": self.authority,
            "cluster-signing-key-file": self._authority.key,
            "use-service-account-credentials": "true",
            "leader-elect": "false",
            "secure-port": "0",
            "kube-api-qps": "200",
            "kube-api-burst": "400",
        }
        return self._kubernetes("kube-controller-manager") + _flags(flags)


@contextmanager
def control_plane(folder: Path, *, version: str = NEWEST) -> Iterator[ControlPlane]:
    """Run a control plane whose files are in an empty folder, which stays."""
    plane = ControlPlane(folder, version=version)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


def as_list(manifests: Iterable[Mapping[str, Any]]) -> str:
    """Return manifests as one document for kubectl."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [*manifests]})


def _flags(flags: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]


def _encoded(path: Path) -> str:
    return b64encode(path.read_bytes()).decode()
