"""Write the reference pages that say what the code says: variables, metrics, paths, problems.

Each fact lives once, in the code. This puts the tables between the marks of the pages under
`docs/reference/`, the whole OpenAPI document into `docs/reference/openapi.json`, and the variables
into `.env.example`; with `--check` it only tells which file is behind. The prose around the marks
is left to people.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gp4u.api import problems
from gp4u.api.door.refusals import REFUSALS
from gp4u.api.replies import ROLE_KEY
from gp4u.api.server import document
from gp4u.metric_table import LABELS, METRICS, PROCESS_METRICS
from gp4u.provider_settings import SEED_PROVIDERS
from gp4u.serving import open_server
from gp4u.settings import load_settings, variables
from gp4u.variables import Entry

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- written by scripts/reference.py: begin -->", "<!-- end -->"
HEAD = """\
# Every variable of GP4U, with unit, default and range. Copy to `.env` and take away the `#` where
# you want something else. What is exported in the shell goes before this file, and this file
# before `config.env`. An empty value means the default. docs/reference/settings.md says more.
"""


def sections() -> Iterator[tuple[str, list[Entry]]]:
    """Yield (title, entries) in the order of the pages."""
    entries = list(variables())
    titles = {f"{each.env}_": f"Provider `{each.slug}`" for each in SEED_PROVIDERS}
    titles |= {
        "PROVIDER_": "Every provider",
        "VAST_": "Demand of somebody who says nothing",
        "GP4U_": "GP4U itself",
        "VKUBELET_": "The taint of a virtual node",
    }
    for prefix, title in titles.items():
        yield title, [each for each in entries if each.variable.startswith(prefix)]


def env_example() -> str:
    """Return the text of `.env.example`."""
    lines = [HEAD]
    for title, entries in sections():
        lines.append(f"\n# --- {title.replace('`', '')} ---\n")
        for entry in entries:
            unit = f" [{entry.unit}]" if entry.unit else ""
            lines.append(f"# {entry.meaning}{unit}; {entry.allowed}")
            lines.append(f"#{entry.variable}={entry.default}\n")
    return "\n".join(lines).rstrip() + "\n"


def settings_tables() -> str:
    """Return the tables of the settings page."""
    lines = []
    for title, entries in sections():
        lines += [f"### {title}", "", "| variable | unit | default | range | meaning |"]
        lines.append("|---|---|---|---|---|")
        for entry in entries:
            names = f"`{entry.variable}`"
            if len(entry.names) > 1:
                names += "<br>or " + ", ".join(f"`{each}`" for each in entry.names[1:])
            default = f"`{entry.default}`" if entry.default else "none"
            cells = (names, entry.unit, default, entry.allowed, entry.meaning)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def metrics_table() -> str:
    """Return the tables of the metrics page, one per topic, and the closed sets of labels."""
    lines = []
    for topic, members in groupby((*METRICS, *PROCESS_METRICS), key=lambda metric: metric.topic):
        lines += [f"### {topic}", "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
        for metric in members:
            labels = ", ".join(f"`{each}`" for each in metric.labels)
            lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |")
        lines.append("")
    lines += ["### Labels", "", "| label | one of |", "|---|---|"]
    lines += [f"| `{label}` | {', '.join(words)} |" for label, words in LABELS.items()]
    return "\n".join(lines)


def problems_table() -> str:
    """Return a heading per code, to which the `type` of a problem points."""
    lines = []
    known = {**problems.codes(), **REFUSALS}
    for code, (status, title) in sorted(known.items(), key=lambda pair: (pair[1][0], pair[0])):
        lines += [f"### {code}", "", f"{status}. {title}.", ""]
    return "\n".join(lines).rstrip()


async def described() -> dict[str, Any]:
    """Return the OpenAPI document of a server with the four markets."""
    with TemporaryDirectory() as folder:
        environ = {"GP4U_DATABASE_URL": f"sqlite:///{folder}/ledger.db"}
        async with open_server(load_settings(environ, Path(folder))) as server:
            return document(server.routes)


def paths_table(about: dict[str, Any]) -> str:
    """Return every path: method, role, what it does."""
    lines = ["| method | path | role | what |", "|---|---|---|---|"]
    for path, operations in about["paths"].items():
        for method, operation in operations.items():
            role = operation[ROLE_KEY]
            lines.append(f"| {method.upper()} | `{path}` | {role} | {operation['summary']} |")
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    """Return path to the text that the file should hold."""
    about = asyncio.run(described())
    wanted = {
        ROOT / ".env.example": env_example(),
        ROOT / "docs" / "reference" / "openapi.json": json.dumps(about, indent=1) + "\n",
    }
    tables = {
        "settings": settings_tables(),
        "metrics": metrics_table(),
        "problems": problems_table(),
        "api": paths_table(about),
    }
    for name, table in tables.items():
        path = ROOT / "docs" / "reference" / f"{name}.md"
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        _, mark, after = rest.partition(END)
        if not mark:
            raise SystemExit(f"{path} has lost its marks")
        wanted[path] = f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"
    return wanted


def main() -> int:
    """Write the pages, or with `--check` name those that are behind; 1 where one is."""
    stale = []
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if "--check" not in sys.argv[1:]:
                path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'behind' if '--check' in sys.argv else 'written'}")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
