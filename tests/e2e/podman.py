"""A podman of the tests' own: its storage, socket and images; nothing of the user's is touched.

It is started the way that works where containers are run inside other machines: `runc`, because
`crun` refuses mixed cgroup layouts; `cgroupfs` and a file of events, because there may be no
systemd; plain copies for storage, because overlays need the kernel's leave. Networks are bridges,
as podman makes them by default, so that a port really is mapped.

Where podman cannot run, the tests that need it fail and say why; they are never skipped.
"""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

IMAGE = "localhost/gp4u-busybox:1"
"""Holds a static busybox, also as `sh` and `true`, and `/www/index.html`; nothing else."""

PAGE = "served by busybox in a container\n"
"""What `/www/index.html` says."""

SETUP = "scripts/setup-container-engine.sh installs it"


@contextmanager
def service() -> Iterator[str]:
    """Run podman's API service with `IMAGE` in its storage; yield the path of its socket."""
    home = Path(tempfile.mkdtemp(prefix="gp4u-podman-"))
    podman = engine(home)
    path, said = home / "api.sock", home / "service.log"
    with said.open("wb") as log:
        running = subprocess.Popen(
            [*podman, "system", "service", "--time", "0", f"unix://{path}"], stdout=log, stderr=log
        )
    try:
        if not answers(path, running):
            pytest.fail(f"podman's service does not answer:\n{said.read_text()}")
        build(podman)
        yield str(path)
    finally:
        # Ours is the whole storage, so all that is in it goes, and with it bridges and mounts.
        subprocess.run([*podman, "rm", "--all", "--force", "--time", "0"], capture_output=True)
        running.terminate()
        running.wait()
        shutil.rmtree(home)


def engine(home: Path) -> list[str]:
    """Return the beginning of every command line: podman, with all that it keeps in a folder."""
    return [
        *(tool("podman"), "--runtime", tool("runc"), "--cgroup-manager", "cgroupfs"),
        *("--events-backend", "file", "--storage-driver", "vfs"),
        *("--root", str(home / "storage"), "--runroot", str(home / "run")),
        *("--tmpdir", str(home / "tmp"), "--network-config-dir", str(home / "networks")),
    ]


def tool(name: str) -> str:
    """Return a program's path, or fail the test by the program's name."""
    # Administrators' tools live where a plain user's PATH does not look.
    found = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    if found is None:
        pytest.fail(f"{name} is not on this machine; {SETUP}")
    return found


def answers(path: Path, running: subprocess.Popen[bytes], patience_s: float = 30.0) -> bool:
    """Wait until somebody listens on the socket; False if the service ended or time is up."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until and running.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(path))
            return True
        time.sleep(0.02)
    return False


def build(podman: list[str]) -> None:
    """Make `IMAGE` of this machine's busybox."""
    busybox = Path(tool("busybox"))
    linked = subprocess.run(["ldd", str(busybox)], capture_output=True, text=True)
    if "=>" in linked.stdout:
        pytest.fail(f"{busybox} needs shared libraries, which no image has; {SETUP} (static)")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in ("sh", "true"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        page = tarfile.TarInfo("www/index.html")
        page.size, page.mode = len(PAGE), 0o644
        tar.addfile(page, io.BytesIO(PAGE.encode()))
    done = subprocess.run(
        [*podman, "import", "-", IMAGE], input=archive.getvalue(), capture_output=True
    )
    if done.returncode != 0:
        pytest.fail(f"the image could not be built: {done.stderr.decode()}")
