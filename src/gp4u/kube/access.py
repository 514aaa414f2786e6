"""Which API server, and as whom: the credentials of a kubeconfig or of a ServiceAccount.

Hides lightkube, which reads both and renews tokens. Differs from it in the order: a kubeconfig
that somebody names goes before the ServiceAccount of the pod that this process may run in.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx
import yaml
from lightkube.config.client_adapter import user_auth, verify_cluster
from lightkube.config.kubeconfig import SERVICE_ACCOUNT, KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError

from gp4u.errors import BadInput
from gp4u.kube.connections import Connections

_UNREADABLE: Final = (ConfigError, OSError, AttributeError, KeyError, TypeError, ValueError)
"""What reading a file of any shape raises in lightkube."""
_USUAL: Final = Path("~/.kube/config")


class Access:
    """One API server, and who we are there."""

    def __init__(self, config: SingleConfig) -> None:
        self._config = config

    @property
    def server(self) -> str:
        """Its URL."""
        return str(self._config.cluster.server)

    @property
    def namespace(self) -> str:
        """The namespace that we live in, `default` where nothing says."""
        return str(self._config.namespace)

    def auth(self) -> httpx.Auth | None:
        """Return what signs our requests; None where a certificate, or nothing, does.

        Raises:
            BadInput: the kubeconfig wants a way that is not supported.
        """
        try:
            return user_auth(self._user)
        except ConfigError as error:
            raise BadInput("kubeconfig user", self._config.context_name, str(error)) from error

    def transport(self) -> httpx.AsyncBaseTransport:
        """Return new connections to the server, without proxies of the environment.

        Raises:
            BadInput: a certificate or key cannot be read.
        """
        config = self._config
        try:
            context = verify_cluster(config.cluster, self._user, config.abs_file, trust_env=False)
        except (ConfigError, OSError, ssl.SSLError, ValueError) as error:
            raise BadInput("kubeconfig certificates", config.context_name, str(error)) from error
        return Connections(context)

    @property
    def _user(self) -> User:
        return self._config.user or User()


def find_access(
    *,
    kubeconfig: str | None = None,
    context: str | None = None,
    environ: Mapping[str, str] = os.environ,
    service_account: str = SERVICE_ACCOUNT,
) -> Access:
    """Find the cluster: `kubeconfig`, else `KUBECONFIG`, else the pod's own, else the usual file.

    Raises:
        BadInput: there is none, it cannot be read, or it has no such context.
    """
    named = kubeconfig or environ.get("KUBECONFIG")
    try:
        if named:
            return _of_file(Path(named), context)
        if environ.get("KUBERNETES_SERVICE_HOST"):
            return Access(_single(KubeConfig.from_service_account(service_account), None))
        return _of_file(_USUAL, context)
    except (*_UNREADABLE, yaml.YAMLError) as error:
        why = f"no use as a kubeconfig: {error}"
        raise BadInput("KUBECONFIG", named or str(_USUAL), why) from error


def _of_file(path: Path, context: str | None) -> Access:
    if os.pathsep in str(path):
        raise ValueError("several files are not merged; name one")
    return Access(_single(KubeConfig.from_file(path), context))


def _single(config: KubeConfig, context: str | None) -> SingleConfig:
    single = config.get(context)
    if single is None:
        raise ConfigError("it has no current context")
    return single
