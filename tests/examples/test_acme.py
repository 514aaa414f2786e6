"""The worked example, as a stranger has it: built, installed beside GP4U, tested, and used.

It is installed into a folder of its own, which is then on the path of the programs that are run, so
that the environment of the tests stays as it is. The build backend is the one inside uv, which
`make` has put where this looks; no package index is asked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

import pytest

from gp4u.testing import Trouble
from tests.e2e.processes import Desk, Running, clean_environ

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "acme-gpu"
OWN_UV = ROOT / ".cache" / "uv" / "bin" / "uv"
MARKET_FILES = 3
"""How many files a stranger writes, beside what packs and tests them."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("acme")
    source = shutil.copytree(
        EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__")
    )
    uv = str(OWN_UV) if OWN_UV.exists() else shutil.which("uv") or "uv"
    words = [uv, "pip", "install", "--offline", "--no-deps", "--no-cache", "--quiet"]
    words += ["--python", sys.executable, "--target", str(folder / "site"), str(source)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def acme(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """A fake Acme in a process of its own; yields the variables of its clients."""
    words = [sys.executable, str(EXAMPLE / "tests" / "fake_acme.py")]
    with Running(words, clean_environ(), tmp_path) as running:
        env: dict[str, str] = json.loads(running.hear(r"\{.*\}\n", stream="stdout").group())["env"]
        yield env


@pytest.fixture
def desk(site: Path, acme: Mapping[str, str], tmp_path: Path) -> Desk:
    """A user who has the plug-in, and an account at Acme."""
    return Desk(None, tmp_path / "home", PYTHONPATH=str(site), **acme)


def test_the_example_passes_its_own_tests_as_installed(site: Path, tmp_path: Path) -> None:
    """It is the first thing that somebody copies, so it has to keep the contract by itself."""
    tests = shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    shutil.copy(EXAMPLE / "pyproject.toml", tmp_path)
    path = os.pathsep.join((str(site), str(tests)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"],
        env=clean_environ() | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = set(re.findall(r"^tests/test_contract\.py::TestAcme::(\S+) PASSED", done.stdout, re.M))
    for trouble in Trouble:
        assert f"test_a_whole_life_survives[{trouble}]" in passed
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_an_installed_plug_in_stands_in_the_table_of_offers(desk: Desk) -> None:
    """Nothing of GP4U was touched: the entry point is enough."""
    done = desk.gp4u("offers", "--gpu", "RTX4090", "-o", "json")
    assert done.code == 0, done
    assert [(row["provider"], row["gpu_model"]) for row in done.json] == [("acme", "RTX 4090")]
    assert Decimal(done.json[0]["price_usd_per_hour"]) == Decimal("0.31")


def test_it_is_rented_from_and_released_like_a_built_in_market(desk: Desk) -> None:
    """A full plug-in is a market like the others, up to the proof that nothing is left."""
    words = ("--provider", "acme", "--gpu", "RTX4090", "--image", "nginx", "--name", "web")
    rented = desk.gp4u("rent", *words, "-o", "json")
    assert rented.code == 0, rented
    assert (rented.json["provider"], rented.json["state"]) == ("acme", "running")
    assert desk.gp4u("logs", "web").out == "hello\nfrom Acme\n"
    assert desk.gp4u("release", "web").code == 0
    assert desk.ps() == []


def test_its_variables_are_read_and_shown_like_everybody_elses(desk: Desk) -> None:
    """A switch that is not read, or not shown, might as well not be there."""
    shown = desk.gp4u("config", "-o", "json", ACME_TIMEOUT="7")
    rows = {row["variable"]: row["value"] for row in shown.json}
    assert (rows["ACME_TIMEOUT"], rows["ACME_API_KEY"], rows["ACME_ENABLED"]) == (
        "7",
        "***",
        "true",
    )
    off = desk.gp4u("offers", "--provider", "acme", ACME_ENABLED="false")
    assert off.code == 4, off
    assert "acme: switched off by ACME_ENABLED" in off.err
    bad = desk.gp4u("offers", ACME_RATE_LIMIT="none")
    assert bad.code == 2, bad
    assert "ACME_RATE_LIMIT" in bad.err


def test_a_plug_in_that_cannot_be_loaded_stops_nothing(
    desk: Desk, site: Path, tmp_path: Path
) -> None:
    """Somebody else's broken package must not keep anybody from their machines."""
    broken = tmp_path / "broken"
    info = broken / "broken_gpu-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-gpu\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gp4u.providers]\nbroken = no_such_module:OPENING\n")
    path = os.pathsep.join((str(broken), str(site)))
    done = desk.gp4u("offers", "--gpu", "RTX4090", "-o", "json", PYTHONPATH=path)
    assert done.code == 0, done
    assert [row["provider"] for row in done.json] == ["acme"]
    closed = desk.gp4u("offers", PYTHONPATH=str(broken))
    assert closed.code == 4, closed
    assert "broken: the plug-in no_such_module:OPENING of broken-gpu cannot be used" in closed.err


def test_a_market_is_added_with_as_few_files_as_it_says() -> None:
    """The bound that the contract is held to; one file more, and something is missing in it."""
    own = {"pyproject.toml", "tests"}
    files = [
        path
        for path in EXAMPLE.rglob("*")
        if path.is_file()
        and path.relative_to(EXAMPLE).parts[0] not in own
        and not any(part.startswith((".", "__pycache")) for part in path.relative_to(EXAMPLE).parts)
    ]
    assert len(files) <= MARKET_FILES, files
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert all(str(path.relative_to(EXAMPLE)) in text for path in files)
