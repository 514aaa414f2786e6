"""The volumes of a pod as files that are brought to the machine before anything runs.

Hides what each kind of volume holds, and where a mount puts it: `items`, modes, `subPath`,
`subPathExpr`, keys that are missing. What is brought is what there was at that moment: nothing on a
rented machine is refreshed. An emptyDir is a directory. Pure: what was read from the cluster comes
as `Found`; kinds that cannot be brought at all are refused by `admission.py`.

Source: kubernetes pkg/volume/{configmap,secret,downwardapi,projected} and
pkg/volume/util/subpath, 1.32; checked 2026-11.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from gp4u.kubelet.held import PodObject
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.spec.admission import Notice, Refusal
from gp4u.kubelet.spec.environment import (
    CONFIG_ERROR,
    Addresses,
    expand,
    field_value,
    is_missing,
    resource_value,
    texts_of,
    unknown_names,
)
from gp4u.kubelet.spec.references import Found, Kind, Unresolved, mounted_volumes, token_ask
from gp4u.model import File

MAX_BYTES: Final = 48 * 1024
"""Of all files of one machine. They travel inside of the market's rent call, where some tens of
KiB are taken, and base64 makes a third more of them."""
MODE: Final = 0o644
INVALID_MOUNT: Final = "InvalidVolumeMount"
_ALWAYS_THERE: Final = frozenset(("/tmp", "/dev/shm"))  # noqa: S108 - directories of the image
_ESCAPES: Final = dict(
    zip('\a\b\f\n\r\t\v\\"', (rf"\{char}" for char in 'abfnrtv\\"'), strict=True)
)
_DEL: Final = 0x7F
_ONE_PLANE: Final = 0xFFFF

Tree = dict[str, tuple[bytes, int]]
"""Path below a volume's root to (content, mode)."""


class Mounts(Struct, frozen=True, kw_only=True):
    """What the volumes of one container come to."""

    files: tuple[File, ...] = ()
    directories: tuple[str, ...] = ()
    """Of emptyDirs; those that every image has are left out."""
    shared: tuple[tuple[str, str, str], ...] = ()
    """Of each mounted emptyDir: its name, what lies below its root, and where that is mounted."""
    notices: tuple[Notice, ...] = ()


class Volumes:
    """The volumes of one pod, each put together once."""

    def __init__(
        self,
        pod: PodObject,
        found: Found,
        *,
        addresses: Addresses,
        policy: NodePolicy,
        api_access: bool,
    ) -> None:
        self._pod, self._found = pod, found
        self._addresses, self._policy = addresses, policy
        self._mounted = {
            volume["name"]: (f"spec.volumes[{place}]", volume)
            for place, volume in mounted_volumes(pod, api_access=api_access)
        }
        self._trees: dict[str, Tree] = {}
        self._notices: dict[Notice, None] = {}

    def gather(self) -> Unresolved | Refusal | None:
        """Put every mounted volume together; say what is missing, or which path leads astray."""
        for name, (where, volume) in self._mounted.items():
            tree = self._tree(volume)
            if isinstance(tree, Unresolved):
                return tree
            astray = next(
                (path for path in tree if path.startswith("/") or not _is_tame(path)), None
            )
            if astray is not None:
                told = f"{where}: {astray[:80]!r} must be a relative path without .."
                return Refusal(INVALID_MOUNT, told)
            self._trees[name] = tree
        return None

    def mounts(
        self, container: Mapping[str, Any], where: str, env: Mapping[str, str]
    ) -> Mounts | Refusal:
        """Return what a container mounts; `gather` first. `env` is what `subPathExpr` sees."""
        files: dict[str, File] = {}
        directories: list[str] = []
        shared: list[tuple[str, str, str]] = []
        notices = dict(self._notices)
        for place, mount in enumerate(container.get("volumeMounts") or ()):
            if mount["name"] not in self._mounted:
                continue  # the token that nobody asked for
            field = f"{where}.volumeMounts[{place}]"
            at = _absolute(mount.get("mountPath") or "", f"{field}.mountPath")
            below = _sub_path(mount, field, env)
            if isinstance(at, Refusal):
                return at
            if isinstance(below, Refusal):
                return below
            _, volume = self._mounted[mount["name"]]
            if is_empty_dir(volume):
                shared.append((mount["name"], below, at))
                if at not in _ALWAYS_THERE:
                    directories.append(at)
                continue
            placed = dict(_placed(self._trees[mount["name"]], at, below))
            if below and not placed:
                told = f"{field}: volume {mount['name']!r} has nothing at {below!r}"
                notices[Notice("SubPathNotFound", told)] = None
            files.update(placed)
        return Mounts(
            files=tuple(files.values()),
            directories=tuple(dict.fromkeys(directories)),
            shared=tuple(shared),
            notices=tuple(notices),
        )

    def too_big(self, files: Sequence[File]) -> Refusal | None:
        """Refuse files that are more than a rent call takes, by the volume that weighs most."""
        size = sum(len(file.content) for file in files)
        if size <= MAX_BYTES:
            return None
        weights = {
            name: sum(len(content) for content, _ in tree.values())
            for name, tree in self._trees.items()
        }
        heaviest = max(weights, key=weights.__getitem__)
        told = (
            f"{self._mounted[heaviest][0]}: volume {heaviest!r} holds {weights[heaviest]} bytes; "
            f"the files of a machine may have {MAX_BYTES} bytes together, and have {size}"
        )
        return Refusal("VolumeTooLarge", told)

    def _tree(self, volume: Mapping[str, Any]) -> Tree | Unresolved:
        if (told := volume.get("configMap")) is not None:
            return self._keys(Kind.CONFIG_MAP, told.get("name") or "", told, _mode(told))
        if (told := volume.get("secret")) is not None:
            return self._keys(Kind.SECRET, told.get("secretName") or "", told, _mode(told))
        if (told := volume.get("downwardAPI")) is not None:
            return self._downward(told, _mode(told))
        if (told := volume.get("projected")) is not None:
            return self._projected(told)
        return {}

    def _projected(self, told: Mapping[str, Any]) -> Tree | Unresolved:
        tree: Tree = {}
        mode = _mode(told)
        for source in told.get("sources") or ():
            part: Tree | Unresolved = {}
            if (inner := source.get("configMap")) is not None:
                part = self._keys(Kind.CONFIG_MAP, inner.get("name") or "", inner, mode)
            elif (inner := source.get("secret")) is not None:
                part = self._keys(Kind.SECRET, inner.get("name") or "", inner, mode)
            elif (inner := source.get("downwardAPI")) is not None:
                part = self._downward(inner, mode)
            elif (inner := source.get("serviceAccountToken")) is not None:
                token = self._found.tokens.get(token_ask(inner), "")
                part = {inner.get("path") or "token": (token.encode(), mode)}
            if isinstance(part, Unresolved):
                return part
            tree.update(part)
        return tree

    def _keys(self, kind: Kind, name: str, told: Mapping[str, Any], mode: int) -> Tree | Unresolved:
        """Return the keys of a ConfigMap or Secret as files: all, or those of `items`."""
        optional = bool(told.get("optional"))
        content = self._found.of(kind, name)
        if content is None:
            return self._absent(kind, name, optional=optional)
        held = texts_of(kind, content)
        if not told.get("items"):
            return {key: (held[key], mode) for key in sorted(held)}
        tree: Tree = {}
        for item in told["items"]:
            if item["key"] in held:
                tree[item["path"]] = (held[item["key"]], _mode(item, mode))
                continue
            missing = self._absent(kind, name, item["key"], optional=optional)
            if isinstance(missing, Unresolved):
                return missing
        return tree

    def _downward(self, told: Mapping[str, Any], mode: int) -> Tree | Unresolved:
        tree: Tree = {}
        for item in told.get("items") or ():
            value = self._of_pod(item)
            if value is None:
                wanted = item.get("fieldRef") or item.get("resourceFieldRef") or {}
                told_of = f"{item['path']}: {dict(wanted)} is unknown"
                return Unresolved(CONFIG_ERROR, f"downwardAPI {told_of}")
            tree[item["path"]] = (value.encode(), _mode(item, mode))
        return tree

    def _of_pod(self, item: Mapping[str, Any]) -> str | None:
        if (resource := item.get("resourceFieldRef")) is not None:
            return resource_value(self._pod, {}, resource, self._policy)
        path = (item.get("fieldRef") or {}).get("fieldPath", "")
        if path in ("metadata.labels", "metadata.annotations"):
            texts = self._pod["metadata"].get(path.removeprefix("metadata.")) or {}
            return "\n".join(f"{key}={quoted(texts[key])}" for key in sorted(texts))
        return field_value(self._pod, path, self._addresses)

    def _absent(self, kind: Kind, name: str, key: str = "", *, optional: bool) -> Tree | Unresolved:
        reason, message = is_missing(kind, self._pod["metadata"]["namespace"], name, key)
        if not optional and not self._found.settled:
            return Unresolved(f"Mandatory{reason}", message)
        self._notices[Notice(f"Optional{reason}", message)] = None
        return {}


def quoted(text: str) -> str:
    """Return a text as the files of a downward volume have it: in quotes, in one line.

    Source: Go, strconv.Quote; checked 2026-11.
    """
    return f'"{"".join(_escaped(char) for char in text)}"'


def _escaped(char: str) -> str:
    if char in _ESCAPES or char.isprintable():
        return _ESCAPES.get(char, char)
    code = ord(char)
    if code < ord(" ") or code == _DEL:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= _ONE_PLANE else f"\\U{code:08x}"


def _placed(tree: Tree, at: str, below: str) -> Iterator[tuple[str, File]]:
    """Yield the files of a volume, or of what lies `below` its root, where they are mounted."""
    for path, (content, mode) in tree.items():
        if not below:
            where = posixpath.join(at, path)
        elif path == below:
            where = at
        elif path.startswith(f"{below}/"):
            where = posixpath.join(at, path[len(below) + 1 :])
        else:
            continue
        yield where, File(path=where, content=content, mode=mode)


def _sub_path(mount: Mapping[str, Any], field: str, env: Mapping[str, str]) -> str | Refusal:
    """Return what lies below the volume's root is meant; empty: all of it."""
    text, member = mount.get("subPath") or "", "subPath"
    if expression := mount.get("subPathExpr"):
        member = "subPathExpr"
        if unknown := unknown_names(expression, env):
            told = f"{field}.{member}: no variable is called {', '.join(unknown)}"
            return Refusal(INVALID_MOUNT, told)
        text = expand(expression, env)
    if not text:
        return ""
    if text.startswith("/") or not _is_tame(text):
        told = f"{field}.{member}: {text[:80]!r} must be a relative path without .."
        return Refusal(INVALID_MOUNT, told)
    normal = posixpath.normpath(text)
    return "" if normal == "." else normal


def _absolute(path: str, field: str) -> str | Refusal:
    """Return a mount path in its plain form; a relative one starts at the root, as everywhere."""
    normal = posixpath.normpath(f"/{path.lstrip('/')}")
    if not _is_tame(path) or normal == "/":
        told = f"{field}: {path[:80]!r} must be a path below the root, without .."
        return Refusal(INVALID_MOUNT, told)
    return normal


def _is_tame(path: str) -> bool:
    """Whether a path leads nowhere else than it says."""
    return ".." not in path.split("/") and path.isprintable()


def is_empty_dir(volume: Mapping[str, Any]) -> bool:
    """Tell whether a volume is a directory that begins empty; one that says nothing is."""
    return not {"configMap", "secret", "downwardAPI", "projected"} & set(volume)


def _mode(told: Mapping[str, Any], default: int = MODE) -> int:
    mode = told.get("mode", told.get("defaultMode"))
    return default if mode is None else int(mode) & 0o777
