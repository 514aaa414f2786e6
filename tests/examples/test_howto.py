"""The programs in the guide to adding a provider, run as they are printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gp4u.providers.custom.rows import FLAGS, NUMBERS, TEXTS
from tests.e2e.processes import clean_environ

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "howto" / "add-a-provider.md").read_text(
    encoding="utf-8"
)
PROGRAMS = re.findall(r"(?s)```python\n(.*?)```", PAGE)
KEY = "key-of-the-guide"


@pytest.fixture
def url() -> Iterator[str]:
    """A market that answers as the guide's class expects."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            del format, args

        def do_GET(self) -> None:
            ok = self.headers["authorization"] == f"Bearer {KEY}" and self.path == "/v1/gpus"
            row = {"gpu_model": "rtx4090", "memory_gb": 24, "price": 0.29}
            self.send_response(200 if ok else 401)
            self.end_headers()
            self.wfile.write(json.dumps([row]).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def run(program: str, folder: Path, **env: str) -> str:
    """Run a program in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=clean_environ() | {"HOME": str(folder)} | env,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_guides_class_puts_a_market_into_the_book(url: str, tmp_path: Path) -> None:
    """Somebody copies it, and the first thing that they see is whether it works."""
    env = {"MY_PROVIDER_BASE_URL": url, "MY_PROVIDER_API_KEY": KEY, "GP4U_ALLOW_LOOPBACK": "1"}
    market, program, _ = PROGRAMS
    assert run(market + program, tmp_path, **env) == "my_provider RTX 4090 0.29\n"


def test_the_guides_balancing_runs_beside_the_class(tmp_path: Path) -> None:
    """Before any app is open, as in the first seed's example."""
    market, _, balancing = PROGRAMS
    registered = "from gp4u import get_provider_registry\n"
    registered += "get_provider_registry().register(MyCustomProvider())\n"
    shown = "print(providers[5 % len(providers)] is provider, provider.get_metrics())\n"
    assert run(market + registered + balancing + shown, tmp_path).startswith("True ")


def test_the_guide_has_every_field_of_a_row_and_no_other() -> None:
    """A field that is read and not told is lost; one that is told and not read, too."""
    table = PAGE.partition("### The fields of a row")[2].partition("\n\n`provider`")[0]
    told = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z_]+)`", line.split("|")[1])
    }
    assert told == {*NUMBERS, *FLAGS, *TEXTS}
