"""A real PostgreSQL for tests: one server per test process, a schema of its own for each test.

The server is started when it is first asked for, on a loopback port, as a user that is not root,
in a folder that goes with it. It ends with this process, however that ends: a shell between the two
waits for the end of its input. `scripts/setup-databases.sh` installs the programs.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

USER = "gp4u"
PASSWORD = "db canary/é"
"""With what a URL has to quote."""
QUOTED = "db%20canary%2F%C3%A9"
START_S = 60.0
_numbers = count()


class Server:
    """A running server, which a test may also stop and start again."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gp4u-postgres-"))
        self.port = _free_port()
        self._as = _not_root()
        if self._as:
            os.chown(self.folder, self._as["user"], self._as["group"])
        word = self.folder / "password"
        word.write_text(PASSWORD)
        word.chmod(0o644)
        made = [*self._program("initdb"), "-D", str(self.folder / "data"), "-U", USER, "-E", "UTF8"]
        made += ["--auth=scram-sha-256", f"--pwfile={word}", "--no-sync", "--locale=C.UTF-8"]
        subprocess.run(made, check=True, capture_output=True, cwd=self.folder, **self._as)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = [*self._program("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        words += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        words += ["-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=60"]
        script = '"$@" >"$0" 2>&1 </dev/null & it=$!; cat >/dev/null; kill -INT $it; wait $it'
        log = str(self.folder / "log")
        self._process = subprocess.Popen(
            ["sh", "-c", script, log, *words], stdin=subprocess.PIPE, cwd=self.folder, **self._as
        )
        until = time.monotonic() + START_S
        while self._ask("postgres", "select 1").returncode:
            assert self._process.poll() is None, Path(log).read_text()
            assert time.monotonic() < until, Path(log).read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it; whoever is connected is cut off."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(START_S)
            self._process = None

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, *, password: str = QUOTED) -> str:
        """Return the URL of an empty database schema that nobody else uses."""
        schema = f"s{next(_numbers)}"
        self.run(f"create schema {schema}")
        return (
            f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/postgres"
            f"?sslmode=disable&search_path={schema}"
        )

    def run(self, sql: str, *, schema: str = "public") -> str:
        """Run statements past everything of ours; return what psql prints.

        Raises:
            AssertionError: the server declined; the text says why.
        """
        done = self._ask("postgres", f"set search_path to {schema}; {sql}")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _ask(self, database: str, sql: str) -> subprocess.CompletedProcess[str]:
        words = ["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port)]
        words += ["-U", USER, "-d", database, "-c", sql]
        env = os.environ | {"PGPASSWORD": PASSWORD, "PGCONNECT_TIMEOUT": "5"}
        return subprocess.run(words, env=env, capture_output=True, text=True, check=False)

    def _program(self, name: str) -> list[str]:
        found = [folder / name for folder in _folders() if (folder / name).exists()]
        assert found, f"there is no {name}: run scripts/setup-databases.sh"
        return [str(found[0])]


@cache
def server() -> Server:
    """Return this process's server."""
    one = Server()
    atexit.register(one.close)
    return one


def schema_of(url: str) -> str:
    """Return the schema that a URL of `Server.url` leads to."""
    return url.rpartition("search_path=")[2]


def raw(url: str, sql: str) -> None:
    """Run SQL past the ledger at a URL of either database.

    Raises:
        AssertionError: the database declined it.
    """
    if not url.startswith("sqlite"):
        server().run(sql, schema=schema_of(url))
        return
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        try:
            connection.executescript(sql)
        except sqlite3.Error as error:
            raise AssertionError(str(error)) from error


def _folders() -> list[Path]:
    named = shutil.which("pg_config")
    folders = []
    if named:
        said = subprocess.run([named, "--bindir"], capture_output=True, text=True, check=True)
        folders.append(Path(said.stdout.strip()))
    newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return [*folders, *newest_first, *map(Path, os.environ["PATH"].split(":"))]


def _not_root() -> dict[str, Any]:
    """Return whom to run the server as: it declines to be run by root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    one = names.get("postgres") or names["nobody"]
    return {"user": one.pw_uid, "group": one.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
