"""Which of the candidates a rent tries, and what it leaves behind of itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gp4u.rentals.broker import COOL_S
from tests.laws import Story, told
from tests.simulated import DEMAND, WORKLOAD


def test_what_was_got_is_not_tried_again_while_an_old_look_still_shows_it(tmp_path: Path) -> None:
    """Offers stay young for five minutes; each vain rent is an intent, a call and a proof.

    The note of the one who asked is in the history from the first moment on: a crash in between
    would leave a machine that nobody knows for his.
    """

    async def tale(story: Story) -> None:
        for number in range(3):
            rental = await story.app.broker.rent(
                f"cli:{number}", DEMAND, WORKLOAD, wait=False, note=("pod", f"place {number}")
            )
            first, second, *_ = await story.app.ledger.events(rental.key)
            assert (first.kind, second.kind, second.text) == ("intended", "pod", f"place {number}")
            await asyncio.sleep(1.2 * COOL_S)
        assert story.rent_calls == 3
        assert len(story.sent("POST", "/bundles/")) == 1, "there was a newer look"

    told(tale, tmp_path)
