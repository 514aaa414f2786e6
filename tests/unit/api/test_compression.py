"""Which coding a client gets, and that it can read it."""

from __future__ import annotations

import gzip

import pytest
import zstandard

from gp4u.api.market.compression import Coding, coding_for, compressed, weighted
from tests.virtual_loop import run


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip, zstd", "zstd"),
        ("gzip;q=1, zstd;q=0.5", "gzip"),
        ("GZIP; Q=0.8 , br", "gzip"),
        ("x-gzip", "gzip"),
        ("br, deflate", "identity"),
        ("*", "zstd"),
        ("*;q=0.1, gzip;q=0.2", "gzip"),
        ("zstd;q=0, *", "gzip"),
        ("gzip;q=0", "identity"),
        ("identity", "identity"),
        ("identity;q=1, gzip;q=0.5", "identity"),
        ("identity;q=0", "identity"),
        ("*;q=0", "identity"),
        ("gzip;q=0.001", "gzip"),
        ("gzip;q=2", "identity"),
        ("gzip;q=, zstd;q=banana", "identity"),
        (",;,", "identity"),
    ],
)
def test_a_client_gets_the_coding_it_likes_best(header: str | None, coding: Coding) -> None:
    """RFC 9110, 12.5.3; what cannot be read in a list is as if it were not there."""
    assert coding_for(header) == coding


def test_other_parameters_than_the_weight_are_passed_over() -> None:
    """`Accept` lists have them: a version, a character set."""
    assert weighted("application/json;charset=utf-8;q=0.3, */*") == {
        "application/json": 0.3,
        "*/*": 1.0,
    }


@pytest.mark.parametrize("size", [0, 1, 70_000, 300_000])
def test_what_is_compressed_in_pieces_is_one_body(size: int) -> None:
    """Any client's decoder reads it to its end, and nothing is behind that."""
    body = bytes(number * number % 251 for number in range(size))
    assert run(compressed(body, "identity")) == body
    assert gzip.decompress(run(compressed(body, "gzip"))) == body
    packed = run(compressed(body, "zstd"))
    assert zstandard.ZstdDecompressor().decompressobj().decompress(packed) == body
