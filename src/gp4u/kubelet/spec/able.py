"""Which markets can run a workload at all, told before one is asked.

Hides what each part of a workload takes. Without this the best offer would be taken, refused by its
market, and the next one, one by one; and nobody would be told that no market can. Pure. Bounds of
one market alone (how long, how many) are told by its adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Final

from msgspec.structs import replace

from gp4u.kubelet.spec.admission import UNSUPPORTED, Refusal
from gp4u.model import Demand, Port, Protocol, Workload
from gp4u.providers.contract import Ability

_NEEDS: Final = {
    Ability.MULTI_CONTAINER: "runs several containers on one machine",
    Ability.FILES: "brings files, makes directories or runs commands first",
    Ability.ENTRYPOINT: "replaces the image's entrypoint (command)",
    Ability.COMMAND: "passes args to the image",
    Ability.REGISTRY_LOGIN: "pulls images that are not public",
    Ability.UDP: "publishes UDP ports",
    Ability.MANY_PORTS: "publishes more than one port",
    Ability.PORTS: "publishes ports",
}
"""What a workload can need to what a market does that has it."""


def among_able(
    demand: Demand, workload: Workload, abilities: Mapping[str, Ability], *, inside: bool
) -> Demand | Refusal:
    """Return a demand for those markets only that can do all that a workload needs.

    `abilities`: slug to what the market can. `inside`: commands have to be run in the machine, by
    one way or the other.
    """
    needs = needs_of(workload)

    def gets_in(can: Ability) -> bool:
        return not inside or bool(can & (Ability.EXEC | Ability.SHELL))

    able = tuple(slug for slug, can in abilities.items() if needs in can and gets_in(can))
    if len(able) == len(abilities):
        return demand
    wished = demand.requirements.providers
    left = tuple(slug for slug in wished or able if slug in able)
    if left:
        wanted = replace(demand.requirements, providers=left)
        return replace(demand, requirements=wanted)
    among = [slug for slug in wished or abilities if slug in abilities]
    lacking = [
        told
        for need, told in _NEEDS.items()
        if need in needs and not any(need in abilities[slug] for slug in among)
    ]
    if not any(gets_in(abilities[slug]) for slug in among):
        lacking.append("runs commands inside, as an exec probe wants")
    told = "; and none ".join(lacking) or "does all that this pod needs at once"
    return Refusal(UNSUPPORTED, f"none of {', '.join(among)} {told}")


def needs_of(workload: Workload) -> Ability:
    """Return what a market must be able to do for a workload."""
    ports = all_ports(workload)
    around = workload.files or workload.directories or workload.before or workload.working_dir
    entrypoints = (workload.entrypoint, *(each.entrypoint for each in workload.beside))
    commands = (workload.command, *(each.command for each in workload.beside))
    needs = {
        Ability.MULTI_CONTAINER: bool(workload.beside),
        Ability.FILES: bool(around),
        Ability.ENTRYPOINT: any(entrypoints),
        Ability.COMMAND: any(commands),
        Ability.REGISTRY_LOGIN: workload.login is not None,
        Ability.UDP: any(port.protocol is Protocol.UDP for port in ports),
        Ability.MANY_PORTS: len(ports) > 1,
        Ability.PORTS: bool(ports),
    }
    wanted = (ability for ability, needed in needs.items() if needed)
    return reduce(Ability.__or__, wanted, Ability.NONE)


def all_ports(workload: Workload) -> tuple[Port, ...]:
    """Return what a machine publishes, for all of its containers."""
    return (*workload.ports, *(port for each in workload.beside for port in each.ports))
