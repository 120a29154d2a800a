"""Every argument of every task is checked: found from the signatures, so a new one without a check fails here."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from workers import bootstrap_host
from workers.app import app, make_app
from workers.runtime import HostRuntime
from workers.settings import load
from workers.tasks import arguments
from workers.tasks.arguments import BadArgument

HOST = "host-a"
OURS = "workers.tasks."

# What is right, for the arguments that have no default.
GOOD: dict[str, Any] = {"vm_id": "vm-1", "vm_ids": ["vm-1"], "host": HOST}

_NO_TEXT: list[Any] = [5, True, 1.5, [], {}, ["vm-1"], "x" * 201, "two\nlines", "nul\0", "\x1b[2J"]
_NO_ID: list[Any] = [None, "", "../vm-1", "vm/1", "vm 1", "VM-1", "vm-1\n", "x" * 65, "-vm", "vm:1", "{vm}"]
_NO_NUMBER: list[Any] = ["1", 1.5, True, [], {}, 2**64, -(2**64)]
BAD: dict[object, list[Any]] = {
    str: _NO_TEXT,  # None stands for the default
    str | None: _NO_TEXT,
    int: _NO_NUMBER,
    int | None: _NO_NUMBER,
    list[str]: [None, 5, True, {}, "vm-1", [], [5], [["vm-1"]], ["vm-1"] * 5001, *([each] for each in _NO_ID)],
}
IDS = {"vm_id", "host"}


def tasks() -> Iterator[tuple[str, Any]]:
    app.loader.import_default_modules()
    return ((name, task) for name, task in sorted(app.tasks.items()) if name.startswith(OURS))


def cases() -> Iterator[Any]:
    for name, task in tasks():
        for argument, parameter in inspect.signature(task.run).parameters.items():
            known = parameter.annotation in BAD
            values = BAD[parameter.annotation] if known else ["no values for this type: add some to BAD"]
            for value in [*values, *(_NO_ID if argument in IDS else ())]:
                yield pytest.param(task, argument, value, id=f"{name.removeprefix(OURS)}-{argument}-{value!r:.20}")


@pytest.fixture(scope="module", autouse=True)
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostRuntime]:
    """A host whose worker never starts: a task that gets as far as to it returns without a word."""
    folder = tmp_path_factory.mktemp("host")
    environ = {"RELIABILITY_HOST": HOST, "RELIABILITY_STATE_DIR": str(folder)}
    before = bootstrap_host._runtime
    bootstrap_host._runtime = None
    settings = load(environ, folder).settings
    yield bootstrap_host.start_host_runtime(settings, make_app(settings))
    bootstrap_host._runtime = before


@pytest.mark.parametrize(("task", "argument", "value"), list(cases()))
def test_a_wrong_argument_is_refused_by_name(task: Any, argument: str, value: object) -> None:
    parameters = inspect.signature(task.run).parameters
    right = {name: GOOD[name] for name, each in parameters.items() if each.default is inspect.Parameter.empty}

    with pytest.raises(BadArgument, match=f"^argument {argument}: ") as refused:
        task.run(**right | {argument: value})

    assert "\n" not in str(refused.value)


def test_these_are_all_the_tasks_there_are() -> None:
    """What else a worker would run by name comes with Celery."""
    strangers = [name for name in app.tasks if not name.startswith((OURS, "celery."))]

    assert len(list(tasks())) >= 6
    assert strangers == []


@pytest.mark.parametrize("check", [arguments.vm_id_of, arguments.vm_ids_of])
def test_what_is_right_passes(check: Callable[[object], object]) -> None:
    value = "vm-1" if check is arguments.vm_id_of else ["vm-1", "vm-2"]

    assert check(value) == value


def test_a_wrong_host_is_told_where_its_message_belongs() -> None:
    with pytest.raises(BadArgument, match="must be host-a, which this worker serves, got host-b"):
        arguments.host_of("host-b", HOST)
