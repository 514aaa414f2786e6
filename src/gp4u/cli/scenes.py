"""The flags of `gp4u render`, and what a scene is that they describe; every refusal names the flag.

The three commands stand apart from `commands.py` because they are about another thing: a scene that
is rendered to its last frame, not a machine that is held. What they do is in `rendering.py`. Like
that file this one imports next to nothing before it has to: a help page must be quick.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer
from msgspec import Struct

from gp4u.cli.flags import HELP_NAMES, Command, complete_from, shows, whole
from gp4u.cli.run import read_settings, run_with_app
from gp4u.cli.screen import Screen
from gp4u.errors import BadInput

if TYPE_CHECKING:
    from gp4u.app import App
    from gp4u.providers.render.legacy_wire import Frames

T = TypeVar("T")

MAX_ADDRESS: Final = 2048
"""Letters of a scene's address."""
_FRAMES: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,9})(?::([0-9]{1,9}))?")
_PRIORITY: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,30}[a-z0-9])?")
_SHAPE: Final = "must be FIRST-LAST or FIRST-LAST:STEP, such as 1-240 or 1-240:2; 7-7 is frame 7"

render = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings=HELP_NAMES)


class Scene(Struct, frozen=True, kw_only=True):
    """What shall be rendered, and on which terms."""

    address: str
    """Where the uploaded scene is."""
    engine: str
    frames: Frames
    tier: int
    """1 trusted, 2 priority, 3 economy."""
    priority: str
    max_obh: Decimal | None
    """OctaneBench-hours at most; None: no bound."""

    @property
    def frame_count(self) -> int:
        """How many frames."""
        return len(range(self.frames.start, self.frames.end + 1, self.frames.step))


@render.command(
    "start", cls=Command, help="Submit a scene; its key is printed before anything is sent."
)
@shows
def start(
    *,
    scene: Annotated[
        str, typer.Argument(metavar="SCENE", help="Address of a scene that is uploaded already.")
    ],
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="octane, redshift or cycles.",
            metavar="NAME",
            autocompletion=complete_from("octane", "redshift", "cycles"),
        ),
    ],
    frames: Annotated[
        str,
        typer.Option("--frames", help="1-240, or every second one: 1-240:2.", metavar="RANGE"),
    ],
    tier: Annotated[
        int,
        typer.Option("--tier", help="1 trusted, 2 priority, 3 economy.", metavar="N", parser=whole),
    ] = 2,
    max_obh: Annotated[
        str | None,
        typer.Option(
            "--max-obh", help="OctaneBench-hours at most, which bounds the cost.", metavar="OBH"
        ),
    ] = None,
    priority: Annotated[
        str, typer.Option("--priority", help="The market's word for its queue.", metavar="WORD")
    ] = "normal",
    wait: Annotated[
        bool, typer.Option("--wait", help="Show its progress by frame until it has ended.")
    ] = False,
    screen: Screen,
) -> None:
    asked = scene_of(
        scene, engine=engine, frames=frames, tier=tier, priority=priority, max_obh=max_obh
    )
    settings = read_settings(screen)

    async def work(opened: App) -> None:
        from gp4u.cli import rendering  # with the app, which is loaded by now

        await rendering.start(opened, screen, asked, SystemRandom(), wait=wait)

    run_with_app(settings, work, screen)


@render.command("ls", cls=Command, help="Show this account's render jobs, ended ones too.")
@shows
def ls(*, screen: Screen) -> None:
    settings = read_settings(screen)

    async def work(opened: App) -> None:
        from gp4u.cli import rendering  # with the app, which is loaded by now

        await rendering.ls(opened, screen)

    run_with_app(settings, work, screen)


@render.command("cancel", cls=Command, help="Stop a render job, and wait for the proof.")
@shows
def cancel(
    *,
    word: Annotated[str, typer.Argument(metavar="JOB|KEY", help="Job id, key, or start of a key.")],
    screen: Screen,
) -> None:
    settings = read_settings(screen)

    async def work(opened: App) -> None:
        from gp4u.cli import rendering  # with the app, which is loaded by now

        await rendering.cancel(opened, screen, word)

    run_with_app(settings, work, screen)


def scene_of(
    address: str, *, engine: str, frames: str, tier: int, priority: str, max_obh: str | None
) -> Scene:
    """Return the scene that the words of `render start` describe.

    Raises:
        BadInput: a word is not what it must be; nothing was sent.
    """
    from gp4u.providers.render import legacy_wire as wire  # the bounds, and HTTP behind them

    if not address or len(address) > MAX_ADDRESS or not address.isprintable() or " " in address:
        bound = f"must be an address of 1 to {MAX_ADDRESS} letters, without blanks"
        raise BadInput("SCENE", address[:80], bound)
    if _is_here(address):
        bound = "is a file here, and nothing uploads it: give the address of an uploaded scene"
        raise BadInput("SCENE", address[:80], bound)
    if engine not in wire.ENGINES:
        raise BadInput("--engine", engine, f"must be one of {', '.join(wire.ENGINES)}")
    if not _PRIORITY.fullmatch(priority):
        raise BadInput("--priority", priority, "must be 1 to 32 of a-z, 0-9, '_' and '-'")
    return Scene(
        address=address,
        engine=engine,
        frames=_frames(frames),
        tier=_named("--tier", tier, lambda: wire.tier_of(tier)),
        priority=priority,
        max_obh=None if max_obh is None else _obh(max_obh),
    )


def _is_here(address: str) -> bool:
    try:
        return Path(address).exists()
    except OSError:  # too long a name for a file, so it is none
        return False


def _frames(text: str) -> Frames:
    from gp4u.providers.render.legacy_wire import Frames, frames_body

    found = _FRAMES.fullmatch(text)
    if found is None:
        raise BadInput("--frames", text[:80], _SHAPE)
    first, last, step = found.groups()
    frames = Frames(int(first), int(last), int(step or 1))
    _named("--frames", text, lambda: frames_body(frames))
    return frames


def _obh(text: str) -> Decimal:
    from gp4u.providers.render.legacy_wire import bound_of

    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise BadInput("--max-obh", text[:80], "must be OctaneBench-hours, such as 50") from None
    return _named("--max-obh", text[:80], lambda: bound_of(amount))


def _named(flag: str, given: object, check: Callable[[], T]) -> T:
    """Return what `check` returns; what it refuses is refused in the flag's name."""
    try:
        return check()
    except BadInput as error:
        raise BadInput(flag, given, error.bound) from error
