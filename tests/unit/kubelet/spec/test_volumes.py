"""What volumes come to on a machine that cannot reach the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from gp4u.kubelet.spec.admission import Refusal
from gp4u.kubelet.spec.environment import Addresses
from gp4u.kubelet.spec.references import API_ACCESS_PATH, Found, TokenAsk, Unresolved
from gp4u.kubelet.spec.volumes import MAX_BYTES, Mounts, Volumes, quoted
from gp4u.model import File
from tests.unit.kubelet.objects import (
    POLICY,
    config_map,
    container,
    found,
    packed,
    pod,
    secret,
)

HERE = Addresses(host_ip="10.0.0.7")
CONFIG = found(maps={"c": config_map(**{"a.txt": "A", "b.txt": "B"})})


def mounted(
    volume: Mapping[str, Any],
    *mounts: Mapping[str, Any],
    known: Found = CONFIG,
    env: Mapping[str, str] | None = None,
    api_access: bool = False,
) -> Mounts | Unresolved | Refusal:
    """Return what one volume comes to, mounted at /v or as said."""
    given = mounts or ({"mountPath": "/v"},)
    of = container(volumeMounts=[{"name": "v", **each} for each in given])
    body = pod(of, volumes=[{"name": "v", **volume}], labels={"b": "2", "a": '1"\n'})
    volumes = Volumes(body, known, addresses=HERE, policy=POLICY, api_access=api_access)
    problem = volumes.gather()
    return problem or volumes.mounts(of, "spec.containers[0]", env or {})


def files(volume: Mapping[str, Any], *mounts: Mapping[str, Any], **more: Any) -> dict[str, bytes]:
    """Return the files of one volume, by path."""
    answer = mounted(volume, *mounts, **more)
    assert isinstance(answer, Mounts)
    return {file.path: file.content for file in answer.files}


def test_every_key_of_a_config_map_is_a_file() -> None:
    """Text and bytes alike."""
    body = {"data": {"t": "text\n"}, "binaryData": {"b": packed(b"\x00\xff")}}
    known = found(maps={"c": body})
    assert files({"configMap": {"name": "c"}}, known=known) == {
        "/v/t": b"text\n",
        "/v/b": b"\x00\xff",
    }


def test_items_choose_rename_and_set_modes() -> None:
    """Only what is named is there, where it is named."""
    items = [{"key": "a.txt", "path": "deep/er/x", "mode": 0o400}, {"key": "b.txt", "path": "y"}]
    answer = mounted({"configMap": {"name": "c", "items": items, "defaultMode": 0o600}})
    assert isinstance(answer, Mounts)
    assert answer.files == (
        File(path="/v/deep/er/x", content=b"A", mode=0o400),
        File(path="/v/y", content=b"B", mode=0o600),
    )


def test_the_keys_of_a_secret_are_decoded() -> None:
    """A certificate must arrive as the file that it is."""
    known = found(secrets={"s": secret(key=b"\x30\x82")})
    answer = mounted({"secret": {"secretName": "s"}}, known=known)
    assert isinstance(answer, Mounts)
    assert answer.files == (File(path="/v/key", content=b"\x30\x82", mode=0o644),)


@pytest.mark.parametrize(
    ("volume", "reason"),
    [
        ({"configMap": {"name": "x"}}, "ConfigMapNotFound"),
        ({"secret": {"secretName": "x"}}, "SecretNotFound"),
        (
            {"configMap": {"name": "c", "items": [{"key": "z", "path": "z"}]}},
            "ConfigMapKeyNotFound",
        ),
        ({"projected": {"sources": [{"secret": {"name": "x"}}]}}, "SecretNotFound"),
    ],
)
def test_what_is_missing_holds_the_pod_unless_it_is_optional(
    volume: dict[str, Any], reason: str
) -> None:
    """K14: the same reasons as for the environment."""
    missing = mounted(volume)
    assert isinstance(missing, Unresolved)
    assert missing.reason == f"Mandatory{reason}"
    (kind,) = volume
    inner = volume[kind]["sources"][0]["secret"] if kind == "projected" else volume[kind]
    inner["optional"] = True
    answer = mounted(volume)
    assert isinstance(answer, Mounts)
    assert answer.files == ()
    assert [notice.reason for notice in answer.notices] == [f"Optional{reason}"]


def test_a_downward_volume_tells_labels_in_sorted_quoted_lines() -> None:
    """Programs parse this form."""
    items = [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
        {
            "path": "cpus",
            "resourceFieldRef": {"containerName": "main", "resource": "requests.nvidia.com/gpu"},
        },
    ]
    assert files({"downwardAPI": {"items": items}}) == {
        "/v/labels": b'a="1\\"\\n"\nb="2"',
        "/v/name": b"june",
        "/v/cpus": b"1",
    }
    wrong = [{"path": "x", "fieldRef": {"fieldPath": "spec.nothing"}}]
    assert isinstance(mounted({"downwardAPI": {"items": wrong}}), Unresolved)


def test_a_projected_volume_is_the_union_of_its_sources() -> None:
    """Later ones go over earlier ones, one mode for all that set none."""
    sources = [
        {"configMap": {"name": "c"}},
        {"secret": {"name": "s", "items": [{"key": "k", "path": "a.txt", "mode": 0o400}]}},
        {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.uid"}}]}},
    ]
    known = found(maps={"c": config_map(**{"a.txt": "A", "z": "Z"})}, secrets={"s": secret(k="K")})
    answer = mounted({"projected": {"sources": sources, "defaultMode": 0o440}}, known=known)
    assert isinstance(answer, Mounts)
    assert {file.path: (file.content, file.mode) for file in answer.files} == {
        "/v/a.txt": (b"K", 0o400),
        "/v/z": (b"Z", 0o440),
        "/v/n": (b"5c8e4f1e-0000-4000-8000-000000000001", 0o440),
    }


def test_a_sub_path_mounts_one_file_or_one_directory() -> None:
    """The way to put one file into a directory of the image."""
    items = [{"key": "a.txt", "path": "d/a"}, {"key": "b.txt", "path": "d/e/b"}]
    volume = {"configMap": {"name": "c", "items": items}}
    one = {"mountPath": "/etc/app.conf", "subPath": "d/a"}
    assert files(volume, one) == {"/etc/app.conf": b"A"}
    assert files(volume, {"mountPath": "/x", "subPath": "d/"}) == {"/x/a": b"A", "/x/e/b": b"B"}
    answer = mounted(volume, {"mountPath": "/x", "subPath": "none"})
    assert isinstance(answer, Mounts)
    assert [notice.reason for notice in answer.notices] == ["SubPathNotFound"]


def test_a_sub_path_expression_sees_the_environment() -> None:
    """And names that nobody knows are an error, not a directory of that name."""
    volume = {"configMap": {"name": "c"}}
    mount = {"mountPath": "/x", "subPathExpr": "$(NAME).txt"}
    assert files(volume, mount, env={"NAME": "b"}) == {"/x": b"B"}
    refusal = mounted(volume, mount)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "InvalidVolumeMount"
    assert "volumeMounts[0].subPathExpr" in refusal.message
    assert "NAME" in refusal.message


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc", "..", "a\nb", "a\0b"])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    """S11: nothing that a user writes may lead out of where it is mounted."""
    volume = {"configMap": {"name": "c"}}
    for answer in (
        mounted(volume, {"mountPath": "/x", "subPath": path}),
        mounted(volume, {"mountPath": "/x", "subPathExpr": "$(P)"}, env={"P": path}),
        mounted({"configMap": {"name": "c", "items": [{"key": "a.txt", "path": path}]}}),
        mounted(volume, known=found(maps={"c": config_map(**{path: "x"})})),
    ):
        assert isinstance(answer, Refusal)
        assert answer.reason == "InvalidVolumeMount"


@pytest.mark.parametrize("path", ["", "/", "/a/../..", "/a/../b", "/a\nb", "//"])
def test_mount_paths_that_are_no_plain_directory_are_refused(path: str) -> None:
    """The root itself cannot be a volume, and dots are nobody's honest wish."""
    answer = mounted({"configMap": {"name": "c"}}, {"mountPath": path})
    assert isinstance(answer, Refusal)
    assert "volumeMounts[0].mountPath" in answer.message


def test_a_relative_mount_path_starts_at_the_root() -> None:
    """As a kubelet has it."""
    assert set(files({"configMap": {"name": "c"}}, {"mountPath": "etc//app/"})) == {
        "/etc/app/a.txt",
        "/etc/app/b.txt",
    }


def test_an_empty_dir_is_a_directory_and_has_no_files() -> None:
    """Those that every image has need not be made."""
    answer = mounted({"emptyDir": {}}, {"mountPath": "/cache", "subPath": "x"})
    assert isinstance(answer, Mounts)
    assert (answer.files, answer.directories) == ((), ("/cache",))
    assert answer.shared == (("v", "x", "/cache"),)
    shm = mounted({"emptyDir": {"medium": "Memory"}}, {"mountPath": "/dev/shm"})  # noqa: S108 - theirs
    assert isinstance(shm, Mounts)
    assert shm.directories == ()


ACCESS = {
    "projected": {
        "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "kube-root-ca.crt"}},
            {
                "downwardAPI": {
                    "items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]
                }
            },
        ]
    }
}


def test_the_token_that_every_pod_has_is_left_out_without_a_word() -> None:
    """It would hand cluster access to a stranger's machine."""
    answer = mounted(ACCESS, {"mountPath": API_ACCESS_PATH}, known=Found())
    assert answer == Mounts()


def test_the_token_is_shipped_where_the_pod_asks_for_it() -> None:
    """With what stands beside it."""
    base = found(maps={"kube-root-ca.crt": config_map(**{"ca.crt": "CA"})})
    known = Found(objects=base.objects, tokens={TokenAsk("", 3607): "a.b.c"})
    assert files(ACCESS, {"mountPath": API_ACCESS_PATH}, known=known, api_access=True) == {
        f"{API_ACCESS_PATH}/token": b"a.b.c",
        f"{API_ACCESS_PATH}/ca.crt": b"CA",
        f"{API_ACCESS_PATH}/ns": b"default",
    }


def test_files_that_are_too_much_for_a_rent_call_are_refused_by_volume() -> None:
    """With its size and the bound, so that its owner knows what to shorten."""
    of = container(volumeMounts=[{"name": "v", "mountPath": "/v"}])
    body = pod(of, volumes=[{"name": "v", "configMap": {"name": "c"}}])
    refusals = []
    for size in (MAX_BYTES, MAX_BYTES + 1):
        known = found(maps={"c": config_map(big="x" * size)})
        volumes = Volumes(body, known, addresses=HERE, policy=POLICY, api_access=False)
        assert volumes.gather() is None
        answer = volumes.mounts(of, "spec.containers[0]", {})
        assert isinstance(answer, Mounts)
        refusals.append(volumes.too_big(answer.files))
    fits, refusal = refusals
    assert fits is None
    assert refusal is not None
    for told in ("spec.volumes[0]", "'v'", str(MAX_BYTES), str(MAX_BYTES + 1)):
        assert told in refusal.message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain \u00e4", '"plain \u00e4"'),
        ('a\tb\\c"d', '"a\\tb\\\\c\\"d"'),
        ("\a\b\f\n\r\v", '"\\a\\b\\f\\n\\r\\v"'),
        ("\x00\x1b\x7f", '"\\x00\\x1b\\x7f"'),
        ("\u200b\U000e0001", '"\\u200b\\U000e0001"'),
    ],
)
def test_quoted_text_is_one_line_as_go_writes_it(text: str, line: str) -> None:
    """Programs read these files with Go's own unquoting."""
    assert quoted(text) == line
