"""Akash keeps the contract, with a key and without, with nothing wrong and once per trouble."""

from __future__ import annotations

from tests.contract.conformance.conforming import Conforming
from tests.contract.conformance.dialects import AKASH, AKASH_WITHOUT_KEY


class TestAkash(Conforming):
    """Orders, bids, leases; listed by Console and chain together."""

    dialect = AKASH


class TestAkashWithoutKey(Conforming):
    """The market is public, what one holds is not: for quotes only."""

    dialect = AKASH_WITHOUT_KEY
