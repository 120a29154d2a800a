"""Rules, alerts and runbooks: Prometheus takes them, they read series there are, and name commands there are."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.conftest import require
from tests.support.dashboards import recorded, selectors
from tests.support.each import for_each
from workers.cli.menu import reliability
from workers.domain.breaker import BreakerState
from workers.domain.evidence import Verdict
from workers.domain.vm import State
from workers.telemetry.instruments import METRICS, Kind
from workers.telemetry.metrics import OUTCOMES

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "config" / "prometheus"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TEST_FILES = sorted((PROMETHEUS / "tests").glob("*.yml"))
ALERTMANAGER = ROOT / "config" / "alertmanager" / "alertmanager.yml"
RUNBOOKS = ROOT / "docs" / "runbooks.md"

RULES: list[dict[str, Any]] = [
    rule for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
NAMES = {alert["alert"] for alert in ALERTS}
TESTS: list[dict[str, Any]] = [test for path in TEST_FILES for test in yaml.safe_load(path.read_text())["tests"]]
SECTIONS = re.findall(r"^## (.+)$", RUNBOOKS.read_text(), re.MULTILINE)

PACKAGES = {"promtool": "prometheus", "amtool": "prometheus-alertmanager"}
PARTS = {Kind.COUNTER: ("",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
# Series by name, with their labels. Prometheus itself makes `up`, and gives every series its target.
TARGET = {"job", "instance"}
SERIES = {each.name + part: {*each.labels, *TARGET} for each in METRICS for part in PARTS[each.kind]} | {"up": TARGET}
VALUES = {
    "state": {*State, *BreakerState},
    "outcome": {*OUTCOMES},
    "verdict": {*Verdict},
    "kind": {"image", "driver", "host", "fleet"},
    "job": {"reliability-worker", "reliability-beat"},
}

_MATCHER = re.compile(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"')

each_rule = for_each({f"{rule.get('alert') or rule['record']} {n}": rule for n, rule in enumerate(RULES)})
each_alert = for_each({f"{alert['alert']} {n}": alert for n, alert in enumerate(ALERTS)})


def run(program: str, *arguments: str | Path) -> str:
    package = PACKAGES[program]
    require(program, shutil.which(program) is not None, f"apt-get install --no-install-recommends {package}")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_rules() -> None:
    run("promtool", "check", "rules", *RULE_FILES)


def test_prometheus_takes_the_configuration_and_finds_the_rules_by_it() -> None:
    said = run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    assert f"{len(RULE_FILES)} rule files found" in said


@pytest.mark.full
@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.stem)
def test_the_rules_do_what_they_say(path: Path) -> None:
    run("promtool", "test", "rules", path)


def test_alertmanager_takes_its_configuration() -> None:
    run("amtool", "check-config", ALERTMANAGER)


@pytest.mark.parametrize(
    ("severity", "receiver"), [("critical", "page"), ("warning", "ticket"), ("info", "info"), ("unheard-of", "ticket")]
)
def test_who_is_told_depends_on_how_bad_it_is(severity: str, receiver: str) -> None:
    said = run("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", f"severity={severity}")
    assert said.strip() == receiver


def test_alertmanager_names_only_alerts_and_subjects_there_are() -> None:
    matchers = [
        re.fullmatch(r'(\w+)(?:=~|!=|=)"(.+)"', matcher)
        for rule in yaml.safe_load(ALERTMANAGER.read_text())["inhibit_rules"]
        for matcher in (*rule["source_matchers"], *rule["target_matchers"])
    ]
    named = {(found[1], value) for found in matchers if found for value in found[2].split("|")}

    assert all(matchers)
    assert {value for label, value in named if label == "alertname"} <= NAMES
    assert {value for label, value in named if label == "subject"} <= {alert["labels"]["subject"] for alert in ALERTS}
    assert {label for label, _ in named} == {"alertname", "subject", "severity"}


@pytest.mark.full
@each_rule
def test_a_rule_reads_only_series_that_exist(rule: dict[str, Any]) -> None:
    read = {selector.name for selector in selectors(rule["expr"])}
    assert read
    assert read <= SERIES.keys() | recorded()


@each_rule
def test_a_rule_picks_only_by_labels_and_values_that_a_series_has(rule: dict[str, Any]) -> None:
    for selector in selectors(rule["expr"]):
        assert selector.matchers.keys() <= SERIES.get(selector.name, selector.matchers.keys())
        for label, matcher in selector.matchers.items():
            assert set(matcher.lstrip("=!~").split("|")) <= VALUES[label]


def test_every_series_of_the_tests_exists() -> None:
    fed = [each["series"] for test in TESTS for each in test["input_series"]]
    assert {series.partition("{")[0] for series in fed} <= SERIES.keys()


@each_alert
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    notes = alert["annotations"]

    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["labels"]["subject"]
    assert "for" in alert
    assert notes.keys() == {"summary", "description", "command", "runbook_url"}
    assert all(notes.values())
    assert not notes["summary"].endswith(".")
    assert notes["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"


def test_each_alert_has_one_runbook_and_each_runbook_an_alert() -> None:
    assert sorted(SECTIONS) == sorted(NAMES)


def test_a_runbook_has_the_same_parts_as_all_the_others() -> None:
    for section in re.split(r"^## ", RUNBOOKS.read_text(), flags=re.MULTILINE)[1:]:
        assert re.search(r"\*\*Means\.\*\*.+\*\*Look.+\*\*Do not\*\*", section, re.DOTALL), section.splitlines()[0]


@each_alert
def test_an_alert_is_told_in_some_test_with_the_labels_that_its_words_need(alert: dict[str, Any]) -> None:
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(alert["annotations"].values())))
    told = [
        labels
        for labels in told_in_tests()
        if labels["alertname"] == alert["alert"] and alert["labels"].items() <= labels.items()
    ]

    assert any(used <= labels.keys() for labels in told)


def told_in_tests() -> Iterator[dict[str, str]]:
    """Return the labels of every alert that some test expects to be told."""
    for test in TESTS:
        for case in test.get("alert_rule_test", ()):
            yield from ({"alertname": case["alertname"], **each["exp_labels"]} for each in case["exp_alerts"])
        for case in test.get("promql_expr_test", ()):
            if 'alertstate="firing"' in case["expr"]:
                yield from (dict(_MATCHER.findall(each["labels"])) for each in case["exp_samples"])


def commands() -> Iterator[str]:
    """Every command line of ours in alerts and runbooks, with names put in."""
    for alert in ALERTS:
        yield from re.sub(r"\{\{.*?\}\}", "host-1", alert["annotations"]["command"]).split(";")
    text = RUNBOOKS.read_text()
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        yield from (line.partition("#")[0] for line in block.splitlines())
    yield from re.findall(r"`(reliability [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


OURS = sorted({line.strip() for line in commands() if line.strip().startswith("reliability ")})


@for_each({line: line for line in OURS})
def test_a_command_that_operators_are_told_exists(line: str) -> None:
    names = {"HOST": "host-1", "VM": "vm-1", "FILE": str(ALERTMANAGER)}
    words = [names.get(word, word) for word in shlex.split(line)[1:]]
    context = click.Context(reliability)
    command: click.Command = reliability
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found

    command.make_context(line, words, parent=context)
