"""The kubelet API as its callers meet it: over TLS, reviewed, path by path."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from gp4u.clock import SystemClock
from gp4u.errors import Unavailable
from gp4u.kubelet.held import Ended, Run
from gp4u.kubelet.logs.store import LogStore
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.server.auth import Reviewer
from gp4u.kubelet.server.certificates import Certificates
from gp4u.kubelet.server.server import KubeletServer
from gp4u.kubelet.server.trust import ClientTrust
from gp4u.kubelet.server.ways_in import ONE_SHOT_INPUT
from gp4u.model import Endpoint
from gp4u.providers.contract import Ability, Finished
from tests.kube_api import KubeApi
from tests.unit.kubelet.server.authority import CLIENT, SERVER, Authority, client_context
from tests.unit.kubelet.shown import Echo, Node, Shown, held, rental, state

CA, STRANGER = Authority(), Authority("stranger")
API_SERVER = CA.pair("kube-apiserver-kubelet-client")
LAST = Ended(exit_code=1, reason="Error")


@dataclass
class Port:
    """A node's port, its market, and the API server behind it."""

    market: Shown
    node: Node
    api: KubeApi
    server: KubeletServer
    folder: Path
    store: LogStore
    problems: dict[str, str] = field(default_factory=dict)

    def url(self, path: str) -> str:
        """Return where a path is."""
        assert self.server.address is not None
        return f"https://127.0.0.1:{self.server.address[1]}{path}"

    def tls(self, pair: tuple[bytes, bytes] | None = API_SERVER) -> ssl.SSLContext:
        """Return a client's TLS, with this certificate."""
        return client_context(self.folder, pair, ca=None)

    async def get(self, path: str, **more: str) -> httpx.Response:
        """Ask as the API server does."""
        async with httpx.AsyncClient(verify=self.tls(), trust_env=False) as client:
            return await client.get(self.url(path), params=more)


async def page() -> bytes:
    """Return the node's own metrics."""
    return b"gp4u_up 1\n"


@asynccontextmanager
async def serving(folder: Path, market: Shown | None = None) -> AsyncIterator[Port]:
    """Open the port of a node with one pod, `june`, whose container `stt` runs."""
    market = market or Shown()
    node, api, clock = Node(held(of=rental())), KubeApi(clock=SystemClock()), SystemClock()
    problems: dict[str, str] = {}
    (folder / "ca.crt").write_bytes(CA.pem)
    async with api.client() as client, asyncio.TaskGroup() as group:
        trust = ClientTrust(None, file=folder / "ca.crt", random=Random(1))
        certificates = Certificates(
            None,
            node_name="n1",
            address=lambda: "127.0.0.1",
            trust=trust,
            clock=clock,
            random=Random(1),
        )
        policy = NodePolicy(name="n1", address="127.0.0.1", max_pods=77)
        store = LogStore({"shown": market}, clock=clock)
        server = KubeletServer(
            pods=node,
            policy=lambda: policy,
            providers={"shown": market},
            logs=store,
            gate=Reviewer(client, node_name="n1", clock=clock),
            trust=trust,
            certificates=certificates,
            clock=clock,
            metrics_text=page,
            checks={"market": lambda: problems.get("market", "")},
            allow_loopback=True,
        )
        task = group.create_task(server.run("127.0.0.1", 0))
        await server.started.wait()
        yield Port(market, node, api, server, folder, store, problems)
        task.cancel()


async def test_nobody_comes_in_without_a_name(tmp_path: Path) -> None:
    """No path of the port is open to strangers, not even the health of the node (S1)."""
    async with serving(tmp_path) as port:
        async with httpx.AsyncClient(verify=port.tls(None), trust_env=False) as client:
            for path in ("/pods", "/healthz", "/metrics", "/exec/default/june/stt", "/nothing"):
                reply = await client.get(port.url(path))
                assert reply.status_code == 401, path
                header = {"Authorization": "Bearer made-up"}
                reply = await client.get(port.url(path), headers=header)
                assert reply.status_code == 401, path
        assert not port.api.told("create", "subjectaccessreviews")


@pytest.mark.parametrize(
    "pair",
    [STRANGER.pair("kube-apiserver"), CA.pair("kube-apiserver", usage=SERVER)],
    ids=["another CA", "a server's certificate"],
)
async def test_a_certificate_of_somebody_else_is_none(
    tmp_path: Path, pair: tuple[bytes, bytes]
) -> None:
    """Only clients of the cluster's own CA; a serving certificate is not a client's."""
    async with (
        serving(tmp_path) as port,
        httpx.AsyncClient(verify=port.tls(pair), trust_env=False) as client,
    ):
        with pytest.raises(httpx.HTTPError):
            await client.get(port.url("/pods"))


async def test_a_token_comes_in_by_review(tmp_path: Path) -> None:
    """metrics-server and Prometheus have tokens, no certificates."""
    async with serving(tmp_path) as port:
        port.api.tokens["good"] = {"username": "metrics-server"}
        port.api.may = lambda spec: spec["resourceAttributes"]["subresource"] == "metrics"
        header = {"Authorization": "Bearer good"}
        async with httpx.AsyncClient(
            verify=port.tls(None), trust_env=False, headers=header
        ) as client:
            assert (await client.get(port.url("/metrics"))).text == "gp4u_up 1\n"
            assert (await client.get(port.url("/metrics/resource"))).status_code == 200
            refused = await client.get(port.url("/pods"))
            assert refused.status_code == 403
            assert "user=metrics-server" in refused.text
            assert (await client.get(port.url("/nothing"))).status_code == 403


async def test_a_websocket_exec_needs_more_than_get(tmp_path: Path) -> None:
    """Whoever may read nodes/proxy must not run commands because a WebSocket is a GET (S2)."""
    async with serving(tmp_path) as port:
        port.api.may = lambda spec: spec["resourceAttributes"]["verb"] == "get"
        assert (await port.get("/pods")).status_code == 200
        for what in ("exec", "attach"):
            reply = await port.get(f"/{what}/default/june/stt", command="id", output="1")
            assert reply.status_code == 403, what
        assert (await port.get("/portForward/default/june")).status_code == 403
        assert port.market.commands == []


async def test_a_review_that_fails_closes_the_door(tmp_path: Path) -> None:
    """An API server that cannot be asked says neither yes nor no: nobody is let in."""
    async with serving(tmp_path) as port:
        port.api.fail("create", "subjectaccessreviews", 500)
        assert (await port.get("/pods")).status_code == 500


async def test_the_pods_of_the_node_are_told_from_memory(tmp_path: Path) -> None:
    """Tools decode them by content type; pods that leave do not run any more."""
    async with serving(tmp_path) as port:
        waiting = held(state(run=Run.WAITING, reason="ContainerCreating"), uid="u2", name="later")
        port.node.every.append(waiting)
        reply = await port.get("/pods")
        assert reply.headers["content-type"] == "application/json"
        body = reply.json()
        assert (body["kind"], body["apiVersion"]) == ("PodList", "v1")
        assert [each["metadata"]["name"] for each in body["items"]] == ["june", "later"]
        assert body["items"][0]["spec"]["nodeName"]
        for path in ("/runningpods/", "/runningpods"):
            (one,) = (await port.get(path)).json()["items"]
            assert one["metadata"] == {"name": "june", "namespace": "default", "uid": "uid-1"}
            assert [each["name"] for each in one["spec"]["containers"]] == ["stt"]
        port.node.every = [held(uid=f"u{n}", name=f"p{n}") for n in range(120)]
        assert len((await port.get("/pods")).json()["items"]) == 120


async def test_health_is_the_sum_of_its_checks(tmp_path: Path) -> None:
    """Each check has a path; the verbose page names the one that fails."""
    async with serving(tmp_path) as port:
        assert (await port.get("/healthz")).text == "ok"
        assert (await port.get("/healthz/ping")).text == "ok"
        assert "[+]market ok" in (await port.get("/healthz", verbose="")).text
        assert (await port.get("/healthz/nothing")).status_code == 404
        port.problems["market"] = "silent"
        reply = await port.get("/healthz")
        assert reply.status_code == 500
        assert "[-]market failed: silent" in reply.text


async def test_what_is_in_force_can_be_read(tmp_path: Path) -> None:
    """`configz` is how conformance tests and dashboards learn a node's settings."""
    async with serving(tmp_path) as port:
        told = (await port.get("/configz")).json()["kubeletconfig"]
        assert told["maxPods"] == 77
        assert told["authentication"]["anonymous"]["enabled"] is False


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/logs/", 403),
        ("/nothing", 404),
        ("/containerLogs/default/other/stt", 404),
        ("/containerLogs/default/june/other", 404),
        ("/exec/default/june/other", 404),
        ("/exec/default/june/uid-2/stt", 404),
        ("/portForward/default/june/uid-2", 404),
        ("/run/default/june/stt", 405),
    ],
)
async def test_what_is_not_there_is_told(tmp_path: Path, path: str, status: int) -> None:
    """A pod of the same name with another UID is another pod (K7)."""
    async with serving(tmp_path) as port:
        assert (await port.get(path)).status_code == status


async def test_a_log_is_told_as_it_was_asked_for(tmp_path: Path) -> None:
    """Every option of `kubectl logs` is answered here: nobody filters after us."""
    path = "/containerLogs/default/june/stt"
    async with serving(tmp_path) as port:
        port.market.text = "one\ntwo\nthree\n"
        reply = await port.get(path)
        assert (reply.text, reply.headers["content-type"][:10]) == (
            "one\ntwo\nthree\n",
            "text/plain",
        )
        assert (await port.get(path, tailLines="2")).text == "two\nthree\n"
        assert (await port.get(path, tailLines="0")).text == ""
        assert (await port.get(path, limitBytes="5")).text == "one\nt"
        assert (await port.get(path, sinceSeconds="3600", tailLines="1")).text == "three\n"
        later = (datetime.now(UTC) + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
        assert (await port.get(path, sinceTime=later)).text == ""
        assert (await port.get(path, stream="Stderr")).text == ""
        assert (await port.get(path, stream="Stdout")).text == "one\ntwo\nthree\n"
        for line in (await port.get(path, timestamps="true")).text.splitlines():
            assert datetime.fromisoformat(line.split("000Z ")[0] + "+00:00") <= datetime.now(UTC)
        for name, value in {
            "tailLines": "-1",
            "limitBytes": "0",
            "sinceSeconds": "x",
            "sinceTime": "yesterday",
            "stream": "Both",
        }.items():
            reply = await port.get(path, **{name: value})
            assert reply.status_code == 422, name
            assert name in reply.text
        both = await port.get(path, sinceSeconds="1", sinceTime=later)
        assert both.status_code == 422


async def test_a_container_that_does_not_run_says_why(tmp_path: Path) -> None:
    """People know a kubelet's words, and search for them."""
    async with serving(tmp_path) as port:
        port.node.every = [held(state(run=Run.WAITING, reason="ContainerCreating"))]
        told = 'container "stt" in pod "june" is waiting to start: '
        for path in ("/containerLogs/default/june/stt", "/exec/default/june/stt"):
            reply = await port.get(path)
            assert (reply.status_code, reply.text.strip()) == (400, told + "ContainerCreating")
        port.node.every = [held(state(run=Run.WAITING, reason="ImagePullBackOff"))]
        reply = await port.get("/containerLogs/default/june/stt")
        assert reply.text.strip() == told + "trying and failing to pull image"
        port.node.every = [held(state(), of=rental())]
        reply = await port.get("/containerLogs/default/june/stt", previous="true")
        assert reply.status_code == 400
        wanted = 'previous terminated container "stt" in pod "june" not found'
        assert reply.text.strip() == wanted


async def test_the_run_before_and_the_log_after_the_end_are_there(tmp_path: Path) -> None:
    """A crash is read from `--previous`; a Job's result when its machine is long gone."""
    path = "/containerLogs/default/june/stt"
    async with serving(tmp_path) as port:
        port.market.text = "gp4u: run 1\nboom\ngp4u: exit 1\ngp4u: run 2\nfine\n"
        port.node.every = [held(state(number=2, last=LAST), of=rental())]
        assert (await port.get(path, previous="true")).text == "boom\n"
        assert (await port.get(path)).text == "fine\n"
        waiting = state(run=Run.WAITING, reason="CrashLoopBackOff", last=LAST)
        port.node.every = [held(waiting, of=rental())]
        assert (await port.get(path)).text == "fine\n"
        await port.store.keep_final(port.node.every[0])
        port.node.every = [held(state(run=Run.TERMINATED, number=2, last=LAST))]
        port.market.error = Unavailable("shown", "logs", "gone")
        assert (await port.get(path)).text == "fine\n"
        assert (await port.get(path, follow="true")).text == "fine\n"


async def test_a_market_that_cannot_show_a_log_is_named(tmp_path: Path) -> None:
    """An empty answer would say that nothing was printed."""
    async with serving(tmp_path) as port:
        port.market.error = Unavailable("shown", "logs", "503 from them")
        reply = await port.get("/containerLogs/default/june/stt", previous="false")
        assert (reply.status_code, "503 from them" in reply.text) == (500, True)


async def test_a_follower_hears_what_comes_until_the_end(tmp_path: Path) -> None:
    """`kubectl logs -f` goes on while the container runs, and ends with it."""
    async with serving(tmp_path, Shown(can=Ability.LOGS | Ability.FOLLOW)) as port:
        port.market.text, port.market.stream = "one\n", asyncio.Queue()
        heard = asyncio.Queue[str]()

        async def follow() -> None:
            async with httpx.AsyncClient(verify=port.tls(), trust_env=False) as client:
                url = port.url("/containerLogs/default/june/stt?follow=true")
                async with client.stream("GET", url) as reply:
                    async for line in reply.aiter_lines():
                        heard.put_nowait(line)

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            following = group.create_task(follow())
            assert await heard.get() == "one"
            port.market.stream.put_nowait(b"two\n")
            assert await heard.get() == "two"
            port.market.text = "one\ntwo\nlast\n"
            await port.store.keep_final(port.node.every[0])
            port.node.every = [held(state(run=Run.TERMINATED))]
            assert await heard.get() == "last"
            await following


async def test_a_command_is_run_and_its_exit_code_told(tmp_path: Path) -> None:
    """Over a WebSocket end to end, where the market gives a session."""
    async with serving(tmp_path, Shown(can=Ability.LOGS | Ability.SHELL)) as port:
        session = port.market.session = Echo(b"hello", 3)
        heard = await _exec(port, "/exec/default/june/uid-1/stt?command=sh&command=-c&output=1")
        assert port.market.commands == [("sh", "-c")]
        assert heard[1] == b"hello"
        assert b'"message":"3"' in heard[3]
        assert session.is_closed


async def test_a_market_that_only_runs_to_the_end_serves_exec_too(tmp_path: Path) -> None:
    """Output, errors and exit code are the same to whoever typed it."""
    async with serving(tmp_path) as port:
        port.market.ended = Finished(exit_code=0, stdout=b"out", stderr=b"err")
        heard = await _exec(port, "/exec/default/june/stt?command=id&output=1&error=1")
        assert (heard[1], heard[2]) == (b"out", b"err")
        assert b'"Success"' in heard[3]
        heard = await _exec(port, "/exec/default/june/stt?command=id&output=1&tty=1")
        assert b"no terminals" in heard[3]


async def test_input_that_a_market_cannot_take_is_refused_in_words(tmp_path: Path) -> None:
    """`kubectl cp` of a large file must not hang where a market only runs to the end."""
    async with serving(tmp_path) as port, asyncio.timeout(20):
        typed = b"x" * (ONE_SHOT_INPUT + 1)
        heard = await _exec(port, "/exec/default/june/stt?command=cat&input=1&output=1", typed)
    assert f"at most {ONE_SHOT_INPUT} bytes" in heard[3].decode()
    assert port.market.commands == []


@pytest.mark.parametrize("can", [Ability.SHELL, Ability.EXEC])
async def test_a_command_goes_into_the_container_that_is_named(
    tmp_path: Path, can: Ability
) -> None:
    """`exec -c` must not run in the neighbour, by neither of a market's two ways."""
    async with serving(tmp_path, Shown(can=Ability.LOGS | can)) as port:
        port.market.session = Echo(b"hello")
        port.node.every = [held(state("stt"), state("tts"), of=rental())]
        for container in ("tts", "stt"):
            await _exec(port, f"/exec/default/june/{container}?command=id&output=1")
        assert port.market.into == ["tts", None]


async def _exec(port: Port, path: str, typed: bytes = b"") -> dict[int, bytes]:
    """Run a command over a v5 WebSocket, and return what came by channel."""
    heard: dict[int, bytes] = {1: b"", 2: b"", 3: b""}
    async with connect(
        port.url(path).replace("https", "wss"),
        ssl=port.tls(),
        subprotocols=[Subprotocol("v5.channel.k8s.io")],
        proxy=None,
    ) as socket:
        try:
            for at in range(0, len(typed), 32 * 1024):
                await socket.send(b"\0" + typed[at : at + 32 * 1024])
            async for message in socket:
                assert isinstance(message, bytes)
                heard[message[0]] += message[1:]
        except ConnectionClosed:
            pass
    return heard


async def test_a_market_without_a_way_in_is_named(tmp_path: Path) -> None:
    """501 and a sentence, instead of a hang or a bare 404."""
    async with serving(tmp_path, Shown(can=Ability.LOGS)) as port:
        reply = await port.get("/exec/default/june/stt", command="id", output="1")
        assert (reply.status_code, "Shown" in reply.text) == (501, True)


async def test_the_old_way_to_run_a_command_works(tmp_path: Path) -> None:
    """`/run` is older than streams, and still in every kubelet."""
    async with serving(tmp_path) as port:
        port.market.ended = Finished(exit_code=0, stdout=b"uid=0")
        async with httpx.AsyncClient(verify=port.tls(), trust_env=False) as client:
            reply = await client.post(port.url("/run/default/june/stt?cmd=id+-u"))
            assert reply.text == "uid=0"
            assert port.market.commands == [("id", "-u")]
            reply = await client.post(port.url("/run/default/june/stt"))
            assert reply.status_code == 400


async def test_attaching_shows_what_is_printed_from_now_on(tmp_path: Path) -> None:
    """No market lets one join a running process; its output can be watched all the same."""
    async with serving(tmp_path) as port:
        port.market.text = "before\n"
        heard = b""
        url = port.url("/attach/default/june/stt?output=1&error=1").replace("https", "wss")
        async with (
            asyncio.timeout(20),
            connect(
                url,
                ssl=port.tls(),
                subprotocols=[Subprotocol("v4.channel.k8s.io")],
                proxy=None,
            ) as socket,
        ):
            async for message in socket:
                assert isinstance(message, bytes)
                if message[0] == 1:
                    heard += message[1:]
                if not heard and port.market.looks:
                    port.market.text = "before\nafter\n"
                if heard:
                    port.node.every = [held(state(run=Run.TERMINATED), of=rental())]
        assert heard == b"after\n"


async def test_a_published_port_is_reached_and_another_one_is_named(tmp_path: Path) -> None:
    """The way is the published address; whoever asks for another port learns which there are."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello " + await reader.read(100))
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    host_port = listener.sockets[0].getsockname()[1]
    endpoint = Endpoint(container_port=8000, host="127.0.0.1", port=host_port)
    async with listener, serving(tmp_path) as port:
        port.node.every = [held(of=rental(endpoints=(endpoint,)))]
        heard = await _forward(port, 8000, b"you")
        assert heard[0] == b"hello you"
        heard = await _forward(port, 8001, b"you")
        assert b"published ports are: 8000" in heard[1]


async def test_a_port_behind_a_url_is_asked_by_the_name_of_the_url(tmp_path: Path) -> None:
    """A market's proxy has many machines behind it, and knows none that is called localhost."""
    asked = b""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        with suppress(asyncio.IncompleteReadError):
            asked = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    number = listener.sockets[0].getsockname()[1]
    endpoint = Endpoint(container_port=8000, host="", port=0, url=f"http://localhost:{number}")
    async with listener, serving(tmp_path) as port:
        port.node.every = [held(of=rental(endpoints=(endpoint,)))]
        sent = b"GET /a HTTP/1.1\r\nHost: 127.0.0.1:5000\r\nAccept: */*\r\n\r\n"
        heard = await _forward(port, 8000, sent)
        assert heard[0].endswith(b"hi")
        lines = asked.decode().splitlines()
        assert lines[:2] == ["GET /a HTTP/1.1", f"Host: localhost:{number}"]
        assert "Accept: */*" in lines
        heard = await _forward(port, 8000, b"\x16\x03\x01 a greeting of TLS")
        assert b"only HTTP/1.1" in heard[1]


async def _forward(port: Port, number: int, sent: bytes) -> dict[int, bytes]:
    """Send bytes to a port of the pod over a WebSocket; return what came by channel."""
    heard: dict[int, bytes] = {0: b"", 1: b""}
    url = port.url(f"/portForward/default/june?port={number}").replace("https", "wss")
    async with (
        asyncio.timeout(20),
        connect(
            url, ssl=port.tls(), subprotocols=[Subprotocol("v4.channel.k8s.io")], proxy=None
        ) as socket,
    ):
        await socket.send(b"\x00" + sent)
        try:
            async for message in socket:
                assert isinstance(message, bytes)
                heard[message[0]] += message[1:]
                if heard[1][2:] or heard[0].endswith(sent):
                    break
        except ConnectionClosed:
            pass
    return {channel: data[2:] for channel, data in heard.items()}


async def test_the_clusters_new_ca_is_followed_without_a_restart(tmp_path: Path) -> None:
    """A cluster that rotates its CA must not lose logs and exec."""
    async with serving(tmp_path) as port:
        assert (await port.get("/healthz")).status_code == 200
        other = Authority("next")
        port.server._trust.pem = other.pem
        async with httpx.AsyncClient(
            verify=port.tls(other.pair("kube-apiserver", usage=CLIENT)), trust_env=False
        ) as client:
            assert (await client.get(port.url("/healthz"))).text == "ok"
        with pytest.raises(httpx.HTTPError):
            await port.get("/healthz")
