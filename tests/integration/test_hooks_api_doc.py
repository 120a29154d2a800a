"""docs/hooks-api.md: each of its commands is run against a real server, and what it shows is what there is."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator

from tests.conftest import require
from tests.support.hooks import Site, serving
from workers.integration.http_routes import ROUTES, Route, routes_at, segments_of
from workers.integration.http_server import BODY_MAX
from workers.integration.openapi import description
from workers.settings import KEYS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "hooks-api.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
EXAMPLES = [text for kind, text in BLOCKS if kind == "sh" and text.startswith("curl ")]
SHOWN = [
    (before, text)
    for (kind_before, before), (kind, text) in pairwise(BLOCKS)
    if (kind_before, kind) == ("sh", "json") and before in EXAMPLES and not text.startswith('{"error"')
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(tmp_path_factory.mktemp("doc")) as made:
        made.feed.happen("vm-1")
        yield made


def route_of(command: str) -> Route:
    words = shlex.split(command)
    url = next(word for word in words if word.startswith("http://hooks/"))
    given = words[words.index("-X") + 1] if "-X" in words else None
    method = given or ("POST" if "--data" in words else "GET")
    segments, _ = segments_of(url.removeprefix("http://hooks"))
    return routes_at(segments)[method]


def validator(schema: Any) -> OAS31Validator:
    return OAS31Validator({**schema, "components": description()["components"]})


def answer_schema(route: Route) -> Any:
    response = description()["paths"][route.path][route.method.lower()]["responses"][str(int(route.status))]
    return response["content"]["application/json"]["schema"]


@pytest.mark.parametrize("command", EXAMPLES, ids=lambda command: route_of(command).name)
def test_each_command_is_answered_as_it_is_described(site: Site, command: str) -> None:
    require("curl", shutil.which("curl") is not None, "apt-get install curl")
    found = subprocess.run(
        ["bash", "-euc", command],
        env={"HOOKS": str(site.path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout.decode() + found.stderr.decode()
    validator(answer_schema(route_of(command))).validate(json.loads(found.stdout))


def test_each_route_has_a_command() -> None:
    assert {route_of(command).name for command in EXAMPLES} == {route.name for route in ROUTES}


@pytest.mark.parametrize(("command", "text"), SHOWN, ids=lambda value: value[:20])
def test_an_answer_that_is_shown_is_as_it_is_described(command: str, text: str) -> None:
    validator(answer_schema(route_of(command))).validate(json.loads(text))


def test_the_error_that_is_shown_is_one(site: Site) -> None:
    shown = next(json.loads(text) for kind, text in BLOCKS if kind == "json" and '"error"' in text)
    body = {"process": {"pid": 0}, "config": {}}
    assert site.http.post("/v1/vms/vm-1/created", json=body).json() == shown


def test_its_settings_are_those_there_are() -> None:
    told = re.findall(r"^\| `(integration\.\w+)`", TEXT, re.MULTILINE)
    assert told == [key for key in KEYS if key.startswith("integration.")]


def test_its_limits_and_links_are_right() -> None:
    assert f"{BODY_MAX // 1024} KiB of body" in TEXT
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
