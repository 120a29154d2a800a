"""`reliability` as people and programs use it to declare and to look, on a real server."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping

import pytest

from tests.support.cli import ME, PASSWORD, PROGRAM, Ask, asking, cli_site, declare, environment, execute, program
from tests.support.cluster import Cluster
from workers.embedded import free_port


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cli_site(tmp_path_factory.mktemp("cli")) as made:
        yield made


@pytest.fixture
def ask(site: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    return asking(site, monkeypatch, capsys)


def write_vms(site: Cluster, name: str, *vms: Mapping[str, object]) -> str:
    plain = {"driver": "firecracker", "kernel": str(site.kernel)}
    path = site.folder / f"{name}.json"
    path.write_text(json.dumps([plain | dict(vm) for vm in vms]))
    return str(path)


def test_a_file_is_applied_as_a_whole_and_again_changes_nothing(site: Cluster, ask: Ask) -> None:
    ids = [f"{ME}-a1", f"{ME}-a2"]
    file = write_vms(site, "apply", *({"id": vm_id} for vm_id in ids))

    planned = ask("apply", "-f", file, "--dry-run")
    assert [row.split()[2:] for row in planned.out.splitlines()[1:]] == [["created", "(dry", "run)"]] * 2
    assert not site.fleet.store.read(ids).found

    assert [vm["result"] for vm in ask("apply", "-f", file, "-o", "json").document["vms"]] == ["created"] * 2
    assert [row.split() for row in ask("apply", "-f", file).out.splitlines()[1:]] == [
        [vm_id, site.host, "unchanged"] for vm_id in ids
    ]
    changed = write_vms(site, "apply", {"id": ids[0]}, {"id": ids[1], "priority": 9})
    results = ask("apply", "-f", changed, "-o", "json").document["vms"]
    assert [vm["result"] for vm in results] == ["unchanged", "changed"]
    assert site.events(ids[0])[0].event.actor.startswith("cli:")


def test_one_wrong_field_is_named_and_keeps_all_from_being_applied(site: Cluster, ask: Ask) -> None:
    file = write_vms(site, "wrong", {"id": f"{ME}-w1"}, {"id": f"{ME}-w2", "memory_mib": "much"})

    answer = ask("apply", "-f", file)

    assert (answer.status, answer.out) == (2, "")
    assert answer.err == f'reliability: {file}: [1].memory_mib: must be a whole number (got "much")\n'
    assert not site.fleet.store.read([f"{ME}-w1"]).found


def test_what_the_record_forbids_keeps_all_from_being_applied(site: Cluster, ask: Ask) -> None:
    declare(site, f"{ME}-moved")

    answer = ask("apply", "-f", write_vms(site, "moved", {"id": f"{ME}-n"}, {"id": f"{ME}-moved", "host": "host-z"}))

    assert answer.status == 1
    assert f"{ME}-moved: field host: is '{site.host}' and cannot become 'host-z'" in answer.err
    assert answer.err.endswith("reliability: nothing was changed\n")
    assert not site.fleet.store.read([f"{ME}-n"]).found


def test_specs_come_from_standard_input_and_doubts_go_beside_the_result(site: Cluster) -> None:
    text = f"id: {ME}-in\nhost: host-none\ndriver: firecracker\nkernel: {site.kernel}\n---\n"
    text += f"id: {ME}-in2\ndriver: firecracker\nkernel: {site.folder}/images/absent\n"

    answer = execute(site, "apply", "-f", "-", "-o", "name", given=text)

    assert (answer.status, answer.out) == (0, f"{ME}-in\n{ME}-in2\n")
    assert f"warning: {ME}-in2: kernel: {site.folder}/images/absent is missing" in answer.err
    assert "warning: no worker serves host host-none" in answer.err


def test_vms_are_listed_by_state_host_and_label(site: Cluster, ask: Ask) -> None:
    declare(site, f"{ME}-l10", labels={"team": ME})
    declare(site, f"{ME}-l2", labels={"team": ME}, host="host-l")
    declare(site, f"{ME}-l3", labels={"team": "other"}, desired="stopped", host="host-l")
    mine = ("vm", "list", "--label", f"team={ME}")

    assert ask(*mine, "-o", "name").out == f"{ME}-l2\n{ME}-l10\n"
    assert ask(*mine, "--host", "host-l", "-o", "name").out == f"{ME}-l2\n"
    assert ask("vm", "list", "--host", "host-l", "--state", "stopped", "-o", "name").out == f"{ME}-l3\n"
    headers, row = ask("vm", "list", "--host", "host-l", "--state", "starting", "-o", "wide").out.splitlines()
    assert headers.split()[:4] == ["VM", "HOST", "DRIVER", "STATE"]
    assert row.split()[:4] == [f"{ME}-l2", "host-l", "firecracker", "starting"]
    assert row.endswith(f"team={ME}")
    listed = ask(*mine, "-o", "json").document
    assert [(vm["id"], vm["labels"]) for vm in listed["vms"]] == [
        (f"{ME}-l2", {"team": ME}),
        (f"{ME}-l10", {"team": ME}),
    ]


def test_an_unknown_vm_is_told_with_a_hint(site: Cluster, ask: Ask) -> None:
    declare(site, f"{ME}-known")

    for command in (["vm", "show"], ["vm", "logs"], ["forget"]):
        answer = ask(*command, f"{ME}-knwon")
        assert (answer.status, answer.out) == (1, "")
        assert answer.err == f"reliability: no vm '{ME}-knwon' is registered; did you mean {ME}-known?\n"
    assert ask("vm", "show", "elsewhere-1").err.endswith("see `reliability vm list`\n")


def test_a_forgotten_vm_lives_on_in_the_events(site: Cluster, ask: Ask) -> None:
    declare(site, f"{ME}-f")

    assert ask("forget", f"{ME}-f").out == f"{ME}-f forgotten\n"

    answer = ask("events", "--vm", f"{ME}-f", "-o", "json")
    told = [json.loads(line) for line in answer.out.splitlines()]
    assert [(each["schema_version"], each["kind"]) for each in told] == [(1, "registered"), (1, "forgotten")]
    assert ask("events", "--vm", f"{ME}-never").err == f"no events of {ME}-never\n"


def test_events_are_followed_until_ctrl_c(site: Cluster) -> None:
    declare(site, f"{ME}-e1")
    with program(site, "events", "-f", "-n", "1", "-o", "json", name="events") as process:
        process.wait_for_log(f"{ME}-e1")

        declare(site, f"{ME}-e2")
        process.wait_for_log(f"{ME}-e2")
        process.popen.send_signal(signal.SIGINT)

        assert process.popen.wait(10) == 130
        assert [json.loads(line)["vm_id"] for line in process.log().split("\n") if line] == [f"{ME}-e1", f"{ME}-e2"]


def test_redis_that_is_down_is_one_line_without_its_password(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0"
    monkeypatch.setenv("RELIABILITY_REDIS__URL", url)

    for command in (["status"], ["vm", "list"], ["events", "-f"], ["forget", "vm-1"]):
        answer = ask(*command)
        assert (answer.status, answer.out, answer.err.count("\n")) == (3, "", 1)
        assert answer.err.startswith(f"reliability: Redis at {url.replace(PASSWORD, '***')} does not answer: ")
        assert answer.err.endswith("; check redis.url\n")


def test_settings_that_contradict_each_other_are_refused_on_one_line(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIABILITY_WORKER__CONCURRENCY", "2")

    answer = ask("status")

    assert (answer.status, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert "recovery.per_host: must be less than worker.concurrency" in answer.err


def test_a_reader_that_goes_away_is_no_error(site: Cluster) -> None:
    with subprocess.Popen(
        [*PROGRAM, "config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment(site)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()

        assert process.wait(20) == 141
        assert process.stderr.read() == b""


def test_the_configuration_is_shown_with_its_sources_and_without_secrets(site: Cluster, ask: Ask) -> None:
    settings = {each["key"]: each for each in ask("config", "-o", "json").document["settings"]}

    assert settings["host"] == {"key": "host", "value": site.host, "source": "env RELIABILITY_HOST"}
    assert settings["beat.claim_limit"]["source"] == "default"
    text = ask("config").out
    assert PASSWORD not in text
    assert site.server.url(0) not in text


def test_a_vm_of_another_host_is_looked_at_there(site: Cluster, ask: Ask) -> None:
    vm_id = declare(site, f"{ME}-far", host="host-far")

    assert (
        ask("vm", "logs", vm_id).err
        == f"reliability: {vm_id} belongs to host host-far, this is {site.host}: run it there\n"
    )
    answer = ask("recover", vm_id)
    assert (answer.status, answer.out) == (1, "")
    assert "no worker serves host host-far" in answer.err
    status = ask("status").out
    assert re.search(r"no worker serves hosts? .*host-far.*: [0-9]+ VMs? unwatched", status)
