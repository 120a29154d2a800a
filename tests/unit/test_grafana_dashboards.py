"""The dashboards ask only for series that exist, in ways that suit them, and Grafana can lay them out."""

import json
import re
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
import yaml

from tests.support.dashboards import (
    DASHBOARDS,
    PROVISIONING,
    Query,
    dashboards,
    expressions,
    grouped_by,
    over_time,
    panels,
    queries,
    recorded,
    selectors,
)
from tests.support.each import for_each
from workers.telemetry.instruments import (
    BEAT_CLAIMED,
    BEAT_MESSAGES,
    BEAT_REDIS_ERRORS,
    HOST,
    HOST_AGE,
    HOST_VMS,
    METRICS,
    Kind,
)

ALL = dashboards()
QUERIES = list(queries())
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
RATES = {"rate", "irate", "increase", "resets"}
GIVEN_BY_PROMETHEUS = {"le", "instance", "job"}

# Series by name: the labels each has, and whether it only ever grows.
GAUGES = {each.name: set(each.labels) for each in METRICS if each.kind is Kind.GAUGE}
GROWING = {each.name: set(each.labels) for each in METRICS if each.kind is Kind.COUNTER} | {
    each.name + part: set(each.labels) for each in METRICS if each.kind is Kind.HISTOGRAM for part in HISTOGRAM_PARTS
}
SERIES = GAUGES | GROWING
# Every beat tells the same of these, so their sum would be too large by the number of beats. Each counts its own work.
TOLD_BY_EACH_BEAT = {each.name for each in METRICS if HOST not in each.labels or each in (HOST_AGE, HOST_VMS)} - {
    each.name for each in (BEAT_CLAIMED, BEAT_MESSAGES, BEAT_REDIS_ERRORS)
}

each_dashboard = pytest.mark.parametrize("dashboard", ALL.values(), ids=ALL)
each_panel = for_each({f"{name}: {panel['title']}": panel for name in ALL for panel in panels(ALL[name])})
each_query = for_each({f"{number} {each.title}: {each.expr}": each for number, each in enumerate(QUERIES)})


def test_the_dashboards_are_these() -> None:
    assert {name: dashboard["uid"] for name, dashboard in ALL.items()} == {
        "fleet": "reliability-fleet",
        "recovery": "reliability-recovery",
    }


@pytest.mark.parametrize("name", ALL)
def test_files_are_formatted_so_that_a_change_reads_as_one(name: str) -> None:
    text = (DASHBOARDS / f"{name}.json").read_text()

    assert text == json.dumps(ALL[name], indent=2, ensure_ascii=False) + "\n"


@each_dashboard
def test_a_dashboard_fits_any_grafana_of_today(dashboard: Any) -> None:
    assert "id" not in dashboard
    assert dashboard["schemaVersion"] in (39, 40)
    assert dashboard["refresh"] == "30s"
    assert dashboard["time"] == {"from": "now-6h", "to": "now"}


@each_dashboard
def test_panels_have_ids_of_their_own(dashboard: Any) -> None:
    assert max(Counter(panel["id"] for panel in dashboard["panels"]).values()) == 1


@each_dashboard
def test_panels_stand_side_by_side_within_24_columns(dashboard: Any) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]

    assert all(place["x"] >= 0 and place["w"] > 0 and place["x"] + place["w"] <= 24 for place in places)
    assert not [pair for pair in combinations(places, 2) if _overlap(*pair)]


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    return not (beside or below)


@each_panel
def test_a_panel_says_what_it_shows(panel: Any) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


@each_panel
def test_a_panel_takes_the_data_source_that_was_chosen(panel: Any) -> None:
    assert panel["datasource"] == DATASOURCE
    assert [target["datasource"] for target in panel["targets"]] == [DATASOURCE] * len(panel["targets"])


@each_panel
def test_the_queries_of_a_panel_can_be_told_apart(panel: Any) -> None:
    assert panel["targets"]
    assert max(Counter(target["refId"] for target in panel["targets"]).values()) == 1


def test_the_panels_that_operators_know_are_there() -> None:
    titles = {panel["title"] for panel in panels(ALL["fleet"])}

    assert titles >= {
        "VM health status",
        "Orphaned VM count",
        "Recovery success rate",
        "Recovery duration",
        "Failures by reason",
    }


@pytest.mark.parametrize(
    ("title", "turns_at", "color"),
    [
        ("MTTR mean", 30, "red"),
        ("Recovery success", 0.95, "green"),
        ("False positives", 0.01, "red"),
        ("Orphan ratio", 0.001, "red"),
    ],
)
def test_a_goal_is_where_the_color_turns(title: str, turns_at: float, color: str) -> None:
    panel = next(panel for panel in panels(ALL["fleet"]) if panel["title"] == title)

    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1] == {"color": color, "value": turns_at}


@each_query
def test_a_query_reads_only_series_that_exist(query: Query) -> None:
    assert {each.name for each in selectors(query.expr)} <= SERIES.keys() | recorded()
    assert selectors(query.expr)


@each_query
def test_a_rate_is_taken_of_what_only_grows_and_of_nothing_else(query: Query) -> None:
    read = over_time(query.expr)

    assert {name for function, name in read if function in RATES} <= GROWING.keys()
    assert not {name for function, name in read if function not in RATES} & GROWING.keys()


@each_query
def test_what_only_grows_is_never_shown_as_it_stands(query: Query) -> None:
    growing = Counter(each.name for each in selectors(query.expr) if each.name in GROWING)

    assert growing == Counter(name for function, name in over_time(query.expr) if function in RATES)


@each_query
def test_a_query_follows_the_step_of_the_graph(query: Query) -> None:
    windows = set(re.findall(r"\[([^\]]*)\]", query.expr))

    assert windows <= {"$__rate_interval", "$__range"}


@each_query
def test_a_query_of_hosts_asks_for_the_hosts_that_were_chosen(query: Query) -> None:
    for each in selectors(query.expr):
        if HOST in SERIES.get(each.name, ()):
            assert each.matchers.get(HOST) == "=~$host", each.name


@each_query
def test_what_every_beat_tells_is_not_added_up(query: Query) -> None:
    for name in TOLD_BY_EACH_BEAT & {each.name for each in selectors(query.expr)}:
        greatest = re.findall(rf"\bmax(?: by \([^)]*\) | ?)\((?:increase\()?{name}\b", query.expr)
        of_a_share = re.findall(rf"\bsum_over_time\({name}\b", query.expr)  # above and below the line alike

        assert len(greatest) + len(of_a_share) == len(re.findall(rf"\b{name}\b", query.expr))
        assert not of_a_share or " / " in query.expr


@each_query
def test_a_query_names_only_labels_that_its_series_have(query: Query) -> None:
    read = [each for each in selectors(query.expr) if each.name in SERIES]
    known = set().union(*(SERIES[each.name] for each in read)) | GIVEN_BY_PROMETHEUS

    assert all(each.matchers.keys() <= SERIES[each.name] for each in read)
    assert not read or grouped_by(query.expr) <= known


@each_query
def test_a_legend_names_only_labels_that_are_left(query: Query) -> None:
    assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= grouped_by(query.expr)


@each_dashboard
def test_hosts_are_chosen_by_name_several_or_all(dashboard: Any) -> None:
    variable = next(each for each in dashboard["templating"]["list"] if each["name"] == "host")
    asked = re.fullmatch(r"label_values\((\w+), host\)", variable["query"]["query"])

    assert asked
    assert HOST in SERIES[asked[1]]
    assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".*")
    assert variable["datasource"] == DATASOURCE


@each_dashboard
def test_links_lead_to_the_other_dashboard_and_to_the_runbooks(dashboard: Any) -> None:
    urls = [link["url"] for link in dashboard["links"]]
    uids = {url.removeprefix("/d/") for url in urls if url.startswith("/d/")}

    assert uids == {each["uid"] for each in ALL.values()} - {dashboard["uid"]}
    assert "${runbooks:raw}" in urls
    assert "runbooks" in {each["name"] for each in dashboard["templating"]["list"]}


@each_dashboard
def test_storms_are_marked_in_every_graph(dashboard: Any) -> None:
    notes = [note for note in dashboard["annotations"]["list"] if not note.get("builtIn")]

    assert any("storm" in note["expr"] and note["enable"] for note in notes)
    assert all(note["datasource"] == DATASOURCE for note in notes)


def test_expressions_are_ready_for_prometheus() -> None:
    ready = expressions()

    assert len(ready) == len(QUERIES)
    assert not [expr for _, expr in ready if "$" in expr]


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ('sum by (a_b) (rate(x_total{host=~"$host", k="v"}[$__rate_interval])) / (1e3 * y)', ["x_total", "y"]),
        ("clamp_max(a:b:c > bool 0, 1) and on (host) topk(10, z) or vector(0)", ["a:b:c", "z"]),
        ("time() - max(t) > $silent_after", ["t"]),
    ],
)
def test_the_series_of_an_expression_are_found(expr: str, names: list[str]) -> None:
    assert [each.name for each in selectors(expr)] == names


def test_grafana_is_told_where_both_are() -> None:
    (source,) = _provisioned("datasources/prometheus.yml")["datasources"]
    (provider,) = _provisioned("dashboards/reliability.yml")["providers"]

    assert (source["type"], source["access"], source["isDefault"]) == ("prometheus", "proxy", True)
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards")


def _provisioned(name: str) -> Any:
    document = yaml.safe_load((PROVISIONING / name).read_text())
    assert document["apiVersion"] == 1
    return document
