"""GPU names as sold -> canonical model, VRAM, throughput and a reference price.

Every market spells the same card differently (`RTX 4070S Ti`, `rtx4070tis`, `GeForce RTX 4070 Ti
SUPER`), some sell two cards under one name and tell them apart by memory alone, and drivers report
less memory than the box promises. This file hides all of that: adapters ask `canonical` for each
row, the command line asks `wanted` for what a user typed, a search asks `sold_names` for the words
that a market's filter understands. It never guesses: a name it cannot resolve word for word is
unknown, because a near miss (`RTX A4000` for `RTX 4000 Ada`) is a wrong card that costs money.

What a GPU is worth for a demand is the business of `selection/`; this file only holds facts.
"""

from __future__ import annotations

import difflib
import re
from functools import cache, lru_cache
from typing import NamedTuple

import msgspec

from gp4u.errors import BadInput, UnknownGpu

# Memory decides among cards of one name. Drivers report up to 7 % less than is sold (24,564 MB for
# 24 GB), and up to 9 % less where error correction takes its share (22,731 MB on an A10G).
_LEAST, _MOST = 0.90, 1.07
_TOO_LARGE_MB = 999 * 1024

# One card per line. VRAM in GiB as sold, per GPU. TFLOPS: dense FP16 with FP32 accumulation on
# tensor or matrix cores; for cards without those, the better of the published FP16 and FP32 rates.
# GB/s: memory bandwidth. USD/h: see `Gpu.reference_usd_per_hour`. `?`: unknown. Spellings: `=` is
# the model's own name, `-` none. A name that ends in its memory on every line (`A100 PCIe 40GB`) is
# sold without it; where only some lines do (`RTX 4090 48GB`), the bare name means the line without.
# Order matters: where nothing tells the cards of a name apart, the first line is taken, so it is
# the one that promises least.
# Source: the makers' data sheets and architecture white papers. Checked against a page in 2026-11:
# B200, B300 (whose pages disagree), H200, A100, L40S, V100, A40. The others are entered as known,
# not checked line by line; RTX PRO is an eighth of the published FP4 rate with sparsity. They scale
# a score and decide no bound. Reference prices are set by hand, to an order of magnitude. Vast.ai
# spellings: constants of its Python package
# 1.9.1; cards that it does not list yet are spelled by the same pattern. Akash: its catalogue of
# PCI devices.
_TABLE = """
# model                 | GiB | TFLOPS | GB/s | USD/h | on Vast.ai          | other spellings
B300                    | 288 | 2250   | 8000 | 4.50  | =                   | B300 SXM
GB200                   | 186 | 2500   | 8000 | 4.20  | =                   | GB200 NVL72
B200                    | 180 | 2250   | 8000 | 3.60  | =                   | B200 SXM
GH200                   |  96 | 989.4  | 4000 | 1.80  | GH200 SXM           | -
H200 SXM                | 141 | 989.4  | 4800 | 2.40  | H200                | -
H200 NVL                | 141 | 835.5  | 4800 | 2.20  | =                   | -
H100 PCIe               |  80 | 756    | 2000 | 1.70  | H100 PCIE           | -
H100 SXM                |  80 | 989.4  | 3350 | 1.90  | =                   | -
H100 NVL                |  94 | 835.5  | 3938 | 1.80  | =                   | -
H800 PCIe               |  80 | 756    | 2000 | 1.50  | -                   | -
H800 SXM                |  80 | 989.4  | 3350 | 1.70  | -                   | -
H20                     |  96 | 148    | 4000 | 1.20  | =                   | H20 SXM
A100 PCIe 40GB          |  40 | 312    | 1555 | 0.60  | A100 PCIE           | -
A100 PCIe 80GB          |  80 | 312    | 1935 | 0.80  | A100 PCIE           | -
A100 SXM4 40GB          |  40 | 312    | 1555 | 0.65  | A100 SXM4, A100 SXM | -
A100 SXM4 80GB          |  80 | 312    | 2039 | 0.85  | A100 SXM4, A100 SXM | -
A100X                   |  80 | 312    | 2039 | 0.80  | =                   | -
A800 PCIe 40GB          |  40 | 312    | 1555 | 0.60  | A800 PCIE           | -
A800 PCIe 80GB          |  80 | 312    | 1935 | 0.75  | A800 PCIE           | -
A800 SXM4 80GB          |  80 | 312    | 2039 | 0.80  | A800 SXM4           | -
L40S                    |  48 | 362    |  864 | 0.55  | =                   | -
L40                     |  48 | 181    |  864 | 0.50  | =                   | -
L20                     |  48 | 119.5  |  864 | 0.40  | =                   | -
L4                      |  24 | 121    |  300 | 0.30  | =                   | -
A40                     |  48 | 149.7  |  696 | 0.35  | =                   | -
A30                     |  24 | 165    |  933 | 0.25  | =                   | -
A16                     |  16 | 17.9   |  200 | 0.12  | =                   | -
A10                     |  24 | 125    |  600 | 0.20  | =                   | -
A10G                    |  24 | 70     |  600 | 0.20  | A10g                | -
Tesla T4                |  16 | 65     |  320 | 0.12  | =                   | -
Tesla V100 16GB         |  16 | 112    |  900 | 0.15  | Tesla V100          | -
Tesla V100 32GB         |  32 | 112    |  900 | 0.22  | Tesla V100          | -
Tesla V100 PCIe 16GB    |  16 | 112    |  900 | 0.15  | -                   | -
Tesla V100 PCIe 32GB    |  32 | 112    |  900 | 0.22  | -                   | -
Tesla V100 SXM2 16GB    |  16 | 125    |  900 | 0.16  | -                   | -
Tesla V100 SXM2 32GB    |  32 | 125    |  900 | 0.24  | -                   | -
Tesla P100              |  16 | 18.7   |  732 | 0.08  | =                   | P100 PCIe, P100 SXM2
Tesla P40               |  24 | 11.8   |  346 | 0.08  | =                   | -
Tesla P6                |  16 | 6.2    |  192 | 0.05  | =                   | -
Tesla P4                |   8 | 5.5    |  192 | 0.04  | =                   | -
Tesla M40 12GB          |  12 | 6.8    |  288 | 0.04  | Tesla M40           | -
Tesla M40 24GB          |  24 | 6.8    |  288 | 0.05  | Tesla M40           | -
Tesla K80               |  12 | 4.1    |  240 | 0.03  | =                   | -
Tesla K20c              |   5 | 3.5    |  208 | 0.02  | =                   | -
RTX PRO 6000            |  96 | 438.9  | 1597 | 0.80  | =                   | -
RTX PRO 6000 S          |  96 | 480    | 1597 | 0.85  | =                   | pro6000se
RTX PRO 6000 WS         |  96 | 503.8  | 1792 | 0.85  | =                   | pro6000we
RTX PRO 6000 Max-Q      |  96 | 438.9  | 1792 | 0.80  | =                   | pro6000mq
RTX PRO 5000            |  48 | 258    | 1344 | 0.50  | =                   | -
RTX PRO 5000 72GB       |  72 | 258    | 1344 | 0.60  | RTX PRO 5000        | -
RTX PRO 4500            |  32 | 210.9  |  896 | 0.35  | =                   | -
RTX PRO 4000            |  24 | 147.2  |  672 | 0.25  | =                   | -
RTX PRO 4000 SFF        |  24 | 95.8   |  432 | 0.20  | -                   | -
RTX PRO 4000 Laptop     |  16 | ?      |  896 | 0.18  | RTX PRO 4000 Mobile | -
RTX 5090                |  32 | 209.5  | 1792 | 0.45  | =                   | -
RTX 5090D               |  32 | ?      | 1792 | 0.42  | =                   | -
RTX 5090 Laptop         |  24 | ?      |  896 | 0.25  | RTX 5090 laptop     | rtx5090m
RTX 5080                |  16 | 112.6  |  960 | 0.22  | =                   | -
RTX 5070 Ti             |  16 | 87.9   |  896 | 0.17  | =                   | -
RTX 5070                |  12 | 61.7   |  672 | 0.13  | =                   | -
RTX 5060 Ti 8GB         |   8 | 47.4   |  448 | 0.09  | RTX 5060 Ti         | -
RTX 5060 Ti 16GB        |  16 | 47.4   |  448 | 0.11  | RTX 5060 Ti         | -
RTX 5060                |   8 | 38.4   |  448 | 0.08  | =                   | -
RTX 4090                |  24 | 165.2  | 1008 | 0.35  | =                   | -
RTX 4090 48GB           |  48 | 165.2  | 1008 | 0.50  | RTX 4090            | -
RTX 4090D               |  24 | 147.1  | 1008 | 0.32  | =                   | -
RTX 4090D 48GB          |  48 | 147.1  | 1008 | 0.45  | RTX 4090D           | -
RTX 4090 Laptop         |  16 | ?      |  576 | 0.18  | RTX 4090 laptop     | rtx4090m
RTX 4080 Super          |  16 | 104.4  |  736 | 0.20  | RTX 4080S           | -
RTX 4080                |  16 | 97.5   |  717 | 0.19  | =                   | -
RTX 4080 Laptop         |  12 | ?      |  432 | 0.14  | RTX 4080 laptop     | rtx4080m
RTX 4070 Ti Super       |  16 | 88.2   |  672 | 0.16  | RTX 4070S Ti        | rtx4070tis
RTX 4070 Ti             |  12 | 80.2   |  504 | 0.14  | =                   | -
RTX 4070 Super          |  12 | 70.9   |  504 | 0.13  | RTX 4070S           | -
RTX 4070                |  12 | 58.3   |  504 | 0.11  | =                   | -
RTX 4070 Laptop         |   8 | ?      |  256 | 0.08  | RTX 4070 laptop     | rtx4070m
RTX 4060 Ti 8GB         |   8 | 44.1   |  288 | 0.08  | RTX 4060 Ti         | -
RTX 4060 Ti 16GB        |  16 | 44.1   |  288 | 0.10  | RTX 4060 Ti         | -
RTX 4060                |   8 | 30.2   |  272 | 0.07  | =                   | -
RTX 4060 Laptop         |   8 | ?      |  256 | 0.06  | RTX 4060 laptop     | rtx4060m
RTX 3090 Ti             |  24 | 80     | 1008 | 0.20  | =                   | -
RTX 3090                |  24 | 71     |  936 | 0.17  | =                   | -
RTX 3080 Ti             |  12 | 68.2   |  912 | 0.12  | =                   | -
RTX 3080 10GB           |  10 | 59.5   |  760 | 0.10  | RTX 3080            | -
RTX 3080 12GB           |  12 | 61.3   |  912 | 0.11  | RTX 3080            | -
RTX 3080 Laptop 8GB     |   8 | ?      |  448 | 0.07  | RTX 3080 laptop     | rtx3080m
RTX 3080 Laptop 16GB    |  16 | ?      |  448 | 0.09  | RTX 3080 laptop     | rtx3080m
RTX 3070 Ti             |   8 | 43.5   |  608 | 0.08  | =                   | -
RTX 3070                |   8 | 40.6   |  448 | 0.07  | =                   | -
RTX 3070 Laptop         |   8 | ?      |  448 | 0.06  | RTX 3070 laptop     | rtx3070m
RTX 3060 Ti             |   8 | 32.4   |  448 | 0.07  | =                   | -
RTX 3060                |  12 | 25.5   |  360 | 0.07  | =                   | -
RTX 3060 8GB            |   8 | 25.5   |  240 | 0.06  | RTX 3060            | -
RTX 3060 Laptop         |   6 | ?      |  336 | 0.05  | RTX 3060 laptop     | rtx3060m
RTX 3050                |   8 | 18.2   |  224 | 0.05  | =                   | -
RTX 3050 6GB            |   6 | 13.5   |  168 | 0.04  | RTX 3050            | -
RTX 2080 Ti             |  11 | 53.8   |  616 | 0.09  | =                   | -
RTX 2080 Ti 22GB        |  22 | 53.8   |  616 | 0.14  | RTX 2080 Ti         | -
RTX 2080 Super          |   8 | 44.6   |  496 | 0.07  | RTX 2080S           | -
RTX 2080                |   8 | 40.3   |  448 | 0.06  | =                   | -
RTX 2070 Super          |   8 | 36.2   |  448 | 0.06  | RTX 2070S           | -
RTX 2070                |   8 | 29.9   |  448 | 0.05  | =                   | -
RTX 2060 Super          |   8 | 28.7   |  448 | 0.05  | RTX 2060S           | -
RTX 2060                |   6 | 25.8   |  336 | 0.05  | =                   | -
RTX 2060 12GB           |  12 | 28.7   |  336 | 0.05  | RTX 2060            | -
GTX 1660 Ti             |   6 | 10.9   |  288 | 0.04  | =                   | -
GTX 1660 Super          |   6 | 10     |  336 | 0.04  | GTX 1660 S          | -
GTX 1660                |   6 | 10     |  192 | 0.04  | =                   | -
GTX 1650 Ti             |   4 | ?      |  192 | 0.03  | =                   | -
GTX 1650 Super          |   4 | 8.8    |  192 | 0.03  | GTX 1650 S          | -
GTX 1650                |   4 | 6      |  128 | 0.03  | =                   | -
GTX 1080 Ti             |  11 | 11.3   |  484 | 0.06  | =                   | -
GTX 1080                |   8 | 8.9    |  320 | 0.05  | =                   | -
GTX 1070 Ti             |   8 | 8.2    |  256 | 0.04  | =                   | -
GTX 1070                |   8 | 6.5    |  256 | 0.04  | =                   | -
GTX 1060 3GB            |   3 | 3.9    |  192 | 0.02  | GTX 1060            | -
GTX 1060 5GB            |   5 | 4.4    |  160 | 0.03  | GTX 1060            | -
GTX 1060 6GB            |   6 | 4.4    |  192 | 0.03  | GTX 1060            | -
GTX 1050 Ti             |   4 | 2.1    |  112 | 0.02  | =                   | -
GTX 1050                |   2 | 1.9    |  112 | 0.02  | =                   | -
GTX 1050 3GB            |   3 | 2.3    |   84 | 0.02  | GTX 1050            | -
GTX 980 Ti              |   6 | 6.1    |  336 | 0.03  | GeForce 980 Ti      | -
GTX 980                 |   4 | 5      |  224 | 0.03  | GeForce 980         | -
GTX 970                 |   4 | 3.9    |  224 | 0.02  | GeForce 970         | -
GTX 960                 |   2 | 2.4    |  112 | 0.02  | GeForce 960         | -
GTX 960 4GB             |   4 | 2.4    |  112 | 0.02  | GeForce 960         | -
GTX 750 Ti              |   2 | 1.3    |   86 | 0.02  | =                   | -
GT 1030                 |   2 | 1.1    |   48 | 0.01  | =                   | -
MX150                   |   2 | 1.1    |   48 | 0.01  | =                   | -
Titan RTX               |  24 | 130.5  |  672 | 0.20  | =                   | -
Titan V                 |  12 | 110    |  653 | 0.14  | =                   | -
Titan V CEO             |  32 | ?      |    ? | 0.20  | TITAN V CEO         | Titan V CEO Edition
Titan Xp                |  12 | 12.1   |  548 | 0.06  | =                   | -
Titan X                 |  12 | 11     |  480 | 0.05  | =                   | Titan X Pascal
GTX Titan X             |  12 | 6.7    |  336 | 0.04  | GTX TITAN X         | -
RTX 6000 Ada            |  48 | 364.2  |  960 | 0.60  | RTX 6000Ada         | -
RTX 5880 Ada            |  48 | 277.2  |  960 | 0.50  | RTX 5880Ada         | -
RTX 5000 Ada            |  32 | 261.1  |  576 | 0.40  | RTX 5000Ada         | -
RTX 4500 Ada            |  24 | 158.5  |  432 | 0.28  | RTX 4500Ada         | -
RTX 4000 Ada            |  20 | 106.9  |  360 | 0.20  | RTX 4000Ada         | -
RTX 4000 SFF Ada        |  20 | 76.7   |  280 | 0.18  | -                   | rtx4000sada
RTX 2000 Ada            |  16 | 48     |  224 | 0.12  | RTX 2000Ada         | -
RTX 2000E Ada           |  16 | ?      |  224 | 0.11  | -                   | -
RTX A6000               |  48 | 154.8  |  768 | 0.42  | =                   | -
RTX A5500               |  24 | 136.4  |  768 | 0.25  | =                   | -
RTX A5000               |  24 | 111.1  |  768 | 0.20  | =                   | -
RTX A4500               |  20 | 94.6   |  640 | 0.17  | =                   | -
RTX A4000               |  16 | 76.7   |  448 | 0.11  | =                   | -
RTX A2000 6GB           |   6 | 31.9   |  288 | 0.06  | RTX A2000           | -
RTX A2000 12GB          |  12 | 31.9   |  288 | 0.07  | RTX A2000           | -
Quadro RTX 8000         |  48 | 130.5  |  672 | 0.25  | Q RTX 8000          | RTX 8000
Quadro RTX 6000         |  24 | 130.5  |  672 | 0.18  | Q RTX 6000          | RTX 6000
Quadro RTX 5000         |  16 | 89.2   |  448 | 0.12  | Q RTX 5000          | RTX 5000
Quadro RTX 4000         |   8 | 57     |  416 | 0.08  | Q RTX 4000          | RTX 4000
Quadro GV100            |  32 | 118.5  |  870 | 0.20  | =                   | -
Quadro GP100            |  16 | 20.7   |  717 | 0.08  | =                   | -
Quadro P6000            |  24 | 12     |  432 | 0.08  | =                   | -
Quadro P5000            |  16 | 8.9    |  288 | 0.05  | =                   | -
Quadro P4000            |   8 | 5.3    |  243 | 0.04  | =                   | -
Quadro P2000            |   5 | 3      |  140 | 0.02  | =                   | -
Quadro M4000            |   8 | 2.6    |  192 | 0.02  | =                   | -
Quadro K2200            |   4 | 1.4    |   80 | 0.01  | =                   | -
Quadro K620             |   2 | 0.9    |   29 | 0.01  | =                   | -
CMP 170HX               |   8 | ?      | 1493 | 0.05  | =                   | -
CMP 50HX                |  10 | ?      |  560 | 0.04  | =                   | -
P106-100                |   6 | 4.4    |  192 | 0.02  | =                   | -
P104-100                |   4 | 6.7    |  320 | 0.03  | =                   | -
MI355X                  | 288 | 2516   | 8000 | 3.00  | InstinctMI355X      | -
MI325X                  | 256 | 1307.4 | 6000 | 2.00  | InstinctMI325X      | -
MI300X                  | 192 | 1307.4 | 5300 | 1.60  | InstinctMI300X      | -
MI250X                  | 128 | 383    | 3277 | 0.90  | InstinctMI250X      | -
MI210                   |  64 | 181    | 1638 | 0.50  | InstinctMI210       | -
MI100                   |  32 | 184.6  | 1229 | 0.30  | InstinctMI100       | -
MI60                    |  32 | 29.5   | 1024 | 0.15  | InstinctMI60        | -
MI50                    |  16 | 26.5   | 1024 | 0.10  | InstinctMI50        | -
MI50 32GB               |  32 | 26.5   | 1024 | 0.12  | InstinctMI50        | -
PRO W7900               |  48 | 122.6  |  864 | 0.40  | =                   | W7900
PRO W7800               |  32 | 90.5   |  576 | 0.25  | =                   | W7800
PRO W6800               |  32 | 35.7   |  512 | 0.15  | =                   | W6800
Pro V620                |  32 | 40.6   |  512 | 0.15  | =                   | V620
Radeon Pro VII          |  16 | 26.1   | 1024 | 0.08  | =                   | -
Radeon VII              |  16 | 26.9   | 1024 | 0.08  | =                   | -
RX 9070 XT              |  16 | 195    |  640 | 0.16  | =                   | -
RX 7900 XTX             |  24 | 122.8  |  960 | 0.22  | =                   | -
RX 7900 XT              |  20 | 103.2  |  800 | 0.18  | =                   | -
RX 7900 GRE             |  16 | 92     |  576 | 0.14  | =                   | -
RX 7800 XT              |  16 | 74.7   |  624 | 0.12  | =                   | -
RX 7700 XT              |  12 | 70.3   |  432 | 0.10  | =                   | -
RX 7600                 |   8 | 43.5   |  288 | 0.07  | =                   | -
RX 6950 XT              |  16 | 47.3   |  576 | 0.10  | =                   | -
RX 6900 XT              |  16 | 46.1   |  512 | 0.10  | =                   | -
RX 6800 XT              |  16 | 41.5   |  512 | 0.09  | =                   | -
RX 6800                 |  16 | 32.3   |  512 | 0.08  | =                   | -
"""

# `rtx6000` alone is the Turing card on Akash, and the Ada card where 48 GB stand beside it.
_ONLY_WITH_MEMORY = {
    "rtx6000": "RTX 6000 Ada",
    "rtx5000": "RTX 5000 Ada",
    "rtx4000": "RTX 4000 Ada",
}

_SIZE = re.compile(r"\b(\d{1,3}) ?g(?:i?b)?\b")
_SIZE_AT_END = re.compile(r" (\d+)GB$")
_FORM_FACTOR = re.compile(r" (?:PCIe|SXM\d?|NVL|WS|S|Max-Q)$")
_BRAND = re.compile(r"^(?:RTX|GTX) (?=\d|A\d)")
_REWRITES = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\bgh200 480 ?gb\b", "gh200"),  # the driver counts the processor's memory into the name
        (r"[\u2122\u00ae]|\((?:tm|r)\)", " "),
        (r"[^a-z0-9]+", " "),
        (r"\binstinct", " "),
        (r"\bmax q workstation\b", "maxq"),
        (r"\bworkstation\b", "ws"),
        (r"\bserver\b", "s"),
        (r"super\b", "s"),
        (r"\b(?:laptop|mobile|notebook)\b", "laptop"),
        (r"\bsxm ?\d\b|\bsxm\b", "sxm"),
        (r"\b(?:quadro|q) ?(?=rtx ?\d)", "q"),
        (r"\b(?:hbm\d?e?|gddr\d?x?)\b", " "),
        (r"\b(?:nvidia|amd|ati|geforce|tesla|radeon|quadro|gpu|graphics)\b", " "),
        (r"\b(?:blackwell|generation|edition|corporation)\b", " "),
    )
)


class Gpu(msgspec.Struct, frozen=True):
    """One model of GPU: what we call it, and what is published about it."""

    model: str
    """Canonical name; ends in its memory (`A100 SXM4 80GB`) where one name is sold with several."""
    family: str
    """What people mean when they leave the form factor and memory out: `A100`, `RTX 4090`."""
    vram_gib: float
    """Per GPU, as sold: 24 where the driver reports 24,564 MB."""
    tflops: float | None
    """Dense FP16/BF16 tensor TFLOPS as published; None where unknown (laptops: power decides)."""
    bandwidth_gb_s: float | None
    """Memory bandwidth as published."""
    reference_usd_per_hour: float | None
    """A fixed price per GPU-hour to measure prices against where the user named no budget.

    A scale, not a forecast: set in 2026-11 by the order of magnitude of what the marketplaces
    asked, and never adjusted to the offers at hand, so that an offer's score depends on no other.
    """


class _Entry(NamedTuple):
    gpu: Gpu
    base: str
    """The model's name without its memory; cards of one base differ in memory alone."""
    sold: tuple[str, ...]


class _Catalog(NamedTuple):
    by_model: dict[str, _Entry]
    by_key: dict[str, list[_Entry]]
    """Squashed spelling to the cards that are sold under it, in the table's order."""
    by_family: dict[str, list[_Entry]]
    """Squashed family to its cards, in the table's order."""


def canonical(
    sold_name: str, vram_mb: float | None = None, interface: str | None = None
) -> Gpu | None:
    """Return the GPU that a market, a driver or a person means by a name; None where unknown.

    `vram_mb` is what the driver reports per GPU (or GiB x 1024) and separates cards of one name;
    what cannot be (zero and less, a terabyte) counts as not told. Memory that no card of that name
    is sold with makes a model of its own (`RTX 3080 20GB`) with the same chip. Where nothing tells
    the cards of a name apart, the answer is the one that promises least: `A100` alone is the 40 GB
    PCIe card.
    `interface` (`pcie`, `SXM5`) is used only where the name has no form factor of its own.
    """
    return _resolve(sold_name, vram_mb, interface)


def wanted(text: str, field: str = "gpu") -> tuple[str, ...]:
    """Return the canonical models that a user's word stands for, in the catalogue's order.

    `A100` stands for every A100, `A100 80GB` for those with that memory, `RTX4090` for the 24 GB
    card alone: a variant with odd memory must be asked for with its memory.

    Raises:
        UnknownGpu: no such model; carries the three nearest names. `field` says what was set.
    """
    catalog = _catalog()
    key, size_gib, bus = _squash(text)
    entries = catalog.by_family.get(key) or catalog.by_key.get(key, [])
    if bus:
        entries = [entry for entry in entries if _bus(entry.base) == bus]
    if size_gib is not None:
        fitting = [entry for entry in entries if _fits(entry.gpu, size_gib * 1024)]
        if not fitting and any(0.25 <= size_gib / e.gpu.vram_gib <= 4 for e in entries):
            odd = canonical(text)
            return (odd.model,) if odd else ()
        entries = fitting
    else:
        plain = {entry.base for entry in entries if entry.gpu.model == entry.base}
        entries = [e for e in entries if e.gpu.model == e.base or e.base not in plain]
    if entries:
        return tuple(entry.gpu.model for entry in entries)
    if model := _called(text):
        return (model,)
    raise UnknownGpu(field, text, _nearest(key))


def one(text: str, field: str = "gpu") -> str:
    """Return the one canonical model that a user's word stands for.

    Raises:
        UnknownGpu: as `wanted`. BadInput: it stands for several; they are named.
    """
    meant = wanted(text, field)
    if len(meant) == 1:
        return meant[0]
    if (model := _called(text)) in meant:  # some are called what their whole family is called
        return model
    raise BadInput(field, text, f"stands for several models: {', '.join(meant)}; name one")


def sold_names(model: str) -> tuple[str, ...]:
    """Return the Vast.ai spellings that may carry a canonical model, for a search filter.

    Two models can share a spelling (both A100 PCIe cards), so every hit must be told apart by its
    memory again. Empty where Vast.ai does not sell the model under a name of its own. A model that
    is not in the catalogue is its own spelling: offers of it carry the provider's name.
    """
    catalog = _catalog().by_model
    gpu = canonical(model)
    if gpu is None:
        return (model,)
    if gpu.model in catalog:
        return catalog[gpu.model].sold
    base = _SIZE_AT_END.sub("", gpu.model)
    return next(entry.sold for entry in catalog.values() if entry.base == base)


@cache
def models() -> tuple[Gpu, ...]:
    """Return every GPU of the catalogue, in its order: by vendor and line, newest first."""
    return tuple(entry.gpu for entry in _catalog().by_model.values())


@lru_cache(maxsize=8192)
def _resolve(sold_name: str, vram_mb: float | None, interface: str | None) -> Gpu | None:
    catalog = _catalog()
    key, size_gib, bus = _squash(sold_name)
    family = catalog.by_family.get(key, [])
    entries = catalog.by_key.get(key) or family
    if wanted_bus := _bus(interface) or bus:
        entries = [e for e in family if _bus(e.base) == wanted_bus] or entries
    if not entries:
        return None
    told = vram_mb if vram_mb and 0 < vram_mb < _TOO_LARGE_MB else (size_gib or 0) * 1024
    if not told:
        return entries[0].gpu
    if key in _ONLY_WITH_MEMORY:
        entries = [*entries, catalog.by_model[_ONLY_WITH_MEMORY[key]]]
    whole_gib = max(1, round(told / 1024))
    for size_mb in (told, whole_gib * 1024):  # a new name must not round to a card that exists
        fitting = [entry.gpu for entry in entries if _fits(entry.gpu, size_mb)]
        if fitting:
            return min(fitting, key=lambda gpu: abs(told / 1024 - gpu.vram_gib))
    return _with_memory(entries[0], whole_gib)


def _with_memory(entry: _Entry, vram_gib: int) -> Gpu:
    """The same chip with memory that it is not sold with: rebuilt cards, slices, new variants."""
    model = f"{entry.base} {vram_gib}GB"
    return msgspec.structs.replace(entry.gpu, model=model, vram_gib=float(vram_gib))


def _called(text: str) -> str | None:
    """Return the model of exactly this name, but for case and spaces: `TeslaP40`."""
    plain = "".join(text.lower().split())
    named = (model for model in _catalog().by_model if "".join(model.lower().split()) == plain)
    return next(named, None)


def _fits(gpu: Gpu, vram_mb: float) -> bool:
    return _LEAST <= vram_mb / (gpu.vram_gib * 1024) <= _MOST


def _bus(text: str | None) -> str:
    lowered = (text or "").lower()
    return "sxm" if "sxm" in lowered else "pcie" if "pcie" in lowered else ""


def _squash(name: str) -> tuple[str, float | None, str]:
    """Reduce a spelling to (key, GiB in the name if any, bus that the memory's kind gives away)."""
    text = name.lower()
    # HBM3 was only ever put on the H100 that sits on a board; its PCIe sister has HBM2e.
    bus = "sxm" if re.search(r"\bh100\b.*\bhbm3\b", text) else ""
    for pattern, by in _REWRITES:
        text = pattern.sub(by, text)
    size = _SIZE.search(text)
    if size:
        text = text[: size.start()] + " " + text[size.end() :]
    return re.sub(r"[^a-z0-9]+", "", text), float(size[1]) if size else None, bus


def _nearest(key: str) -> tuple[str, ...]:
    """The three known models whose spellings are closest to a squashed name, best first."""
    number = "".join(filter(str.isdigit, key))
    scores: dict[str, float] = {}
    for near, entries in _catalog().by_key.items():
        score = difflib.SequenceMatcher(None, near, key).ratio()
        if number and number == "".join(filter(str.isdigit, near)):
            score += 0.3  # `RTX 4090 Ti` is closer to the RTX 4090 than to the RTX 4070 Ti
        model = entries[0].gpu.model
        scores[model] = max(score, scores.get(model, 0.0))
    close = [model for model, score in scores.items() if score >= 0.5]
    return tuple(sorted(close, key=lambda model: (-scores[model], model))[:3])


@cache
def _catalog() -> _Catalog:
    catalog = _Catalog({}, {}, {})
    for line in _TABLE.strip().splitlines()[1:]:
        model, vram, tflops, bandwidth, usd, sold, others = (
            cell.strip() for cell in line.split("|")
        )
        base = _SIZE_AT_END.sub("", model)
        family = _FORM_FACTOR.sub("", base)
        gpu = Gpu(model, family, float(vram), _number(tflops), _number(bandwidth), _number(usd))
        entry = _Entry(gpu, base, (model,) if sold == "=" else _names(sold))
        catalog.by_model[model] = entry
        spellings = {base, _BRAND.sub("", base), *entry.sold, *_names(others)}
        for key in {_squash(spelling)[0] for spelling in spellings}:
            catalog.by_key.setdefault(key, []).append(entry)
        for key in {_squash(family)[0], _squash(_BRAND.sub("", family))[0]}:
            catalog.by_family.setdefault(key, []).append(entry)
    return catalog


def _names(cell: str) -> tuple[str, ...]:
    return () if cell == "-" else tuple(name.strip() for name in cell.split(","))


def _number(cell: str) -> float | None:
    return None if cell == "?" else float(cell)
