"""docker-compose.yml opens nothing to others, has no default password, and names only what there is."""

import io
import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from workers.settings import ENV_PREFIX, KEYS, load
from workers.specfiles import read_specs

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOTS = {"demo-vms"}
PROGRAMS = {"beat-1", "beat-2", "flower", "worker", "demo-vms"}
PORTS = {"redis": 6379, "flower": 5555, "prometheus": 9090, "alertmanager": 9093, "grafana": 3000}

# `${NAME:?what to do}`; `$$` is a plain dollar sign.
VARIABLE = re.compile(r"(?<!\$)\$(?:\{([^}]*)\}|(\w+))")
DEMANDED = re.compile(r"([A-Z_]+):\?(.+)")
SECRET = re.compile(r"PASSWORD|BASIC_AUTH|_URL$|SECRET|TOKEN")

each_service = pytest.mark.parametrize("name", SERVICES)


def environment(name: str) -> dict[str, str]:
    return {variable: str(value) for variable, value in SERVICES[name].get("environment", {}).items()}


def bind_mounts() -> list[tuple[str, str, str]]:
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", ())]
    return [(source, target, ":".join(options)) for source, target, *options in mounts if source.startswith(".")]


def test_the_services_are_these() -> None:
    lasting = {"redis", "prometheus", "alertmanager", "grafana"}
    assert set(SERVICES) == lasting | PROGRAMS


def test_the_worker_belongs_to_the_demo_alone() -> None:
    assert {name for name in SERVICES if SERVICES[name].get("profiles")} == {"worker", "demo-vms"}
    assert SERVICES["worker"]["profiles"] == SERVICES["demo-vms"]["profiles"] == ["demo"]


def test_the_worker_can_judge_the_vmms_of_the_container_before() -> None:
    """In a pid namespace of its own, a new container would take dead VMs for healthy."""
    assert SERVICES["worker"]["pid"] == "host"


def test_what_is_filled_in_must_be_given_and_says_what_to_do() -> None:
    for braced, bare in VARIABLE.findall(TEXT):
        demanded = DEMANDED.fullmatch(braced)
        assert demanded, f"${braced or bare}"
        assert ".env.example" in demanded[2]


def test_the_example_names_just_what_is_demanded_and_gives_no_password() -> None:
    demanded = {found[1] for braced, _ in VARIABLE.findall(TEXT) if (found := DEMANDED.fullmatch(braced))}
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if line and not line.startswith("#")]

    assert sorted(lines) == sorted(f"{name}=" for name in demanded)


@each_service
def test_there_is_no_password_in_the_file(name: str) -> None:
    for variable, value in environment(name).items():
        if SECRET.search(variable):
            # A URL without a login would be a server without a password.
            assert DEMANDED.search(value), variable


@each_service
def test_ports_are_published_on_loopback_only(name: str) -> None:
    published = SERVICES[name].get("ports", [])

    assert [int(port.rsplit(":", 1)[1]) for port in published] == ([PORTS[name]] if name in PORTS else [])
    for port in published:
        assert ipaddress.ip_address(port.rsplit(":", 2)[0]).is_loopback
    assert "network_mode" not in SERVICES[name]
    assert "privileged" not in SERVICES[name]
    assert SERVICES[name]["cap_drop"] == ["ALL"]


@each_service
def test_services_come_back_and_say_how_they_are(name: str) -> None:
    service = SERVICES[name]
    if name in ONE_SHOTS:
        assert service["restart"] == "on-failure"
        return
    assert service["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])


@each_service
def test_no_service_can_use_up_the_machine(name: str) -> None:
    service = SERVICES[name]

    assert re.fullmatch(r"[0-9]+[mg]", service["mem_limit"])
    assert 0 < service["cpus"] <= 1
    assert 0 < service["pids_limit"] <= 512
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


@each_service
def test_settings_are_known_and_agree(name: str, tmp_path: Path) -> None:
    secret_files = {"redis.url", "broker.url", "flower.basic_auth"}
    known = {*KEYS, *(f"{key}_file" for key in secret_files)}
    given = {variable: value for variable, value in environment(name).items() if variable.startswith(ENV_PREFIX)}

    for variable in given:
        assert variable.removeprefix(ENV_PREFIX).lower().replace("__", ".") in known
    assert bool(given) == (name in PROGRAMS)
    filled_in = {variable: VARIABLE.sub("a1b2", value) for variable, value in given.items()}
    load(filled_in | {"RELIABILITY_STATE_DIR": str(tmp_path)}, tmp_path)


@pytest.mark.parametrize(
    ("name", "port"), [("worker", "worker_port"), ("beat-1", "beat_port"), ("beat-2", "beat_port"), ("flower", None)]
)
def test_health_checks_ask_where_the_program_listens(name: str, port: str | None, tmp_path: Path) -> None:
    settings = load({"RELIABILITY_STATE_DIR": str(tmp_path)}, tmp_path).settings
    number = getattr(settings.telemetry, port) if port else settings.flower.port

    assert f"http://127.0.0.1:{number}/health" in SERVICES[name]["healthcheck"]["test"][-1]


def test_everything_that_is_mounted_exists_and_cannot_be_written() -> None:
    assert bind_mounts()
    for source, _, options in bind_mounts():
        assert (ROOT / source).exists(), source
        assert options == "ro", source
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            assert mount.startswith(".") or mount.split(":")[0] in COMPOSE["volumes"]


def test_files_that_commands_name_are_mounted() -> None:
    places = {target: ROOT / source for source, target, _ in bind_mounts()}
    commands = [
        word.partition("=")[2] or word
        for service in SERVICES.values()
        for word in [*service.get("entrypoint", ()), *service.get("command", ())]
    ]
    named = [Path(word) for word in commands if word.startswith(("/etc/", "/srv/"))]

    assert len(named) == 5
    for path in named:
        here = [source / path.relative_to(target) for target, source in places.items() if path.is_relative_to(target)]
        assert [each.exists() for each in here] == [True], path


def test_prometheus_scrapes_the_beats_and_the_worker_and_knows_the_rules() -> None:
    config = yaml.safe_load((ROOT / "config/compose/prometheus.yml").read_text())
    plain = yaml.safe_load((ROOT / "config/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}

    # The rules and dashboards count on these.
    assert list(jobs) == [job["job_name"] for job in plain["scrape_configs"]]
    assert config["global"] == plain["global"]
    assert config["rule_files"] == plain["rule_files"]
    assert jobs["reliability-beat"]["static_configs"] == [{"targets": ["beat-1:9809", "beat-2:9809"]}]
    (by_name,) = jobs["reliability-worker"]["dns_sd_configs"]
    assert (by_name["names"], by_name["port"]) == (["worker"], 9808)
    # No host is there from the start: one that is not would raise an alarm.
    assert yaml.safe_load((ROOT / "config/compose/targets/hosts.yml").read_text()) is None


def test_the_vms_of_the_demo_belong_to_its_worker() -> None:
    variables = environment("worker")
    specs = read_specs(str(ROOT / "config/compose/demo/vms.yaml"), stdin=io.StringIO(), default_host="elsewhere")

    assert len(specs) == 20
    assert {spec.host for spec in specs} == {variables["RELIABILITY_HOST"]}
    for spec in specs:
        assert spec.kernel.is_relative_to(variables["RELIABILITY_IMAGE_ROOTS"])
        assert (ROOT / "config/compose/demo" / spec.kernel.name).is_file()


def test_redis_shuts_its_default_user_without_stripping_it() -> None:
    """Without rights of that user, Redis would skip its append-only file at the next start."""
    lines = (ROOT / "config/redis/users.acl").read_text().splitlines()
    users = {line.split()[1]: line.split()[2:] for line in lines if line.startswith("user ")}

    assert users["default"] == ["reset", "off", "~*", "&*", "+@all"]
    assert users["health"] == ["reset", "on", "nopass", "-@all", "+ping"]
    assert "#PASSWORD_SHA256" in users["reliability"]
    assert "-@dangerous" in users["reliability"]
