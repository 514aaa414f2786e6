"""What all of io.net's replies have in common: ids that may stand in a path, and stamps."""

from __future__ import annotations

from datetime import UTC, datetime

from gp4u.providers.ionet import wire


def test_a_row_without_a_plain_id_cannot_reach_a_path() -> None:
    """An id becomes part of a URL."""
    assert wire.own_id({"id": "36fc-1"}) == "36fc-1"
    for odd in ("../x", "a/b", "", "..", "a b", None, True, 1.5):
        assert wire.own_id({"id": odd}) is None


def test_stamps_without_a_zone_are_utc() -> None:
    """They come without one at times, and must still be aware."""
    assert wire.stamp("2026-11-01T10:00:00") == datetime(2026, 11, 1, 10, tzinfo=UTC)
    assert wire.stamp("2026-11-01T10:00:00+02:00") == datetime(2026, 11, 1, 8, tzinfo=UTC)
    assert wire.stamp("yesterday") is None
    assert wire.stamp(7) is None
