"""Vast.ai's list of instances, page by page, and whether it can prove that something is absent.

What this file hides: cursors and totals, and every way in which pages can contradict each other.
Pure; `adapter.py` asks for the pages, `replies.py` reads a row.

Source: `docs/reference/vastai.md`, list; checked 2026-11.
"""

from __future__ import annotations

from datetime import datetime

from gp4u.model import Instance, Listing
from gp4u.providers.vastai.replies import SLUG, ListReply, to_instance


class ListWalk:
    """Gathers the pages of one listing, and whatever speaks against its being complete."""

    def __init__(self) -> None:
        self.token: str | None = None
        """Where the next page begins; None: this was the last."""
        self._found: dict[str, Instance] = {}
        self._tokens: set[str] = set()
        self._total: int | None = None
        self._why = ""

    def doubt(self, why: str) -> None:
        """Note why the listing cannot prove absence; the first reason stays."""
        self._why = self._why or why

    def add(self, page: ListReply) -> None:
        """Take in a page."""
        if page.instances_found not in (None, len(page.instances)):
            self.doubt("a page is shorter than it says")
        if None not in (self._total, page.total_instances) and self._total != page.total_instances:
            self.doubt("the total changed while paging")
        self._total = self._total if page.total_instances is None else page.total_instances
        for row in page.instances:
            instance = to_instance(row)
            if instance is None:
                self.doubt("a row without an id")
            else:
                self._found[instance.instance_id] = instance  # of two rows, the newer page's
        self.token = page.next_token
        if self.token is not None and (self.token in self._tokens or not page.instances):
            self.doubt("the cursor leads nowhere")
            self.token = None
        elif self.token is not None:
            self._tokens.add(self.token)

    def listing(self, *, began_at: datetime) -> Listing:
        """Return what was seen."""
        if self._total not in (None, len(self._found)):
            self.doubt(f"{len(self._found)} instances shown of {self._total}")
        return Listing(
            provider=SLUG,
            instances=tuple(self._found.values()),
            complete=not self._why,
            began_at=began_at,
            why_incomplete=self._why,
        )
