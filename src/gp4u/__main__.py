"""The door: `gp4u` and `python -m gp4u`.

Root help and version are answered from the table below, without importing the command line's
libraries, which take ten times as long to load as these two take to print. `cli/commands.py` builds
its commands from the same table, so that the two cannot tell different stories.
"""

from __future__ import annotations

import os
import sys

from gp4u import __version__

COMMANDS = (
    ("demo", "Rent, probe, call and release on simulated markets: no account, no key."),
    ("offers", "List what can be rented now, cheapest all-in price first."),
    ("decide", "Say which offer would be rented, and why. Changes nothing."),
    ("prices", "Draw what a GPU model cost over time, market by market."),
    ("rent", "Rent the best offer, run an image on it, wait until it answers."),
    ("ps", "Show what is rented, checked against the providers."),
    ("logs", "Print what a rented workload printed."),
    ("exec", "Run a command inside a rented instance, where its market can."),
    ("release", "Stop paying for rentals, and wait for the proof."),
    ("sweep", "Find and release machines of ours that nothing explains."),
    ("render", "Render scenes by a proposed API of Render's: start, ls, cancel."),
    ("serve", "Keep rentals and providers in agreement; serve health and metrics."),
    ("node", "Be a node of a Kubernetes cluster whose pods run on rented machines."),
    ("relay", "Lead from inside a cluster to a rented machine; run by the node itself."),
    ("config", "Show the settings in force and where each came from."),
    ("sim", "Run simulated markets."),
)
"""Name and one line of help, in the order of the help page."""

_HELP = """\
Usage: gp4u [OPTIONS] COMMAND [ARGS]...

  Every GPU marketplace as one pool: compare, rent, watch, release.

Options:
  -V, --version         Show the version and exit.
  --install-completion  Install completion for the current shell.
  --show-completion     Show completion for the current shell.
  -h, --help            Show this message and exit.

Commands:
{commands}

Run `gp4u COMMAND --help` for a command's flags, `gp4u demo` to see it all work.
"""


def help_page() -> str:
    """Return the root help."""
    width = max(len(name) for name, _ in COMMANDS)
    return _HELP.format(commands="\n".join(f"  {n:<{width}}  {text}" for n, text in COMMANDS))


def main() -> None:
    """Answer the two quick questions, or hand over to the command line."""
    words = sys.argv[1:]
    completes = "_GP4U_COMPLETE" in os.environ  # a shell asks what could come next
    if not completes and words in ([], ["--help"], ["-h"], ["help"]):
        sys.stdout.write(help_page())
        return
    if not completes and words in (["--version"], ["-V"]):
        sys.stdout.write(f"gp4u {__version__}\n")
        return
    if words[:1] == ["help"]:
        sys.argv[1:] = [*words[1:], "--help"]
    try:
        from gp4u.cli.commands import run_commands  # the heavy half, only where it is needed

        run_commands()
    except KeyboardInterrupt:
        sys.exit(130)  # before or after the event loop, which has its own answer to Ctrl-C


if __name__ == "__main__":
    main()
