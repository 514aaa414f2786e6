"""Which login a market is given for an image."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gp4u.kubelet.spec.pull_secrets import login_for, reference
from gp4u.model import RegistryLogin
from tests.unit.kubelet.objects import packed, secret


def docker_config(auths: dict[str, Any]) -> dict[str, Any]:
    """Return a Secret of type kubernetes.io/dockerconfigjson."""
    return secret(**{".dockerconfigjson": json.dumps({"auths": auths})})


def entry(user: str, password: str = "secret") -> dict[str, str]:  # noqa: S107 - a test's own
    """Return one login as `docker login` writes it."""
    return {"auth": packed(f"{user}:{password}")}


def user_for(image: str, *servers: str) -> str | None:
    """Return the server whose login an image is pulled with."""
    known = docker_config({server: entry(str(n)) for n, server in enumerate(servers)})
    found = login_for(image, [("r", known)], namespace="default").login
    return servers[int(found.username)] if found else None


@pytest.mark.parametrize(
    ("image", "where"),
    [
        ("nginx", "docker.io/library/nginx"),
        ("nginx:1.27", "docker.io/library/nginx"),
        ("ozzu/june:latest", "docker.io/ozzu/june"),
        ("docker.io/nginx", "docker.io/library/nginx"),
        ("index.docker.io/ozzu/june", "docker.io/ozzu/june"),
        ("ghcr.io/org/app@sha256:abc", "ghcr.io/org/app"),
        ("ghcr.io/org/app:v1@sha256:abc", "ghcr.io/org/app"),
        ("localhost/app:1", "localhost/app"),
        ("registry:5000/team/app:v1", "registry:5000/team/app"),
        ("registry.local/app", "registry.local/app"),
    ],
)
def test_an_image_is_looked_up_by_where_it_really_is(image: str, where: str) -> None:
    """Docker Hub has many spellings, and a port is no tag."""
    assert reference(image) == where


@pytest.mark.parametrize(
    ("image", "servers", "chosen"),
    [
        ("ghcr.io/org/app", ["ghcr.io", "quay.io"], "ghcr.io"),
        ("ghcr.io/org/app", ["ghcr.io", "ghcr.io/org", "ghcr.io/other"], "ghcr.io/org"),
        ("ghcr.io/org/app", ["https://ghcr.io/v2/"], "https://ghcr.io/v2/"),
        ("nginx", ["https://index.docker.io/v1/"], "https://index.docker.io/v1/"),
        ("nginx", ["docker.io"], "docker.io"),
        ("ozzu/june", ["docker.io/ozzu", "docker.io"], "docker.io/ozzu"),
        ("a.gcr.io/x/y", ["*.gcr.io", "gcr.io"], "*.gcr.io"),
        ("a.gcr.io/x/y", ["*.gcr.io", "a.gcr.io"], "a.gcr.io"),
        ("a.b.gcr.io/x/y", ["*.gcr.io"], None),
        ("registry:5000/app", ["registry"], None),
        ("registry:5000/app", ["registry:5000"], "registry:5000"),
        ("quay.io/app/x", ["ghcr.io"], None),
        ("evil-ghcr.io/app/x", ["ghcr.io"], None),
    ],
)
def test_the_nearest_login_is_chosen_and_none_for_strangers(
    image: str, servers: list[str], chosen: str | None
) -> None:
    """The longest path wins, names go before globs, and no registry sees another's password."""
    assert user_for(image, *servers) == chosen


def test_both_forms_and_both_ways_to_write_a_login_are_read() -> None:
    """Old Secrets are still around."""
    plain = {"ghcr.io": {"username": "u", "password": "p:q"}}
    expected = RegistryLogin(server="ghcr.io", username="u", password="p:q")
    old = secret(**{".dockercfg": json.dumps(plain)})
    for known in (docker_config(plain), docker_config({"ghcr.io": entry("u", "p:q")}), old):
        found = login_for("ghcr.io/x/y", [("r", known)], namespace="default")
        assert (found.login, found.notices) == (expected, ())


def test_the_first_secret_wins_among_equals() -> None:
    """The pod's order is what its author can set."""
    one, two = docker_config({"ghcr.io": entry("1")}), docker_config({"ghcr.io": entry("2")})
    found = login_for("ghcr.io/x/y", [("a", one), ("b", two)], namespace="default").login
    assert found is not None
    assert found.username == "1"


@pytest.mark.parametrize(
    "broken",
    [
        None,
        {},
        secret(other="x"),
        secret(**{".dockerconfigjson": "{"}),
        secret(**{".dockerconfigjson": "[]"}),
        secret(**{".dockerconfigjson": '{"auths": 3}'}),
        secret(**{".dockerconfigjson": b"\xff\xfe"}),
        secret(**{".dockerconfigjson": "[" * 100_000}),
    ],
)
def test_a_missing_or_broken_secret_is_told_and_the_image_pulled_without(
    broken: dict[str, Any] | None,
) -> None:
    """A kubelet goes on as well: the image may be public, or another Secret may do."""
    good = docker_config({"ghcr.io": entry("u")})
    found = login_for("ghcr.io/x/y", [("bad", broken), ("good", good)], namespace="default")
    assert found.login is not None
    assert found.login.username == "u"
    (notice,) = found.notices
    assert notice.reason == "FailedToRetrieveImagePullSecret"
    assert "default/bad" in notice.message


@pytest.mark.parametrize("auth", ["%%%", packed("nocolon"), packed(b"\xff:\xff"), 7, ""])
def test_an_entry_that_cannot_be_read_counts_for_nothing(auth: object) -> None:
    """One bad line must not take the others with it."""
    known = docker_config({"ghcr.io": {"auth": auth}, "ghcr.io/x": entry("u")})
    found = login_for("ghcr.io/x/y", [("r", known)], namespace="default").login
    assert found is not None
    assert found.username == "u"
    assert login_for("ghcr.io/z/y", [("r", known)], namespace="default").login is None
