"""Write the Grafana dashboard from the table of metrics, so that it shows every one of them.

A metric's kind decides how it is drawn, and its topic in which row. What is best seen in another
way stands in `OTHERWISE`. With `--check` it only tells whether `deploy/grafana/gp4u.json` is
behind; neither that file nor the chart's copies are for editing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from gp4u.metric_table import METRICS, PROCESS_METRICS, Metric

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "deploy" / "grafana" / "gp4u.json"
CHART = ROOT / "charts" / "gp4u" / "files"
"""A chart can show only files of its own, so it has copies."""
SOURCE = {"type": "prometheus", "uid": "${source}"}
COLUMNS, WIDTH, HEIGHT = 24, 8, 7
QUANTILES = (0.5, 0.95, 0.99)


class Drawn(NamedTuple):
    """How a metric is drawn where its kind alone does not say it."""

    expressions: tuple[tuple[str, str], ...] = ()
    """(PromQL with `{}` for the selector of labels, legend); empty: as its kind says."""
    unit: str = ""
    limit: float | None = None
    """From here on an alert says so; drawn as a line."""
    below: bool = False
    """Whether it is trouble to be under the limit instead of over it."""


OTHERWISE = {
    "gp4u_provider_success_rate": Drawn(limit=0.7, below=True),
    "gp4u_provider_health": Drawn((("gp4u_provider_health{} == 1", "{{provider}} {{state}}"),)),
    "gp4u_breaker_state": Drawn((("gp4u_breaker_state{} == 1", "{{provider}} {{state}}"),)),
    "gp4u_breaker_open_seconds": Drawn(limit=300),
    "gp4u_limiter_utilization": Drawn(limit=0.9),
    "gp4u_book_age_seconds": Drawn(limit=600),
    "gp4u_book_hits_total": Drawn(
        (
            (
                "sum by (provider) (rate(gp4u_book_hits_total{}[$__rate_interval])) / ("
                "sum by (provider) (rate(gp4u_book_hits_total{}[$__rate_interval])) + "
                "sum by (provider) (rate(gp4u_book_misses_total{}[$__rate_interval])))",
                "{{provider}} hit ratio",
            ),
        ),
        unit="percentunit",
    ),
    "gp4u_releasing_age_seconds": Drawn(limit=600),
    "gp4u_budget_used": Drawn(unit="percentunit", limit=0.9),
    "gp4u_double_rents_total": Drawn(
        (("increase(gp4u_double_rents_total{}[1h])", "{{provider}}"),), limit=1
    ),
    "gp4u_orphans_released_total": Drawn(
        (("increase(gp4u_orphans_released_total{}[1h])", "{{provider}}"),), limit=1
    ),
    "gp4u_breaker_trips_total": Drawn(
        (("increase(gp4u_breaker_trips_total{}[1h])", "{{provider}}"),)
    ),
    "process_start_time_seconds": Drawn(
        (("time() - process_start_time_seconds{}", "{{instance}} up for"),)
    ),
}
UNITS = {
    "_seconds": "s",
    "_bytes": "bytes",
    "_usd": "currencyUSD",
    "_rate": "percentunit",
    "_uptime": "percentunit",
    "_utilization": "percentunit",
    "_cpu_seconds_total": "percentunit",
}


def selector(metric: Metric) -> str:
    """Return the selector of labels that the dashboard's variables make."""
    chosen = 'job=~"$job"'
    return f'{{{chosen},provider=~"$provider"}}' if "provider" in metric.labels else f"{{{chosen}}}"


def expressions(metric: Metric) -> Iterator[tuple[str, str]]:
    """Yield (PromQL, legend) of a metric's lines."""
    where, name = selector(metric), metric.name
    legend = " ".join(f"{{{label}}}" for label in metric.labels) or "{{instance}}"
    if name in OTHERWISE and OTHERWISE[name].expressions:
        for expression, words in OTHERWISE[name].expressions:
            yield expression.replace("{}", where), words
    elif metric.kind == "gauge":
        yield f"{name}{where}", legend
    elif metric.kind == "counter":
        by = f"by ({', '.join(metric.labels or ('instance',))})"
        yield f"sum {by} (rate({name}{where}[$__rate_interval]))", legend
    else:
        by = ", ".join(("le", *(metric.labels or ("instance",))))
        for share in QUANTILES:
            rate = f"sum by ({by}) (rate({name}_bucket{where}[$__rate_interval]))"
            yield f"histogram_quantile({share}, {rate})", f"p{share * 100:g} {legend}".strip()


def unit(metric: Metric) -> str:
    """Return Grafana's word for what the axis counts."""
    if metric.name in OTHERWISE and OTHERWISE[metric.name].unit:
        return OTHERWISE[metric.name].unit
    # The longest ending that fits, since one may end in another.
    fits = [ending for ending in UNITS if metric.name.endswith(ending)]
    if fits:
        return UNITS[max(fits, key=len)]
    is_rate = metric.kind == "counter" and metric.name not in OTHERWISE
    return "cps" if is_rate else "short"


def thresholds(drawn: Drawn) -> dict[str, Any]:
    """Return the colours and the line of a limit."""
    if drawn.limit is None:
        return {"thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": None}]}}
    calm, loud = ("red", "green") if drawn.below else ("green", "red")
    steps = [{"color": calm, "value": None}, {"color": loud, "value": drawn.limit}]
    return {"thresholds": {"mode": "absolute", "steps": steps}}


def panel(number: int, metric: Metric, x: int, y: int) -> dict[str, Any]:
    """Return one metric's panel at a place of the grid."""
    drawn = OTHERWISE.get(metric.name, Drawn())
    style = "line" if drawn.limit is not None else "off"
    custom = {"fillOpacity": 8, "lineWidth": 1, "thresholdsStyle": {"mode": style}}
    targets = [
        {
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend,
            "range": True,
            "refId": chr(ord("A") + place),
        }
        for place, (expression, legend) in enumerate(expressions(metric))
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": metric.name,
        "description": f"{metric.meaning}.",
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": x, "y": y},
        "fieldConfig": {
            "defaults": {"custom": custom, "min": 0, "unit": unit(metric), **thresholds(drawn)},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": targets,
    }


def panels() -> Iterator[dict[str, Any]]:
    """Yield the rows, and after each its panels, from top to bottom."""
    number = y = 0
    for topic, members in groupby((*METRICS, *PROCESS_METRICS), key=lambda metric: metric.topic):
        number += 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        yield {"id": number, "type": "row", "title": topic, "gridPos": place, "panels": []}
        y += 1
        x = 0
        for metric in members:
            if x + WIDTH > COLUMNS:
                x, y = 0, y + HEIGHT
            number += 1
            yield panel(number, metric, x, y)
            x += WIDTH
        y += HEIGHT


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """Return a variable that Grafana fills from the labels there are."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> dict[str, Any]:
    """Return the whole dashboard."""
    source = {
        "name": "source",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
    }
    chosen = [
        source,
        variable("job", "Job", "label_values(gp4u_ready, job)"),
        variable("provider", "Market", "label_values(gp4u_book_offers, provider)"),
    ]
    return {
        "uid": "gp4u",
        "title": "GP4U",
        "description": "Every metric of GP4U. Written by scripts/dashboard.py; edits are lost.",
        "tags": ["gp4u"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "schemaVersion": 39,
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "utc",
        "templating": {"list": chosen},
        "annotations": {"list": []},
        "panels": list(panels()),
    }


def main() -> int:
    """Write the file, or with `--check` tell that it is behind; 1 where it is."""
    text = json.dumps(dashboard(), indent=1) + "\n"
    alerts = (ROOT / "deploy" / "alerts.yml").read_text(encoding="utf-8")
    wanted = {PATH: text, CHART / PATH.name: text, CHART / "alerts.yml": alerts}
    behind = [
        path
        for path, content in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != content
    ]
    check = "--check" in sys.argv[1:]
    for path in behind:
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'behind' if check else 'written'}")
    return int(check and bool(behind))


if __name__ == "__main__":
    sys.exit(main())
