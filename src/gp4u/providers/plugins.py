"""Markets that other packages bring: entry points of the group `gp4u.providers`.

Hides how they are found, and that any of them may be broken: a plug-in that cannot be loaded is
listed with the reason, and stops nothing. Reading the settings needs to know of them, since each
brings its own variables, so this file imports no adapter unless there is a plug-in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final, NamedTuple

from gp4u.provider_settings import SEED_PROVIDERS, ProviderDefaults

if TYPE_CHECKING:
    from gp4u.providers.opening import Opening

GROUP: Final = "gp4u.providers"


class Plugins(NamedTuple):
    """What was found."""

    openings: tuple[Opening, ...]
    broken: Mapping[str, str]
    """Name of an entry point to why nothing can be had of it."""


@cache
def installed() -> Plugins:
    """Return the plug-ins of this installation; looked for once in a process."""
    return load(entry_points(group=GROUP))


def known_providers() -> tuple[ProviderDefaults, ...]:
    """Return whose variables there are: of the built-in markets, then of the installed plug-ins."""
    openings = installed().openings
    if not openings:
        return SEED_PROVIDERS
    from gp4u.providers.opening import defaults_of  # with the plug-ins, which have loaded it

    return (*SEED_PROVIDERS, *(defaults_of(each.spec) for each in openings))


def load(points: Iterable[EntryPoint]) -> Plugins:
    """Load plug-ins, in the order of their names."""
    found = sorted(points, key=lambda point: (point.name, point.value))
    if not found:
        return Plugins((), {})
    from gp4u.providers.custom.opening import (  # httpx2, which most can spare
        check_variables,
        opening_of,
    )
    from gp4u.providers.opening import defaults_of

    known = list(SEED_PROVIDERS)
    openings: list[Opening] = []
    broken: dict[str, str] = {}
    for point in found:
        try:
            opening = opening_of(point.load())
            defaults = defaults_of(opening.spec)
            check_variables(defaults, known)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a rim: a plug-in must not stop the start
            broken[_name(point, {*broken, *(each.slug for each in known)})] = _why(point, error)
        else:
            known.append(defaults)
            openings.append(opening)
    return Plugins(tuple(openings), broken)


def _name(point: EntryPoint, taken: set[str]) -> str:
    """Return what to list a broken plug-in as: its name, unless somebody has it already."""
    return f"{point.name} ({point.value})" if point.name in taken else point.name


def _why(point: EntryPoint, error: BaseException) -> str:
    from gp4u.errors import BadInput
    from gp4u.providers.http import harmless

    said = harmless(str(error), 200)
    text = said if isinstance(error, BadInput) else f"{type(error).__name__}: {said}".rstrip(": ")
    package = f" of {point.dist.name}" if point.dist is not None else ""
    return f"the plug-in {point.value}{package} cannot be used: {text}"
