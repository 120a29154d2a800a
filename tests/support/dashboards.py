"""The Grafana dashboards as data: their panels, their queries, and which series a query reads."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "config"
DASHBOARDS = CONFIG / "grafana" / "dashboards"
PROVISIONING = CONFIG / "grafana" / "provisioning"
RULES = CONFIG / "prometheus" / "rules"

# What Grafana puts in for its own variables, and for `host` when All is chosen.
GRAFANA = {"__rate_interval": "1m", "__interval": "1m", "__range": "1h", "host": ".*"}

_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_RANGE = re.compile(r"(\w+)\(\s*([a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s*\[")
_SELECTOR = re.compile(r"(?<![\w:.$])([a-zA-Z_:][\w:]*)(\{[^}]*\})?(?![\w:])(?!\s*\()")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})


@dataclass(frozen=True, slots=True)
class Query:
    dashboard: str
    title: str
    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Selector:
    name: str
    matchers: dict[str, str]  # label -> operator and value


def dashboards() -> dict[str, Any]:
    """Return the dashboards by the names of their files."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(dashboard: Any) -> list[Any]:
    """Return the panels that show something: rows only divide."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    """Return every query of panels and annotations, as it stands in the file."""
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield Query(name, panel["title"], target["expr"], target["legendFormat"])
        for note in dashboard["annotations"]["list"]:
            if not note.get("builtIn"):
                yield Query(name, f"annotation {note['name']}", note["expr"], note["titleFormat"])


def expressions() -> list[tuple[str, str]]:
    """Return (title, expression) of every query, as Prometheus gets it when all hosts are chosen."""
    values = {name: _values(dashboard) for name, dashboard in dashboards().items()}
    return [(query.title, _filled(query.expr, values[query.dashboard])) for query in queries()]


def selectors(expr: str) -> list[Selector]:
    """Return the series that an expression reads; its functions, groupings and operators are no series."""
    bare = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub("", expr))
    return [
        Selector(name, {label: how + value for label, how, value in _MATCHER.findall(matchers)})
        for name, matchers in _SELECTOR.findall(bare)
        if name not in _WORDS
    ]


def over_time(expr: str) -> list[tuple[str, str]]:
    """Return (function, series) for every series that is read over a time."""
    return _RANGE.findall(expr)


def grouped_by(expr: str) -> set[str]:
    return {label.strip() for labels in _GROUPING.findall(expr) for label in labels.split(",")}


def recorded() -> set[str]:
    """Return the names of the series that recording rules make."""
    groups = [group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def _values(dashboard: Any) -> dict[str, str]:
    listed = dashboard["templating"]["list"]
    return {each["name"]: each["current"]["value"] for each in listed if each["type"] == "textbox"} | GRAFANA


def _filled(expr: str, values: dict[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)
