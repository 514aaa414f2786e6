"""A tiny Acme, written from Acme's API and not from the adapter: in process, or on a loopback port.

`python fake_acme.py` serves until it is stopped and prints one line of JSON: how it is reached, and
the variables that a client of it needs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

KEY = "acme-key-4711"
GPUS: list[dict[str, Any]] = [
    {
        "sku": "eu-4090",
        "gpu_model": "NVIDIA GeForce RTX 4090",
        "memory_gb": 24,
        "gpus": 1,
        "disk_gb": 500,
        "price": 0.31,
        "country": "Germany",
        "uptime": 0.995,
        "free": 1,
    },
    {
        "sku": "eu-3090",
        "gpu_model": "RTX 3090",
        "memory_gb": 24,
        "gpus": 1,
        "disk_gb": 250,
        "price": 0.19,
        "country": "Poland",
        "uptime": 0.97,
        "free": 1,
    },
    {
        "sku": "us-h100-8",
        "gpu_model": "H100 SXM",
        "memory_gb": 80,
        "gpus": 8,
        "disk_gb": 4000,
        "price": 15.2,
        "country": "US",
        "uptime": 0.98,
        "free": 1,
    },
    {
        "sku": "broken",
        "gpu_model": "RTX 4090",
        "memory_gb": 24,
        "gpus": 1,
        "disk_gb": 500,
        "price": -1,
        "country": "US",
        "uptime": 1,
        "free": 1,
    },
]


class FakeAcme:
    """The market's state; a test may look at it, and change it."""

    def __init__(self) -> None:
        self.machines: dict[str, dict[str, object]] = {}
        self.made: dict[str, str] = {}
        """Id to name of every machine that was ever rented."""
        self.fail_with: int | None = None
        """A status that every call is answered with."""
        self.loses_replies = False
        """Whether a rent takes effect and is never answered."""
        self.forgets_last = False
        """Whether a list of machines lacks the newest one, and still counts it."""
        self.late_lists = 0
        """In how many lists to come the newest machine is missing, as if it were not there."""
        self.url = ""

    @property
    def env(self) -> dict[str, str]:
        """The variables of a client of this market."""
        return {
            "ACME_BASE_URL": self.url,
            "ACME_API_KEY": KEY,
            "ACME_SETTLE_S": "1",
            "GP4U_ALLOW_LOOPBACK": "1",
        }

    def reply(self, method: str, target: str, authorization: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of one call; `target` is its path and query."""
        parts = urlsplit(target)
        path = [unquote(step) for step in parts.path.split("/")[2:]]
        answer: object
        if self.fail_with is not None:
            status, answer = self.fail_with, {"error": "not now"}
        elif authorization != f"Bearer {KEY}":
            status, answer = 401, {"error": "who are you?"}
        else:
            query = parse_qs(parts.query)
            status, answer = self._answer(method, path, query, json.loads(body or b"{}"))
        return status, json.dumps(answer).encode()

    def _answer(
        self, method: str, path: list[str], query: dict[str, list[str]], body: dict[str, Any]
    ) -> tuple[int, object]:
        match method, path:
            case "GET", ["me"]:
                return 200, {"account": "acme-1", "credit_usd": 25}
            case "GET", ["gpus"]:
                return 200, {"gpus": [each | {"free": self._free(each)} for each in GPUS]}
            case "GET", ["machines"]:
                return 200, self._list()
            case "POST", ["machines"]:
                return self._make(body)
            case "DELETE", ["machines", machine] if machine in self.machines:
                del self.machines[machine]
                return 200, {}
            case "GET", ["machines", machine, "logs"] if machine in self.machines:
                return 200, {"lines": ["hello", "from Acme"][-int(query["tail"][0]) :]}
            case _:
                return 404, {"error": "there is none"}

    def _free(self, kind: dict[str, Any]) -> int:
        taken = [each for each in self.machines.values() if each["sku"] == kind["sku"]]
        return int(kind["free"]) - len(taken)

    def _list(self) -> dict[str, object]:
        shown = list(self.machines.values())
        if self.late_lists:
            self.late_lists -= 1
            shown = shown[:-1]
        total = len(shown)
        return {"machines": shown[:-1] if self.forgets_last else shown, "total": total}

    def _make(self, body: dict[str, Any]) -> tuple[int, object]:
        kind = next((each for each in GPUS if each["sku"] == body["sku"]), None)
        if kind is None or not self._free(kind):
            return 409, {"error": "sold out"}
        machine = f"m/{len(self.made) + 1}"  # an id that has to be quoted in a path
        self.made[machine] = body["name"]
        self.machines[machine] = {
            "id": machine,
            "sku": body["sku"],
            "name": body["name"],
            "status": "running",
            "price": kind["price"],
            "host": "127.0.0.1",
            "ports": {str(port): 30_000 + port for port in body["ports"]},
        }
        return 201, {"id": machine}


def handler_for(market: FakeAcme) -> type[BaseHTTPRequestHandler]:
    """Return the HTTP side of a market."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            del format, args

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            authorization = self.headers.get("authorization", "")
            status, text = market.reply(self.command, self.path, authorization, body)
            if market.loses_replies and self.command == "POST":
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_DELETE = _serve

    return Handler


@contextmanager
def fake_acme() -> Iterator[FakeAcme]:
    """Serve a market on a free port of the loopback, in threads of its own."""
    market = FakeAcme()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(market))
    market.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield market
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    with fake_acme() as running:
        print(json.dumps({"base_url": running.url, "env": running.env}), flush=True)
        threading.Event().wait()
