"""What the suite is to somebody who has this package installed, and nothing of its tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HOWTO = Path(__file__).parents[3] / "docs/howto/test-an-adapter.md"


def blocks() -> dict[str, str]:
    """Return the files that the page shows, by name."""
    page = HOWTO.read_text(encoding="utf-8")
    names = re.findall(r"`(\w+\.py)`, ", page)
    return dict(zip(names, re.findall(r"```python\n(.*?)```", page, re.DOTALL), strict=True))


def pytest_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as it is on a machine without any plug-in."""
    plain = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    return subprocess.run(
        plain,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )


def test_the_page_shows_an_adapter_that_passes(tmp_path: Path) -> None:
    """What is shown is what works, on an ordinary loop and without any plug-in of pytest."""
    shown = blocks()
    for name, text in shown.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = pytest_in(tmp_path, "test_corner.py")

    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 60


@pytest.mark.parametrize(
    ("right", "wrong", "check", "told"),
    [
        ('return Denied("corner"', 'return Unavailable("corner"', "look", "must raise Denied"),
        ("complete=False", "complete=True", "nothing", "calls it complete"),
        ('code="unsupported"', 'code="no"', "unsupported", "is refused with the code 'no'"),
    ],
)
def test_the_same_adapter_with_a_mistake_fails(
    tmp_path: Path, right: str, wrong: str, check: str, told: str
) -> None:
    """An author sees which rule, in the words of the page."""
    for name, text in blocks().items():
        spoilt = text.replace(right, wrong) if name == "corner.py" else text
        (tmp_path / name).write_text(spoilt, encoding="utf-8")
    done = pytest_in(tmp_path, "test_corner.py", "-k", check)

    assert done.returncode == 1
    assert told in done.stdout


def test_without_pytest_it_says_what_it_needs() -> None:
    """pytest is no dependency of this package; who lacks it must not guess."""
    code = "import sys; sys.modules['pytest'] = None; import gp4u.testing"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "gp4u.testing needs pytest" in done.stderr.splitlines()[-1]
