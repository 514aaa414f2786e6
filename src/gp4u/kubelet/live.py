"""What the nodes go by, read again while they run: weights and preferences from two ConfigMaps.

The settings are the ground; a ConfigMap of weights and one with a `vast-provider-config.yaml` lie
above their defaults as a `GP4U_CONFIG` file would. What cannot be read is refused as a whole, with
an Event on the ConfigMap that says why, and the last good one stays in force (P11). How such texts
are validated is the settings' business: a function is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
import yaml
from msgspec.structs import replace

from gp4u.errors import BadInput, SettingsError
from gp4u.kube import paths
from gp4u.kube.watch import Informer
from gp4u.kubelet.policy import NodePolicy
from gp4u.model import Demand
from gp4u.telemetry import clean

if TYPE_CHECKING:
    from random import Random

    from gp4u.kube.client import KubeClient
    from gp4u.kube.events import EventRecorder

CRITERIA: Final = ("price", "performance", "gpu_match", "location", "availability")
PREFERENCES_KEY: Final = "vast-provider-config.yaml"
REFUSED: Final = "ConfigRefused"
APPLIED: Final = "ConfigApplied"

ConfigMapName = tuple[str, str]
"""(namespace, name)."""
Document = Mapping[str, Any]
"""A YAML mapping of preferences, decoded."""
Read = Callable[[Document], Demand]
"""Takes a document as a `GP4U_CONFIG` file holds it; returns what pods that say nothing get.

Raises `BadInput` or `SettingsError`.
"""


class LivePolicies:
    """The policy of each node, as the newest good ConfigMaps have it."""

    def __init__(
        self,
        client: KubeClient,
        policies: Mapping[str, NodePolicy],
        *,
        weights: ConfigMapName | None,
        preferences: ConfigMapName | None,
        read: Read,
        recorder: EventRecorder,
        random: Random,
    ) -> None:
        """`policies` is node to what the settings alone say."""
        self._policies = dict(policies)
        self._read, self._recorder = read, recorder
        self._places: dict[str, ConfigMapName] = {}
        if weights is not None:
            self._places["weights"] = weights
        if preferences is not None:
            self._places["preferences"] = preferences
        self._good: dict[str, Document] = {}
        self._seen: dict[str, str] = {}
        """Part to the version of the ConfigMap that was looked at last."""
        self.refused: dict[str, str] = {}
        """Part to why its newest ConfigMap is not in force."""
        self._informers = [
            Informer(
                client,
                paths.configmaps(namespace),
                params={"fieldSelector": f"metadata.name={name}"},
                random=random,
                on_change=self._changes(part),
            )
            for part, (namespace, name) in self._places.items()
        ]

    def policy(self, node: str) -> Callable[[], NodePolicy]:
        """Return what tells a node's policy at any time."""
        return lambda: self._policies[node]

    def listens(self, node: str, port: int) -> None:
        """Take note of the port that a node's kubelet API was given."""
        self._policies[node] = replace(self._policies[node], port=port)

    @property
    def informers(self) -> tuple[Informer, ...]:
        """What has to run for changes to be heard."""
        return tuple(self._informers)

    def _changes(
        self, part: str
    ) -> Callable[[Mapping[str, Any] | None, Mapping[str, Any] | None], None]:
        return lambda _old, new: self._changed(part, new)

    def _changed(self, part: str, new: Mapping[str, Any] | None) -> None:
        if new is None:
            self._good.pop(part, None)
            self._seen.pop(part, None)
            self.refused.pop(part, None)
            self._apply(self._good)
            return
        version = str(new["metadata"].get("resourceVersion", ""))
        if self._seen.get(part) == version:
            return
        self._seen[part] = version
        try:
            document = (weights_in if part == "weights" else preferences_in)(new.get("data") or {})
            self._read(document)  # by itself as well: the other one may be deleted
            wanted = {**self._good, part: document}
            self._apply(wanted)
        except (BadInput, SettingsError) as error:
            self.refused[part] = clean(str(error), 500)
            text = f"{self.refused[part]}; the last good one stays"
            self._recorder.tell(new, "Warning", REFUSED, text)
            self._log(part).warning("config_refused", error=self.refused[part])
            return
        self.refused.pop(part, None)
        self._good = wanted
        self._recorder.tell(new, "Normal", APPLIED, "read and in force")
        self._log(part).info("config_applied")

    def _log(self, part: str) -> Any:
        return structlog.get_logger().bind(configmap="/".join(self._places[part]))

    def _apply(self, parts: Mapping[str, Document]) -> None:
        """Put everything in force, or raise and change nothing."""
        document = {**parts.get("preferences", {}), **parts.get("weights", {})}
        demand = self._read(document)
        self._policies = {
            node: replace(policy, defaults=demand) for node, policy in self._policies.items()
        }


def weights_in(data: Mapping[str, str]) -> Document:
    """Return the weights of a ConfigMap: a key per criterion, or one YAML document.

    Raises:
        BadInput: it holds something else.
    """
    documents = [value for key, value in data.items() if key.endswith((".yaml", ".yml"))]
    found: Document = data
    if documents:
        found = _mapping(documents[0], "data")
        found = found.get("weights", found)
        if not isinstance(found, dict):
            raise BadInput("data.weights", str(found)[:80], "a YAML mapping")
    unknown = sorted(set(found) - set(CRITERIA), key=str)
    if unknown:
        bound = f"one of {', '.join(CRITERIA)}"
        raise BadInput(f"data.{unknown[0]}", str(found[unknown[0]])[:80], bound)
    weights: dict[str, float] = {}
    for name, value in found.items():
        try:
            weights[name] = msgspec.convert(value, float, strict=False)
        except msgspec.ValidationError:
            raise BadInput(f"data.{name}", str(value)[:80], "a number") from None
    return {"weights": weights} if weights else {}


def preferences_in(data: Mapping[str, str]) -> Document:
    """Return the preferences of a ConfigMap.

    Raises:
        BadInput: it holds no `vast-provider-config.yaml`, or one that is no mapping.
    """
    text = data.get(PREFERENCES_KEY)
    if text is None:
        raise BadInput("data", ", ".join(sorted(data))[:80], f"the key {PREFERENCES_KEY}")
    return _mapping(text, PREFERENCES_KEY)


def _mapping(text: str, field: str) -> Document:
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # e.g. 2026-13-45 is no date
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise BadInput(field, text[:40], f"valid YAML{where}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise BadInput(field, text[:40], "a YAML mapping")
    return document
