"""SPDY/3.1 without the network: the bytes of each frame, and what is done about bad ones."""

from __future__ import annotations

import hashlib
import struct
import zlib

import pytest

from gp4u.kubelet.streams.spdy import (
    MOST_CONTROL_BYTES,
    Broken,
    Code,
    Data,
    Ended,
    Event,
    Opened,
    Ponged,
    Replied,
    Reset,
    Role,
    SpdyConnection,
    WentAway,
)
from gp4u.kubelet.streams.spdy_headers import DICTIONARY, MOST_BLOCK_BYTES, HeaderReader


def pair() -> tuple[SpdyConnection, SpdyConnection]:
    """Return both ends of a connection: client and server."""
    return SpdyConnection(Role.CLIENT), SpdyConnection(Role.SERVER)


def opened() -> tuple[SpdyConnection, SpdyConnection, int]:
    """Return both ends with a stream that was opened and replied to."""
    client, server = pair()
    stream, frame = client.open({"streamtype": ["data"]})
    server.receive(frame)
    client.receive(server.reply(stream))
    return client, server, stream


def syn_stream(number: int, block: bytes) -> bytes:
    """Return a SYN_STREAM frame packed by hand."""
    body = struct.pack(">IIH", number, 0, 0) + block
    return struct.pack(">HHI", 0x8003, 1, len(body)) + body


def test_the_dictionary_is_the_one_on_the_wire() -> None:
    """Both ends prime zlib with it; one byte off and no header can be read."""
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2
    assert hashlib.sha256(DICTIONARY).hexdigest() == (
        "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02"
    )


def test_frames_have_the_bytes_of_the_protocol() -> None:
    """The layout is fixed: a sign bit, version or stream, flags and a length of 24 bits."""
    client, server, stream = opened()
    assert stream == 1
    assert server.send(1, b"abc") == b"\0\0\0\1\0\0\0\3abc"
    assert server.end(1) == b"\0\0\0\1\1\0\0\0"
    assert server.reset(1, Code.CANCEL) == b"\x80\3\0\3\0\0\0\x08\0\0\0\1\0\0\0\5"
    assert client.ping(7) == b"\x80\3\0\6\0\0\0\4\0\0\0\7"
    assert server.go_away() == b"\x80\3\0\7\0\0\0\x08\0\0\0\1\0\0\0\0"


def test_a_reply_carries_an_empty_block() -> None:
    """Zero headers, compressed: what a client waits for before it sends."""
    client, server = pair()
    stream, frame = client.open({"streamtype": ["error"]})
    server.receive(frame)
    reply = server.reply(stream)
    assert reply[:12] == b"\x80\3\0\2" + struct.pack(">II", len(reply) - 8, 1)
    assert zlib.decompressobj(15, DICTIONARY).decompress(reply[12:]) == b"\0\0\0\0"


def test_headers_go_in_lower_case_and_keep_all_values() -> None:
    """Names are compared in lower case; several values of a name travel in one."""
    client, server = pair()
    _, frame = client.open({"StreamType": ["data"], "port": ["80", "81"], "empty": [""]})
    (event,) = server.receive(frame)
    assert event == Opened(1, {"streamtype": ["data"], "port": ["80", "81"], "empty": [""]})


def test_one_compressor_serves_all_blocks() -> None:
    """The second block leans on the first; a stream that is refused keeps the state as well."""
    client, server = SpdyConnection(Role.CLIENT), SpdyConnection(most_streams=1)
    frames = [client.open({"streamtype": ["error"], "requestid": [str(each)]}) for each in range(3)]
    assert len(frames[1][1]) < len(frames[0][1])
    events = [event for _, frame in frames[:2] for event in server.receive(frame)]
    assert [type(each) for each in events] == [Opened]
    assert client.receive(server.answers()) == [Reset(3, Code.REFUSED_STREAM)]
    server.reset(1, Code.CANCEL)
    assert server.receive(frames[2][1]) == [
        Opened(5, {"streamtype": ["error"], "requestid": ["2"]})
    ]


def test_a_stream_ends_half_by_half() -> None:
    """After both halves nothing of it is kept, and what is sent on it is dropped."""
    client, server, stream = opened()
    assert server.receive(client.send(stream, b"last") + client.end(stream)) == [
        Data(stream, b"last"),
        Ended(stream),
    ]
    assert server.streams == 1
    assert client.receive(server.send(stream, b"answer") + server.end(stream)) == [
        Data(stream, b"answer"),
        Ended(stream),
    ]
    assert (client.streams, server.streams) == (0, 0)
    assert server.send(stream, b"more") == server.end(stream) == b""
    assert server.reset(stream, Code.CANCEL) == b""


def test_a_reset_ends_both_halves() -> None:
    """What was still coming for it is dropped without a word."""
    client, server, stream = opened()
    late = client.send(stream, b"late")
    assert client.receive(server.reset(stream, Code.CANCEL)) == [Reset(stream, 5)]
    assert server.receive(late) == []
    assert not client.is_open(stream)


def test_data_is_handed_on_as_it_comes() -> None:
    """A frame of 16 MiB must not be collected before its first byte is seen."""
    _, server, stream = opened()
    assert server.receive(struct.pack(">II", stream, 0x1FFFFFF)) == []
    assert server.receive(b"some") == [Data(stream, b"some")]


def test_large_data_goes_in_small_frames() -> None:
    """Other streams get their turn between the pieces at the other end."""
    client, server, stream = opened()
    data = bytes(range(256)) * 300
    frames = server.send(stream, data)
    assert struct.unpack_from(">II", frames) == (stream, 32768)
    events = client.receive(frames)
    assert b"".join(event.data for event in events if isinstance(event, Data)) == data


def test_pings_are_echoed_and_our_own_are_not() -> None:
    """Parity says whose PING it is; echoing our own back would never end."""
    client, server = pair()
    assert server.receive(client.ping(1)) == []
    echo = server.answers()
    assert client.receive(echo) == [Ponged(1)]
    assert client.answers() == b""
    assert server.answers() == b""


def test_settings_and_window_updates_are_read_over() -> None:
    """Nothing follows from them: there is no flow control here."""
    _, server = pair()
    frames = b"\x80\3\0\4\0\0\0\4\0\0\0\0" + b"\x80\3\0\x09\0\0\0\x08\0\0\0\1\0\0\1\0"
    assert server.receive(frames) == []


def test_more_headers_and_a_goaway_are_told() -> None:
    """HEADERS come as a reply does; a GOAWAY names the last stream that counts."""
    client, server, stream = opened()
    headers = b"\x80\3\0\x08" + server.reply(stream)[4:]
    assert client.receive(headers) == [Replied(stream, {})]
    assert client.receive(server.go_away()) == [WentAway(1)]


@pytest.mark.parametrize("number", [2, 0, 1])
def test_a_stream_of_a_wrong_number_is_reset(number: int) -> None:
    """Even ones are the server's, zero is none, and 1 is there already."""
    packing, server = zlib.compressobj(9, 8, 15, 9, 0, DICTIONARY), SpdyConnection()
    events: list[Event] = []
    for each in (1, number):
        block = packing.compress(b"\0\0\0\0") + packing.flush(zlib.Z_SYNC_FLUSH)
        events = server.receive(syn_stream(each, block))
    assert events == []
    assert server.answers() == b"\x80\3\0\3\0\0\0\x08" + struct.pack(">II", number, 1)


def bomb() -> bytes:
    """Return a block of a few KiB that unpacks to far more than it may."""
    packing = zlib.compressobj(9, 8, 15, 9, 0, DICTIONARY)
    return packing.compress(bytes(8 * 1024 * 1024)) + packing.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"\x80\2\0\1\0\0\0\0", "version 2"),
        (b"\x80\3\0\x0a\0\0\0\0", "type 10"),
        (b"\x80\3\0\1\0\0\0\4\0\0\0\1", "cut short"),
        (b"\x80\3\0\3\0\0\0\4\0\0\0\1", "cut short"),
        (b"\x80\3\0\6\0\0\0\0", "cut short"),
        (struct.pack(">HHI", 0x8003, 4, MOST_CONTROL_BYTES + 1), "a control frame of"),
        (syn_stream(1, b"not zlib"), "not compressed"),
        (syn_stream(1, bomb()), f"larger than {MOST_BLOCK_BYTES}"),
    ],
)
def test_nonsense_breaks_the_connection_once(frame: bytes, why: str) -> None:
    """It is told as an event, with a reason; what follows is not looked at."""
    server = SpdyConnection()
    (event,) = server.receive(frame + b"\x80\3\0\7\0\0\0\x08\0\0\0\1\0\0\0\0")
    assert isinstance(event, Broken)
    assert why in event.why
    assert server.receive(b"\x80\3\0\6\0\0\0\4\0\0\0\1") == []
    assert server.answers() == b""
    assert server.go_away()[-1] == 1


@pytest.mark.parametrize(
    "plain",
    [
        b"\0\0\0\1",
        b"\0\0\0\1\0\0\0\1a",
        b"\0\0\0\1\xff\xff\xff\xff",
        b"\0\0\0\1\0\0\0\0\0\0\0\0",
        b"\0\0\0\0rest",
        b"",
    ],
)
def test_a_block_whose_lengths_do_not_add_up_breaks_the_connection(plain: bytes) -> None:
    """Reading past it would give headers that nobody sent."""
    packing = zlib.compressobj(9, 8, 15, 9, 0, DICTIONARY)
    block = packing.compress(plain) + packing.flush(zlib.Z_SYNC_FLUSH)
    (event,) = SpdyConnection().receive(syn_stream(1, block))
    assert isinstance(event, Broken)


def test_a_name_that_comes_twice_has_both_values() -> None:
    """Lenient in what is read: no value is lost."""
    packing = zlib.compressobj(9, 8, 15, 9, 0, DICTIONARY)
    entry = b"\0\0\0\1A\0\0\0\1b" + b"\0\0\0\1a\0\0\0\1c"
    block = packing.compress(b"\0\0\0\2" + entry) + packing.flush(zlib.Z_SYNC_FLUSH)
    assert HeaderReader().headers(block) == {"a": ["b", "c"]}


def test_a_trickled_control_frame_is_put_together() -> None:
    """One byte at a time, as a slow or hostile line brings it."""
    client, server = pair()
    _, frame = client.open({"streamtype": ["data"]})
    events: list[Event] = []
    for at in range(len(frame)):
        events += server.receive(frame[at : at + 1])
    assert events == [Opened(1, {"streamtype": ["data"]})]
