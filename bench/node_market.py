"""The simulated Vast.ai that the node's benchmark rents from, in a process of its own.

Lifted, so that what is measured is the node and not the market: the throttle of the simulated
service, the seconds that a machine takes to boot, and how long its list lags. The machines have one
GPU each, of ten models that are equally common. What it tells in the end is its own: which label
was rented when, by the clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from decimal import Decimal
from pathlib import Path

from msgspec.structs import replace

from gp4u.sim import market
from gp4u.sim.serve import simulator
from gp4u.sim.vastai.gate import VastSettings

MODELS = {
    "RTX 3060": "RTX_3060",
    "RTX 4090": "RTX_4090",
    "RTX 3090": "RTX_3090",
    "RTX A4000": "RTX_A4000",
    "RTX A6000": "RTX_A6000",
    "RTX 5090": "RTX_5090",
    "GTX 1080 Ti": "GTX_1080_Ti",
    "A100 SXM4": "A100_SXM4",
    "H100 SXM": "H100_SXM",
    "L40S": "L40S",
}
"""Name at the market to what a pod's annotation says."""
BOOT_SCALE = 0.005


async def serve(ready: Path, told: Path, offers: int, address: str) -> None:
    """Serve until SIGTERM; write how to reach it to one file, and in the end its record to one."""
    market.GPUS = tuple(
        replace(each, sizes=(1,), weight=1.0, datacenter=1.0)
        for each in market.GPUS
        if each.name in MODELS
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    async with simulator(
        "vastai",
        offers=offers,
        boot_scale=BOOT_SCALE,
        settings=VastSettings(throttle=0.0, list_lag_s=(0.0, 0.0)),
        credit_usd=Decimal(1_000_000),
        public_ip=address,
    ) as running:
        await asyncio.to_thread(ready.write_text, json.dumps(running.env))
        await stop.wait()
        rows = {each.label: each.created_at for each in running.world.contracts}
        await asyncio.to_thread(told.write_text, json.dumps(rows))


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
