"""How much it takes to speak to one more market: lines per adapter, and files for the example's.

An adapter is `adapter.py` in its market's folder: the file that one has to read to know what is
asked of a market, in which order, and what may go wrong. The median over the built-in markets is
bounded. The files beside it (wire types, errors, signing) are counted as well, for what they are:
they hold a market's dialect, and a market with a small one needs none.

The example is a market in a package of its own. Whatever it puts into the tree that it lives in
counts, but for packaging metadata, documentation and its test.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

MOST_LINES = 300
MOST_FILES = 3
ROOT = Path(__file__).parents[1]
MARKETS = ROOT / "src/gp4u/providers"
EXAMPLE = ROOT / "examples/acme-gpu"


def _lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def _adapters() -> bool:
    lines = {file.parent.name: _lines(file) for file in sorted(MARKETS.glob("*/adapter.py"))}
    beside = {
        slug: sum(_lines(file) for file in (MARKETS / slug).glob("*.py")) - own
        for slug, own in lines.items()
    }
    median = statistics.median(lines.values())
    ok = median <= MOST_LINES
    print(
        json.dumps(
            {
                "name": "lines per adapter",
                "ours": median,
                "unit": "lines, median",
                "bound": MOST_LINES,
                "ok": ok,
                "adapters": lines,
                "beside": beside,
            }
        )
    )
    return ok


def _example() -> bool:
    code = sorted((EXAMPLE / "src").rglob("*.py"))
    files = {str(file.relative_to(EXAMPLE)): _lines(file) for file in code if _lines(file)}
    ok = 0 < len(files) <= MOST_FILES
    print(
        json.dumps(
            {
                "name": "files to add the example market",
                "ours": len(files),
                "unit": "files",
                "bound": MOST_FILES,
                "ok": ok,
                "files": files,
            }
        )
    )
    return ok


def main() -> int:
    """Print each count as a line of JSON; 1 if one is over its bound."""
    oks = [_adapters(), _example()]
    return 0 if all(oks) else 1


if __name__ == "__main__":
    sys.exit(main())
