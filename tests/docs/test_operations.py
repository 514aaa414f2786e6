"""What operators load: alert rules, dashboard, compose file. All of it is held to the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from gp4u.metric_table import METRICS, PROCESS_METRICS, Metric
from gp4u.settings import variables
from tests.unit.test_metrics import told_everything

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "alerts.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "gp4u.json").read_text("utf-8"))
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES = COMPOSE["services"]
EVERY = (*METRICS, *PROCESS_METRICS)
SEEDS_CONDITIONS = {
    "GP4UProviderFailing": "gp4u_provider_success_rate < 0.7",
    "GP4UBreakerOpen": "gp4u_breaker_open_seconds > 300",
    "GP4ULimiterNearlyFull": "gp4u_limiter_utilization > 0.9",
}


def promtool(*words: str | Path, page: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool, or fail by its name."""
    own = ROOT / ".cache" / "promtool" / "promtool"
    found = shutil.which("promtool") or (str(own) if own.exists() else None)
    if found is None:
        pytest.fail("promtool is not on this machine; scripts/setup-promtool.sh gets it")
    return subprocess.run(
        [found, *words], input=page, capture_output=True, text=True, cwd=DEPLOY, check=False
    )


def rules() -> list[dict[str, Any]]:
    """Every alert rule."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metrics_in(text: str) -> set[str]:
    """The metrics that a PromQL expression or a page names."""
    return set(re.findall(r"\b(?:gp4u|process)_[a-z_]+\b", text))


def series(metric: Metric) -> set[str]:
    """The names under which a metric's samples are stored."""
    if metric.kind != "histogram":
        return {metric.name}
    return {f"{metric.name}{ending}" for ending in ("_bucket", "_count", "_sum")}


def panels() -> list[dict[str, Any]]:
    """Every panel of the dashboard but the rows."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_promtool_takes_the_rules() -> None:
    """A rule file that does not load takes every other rule of that Prometheus with it."""
    done = promtool("check", "rules", "alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_sees_each_rule_fire_and_be_silent() -> None:
    """A rule that has never fired is a hope."""
    done = promtool("test", "rules", "alerts.test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (DEPLOY / "alerts.test.yml").read_text("utf-8")
    for rule in rules():
        name = rule["alert"]
        assert f'name: "{name}: fires"' in text
        assert f'name: "{name}: is silent at its bound"' in text
        assert f'name: "{name}: is silent once it is over"' in text


def test_a_rule_that_is_changed_fails_its_test(tmp_path: Path) -> None:
    """Else the tests of the rules would pass whatever the rules say."""
    for path in (RULES, DEPLOY / "alerts.test.yml"):
        shutil.copy(path, tmp_path)
    changed = tmp_path / "alerts.yml"
    text = changed.read_text("utf-8")
    for good, bad in (
        ("< 0.7", "< 0.6"),
        ("> 300", ">= 300"),
        ("_utilization > 0.9", "_utilization > 0.95"),
    ):
        assert text.count(good) == 1
        changed.write_text(text.replace(good, bad), "utf-8")
        done = promtool("test", "rules", tmp_path / "alerts.test.yml")
        assert done.returncode != 0, bad


def test_promtool_finds_nothing_wrong_with_a_real_page() -> None:
    """Names and help texts that break the conventions mislead whoever queries them."""
    done = promtool("check", "metrics", page=told_everything().render().decode())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_three_conditions_of_the_first_seed_are_rules() -> None:
    """They are what was promised; the rest is what we learned."""
    found = {rule["alert"]: rule["expr"] for rule in rules()}
    assert SEEDS_CONDITIONS.items() <= found.items()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_each_alert_says_how_bad_what_and_where_to_read_on(rule: dict[str, Any]) -> None:
    """It is read at night, by somebody who has never seen it."""
    assert rule["labels"]["severity"] in ("warning", "critical")
    about = rule["annotations"]
    assert set(about) == {"summary", "description", "runbook_url"}
    page, _, anchor = about["runbook_url"].partition("/blob/main/")[2].partition("#")
    headings = re.findall(r"(?m)^#+ (.+)$", (ROOT / page).read_text("utf-8"))
    assert rule["alert"] in headings
    assert anchor == rule["alert"].lower()
    known = {name for metric in EVERY for name in series(metric)}
    assert metrics_in(rule["expr"]) <= known
    assert metrics_in(rule["expr"]) or "up{" in rule["expr"]


def test_the_runbook_has_no_alert_that_does_not_exist() -> None:
    """A page about an alert that is gone is looked for in vain."""
    page = (ROOT / "docs" / "howto" / "monitor.md").read_text("utf-8")
    assert set(re.findall(r"(?m)^### (GP4U\w+)$", page)) == {rule["alert"] for rule in rules()}
    known = {name for metric in EVERY for name in (metric.name, *series(metric))}
    assert metrics_in(page) <= known


def test_the_dashboard_is_what_the_table_makes() -> None:
    """An edit by hand is lost with the next metric."""
    script = ROOT / "scripts" / "dashboard.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), "run scripts/dashboard.py"


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    """What is not drawn is not looked at; what does not exist is an empty panel."""
    used = {
        name
        for panel in panels()
        for target in panel["targets"]
        for name in metrics_in(target["expr"])
    }
    assert used <= {name for metric in EVERY for name in series(metric)}
    for metric in EVERY:
        assert used & series(metric), metric.name
    assert [panel["title"] for panel in panels()] == [metric.name for metric in EVERY]


def test_the_rows_of_the_dashboard_are_the_topics() -> None:
    """Somebody with a question goes by the headings."""
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == [
        *(
            "Providers",
            "Breakers and limits",
            "Book",
            "Rentals and money",
            "API",
            "Node",
            "Process",
        ),
    ]


def test_every_query_of_the_dashboard_can_be_asked(tmp_path: Path) -> None:
    """A slip in a generated query is the same slip in twenty panels."""
    queries = sorted({target["expr"] for panel in panels() for target in panel["targets"]})
    asked = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": asked}]}), "utf-8")
    done = promtool("check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(asked) > len(EVERY)


def test_the_dashboard_asks_the_prometheus_that_is_chosen() -> None:
    """A fixed name of a data source works on one machine in the world."""
    names = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert names["source"]["type"] == "datasource"
    assert names["source"]["query"] == "prometheus"
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert len({(at["x"], at["y"]) for at in places}) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels():
        assert all(target["datasource"]["uid"] == "${source}" for target in panel["targets"])
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


# --- compose ---

KEYS = {
    *("image", "build", "command", "profiles", "user", "env_file", "environment", "ports"),
    *("volumes", "tmpfs", "depends_on", "network_mode", "healthcheck", "restart"),
    *("read_only", "cap_drop", "security_opt", "stop_grace_period"),
}
"""What we use of a service, all of it in the Compose Specification.

Source: compose-spec/compose-spec, `schema/compose-spec.json`; checked in November 2026.
"""


def words() -> Iterator[str]:
    """Every variable of ours that the compose file, its head included, or its env file names."""
    for path in (ROOT / "docker-compose.yml", DEPLOY / "simulators.env"):
        prefixes = "GP4U|VASTAI|IONET|AKASH|RENDER|PROVIDER"
        yield from re.findall(rf"\b(?:{prefixes})_[A-Z_]+\b", path.read_text("utf-8"))


def test_the_compose_file_has_what_it_promises_and_nothing_that_is_misspelt() -> None:
    """Compose refuses a key it does not know, and takes one that is merely not meant."""
    assert set(COMPOSE) - {"x-hardened", "x-gp4u"} == {"name", "services", "volumes"}
    assert set(SERVICES) == {"api", "postgres", "redis", "simulators", "rehearsal"}
    for name, service in SERVICES.items():
        assert set(service) <= KEYS, name
        for volume in service.get("volumes", ()):
            assert volume.partition(":")[0] in COMPOSE["volumes"], name
        for other in service.get("depends_on", ()):
            assert "healthcheck" in SERVICES[other], name
    assert {name: service.get("profiles") for name, service in SERVICES.items()} == {
        "api": None,
        "postgres": ["postgres"],
        "redis": ["redis"],
        "simulators": ["simulators"],
        "rehearsal": ["simulators"],
    }


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_runs_with_as_little_as_it_can(name: str) -> None:
    """What is not given cannot be abused."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["image"] == "gp4u:local" or not service["user"].startswith("0")
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), "published to the whole network"


def test_every_variable_that_compose_names_exists() -> None:
    """A misspelt variable is ignored in silence."""
    known = {name for entry in variables() for name in entry.names}
    assert set(words()) <= known


def test_no_secret_stands_in_the_compose_file() -> None:
    """It is committed; secrets are in files that are not."""
    for name in ("api", "postgres"):
        for key in SERVICES[name].get("environment", {}):
            assert not re.search("PASSWORD|KEY|TOKEN|SECRET", key), key
    ignored = (ROOT / ".gitignore").read_text("utf-8").split()
    assert {"gp4u.env", "postgres.env"} <= set(ignored)


def test_the_rehearsal_finds_the_simulated_markets() -> None:
    """Their keys follow from the seed; one that has changed would close the market."""
    command = list(SERVICES["simulators"]["command"])
    first = int(command[command.index("--port") + 1])
    command[command.index("--port") + 1] = "0"  # here, that port may be somebody else's
    gp4u = str(Path(sys.executable).with_name("gp4u"))
    running = subprocess.Popen([gp4u, *command], stdout=subprocess.PIPE, text=True)
    printed: dict[str, str] = {}
    try:
        assert running.stdout is not None
        for number in range(4):
            line = json.loads(running.stdout.readline())
            port = urlsplit(line["base_url"]).port
            for name, value in line["env"].items():
                printed[name] = value.replace(f"127.0.0.1:{port}", f"127.0.0.1:{first + number}")
    finally:
        running.terminate()
        running.communicate()
    rows = (DEPLOY / "simulators.env").read_text("utf-8").splitlines()
    assert dict(row.split("=", 1) for row in rows if not row.startswith("#")) == printed


# --- the image ---


def test_what_the_image_is_built_with_is_what_the_project_pins() -> None:
    """Two places name a version; one of them would be forgotten."""
    listed = (DEPLOY / "build-requirements.txt").read_text("utf-8")
    backend = re.search(
        r'requires = \["(hatchling==[\d.]+)"\]', (ROOT / "pyproject.toml").read_text("utf-8")
    )
    version = re.search(
        r"UV_VERSION=([\d.]+)", (ROOT / "scripts" / "bootstrap.sh").read_text("utf-8")
    )
    assert backend is not None
    assert version is not None
    assert f"\n{backend[1]} " in listed
    assert f"\nuv=={version[1]} " in listed
    pins = re.findall(r"(?m)^([a-z0-9-]+==\S+) \\\n(    --hash=sha256:[0-9a-f]{64})", listed)
    assert len(pins) == len(re.findall(r"(?m)^[a-z]", listed)) >= 7


def test_the_image_leaves_the_folder_of_the_builder_behind() -> None:
    """A key in a forgotten `.env` must not end up in a layer."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert lines[1] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = set(
        re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text("utf-8"))
    )
    assert {word for line in copied for word in line.split()} == let_in
