"""The suite that proves an adapter: subclass `ProviderContract`, give it a market, run pytest.

Names only: they are what an adapter's author imports. `docs/howto/test-an-adapter.md` shows how.
"""

from importlib.util import find_spec

if find_spec("pytest") is None:
    raise ImportError("gp4u.testing needs pytest, which GP4U does not bring along")

from gp4u.testing.contract import ProviderContract
from gp4u.testing.findings import ContractBroken
from gp4u.testing.inside import InsideContract
from gp4u.testing.troubles import Act, Held, Market, Trouble

__all__ = [
    "Act",
    "ContractBroken",
    "Held",
    "InsideContract",
    "Market",
    "ProviderContract",
    "Trouble",
]
