"""The program and the market as processes of their own: started, listened to, killed.

Everything here is what a user has: the installed `gp4u`, a market behind a loopback port, a ledger
in a file. The market is looked into over its own HTTP interface, past everything of ours, so that
what a test concludes does not rest on what it tests.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

GP4U = str(Path(sys.executable).with_name("gp4u"))
PATIENCE_S = 40.0
TOO_SOON = 429
ALL_MARKETS = 4
KEY = re.compile(r"gp4u-[a-z2-7]+-[a-z2-7]{10}-[a-z2-7]{10}")
T = TypeVar("T")


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What stdout holds, as JSON."""
        return json.loads(self.out)


class Bought(NamedTuple):
    """One contract that the market ever charged for."""

    instance_id: str
    label: str
    usd: Decimal


def wait_for(what: Callable[[], T | None], name: str) -> T:
    """Return the first answer that is not None or False. Real processes take real time.

    Raises:
        AssertionError: there was none within `PATIENCE_S`.
    """
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        answer = what()
        if answer is not None and answer is not False:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE_S} s for {name}")


class Sold(NamedTuple):
    """One contract by a simulator's own meter, which no client can see."""

    instance_id: str
    label: str | None
    usd: Decimal
    open: bool


class Charged(NamedTuple):
    """Everything that one simulated market charged."""

    total_usd: Decimal
    contracts: list[Sold]


class Running:
    """A process that is listened to while it runs, and that does not outlive its block."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            list(words), env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.said = ""

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.kill()

    def hear(self, pattern: str, *, stream: str = "stderr") -> re.Match[str]:
        """Return the first match in what it says, waiting for it."""
        pipe = getattr(self.process, stream)
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if found := re.search(pattern, self.said):
                return found
            if select.select([pipe], [], [], 0.2)[0]:
                chunk = os.read(pipe.fileno(), 65536)
                assert chunk, f"it ended before it said {pattern!r}: {self.said}"
                self.said += chunk.decode()
        raise AssertionError(f"never said {pattern!r}: {self.said}")

    def end(self, number: signal.Signals | None = None) -> Done:
        """Send a signal if one is given, and wait for the end."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return Done(self.process.returncode, out.decode(), self.said + err.decode())

    def kill(self) -> None:
        """End it at once, as a power cut would; it is no error if it has ended by itself."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate(timeout=PATIENCE_S)


class Market:
    """A simulated market in its own process, and what its HTTP interface says."""

    def __init__(self, line: Mapping[str, Any]) -> None:
        self.env: dict[str, str] = dict(line["env"])
        self._base_url, self._key = line["base_url"], line["api_key"]

    def instances(self) -> list[dict[str, Any]]:
        """Return what the account holds now."""
        listed: list[dict[str, Any]] = self._get("/api/v1/instances/")["instances"]
        return listed

    def labels(self) -> list[str]:
        """Return the labels of what the account holds now."""
        return sorted(each["label"] for each in self.instances())

    def bought(self) -> list[Bought]:
        """Return everything that was ever charged for."""
        rows = self._get("/api/v0/charges/")["results"]
        return [
            Bought(
                row["source"].removeprefix("instance-"),
                row["metadata"]["label"],
                Decimal(repr(row["amount"])),
            )
            for row in rows
            if row["type"] == "instance"
        ]

    def _get(self, path: str) -> Any:
        url = self._base_url.removesuffix("/api/v0") + path
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self._key}"})  # noqa: S310 - http on loopback

        def ask() -> Any:
            try:
                with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310 - same
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                if error.code != TOO_SOON:
                    raise
                return None  # the account's clients share one interval: our turn comes

        return wait_for(ask, path)


@contextmanager
def market(
    *, seed: int = 3, offers: int = 120, faults: Path | None = None, cwd: Path
) -> Iterator[Market]:
    """Run `gp4u sim serve` with real local processes as instances."""
    words = [GP4U, "sim", "serve", "--provider", "vastai", "--port", "0", "--runtime", "process"]
    words += ["--seed", str(seed), "--offers", str(offers)]
    words += ["--faults", str(faults)] if faults else []
    with Running(words, clean_environ(), cwd) as running:
        line = running.hear(r"\{.*\}\n", stream="stdout").group()
        try:
            yield Market(json.loads(line))
        finally:
            stopped = running.end(signal.SIGTERM)
            assert stopped.code == 0, stopped


class Markets:
    """Simulated markets in one process; once they have stopped, what each of them charged."""

    def __init__(self, lines: Sequence[Mapping[str, Any]], meter: Path) -> None:
        self.lines: dict[str, Mapping[str, Any]] = {line["provider"]: line for line in lines}
        self.env = {name: value for line in lines for name, value in line["env"].items()}
        self._meter = meter

    def charged(self) -> dict[str, Charged]:
        """Return what the markets' own meters say, by market."""
        found: dict[str, Charged] = {}
        for slug, bill in json.loads(self._meter.read_text()).items():
            rows = [
                Sold(each["id"], each["label"], Decimal(each["usd"]), each["open"])
                for each in bill["contracts"]
            ]
            found[slug] = Charged(Decimal(bill["total_usd"]), rows)
        return found


@contextmanager
def markets(
    *providers: str,
    seed: int = 3,
    faults: Path | None = None,
    flavor: str | None = None,
    cwd: Path,
) -> Iterator[Markets]:
    """Run `gp4u sim serve` for the named markets, or all, with local processes as instances."""
    meter = cwd / "meter.json"
    words = [GP4U, "sim", "serve", "--runtime", "process", "--seed", str(seed)]
    words += ["--meter", str(meter)]
    words += [word for slug in providers for word in ("--provider", slug)]
    words += ["--flavor", flavor] if flavor else []
    words += ["--faults", str(faults)] if faults else []
    with Running(words, clean_environ(), cwd) as running:
        every = rf"(\{{.*\}}\n){{{len(providers) or ALL_MARKETS}}}"
        said = running.hear(every, stream="stdout").group()
        try:
            yield Markets([json.loads(line) for line in said.splitlines()], meter)
        finally:
            stopped = running.end(signal.SIGTERM)
            assert stopped.code == 0, stopped


class Desk:
    """A user with a ledger, at a market or several."""

    def __init__(self, market: Market | Markets | None, home: Path, **env: str) -> None:
        self.market, self.home = market, home
        home.mkdir(exist_ok=True)
        self.ledger = home / "ledger.db"
        self.env = clean_environ() | (market.env if market else {})
        self.env |= {"GP4U_DATABASE_URL": f"sqlite:///{self.ledger}", "HOME": str(home)}
        # A test asks the market itself, often right before a command: those take turns quickly.
        self.env |= {"PROVIDER_RETRY_BASE_DELAY": "0.4", "PROVIDER_RETRY_JITTER": "0.1"} | env

    def gp4u(self, *words: str, **env: str) -> Done:
        """Run a command to its end."""
        done = subprocess.run(
            [GP4U, *words],
            env=self.env | env,
            cwd=self.home,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *words: str, **env: str) -> Running:
        """Start a command."""
        return Running([GP4U, *words], self.env | env, self.home)

    def ps(self, *words: str) -> list[dict[str, Any]]:
        """Return what `gp4u ps` says."""
        done = self.gp4u("ps", "-o", "json", *words)
        assert done.code == 0, done
        found: list[dict[str, Any]] = done.json
        return found


def clean_environ() -> dict[str, str]:
    """Return this process's environment without any variable that GP4U would read."""
    prefixes = ("GP4U_", "VAST", "IONET_", "AKASH_", "RENDER_", "PROVIDER_", "NO_COLOR", "_GP4U")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return kept | {"PYTHONUNBUFFERED": "1"}
