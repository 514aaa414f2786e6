"""Host keys in a file: believed once, kept over restarts, never silently lost."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gp4u.errors import BadInput
from gp4u.providers.pins import FilePins


def test_a_pin_outlives_the_process(tmp_path: Path) -> None:
    """Else a restart is all that somebody in between has to wait for."""
    path = tmp_path / "deep" / "known_hosts.json"
    FilePins(path)["901"] = "ssh-ed25519 AAAA"

    again = FilePins(path)

    assert dict(again) == {"901": "ssh-ed25519 AAAA"}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["known_hosts.json"]


def test_a_released_machine_is_forgotten(tmp_path: Path) -> None:
    """Ids may come again, with another machine behind them."""
    path = tmp_path / "known_hosts.json"
    pins = FilePins(path)
    pins["901"] = "a"
    pins["902"] = "b"

    assert pins.pop("901", None) == "a"
    assert pins.pop("901", None) is None
    assert dict(FilePins(path)) == {"902": "b"}


def test_a_file_that_cannot_be_read_trusts_nobody(tmp_path: Path) -> None:
    """To begin anew without a word would believe whoever answers now."""
    path = tmp_path / "known_hosts.json"
    path.write_text("{")

    with pytest.raises(BadInput, match="GP4U_KNOWN_HOSTS"):
        FilePins(path).get("901")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A read-only root without a volume is an easy mistake."""
    path = tmp_path / "known_hosts.json"
    path.mkdir()
    (path / "x").touch()
    pins = FilePins(path)
    pins._read = {}

    with pytest.raises(BadInput, match="GP4U_KNOWN_HOSTS"):
        pins["901"] = "a"


def test_the_oldest_pins_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that only grows is an outage with a date."""
    monkeypatch.setattr("gp4u.providers.pins.MOST", 3)
    pins = FilePins(tmp_path / "known_hosts.json")
    for number in range(5):
        pins[str(number)] = "key"

    assert list(pins) == ["2", "3", "4"]


def test_a_folder_that_cannot_be_made_is_named() -> None:
    """As on a read-only root: what the market has to do with it must not be asked."""
    with pytest.raises(BadInput, match="GP4U_KNOWN_HOSTS"):
        FilePins(Path("/proc/gp4u/known_hosts.json"))["901"] = "a"
