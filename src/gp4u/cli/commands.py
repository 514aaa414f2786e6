"""Every command: its flags, and the one thing that it calls.

Imports next to nothing, because a help page, a completion and a typing error must be quick: what a
command needs it imports when it runs. The help lines come from the table in `gp4u.__main__`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gp4u.__main__ import COMMANDS
from gp4u.cli import parse
from gp4u.cli.flags import (
    HELP_NAMES,
    Command,
    DemandFlags,
    complete_from,
    complete_gpu,
    complete_provider,
    complete_rental,
    number,
    shows,
    shows_lines,
    takes_demand,
    whole,
)
from gp4u.cli.node import node, relay
from gp4u.cli.run import (
    Counter,
    confirmed,
    guarded,
    log_now,
    read_settings,
    run,
    run_with_desk,
    run_with_ledger,
    signals_heard,
)
from gp4u.cli.scenes import render
from gp4u.cli.screen import Form, Screen
from gp4u.errors import BadInput

if TYPE_CHECKING:
    from gp4u.clock import Clock
    from gp4u.rentals.ledger import Ledger

MAX_PORT: Final = 65_535
MAX_GRACE_S: Final = 86_400
RUNTIMES: Final = ("auto", "container", "process", "pretend")

_HELP: Final = dict(COMMANDS)
app = typer.Typer(
    name="gp4u",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=HELP_NAMES,
    help="Every GPU marketplace as one pool: compare, rent, watch, release.",
)
sim = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, context_settings=HELP_NAMES, help=_HELP["sim"]
)
app.add_typer(render, name="render", help=_HELP["render"])
app.add_typer(node, name="node", help=_HELP["node"])
app.add_typer(sim, name="sim")

Disk = Annotated[
    float, typer.Option("--disk", help="Disk, in GB; it is priced in.", metavar="GB", parser=number)
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = typer.Option("--dry-run", help="Send nothing that changes anything; show what would be.")
Seed = Annotated[
    int, typer.Option("--seed", help="Which market to make up.", metavar="N", parser=whole)
]
Offers = Annotated[
    int, typer.Option("--offers", help="How many offers it has.", metavar="N", parser=whole)
]


def run_commands() -> None:
    """Run the command line; every failure becomes words and a code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show an arrow must not stop a rent.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr] # text streams of a process have it
    guarded(lambda: app(prog_name="gp4u"), Screen())


@app.command(cls=Command, help=_HELP["demo"])
@shows
def demo(
    *,
    once: Annotated[
        bool, typer.Option("--once", help="Release by itself instead of on Ctrl-C.")
    ] = False,
    runtime: Annotated[
        str,
        typer.Option(
            "--runtime",
            help="auto, container, process or pretend.",
            metavar="KIND",
            autocompletion=complete_from(*RUNTIMES),
        ),
    ] = "auto",
    image: Annotated[
        str | None,
        typer.Option("--image", help="An image with busybox, for containers.", metavar="IMAGE"),
    ] = None,
    seed: Seed = 7,
    offers: Offers = 200,
    screen: Screen,
) -> None:
    from gp4u.cli.demo import IMAGE, run_demo  # the simulator and its server

    job = run_demo(
        screen, once=once, runtime=runtime, image=image or IMAGE, seed=seed, offers=offers
    )
    run(job, screen)


@app.command(cls=Command, help=_HELP["offers"])
@shows
@takes_demand
def offers(
    *,
    wanted: DemandFlags,
    disk: Disk = 20.0,
    limit: Annotated[
        int, typer.Option("--limit", help="Rows at most; 0 is all.", metavar="N", parser=whole)
    ] = 0,
    screen: Screen,
) -> None:
    settings = read_settings(screen)
    demand = parse.demand(wanted, settings, disk_gib=disk)
    if limit < 0:
        raise BadInput("--limit", limit, "must be 0 or more")

    async def work(at: Counter) -> None:
        from gp4u.cli import market  # with the desk, which is open by now

        await market.list_offers(at, screen, demand, limit=limit)

    run_with_desk(settings, work, screen)


@app.command(cls=Command, help=_HELP["decide"])
@shows
@takes_demand
def decide(
    *,
    wanted: DemandFlags,
    disk: Disk = 20.0,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also every rejection: filter, value, bound.")
    ] = False,
    top: Annotated[
        int, typer.Option("--top", help="Candidates to show.", metavar="N", parser=whole)
    ] = 10,
    screen: Screen,
) -> None:
    settings = read_settings(screen)
    demand = parse.demand(wanted, settings, disk_gib=disk)
    if top < 1:
        raise BadInput("--top", top, "must be 1 or more")

    async def work(at: Counter) -> None:
        from gp4u.cli import market  # with the desk, which is open by now

        await market.show_decision(at, screen, demand, top=top, explain_all=explain)

    run_with_desk(settings, work, screen)


@app.command(cls=Command, help=_HELP["prices"])
@shows
def prices(
    *,
    gpu: Annotated[
        str,
        typer.Argument(
            metavar="GPU", help="One model, such as RTX4090.", autocompletion=complete_gpu
        ),
    ],
    back: Annotated[
        str,
        typer.Option(
            "--range", help="How far back: 1h to 90d, in s, m, h, d or w.", metavar="SPAN"
        ),
    ] = "7d",
    provider: Annotated[
        str | None,
        typer.Option(
            "--provider", help="Market.", metavar="NAME", autocompletion=complete_provider
        ),
    ] = None,
    screen: Screen,
) -> None:
    from gp4u import gpus  # a table that only demands and prices need
    from gp4u.desk.spans import span

    model, within = gpus.one(gpu, "GPU"), span(back, "--range")

    async def work(at: Counter) -> None:
        from gp4u.cli.prices import show_prices  # with the desk, which is open by now

        await show_prices(at.desk, screen, model, within=within, provider=provider, at=at.now())

    run_with_desk(read_settings(screen), work, screen)


_RENT_EXAMPLES: Final = """\
\b
Examples:
  gp4u rent --gpu RTX4090 --max-price 0.5 --image vllm/vllm-openai --port 8000 \\
            --health http:8000/health --name june
  gp4u rent --image python:3.13 --port 8000 -- python -m http.server 8000
"""


@app.command(
    cls=Command,
    help=_HELP["rent"],
    epilog=_RENT_EXAMPLES,
    options_metavar="--image IMAGE [OPTIONS]",
)
@shows
@takes_demand
def rent(
    *,
    wanted: DemandFlags,
    image: Annotated[str, typer.Option("--image", help="What to run.", metavar="IMAGE")],
    port: Annotated[
        list[str] | None,
        typer.Option(
            "--port", help="Container port to publish: 8000 or 53/udp; repeatable.", metavar="PORT"
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", help="Environment variable; repeatable.", metavar="NAME=VALUE"),
    ] = None,
    disk: Disk = 20.0,
    health: Annotated[
        list[str] | None,
        typer.Option(
            "--health",
            help="When it is healthy: http:PORT/path or tcp:PORT answers; repeatable.",
            metavar="CHECK",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="One live rental per name; made up if not given.", metavar="NAME"
        ),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once it is rented.")] = False,
    dry_run: Annotated[bool, DryRun] = False,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to run instead of the image's command, after --.", metavar="[-- COMMAND...]"
        ),
    ] = None,
    screen: Screen,
) -> None:
    asked = parse.workload(
        image=image,
        command=command or (),
        ports=port or (),
        env=env or (),
        disk_gib=disk,
        health=health or (),
    )
    owner = parse.owner_name(name, SystemRandom())
    settings = read_settings(screen)
    demand = parse.demand(wanted, settings, disk_gib=disk, ports=len(asked.ports))

    async def work(at: Counter) -> None:
        from gp4u.cli import renting  # with the desk, which is open by now

        if dry_run:
            await renting.dry_run(at, screen, demand, asked)
        else:
            await renting.rent(at, screen, owner, demand, asked, wait=not no_wait)

    run_with_desk(settings, work, screen)


@app.command(cls=Command, help=_HELP["ps"])
@shows
def ps(
    *,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also what was released.")
    ] = False,
    cached: Annotated[
        bool, typer.Option("--cached", help="Ask no market; show what was last seen.")
    ] = False,
    screen: Screen,
) -> None:
    settings = read_settings(screen)

    async def asked(at: Counter) -> None:
        from gp4u.cli import renting  # with the desk, which is open by now

        await renting.ps(at, screen, everything=everything, ask=not cached)

    async def last_seen(ledger: Ledger, clock: Clock) -> None:
        from gp4u.cli.views import say_nothing_is_rented, show_rentals
        from gp4u.desk.shapes import rental_shape

        rentals = await (ledger.all_rentals() if everything else ledger.open_rentals())
        at = clock.now()
        show_rentals(screen, [rental_shape(rental, at) for rental in rentals], at)
        if not rentals:
            say_nothing_is_rented(screen, everything=everything)

    if cached and settings.api.url is None:
        run_with_ledger(settings, last_seen, screen)  # the ledger alone, so it is quick
    else:
        run_with_desk(settings, asked, screen)


_WHICH: Final = "Key, start of a key, name, or instance id."


@app.command(cls=Command, help=_HELP["logs"])
@shows_lines
def logs(
    *,
    word: Annotated[
        str, typer.Argument(metavar="KEY", help=_WHICH, autocompletion=complete_rental)
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on printing until it is gone.")
    ] = False,
    tail: Annotated[
        int, typer.Option("--tail", help="Newest lines.", metavar="N", parser=whole)
    ] = 1000,
    container: Annotated[
        str | None,
        typer.Option("--container", "-c", help="One beside its own.", metavar="NAME"),
    ] = None,
    screen: Screen,
) -> None:
    settings = read_settings(screen)

    async def work(at: Counter) -> None:
        from gp4u.cli import inside  # with the desk, which is open by now

        await inside.logs(at, screen, word, follow=follow, tail=tail, container=container)

    run_with_desk(settings, work, screen)


@app.command("exec", cls=Command, help=_HELP["exec"])
@shows_lines
def execute(
    *,
    word: Annotated[
        str, typer.Argument(metavar="KEY", help=_WHICH, autocompletion=complete_rental)
    ],
    command: Annotated[
        list[str], typer.Argument(help="What to run, after --.", metavar="-- COMMAND...")
    ],
    stdin: Annotated[
        bool, typer.Option("--stdin", "-i", help="Send it what stdin holds, to its end.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option("--timeout", help="Deadline, in seconds.", metavar="SECONDS", parser=number),
    ] = 60.0,
    container: Annotated[
        str | None,
        typer.Option("--container", "-c", help="One beside its own.", metavar="NAME"),
    ] = None,
    screen: Screen,
) -> None:
    settings = read_settings(screen)

    async def work(at: Counter) -> None:
        from gp4u.cli import inside  # with the desk, which is open by now

        with signals_heard():
            given = sys.stdin.buffer.read(inside.MAX_STDIN + 1) if stdin else b""
        await inside.execute(
            at, screen, word, command, stdin=given, timeout_s=timeout, container=container
        )

    run_with_desk(settings, work, screen)


@app.command(cls=Command, help=_HELP["release"])
@shows
def release(
    *,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY...]", help=_WHICH, autocompletion=complete_rental),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every open rental.")] = False,
    yes: Yes = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once the markets were asked.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Close without proof what no key reaches any more.")
    ] = False,
    screen: Screen,
) -> None:
    settings = read_settings(screen)

    async def work(at: Counter) -> None:
        from gp4u.cli import renting  # with the desk, which is open by now

        await renting.release(
            at,
            screen,
            words or (),
            everything=everything,
            wait=not no_wait,
            forget=forget,
            confirm=lambda question: confirmed(screen, question, yes),
        )

    run_with_desk(settings, work, screen)


@app.command(cls=Command, help=_HELP["sweep"])
@shows
def sweep(
    *,
    grace: Annotated[
        float | None,
        typer.Option(
            "--grace",
            help="Seconds between the two looks.  [default: GP4U_ORPHAN_GRACE_S]",
            metavar="SECONDS",
            parser=number,
        ),
    ] = None,
    dry_run: Annotated[bool, DryRun] = False,
    yes: Yes = False,
    screen: Screen,
) -> None:
    settings = read_settings(screen)
    if grace is not None and not 0 <= grace <= MAX_GRACE_S:
        raise BadInput("--grace", grace, f"must be from 0 to {MAX_GRACE_S} s")

    async def work(at: Counter) -> None:
        from gp4u.cli.sweep import run_sweep  # with the desk, which is open by now

        await run_sweep(
            at,
            screen,
            grace_s=settings.orphan_grace_s if grace is None else grace,
            dry_run=dry_run,
            confirm=lambda question: confirmed(screen, question, yes),
        )

    run_with_desk(settings, work, screen)


@app.command(cls=Command, help=_HELP["serve"])
@shows_lines
def serve(
    *,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", help="Address to listen on.  [default: GP4U_HOST]", metavar="ADDRESS"
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            help="Port; 0 takes a free one.  [default: GP4U_PORT]",
            metavar="PORT",
            parser=whole,
        ),
    ] = None,
    screen: Screen,
) -> None:
    settings = read_settings(screen)
    if port is not None and not 0 <= port <= MAX_PORT:
        raise BadInput("--port", port, f"must be from 0 to {MAX_PORT}")
    log_now(settings)

    async def work() -> None:
        from gp4u.cli.markets import show_greetings  # with the app
        from gp4u.serving import serve as serve_until_stopped  # which only this needs

        await serve_until_stopped(
            settings,
            host=settings.host if host is None else host,
            port=settings.port if port is None else port,
            started=lambda url: screen.note(f"gp4u serves {url} (/docs shows how)"),
            greeted=lambda outcomes, closed: show_greetings(screen, outcomes, closed),
        )

    run(work(), screen, settings.secrets())


app.command("relay", cls=Command, help=_HELP["relay"])(shows_lines(relay))


@app.command(cls=Command, help=_HELP["config"])
@shows
def config(*, screen: Screen) -> None:
    from gp4u.cli.views import show_settings

    guarded(lambda: show_settings(screen, read_settings(screen)), screen)


@sim.command("serve", cls=Command, help="Serve simulated markets on loopback until interrupted.")
def sim_serve(
    *,
    provider: Annotated[
        list[str] | None,
        typer.Option("--provider", help="Market, repeatable.  [default: all]", metavar="NAME"),
    ] = None,
    port: Annotated[
        int,
        typer.Option("--port", help="Port; 0 takes a free one.", metavar="PORT", parser=whole),
    ] = 0,
    seed: Seed = 7,
    offers_: Offers = 200,
    runtime: Annotated[
        str,
        typer.Option(
            "--runtime",
            help="What a rented instance is: pretend, process, container, or auto.",
            metavar="KIND",
            autocompletion=complete_from(*RUNTIMES),
        ),
    ] = "process",
    flavor: Annotated[
        str | None,
        typer.Option(
            "--flavor",
            help="What Render speaks: dispersed, or legacy.  [default: dispersed]",
            metavar="NAME",
            autocompletion=complete_from("dispersed", "legacy"),
        ),
    ] = None,
    public_ip: Annotated[
        str | None,
        typer.Option(
            "--public-ip",
            help="Address of this machine where rented ports are.  [default: 127.0.0.1]",
            metavar="IP",
        ),
    ] = None,
    faults: Annotated[
        Path | None,
        typer.Option("--faults", help="Script of troubles, in JSON.", metavar="FILE"),
    ] = None,
    meter: Annotated[
        Path | None,
        typer.Option(
            "--meter", help="Where to write, when it stops, what was charged.", metavar="FILE"
        ),
    ] = None,
) -> None:
    from gp4u.cli.simulate import run_simulator  # the simulator and its server

    screen = Screen(Form.JSON)
    job = run_simulator(
        provider or [],
        port=port,
        seed=seed,
        offers=offers_,
        runtime=runtime,
        flavor=flavor,
        public_ip=public_ip,
        faults=faults,
        meter=meter,
        ready=lambda line: screen.text(f"{line}\n"),
    )
    run(job, screen)
