"""What is new in a log that is given again and again, and which of its lines are ours."""

from hypothesis import given
from hypothesis import strategies as st

from gp4u.kubelet.logs.overlap import MAX_OPEN, WINDOW_LINES, Mark, Overlap, Sections

TAIL = 6


def tail_of(text: str, lines: int) -> str:
    """Return the newest lines of a text, as a market does; a last one without its end counts."""
    return "".join(text.splitlines(keepends=True)[-lines:])


def test_what_was_shown_is_not_new() -> None:
    """A market repeats itself at each call; people must see each line once."""
    overlap = Overlap()
    assert overlap.new("a\nb\n", tail=10) == "a\nb\n"
    assert overlap.new("a\nb\n", tail=10) == ""
    assert overlap.new("a\nb\nc\n", tail=10) == "c\n"


def test_equal_lines_are_counted_while_the_whole_log_is_seen() -> None:
    """A program may print the same line again; from the log's start on, how often is known."""
    overlap = Overlap()
    assert overlap.new("tick\n" * 3, tail=10) == "tick\n" * 3
    assert overlap.new("tick\n" * 5, tail=10) == "tick\n" * 2


def test_a_line_without_its_end_is_shown_at_once_and_once() -> None:
    """A prompt has no line feed, and markets cut the last one off."""
    overlap = Overlap()
    assert overlap.new("a\nloading", tail=10) == "a\nloading"
    assert overlap.new("a\nloading", tail=10) == ""
    assert overlap.new("a\nloading done\nb", tail=10) == " done\nb"
    assert overlap.new("a\nloading done\nb\n", tail=10) == "\n"


def test_a_gap_loses_lines_but_repeats_none() -> None:
    """More lines than the market shows may come between two looks."""
    overlap = Overlap()
    overlap.new("1\n2\n3\n", tail=3)
    assert overlap.new("7\n8\n9\n", tail=3) == "7\n8\n9\n"


def test_an_old_text_brings_nothing() -> None:
    """A market's copies answer in turn, and one of them may be behind."""
    overlap = Overlap()
    overlap.new("1\n2\n3\n4\n", tail=4)
    assert overlap.new("2\n3\n", tail=4) == ""
    assert overlap.new("3\n4\n5\n6\n", tail=4) == "5\n6\n"


def test_a_longer_look_back_brings_nothing_twice() -> None:
    """Whoever asks for the whole log after others asked for its end must not see it doubled."""
    overlap = Overlap()
    overlap.new("5\n6\n", tail=2)
    assert overlap.new("1\n2\n3\n4\n5\n6\n7\n", tail=50) == "7\n"


def test_a_log_that_begins_anew_is_all_new() -> None:
    """A machine that was started anew has a new log."""
    overlap = Overlap()
    overlap.new("boot\na\nb\n", tail=10)
    assert overlap.new("hello\n", tail=10) == "hello\n"


def test_what_was_followed_meanwhile_is_joined_without_repeating() -> None:
    """A stream is opened before the log is read, so that nothing falls between the two."""
    overlap = Overlap()
    overlap.new("1\n2\n3\n", tail=10)
    assert overlap.join("2\n3\n4\n") == "4\n"
    overlap.follow("5\n")
    assert overlap.new("1\n2\n3\n4\n5\n6\n", tail=10) == "6\n"


def test_lines_that_a_stream_lost_hide_no_later_ones() -> None:
    """A stream may begin late; what comes behind it is told all the same, and nothing twice."""
    overlap = Overlap()
    overlap.new("1\n2\n", tail=10)
    overlap.follow("5\n6\n")
    assert overlap.new("1\n2\n3\n4\n5\n6\n7\n", tail=10) == "7\n"


def test_a_line_without_an_end_fills_no_memory() -> None:
    """A hostile workload may print for ever without a line feed (S17)."""
    overlap = Overlap()
    for _ in range(100):
        overlap.follow("x" * 10_000)
    assert len(overlap._open) <= MAX_OPEN


@given(
    st.lists(st.lists(st.integers(0, 10**9), max_size=TAIL - 1), max_size=20),
    st.randoms(use_true_random=False),
)
def test_any_growth_is_told_whole(steps: list[list[int]], random: object) -> None:
    """As long as a look reaches back to the one before it, the log is told line by line."""
    overlap, text, heard = Overlap(), "", ""
    number = 0
    for step in steps:
        for each in step:
            number += 1
            text += f"{number} {each}\n"  # no two lines are equal: then there is one right answer
        heard += overlap.new(tail_of(text, TAIL), tail=TAIL)
    assert heard == text


@given(st.data())
def test_marks_are_found_wherever_the_log_is_cut(data: st.DataObject) -> None:
    """Logs come in pieces of any size, and a mark may be in two of them."""
    parts = data.draw(
        st.lists(
            st.sampled_from(
                b"hello\n|gp4u|gp4u: |prompt> |\n|gp4u: run 2\n|gp4u: exit 137\r\n"
                b"|gp4u: init 0 exit 1\n|gp4u: exit 1x\n".split(b"|")
            ),
            max_size=12,
        )
    )
    log = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=8)))
    sections = Sections()
    whole = [*Sections().feed(log)]
    found = [
        each
        for start, end in zip([0, *cuts], [*cuts, len(log)], strict=True)
        for each in sections.feed(log[start:end])
    ]
    assert _merged(found) == _merged(whole)


def _merged(found: list[bytes | Mark]) -> list[bytes | Mark]:
    merged: list[bytes | Mark] = []
    for each in found:
        if merged and isinstance(each, bytes) and isinstance(merged[-1], bytes):
            merged[-1] += each
        else:
            merged.append(each)
    return merged


def test_a_mark_stands_behind_an_unfinished_line() -> None:
    """The workload's last words need no line feed; ours still end the run."""
    sections = Sections()
    found = [*sections.feed(b"bye gp4u: exit 3\nnext\n")]
    assert found == [b"bye ", Mark(exit_code=3), b"next\n"]


def test_what_looks_like_the_start_of_a_mark_comes_out_in_the_end() -> None:
    """Nothing that was printed may be kept back for ever."""
    sections = Sections()
    assert [*sections.feed(b"g")] == []
    assert [*sections.flush()] == [b"g"]
    assert [*sections.feed(b"gp4u: run 1")] == []
    assert [*sections.flush()] == [Mark(run=1)]


def test_a_fast_stream_is_known_by_its_last_lines() -> None:
    """What was followed is looked at only when a text is compared; its end must be known then."""
    lines = [f"line {number}\n" for number in range(3 * WINDOW_LINES)]
    printed = "".join(lines)
    overlap = Overlap()
    for start in range(0, len(printed), 1000):
        overlap.follow(printed[start : start + 1000])
    assert overlap.has_seen
    end = "".join(lines[-100:])
    assert overlap.new(f"{end}and on\n", tail=101) == "and on\n"
