"""From a pod to what is rented for it: demands, and workloads that are complete.

Hides how containers become machines. Ordinarily there is one of each; several containers share a
machine where a market runs them side by side, or get one each where the pod asks for that and the
node allows it. Init containers become commands that run first in the machine's own container. All
that a workload needs is resolved here, before any money is spent: a pod that comes out of `prepare`
lacks nothing but a machine.

Who may run here at all is left to `admission.py`, what is asked of the markets to `annotations.py`;
what each market does with a workload is its adapter's.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from gp4u.desk.asking import IMAGE
from gp4u.errors import BadInput
from gp4u.kubelet.held import PodObject
from gp4u.kubelet.policy import NodePolicy
from gp4u.kubelet.probes.probing import unreachable_probe
from gp4u.kubelet.spec import admission
from gp4u.kubelet.spec.able import all_ports, among_able
from gp4u.kubelet.spec.admission import NORMAL, Notice, Refusal
from gp4u.kubelet.spec.annotations import Wish, wish_of
from gp4u.kubelet.spec.environment import Addresses, Env, environment, expand
from gp4u.kubelet.spec.pull_secrets import login_for
from gp4u.kubelet.spec.references import Found, Kind, Objects, Unresolved
from gp4u.kubelet.spec.resources import main_container
from gp4u.kubelet.spec.volumes import INVALID_MOUNT, Mounts, Volumes, is_empty_dir
from gp4u.model import (
    Container,
    Demand,
    File,
    Port,
    Protocol,
    RegistryLogin,
    Restart,
    Workload,
)
from gp4u.providers.contract import Ability

_RESTARTS: Final = {
    "Always": Restart.ALWAYS,
    "OnFailure": Restart.ON_FAILURE,
    "Never": Restart.NEVER,
}
_PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe")
_CALLS: Final = ("httpGet", "tcpSocket", "grpc")


class Machine(Struct, frozen=True, kw_only=True):
    """One machine to rent for a pod."""

    owner_suffix: str
    """Empty for the pod's only one, else the name of its container."""
    containers: tuple[str, ...]
    """Names of the app containers that run there, the one with the GPU first."""
    workload: Workload
    demand: Demand


class Prepared(Struct, frozen=True, kw_only=True):
    """A pod of which everything is resolved."""

    wish: Wish
    machines: tuple[Machine, ...]
    notices: tuple[Notice, ...] = ()


async def prepare(
    pod: PodObject,
    policy: NodePolicy,
    objects: Objects,
    *,
    abilities: Mapping[str, Ability],
    held_gpus: int = 0,
    host_ip: str | None = None,
    pod_ip: str | None = None,
    settled: bool = False,
    split: bool | None = None,
) -> Prepared | Unresolved | Refusal:
    """Return what to rent for a pod, what it still lacks, or why it can never run here.

    `abilities`: slug to what the market can, of those that may be rented from. `held_gpus`: what
    other pods of the node have taken. `host_ip` is the node's own where it is None. `settled`: the
    pod has its machine already, as after a restart of this process. Then nothing that was changed
    or deleted since speaks against it, and what comes out is not for renting by: prepare it anew
    for another machine. `split`: whether the machines that it has run one container each, which
    holds whatever the pod says by now; None: it has none.

    Raises:
        KubeError: the API server could not be asked; nothing is known, try again.
    """
    asking = pod
    if settled:
        try:
            asking, wish = _settled_wish(pod, policy)
        except BadInput as error:
            return Refusal(admission.INVALID, str(error))
    elif refusal := admission.refusal_of(pod, policy, held_gpus=held_gpus, abilities=abilities):
        return refusal
    else:
        wish = wish_of(pod, policy, markets=abilities)
    if split is not None:
        wish = replace(wish, split=split)
    found = await objects.read(
        pod,
        api_access=wish.api_access,
        service_variables=policy.service_variables,
        settled=settled,
    )
    if isinstance(found, Unresolved):
        return found
    addresses = Addresses(host_ip=host_ip or policy.address, pod_ip=pod_ip or "")
    return prepared(
        pod, policy, wish, found, abilities=abilities, addresses=addresses, asking=asking
    )


def prepared(
    pod: PodObject,
    policy: NodePolicy,
    wish: Wish,
    found: Found,
    *,
    abilities: Mapping[str, Ability],
    addresses: Addresses,
    asking: PodObject | None = None,
) -> Prepared | Unresolved | Refusal:
    """Do what `prepare` does, with what was read; pure. `asking` is the pod with those of its
    annotations that count; None: all do."""
    making = _Making(pod, policy, wish, found, addresses, asking or pod)
    if (problem := making.resolve()) is not None:
        return problem
    machines = making.machines()
    if isinstance(machines, Refusal):
        return machines
    if not found.settled:
        machines = _sought(pod, machines, abilities)
        if isinstance(machines, Refusal):
            return machines
    notices = (*admission.notices_of(pod), *making.notices, *_told_of_trust(wish))
    return Prepared(wish=wish, machines=machines, notices=tuple(dict.fromkeys(notices)))


def _sought(
    pod: PodObject, machines: Sequence[Machine], abilities: Mapping[str, Ability]
) -> tuple[Machine, ...] | Refusal:
    """Return machines that are sought only where they can do what the pod needs."""
    if unreachable := unreachable_probe(pod, published_by(machines)):
        return Refusal(admission.UNSUPPORTED, unreachable)
    sought = []
    for machine in machines:
        inside = _probes_inside(pod, machine)
        demand = among_able(machine.demand, machine.workload, abilities, inside=inside)
        if isinstance(demand, Refusal):
            return demand
        sought.append(replace(machine, demand=demand))
    return tuple(sought)


def _settled_wish(pod: PodObject, policy: NodePolicy) -> tuple[PodObject, Wish]:
    """Return the wish of a pod that has its machine, and the pod without the annotations that
    would be refused by now: they count for nothing."""
    about = pod["metadata"]
    said = dict(about.get("annotations") or {})
    while True:
        asking = {**pod, "metadata": {**about, "annotations": said}}
        try:
            return asking, wish_of(asking, policy)
        except BadInput as error:
            refused = [name for name in said if error.field == f"metadata.annotations[{name}]"]
            if not refused:
                raise
            said = {name: text for name, text in said.items() if name not in refused}


def ports_of(container: Mapping[str, Any]) -> tuple[Port, ...]:
    """Return what is published for a container: its ports, and those that its probes ask.

    A probe runs from outside, so what it asks has to be reachable from there.
    """
    found: dict[tuple[int, Protocol], Port] = {}
    for told in container.get("ports") or ():
        protocol = Protocol(str(told.get("protocol") or "TCP").lower())
        port = Port(int(told["containerPort"]), protocol, told.get("name"))
        found.setdefault((port.number, protocol), port)
    for number in _probed(container):
        found.setdefault((number, Protocol.TCP), Port(number))
    return tuple(found.values())


def published_by(machines: Sequence[Machine]) -> set[int]:
    """Return the container ports that machines publish by TCP."""
    workloads = [machine.workload for machine in machines]
    ports = [port for each in workloads for port in all_ports(each)]
    return {port.number for port in ports if port.protocol is Protocol.TCP}


class _Making:
    """One pod while its workloads are put together."""

    def __init__(
        self,
        pod: PodObject,
        policy: NodePolicy,
        wish: Wish,
        found: Found,
        addresses: Addresses,
        asking: PodObject,
    ) -> None:
        self._pod, self._asking, self._policy = pod, asking, policy
        self._wish, self._found = wish, found
        self._addresses = addresses
        self._envs: dict[str, Env] = {}
        self._volumes = Volumes(
            pod, found, addresses=addresses, policy=policy, api_access=wish.api_access
        )
        self.notices: list[Notice] = []

    @property
    def _spec(self) -> Mapping[str, Any]:
        spec: Mapping[str, Any] = self._pod["spec"]
        return spec

    def resolve(self) -> Unresolved | Refusal | None:
        """Resolve every environment and volume; return the first that cannot be."""
        for group in ("initContainers", "containers"):
            for container in self._spec.get(group) or ():
                env = environment(
                    self._pod,
                    container,
                    self._found,
                    addresses=self._addresses,
                    policy=self._policy,
                )
                if isinstance(env, Unresolved):
                    return env
                self._envs[container["name"]] = env
                self.notices.extend(env.notices)
        return self._volumes.gather() or self._shared_directory()

    def _shared_directory(self) -> Refusal | None:
        """Refuse an emptyDir of several app containers: none of them sees another's disk."""
        directories = {
            volume["name"] for volume in self._spec.get("volumes") or () if is_empty_dir(volume)
        }
        mounted: dict[str, str] = {}
        for container in self._spec["containers"]:
            for name in {mount["name"] for mount in container.get("volumeMounts") or ()}:
                other = mounted.setdefault(name, container["name"])
                if name in directories and other != container["name"]:
                    told = f"containers {other} and {container['name']} share {name!r}"
                    why = "each has a disk of its own on a rented machine"
                    return admission.cannot(
                        f"{self._where(container)}.volumeMounts", f"{told}; {why}"
                    )
        return None

    def machines(self) -> tuple[Machine, ...] | Refusal:
        """Return the machines of the pod, without regard to who can run them."""
        containers = self._spec["containers"]
        main = main_container(self._spec)
        groups = [[main, *(each for each in containers if each is not main)]]
        if self._wish.split:
            groups = [[each] for each in containers]
        made = []
        for group in groups:
            workload = self._workload(group)
            if isinstance(workload, Refusal):
                return workload
            demand = self._wish.demand
            if self._wish.split and len(containers) > 1:
                demand = wish_of(self._asking, self._policy, container=group[0]["name"]).demand
            ports = len(all_ports(workload))
            wanted = replace(demand.requirements, ports=ports, disk_gib=workload.disk_gib)
            machine = Machine(
                owner_suffix=group[0]["name"] if len(groups) > 1 else "",
                containers=tuple(each["name"] for each in group),
                workload=workload,
                demand=replace(demand, requirements=wanted),
            )
            made.append(machine)
        return tuple(made)

    def _workload(self, group: Sequence[Mapping[str, Any]]) -> Workload | Refusal:
        main = group[0]
        env = self._envs[main["name"]]
        around = self._around(main)
        if isinstance(around, Refusal):
            return around
        login = self._login(group)
        if isinstance(login, Refusal):
            return login
        beside = []
        for other in group[1:]:
            container = self._beside(other)
            if isinstance(container, Refusal):
                return container
            beside.append(container)
        return Workload(
            image=main["image"],
            entrypoint=_expanded(main.get("command"), env),
            command=_expanded(main.get("args"), env),
            env=env.values,
            ports=self._ports(main),
            disk_gib=self._wish.demand.requirements.disk_gib,
            beside=tuple(beside),
            before=around.before,
            files=around.files,
            directories=around.directories,
            working_dir=main.get("workingDir") or None,
            login=login,
            restart=_RESTARTS[self._spec.get("restartPolicy") or "Always"],
            shell=self._wish.exec or _has_exec_probe(main),
        )

    def _around(self, main: Mapping[str, Any]) -> _Around | Refusal:
        """Return what surrounds the program of a machine's own container."""
        where = self._where(main)
        mounts = self._volumes.mounts(main, where, self._envs[main["name"]].seen)
        if isinstance(mounts, Refusal):
            return mounts
        every = [(where, mounts)]
        before: list[tuple[str, ...]] = []
        for place, init in enumerate(self._spec.get("initContainers") or ()):
            field = f"spec.initContainers[{place}]"
            more = self._volumes.mounts(init, field, self._envs[init["name"]].seen)
            if isinstance(more, Refusal):
                return more
            every.append((field, more))
            before.append(self._first(init, main))
        self.notices.extend(notice for _, each in every for notice in each.notices)
        files = _together(every)
        if isinstance(files, Refusal):
            return files
        if (refusal := self._volumes.too_big(files)) is not None:
            return refusal
        directories = tuple(dict.fromkeys(path for _, each in every for path in each.directories))
        if not main.get("command"):
            if refusal := self._not_without_command(main, files):
                return refusal
            if directories:
                told = f"{where}.command is not given, so nothing makes {', '.join(directories)}"
                self.notices.append(Notice("EmptyDirNotMade", f"{told}: the image must have them"))
                directories = ()
        return _Around(files=files, directories=directories, before=tuple(before))

    def _not_without_command(
        self, main: Mapping[str, Any], files: Sequence[File]
    ) -> Refusal | None:
        """What stands around a program has to start it, so it has to know it."""
        why = "volumes bring files" if files else "workingDir is given"
        if files or main.get("workingDir"):
            return admission.cannot(f"{self._where(main)}.command", f"must be given where {why}")
        return None

    def _first(self, init: Mapping[str, Any], main: Mapping[str, Any]) -> tuple[str, ...]:
        """Return an init container as a command in the machine's own container, with its own
        environment and directory."""
        env, there = self._envs[init["name"]], self._envs[main["name"]].values
        words = (*_expanded(init.get("command"), env), *_expanded(init.get("args"), env))
        if init.get("workingDir") and init["workingDir"] != main.get("workingDir"):
            words = ("sh", "-c", 'cd "$0" && exec "$@"', init["workingDir"], *words)
        gone = [name for name in there if name not in env.values]
        other = [
            f"{name}={value}" for name, value in env.values.items() if there.get(name) != value
        ]
        if not gone and not other:
            return words
        return ("env", *(word for name in gone for word in ("-u", name)), "--", *other, *words)

    def _beside(self, container: Mapping[str, Any]) -> Container | Refusal:
        """Return a container that runs beside the first one, which alone can be given files."""
        where = self._where(container)
        env = self._envs[container["name"]]
        mounts = self._volumes.mounts(container, where, env.seen)
        if isinstance(mounts, Refusal):
            return mounts
        if mounts.files or mounts.directories:
            told = "only the first container of a machine can have volumes"
            return admission.cannot(f"{where}.volumeMounts", told)
        if container.get("workingDir"):
            told = "only the first container of a machine can have one"
            return admission.cannot(f"{where}.workingDir", told)
        return Container(
            name=container["name"],
            image=container["image"],
            entrypoint=_expanded(container.get("command"), env),
            command=_expanded(container.get("args"), env),
            env=env.values,
            ports=ports_of(container),
        )

    def _login(self, group: Sequence[Mapping[str, Any]]) -> RegistryLogin | Refusal | None:
        """Return the one login that the images of a machine need."""
        names = [each["name"] for each in self._spec.get("imagePullSecrets") or () if each]
        secrets = [(name, self._found.of(Kind.SECRET, name)) for name in names]
        logins: dict[RegistryLogin, str] = {}
        for container in group:
            if not re.fullmatch(IMAGE, container.get("image") or ""):
                told = f"{self._where(container)}.image: {container.get('image')!r} is no image"
                return Refusal("InvalidImageName", told)
            found = login_for(
                container["image"], secrets, namespace=self._pod["metadata"]["namespace"]
            )
            self.notices.extend(found.notices)
            if found.login is not None:
                logins.setdefault(found.login, container["name"])
        if len(logins) > 1:
            told = f"a machine takes one login, and {', '.join(logins.values())} need their own"
            return admission.cannot("spec.imagePullSecrets", told)
        return next(iter(logins), None)

    def _ports(self, main: Mapping[str, Any]) -> tuple[Port, ...]:
        """Return the ports of a machine's first container: its own, and on the pod's main machine
        what Services want that no container declares."""
        own = ports_of(main)
        if main["name"] != main_container(self._spec)["name"]:
            return own
        told = {
            port.number
            for each in self._spec["containers"]
            for port in ports_of(each)
            if port.protocol is Protocol.TCP
        }
        wanted = (each for each in self._wish.expose.services if each.port not in told)
        more = {each.port: Port(each.port, name=each.service) for each in wanted}
        return (*own, *more.values())

    def _where(self, container: Mapping[str, Any]) -> str:
        names = [each["name"] for each in self._spec["containers"]]
        return f"spec.containers[{names.index(container['name'])}]"


class _Around(Struct, frozen=True, kw_only=True):
    """What is done in a machine's own container before its program starts."""

    files: tuple[File, ...]
    directories: tuple[str, ...]
    before: tuple[tuple[str, ...], ...]


def _expanded(words: Sequence[str] | None, env: Env) -> tuple[str, ...]:
    return tuple(expand(word, env.seen) for word in words or ())


def _together(every: Sequence[tuple[str, Mounts]]) -> tuple[File, ...] | Refusal:
    """Return the files of containers that share one container's disk, each once."""
    files: dict[str, File] = {}
    places: list[tuple[str, str, str]] = []
    for where, mounts in every:
        for file in mounts.files:
            if files.setdefault(file.path, file) != file:
                told = f"{where}.volumeMounts: {file.path} is another file for the main container"
                return Refusal(INVALID_MOUNT, f"{told}, and both run in one")
        for mount in mounts.shared:
            other = next((each for each in places if not _agree(each, mount)), None)
            if other is not None:
                name, _, at = mount
                told = f"{where}.volumeMounts: {name!r} is at {at}, and at {other[2]} elsewhere"
                return Refusal(INVALID_MOUNT, f"{told}; both run in one container: use one path")
            places.append(mount)
    return tuple(files.values())


def _agree(one: tuple[str, str, str], other: tuple[str, str, str]) -> bool:
    """Tell whether two mounts show what they have in common of a volume at the same place."""
    (name, above, at), (of, below, there) = sorted((one, other), key=lambda each: len(each[1]))
    if name != of or (above and not f"{below}/".startswith(f"{above}/")):
        return True
    return posixpath.join(at, below[len(above) :].lstrip("/")).rstrip("/") == there


def _probed(container: Mapping[str, Any]) -> list[int]:
    """Return the ports that probes of a container name by number, on the machine itself."""
    calls = ((container.get(probe) or {}).get(call) or {} for probe in _PROBES for call in _CALLS)
    numbers = (call.get("port") for call in calls if not call.get("host"))
    return [number for number in numbers if isinstance(number, int)]


def _probes_inside(pod: PodObject, machine: Machine) -> bool:
    """Tell whether a probe of a machine's containers runs a command in it."""
    return any(
        container["name"] in machine.containers and _has_exec_probe(container)
        for container in pod["spec"]["containers"]
    )


def _has_exec_probe(container: Mapping[str, Any]) -> bool:
    return any("exec" in (container.get(probe) or {}) for probe in _PROBES)


def _told_of_trust(wish: Wish) -> tuple[Notice, ...]:
    notices = []
    if wish.raised_by_secrets:
        told = f"the pod references Secrets, so it goes to hosts of tier {wish.tier} only"
        notices.append(Notice("TrustRaisedBySecrets", told, NORMAL))
    if wish.api_access:
        told = "the token of its ServiceAccount is shipped to the machine, and is not refreshed"
        notices.append(Notice("ApiAccessShipped", told))
    return tuple(notices)
