"""The flags of `gp4u node` and `gp4u relay`.

They stand apart from `commands.py` because they are about a cluster: what they need of one comes
from a kubeconfig or from the pod they run in. What they do is in `nodes.py` and in
`kubelet/services/relay.py`; like the other files of flags this one imports next to nothing before
it must.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from gp4u.cli.flags import HELP_NAMES, Command, number, shows_lines, whole
from gp4u.cli.run import confirmed, log_now, read_settings, run
from gp4u.cli.screen import Screen
from gp4u.errors import BadInput

MAX_PORT: Final = 65_535
MAX_PATIENCE_S: Final = 86_400.0
_NEEDED: Final = ("lightkube", "httpx", "cryptography", "h11", "h2")

node = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings=HELP_NAMES)

Kubeconfig = Annotated[
    str | None,
    typer.Option(
        "--kubeconfig",
        help="Which cluster.  [default: KUBECONFIG, the pod's own, ~/.kube/config]",
        metavar="FILE",
    ),
]
Context = Annotated[
    str | None, typer.Option("--context", help="Context of the kubeconfig.", metavar="NAME")
]


@node.command("run", cls=Command, help="Be the nodes of GP4U_NODE_NAME until stopped.")
@shows_lines
def run_node(*, kubeconfig: Kubeconfig = None, context: Context = None, screen: Screen) -> None:
    settings = read_settings(screen)
    log_now(settings)

    async def work() -> None:
        check_extra()
        from gp4u.kube.access import find_access  # the cluster's side: only here
        from gp4u.nodes import reading, run_nodes

        await run_nodes(
            settings,
            access=find_access(kubeconfig=kubeconfig, context=context),
            read=reading(os.environ, Path.cwd()),
            told=screen.note,
        )

    run(work(), screen, settings.secrets())


@node.command(
    "decommission",
    cls=Command,
    help="Cordon the nodes, evict their pods, wait until nothing is rented, delete them.",
)
@shows_lines
def decommission(
    *,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NODE]...", help="Which.  [default: those of GP4U_NODE_NAME]"),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", help="How long to wait for pods and proofs.", metavar="S", parser=number
        ),
    ] = 900.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    screen: Screen,
) -> None:
    if not 0 < timeout <= MAX_PATIENCE_S:
        raise BadInput("--timeout", timeout, f"above 0, at most {MAX_PATIENCE_S:g} seconds")
    settings = read_settings(screen)
    wanted = tuple(names or (each.name for each in settings.node.nodes))
    confirmed(screen, f"evict every pod of {', '.join(wanted)}, and delete it?", yes)

    async def work() -> None:
        check_extra()
        from gp4u.kube.access import find_access  # the cluster's side: only here
        from gp4u.nodes import decommission_nodes

        await decommission_nodes(
            settings,
            wanted,
            access=find_access(kubeconfig=kubeconfig, context=context),
            timeout_s=timeout,
            told=screen.note,
        )

    run(work(), screen, settings.secrets())


def relay(
    *,
    routes: Annotated[
        Path,
        typer.Option("--routes", help="File that says what leads where.", metavar="FILE"),
    ],
    health_port: Annotated[
        int,
        typer.Option(
            "--health-port", help="Where it says that it lives.", metavar="PORT", parser=whole
        ),
    ] = 8099,
    screen: Screen,
) -> None:
    if not 0 <= health_port <= MAX_PORT:
        raise BadInput("--health-port", health_port, f"must be from 0 to {MAX_PORT}")
    settings = read_settings(screen)
    log_now(settings)

    async def work() -> None:
        from gp4u.kubelet.services.relay import run_relay  # only here

        await run_relay(
            routes,
            health_port=health_port,
            told=screen.note,
            allow_loopback=settings.allow_loopback,
        )

    run(work(), screen, settings.secrets())


def check_extra() -> None:
    """Say what is missing where GP4U was installed without what speaks to clusters.

    Raises:
        BadInput: as said.
    """
    missing = [each for each in _NEEDED if find_spec(each) is None]
    if missing:
        bound = "needs more: pip install 'gp4u[kubernetes]'"
        raise BadInput("gp4u node", f"no {missing[0]}", bound)
