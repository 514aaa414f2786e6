"""From a pod to what is rented for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from gp4u.errors import KubeUnavailable
from gp4u.kubelet.policy import NodePolicy, Tier
from gp4u.kubelet.spec.admission import Refusal
from gp4u.kubelet.spec.annotations import wish_of
from gp4u.kubelet.spec.environment import Addresses
from gp4u.kubelet.spec.references import Found, Objects, Unresolved
from gp4u.kubelet.spec.workload import Machine, Prepared, prepare, prepared
from gp4u.model import Container, File, Port, Protocol, RegistryLogin, Restart, Workload
from gp4u.providers.contract import Ability
from tests.kube_api import KubeApi
from tests.unit.kubelet.objects import (
    EVERYTHING,
    MARKETS,
    POLICY,
    config_map,
    container,
    found,
    packed,
    pod,
    secret,
)

SPLITTING = replace(POLICY, allow_split=True)


def answer(
    body: dict[str, Any],
    known: Found | None = None,
    *,
    policy: NodePolicy = POLICY,
    abilities: Mapping[str, Ability] = MARKETS,
) -> Prepared | Unresolved | Refusal:
    """Return what becomes of a pod."""
    wish = wish_of(body, policy)
    here = Addresses(host_ip=policy.address)
    return prepared(body, policy, wish, known or Found(), abilities=abilities, addresses=here)


def ready(body: dict[str, Any], known: Found | None = None, **how: Any) -> Prepared:
    """Return a pod that lacks nothing."""
    made = answer(body, known, **how)
    assert isinstance(made, Prepared), made
    return made


def only(body: dict[str, Any], known: Found | None = None, **how: Any) -> Workload:
    """Return the workload of a pod with one machine."""
    (machine,) = ready(body, known, **how).machines
    assert machine.owner_suffix == ""
    return machine.workload


def refused(body: dict[str, Any], known: Found | None = None, **how: Any) -> str:
    """Return the message of a pod that can never run."""
    made = answer(body, known, **how)
    assert isinstance(made, Refusal), made
    return made.message


def test_a_container_becomes_a_workload_member_by_member() -> None:
    """What is dropped here silently runs wrong at somebody's cost."""
    of = container(
        "june",
        image="ozzu/june:1",
        command=["python", "-m", "serve"],
        args=["--model=$(MODEL)", "$$(MODEL)", 'it\'s "$HOME"\n\u00e4'],
        env=[{"name": "MODEL", "value": "base en"}],
        ports=[
            {"containerPort": 8001, "name": "stt"},
            {"containerPort": 5004, "protocol": "UDP"},
        ],
        workingDir="/srv",
    )
    assert only(pod(of, annotations={"disk": "40"}, restartPolicy="OnFailure")) == Workload(  # noqa: S604 - no process
        image="ozzu/june:1",
        entrypoint=("python", "-m", "serve"),
        command=("--model=base en", "$(MODEL)", 'it\'s "$HOME"\n\u00e4'),
        env={"MODEL": "base en"},
        ports=(Port(8001, Protocol.TCP, "stt"), Port(5004, Protocol.UDP)),
        disk_gib=40,
        working_dir="/srv",
        restart=Restart.ON_FAILURE,
        shell=True,
    )


@pytest.mark.parametrize(
    ("policy", "restart"),
    [("Always", Restart.ALWAYS), ("Never", Restart.NEVER), (None, Restart.ALWAYS)],
)
def test_the_restart_policy_is_the_pods(policy: str | None, restart: Restart) -> None:
    """Always is Kubernetes' own default."""
    assert only(pod(restartPolicy=policy)).restart is restart


def test_the_demand_has_the_ports_and_the_disk_of_the_workload() -> None:
    """An offer with one open port cannot run two Services."""
    body = pod(annotations={"expose": "june-stt:8001, june-tts:8000", "disk": "33"})
    (machine,) = ready(body).machines
    wanted = machine.demand.requirements
    assert (wanted.ports, wanted.disk_gib) == (2, 33)
    assert machine.workload.ports == (
        Port(8001, name="june-stt"),
        Port(8000, name="june-tts"),
    )
    assert ready(body).wish.demand.preferences == machine.demand.preferences


def test_an_exposed_port_that_is_declared_is_published_once() -> None:
    """Under the name that its container gives it, which Services look for."""
    of = container(ports=[{"containerPort": 8001, "name": "http"}])
    body = pod(of, annotations={"expose": "june-stt:8001"})
    assert only(body).ports == (Port(8001, Protocol.TCP, "http"),)


def test_ports_that_probes_ask_are_published() -> None:
    """A probe runs from outside; a port that is not open could never pass."""
    of = container(
        ports=[{"containerPort": 80, "name": "web"}],
        startupProbe={"httpGet": {"port": "web"}},
        livenessProbe={"tcpSocket": {"port": 9000}},
        readinessProbe={"grpc": {"port": 9001}},
    )
    assert only(pod(of)).ports == (Port(80, name="web"), Port(9000), Port(9001))
    elsewhere = container(readinessProbe={"httpGet": {"port": 1, "host": "example.com"}})
    assert only(pod(elsewhere)).ports == ()


def test_a_probe_of_a_port_that_there_is_not_is_refused() -> None:
    """It could never pass, so the pod would be paid for and never ready."""
    of = container(readinessProbe={"httpGet": {"port": "web"}})
    assert "'web'" in refused(pod(of))


def test_an_exec_probe_needs_a_market_that_lets_one_in() -> None:
    """And then somebody wants in, whatever the annotation says."""
    of = container(livenessProbe={"exec": {"command": ["true"]}})
    body = pod(of, annotations={"exec": "false"})
    able = {"vastai": EVERYTHING & ~Ability.EXEC, "render": EVERYTHING & ~(INSIDE)}
    (machine,) = ready(body, abilities=able).machines
    assert machine.demand.requirements.providers == ("vastai",)
    assert machine.workload.shell
    assert "exec probe" in refused(body, abilities={"render": EVERYTHING & ~(INSIDE)})


INSIDE = Ability.EXEC | Ability.SHELL


def test_nobody_wants_in_where_the_pod_says_so() -> None:
    """On some markets a way in costs a slower start, and a door is a door."""
    assert not only(pod(annotations={"exec": "false"})).shell


def test_init_containers_are_commands_that_come_first() -> None:
    """With their own variables, for they are told by `env` where they differ."""
    first = {
        "name": "fetch",
        "image": "ozzu/june:1",
        "command": ["fetch"],
        "args": ["$(WHAT)"],
        "env": [{"name": "WHAT", "value": "model one"}, {"name": "BOTH", "value": "2"}],
    }
    second = {**first, "name": "check", "env": [{"name": "BOTH", "value": "2"}], "args": []}
    of = container(env=[{"name": "BOTH", "value": "2"}, {"name": "MAIN", "value": "1"}])
    third = {**second, "name": "same", "env": of["env"], "workingDir": "/data"}
    assert only(pod(of, initContainers=[first, second, third])).before == (
        ("env", "-u", "MAIN", "--", "WHAT=model one", "fetch", "model one"),
        ("env", "-u", "MAIN", "--", "fetch"),
        ("sh", "-c", 'cd "$0" && exec "$@"', "/data", "fetch"),
    )


def test_volumes_are_files_and_directories_of_the_one_container() -> None:
    """What an init container mounts is there for it as well."""
    mounts = [
        {"name": "conf", "mountPath": "/etc/june"},
        {"name": "cache", "mountPath": "/cache"},
    ]
    first = {
        "name": "fetch",
        "image": "ozzu/june:1",
        "command": ["fetch"],
        "volumeMounts": [{"name": "key", "mountPath": "/key"}, *mounts],
    }
    volumes = [
        {"name": "conf", "configMap": {"name": "c"}},
        {"name": "key", "secret": {"secretName": "s", "defaultMode": 0o400}},
        {"name": "cache", "emptyDir": {}},
    ]
    body = pod(container(volumeMounts=mounts), initContainers=[first], volumes=volumes)
    known = found(maps={"c": config_map(a="A")}, secrets={"s": secret(k="K")})
    workload = only(body, known)
    assert workload.files == (
        File(path="/etc/june/a", content=b"A"),
        File(path="/key/k", content=b"K", mode=0o400),
    )
    assert workload.directories == ("/cache",)


def test_an_init_container_that_sees_the_disk_otherwise_is_refused() -> None:
    """Both run in one container, so one path cannot be two things."""
    volumes = [{"name": "work", "emptyDir": {}}]
    first = {
        "name": "fetch",
        "image": "ozzu/june:1",
        "command": ["fetch"],
        "volumeMounts": [{"name": "work", "mountPath": "/work"}],
    }
    of = container(volumeMounts=[{"name": "work", "mountPath": "/data"}])
    message = refused(pod(of, initContainers=[first], volumes=volumes))
    assert "spec.initContainers[0].volumeMounts" in message
    assert "/work" in message
    assert "/data" in message
    volumes = [{"name": "a", "configMap": {"name": "a"}}, {"name": "b", "configMap": {"name": "b"}}]
    first["volumeMounts"] = [{"name": "a", "mountPath": "/etc/x"}]
    of = container(volumeMounts=[{"name": "b", "mountPath": "/etc/x"}])
    known = found(maps={"a": config_map(k="1"), "b": config_map(k="2")})
    assert "/etc/x/k" in refused(pod(of, initContainers=[first], volumes=volumes), known)


@pytest.mark.parametrize(
    ("first", "main", "fits"),
    [
        ([("/m", "m")], [("/m", "m"), ("/c", "c")], True),
        ([("/c", "c"), ("/m", "m")], [("/m", "m"), ("/c", "c")], True),
        ([("/w", "")], [("/w/m", "m")], True),
        ([("/w", "")], [("/m", "m")], False),
        ([("/w", ""), ("/c", "c")], [("/m", "m"), ("/c", "c")], False),
        ([("/a", "b")], [("/a/b", "")], False),
        ([], [("/w", ""), ("/x", "")], False),
        ([("/m", "m")], [("/mm", "mm")], True),
    ],
)
def test_parts_of_a_directory_are_where_all_containers_of_a_machine_see_them(
    first: list[tuple[str, str]], main: list[tuple[str, str]], fits: bool
) -> None:
    """What one writes there the other has to find, whatever the order of the mounts."""

    def mounts(places: list[tuple[str, str]]) -> list[dict[str, str]]:
        return [{"name": "work", "mountPath": at, "subPath": below} for at, below in places]

    fetch = {"name": "fetch", "image": "ozzu/june:1", "command": ["fetch"]}
    body = pod(
        container(volumeMounts=mounts(main)),
        initContainers=[{**fetch, "volumeMounts": mounts(first)}],
        volumes=[{"name": "work", "emptyDir": {}}],
    )
    assert isinstance(answer(body), Prepared) is fits


def test_files_need_a_command_since_the_images_own_is_not_known() -> None:
    """What stands around a program has to start it."""
    of = container(command=None, volumeMounts=[{"name": "v", "mountPath": "/v"}])
    volumes = [{"name": "v", "configMap": {"name": "c"}}]
    known = found(maps={"c": config_map(a="A")})
    assert refused(pod(of, volumes=volumes), known).startswith("spec.containers[0].command: ")
    assert refused(pod(container(command=None, workingDir="/x"))).startswith(
        "spec.containers[0].command: "
    )
    made = ready(pod(of, volumes=[{"name": "v", "emptyDir": {}}]))
    assert made.machines[0].workload.directories == ()
    assert [notice.reason for notice in made.notices] == ["EmptyDirNotMade"]


def test_files_that_are_too_big_are_refused() -> None:
    """Before anything is rented."""
    of = container(volumeMounts=[{"name": "v", "mountPath": "/v"}])
    body = pod(of, volumes=[{"name": "v", "configMap": {"name": "c"}}])
    assert "spec.volumes[0]" in refused(body, found(maps={"c": config_map(a="x" * 50_000)}))


def test_a_machine_is_sought_only_where_the_market_can() -> None:
    """Else the best offer would be taken, refused by its market, and the next, one by one."""
    plain = Ability.LABELS | Ability.PORTS | Ability.COMMAND
    able = {"vastai": EVERYTHING, "akash": EVERYTHING, "render": plain}
    (machine,) = ready(pod(), abilities=able).machines
    assert machine.demand.requirements.providers == ("vastai", "akash")
    (free,) = ready(pod(container(command=None)), abilities=able).machines
    assert free.demand.requirements.providers == ()
    body = pod(annotations={"providers": "akash,render"})
    (told,) = ready(body, abilities=able).machines
    assert told.demand.requirements.providers == ("akash",)
    message = refused(pod(annotations={"providers": "render"}), abilities=able)
    assert message == "none of render replaces the image's entrypoint (command)"


def test_what_no_market_can_do_at_once_is_refused() -> None:
    """One can do this, another that, and none both."""
    of = container(ports=[{"containerPort": 1, "protocol": "UDP"}])
    able = {"one": EVERYTHING & ~Ability.UDP, "two": EVERYTHING & ~Ability.ENTRYPOINT}
    assert refused(pod(of), abilities=able) == (
        "none of one, two does all that this pod needs at once"
    )


def test_containers_side_by_side_go_to_markets_that_run_them_so() -> None:
    """The one with the GPU is the machine's own; the others come beside it."""
    side = container(
        "metrics",
        gpus=0,
        image="exporter:1",
        command=["export"],
        args=["-v"],
        env=[{"name": "A", "value": "1"}],
        ports=[{"containerPort": 9100}],
    )
    main = container("june", ports=[{"containerPort": 8001}])
    able = {"vastai": EVERYTHING & ~Ability.MULTI_CONTAINER, "akash": EVERYTHING}
    (machine,) = ready(pod(side, main), abilities=able).machines
    assert machine.containers == ("june", "metrics")
    assert machine.demand.requirements.providers == ("akash",)
    assert machine.demand.requirements.ports == 2
    assert machine.workload.beside == (
        Container(
            name="metrics",
            image="exporter:1",
            entrypoint=("export",),
            command=("-v",),
            env={"A": "1"},
            ports=(Port(9100),),
        ),
    )


def test_what_only_one_container_of_a_machine_can_have_is_refused_for_others() -> None:
    """By name, since it would be missing without a word."""
    volumes = [{"name": "v", "configMap": {"name": "c"}}]
    known = found(maps={"c": config_map(a="A")})
    side = container("side", gpus=0, volumeMounts=[{"name": "v", "mountPath": "/v"}])
    body = pod(container("main"), side, volumes=volumes)
    assert refused(body, known).startswith("spec.containers[1].volumeMounts: ")
    side = container("side", gpus=0, workingDir="/x")
    assert refused(pod(container("main"), side)).startswith("spec.containers[1].workingDir: ")
    mounts = [{"name": "v", "mountPath": "/v"}]
    one, two = (container(name, volumeMounts=mounts) for name in ("one", "two"))
    shared = pod(one, two, volumes=[{"name": "v", "emptyDir": {}}])
    assert "share 'v'" in refused(shared)


def test_split_containers_get_a_machine_each_with_what_each_asks_for() -> None:
    """One that wants two GPUs must not make its neighbour pay for two."""
    resources = {"limits": {"nvidia.com/gpu": "2"}, "requests": {"cpu": "8"}}
    one = container("one", resources=resources, ports=[{"containerPort": 1}])
    two = container("two", volumeMounts=[{"name": "v", "mountPath": "/v"}])
    body = pod(
        one,
        two,
        annotations={"containers": "split", "expose": "a:1,b:2"},
        volumes=[{"name": "v", "configMap": {"name": "c"}}],
    )
    made = ready(body, found(maps={"c": config_map(a="A")}), policy=SPLITTING)
    first, second = made.machines
    assert [machine.owner_suffix for machine in made.machines] == ["one", "two"]
    assert [machine.containers for machine in made.machines] == [("one",), ("two",)]
    assert (first.demand.requirements.gpu_count, first.demand.requirements.min_cpus) == (2, 8)
    assert (second.demand.requirements.gpu_count, second.demand.requirements.min_cpus) == (1, None)
    assert first.workload.ports == (Port(1), Port(2, name="b"))
    assert second.workload.ports == ()
    assert [file.path for file in second.workload.files] == ["/v/a"]
    assert first.workload.files == ()


AUTHS = {"ghcr.io/a": {"auth": packed("u:p")}, "quay.io": {"auth": packed("v:p")}}
LOGINS = found(secrets={"r": secret(**{".dockerconfigjson": json.dumps({"auths": AUTHS})})})
PULL = [{"name": "r"}]


def test_the_login_of_the_image_goes_with_the_workload() -> None:
    """And only to markets that take one."""
    body = pod(container(image="ghcr.io/a/app:1"), imagePullSecrets=PULL)
    able = {"vastai": EVERYTHING, "ionet": EVERYTHING & ~Ability.REGISTRY_LOGIN}
    (machine,) = ready(body, LOGINS, abilities=able).machines
    assert machine.workload.login == RegistryLogin(server="ghcr.io", username="u", password="p")
    assert machine.demand.requirements.providers == ("vastai",)
    assert only(pod(imagePullSecrets=PULL), LOGINS).login is None


def test_a_missing_pull_secret_is_told_and_nothing_else() -> None:
    """A kubelet tries without it."""
    made = ready(pod(imagePullSecrets=[{"name": "none"}]))
    assert "FailedToRetrieveImagePullSecret" in [notice.reason for notice in made.notices]
    assert made.machines[0].workload.login is None


def test_two_logins_for_one_machine_are_refused() -> None:
    """Markets take one for each."""
    body = pod(
        container("a", image="ghcr.io/a/app:1"),
        container("b", gpus=0, image="quay.io/b/app:1"),
        imagePullSecrets=PULL,
    )
    assert refused(body, LOGINS).startswith("spec.imagePullSecrets: ")


@pytest.mark.parametrize("image", ["", "a b", "-x", "a\nb"])
def test_an_image_that_is_none_is_refused_by_the_kubelets_word(image: str) -> None:
    """S10: some markets put it on a command line."""
    made = answer(pod(container(image=image)))
    assert isinstance(made, Refusal)
    assert made.reason == "InvalidImageName"


def test_the_event_tells_that_secrets_narrowed_the_choice() -> None:
    """S16: else nobody understands why the cheap offer was not taken."""
    of = container(env=[{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}])
    made = ready(pod(of), found(secrets={"s": secret(k="K")}))
    assert made.wish.tier is Tier.DATACENTER
    (notice,) = made.notices
    assert (notice.reason, notice.kind) == ("TrustRaisedBySecrets", "Normal")
    assert "datacenter" in notice.message
    assert made.machines[0].demand.requirements.datacenter_only


def test_what_is_missing_anywhere_holds_the_whole_pod() -> None:
    """K14: an init container's Secret as much as any."""
    first = {
        "name": "fetch",
        "image": "ozzu/june:1",
        "command": ["x"],
        "envFrom": [{"secretRef": {"name": "none"}}],
    }
    missing = answer(pod(initContainers=[first]))
    assert isinstance(missing, Unresolved)
    assert missing.reason == "MandatorySecretNotFound"


async def test_prepare_reads_what_the_pod_names_and_nothing_of_a_refused_one() -> None:
    """A pod that can never run must not have its Secrets read."""
    api = KubeApi()
    of = container(envFrom=[{"configMapRef": {"name": "c"}}])
    async with api.client() as client:
        objects = Objects(client)
        missing = await prepare(pod(of), POLICY, objects, abilities=MARKETS)
        assert isinstance(missing, Unresolved)
        about = {"name": "c", "namespace": "default"}
        api.add({"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"A": "1"}})
        made = await prepare(pod(of), POLICY, objects, abilities=MARKETS)
        assert isinstance(made, Prepared)
        assert made.machines[0].workload.env == {"A": "1"}
        before = len(api.told("get"))
        refusal = await prepare(pod(of, hostPID=True), POLICY, objects, abilities=MARKETS)
        assert isinstance(refusal, Refusal)
        assert len(api.told("get")) == before
        api.set_down()
        with pytest.raises(KubeUnavailable):
            await prepare(pod(of), POLICY, objects, abilities=MARKETS)


async def test_the_worked_example_asks_for_what_the_guide_says() -> None:
    """Two Services on one RTX 3060 for at most $0.50 an hour, in the US if possible."""
    annotations = {
        "gpu-type": "RTX3060",
        "min-vram": "12",
        "max-price": "0.50",
        "min-reliability": "0.95",
        "locations": "US-CA,US-TX,US-NY,US,EU",
        "expose": "june-stt:8001, june-tts:8000",
    }
    async with KubeApi().client() as client:
        made = await prepare(
            pod(annotations=annotations), POLICY, Objects(client), abilities=MARKETS
        )
    assert isinstance(made, Prepared)
    (machine,) = made.machines
    assert isinstance(machine, Machine)
    wanted = machine.demand.requirements
    assert wanted.gpu_models == ("RTX 3060",)
    assert wanted.max_price_usd_per_hour == Decimal("0.50")
    assert wanted.locations == ("US-CA", "US-TX", "US-NY", "US", "EU")
    assert {port.number for port in machine.workload.ports} == {8001, 8000}


async def test_a_pod_that_has_its_machine_is_never_refused_for_what_changed_since() -> None:
    """After a restart of the node: a lower price limit or a deleted Secret ends no paid work."""
    of = container(envFrom=[{"secretRef": {"name": "gone"}}])
    body = pod(of, annotations={"max-price": "0.50", "expose": "june-stt:8001"})
    lower = replace(POLICY, max_price_usd_per_hour=0.1, max_gpus=0)
    how: dict[str, Any] = {"abilities": {"render": Ability.NONE}}
    api = KubeApi()
    async with api.client() as client:
        refusal = await prepare(body, lower, Objects(client), **how)
        assert isinstance(refusal, Refusal)
        made = await prepare(body, lower, Objects(client), settled=True, **how)
        assert isinstance(made, Prepared)
        assert made.machines[0].workload.ports == (Port(8001, name="june-stt"),)
        api.deny("get", "secrets")
        assert await prepare(body, lower, Objects(client), settled=True, **how) == made
