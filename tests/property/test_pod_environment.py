"""Laws of what reaches a machine: texts arrive as they were written, whatever is in them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gp4u.kubelet.spec.admission import Refusal, notices_of, refusal_of
from gp4u.kubelet.spec.annotations import wish_of
from gp4u.kubelet.spec.environment import Addresses, expand
from gp4u.kubelet.spec.references import Found
from gp4u.kubelet.spec.workload import Prepared, prepared
from gp4u.model import Workload
from gp4u.providers.bootstrap import script
from tests.unit.kubelet.objects import MARKETS, POLICY, config_map, container, found, pod, secret

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
"""Any text that JSON can carry."""
TANGLED = st.lists(
    st.sampled_from(("$", "$$", "$(", "$(A)", "$(B_1)", "(", ")", "A", "{", "\n", "\u00e4", '"')),
    max_size=12,
).map("".join)
UNHURRIED = settings(deadline=None)
"""A loaded machine is no finding."""
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True)


def by_hand(text: str, env: Mapping[str, str]) -> str:
    """Expand a text one character after the other, as the documentation tells it."""
    done, rest = "", text
    while rest:
        if rest.startswith("$$"):
            done, rest = f"{done}$", rest[2:]
            continue
        if rest.startswith("$(") and ")" in rest:
            name = rest[2 : rest.index(")")]
            whole = f"$({name})"
            done, rest = done + env.get(name, whole), rest[len(whole) :]
            continue
        done, rest = done + rest[0], rest[1:]
    return done


@UNHURRIED
@given(text=TANGLED | TEXTS, env=st.dictionaries(st.sampled_from(("A", "B_1", "")) | TEXTS, TEXTS))
def test_expansion_agrees_with_its_definition(text: str, env: dict[str, str]) -> None:
    """One pass, left to right: what is put in is not looked at again."""
    assert expand(text, env) == by_hand(text, env)


@UNHURRIED
@given(text=TEXTS)
def test_doubled_dollars_keep_any_text_as_it_is(text: str) -> None:
    """The way out that the documentation promises."""
    assert expand(text.replace("$", "$$"), {}) == text


def the_workload(body: dict[str, Any], known: Found | None = None) -> Workload:
    """Return what a pod's machine runs."""
    made = prepared(
        body,
        POLICY,
        wish_of(body, POLICY),
        known or Found(),
        abilities=MARKETS,
        addresses=Addresses(),
    )
    assert isinstance(made, Prepared)
    return made.machines[0].workload


@UNHURRIED
@given(values=st.dictionaries(NAMES, TEXTS, max_size=5), args=st.lists(TEXTS, max_size=5))
def test_values_and_arguments_arrive_as_they_were_written(
    values: dict[str, str], args: list[str]
) -> None:
    """S10: quotes, newlines and unicode are nobody's syntax on the way."""
    doubled = [arg.replace("$", "$$") for arg in args]
    env = [{"name": name, "value": text.replace("$", "$$")} for name, text in values.items()]
    workload = the_workload(pod(container(env=env, args=doubled)))
    assert workload.env == values
    assert workload.command == tuple(args)
    if not any("\0" in arg for arg in args):
        assert shlex.join(args) in script(workload)


@UNHURRIED
@given(values=st.dictionaries(NAMES, TEXTS, max_size=5))
def test_keys_of_objects_arrive_as_variables_and_as_files(values: dict[str, str]) -> None:
    """The same bytes by both ways, out of a ConfigMap and out of a Secret."""
    known = found(maps={"m": config_map(**values)}, secrets={"s": secret(**values)})
    volumes = [
        {"name": "m", "configMap": {"name": "m"}},
        {"name": "s", "secret": {"secretName": "s"}},
    ]
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in ("m", "s")]
    for source in ({"configMapRef": {"name": "m"}}, {"secretRef": {"name": "s"}}):
        of = container(envFrom=[source], volumeMounts=mounts)
        workload = the_workload(pod(of, volumes=volumes), known)
        assert workload.env == values
        assert {file.path: file.content for file in workload.files} == {
            f"/{name}/{key}": text.encode() for name in ("m", "s") for key, text in values.items()
        }


@UNHURRIED
@given(name=TEXTS, value=TEXTS)
def test_no_annotation_raises_anything_but_a_refusal(name: str, value: str) -> None:
    """Anybody who may create a pod writes them; a crash would take the pod's worker with it."""
    for known in (name, "max-price", "disk", "policy", "expose", "max-lifetime", "gpu-type"):
        body = pod(annotations={known: value})
        answer = refusal_of(body, POLICY)
        assert answer is None or isinstance(answer, Refusal)
        notices_of(body)
