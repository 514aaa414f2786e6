"""Vast.ai keeps the contract, with nothing wrong and once per trouble."""

from __future__ import annotations

from tests.contract.conformance.conforming import Conforming
from tests.contract.conformance.dialects import VASTAI


class TestVastAI(Conforming):
    """One account that rents on demand and by bid."""

    dialect = VASTAI
