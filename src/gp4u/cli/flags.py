"""Flags as typer needs them: types, names, help, completion, and the order of a help page.

Several commands share flags: what to rent (`takes_demand`), and how to show it (`shows`). They are
declared once here and added to a command's signature. What the words mean is left to `parse.py`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Final

import typer
from msgspec import Struct
from typer.core import TyperCommand

from gp4u.cli.screen import Form, Screen
from gp4u.cli.terminal import Colour

HELP_NAMES: Final = {"help_option_names": ["-h", "--help"]}
_WHAT: Final = "What to rent"
_SHOW: Final = "How to show it"
_IMPATIENT_S: Final = 2.0
"""How long a shell waits for a server before it completes nothing."""
_PANELS: Final = ("Options", _WHAT, _SHOW)


class Command(TyperCommand):
    """A command whose help page lists its own options first, then those it shares with others."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what follows the command's name: arguments as they are declared."""
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        return [self.options_metavar or "", *(str(p.metavar) for p in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each group of options."""
        arguments: list[tuple[str, str]] = []
        panels: dict[str, list[tuple[str, str]]] = {name: [] for name in _PANELS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                arguments.append((str(param.metavar), record[1]))
            else:
                panels[getattr(param, "rich_help_panel", None) or "Options"].append(record)
        for title, records in (("Arguments", arguments), *panels.items()):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def number(text: str | float) -> float:
    """Read a finite number; typer hands over defaults too.

    Raises:
        BadParameter: it is none; typer adds the flag's name.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(f"{text!r} is not a number")
    return value


def whole(text: str | int) -> int:
    """Read a whole number; typer hands over defaults too.

    Raises:
        BadParameter: it is none; typer adds the flag's name.
    """
    try:
        return int(str(text)[:20])
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def one_of(kind: type[Form] | type[Colour]) -> Callable[[str], Any]:
    """Return a parser that takes one of an enumeration's words."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            words = ", ".join(kind)
            raise typer.BadParameter(f"{text!r} is not one of {words}") from None

    return parse


def complete_gpu(incomplete: str) -> list[str]:
    """Return the GPU models that begin with what was typed, as one types them."""
    from gp4u import gpus  # a table that only completion and demands need

    names = (gpu.model.replace(" ", "") for gpu in gpus.models())
    return [name for name in names if name.lower().startswith(incomplete.lower())]


def complete_provider(incomplete: str) -> list[str]:
    """Return the markets that begin with what was typed."""
    from gp4u.providers.plugins import known_providers  # settings, which help pages can spare

    return [each.slug for each in known_providers() if each.slug.startswith(incomplete)]


def complete_rental(incomplete: str) -> list[str]:
    """Return the names and keys of open rentals that begin with what was typed."""
    import asyncio  # all of this only when a shell asks what could come next
    import os
    from pathlib import Path

    from gp4u.errors import Gp4uError
    from gp4u.settings import load_settings

    async def names() -> list[str]:
        settings = load_settings(os.environ, Path.cwd())
        if settings.api.url is not None:
            from gp4u.cli.run import open_counter

            async with asyncio.timeout(_IMPATIENT_S), open_counter(settings) as at:
                seen = await at.desk.look(everything=False, ask=False)
            held = [(rental.owner, rental.key) for rental in seen.rentals]
        else:
            from gp4u.rentals.ledger import open_ledger

            async with open_ledger(settings.database_url) as ledger:
                held = [(rental.owner, rental.key) for rental in await ledger.open_rentals()]
        return [word for owner, key in held for word in (owner.removeprefix("cli:"), key)]

    try:
        return [name for name in asyncio.run(names()) if name.startswith(incomplete)]
    except (Gp4uError, TimeoutError):
        return []  # a shell that waits for words has no place for a complaint


def complete_from(*words: str) -> Callable[[str], list[str]]:
    """Return a completion over words that are always the same."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


class DemandFlags(Struct, frozen=True, kw_only=True):
    """The demand's flags as given; None where a flag was not given."""

    provider: list[str] | None = None
    gpu: list[str] | None = None
    gpus: int = 1
    cpus: float | None = None
    ram: float | None = None
    min_vram: float | None = None
    max_price: str | None = None
    min_reliability: float | None = None
    min_download: float | None = None
    location: list[str] | None = None
    interruptible: bool = False
    unverified: bool = False
    datacenter: bool = False
    weight: list[str] | None = None


def _what(*names: str, text: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=_WHAT, **more)


def _amount(name: str, text: str, metavar: str) -> Any:
    return Annotated[
        float | None, _what(name, text=text, metavar=metavar, parser=number, show_default=False)
    ]


_DEMAND: Final[Sequence[tuple[str, Any, object]]] = (
    (
        "gpu",
        Annotated[
            list[str] | None,
            _what(
                "--gpu",
                text="Model, first choice first; repeat, or separate by commas.",
                metavar="NAME",
                autocompletion=complete_gpu,
            ),
        ],
        None,
    ),
    (
        "gpus",
        Annotated[int, _what("--gpus", text="How many, exactly.", metavar="N", parser=whole)],
        1,
    ),
    ("min_vram", _amount("--min-vram", "Memory per GPU, at least.", "GIB"), None),
    (
        "max_price",
        Annotated[
            str | None,
            _what("--max-price", text="All-in price per hour, at most.", metavar="DOLLARS"),
        ],
        None,
    ),
    (
        "min_reliability",
        _amount("--min-reliability", "Share of time up, at least: 0.95 is 95 %.", "0..1"),
        None,
    ),
    ("min_download", _amount("--min-download", "Download speed, at least.", "MBPS"), None),
    ("cpus", _amount("--cpus", "CPU cores, at least.", "N"), None),
    ("ram", _amount("--ram", "Main memory, at least.", "GIB"), None),
    (
        "location",
        Annotated[
            list[str] | None,
            _what(
                "--location",
                text="Where, nearest wish first: US-CA,US-TX,US,EU; repeat, or separate by commas.",
                metavar="PLACE",
                autocompletion=complete_from("US", "US-CA", "US-NY", "US-TX", "CA", "EU", "ASIA"),
            ),
        ],
        None,
    ),
    (
        "provider",
        Annotated[
            list[str] | None,
            _what(
                "--provider",
                "-p",
                text="Market, repeatable.  [default: all]",
                metavar="NAME",
                autocompletion=complete_provider,
            ),
        ],
        None,
    ),
    (
        "interruptible",
        Annotated[
            bool,
            _what("--interruptible", text="Bid: cheaper, and can be taken away at any time."),
        ],
        False,
    ),
    (
        "unverified",
        Annotated[
            bool, _what("--unverified", text="Take hosts too that the market has not verified.")
        ],
        False,
    ),
    (
        "datacenter",
        Annotated[bool, _what("--datacenter", text="Take only hosts that stand in a datacenter.")],
        False,
    ),
    (
        "weight",
        Annotated[
            list[str] | None,
            _what(
                "--weight",
                text="What counts how much: price=0.5; what is not given shares the rest.",
                metavar="CRITERION=0..1",
            ),
        ],
        None,
    ),
)

_VIEW: Final[Sequence[tuple[str, Any, object]]] = (
    (
        "output",
        Annotated[
            Any,
            typer.Option(
                "--output",
                "-o",
                help="table, wide, json, yaml or name.",
                metavar="FORM",
                parser=one_of(Form),
                autocompletion=complete_from(*Form),
                rich_help_panel=_SHOW,
            ),
        ],
        "table",
    ),
    (
        "color",
        Annotated[
            Any,
            typer.Option(
                "--color",
                help="auto, always or never; auto heeds NO_COLOR.",
                metavar="WHEN",
                parser=one_of(Colour),
                autocompletion=complete_from(*Colour),
                rich_help_panel=_SHOW,
            ),
        ],
        "auto",
    ),
)


def takes_demand(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the demand's flags; it receives them as `wanted: DemandFlags`."""

    def bind(given: dict[str, Any]) -> dict[str, Any]:
        flags = {name: given.pop(name) for name, _, _ in _DEMAND}
        return {**given, "wanted": DemandFlags(**flags)}

    return _with_flags(command, _DEMAND, "wanted", bind)


def shows(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `-o` and `--color`; it receives the `screen: Screen` that they make."""

    def bind(given: dict[str, Any]) -> dict[str, Any]:
        form, colour = Form(given.pop("output")), Colour(given.pop("color"))
        return {**given, "screen": Screen(form, colour)}

    return _with_flags(command, _VIEW, "screen", bind)


def shows_lines(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--color` alone; it receives the `screen: Screen`."""

    def bind(given: dict[str, Any]) -> dict[str, Any]:
        colour = Colour(given.pop("color"))
        return {**given, "screen": Screen(Form.TABLE, colour)}

    return _with_flags(command, _VIEW[1:], "screen", bind)


def _with_flags(
    command: Callable[..., None],
    flags: Sequence[tuple[str, Any, object]],
    replaced: str,
    bind: Callable[[dict[str, Any]], dict[str, Any]],
) -> Callable[..., None]:
    """Return a command whose parameter `replaced` is made by `bind` from further flags."""

    @functools.wraps(command)
    def with_flags(**given: Any) -> None:
        command(**bind(given))

    parameters = [*_parameters(command, replaced)]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, kind, default in flags
    ]
    with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # inspect honours it
    with_flags.__annotations__ = {p.name: p.annotation for p in parameters}
    del with_flags.__wrapped__  # else typer would look through to the bare command
    return with_flags


def _parameters(command: Callable[..., None], replaced: str) -> Iterator[inspect.Parameter]:
    hints = inspect.get_annotations(command, eval_str=True)
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name != replaced:
            yield parameter.replace(annotation=hints[parameter.name])
