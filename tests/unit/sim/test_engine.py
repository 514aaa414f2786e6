"""The parts of the engine's client that need no engine: frames, names, sockets."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from gp4u.sim.engine import Engine, Frames, image_parts, sockets


def frame(stream: int, output: bytes) -> bytes:
    """One frame as the engine sends it."""
    return struct.pack(">BxxxI", stream, len(output)) + output


@pytest.mark.parametrize("step", [1, 3, 8, 1000])
def test_frames_come_apart_wherever_the_stream_is_cut(step: int) -> None:
    """Chunks of HTTP know nothing of frames."""
    stream = frame(1, b"out\n") + frame(2, b"") + frame(2, b"error\n") + frame(1, b"x" * 300)
    frames = Frames()
    output = b"".join(frames.feed(stream[i : i + step]) for i in range(0, len(stream), step))
    assert output == b"out\nerror\n" + b"x" * 300


def test_an_unfinished_frame_is_held_back() -> None:
    """Half a line is not passed on as if it were whole."""
    frames = Frames()
    assert frames.feed(frame(1, b"hello")[:-1]) == b""
    assert frames.feed(b"o") == b"hello"


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("redis", ("redis", "latest")),
        ("vastai/test:1.2", ("vastai/test", "1.2")),
        ("host:5000/team/app", ("host:5000/team/app", "latest")),
        ("host:5000/team/app:v1", ("host:5000/team/app", "v1")),
        ("app@sha256:abc", ("app", "sha256:abc")),
    ],
)
def test_an_image_name_is_split_at_its_tag(image: str, parts: tuple[str, str]) -> None:
    """A registry's port is not a tag, and no tag would pull them all."""
    assert image_parts(image) == parts


@pytest.mark.parametrize(
    ("env", "paths"),
    [
        ({}, ["/var/run/docker.sock", "/run/podman/podman.sock"]),
        (
            {"XDG_RUNTIME_DIR": "/run/user/7"},
            [
                "/var/run/docker.sock",
                "/run/user/7/podman/podman.sock",
                "/run/podman/podman.sock",
            ],
        ),
        ({"DOCKER_HOST": "unix:///x.sock", "XDG_RUNTIME_DIR": "/run/user/7"}, ["/x.sock"]),
        ({"DOCKER_HOST": "tcp://10.0.0.1:2375"}, []),
    ],
)
def test_an_engine_is_sought_where_the_user_chose_or_the_usual_ones_listen(
    env: dict[str, str], paths: list[str]
) -> None:
    """Who sets DOCKER_HOST means that engine and no other."""
    assert list(sockets(env)) == paths


async def test_no_engine_is_an_answer_not_an_error(tmp_path: Path) -> None:
    """The demo asks on machines without Docker."""
    assert await Engine.connect(str(tmp_path / "absent.sock")) is None
