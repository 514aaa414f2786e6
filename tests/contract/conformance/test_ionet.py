"""io.net keeps the contract in every dialect, with nothing wrong and once per trouble."""

from __future__ import annotations

from gp4u.model import Demand, Port, Requirements, Workload
from tests.contract.conformance.conforming import Conforming
from tests.contract.conformance.dialects import IONET, IONET_CAAS, IONET_LEGACY, IONET_VMAAS


class TestContainersBesideMachines(Conforming):
    """`auto`: containers are rented, machines are listed beside them."""

    dialect = IONET


class TestContainers(Conforming):
    """`caas`: the other product is not asked at all."""

    dialect = IONET_CAAS


class TestMachines(Conforming):
    """`vmaas`: bare machines, several ports at an address."""

    dialect = IONET_VMAAS
    workload = Workload(
        image="vm:general",
        env={"SSH_PUBLIC_KEY": "ssh-ed25519 AAAAC3Nza ada"},
        ports=(Port(number=22),),
        disk_gib=16,
    )
    some_instance_id = "vmaas:0a1b2c3d"


class TestLegacy(Conforming):
    """`legacy`: a list of devices, for quotes only; it must refuse everything else."""

    dialect = IONET_LEGACY
    demand = Demand(requirements=Requirements(disk_gib=0))
