"""Nodes put together: what is worked out before any of them runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gp4u.errors import BadInput
from gp4u.kubelet.policy import Taint
from gp4u.nodes import own_address, place_to_listen, policies_of
from gp4u.settings import load_settings


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("https://127.0.0.1:6443", "127.0.0.1"),
        ("https://127.0.0.1", "127.0.0.1"),
        ("https://127.0.0.1/k8s/clusters/c-1", "127.0.0.1"),
    ],
)
def test_the_address_that_faces_the_api_server_is_found(server: str, address: str) -> None:
    """Kubeconfigs of hosted clusters name no port."""
    assert own_address(server) == address


@pytest.mark.parametrize("server", ["https://", "https://127.0.0.1:port", "https://[::1"])
def test_a_server_that_leads_nowhere_is_refused_by_the_setting_that_helps(server: str) -> None:
    """Whoever reads it can name the address."""
    with pytest.raises(BadInput, match="GP4U_NODE_ADDRESS"):
        own_address(server)


@pytest.mark.parametrize(
    ("key", "taint"),
    [("none", None), ("", Taint()), ("example.org/gpu", Taint(key="example.org/gpu"))],
)
def test_a_node_can_be_without_a_taint(key: str, taint: Taint | None, tmp_path: Path) -> None:
    """An empty variable is the default, as everywhere."""
    settings = load_settings({"VKUBELET_TAINT_KEY": key}, tmp_path)
    (policy,) = policies_of(settings, address="203.0.113.46").values()
    assert policy.taint == taint


@pytest.mark.parametrize(
    ("listen", "address", "place"),
    [
        ("0.0.0.0", "203.0.113.46", "0.0.0.0"),  # noqa: S104 - as it is by default
        ("0.0.0.0", "2001:db8::46", "::"),  # noqa: S104 - as it is by default
        ("127.0.0.1", "2001:db8::46", "127.0.0.1"),
        ("::", "203.0.113.46", "::"),
    ],
)
def test_everywhere_is_where_the_node_is_reached(listen: str, address: str, place: str) -> None:
    """In a cluster of IPv6 alone neither the API server nor a probe would find it."""
    assert place_to_listen(listen, address) == place
