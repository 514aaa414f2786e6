"""The script around a workload, run by the shells that images have."""

from __future__ import annotations

import gzip
import os
import shlex
import signal
import subprocess
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gp4u.errors import BadInput
from gp4u.model import File, Restart, Workload
from gp4u.providers import bootstrap

SHELLS = (("dash",), ("bash", "--posix"), ("busybox", "sh"))
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


def workload(*entrypoint: str, **more: object) -> Workload:
    """Return a workload with an entrypoint."""
    fields: dict[str, object] = {"image": "busybox", "entrypoint": entrypoint, **more}
    return Workload(**fields)  # type: ignore[arg-type]  # each test names its own


def environment(root: Path, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a script runs in: all its files are below `root`."""
    return {"PATH": os.environ["PATH"], "GP4U_ROOT": str(root), **(env or {})}


def ran(
    script: str,
    root: Path,
    *,
    shell: tuple[str, ...] = ("sh",),
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    return subprocess.run(
        [*shell, "-c", script],
        env=environment(root, env),
        capture_output=True,
        text=True,
        timeout=30,
    )


def started(script: str, root: Path, shell: tuple[str, ...] = ("sh",)) -> subprocess.Popen[str]:
    """Start a script; the block that it is used in waits for its end."""
    return subprocess.Popen(
        [*shell, "-c", script], env=environment(root), stdout=subprocess.PIPE, text=True
    )


def quickened(script: str) -> str:
    """Return a script whose pauses take no time: it prints them instead."""
    return script.replace("gp4u_x sleep $gp4u_d", 'echo "waits $gp4u_d"')


@pytest.mark.parametrize("shell", SHELLS, ids=lambda each: each[0])
def test_everything_happens_in_its_order(shell: tuple[str, ...], tmp_path: Path) -> None:
    """Files, then what comes first, then the workload, in its directory; whichever shell it is."""
    what = workload(
        "sh",
        "-c",
        f"cat '{tmp_path}/etc/app/my conf'; pwd; echo \"$GREETING\"; exit 3",
        files=(File(path="/etc/app/my conf", content=b"\x00binary\n", mode=0o640),),
        before=(("echo", "one thing"), ("sh", "-c", "echo two")),
        working_dir="/srv/my app",
    )
    done = ran(bootstrap.script(what), tmp_path, shell=shell, env={"GREETING": 'it\'s "me" $x'})

    assert done.returncode == 3
    assert done.stdout.splitlines() == [
        "gp4u: init 0",
        "one thing",
        "gp4u: init 0 exit 0",
        "gp4u: init 1",
        "two",
        "gp4u: init 1 exit 0",
        "gp4u: run 1",
        "\x00binary",
        f"{tmp_path}/srv/my app",
        'it\'s "me" $x',
        "gp4u: exit 3",
    ]
    assert (tmp_path / "etc/app/my conf").stat().st_mode & 0o777 == 0o640


@settings(max_examples=40, deadline=None)
@given(words=st.lists(WORDS, min_size=1, max_size=4))
def test_every_word_arrives_as_it_was(words: list[str]) -> None:
    """S10: a blank, a quote, a dollar or a line break in a word is the workload's own."""
    shown = "import sys; sys.stdout.write(repr(sys.argv[1:]))"
    what = workload("python3", "-c", shown, command=tuple(words))
    root = Path(os.environ.get("TMPDIR", "/tmp")) / "gp4u-test-words"  # noqa: S108 - a test's own
    done = ran(bootstrap.script(what), root)
    assert repr(words) in done.stdout, done.stderr


@settings(max_examples=30, deadline=None)
@given(variables=st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,9}", fullmatch=True), WORDS))
def test_every_variable_arrives_as_it_was(variables: dict[str, str]) -> None:
    """The same for what a script exports."""
    names = sorted(name for name in variables if name not in ("PATH", "GP4U_ROOT", "_", "PWD"))
    script = bootstrap.exported({name: variables[name] for name in names})
    shown = f"import os; print(repr([os.environ[n] for n in {names!r}]))"
    done = subprocess.run(
        ["sh", "-c", f"{script}exec python3 -c {shlex.quote(shown)}"],
        env={"PATH": os.environ["PATH"], "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{[variables[name] for name in names]!r}\n", done.stderr


@pytest.mark.parametrize(
    ("restart", "code", "runs"),
    [
        (Restart.NEVER, 0, 1),
        (Restart.NEVER, 1, 1),
        (None, 1, 1),
        (Restart.ON_FAILURE, 0, 1),
        (Restart.ON_FAILURE, 1, 8),
        (Restart.ALWAYS, 0, 8),
    ],
)
def test_it_is_restarted_as_its_policy_says(
    restart: Restart | None, code: int, runs: int, tmp_path: Path
) -> None:
    """Ever later, up to five minutes; the eighth run ends it here by a signal of its own."""
    counted = (
        'echo x >>"$GP4U_ROOT/runs"; [ $(wc -l <"$GP4U_ROOT/runs") -lt 8 ] || kill -TERM $PPID'
    )
    what = workload("sh", "-c", f"{counted}; exit {code}", restart=restart)
    done = ran(quickened(bootstrap.script(what)), tmp_path)
    told = [part for part in bootstrap.markers(done.stdout) if part[0] == "run"]
    assert told == [("run", str(number + 1)) for number in range(runs)]
    waited = [int(line[6:]) for line in done.stdout.splitlines() if line.startswith("waits")]
    assert waited == [10, 20, 40, 80, 160, 300, 300][: runs - 1]
    assert done.returncode in (code, 143)


@pytest.mark.parametrize("restart", [Restart.NEVER, Restart.ALWAYS])
def test_what_fails_first_keeps_the_workload_from_running(restart: Restart, tmp_path: Path) -> None:
    """Under Never it ends all; else it is tried again until it works."""
    first = 'echo x >>"$GP4U_ROOT/tries"; [ $(wc -l <"$GP4U_ROOT/tries") -gt 2 ]'
    what = workload("sh", "-c", "kill -TERM $PPID", before=(("sh", "-c", first),), restart=restart)
    done = ran(quickened(bootstrap.script(what)), tmp_path)
    told = list(bootstrap.markers(done.stdout))
    if restart is Restart.NEVER:
        assert told == [("init", "0"), ("init", "0", "1")]
        assert done.returncode == 1
    else:
        tries = [part[2] for part in told if part[0] == "init" and len(part) > 2]
        assert tries == ["1", "1", "0"]
        assert ("run", "1") in told


@pytest.mark.parametrize("shell", SHELLS, ids=lambda each: each[0])
def test_a_stop_reaches_the_workload_and_is_the_last(
    shell: tuple[str, ...], tmp_path: Path
) -> None:
    """Without it a workload is killed in the middle of what it would have put in order."""
    script = "trap 'echo in order; exit 7' TERM; echo up; while :; do sleep 0.05; done"
    what = workload("sh", "-c", script, restart=Restart.ALWAYS)
    with started(bootstrap.script(what), tmp_path, shell) as running:
        assert running.stdout is not None
        while running.stdout.readline() != "up\n":
            pass
        subprocess.run(bootstrap.STOP_COMMAND, env=environment(tmp_path), check=True)
        said = running.stdout.read().splitlines()
    assert said == ["in order", "gp4u: exit 7"]
    assert running.returncode == 7


def test_held_it_stays_until_it_is_told_to_go(tmp_path: Path) -> None:
    """A market that starts a container anew whenever it ends would run a Job for ever."""
    script = bootstrap.script(workload("true", restart=Restart.NEVER), hold=True)
    with started(script, tmp_path) as running:
        assert running.stdout is not None
        assert [running.stdout.readline() for _ in range(2)] == ["gp4u: run 1\n", "gp4u: exit 0\n"]
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(timeout=0.2)
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 0


def test_a_long_script_travels_in_variables_and_leaves_none_behind(tmp_path: Path) -> None:
    """The workload must not see how it came."""
    long = bootstrap.script(workload("sh", "-c", "env | grep -c ^GP4U_P; echo " + "x" * 3000))
    short, variables = bootstrap.packed(long, prefix="GP4U_P", piece=256)
    assert len(short) < 300
    assert all(len(value) <= 256 for value in variables.values())
    assert gzip.decompress(b64decode("".join(variables.values()))).decode() == long
    done = ran(short, tmp_path, env=variables)
    assert done.stdout.splitlines()[1:] == ["0", "x" * 3000, "gp4u: exit 0"]


def test_who_enters_sees_the_workloads_variables_and_directory(tmp_path: Path) -> None:
    """A session by SSH begins with neither."""
    what = workload("true", working_dir="/srv/app")
    ran(bootstrap.script(what), tmp_path, env={"NAME": "it's"})
    line = bootstrap.inside(["sh", "-c", 'echo "$NAME"; pwd'])
    done = ran(line, tmp_path)
    assert done.stdout.splitlines() == ["it's", f"{tmp_path}/srv/app"]
    assert (tmp_path / bootstrap.ENV_FILE[1:]).stat().st_mode & 0o077 == 0, "it holds secrets"


def test_directories_are_made_before_anything_runs(tmp_path: Path) -> None:
    """An emptyDir is there when the first container looks."""
    there = ("test", "-d", f"{tmp_path}/cache/a b")
    what = workload("true", directories=("/cache/a b",), before=(there,))
    said = ran(bootstrap.script(what), tmp_path).stdout
    assert ("init", "0", "0") in list(bootstrap.markers(said))


def test_a_marker_is_found_behind_an_unfinished_line() -> None:
    """A program need not end its last line, and its end must still be seen."""
    log = "gp4u: run 1\nalmost donegp4u: exit 137\nsays gp4u: exit 1 in the middle\n"
    assert list(bootstrap.markers(log)) == [("run", "1"), ("exit", "137")]


@pytest.mark.parametrize(
    ("what", "field"),
    [
        (Workload(image="i", command=("x",), restart=Restart.ALWAYS), "entrypoint"),
        (workload("x", command=("a\0b",)), "command"),
        (workload("x", files=(File(path="relative", content=b""),)), "files"),
        (workload("x", files=(File(path="/etc/", content=b""),)), "files"),
        (workload("x", files=(File(path="/a/../b", content=b""),)), "files"),
        (workload("x", working_dir="here"), "working_dir"),
        (workload("x", before=((),)), "before"),
    ],
)
def test_what_no_shell_can_be_given_is_refused_by_name(what: Workload, field: str) -> None:
    """A wish that is dropped in silence costs money before anybody sees it."""
    with pytest.raises(BadInput) as caught:
        bootstrap.script(what)
    assert caught.value.field == field


def test_only_a_known_entrypoint_is_wrapped() -> None:
    """Where the image decides what runs, nothing can stand around it."""
    assert not bootstrap.is_needed(Workload(image="i", restart=Restart.ALWAYS))
    assert not bootstrap.is_needed(workload("x"))
    assert bootstrap.is_needed(workload("x", restart=Restart.NEVER))
