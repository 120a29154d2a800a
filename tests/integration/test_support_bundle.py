"""`reliability support-bundle`: what is in it with and without Redis, and that no secret is."""

import base64
import gzip
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.cli import ME, Answer, Ask, asking
from tests.support.cluster import Cluster, cluster
from tests.support.processes import wait_until
from workers.embedded import EmbeddedServer
from workers.host.rundir import CONSOLE, VMM_LOG, HostFiles
from workers.specs import dump_spec
from workers.telemetry.endpoints import Endpoints, json_reply

SECRETS: Mapping[str, str] = {
    "BROKER__URL": "broker-pass/word 7",
    "FLOWER__BASIC_AUTH": "flower-pässword",
    "DRIVERS__QEMU__ENVIRONMENT__VNC": "driver-secret-7",
    "OTEL_EXPORTER_OTLP_HEADERS": "collector-secret-7",
}
KERNEL_ARGS = "console=ttyS0 root=/dev/vda join_token=kernel-secret-7"


@pytest.fixture
def site(fresh_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-key={SECRETS['OTEL_EXPORTER_OTLP_HEADERS']}")
    extra = {
        "BROKER__URL": f"redis://:{quote(SECRETS['BROKER__URL'], safe='')}@127.0.0.1:{fresh_server.port}/1",
        "FLOWER__BASIC_AUTH": f"ann:{SECRETS['FLOWER__BASIC_AUTH']}",
        "DRIVERS__QEMU__ENVIRONMENT__VNC": SECRETS["DRIVERS__QEMU__ENVIRONMENT__VNC"],
    }
    with cluster(tmp_path, fresh_server, **extra) as made:
        yield made


@pytest.fixture
def ask(site: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    return asking(site, monkeypatch, capsys)


def secrets(site: Cluster) -> list[str]:
    redis_password = site.server.url().partition("://:")[2].partition("@")[0]
    return [*SECRETS.values(), redis_password, "kernel-secret-7"]


def ran_here(site: Cluster, vm_id: str, said: str) -> None:
    """Leave what a VM that ran on this host leaves, with this on its console and in its log."""
    files = HostFiles(site.state_dir)
    files.prepare()
    spec = site.spec(vm_id, kernel_args=KERNEL_ARGS)
    run = files.begin(vm_id, 1, driver="firecracker", spec=dump_spec(spec))
    for name in (CONSOLE, VMM_LOG):
        (run.path / name).write_text(said)


def opened(site: Cluster, answer: Answer) -> dict[str, bytes]:
    """Return the content of each file by its name in the bundle."""
    path = site.folder / answer.out.strip()
    with tarfile.open(path) as tar:
        folder, read = path.name.removesuffix(".tar.gz"), {}
        for member in tar:
            name = PurePosixPath(member.name)
            assert member.isfile()
            assert not name.is_absolute()
            assert ".." not in name.parts
            content = tar.extractfile(member)
            assert content is not None
            read[str(name.relative_to(folder) if name.is_relative_to(folder) else name)] = content.read()
    return read


def manifest(files: Mapping[str, bytes]) -> Any:
    return json.loads(files["MANIFEST.json"])


def left_out(files: Mapping[str, bytes]) -> dict[str, str]:
    return {each["what"]: each["why"] for each in manifest(files)["left_out"]}


def test_no_secret_of_the_settings_is_anywhere_in_it(ask: Ask, site: Cluster) -> None:
    vm_id = f"{ME}-b1"
    site.apply(site.spec(vm_id, kernel_args=KERNEL_ARGS, labels={"team": "red"}))
    said = "\n".join([KERNEL_ARGS, *(f"<{each}> {quote(each)} {_base64(each)}" for each in secrets(site))])
    ran_here(site, vm_id, said)
    endpoints = Endpoints("127.0.0.1", 0, {"/status": lambda: json_reply({"says": said})})
    endpoints.start()
    try:
        site.extra = dict(site.extra) | {"TELEMETRY__WORKER_PORT": _port(endpoints)}
        answer = _ask_again(ask, site, "support-bundle", "--output", str(site.folder / "b.tar.gz"))
    finally:
        endpoints.stop()

    assert answer.status == 0, answer.err
    raw = gzip.decompress((site.folder / "b.tar.gz").read_bytes())
    for secret in secrets(site):
        for form in (secret, quote(secret), quote(secret, safe=""), _base64(secret), json.dumps(secret)[1:-1]):
            assert form.encode() not in raw, form
    with tarfile.open(site.folder / "b.tar.gz") as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {f"runs/{vm_id}/1/{CONSOLE}", "worker/status.json", "vms.jsonl", "events.jsonl"} <= names
    assert b'"team":"red"' in raw


def test_it_holds_what_is_known_of_the_fleet_and_lists_itself(ask: Ask, site: Cluster) -> None:
    vm_id = f"{ME}-b2"
    site.apply(site.spec(vm_id), site.spec(f"{ME}-other"))
    ran_here(site, vm_id, "login:\n")

    files = opened(site, ask("support-bundle", "--vm", vm_id, "--vm", f"{ME}-none"))

    listed = {each["name"]: each["bytes"] for each in manifest(files)["files"]}
    assert listed == {name: len(content) for name, content in files.items() if name != "MANIFEST.json"}
    assert manifest(files)["redis"] == "answers"
    assert [json.loads(line)["id"] for line in files["vms.jsonl"].splitlines()] == [vm_id]
    assert {json.loads(line)["vm_id"] for line in files["events.jsonl"].splitlines()} == {vm_id}
    assert json.loads(files["status.json"])["vms"]["starting"] == 2
    assert files[f"runs/{vm_id}/1/{CONSOLE}"] == b"login:\n"
    assert json.loads(files["doctor.json"])["findings"]
    assert left_out(files)[f"record of {ME}-none"] == "there is none"


def test_without_redis_it_holds_what_the_host_knows(ask: Ask, site: Cluster) -> None:
    ran_here(site, f"{ME}-b3", "login:\n")
    site.extra = dict(site.extra) | {"REDIS__URL": "redis://127.0.0.1:1/0"}

    answer = _ask_again(ask, site, "support-bundle")

    assert answer.status == 0
    files = opened(site, answer)
    assert "does not answer" in manifest(files)["redis"]
    assert "does not answer" in left_out(files)["status, hosts, modes, breakers, events, records"]
    assert f"runs/{ME}-b3/1/{CONSOLE}" in files
    assert "settings.json" in files


def test_no_logs_means_none(ask: Ask, site: Cluster) -> None:
    ran_here(site, f"{ME}-b4", "login:\n")

    files = opened(site, ask("support-bundle", "--no-logs", "--vm", f"{ME}-b4"))

    assert not [name for name in files if name.startswith(("runs/", "journal/"))]
    assert left_out(files)["logs of VMs, journal"] == "--no-logs"


def test_nothing_is_overwritten_and_a_wrong_place_is_told_before_the_work(ask: Ask, site: Cluster) -> None:
    there = site.folder / "there.tar.gz"
    there.write_text("mine")

    taken = ask("support-bundle", "--output", str(there))
    nowhere = ask("support-bundle", "--output", str(site.folder / "none" / "b.tar.gz"))

    assert (taken.status, there.read_text()) == (1, "mine")
    assert taken.err == f"reliability: {there} exists already, and nothing is overwritten: name another --output\n"
    assert "none is no folder that we may write to" in nowhere.err


@pytest.mark.parametrize("arguments", [["--last", "yesterday"], ["--vm", "../etc"]])
def test_wrong_options_are_told_on_one_line(ask: Ask, arguments: list[str]) -> None:
    answer = ask("support-bundle", *arguments)

    assert (answer.status, answer.out) == (2, "")
    assert answer.err.count("\n") == 1
    assert arguments[0] in answer.err


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _port(endpoints: Endpoints) -> str:
    url = wait_until(lambda: endpoints.url, what="the endpoints to listen")
    return str(url).rpartition(":")[2]


def _ask_again(ask: Ask, site: Cluster, *arguments: str) -> Answer:
    """With the settings that the site has by now."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in site.environment.items():
            patch.setenv(name, value)
        return ask(*arguments)
