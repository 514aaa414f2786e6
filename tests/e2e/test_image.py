"""The image: built from the Dockerfile without a network, and run as `docs/howto/deploy.md` says.

What it is built from is made by scripts/setup-image.sh, because no registry and no package index
may be needed here: a small Debian, and the wheels with their hashes.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.podman import engine
from tests.e2e.processes import wait_for

ROOT = Path(__file__).resolve().parents[2]
MADE = ROOT / ".cache" / "image"
BASE, IMAGE = "localhost/gp4u-base:1", "localhost/gp4u:test"
USER = 10001
TOKEN = "a-token-for-the-image-0123456789"
STOP_S = 5.0
HARDENED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop", "all")
MOST_FILES = 4096

pytestmark = pytest.mark.timeout(600)  # several hundred megabytes are copied, and copied again


class Engine:
    """Podman with a storage of its own."""

    def __init__(self, home: Path) -> None:
        self._podman = engine(home)

    def run(self, *words: str | Path, fine: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command; fail the test where it fails, unless that is `fine=False`."""
        # There may be no systemd, which podman would have call the health check.
        environ = {**os.environ, "DISABLE_HC_SYSTEMD": "true"}
        done = subprocess.run(
            [*self._podman, *words], capture_output=True, text=True, env=environ, check=False
        )
        if fine and done.returncode != 0:
            pytest.fail(f"podman {words[0]}: {done.stdout}{done.stderr}")
        return done

    def start(self, *words: str | Path) -> str:
        """Start the image as it is meant to be run, and return the container's id."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        limits = ("--ulimit", f"nofile={files}:{files}", "--ulimit", "nproc=1024:1024")
        safe = ("--security-opt", "no-new-privileges")
        return self.run("run", "--detach", *limits, *HARDENED, *safe, *words).stdout.strip()

    def told(self, container: str) -> str:
        """What a container has printed so far."""
        done = self.run("logs", container)
        return done.stdout + done.stderr

    def ended(self, container: str) -> bool:
        """Whether a container has stopped."""
        state = self.run("inspect", container, "--format", "{{.State.Status}}").stdout.strip()
        return state == "exited"


@pytest.fixture(scope="module")
def podman() -> Iterator[Engine]:
    """An engine that has the image, built from the tree as it is."""
    if not (MADE / "base.tar").exists():
        pytest.fail("there is no base to build the image on; scripts/setup-image.sh makes it")
    home = Path(tempfile.mkdtemp(prefix="gp4u-image-"))
    made = Engine(home)
    try:
        made.run("import", "--quiet", MADE / "base.tar", BASE)
        made.run(
            *("build", "--quiet", "--isolation", "chroot", "--format", "docker", "--layers=false"),
            *("--volume", f"{MADE / 'wheels'}:/wheels:ro", "--tag", IMAGE),
            *("--build-arg", f"BASE={BASE}", "--build-arg", "PIP_NO_INDEX=1"),
            *("--build-arg", "PIP_FIND_LINKS=/wheels", "--build-arg", "PIP_INDEX_URL=", ROOT),
        )
        yield made
    finally:
        made.run("rm", "--all", "--force", "--time", "0", fine=False)
        shutil.rmtree(home)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that belongs to the image's user."""
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder


def asked(url: str, token: str | None = None) -> tuple[int, Any]:
    """Status and JSON of a GET."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - loopback, over http
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310 - as above
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_says_who_it_is_and_runs_as_nobody_in_particular(podman: Engine) -> None:
    """An orchestrator that refuses root looks at the number, before it starts anything."""
    (about,) = json.loads(podman.run("inspect", IMAGE).stdout)
    config = about["Config"]
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["/opt/gp4u/bin/gp4u"]
    assert config["Cmd"] == ["serve"]
    assert list(config["Volumes"]) == ["/data"]
    assert sorted(config["ExposedPorts"]) == ["10250/tcp", "8000/tcp"]
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert about["HealthCheck" if "HealthCheck" in about else "Healthcheck"]["Test"][0] == "CMD"
    assert config["Labels"]["org.opencontainers.image.title"] == "GP4U"
    assert not [each for each in config["Env"] if re.search("TOKEN|KEY|SECRET", each)]


def test_it_does_not_start_without_tokens(podman: Engine, data: Path) -> None:
    """In a container it listens on every address; whoever forgets the tokens must hear of it."""
    container = podman.start("--network", "none", "--volume", f"{data}:/data", IMAGE)
    wait_for(lambda: podman.ended(container), "the refusal")
    assert "GP4U_API_TOKENS" in podman.told(container)


def test_it_serves_read_only_keeps_its_ledger_in_data_and_stops_at_once(
    podman: Engine, data: Path
) -> None:
    """As the page on deploying says: nothing to write but one folder, and no privilege at all."""
    container = podman.start(
        *("--publish", "127.0.0.1::8000", "--volume", f"{data}:/data"),
        *("--env", f"GP4U_API_TOKENS=read:{TOKEN}", IMAGE),
    )
    published = podman.run("port", container, "8000/tcp").stdout.strip()
    url = f"http://{published}"

    def alive() -> bool:
        try:
            return asked(f"{url}/livez") == (200, {"status": "ok"})
        except OSError:
            return False

    wait_for(alive, "/livez")
    assert asked(f"{url}/readyz")[1]["parts"]["ledger"] == "ok"
    assert asked(f"{url}/api/v1/markets")[0] == 401
    assert asked(f"{url}/api/v1/markets", TOKEN)[0] == 200
    assert podman.run("healthcheck", "run", container).returncode == 0
    python = ("exec", container, "/opt/gp4u/bin/python", "-c")
    extras = "import asyncpg, hiredis, redis, opentelemetry.exporter.otlp.proto.http, os"
    inside = podman.run(*python, f"{extras}; print(os.getuid(), os.getgid())").stdout.split()
    assert inside == [str(USER), str(USER)]
    assert {path.name for path in data.iterdir()} >= {"ledger.db"}
    assert {path.stat().st_uid for path in data.iterdir()} == {USER}
    changed = {line.split()[1] for line in podman.run("diff", container).stdout.splitlines()}
    assert not [path for path in changed if not path.startswith("/etc")]  # podman's own names

    began = time.monotonic()
    podman.run("stop", "--time", "30", container)
    assert time.monotonic() - began < STOP_S
    assert (data / "ledger.db").stat().st_size > 0
