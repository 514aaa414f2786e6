"""Handing work to providers in turn: one after the other, or by how well each has answered.

Hides who had the last turn. Only HEALTHY providers are ever chosen, and who is HEALTHY is asked
anew each time, so one that falls ill is passed over, and is back in line once it is well. Which
offer suits somebody is another question, and that of `selection/`.
"""

from __future__ import annotations

from random import Random

from gp4u.errors import NoneHealthy
from gp4u.providers.contract import Provider
from gp4u.providers.registry import Registry


class Balancer:
    """Chooses among the HEALTHY providers of a registry."""

    def __init__(self, registry: Registry, random: Random) -> None:
        """`random` decides `weighted`: the same seed and the same health give the same choices."""
        self._registry, self._random = registry, random
        self._turns = 0
        self._last_turn: dict[str, int] = {}

    def round_robin(self) -> Provider:
        """Return the HEALTHY provider that has waited longest; among new ones, the first known.

        With a steady set each has its turn once in as many calls as there are providers; one that
        comes or goes takes nobody else's.

        Raises:
            NoneHealthy: there is none.
        """
        chosen = min(self._healthy(), key=lambda each: self._last_turn.get(each.spec.slug, 0))
        self._turns += 1
        self._last_turn[chosen.spec.slug] = self._turns
        return chosen

    def weighted(self) -> Provider:
        """Return a HEALTHY provider by chance; one that answers more of its calls, more often.

        Raises:
            NoneHealthy: there is none.
        """
        healthy = self._healthy()
        weights = [each.get_metrics().get_success_rate() for each in healthy]
        return self._random.choices(healthy, weights=weights)[0]

    def _healthy(self) -> list[Provider]:
        healthy = self._registry.get_all_healthy()
        if not healthy:
            raise NoneHealthy(self._registry.why_unhealthy())
        return healthy
