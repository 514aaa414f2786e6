"""Render keeps the contract in both dialects, with nothing wrong and once per trouble."""

from __future__ import annotations

from gp4u.model import Demand, Requirements
from tests.contract.conformance.conforming import Conforming
from tests.contract.conformance.dialects import RENDER, RENDER_LEGACY


class TestDispersed(Conforming):
    """The compute API, signed."""

    dialect = RENDER


class TestLegacy(Conforming):
    """The proposed node API."""

    dialect = RENDER_LEGACY
    demand = Demand(requirements=Requirements(disk_gib=0, ports=1, verified_only=False))
