"""Whose container it is: the judgement by which one is removed or left alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gp4u.sim.owner import identity, is_dead


def test_the_living_are_not_dead() -> None:
    """A simulator must never remove its own containers, or those of another that runs."""
    assert not is_dead(f"{identity()} some-runtime")


def test_a_process_that_ended_is_dead() -> None:
    """This is the leftover that the next simulator removes."""
    done = subprocess.run(
        [sys.executable, "-c", "from gp4u.sim.owner import identity; print(identity())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert is_dead(f"{done.stdout.strip()} some-runtime")


@pytest.mark.parametrize(
    ("word", "value", "dead"),
    [
        (0, "another-machine", False),
        (1, "another-boot", True),
        (2, "pid:[1]", False),
        (3, "not-a-pid", False),
        (4, "12345678901", True),
    ],
)
def test_each_word_of_the_label_is_weighed(word: int, value: str, dead: bool) -> None:
    """A PID alone proves nothing: it is given away again, and differs by namespace and machine."""
    words = identity().split()
    words[word] = value
    assert is_dead(" ".join(words)) is dead


@pytest.mark.parametrize("label", ["", "somebody", "a b c d"])
def test_a_foreign_label_is_left_alone(label: str) -> None:
    """When in doubt, the owner lives."""
    assert not is_dead(label)
