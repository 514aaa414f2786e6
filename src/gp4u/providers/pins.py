"""The host keys of rented machines, kept in a file so that trust outlives the process.

A machine's key is believed once. If that were forgotten with the process, whoever sits between us
and the machine would only have to wait for a restart.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from gp4u.errors import BadInput

VARIABLE: Final = "GP4U_KNOWN_HOSTS"
MOST: Final = 10_000
"""The oldest are forgotten first; a machine that is released is forgotten at once."""


class FilePins(MutableMapping[str, str]):
    """Instance id to host key; read when first asked, written whenever it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: dict[str, str] | None = None

    def __getitem__(self, instance_id: str) -> str:
        return self._kept[instance_id]

    def __setitem__(self, instance_id: str, host_key: str) -> None:
        self._kept[instance_id] = host_key
        self._write()

    def __delitem__(self, instance_id: str) -> None:
        del self._kept[instance_id]
        self._write()

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._kept))

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def _kept(self) -> dict[str, str]:
        """What the file holds.

        Raises:
            BadInput: it cannot be read, so nobody may be trusted by it.
        """
        if self._read is None:
            try:
                self._read = msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
            except FileNotFoundError:
                self._read = {}
            except (OSError, msgspec.MsgspecError) as error:
                why = f"a readable file of host keys ({error}); remove it to trust anew"
                raise BadInput(VARIABLE, str(self._path), why) from error
        return self._read

    def _write(self) -> None:
        kept = self._kept
        for instance_id in list(kept)[: max(0, len(kept) - MOST)]:
            del kept[instance_id]
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.write_bytes(msgspec.json.encode(kept))
            draft.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            raise BadInput(VARIABLE, str(self._path), f"a file to write to ({error})") from error
