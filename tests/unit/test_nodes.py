"""Nodes put together: what is worked out before any of them runs."""

from __future__ import annotations

import pytest

from gp4u.errors import BadInput
from gp4u.nodes import own_address


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("https://127.0.0.1:6443", "127.0.0.1"),
        ("https://127.0.0.1", "127.0.0.1"),
        ("https://127.0.0.1/k8s/clusters/c-1", "127.0.0.1"),
        ("https://[::1]:6443", "::1"),
        ("https://[::1]", "::1"),
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
