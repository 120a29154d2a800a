"""docs/observability.md names all there is, and nothing else: its tables against the code and the rule files."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from opentelemetry.instrumentation import celery as instrumented

from tests.support.builders import HOST
from workers.cli.menu import reliability
from workers.domain.audit import Deferral, Event, EventKind
from workers.domain.breaker import BreakerState
from workers.domain.evidence import Evidence, Verdict
from workers.domain.modes import Mode
from workers.domain.vm import Reason, State
from workers.ports import Ignorance, Work
from workers.settings import KEYS, load, text_of, value_of
from workers.telemetry import instruments as m
from workers.telemetry import logging as pipeline
from workers.telemetry import story
from workers.telemetry.metrics import OUTCOMES
from workers.telemetry.tracing import LOST_SPAN

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "observability.md"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", DOC.read_text(), re.MULTILINE | re.DOTALL))
# Marks: a metric that can name its VM, and a line that is never left out as a repetition.
PER_VM, ALWAYS = " ¹", " ²"
LEVELS = {"exception": "error"} | {level: level for level in ("debug", "info", "warning", "error", "critical")}


def rows(section: str, first: str) -> list[list[str]]:
    """Return the cells of all tables in this section whose first column has this head."""
    found: list[list[str]] = []
    is_ours = False
    for line in SECTIONS[section].splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            is_ours = False
        elif cells[0] == first:
            is_ours = True
        elif is_ours and set(cells[0]) != {"-"}:
            found.append(cells)
    assert found, f"no table of {first} in {section}"
    return found


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def name(cell: str) -> str:
    only = names(cell)
    assert len(only) == 1, cell
    return only[0]


# Metrics


def test_every_metric_stands_there_with_its_kind_labels_and_meaning() -> None:
    told = [(name(cells[0]), cells[1], tuple(names(cells[2])), cells[3]) for cells in rows("Metrics", "name")]
    assert told == [(each.name, each.kind, each.labels, each.help) for each in m.METRICS]


def test_the_metrics_that_can_name_their_vm_are_marked() -> None:
    marked = [name(cells[0]) for cells in rows("Metrics", "name") if cells[2].endswith(PER_VM)]
    assert marked == [each.name for each in m.METRICS if each in m.PER_VM]


def test_the_values_of_labels_are_those_there_are() -> None:
    told = {cells[0]: names(cells[1]) for cells in rows("Metrics", "label")}
    # There are many: some examples, and where all of them stand.
    assert set(told.pop("`evidence`")) - {*Evidence} == {"workers/domain/evidence.py"}
    assert told.pop("`outcome` of an attempt") + told.pop("`outcome` of an episode") == [*OUTCOMES]
    assert told == {
        "`driver`": ["firecracker", "qemu"],
        "`reason` of a loss": [reason for reason in Reason if reason is not Reason.NOT_STARTED],
        "`verdict`": [*Verdict],
        "`cause` of a deferral": [*Deferral],
        "`cause` of an ignored message": [*Ignorance],
        "`state` of a VM": [*State],
        "`kind`, `state` of a breaker": [
            *("image", "driver", "host", "fleet"),
            *(state for state in BreakerState if state is not BreakerState.CLOSED),
        ],
        "`kind` of a storm": ["host", "fleet"],
        "`kind`, `mode` of a held place": ["fleet", "host", *Mode],
        "`kind` of a halted host": ["frozen", "paused"],
        "`kind` of a beat's message": ["check_vms", "detect_orphans", "reconcile"],
    }


# Log events


@dataclass(frozen=True, order=True)
class Line:
    """`component` is empty where it depends on who tells; `is_counted`: never left out as a repetition."""

    message: str
    level: str
    component: str
    is_counted: bool = False


@dataclass(frozen=True)
class Logger:
    component: str
    is_counted: bool


def source() -> Iterator[tuple[Path, ast.Module]]:
    for package in ("workers", "beat"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def loggers_of(tree: ast.Module) -> dict[str, Logger]:
    """Return the structlog loggers of a module by the names they have there."""
    found = {}
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and isinstance(made := node.value, ast.Call)):
            continue
        if ast.unparse(made.func) == "structlog.get_logger":
            (target,) = node.targets
            found[ast.unparse(target)] = Logger(component_in(made), bool(made.args))
    return found


def component_in(call: ast.Call) -> str:
    return next((ast.literal_eval(each.value) for each in call.keywords if each.arg == "component"), "")


def logged_directly() -> Iterator[Line]:
    """Yield the line of every call of a logger; each has to say what it says in plain words."""
    for path, tree in source():
        known = loggers_of(tree)
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            logger = known.get(ast.unparse(call.func.value))
            if logger is None:
                continue
            assert call.func.attr in LEVELS, f"{path}:{call.lineno}: {call.func.attr}"
            message = call.args[0]
            assert isinstance(message, ast.Constant), f"{path}:{call.lineno}: not in plain words"
            level = LEVELS[call.func.attr]
            yield Line(str(message.value), level, component_in(call) or logger.component, logger.is_counted)


def logged_by_the_story() -> Iterator[Line]:
    """Yield what decisions are told as: by their kind, by the state they lead to, and beside these."""
    for kind, after, reason in product(EventKind, State, (Reason.PROCESS_DEAD, Reason.NOT_STARTED)):
        told = Event(kind, "vm-1", HOST, "", "", before=State.UNKNOWN, after=after, reason=reason)
        level, message = story._words(told)
        yield Line(message, level, "", is_counted=True)
    yield Line("starting vm recovery", "info", "", is_counted=True)
    yield Line(story.ATTEMPT_FAILED, "warning", "", is_counted=True)


def said_beside_them() -> list[str]:
    """Return the messages that the story tells beside those of its tables."""
    tree = ast.parse(Path(story.__file__).read_text(encoding="utf-8"))
    calls = [each for each in ast.walk(tree) if isinstance(each, ast.Call) and ast.unparse(each.func) == "_say"]
    return [ast.unparse(call.args[1]) for call in calls if len(call.args) > 2]


@cache
def logged() -> frozenset[Line]:
    excuse = pipeline._excuse("", ValueError())
    own = Line(str(excuse["event"]), str(excuse["level"]), str(excuse["component"]))
    return frozenset({*logged_directly(), *logged_by_the_story(), own})


def documented() -> list[Line]:
    return [
        Line(name(event), level, component, event.endswith(ALWAYS))
        for event, level, component, _ in rows("Log events", "event")
    ]


def test_every_line_that_can_be_logged_stands_there_with_its_level() -> None:
    told = {(line.message, line.level, line.is_counted) for line in documented()}
    assert told == {(line.message, line.level, line.is_counted) for line in logged()}


def test_components_are_those_that_the_code_names() -> None:
    told = {(line.message, line.level, each) for line in documented() for each in line.component.split(", ")}
    assert {(line.message, line.level, line.component) for line in logged() if line.component} <= told


def test_no_row_stands_there_twice() -> None:
    assert [line for line, number in Counter(documented()).items() if number > 1] == []


def test_the_story_says_nothing_that_its_tables_do_not_have_but_two_lines() -> None:
    assert sorted(said_beside_them()) == ["'starting vm recovery'", "ATTEMPT_FAILED"]


def test_the_scan_finds_what_it_should() -> None:
    found = {(line.message, line.level) for line in logged_directly()}
    assert ("this worker serves the host", "info") in found
    assert ("telemetry failed", "error") in found
    assert len(found) > 30


def test_the_words_of_the_tables_of_the_story_are_all_told() -> None:
    words = {*story.KINDS.values(), *story.FIRST_STARTS.values(), *story._TRANSITIONS.values()}
    assert words <= {(line.level, line.message) for line in logged_by_the_story()}


# Greps


@pytest.mark.parametrize(
    "pattern", [names(cells[0])[0] for cells in rows("What happened to vm-123, and why?", "command")]
)
def test_a_grep_of_the_document_finds_a_line_of_the_log(pattern: str) -> None:
    found = re.fullmatch(r"""grep -[cE] (["'])(.+)\1""", pattern)
    assert found is not None
    asked = found[2].replace("\\|", "|")
    lines = [f'event="{line.message}" component=health_check' for line in logged()]
    assert any(re.search(asked, line) for line in lines)


# Spans


def test_every_span_stands_there() -> None:
    told = [name(cells[0]) for cells in rows("Traces", "span")]
    celerys = [f"{each}/TASK" for each in (instrumented._TASK_RUN, instrumented._TASK_APPLY_ASYNC)]
    assert sorted(told) == sorted([LOST_SPAN, *Work, *celerys])


# Settings and endpoints


def test_every_setting_stands_there_with_its_default(tmp_path: Path) -> None:
    settings = load({"RELIABILITY_STATE_DIR": str(tmp_path)}, tmp_path).settings
    told = {name(cells[0]): name(cells[1]) for cells in rows("Settings", "setting")}
    assert told == {key: text_of(value_of(settings, key)) for key in KEYS if key.startswith("telemetry.")}


def test_the_endpoints_are_those_that_are_served() -> None:
    tree = ast.parse((ROOT / "workers" / "telemetry" / "monitor.py").read_text(encoding="utf-8"))
    served = [
        each.value
        for each in ast.walk(tree)
        if isinstance(each, ast.Constant) and re.match("/[a-z]+$", str(each.value))
    ]
    assert [name(cells[0]) for cells in rows("Endpoints", "path")] == served


def test_a_variable_that_stands_there_begins_like_all_of_opentelemetry() -> None:
    told = [each for cells in rows("Settings", "variable") for each in names(cells[0])]
    assert all(each.startswith("OTEL_") for each in told)
    read = set(re.findall(r"OTEL_[A-Z_]+[A-Z]", (ROOT / "workers" / "telemetry" / "export.py").read_text()))
    missing = [
        each for each in read if not any(each.startswith(one.rstrip("*")) or one.startswith(each) for one in told)
    ]
    assert missing == []


# Alerts


def alerts() -> Iterator[dict[str, Any]]:
    for path in sorted((ROOT / "config" / "prometheus" / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from (rule for rule in group["rules"] if "alert" in rule)


def test_every_alert_stands_there_with_its_severity_its_patience_and_its_runbook() -> None:
    told = Counter((cells[0], cells[1], cells[2]) for cells in rows("Alerts", "alert"))
    assert told == Counter(
        (
            f"[`{alert['alert']}`]({alert['annotations']['runbook_url'].removeprefix('docs/')})",
            alert["labels"]["severity"],
            alert["for"],
        )
        for alert in alerts()
    )
    assert all(cells[3] for cells in rows("Alerts", "alert"))


# The rest


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", DOC.read_text()):
        assert (DOC.parent / target).exists(), target


def test_commands_of_ours_exist() -> None:
    for line in re.findall(r"`(reliability [^`]+)`", DOC.read_text()):
        words = line.split()[1:]
        context = click.Context(reliability)
        command: click.Command | None = reliability
        while isinstance(command, click.Group):
            command = command.get_command(context, words.pop(0))
        assert command is not None, line


def test_numbers_of_series_are_about_right() -> None:
    """Of one VM: two counters by reason, and four without."""
    losses = len([reason for reason in Reason if reason not in (Reason.NOT_STARTED, Reason.MANUAL)])
    by_reason = sum(m.REASON in metric.labels for metric in m.PER_VM)
    assert by_reason * losses + len(m.PER_VM) - by_reason == 12
    assert "twelve series per VM" in SECTIONS["Metrics"].replace("\n", " ")
