"""`gp4u render`: what its words mean, and what happens between a submission and its last frame."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from random import Random

import httpx2
import pytest

from gp4u.app import App, open_app
from gp4u.cli import rendering
from gp4u.cli.failures import Code, Leave
from gp4u.cli.jobs import job_json, show_jobs, work_of
from gp4u.cli.rendering import named
from gp4u.cli.scenes import Scene, scene_of
from gp4u.cli.screen import Form, Screen
from gp4u.cli.terminal import Colour
from gp4u.errors import BadInput, Refused
from gp4u.providers.render.legacy_wire import Frames, RenderProgress
from gp4u.settings import load_settings
from gp4u.sim.faults import Rule
from tests.contract.render.market import PUBLIC, Market, legacy
from tests.unit.cli.paper import Paper
from tests.virtual_loop import VirtualClock, run_virtual

ADDRESS = "https://scenes.example/a.orbx"
KEY = re.compile(r"gp4u-[a-z2-7]+-[a-z2-7]{10}-[a-z2-7]{10}")
PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "cli.md"


def words(
    *,
    address: str = ADDRESS,
    engine: str = "octane",
    frames: str = "1-240",
    tier: int = 2,
    priority: str = "normal",
    max_obh: str | None = None,
) -> Scene:
    """A scene with some of its words."""
    return scene_of(
        address, engine=engine, frames=frames, tier=tier, priority=priority, max_obh=max_obh
    )


def job(
    job_id: str = "job_1",
    *,
    key: str = "",
    status: str = "rendering",
    progress: float = 0.0,
    node_id: str | None = None,
    cost_usd: Decimal | None = None,
) -> RenderProgress:
    """A render job of which the market says little."""
    return RenderProgress(
        job_id=job_id,
        key=key,
        status=status,
        frames_done=1,
        frames_total=3,
        progress=progress,
        obh_used=None,
        cost_usd=cost_usd,
        node_id=node_id,
        outputs=(),
        error="",
    )


class Desk:
    """An open app at a simulated market, and two papers for what it prints."""

    def __init__(self, app: App, market: Market, form: Form) -> None:
        self.app, self.market = app, market
        self.out, self.err = Paper(tty=False), Paper(tty=False)
        self.screen = Screen(form, Colour.NEVER, out=self.out, err=self.err)
        self.said_before_post: list[str] = []

    async def start(self, scene: Scene, *, wait: bool = False) -> None:
        """Run `render start`."""
        await rendering.start(self.app, self.screen, scene, Random(5), wait=wait)

    @property
    def key(self) -> str:
        """The key that was said."""
        found = KEY.search(self.err.plain)
        assert found is not None, self.err.plain
        return found.group()


class _Watched(httpx2.AsyncBaseTransport):
    """Notes what had been said when something that costs money was sent."""

    def __init__(self, market: Market, desk: Callable[[], Desk]) -> None:
        self._market, self._desk = market, desk

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            self._desk().said_before_post.append(self._desk().err.plain)
        return await self._market.wire.handle_async_request(request)


@asynccontextmanager
async def desk(
    folder: Path,
    *rules: Rule,
    form: Form = Form.TABLE,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[Desk]:
    """Open a desk; the market's faults are scripted."""
    async with legacy(*rules, offers=200) as (_, market):
        settings = load_settings(
            {
                "RENDER_API_FLAVOR": "legacy",
                "RENDER_BASE_URL": "https://sim.test/v1",
                "RENDER_API_KEY": PUBLIC,
                "GP4U_DATABASE_URL": f"sqlite:///{folder / 'ledger.db'}",
                **(environ or {}),
            },
            folder,
        )
        opened: list[Desk] = []
        transport = _Watched(market, lambda: opened[0])
        async with open_app(
            settings, clock=VirtualClock(), random=Random(1), transport=transport
        ) as app:
            opened.append(Desk(app, market, form))
            yield opened[0]


def test_a_scene_is_read_as_it_is_meant() -> None:
    """The end of a range is one of its frames, and a step leaves frames out."""
    scene = words(frames="1-10:3", tier=3, priority="high", max_obh="2.5")
    assert scene.frames == Frames(1, 10, 3)
    assert (scene.frame_count, scene.tier, scene.priority) == (4, 3, "high")
    assert scene.max_obh == Decimal("2.5")
    assert words(frames="0-239").frame_count == 240
    assert words(frames="7-7").frame_count == 1
    assert words().max_obh is None


@pytest.mark.parametrize(
    "frames",
    [
        *("", "7", "1-", "-1-3", "1-3:", "5-1", "1-3:0", "1-1000001", "1-3\n", "a-b"),
        *("²-3", "1-\uff13", "9" * 5000),
    ],
)
def test_frames_that_are_no_range_are_refused(frames: str) -> None:
    """One number could be a frame or a number of frames: a hundredfold bill between the two."""
    with pytest.raises(BadInput, match="--frames"):
        words(frames=frames)


@pytest.mark.parametrize("bound", ["0", "-1", "nan", "inf", "1e9", "much", ""])
def test_a_bound_that_bounds_nothing_is_refused(bound: str) -> None:
    """Who writes a bound believes that the cost is bounded."""
    with pytest.raises(BadInput, match="--max-obh"):
        words(max_obh=bound)


def test_every_other_word_is_held_to_its_bound_and_named(tmp_path: Path) -> None:
    """A refusal has the flag, the value and what it must be."""
    with pytest.raises(BadInput, match=r"--engine: 'arnold' .* octane, redshift, cycles"):
        words(engine="arnold")
    with pytest.raises(BadInput, match=r"--tier: 4 .* 1, 2 or 3"):
        words(tier=4)
    for priority in ("", "Very High", "a" * 33, "-", "normal\n"):
        with pytest.raises(BadInput, match="--priority"):
            words(priority=priority)
    for address in ("", "a b", "a\x1b[2J", "a" * 2049):
        with pytest.raises(BadInput, match="SCENE"):
            words(address=address)
    (tmp_path / "scene.orbx").touch()
    with pytest.raises(BadInput, match="nothing uploads it"):
        words(address=str(tmp_path / "scene.orbx"))


def test_a_job_is_meant_by_its_id_its_key_or_the_start_of_the_key() -> None:
    """Two jobs of one key are one wish that was granted twice: both are meant."""
    one, two, twin = (
        job("job_1", key="gp4u-abc-first-x"),
        job("job_2", key="gp4u-abc-second-x"),
        job("job_3", key="gp4u-abc-second-x"),
    )
    jobs = [one, two, twin, job("job_4")]
    assert named(jobs, "job_1") == [one]
    assert named(jobs, "gp4u-abc-second-x") == [two, twin]
    assert named(jobs, "gp4u-abc-f") == [one]
    assert list(named(jobs, "")) == []
    assert list(named(jobs, "job_9")) == []


@pytest.mark.parametrize("word", ["gp4u", "gp4u-", "gp4u-abc", "gp4u-abc-"])
def test_how_every_key_begins_means_none_of_them(word: str) -> None:
    """It would cancel whatever happens to be there."""
    with pytest.raises(BadInput, match="give more of it"):
        named([job(key="gp4u-abc-first-x")], word)


def test_the_start_of_two_keys_means_neither() -> None:
    """The refusal names both, so that one can be chosen."""
    with pytest.raises(BadInput, match="gp4u-a-xa-1, gp4u-a-xb-1"):
        named([job("a", key="gp4u-a-xa-1"), job("b", key="gp4u-a-xb-1")], "gp4u-a-x")


def test_what_the_market_says_of_a_job_cannot_steer_a_terminal() -> None:
    """A node is named by a stranger."""
    evil = job(key="a\x1b[2J", status="done\x1b[1A", node_id="n\x1b]0;x\x07\u202e")
    for form in Form:
        out = Paper(tty=False)
        show_jobs(Screen(form, Colour.NEVER, out=out, err=Paper(tty=False)), [evil])
        assert not re.search("[\x1b\x07\u202e]", out.getvalue())
    assert "\x1b" not in work_of(evil)


def test_an_almost_finished_job_is_not_finished() -> None:
    """Rounding up would say 100 % of a job that may still fail; unknown sums are left out."""
    assert work_of(job(progress=0.9999)) == "rendering: 1/3 frames, 99 %"
    assert work_of(job(cost_usd=Decimal("0.5"))).endswith("$0.500000")


def test_the_keys_of_a_job_are_those_on_the_page() -> None:
    """Programs are written by that table."""
    section = PAGE.read_text("utf-8").split("### a render job\n")[1].split("\n#")[0]
    cells = re.findall(r"(?m)^\|([^|]+)\|", section)
    told = {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}
    assert told == set(job_json(job()))


def test_the_key_is_said_before_anything_is_sent_and_the_scene_is_sent_once(tmp_path: Path) -> None:
    """No ledger has a render job: what was not said before the call is lost with the reply."""

    async def scene() -> None:
        async with desk(tmp_path, form=Form.JSON) as d:
            await d.start(words(frames="1-9:2", max_obh="7", priority="high"))
            [said] = d.said_before_post
            assert KEY.search(said)
            [body] = [json.loads(r.body) for r, _ in d.market.wire.sent if r.method == "POST"]
            assert body == {
                "kind": "render",
                "tier": 2,
                "scene_file": ADDRESS,
                "engine": "octane",
                "frames": {"start": 1, "end": 9, "step": 2},
                "priority": "high",
                "client_ref": d.key,
                "max_obh": 7,
            }
            shown = json.loads(d.out.plain)
            assert (shown["key"], shown["state"], shown["frames_total"]) == (d.key, "queued", 5)

    run_virtual(scene)


@pytest.mark.parametrize("kind", ["reset_after", "status_after", "failed_without_id", "cut_body"])
def test_a_lost_reply_is_settled_by_the_key_and_never_by_a_second_submission(
    tmp_path: Path, kind: str
) -> None:
    """The list lags, too: it is read until the job shows."""

    async def scene() -> None:
        rules = (
            Rule(kind=kind, endpoint="create", times=1),
            Rule(kind="late_listing", endpoint="create", seconds=20),
        )
        async with desk(tmp_path, *rules, form=Form.NAME) as d:
            await d.start(words())
            assert d.market.wire.calls("POST") == ["/v1/jobs"]
            assert len(d.market.world.contracts) == 1
            assert d.out.plain == f"{d.key}\n"
            assert "the reply was lost" in d.err.plain

    run_virtual(scene)


def test_a_submission_that_never_arrived_is_told_once_the_list_proves_it(tmp_path: Path) -> None:
    """Settle time and late window have to pass first: 30 s and 120 s."""

    async def scene() -> None:
        async with desk(tmp_path, Rule(kind="reset_before", endpoint="create")) as d:
            began = asyncio.get_running_loop().time()
            with pytest.raises(Leave) as left:
                await d.start(words())
            assert left.value.code == Code.FAILED
            assert "was not made" in d.err.plain
            assert 150 < asyncio.get_running_loop().time() - began < 160
            assert d.market.wire.calls("POST") == ["/v1/jobs"]

    run_virtual(scene)


@pytest.mark.parametrize("trouble", ["list_wrong_total", "bad_key"])
def test_where_nothing_can_be_proven_the_key_is_on_both_streams_and_the_code_is_9(
    tmp_path: Path, trouble: str
) -> None:
    """A list that is not whole proves nothing, nor does one that may no longer be read."""

    async def scene() -> None:
        rules = (
            Rule(kind="reset_before", endpoint="create"),
            Rule(kind=trouble, endpoint="list"),
        )
        async with desk(tmp_path, *rules, form=Form.JSON) as d:
            with pytest.raises(Leave) as left:
                await d.start(words())
            assert left.value.code == Code.UNKNOWN
            shown = json.loads(d.out.plain)
            assert (shown["key"], shown["job_id"], shown["state"]) == (d.key, None, None)
            assert f"gp4u render cancel {d.key}" in d.err.plain

    run_virtual(scene)


def test_a_refusal_that_made_a_job_all_the_same_has_it_cancelled(tmp_path: Path) -> None:
    """Nobody looks for the job of a submission that was refused."""

    async def scene() -> None:
        async with desk(tmp_path, Rule(kind="failed_with_id", endpoint="create")) as d:
            with pytest.raises(Refused):
                await d.start(words(frames="1-100000"))
            assert len(d.market.world.contracts) == 1
            assert d.market.live == []

    run_virtual(scene)


def test_waiting_shows_frame_by_frame_and_outlasts_trouble_on_the_way(tmp_path: Path) -> None:
    """The job goes on while the market cannot be asked: it is said once, and looked at again."""

    async def scene() -> None:
        rule = Rule(kind="status", status=503, endpoint="show", after_s=15, until_s=45)
        async with desk(tmp_path, rule, form=Form.JSON) as d:
            await d.start(words(frames="1-60"), wait=True)
            done = [int(n) for n in re.findall(r"(\d+)/60 frames", d.err.plain)]
            assert done == sorted(done)
            assert done[-1] == 60
            assert len(set(done)) > 5, "frame by frame, not all at once"
            assert d.err.plain.count("it goes on, and is looked at again") == 1
            shown = json.loads(d.out.plain)
            assert (shown["state"], shown["frames_done"], shown["progress"]) == ("completed", 60, 1)
            assert Decimal(shown["cost_usd"]) == pytest.approx(
                d.market.world.meter_total(), abs=Decimal("0.000001")
            )

    run_virtual(scene)


def test_a_job_that_ends_before_its_last_frame_is_a_failure(tmp_path: Path) -> None:
    """A script that goes on to the film needs to know; the reason is the market's."""

    async def scene() -> None:
        async with desk(tmp_path) as d:
            with pytest.raises(Leave) as left:
                await d.start(words(max_obh="5"), wait=True)
            assert left.value.code == Code.FAILED
            assert "ended as failed after" in d.err.plain
            assert "max_obh is used up" in d.err.plain

    run_virtual(scene)


async def until_said(d: Desk, text: str) -> None:
    """Wait until something is on stderr."""
    async with asyncio.timeout(60):
        while text not in d.err.plain:  # noqa: ASYNC110 -- a stream has no event to wait on
            await asyncio.sleep(0.1)


def test_an_interrupt_leaves_the_job_and_says_how_to_cancel_it(tmp_path: Path) -> None:
    """Ctrl-C on a film that renders for hours must not cost what is done already."""

    async def scene() -> None:
        async with desk(tmp_path) as d, asyncio.TaskGroup() as group:
            waiting = group.create_task(d.start(words(frames="1-100000"), wait=True))
            await until_said(d, "rendering: ")
            waiting.cancel()
            await asyncio.wait([waiting])
            assert len(d.market.live) == 1
            last_words = d.err.plain[d.err.plain.index("interrupted") :]
            assert f"render job {d.key} goes on and costs money" in last_words
            assert f"gp4u render cancel {d.key}" in last_words

    run_virtual(scene)


def test_an_interrupt_before_the_reply_does_not_claim_that_there_is_a_job(tmp_path: Path) -> None:
    """Nor that there is none."""

    async def scene() -> None:
        rule = Rule(kind="hang_after", endpoint="create", seconds=30)
        async with desk(tmp_path, rule) as d, asyncio.TaskGroup() as group:
            waiting = group.create_task(d.start(words()))
            await until_said(d, "render job")
            await asyncio.sleep(5)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert f"render job {d.key} may have been made" in d.err.plain
            assert f"gp4u render cancel {d.key}" in d.err.plain

    run_virtual(scene)


def test_a_job_is_cancelled_once_the_market_shows_that_it_has_ended(tmp_path: Path) -> None:
    """The answer to a cancel is a promise: it is asked again until the job itself says so."""

    async def scene() -> None:
        rule = Rule(kind="release_ignored", endpoint="destroy", times=2)
        async with desk(tmp_path, rule, form=Form.JSON) as d:
            await d.start(words(frames="1-100000"))
            d.out.seek(0)
            d.out.truncate()
            await rendering.cancel(d.app, d.screen, d.key)
            assert len(d.market.wire.calls("DELETE")) == 3
            assert d.err.plain.count("not cancelled yet") == 2
            [shown] = json.loads(d.out.plain)
            assert (shown["key"], shown["state"]) == (d.key, "cancelled")
            assert d.market.live == []
            await rendering.cancel(d.app, d.screen, shown["job_id"])
            assert len(d.market.wire.calls("DELETE")) == 3, "it has ended: there is nothing to ask"

    run_virtual(scene)


def test_a_job_that_is_not_listed_yet_is_waited_for_by_its_key_alone(tmp_path: Path) -> None:
    """Right after a submission; any other word that means nothing is refused at once."""

    async def scene() -> None:
        rule = Rule(kind="late_listing", endpoint="create", seconds=20)
        async with desk(tmp_path, rule) as d:
            await d.start(words(frames="1-100000"))
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(BadInput, match="render ls"):
                await rendering.cancel(d.app, d.screen, "job_nope")
            assert loop.time() == began
            await rendering.cancel(d.app, d.screen, d.key)
            assert loop.time() > began
            assert d.market.live == []
            stranger = str(d.app.ledger.mint(Random(77)))
            with pytest.raises(BadInput, match="may show within 150 s"):
                await rendering.cancel(d.app, d.screen, stranger)

    run_virtual(scene)


def test_cancel_never_touches_a_rental(tmp_path: Path) -> None:
    """The market keeps containers in the same list; those belong to `gp4u release`."""

    async def scene() -> None:
        async with desk(tmp_path) as d:
            reply = await d.market.wire.handle_async_request(
                httpx2.Request(
                    "GET",
                    "https://sim.test/v1/nodes?kind=compute",
                    headers={"authorization": f"Bearer {PUBLIC}"},
                )
            )
            node = json.loads(await reply.aread())["nodes"][0]["node_id"]
            key = d.app.ledger.mint(Random(3))
            made = await d.market.wire.handle_async_request(
                httpx2.Request(
                    "POST",
                    "https://sim.test/v1/jobs",
                    headers={"authorization": f"Bearer {PUBLIC}"},
                    json={"kind": "compute", "node_id": node, "image": "x", "client_ref": key},
                )
            )
            job_id = json.loads(await made.aread())["job_id"]
            for word in (job_id, key):
                with pytest.raises(BadInput, match="no render job"):
                    await rendering.cancel(d.app, d.screen, word)
            assert len(d.market.live) == 1

    run_virtual(scene)


def test_the_list_has_every_job_and_an_empty_one_says_so(tmp_path: Path) -> None:
    """It is where a job is found that nobody remembers."""

    async def scene() -> None:
        async with desk(tmp_path) as d:
            await rendering.ls(d.app, d.screen)
            assert "there are no render jobs" in d.err.plain
            await d.start(words())
            d.out.seek(0)
            d.out.truncate()
            await rendering.ls(d.app, d.screen)
            heads, row = d.out.plain.splitlines()
            assert heads.split() == ["KEY", "JOB", "STATE", "FRAMES", "OBH", "COST", "$"]
            assert row.split()[0] == d.key
            assert "0/240" in row

    run_virtual(scene)


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        (
            {"RENDER_API_FLAVOR": "dispersed", "RENDER_API_SECRET": "sk_test_0001"},
            "containers and no scenes",
        ),
        ({"RENDER_API_KEY": ""}, "no RENDER_API_KEY"),
        ({"RENDER_ENABLED": "false"}, "switched off by RENDER_ENABLED"),
    ],
    ids=["dispersed", "no-key", "off"],
)
def test_where_the_proposal_is_not_open_it_is_said_what_to_set_and_what_it_is(
    tmp_path: Path, environ: dict[str, str], why: str
) -> None:
    """Nobody shall take a proposal for a service; and nothing is sent."""

    async def scene() -> None:
        async with desk(tmp_path, environ=environ) as d:
            for attempt in (
                d.start(words()),
                rendering.ls(d.app, d.screen),
                rendering.cancel(d.app, d.screen, "job_1"),
            ):
                with pytest.raises(Leave) as left:
                    await attempt
                assert left.value.code == Code.NOT_ALLOWED
            for text in (why, "RENDER_API_FLAVOR=legacy", "no service is known to speak it"):
                assert text in d.err.plain
            assert d.market.wire.sent == []

    run_virtual(scene)
