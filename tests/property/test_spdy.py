"""Laws of SPDY/3.1: how bytes are cut changes nothing, and no bytes do more than break it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from gp4u.kubelet.streams.spdy import (
    PIECE_BYTES,
    Broken,
    Code,
    Data,
    Ended,
    Event,
    Opened,
    Reset,
    Role,
    SpdyConnection,
)

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).map(
    str.lower
)
VALUES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
    min_size=1,
    max_size=3,
)
HEADERS = st.dictionaries(NAMES.filter(lambda name: name == name.lower()), VALUES, max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), HEADERS, st.booleans()),
        st.tuples(st.just("send"), st.integers(0, 5), st.binary(max_size=300)),
        st.tuples(st.just("large"), st.integers(0, 5), st.integers(1, 3 * PIECE_BYTES)),
        st.tuples(st.just("end"), st.integers(0, 5), st.none()),
        st.tuples(st.just("reset"), st.integers(0, 5), st.sampled_from(Code)),
        st.tuples(st.just("ping"), st.integers(0, 2**30), st.none()),
    ),
    max_size=20,
)


def spoken(steps: list[tuple[str, object, object]]) -> tuple[bytes, list[Event]]:
    """Return what a client that does these things sends, and what it means."""
    client, sent, meant = SpdyConnection(Role.CLIENT), bytearray(), list[Event]()
    streams: list[int] = []
    for step in steps:
        match step:
            case ("open", dict(headers), bool(ends)):
                stream, frame = client.open(headers, ends=ends)
                streams.append(stream)
                sent += frame
                meant.append(Opened(stream, headers))
                meant += [Ended(stream)] if ends else []
            case ("ping", int(number), _):
                sent += client.ping(2 * number + 1)
            case (kind, int(index), value) if index < len(streams):
                stream = streams[index]
                sends = client.is_open(stream)
                match kind, value:
                    case ("send", bytes(data)) | ("large", data):
                        octets = data if isinstance(data, bytes) else b"x" * int(str(data))
                        sent += client.send(stream, octets)
                        meant += [Data(stream, octets)] if sends and octets else []
                    case "end", _:
                        sent += client.end(stream)
                        meant += [Ended(stream)] if sends else []
                    case "reset", Code() as code:
                        frame = client.reset(stream, code)
                        sent += frame
                        meant += [Reset(stream, code)] if frame else []
    return bytes(sent), meant


def joined(events: list[Event]) -> list[Event]:
    """Return the events with neighbouring data of one stream in one."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, Data) and isinstance(last, Data) and last.stream == event.stream:
            found[-1] = Data(event.stream, last.data + event.data)
        else:
            found.append(event)
    return found


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return the data in pieces."""
    ends = sorted({0, len(data), *(each % (len(data) + 1) for each in cuts)})
    return [data[begin:end] for begin, end in pairwise(ends)]


def heard(pieces: list[bytes]) -> tuple[list[Event], bytes]:
    """Return what a server makes of it, and what it owes."""
    server = SpdyConnection()
    events = [event for piece in pieces for event in server.receive(piece)]
    return joined(events), server.answers()


@settings(deadline=None)
@given(STEPS, st.lists(st.integers(0, 2**20), max_size=30))
def test_any_cutting_of_any_frames_means_the_same(
    steps: list[tuple[str, object, object]], cuts: list[int]
) -> None:
    """TCP cuts where it likes; what was sent is what is heard, and PINGs are owed the same."""
    sent, meant = spoken(steps)
    whole, owed = heard([sent])
    assert whole == joined(meant)
    assert heard(cut(sent, cuts)) == (whole, owed)
    assert heard([bytes((each,)) for each in sent[:2000]] + [sent[2000:]]) == (whole, owed)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=10))
def test_any_bytes_are_events_or_the_end(pieces: list[bytes]) -> None:
    """A hostile client reaches nothing but `Broken`, which is the last word."""
    events, owed = heard(pieces)
    assert all(not isinstance(event, Broken) for event in events[:-1])
    assert len(owed) <= sum(map(len, pieces))


@settings(deadline=None)
@given(STEPS, st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=4))
def test_damaged_frames_are_events_or_the_end(
    steps: list[tuple[str, object, object]], damage: list[tuple[int, int]]
) -> None:
    """Bytes that are nearly right get further than noise does; no further than the end."""
    sent = bytearray(spoken(steps)[0])
    for at, value in damage:
        if sent:
            sent[at % len(sent)] = value
    events, owed = heard([bytes(sent)])
    assert all(not isinstance(event, Broken) for event in events[:-1])
    assert len(owed) <= len(sent)
    assert sum(len(each.data) for each in events if isinstance(each, Data)) <= len(sent)
