"""What the pages say is what the code does, and the other way round; and words stay words."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gp4u.__main__ import COMMANDS
from gp4u.cli import commands
from gp4u.metric_table import METRICS
from gp4u.provider_settings import SEED_PROVIDERS
from gp4u.providers.akash import adapter as akash
from gp4u.providers.akash import auction
from gp4u.providers.registry import SPECS
from gp4u.settings import load_settings, variables

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "gp4u"
MODULES = sorted(SOURCE.rglob("*.py"))
PAGES = [
    path
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
    if path.stat().st_size
]

BAG_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core", "manager"}

OTHER_WORDS = {
    "vendor": "provider",
    "raw_data": "listing",
    "quote": "offer",
    "deal": "offer",
    "catalog": "book",
    "aggregator": "book",
    "lease": "rental",
    "deployment": "rental",
    "zombie": "orphan",
    "dangling": "orphan",
    "tenant": "owner",
    "destroy": "release",
    "terminate": "release",
    "launch": "rent",
}
"""Words that mean one of ours, and the one we use. Adapters and simulators speak the market's."""

SPEAKS_THE_MARKETS_LANGUAGE = (
    "providers/vastai/adapter.py",
    "providers/ionet",
    "providers/akash",
    "providers/render",
    "sim/",
    "kube/",
    "kubelet/",
    "nodes.py",
)

MEANS_SOMETHING_ELSE = {("gpus.py", "catalog")}
"""(file, word): the list of GPU models that exist is no collection of offers."""


ABOUT_RENTED_MACHINES = ("src/gp4u/sim/", "src/gp4u/providers/", "docs/reference/", "tests/")
"""A rented container has a `/root/` of its own, and the market's documents name it."""


def identifiers(path: Path) -> Iterator[str]:
    """Yield every name that the file defines: functions, classes, arguments and variables."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.arg():
                yield node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr


def words(identifier: str) -> str:
    """Return `rentOffer` and `rent_offer` as `_rent_offer_`, to find whole words in."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier)
    return f"_{spaced.lower().strip('_')}_"


def names_in(text: str, prefixes: tuple[str, ...]) -> set[str]:
    """Return the upper-case names with one of the prefixes."""
    return {name for name in re.findall(r"[A-Z][A-Z0-9_]+", text) if name.startswith(prefixes)}


def test_the_generated_pages_are_not_behind() -> None:
    """A table that was written by hand is right on the day it was written."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "reference.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), "run scripts/reference.py"


@pytest.mark.parametrize("page", ["docs/reference/settings.md", ".env.example"])
def test_every_variable_is_documented_and_every_documented_one_exists(page: str) -> None:
    """Whoever finds a variable in a page must find it working, and the other way round."""
    text = (ROOT / page).read_text(encoding="utf-8")
    known = {entry.variable for entry in variables()}
    every_name = {name for entry in variables() for name in entry.names}
    prefixes = (*(f"{each.env}_" for each in SEED_PROVIDERS), "PROVIDER_", "VAST_", "GP4U_")
    prefixes = (*prefixes, "VKUBELET_")
    found = names_in(text, prefixes)
    assert known <= found
    assert found <= every_name


def test_the_example_file_changes_nothing_until_edited(tmp_path: Path) -> None:
    """People copy it first and read it later; and every line must be accepted once uncommented."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    environ = {"HOME": "/home/ada", "XDG_DATA_HOME": "/home/ada/.local/share"}
    plain = load_settings(environ, tmp_path).table()
    (tmp_path / ".env").write_text(text)
    assert load_settings(environ, tmp_path).table() == plain
    live = re.sub(r"(?m)^#(?=[A-Z])", "", text).replace("$XDG_DATA_HOME", environ["XDG_DATA_HOME"])
    (tmp_path / ".env").write_text(live)
    edited = load_settings(environ, tmp_path)
    assert [(row.variable, row.value) for row in edited.table()] == [
        (row.variable, row.value) for row in plain
    ]
    assert edited.origin("VASTAI_RATE_LIMIT") == ".env"


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    """An alert on a metric that does not exist never fires."""
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    assert set(re.findall(r"gp4u_[a-z_]+", text)) == {metric.name for metric in METRICS}


def test_the_settings_and_the_adapters_agree_on_a_providers_facts() -> None:
    """The lower row cannot import the higher one, so each default stands in both."""
    for ours in SEED_PROVIDERS:
        if spec := SPECS.get(ours.slug):
            assert (spec.env, spec.base_url) == (ours.env, ours.base_url)
            assert spec.rate_limit_per_min == ours.rate_limit_per_min
            key_names = {f"{ours.env}_{ours.key_variable}", *ours.key_aliases}
            assert set(ours.key_aliases) <= set(spec.key_aliases) <= key_names
    own = load_settings({}, ROOT / "tests").provider("akash")
    assert (own.console_url, own.block_time_s) == (akash.CONSOLE_URL, akash.BLOCK_TIME_S)
    assert own.bid_window_s == auction.BID_WINDOW_S
    assert set(SPECS) == {ours.slug for ours in SEED_PROVIDERS}
    assert "vastai" in SPECS


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """A page that was moved leaves its links behind."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [each for each in targets if not re.match(r"[a-z]+:", each)]
    missing = [each for each in local if not (page.parent / each).exists()]
    assert not missing


def test_every_page_can_be_reached_from_the_index() -> None:
    """A page that nothing links to is found by nobody."""
    reached: set[Path] = set()
    waiting = [ROOT / "docs" / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        waiting += [(page.parent / each).resolve() for each in targets if ":" not in each]
    unreached = {page for page in PAGES if "docs" in page.parts} - reached
    assert not {str(page.relative_to(ROOT)) for page in unreached}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_module_says_what_it_hides(module: Path) -> None:
    """Its name says what it is; the docstring has to say more than that."""
    text = module.read_text(encoding="utf-8")
    if module.name == "__init__.py":
        defined = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        lazy = {"__getattr__"} if module.parent == SOURCE else set()
        assert {n.name for n in defined} <= lazy
        return
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert len(docstring) > max(60, 2 * len(module.stem))


def test_the_architecture_page_names_every_file_and_no_other() -> None:
    """A newcomer who looks for a behaviour starts there; what is missing is not found."""
    page = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Every file")[2].partition("\n## ")[0]
    firsts = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`([a-z_/]+\.py)`", firsts))
    there = {path.relative_to(SOURCE).as_posix() for path in MODULES if path.stem != "__init__"}
    assert named == there


def test_no_module_is_a_bag() -> None:
    """A name such as helpers says that nobody has thought about where its contents belong."""
    parts = {part for path in MODULES for part in path.relative_to(SOURCE).with_suffix("").parts}
    assert not {part for part in parts if part in BAG_NAMES or part.strip("_") in BAG_NAMES}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_one_concept_has_one_word(module: Path) -> None:
    """Two words for one thing make two things in the reader's head."""
    name = module.relative_to(SOURCE).as_posix()
    if name.startswith(SPEAKS_THE_MARKETS_LANGUAGE):
        return
    wrong = {
        f"{identifier}: say {ours}"
        for identifier in identifiers(module)
        for other, ours in OTHER_WORDS.items()
        if f"_{other}_" in words(identifier) and (name, other) not in MEANS_SOMETHING_ELSE
    }
    assert not wrong


def test_root_help_loads_nothing_heavy() -> None:
    """Shells and scripts call it often; the heavy half takes ten times as long to load."""
    program = (
        "import sys; sys.argv = ['gp4u', '--help']; from gp4u.__main__ import main; main();"
        "heavy = {'typer', 'rich', 'pydantic', 'httpx2', 'sqlalchemy', 'numpy', 'asyncio'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: gp4u")


def test_the_root_help_names_every_command_and_no_other() -> None:
    """Root help is drawn from a table; a command that is not in it would be found by nobody."""
    app = commands.app
    named = {
        each.name or getattr(each.callback, "__name__", "") for each in app.registered_commands
    }
    named |= {each.name or "" for each in app.registered_groups}
    assert named == {name for name, _ in COMMANDS}


def test_no_file_names_the_place_where_it_was_written() -> None:
    """A path of one machine is noise everywhere else, and may tell more than it should."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.returncode == 0, f"git cannot list the files: {listed.stderr}"
    home = re.compile(r"(?<![\w.])/(?:root|work|home/(?!ada\b|x\b|user\b)\w+)/")
    suspects = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        is_text = path.suffix in {".py", ".md", ".toml", ".sh", ".json", ".yaml", ""}
        if is_text and path.is_file() and not name.startswith(ABOUT_RENTED_MACHINES):
            text = path.read_text(encoding="utf-8", errors="replace")
            suspects += [name] if home.search(text) and path != Path(__file__) else []
    assert not suspects
