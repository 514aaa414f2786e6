"""Variables as text: what they are called, where each was found, and what looks like one of ours.

Hides the forms in which values arrive: a mapping such as the environment, files of `NAME=value`
lines, files that hold one secret, and the YAML file of preferences. The `Reader` turns each into a
layer, in order, and remembers for every variable the raw text and where it came from, because a
complaint without that is a riddle. `entry_of` reads off an annotated field what people must know of
it, so that bounds and defaults are written once. The fields themselves are in `settings.py` and
`provider_settings.py`.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from dotenv.parser import parse_stream
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from gp4u.errors import BadInput

MAX_FILE_BYTES = 1 << 20
HIDDEN = "***"

_FLAGS = {"true": True, "1": True, "yes": True, "on": True}
_FLAGS |= {"false": False, "0": False, "no": False, "off": False}

_SHARED_PREFIXES = ("VAST_", "RENDER_", "PROVIDER_")
"""Others use these too: a rented machine has `VAST_CONTAINERLABEL`, some hosters set `RENDER_*`."""

_PREFERENCES = {
    ("gpu", "preferred_types"): "VAST_GPU_TYPE",
    ("locations",): "VAST_DATACENTER_LOCATION",
    ("requirements", "min_gpu_memory"): "VAST_MIN_GPU_MEMORY",
    ("requirements", "max_price_per_hour"): "VAST_MAX_PRICE_PER_HOUR",
    ("requirements", "min_download_speed"): "VAST_MIN_DOWNLOAD_SPEED",
    ("requirements", "reliability_score"): "VAST_RELIABILITY_SCORE",
}
"""Key of the preferences file to the variable that says the same.

Source: the second seed, "Advanced Configuration", for `gpu.preferred_types` and `locations`.
"""


@dataclass(frozen=True)
class Variable:
    """What a person must know of a setting that its type does not say.

    In `ProviderSettings` the name is what follows the provider's prefix. `allowed` is the range in
    words, where it cannot be read off the field's bounds; `default` likewise.
    """

    name: str
    unit: str
    meaning: str
    allowed: str = ""
    default: str = ""


class Group(BaseModel):
    """Settings that are handed on together; frozen, finite, and silent about what was put in."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


@dataclass(frozen=True)
class Entry:
    """One variable, as the reference pages and the readers of files need it."""

    variable: str
    aliases: tuple[str, ...]
    unit: str
    meaning: str
    allowed: str
    """The range in words."""
    default: str
    """Empty: none."""
    secret: bool
    """May also be given as `<variable>_FILE`, the path of a file that holds it."""
    paths: tuple[tuple[str, ...], ...] = field(repr=False)
    """Where the value lands in the settings, as steps from the top."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it may be given under, the canonical one first."""
        plain = (self.variable, *self.aliases)
        return plain + tuple(f"{name}_FILE" for name in plain) if self.secret else plain


def _flag(value: object) -> object:
    """Read the eight words for yes and no; pydantic would take `t` and `y` as well."""
    if isinstance(value, bool):
        return value
    known = _FLAGS.get(str(value).strip().lower())
    if known is None:
        raise ValueError("true, false, 1, 0, yes, no, on or off")
    return known


def _names(value: object) -> object:
    """Split a comma list; order is kept, it is a preference."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _token(value: SecretStr | None) -> SecretStr | None:
    """Refuse what cannot stand in an HTTP header; a stray newline would split the request."""
    text = value.get_secret_value() if value else ""
    if not all("!" <= character <= "~" for character in text):
        raise ValueError("printable ASCII without spaces")
    return value


Flag = Annotated[bool, BeforeValidator(_flag)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Token = Annotated[SecretStr | None, AfterValidator(_token)]
Word = BeforeValidator(_lower)
"""For a `Literal` of lower-case words."""


def entry_of(
    info: FieldInfo,
    paths: tuple[tuple[str, ...], ...],
    *,
    prefix: str = "",
    name: str | None = None,
    aliases: tuple[str, ...] = (),
    default: object = None,
) -> Entry:
    """Return the entry of one annotated field.

    Raises:
        TypeError: the field does not say which variable sets it.
    """
    about = variable_of(info)
    if about is None:
        raise TypeError(f"the setting {paths[0]} does not say which variable sets it")
    if default is None and not info.is_required():
        default = info.default
    return Entry(
        variable=prefix + (name or about.name),
        aliases=aliases,
        unit=about.unit,
        meaning=about.meaning,
        allowed=about.allowed or _allowed(info),
        default=about.default or shown(default),
        secret=SecretStr in (info.annotation, *get_args(info.annotation)),
        paths=paths,
    )


def disorder(variable: str, value: object, bound: str) -> PydanticCustomError:
    """Say that a variable contradicts its neighbours; the settings read the context."""
    context = {"variable": variable, "value": shown(value), "bound": bound}
    return PydanticCustomError("disorder", "contradiction", context)


def variable_of(info: FieldInfo) -> Variable | None:
    """Return what a field says about its variable; None where no variable sets it."""
    return next((each for each in info.metadata if isinstance(each, Variable)), None)


def _allowed(info: FieldInfo) -> str:
    """Return a field's range in words, read off its type and bounds."""
    kinds = (info.annotation, *get_args(info.annotation))
    if get_origin(info.annotation) is Literal:
        return f"one of {', '.join(get_args(info.annotation))}"
    if bool in kinds:
        return "true, false, 1, 0, yes, no, on or off"
    if SecretStr in kinds:
        return "printable ASCII without spaces"
    if get_origin(info.annotation) is tuple:
        return "comma list"
    bounds: dict[str, object] = {}
    for each in info.metadata:
        for name in ("gt", "ge", "le"):
            if (value := getattr(each, name, None)) is not None:
                bounds[name] = value
    kind = "whole number" if int in kinds else "number"
    low = f"above {bounds['gt']}" if "gt" in bounds else f"from {bounds['ge']}"
    return f"{kind} {low} to {bounds['le']}"


def shown(value: object) -> str:
    """Return a value as one would write it in a file; secrets are hidden, nothing is empty."""
    match value:
        case None:
            return ""
        case SecretStr():
            return HIDDEN
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case tuple():
            return ",".join(str(each) for each in value)
        case _:
            return str(value)


class Reader:
    """Takes layers in order of precedence; the first that names a variable decides it."""

    def __init__(self, entries: Sequence[Entry], cwd: Path) -> None:
        self._entries, self._cwd = entries, cwd
        self.layers: list[dict[str, Any]] = []
        """One tree of settings per layer, highest first."""
        self.origins: dict[str, str] = {}
        self.raw: dict[str, object] = {}
        """Variable to what was found; the empty string where somebody asked for the default."""
        self.seen: list[tuple[str, str]] = []
        """(name, origin) of everything that was looked at."""
        self.strangers: list[str] = []
        """Sentences about keys of the preferences file that mean nothing to us."""
        self.problems: list[BadInput] = []

    def take(self, origin: str, values: Mapping[str, Any]) -> None:
        """Add a layer of variables; an empty value decides for the default."""
        self.seen += [(name, origin) for name in values]
        tree: dict[str, Any] = {}
        for entry in self._entries:
            given = [name for name in entry.names if name in values]
            if not given or entry.variable in self.raw:
                continue
            name = next((each for each in given if not _is_empty(values[each])), given[0])
            value, source = values[name], origin
            if _is_empty(value):
                self.raw[entry.variable] = ""
                continue
            if name not in (entry.variable, *entry.aliases):
                path = self._cwd / str(value)
                value, source = self._secret(path, name), str(path)
            self.raw[entry.variable] = value
            self.origins[entry.variable] = source
            for steps in entry.paths:
                _put(tree, steps, value)
        self.layers.append(tree)

    def env_file(self, name: str) -> dict[str, str]:
        """Return the variables of a file of `NAME=value` lines; none where there is no such file.

        What is written is what holds: `${OTHER}` is not filled in.
        """
        path = self._cwd / name
        if not path.exists():
            return {}
        values = {}
        for binding in parse_stream(io.StringIO(self._text(path, name))):
            if binding.error:
                where = f"{name} line {binding.original.line}"
                self.problems.append(BadInput(where, HIDDEN, "NAME=value"))
            elif binding.key and binding.value is not None:
                values[binding.key] = binding.value.strip()
        return values

    def preferences(self, path: Path) -> None:
        """Add the YAML file of preferences as a layer."""
        try:
            document = yaml.safe_load(self._text(path, "GP4U_CONFIG"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2026-13-45 is no date
            mark = getattr(error, "problem_mark", None)
            where = f" (line {mark.line + 1})" if mark else ""
            self.problems.append(BadInput("GP4U_CONFIG", str(path), f"valid YAML{where}"))
            return
        if document is None:
            return
        if not isinstance(document, dict):
            self.problems.append(BadInput("GP4U_CONFIG", str(path), "a YAML mapping"))
            return
        values: dict[str, Any] = {}
        weights = document.pop("weights", None)
        for keys, value in _leaves(document):
            if variable := _PREFERENCES.get(keys):
                values[variable] = value
            else:
                self.strangers.append(f"{'.'.join(keys)} ({path}) is not a key we know")
        self.take(str(path), values)
        if weights is not None:
            self.raw["weights"], self.origins["weights"] = weights, str(path)
            self.layers.append({"weights": weights})

    def unknown(self, prefixes: Sequence[str], theirs: Sequence[str] = ()) -> Iterator[str]:
        """Yield a sentence for each name with a prefix of ours that is no variable of ours.

        A prefix of `theirs` is a plug-in's, which may have variables that we do not know: there
        only what is nearly one that we do is a mistake.
        """
        known = {name for entry in self._entries for name in entry.names}
        for name, origin in self.seen:
            if name in known or not name.startswith((*prefixes, *theirs)):
                continue
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
            shared = origin == "environment" and name.startswith(_SHARED_PREFIXES)
            if not near and (shared or name.startswith(tuple(theirs))):
                continue
            hint = f"; did you mean {near[0]}?" if near else ""
            yield f"{name} ({origin}) is not a variable of GP4U{hint}"
        yield from self.strangers

    def _secret(self, path: Path, name: str) -> str:
        """Return what a file of one secret holds; one without any is a problem of `name`."""
        before = len(self.problems)
        text = self._text(path, name).strip()
        if not text and len(self.problems) == before:
            self.problems.append(BadInput(name, str(path), "a file that is not empty"))
        return text

    def _text(self, path: Path, name: str) -> str:
        """Return a file's text; where it cannot be read, note it as a problem of `name`."""
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise OSError("too large")
            return path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError):
            bound = f"a readable UTF-8 file of at most {MAX_FILE_BYTES >> 20} MiB"
            self.problems.append(BadInput(name, str(path), bound))
            return ""


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _put(tree: dict[str, Any], steps: Sequence[str], value: object) -> None:
    for step in steps[:-1]:
        tree = tree.setdefault(step, {})
    tree[steps[-1]] = value


def _leaves(document: Mapping[object, object]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield (keys, value) two levels deep; numbers as text, so that 0.1 stays 0.1."""
    for key, value in document.items():
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        for second, leaf in inner:
            keys = (str(key),) if second is None else (str(key), str(second))
            plain = isinstance(leaf, (int, float)) and not isinstance(leaf, bool)
            yield keys, str(leaf) if plain else leaf
