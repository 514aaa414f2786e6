"""What contracts cost: rates that run with time, and sums that fall due at once.

Hides when anything is added up. A rate that runs costs no work: it is added up when it changes, and
when somebody reads; what all cost together is a straight line until then, so its sum, and the
moment at which it reaches a limit, are one division away however many contracts there are.

Sums are kept as fractions and rounded when they are read, so that a reading depends on what
happened, and never on how often somebody looked before. Times are whole microseconds since 1970,
days are those of UTC.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction

_US_PER_HOUR = 3_600_000_000
_US_PER_DAY = 86_400_000_000

_Owed = tuple[tuple[int, str], Fraction]


class Meter:
    """What each contract has cost, and all of them together. Contracts are named by their ids."""

    def __init__(self) -> None:
        self._lines: defaultdict[int, _Line] = defaultdict(_Line)
        # All contracts together have cost `_base + _usd_per_us * now`.
        self._base, self._usd_per_us = Fraction(0), Fraction(0)

    def run(self, contract_id: int, at_us: int, usd_per_hour: Mapping[str, Decimal]) -> None:
        """Let these rates run, by kind, instead of those that ran until now.

        Of a change that is older than what was added up already, only the rest counts.
        """
        line = self._lines[contract_id]
        at_us = self.settle(contract_id, at_us)
        if line.usd_per_hour == usd_per_hour:
            return
        before, line.usd_per_hour = line.usd_per_us, dict(usd_per_hour)
        more = line.usd_per_us - before
        self._usd_per_us += more
        self._base -= more * at_us

    def charge(self, contract_id: int, at_us: int, kind: str, usd: Decimal) -> None:
        """Charge a sum on the day of a moment; below zero it is given back."""
        self._lines[contract_id].sums[at_us // _US_PER_DAY, kind] += Fraction(usd)
        self._base += Fraction(usd)

    def settle(self, contract_id: int, to_us: int) -> int:
        """Add up what runs, at least to a moment, and return to which one it is added up."""
        line = self._lines[contract_id]
        for key, usd in line.owed(to_us):
            line.sums[key] += usd
        line.since_us = max(line.since_us, to_us)
        return line.since_us

    def charges(self, contract_id: int, at_us: int) -> dict[tuple[int, str], Decimal]:
        """Return (UTC day number, kind) -> dollars up to a moment, in the order they fell due."""
        line = self._lines[contract_id]
        sums = line.sums.copy()
        for key, usd in line.owed(at_us):
            sums[key] += usd
        return {key: _decimal(usd) for key, usd in sums.items()}

    def cost(self, contract_id: int, at_us: int) -> Decimal:
        """Return the dollars a contract has cost up to a moment."""
        line = self._lines[contract_id]
        runs_us = max(at_us - line.since_us, 0)
        return _decimal(sum(line.sums.values(), line.usd_per_us * runs_us))

    def total(self, at_us: int) -> Decimal:
        """Return the dollars that all contracts have cost up to a moment."""
        return _decimal(self._base + self._usd_per_us * at_us)

    def reaches_at_us(self, usd: Decimal) -> Fraction | None:
        """Return when the total is that many dollars, at the rates of now; None: never."""
        if self._usd_per_us <= 0:
            return None
        return (Fraction(usd) - self._base) / self._usd_per_us


class _Line:
    """One contract's rates, and what was added up of them."""

    def __init__(self) -> None:
        self.usd_per_hour: dict[str, Decimal] = {}
        self.since_us = 0
        self.sums: defaultdict[tuple[int, str], Fraction] = defaultdict(Fraction)

    @property
    def usd_per_us(self) -> Fraction:
        return sum(map(Fraction, self.usd_per_hour.values()), Fraction(0)) / _US_PER_HOUR

    def owed(self, to_us: int) -> Iterator[_Owed]:
        """Yield what has run up since it was last added up, split at midnight."""
        begin = self.since_us
        while self.usd_per_hour and begin < to_us:
            day = begin // _US_PER_DAY
            upto = min(to_us, (day + 1) * _US_PER_DAY)
            for kind, rate in self.usd_per_hour.items():
                yield (day, kind), Fraction(rate) * (upto - begin) / _US_PER_HOUR
            begin = upto


def _decimal(exact: Fraction) -> Decimal:
    return Decimal(exact.numerator) / Decimal(exact.denominator)
