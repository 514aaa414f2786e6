"""GP4U: every GPU marketplace as one pool.

What a library user needs is here by name, and loaded only when it is asked for: `import gp4u` is
what a shell waits for on every `gp4u --help`.
"""

TYPE_CHECKING = False  # what `typing` calls so, without the milliseconds that it takes to load
if TYPE_CHECKING:
    from gp4u.app import open_app
    from gp4u.model import Demand, Offer, Requirements, Workload
    from gp4u.providers.balance import Balancer
    from gp4u.providers.contract import Ability, Provider, ProviderSpec, Query
    from gp4u.providers.custom.provider import BaseProvider
    from gp4u.providers.opening import Opening
    from gp4u.providers.registry import Registry, get_provider_registry

__version__ = "0.1.0"

__all__ = [
    "Ability",
    "Balancer",
    "BaseProvider",
    "Demand",
    "Offer",
    "Opening",
    "Provider",
    "ProviderSpec",
    "Query",
    "Registry",
    "Requirements",
    "Workload",
    "get_provider_registry",
    "open_app",
]

_HOME = {
    "Ability": "gp4u.providers.contract",
    "Balancer": "gp4u.providers.balance",
    "BaseProvider": "gp4u.providers.custom.provider",
    "Demand": "gp4u.model",
    "Offer": "gp4u.model",
    "Opening": "gp4u.providers.opening",
    "Provider": "gp4u.providers.contract",
    "ProviderSpec": "gp4u.providers.contract",
    "Query": "gp4u.providers.contract",
    "Registry": "gp4u.providers.registry",
    "Requirements": "gp4u.model",
    "Workload": "gp4u.model",
    "get_provider_registry": "gp4u.providers.registry",
    "open_app": "gp4u.app",
}
"""Name to the module that it is loaded from."""


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
