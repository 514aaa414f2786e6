"""Which providers the simulated Akash has: each machine of the world that carries NVIDIA cards.

Hides the market's spellings: model tokens, memory and interface as its inventories print them, and
addresses on the chain. What a provider sells at the moment is the market's part.

Source: provider-configs devices/pcie/gpus.json (tokens, interfaces, memory), checked 2026-07; the
spelling of SXM4 and SXM5 from recorded inventories of 2026-07-17.
"""

from __future__ import annotations

import hashlib

import msgspec

from gp4u.sim.market import Machine

_CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
"""The alphabet of addresses on the chain."""

# The world's name of a card = token, GiB as sold, interface. Cards that the catalogue has no token
# for are not on this market.
_CARDS = """
RTX 4090 = rtx4090 24 PCIe;        RTX 3090 = rtx3090 24 PCIe;     RTX 5090 = rtx5090 32 PCIe;
RTX 3060 = rtx3060 12 PCIe;        RTX 3060 Ti = rtx3060ti 8 PCIe; RTX 3070 = rtx3070 8 PCIe;
RTX 3080 = rtx3080 10 PCIe;        RTX 3090 Ti = rtx3090ti 24 PCIe;
RTX 4060 Ti = rtx4060ti 16 PCIe;   RTX 4070S = rtx4070s 12 PCIe;   RTX 4070 Ti = rtx4070ti 12 PCIe;
RTX 4080 = rtx4080 16 PCIe;        RTX 4080S = rtx4080s 16 PCIe;   RTX 5080 = rtx5080 16 PCIe;
GTX 1080 Ti = gtx1080ti 11 PCIe;   RTX 2080 Ti = rtx2080ti 11 PCIe; Q RTX 8000 = rtx8000 48 PCIe;
RTX A2000 = rtxa2000 12 PCIe;      RTX A5000 = a5000 24 PCIe;      RTX A6000 = rtxa6000 48 PCIe;
RTX 4000Ada = rtx4000ada 20 PCIe;  RTX PRO 6000 WS = pro6000we 96 PCIe; Tesla T4 = t4 16 PCIe;
Tesla V100 = v100 16 SXM2;         A40 = a40 48 PCIe;              A100 SXM4 = a100 80 SXM4;
H100 PCIE = h100 80 PCIe;          H100 SXM = h100 80 SXM5;        H200 = h200 141 SXM5;
A100 PCIE = a100 - PCIe
"""

# States whose codes the places of the world need. Source: ISO 3166-2.
_STATES = {
    "California": "CA",
    "Texas": "TX",
    "Washington": "WA",
    "New York": "NY",
    "Oregon": "OR",
    "Utah": "UT",
    "Virginia": "VA",
    "North Carolina": "NC",
    "Ontario": "ON",
    "Quebec": "QC",
    "British Columbia": "BC",
}


class Card(msgspec.Struct, frozen=True):
    """A kind of card as inventories print it."""

    model: str
    ram: str
    """`80Gi`."""
    interface: str
    """`PCIe`, `SXM2`, `SXM4` or `SXM5`."""

    @property
    def bus(self) -> str:
        """As a bid prints it: `pcie` or `sxm`."""
        return "sxm" if self.interface.startswith("SXM") else "pcie"

    def fits(self, wish: tuple[str, str, str]) -> bool:
        """Whether it is what an order asks for; empty text asks for nothing."""
        return all(not want or want == have for want, have in zip(wish, self.words, strict=True))

    @property
    def words(self) -> tuple[str, str, str]:
        """(model, ram, interface) as an order spells them."""
        return self.model, self.ram, self.bus

    @property
    def key(self) -> str:
        """As the attribute of a bid spells it."""
        return f"vendor/nvidia/model/{self.model}/ram/{self.ram}/interface/{self.bus}"


def card_of(machine: Machine) -> Card | None:
    """Return what a machine's GPUs are called here; None where they are not sold here."""
    found = _TABLE.get(machine.gpu.name)
    if found is None or machine.gpu.arch != "nvidia":
        return None
    model, ram, interface = found
    return Card(model, f"{round(machine.gpu.ram_mb / 1024) if ram == '-' else ram}Gi", interface)


def _table() -> dict[str, tuple[str, str, str]]:
    cards = {}
    for entry in _CARDS.replace("\n", " ").split(";"):
        name, _, words = entry.partition(" = ")
        model, ram, interface = words.split()
        cards[name.strip()] = (model, ram, interface)
    return cards


_TABLE = _table()


def address(name: str) -> str:
    """Return an address on the chain for a name; the same one each time."""
    digest = hashlib.sha256(name.encode()).digest() * 2
    return "akash1" + "".join(_CHARSET[byte % 32] for byte in digest[:38])


def provider_address(machine: Machine) -> str:
    """Return the address of the provider that a machine is."""
    return address(f"provider {machine.machine_id}")


def place(machine: Machine) -> tuple[str | None, str | None, str | None]:
    """Return (country code, region, region code) by the address of the machine."""
    if machine.place is None:
        return None, None, None
    region, _, country = machine.place.rpartition(",")
    region = region.strip()
    return country.strip(), region or None, _STATES.get(region)
