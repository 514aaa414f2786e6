"""The supply side of the simulated world: which machines exist, where, and for how much.

Hides how a plausible market is drawn from a seed: models with the memory their driver reports,
price levels, places, the mix of verified and unverified hosts, datacenters and homes, machines of
1 to 8 GPUs, and rows with holes. Values are drawn from the published samples and price levels of
Vast.ai; names are stored as that market stores them. What happens to a machine later (rented,
offline, outbid) is `world.py`'s business; how a row looks on the wire is each dialect's.

Prices are decimals with few digits, and storage is a multiple of 0.0072 $/GB/month, so that the
hourly price of a gigabyte (month = 720 h) is exact and sums agree to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from random import Random

import msgspec


class Gpu(msgspec.Struct, frozen=True):
    """One GPU model as the marketplace knows it."""

    name: str
    ram_mb: int
    """What the driver reports, below the figure on the box."""
    usd_per_hour: float
    """Middle of the market for one GPU, on demand."""
    weight: float
    """Relative share of machines that carry it."""
    compute_cap: int
    """CUDA capability x 100."""
    tflops: float
    dlperf: float
    mem_bw_gbps: float
    """GB/s."""
    max_power_w: int
    datacenter: float = 0.1
    """Share of its machines that stand in a vetted datacenter."""
    sizes: tuple[int, ...] = (1, 1, 1, 1, 2, 2, 4, 8)
    """GPUs per machine, drawn evenly."""
    arch: str = "nvidia"


# Memory: values recorded from the marketplace (24564, 32607, 46068, 49140, 23034) or the
# driver's figure for the card. Source: market samples and vendor pages, checked 2026-11.
GPUS: tuple[Gpu, ...] = (
    Gpu("RTX 4090", 24564, 0.36, 18, 890, 82.6, 97, 1008, 450),
    Gpu("RTX 3090", 24576, 0.17, 12, 860, 35.6, 52, 936, 350),
    Gpu("RTX 5090", 32607, 0.48, 12, 1200, 107.6, 141, 1448, 575),
    Gpu("RTX 3060", 12288, 0.07, 9, 860, 12.7, 15, 360, 170, sizes=(1, 1, 1, 2, 4)),
    Gpu("RTX 3060 Ti", 8192, 0.08, 3, 860, 16.2, 20, 448, 200),
    Gpu("RTX 3070", 8192, 0.09, 3, 860, 20.3, 24, 448, 220),
    Gpu("RTX 3070 laptop", 8192, 0.07, 0.5, 860, 15.9, 17, 448, 115, 0.0, (1,)),
    Gpu("RTX 3080", 10240, 0.12, 4, 860, 29.8, 38, 760, 320),
    Gpu("RTX 3080 Ti", 12288, 0.13, 2, 860, 34.1, 43, 912, 350),
    Gpu("RTX 3090 Ti", 24564, 0.21, 1.5, 860, 40.0, 57, 1008, 450),
    Gpu("RTX 4060 Ti", 16380, 0.11, 3, 890, 22.1, 26, 288, 165),
    Gpu("RTX 4070S", 12282, 0.15, 2, 890, 35.5, 41, 504, 220),
    Gpu("RTX 4070 Ti", 12282, 0.16, 2, 890, 40.1, 45, 504, 285),
    Gpu("RTX 4070S Ti", 16376, 0.18, 2, 890, 44.1, 50, 672, 285),
    Gpu("RTX 4080", 16376, 0.22, 2, 890, 48.7, 58, 717, 320),
    Gpu("RTX 4080S", 16376, 0.23, 2, 890, 52.2, 61, 736, 320),
    Gpu("RTX 4090D", 24564, 0.33, 1.5, 890, 73.5, 85, 1008, 425),
    Gpu("RTX 5060 Ti", 16311, 0.13, 2, 1200, 23.7, 32, 448, 180),
    Gpu("RTX 5070 Ti", 16303, 0.19, 2, 1200, 43.9, 62, 896, 300),
    Gpu("RTX 5080", 16303, 0.24, 2.5, 1200, 56.3, 77, 960, 360),
    Gpu("GTX 1080 Ti", 11264, 0.06, 2, 610, 11.3, 10, 484, 250, 0.0),
    Gpu("GTX 1660 S", 6144, 0.04, 1, 750, 5.0, 6, 336, 125, 0.0, (1, 1, 2)),
    Gpu("RTX 2080 Ti", 11264, 0.08, 2, 750, 13.4, 19, 616, 250),
    Gpu("Q RTX 8000", 49152, 0.22, 1, 750, 16.3, 24, 672, 260, 0.5),
    Gpu("RTX A2000", 12282, 0.08, 1, 860, 8.0, 11, 288, 70, 0.5),
    Gpu("RTX A4000", 16376, 0.11, 4, 860, 19.2, 26, 448, 140, 0.5),
    Gpu("RTX A5000", 24564, 0.19, 3, 860, 27.8, 38, 768, 230, 0.5),
    Gpu("RTX A6000", 49140, 0.41, 4, 860, 38.7, 49, 768, 300, 0.6),
    Gpu("RTX 4000Ada", 20475, 0.21, 1.5, 890, 26.7, 34, 360, 130, 0.7),
    Gpu("RTX 6000Ada", 49140, 0.62, 2, 890, 91.1, 101, 960, 300, 0.7),
    Gpu("RTX PRO 6000 WS", 97887, 1.05, 2, 1200, 125.0, 168, 1792, 600, 0.6),
    Gpu("Tesla T4", 15360, 0.12, 1.5, 750, 8.1, 12, 320, 70, 0.8),
    Gpu("Tesla V100", 16384, 0.16, 2, 700, 15.7, 24, 900, 300, 0.8),
    Gpu("A10", 23028, 0.19, 1, 860, 31.2, 36, 600, 150, 0.9),
    Gpu("A40", 46068, 0.37, 2, 860, 37.4, 47, 696, 300, 0.9),
    Gpu("L4", 23034, 0.28, 1.5, 890, 30.3, 33, 300, 72, 0.9),
    Gpu("L40", 46068, 0.58, 1.5, 890, 90.5, 92, 864, 300, 0.9),
    Gpu("L40S", 46068, 0.68, 3, 890, 91.6, 98, 864, 350, 0.9),
    Gpu("A100 PCIE", 40960, 0.61, 1.5, 800, 19.5, 72, 1555, 250, 0.9),
    Gpu("A100 PCIE", 81920, 0.78, 1.5, 800, 19.5, 82, 1935, 300, 0.9),
    Gpu("A100 SXM4", 81920, 0.89, 3, 800, 19.5, 91, 2039, 400, 0.9, (1, 2, 4, 8, 8)),
    Gpu("H100 PCIE", 81559, 1.75, 1.5, 900, 51.2, 168, 2000, 350, 1.0, (1, 2, 4, 8)),
    Gpu("H100 SXM", 81559, 2.05, 4, 900, 66.9, 205, 3350, 700, 1.0, (1, 2, 4, 8, 8)),
    Gpu("H100 NVL", 95830, 1.95, 1, 900, 60.3, 187, 3900, 400, 1.0, (1, 2, 4)),
    Gpu("H200", 143771, 2.60, 2, 900, 66.9, 221, 4800, 700, 1.0, (1, 2, 4, 8, 8)),
    Gpu("B200", 183359, 3.95, 1, 1000, 80.0, 340, 8000, 1000, 1.0, (1, 4, 8)),
    Gpu("RX 7900 XTX", 24560, 0.21, 0.5, 1100, 61.4, 30, 960, 355, 0.0, (1, 2), "amd"),
)

# Text as hosts' places are shown, and their share. The country is what follows the last comma.
PLACES: tuple[tuple[str | None, float], ...] = (
    ("California, US", 9),
    ("Texas, US", 7),
    ("Washington, US", 4),
    ("New York, US", 3),
    ("Oregon, US", 2),
    ("Utah, US", 2),
    ("Virginia, US", 3),
    ("North Carolina, US", 2),
    (", US", 2),
    ("Ontario, CA", 4),
    ("Quebec, CA", 5),
    ("British Columbia, CA", 2),
    ("Germany, DE", 4),
    ("Netherlands, NL", 3),
    ("Sweden, SE", 4),
    ("Norway, NO", 3),
    ("Finland, FI", 2),
    ("Poland, PL", 3),
    ("Czechia, CZ", 4),
    ("Bulgaria, BG", 3),
    ("Hungary, HU", 2),
    ("France, FR", 3),
    ("Spain, ES", 2),
    ("Italy, IT", 1),
    ("United Kingdom, GB", 3),
    ("Iceland, IS", 2),
    ("Ukraine, UA", 1),
    ("Japan, JP", 3),
    ("South Korea, KR", 4),
    ("Taiwan, TW", 3),
    ("Vietnam, VN", 3),
    ("Singapore, SG", 1),
    ("India, IN", 2),
    ("Shandong, Jinan, CN", 2),
    ("Israel, IL", 1),
    ("United Arab Emirates, AE", 1),
    ("Australia, AU", 2),
    ("Brazil, BR", 1),
    ("South Africa, ZA", 1),
    (None, 0.5),
)

# Kinds that a market of 50 offers or more always carries on verified single-GPU machines, so that
# common demands find something under every seed.
_ANCHORS: tuple[tuple[str, int], ...] = (
    ("RTX 3060", 4),
    ("RTX 4090", 4),
    ("RTX 3090", 3),
    ("RTX A4000", 2),
    ("RTX A6000", 2),
    ("RTX 5090", 2),
    ("GTX 1080 Ti", 1),
    ("A100 SXM4", 2),
    ("H100 SXM", 2),
    ("L40S", 2),
)
_ANCHOR_PLACES = ("California, US", "Texas, US", "Washington, US", "Virginia, US")
ANCHORS_FROM = 50
"""Smallest market that carries the common kinds by construction."""

_CPUS = (
    ("AMD EPYC 7B13 64-Core Processor", 64, 2.2, "amd64"),
    ("AMD EPYC 7742 64-Core Processor", 128, 2.25, "amd64"),
    ("AMD EPYC 9654 96-Core Processor", 192, 2.4, "amd64"),
    ("AMD Ryzen 9 5950X 16-Core Processor", 32, 3.4, "amd64"),
    ("Xeon® E5-2680 v4", 56, 2.4, "amd64"),
    ("Xeon® Gold 6330", 112, 2.0, "amd64"),
    ("Core™ i7-12700K", 20, 3.6, "amd64"),
    ("Core™ Ultra 9 285K", 24, 3.7, "amd64"),
)
_DISKS = (
    "Samsung SSD 980 PRO 2TB",
    "PC SN820 NVMe WD 4096GB",
    "KINGSTON SNV2S2000G",
    "MZQL23T8HCLS",
)
_BOARDS = ("ROMED8-2T", "X570 AORUS ELITE", "02JGX1", "H12SSL-i", "Z790 Gaming")
_DRIVERS = (
    ("535.183.01", 12.2),
    ("550.127.05", 12.4),
    ("560.35.03", 12.6),
    ("570.124.04", 12.8),
    ("580.82.07", 13.0),
)
_HOLES = (
    "cpu_cores",
    "cpu_ghz",
    "mobo_name",
    "disk_bw",
    "os_version",
    "score",
    "dlperf",
    "bw_nvlink",
)
"""What some hosts do not report; every one of them was seen as null."""


class Slice(msgspec.Struct, frozen=True):
    """The part of a machine that one offer sells."""

    offer_id: int
    gpus: tuple[int, ...]
    """Positions of its GPUs in the machine."""


class Machine(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """One physical machine, with its host's terms. Prices are US dollars, per GPU and hour."""

    machine_id: int
    host_id: int
    bundle_id: int
    gpu: Gpu
    gpu_count: int
    slices: tuple[Slice, ...]
    """Largest first; slices of one size do not overlap, slices of different sizes do."""
    place: str | None
    verification: str
    """`verified`, `unverified` or `deverified`."""
    datacenter: bool | None
    usd_per_gpu_hour: Decimal
    min_bid_per_gpu: Decimal | None
    """None: not offered as interruptible."""
    storage_usd_per_gb_month: Decimal
    """Month = 720 h."""
    down_usd_per_gb: Decimal
    up_usd_per_gb: Decimal
    reliability: float
    down_mbps: float
    up_mbps: float
    disk_gb: float
    disk_bw: float
    disk_name: str
    cpu_name: str
    cpu_cores: int
    cpu_ghz: float
    cpu_arch: str
    ram_mb: int
    board: str
    driver: str
    cuda: float
    open_ports: int
    static_ip: bool
    address: str
    listed_for_s: float
    """How long after the world's start the host's listing ends."""
    external: bool | None
    taken: bool
    """Another customer holds all of it, for as long as this market lasts."""
    not_reported: frozenset[str]

    def storage_usd_per_hour(self, disk_gb: Decimal) -> Decimal:
        """Return the price of `disk_gb` gigabytes for an hour."""
        return self.storage_usd_per_gb_month * disk_gb / 720


def _sizes(gpu_count: int) -> list[int]:
    """Sizes in which a machine is sold: all of it, and every power of two below."""
    below = [1 << k for k in range(4) if 1 << k < gpu_count]
    return [gpu_count, *reversed(below)]


def _slices(gpu_count: int, ids: Iterator[int]) -> tuple[Slice, ...]:
    return tuple(
        Slice(next(ids), tuple(range(start, start + size)))
        for size in _sizes(gpu_count)
        for start in range(0, gpu_count - size + 1, size)
    )


def draw_market(random: Random, offers: int) -> tuple[Machine, ...]:
    """Draw machines that together make exactly `offers` rentable offers while nothing is rented.

    A machine makes one offer per size it is sold in. Machines that another customer holds are
    drawn on top (about one in twelve): they show up, but cannot be rented.
    """
    ids = iter(range(5001 + random.randrange(1_000_000) * 10, 2**62))
    machines: list[Machine] = []
    left = offers
    if offers >= ANCHORS_FROM:
        by_name = {gpu.name: gpu for gpu in GPUS}
        for name, count in _ANCHORS:
            for n in range(count):
                place = _ANCHOR_PLACES[n % len(_ANCHOR_PLACES)]
                serial = len(machines)
                machines.append(_machine(random, by_name[name], 1, ids, serial, anchor_place=place))
                left -= 1
    weights = [gpu.weight for gpu in GPUS]
    while left > 0:
        gpu = random.choices(GPUS, weights)[0]
        count = random.choice(gpu.sizes) if random.random() < 0.93 else random.choice((3, 5, 6, 7))
        while len(_sizes(count)) > left:
            count //= 2
        taken = random.random() < 0.08
        machines.append(_machine(random, gpu, count, ids, len(machines), taken=taken))
        left -= 0 if taken else len(_sizes(count))
    random.shuffle(machines)
    return tuple(machines)


def _machine(
    random: Random,
    gpu: Gpu,
    count: int,
    ids: Iterator[int],
    serial: int,
    *,
    anchor_place: str | None = None,
    taken: bool = False,
) -> Machine:
    anchor = anchor_place is not None
    datacenter = random.random() < gpu.datacenter
    verification = (
        "verified"
        if anchor or datacenter
        else random.choices(("verified", "unverified", "deverified"), (70, 25, 5))[0]
    )
    level = random.lognormvariate(0.0, 0.10 if anchor else 0.22) * (1.08 if datacenter else 1.0)
    price = Decimal(max(round(gpu.usd_per_hour * level * 10_000), 50)) / 10_000
    bid = (
        Decimal(round(price * 10_000 * Decimal(str(round(random.uniform(0.35, 0.8), 3))))) / 10_000
    )
    cpu_name, cpu_cores, cpu_ghz, cpu_arch = random.choice(_CPUS)
    driver, cuda = random.choice(_DRIVERS[2:] if gpu.compute_cap >= 1000 else _DRIVERS)
    fast = datacenter or anchor
    down = round(random.uniform(400, 2500) if fast else random.lognormvariate(5.6, 0.8), 1)
    traffic = Decimal(random.choice((0, 0, 1, 2, 3, 5, 20))) / 1024
    place = anchor_place or random.choices([p for p, _ in PLACES], [w for _, w in PLACES])[0]
    holes = frozenset(h for h in _HOLES if not anchor and random.random() < 0.04)
    return Machine(
        machine_id=2_000 + serial * 17 + random.randrange(17),
        host_id=40_000 + random.randrange(max(serial, 1) + 1) * 11,
        bundle_id=random.randrange(10**8, 2 * 10**9),
        gpu=gpu,
        gpu_count=count,
        slices=_slices(count, ids),
        place=place,
        verification=verification,
        datacenter=None if not anchor and random.random() < 0.03 else datacenter,
        usd_per_gpu_hour=price,
        min_bid_per_gpu=None if not anchor and random.random() < 0.12 else bid,
        storage_usd_per_gb_month=Decimal(random.choice((10, 14, 20, 20, 25, 40)))
        * Decimal("0.0072"),
        down_usd_per_gb=traffic,
        up_usd_per_gb=traffic,
        reliability=_reliability(random, verification, steady=fast),
        down_mbps=down,
        up_mbps=round(down * random.uniform(0.3, 1.1), 1),
        disk_gb=round(random.uniform(200, 3000) if anchor else random.uniform(40, 3000), 1),
        disk_bw=round(random.uniform(450, 6200), 1),
        disk_name=random.choice(_DISKS),
        cpu_name=cpu_name,
        cpu_cores=cpu_cores,
        cpu_ghz=cpu_ghz,
        cpu_arch=cpu_arch,
        ram_mb=random.choice((32, 64, 128, 256, 512)) * 1000 * (2 if count > 4 else 1),
        board=random.choice(_BOARDS),
        driver=driver,
        cuda=cuda,
        open_ports=random.choice((100, 250, 499, 999))
        if fast
        else random.choice((0, 2, 8, 99, 250)),
        static_ip=fast or random.random() < 0.4,
        address=f"203.0.113.{random.randrange(1, 255)}",
        listed_for_s=random.uniform(20, 400) * 86_400 if fast else random.uniform(1, 200) * 86_400,
        external=None if not anchor and random.random() < 0.05 else False,
        taken=taken,
        not_reported=holes,
    )


def _reliability(random: Random, verification: str, *, steady: bool) -> float:
    """New and unverified machines start near 0.6 and earn the rest."""
    if verification == "verified":
        return round(random.uniform(0.975, 0.9995) if steady else random.uniform(0.90, 0.9995), 7)
    return round(random.uniform(0.58, 0.99), 7)
