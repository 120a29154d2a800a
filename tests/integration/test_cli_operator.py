"""What the person on call does by `reliability`: modes, switches, breakers, hosts, resets, and the audit of it all."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.builders import NOW_MS, a_process, a_spec, a_vm, an_episode
from tests.support.cli import ME, PROGRAM, Ask, asking, cli_site, declare, environment, execute, program
from tests.support.cluster import Cluster
from workers.cli.completion import names
from workers.domain.audit import EventKind, event
from workers.domain.modes import Mode
from workers.domain.vm import EpisodeEnd, Reason, State, VmRecord
from workers.embedded import free_port
from workers.ports import Change
from workers.store.hosts import HostWorker


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cli_site(tmp_path_factory.mktemp("cli-operator")) as made:
        made.fleet.hosts.hold(HostWorker("me", made.host, a_process(), NOW_MS, "1.2.3"), ttl_ms=10**9)
        yield made


@pytest.fixture
def ask(site: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    return asking(site, monkeypatch, capsys)


def keep(site: Cluster, name: str, **fields: object) -> str:
    """Put a record as a fleet would have it after some life."""
    record: VmRecord = replace(a_vm(f"{ME}-{name}", host=site.host), **fields)  # type: ignore[arg-type] # a builder
    told = (event(EventKind.REGISTERED, record, actor="test", why="kept"),)
    site.fleet.store.write([Change(record.vm_id, 0, record, told, spec=a_spec(record.vm_id, host=record.host))])
    return record.vm_id


def given_up(site: Cluster, name: str) -> str:
    episode = an_episode(id=f"{name}@1", end=EpisodeEnd.FAILED, attempt=3, ended_ms=NOW_MS, error="no kernel")
    return keep(site, name, state=State.FAILED, episode=episode)


# --- modes


def test_a_pause_says_until_when_and_why_and_stands_wherever_one_looks(site: Cluster, ask: Ask) -> None:
    one, other = keep(site, "p1"), keep(site, "p2")

    said = ask("pause", one, other, "--reason", "disk swap", "--for", "2h")

    assert said.status == 0
    assert [line.split()[0] for line in said.out.splitlines()] == [one, other]
    assert f"{one} is paused until 20" in said.out
    assert "(2h left): disk swap (cli:" in said.out
    assert said.err == f"lift it: reliability resume {one} {other}\n"
    assert set(ask("vm", "list", "--mode", "paused", "-o", "name").out.split()) == {one, other}
    assert "  paused  " in ask("vm", "list", "--mode", "paused").out
    assert f"vm:{one} is paused: disk swap" in ask("vm", "show", one).out
    assert f"  vm:{one} " in ask("status").out
    assert ask("resume", one, other).out == f"{one}: nothing holds it any more\n{other}: nothing holds it any more\n"
    assert ask("vm", "list", "--mode", "paused").err == "no VMs\n"


def test_several_people_hold_one_host_and_each_lifts_his_own(site: Cluster, ask: Ask) -> None:
    host = ("--host", site.host)
    first = ask("pause", *host, "--reason", "cabling", "-o", "name").out.strip()
    second = ask("observe", *host, "--reason", "roll-out", "-o", "name").out.strip()

    refused = ask("resume", *host)

    assert (refused.status, refused.out) == (1, "")
    assert f"{first} (paused, cli:" in refused.err
    assert "name one by --id, or use --all" in refused.err
    still = ask("resume", *host, "--id", first)
    assert still.out.startswith(f"host {site.host} is observe-only until it is lifted: roll-out (cli:")
    assert f"id {second})" in still.out
    assert ask("resume", *host, "--mode", "paused").status == 1
    assert ask("resume", *host, "--all", "-o", "name").out == f"{second}\n"


def test_a_maintenance_ends_by_itself_and_then_observes_until_the_sweeps_have_looked(site: Cluster, ask: Ask) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)

    said = ask("maintenance", "--fleet", "--reason", "new kernel", "--until", end.isoformat(), "-o", "json").document

    [target] = said["targets"]
    [hold] = target["changed"]
    assert (hold["mode"], hold["why"], hold["scope"]) == ("maintenance", "new kernel", "fleet")
    ends = datetime.fromisoformat(hold["until"])
    assert abs(ends - end) < timedelta(minutes=1)
    [held] = site.fleet.modes.all_modes()[1].scopes["fleet"].holds
    assert (held.mode, held.settle_ms) == (Mode.MAINTENANCE, 2000)
    assert ask("resume", "--fleet").out == "the fleet: nothing holds it any more\n"


def test_what_wider_scopes_hold_is_told_with_a_vm(site: Cluster, ask: Ask) -> None:
    vm_id = keep(site, "wide")
    ask("observe", "--fleet", "--reason", "trial")

    said = ask("pause", vm_id, "--reason", "mine").out.splitlines()

    assert said[1].startswith("  also observe-only until it is lifted: trial (cli:")
    assert said[1].endswith(", set on the fleet)")
    lifted = ask("resume", vm_id).out
    assert lifted.startswith(f"{vm_id} is observe-only until it is lifted: trial")
    ask("resume", "--fleet")


def test_a_hold_on_a_forgotten_vm_can_be_lifted(site: Cluster, ask: Ask) -> None:
    vm_id = keep(site, "gone")
    ask("pause", vm_id, "--reason", "x")
    ask("forget", vm_id)

    assert ask("resume", vm_id).out == f"{vm_id}: nothing holds it any more\n"
    assert ask("resume", vm_id).err.startswith(f"reliability: no vm '{vm_id}' is registered")


# --- switches


def test_parts_are_switched_and_taken_back_and_settings_go_before(site: Cluster, ask: Ask) -> None:
    assert not site.fleet.settings.recovery.enabled
    vm_id = keep(site, "flag")

    on = ask("flag", "set", "recovery", "on", vm_id, "--reason", "try")
    off = ask("flag", "set", "health-checks", "off", "--host", site.host, "--reason", "noise")

    assert on.out == f"recovery is on for {vm_id} until it is set otherwise\n"
    assert on.err.startswith("warning: the settings of this host keep it off (recovery.enabled)")
    assert (off.out, off.err) == (f"health_checks is off for host {site.host} until it is set otherwise\n", "")
    rows = [row.split() for row in ask("flag", "list").out.splitlines()]
    assert ["recovery", f"vm:{vm_id}", "on", "off"] in [row[:4] for row in rows]
    assert ["health_checks", f"host:{site.host}", "off", "off"] in [row[:4] for row in rows]
    listed = ask("flag", "list", "-o", "json").document
    assert listed["settings"]["recovery"] is False
    assert [each["in_force"] for each in listed["switches"] if each["flag"] == "recovery"] == [False]
    assert "Switched: 2 parts" in ask("status").out
    assert ask("flag", "clear", "recovery", vm_id).out == "recovery: the settings alone decide now\n"
    assert ask("flag", "clear", "recovery", vm_id).err.startswith("reliability: recovery is not set on vm:")
    assert ask("flag", "clear", "health_checks", "--host", site.host).status == 0


# --- the places where VMs are: hosts, breakers


def test_hosts_are_listed_with_what_is_wrong_there_also_one_without_any_worker(site: Cluster, ask: Ask) -> None:
    declare(site, f"{ME}-new", host="host-new")
    keep(site, "ill", state=State.ORPHANED, episode=an_episode(id="ill@1"))

    hosts = {row.split()[0]: row for row in ask("host", "list").out.splitlines()}

    assert " live " in hosts[site.host]
    assert " orphaned" in hosts[site.host]
    assert "NEVER SEEN" in hosts["host-new"]
    assert ask("host", "list", "--worker", "silent", "-o", "name").out == "host-new\n"
    assert ask("host", "list", "--state", "orphaned", "-o", "name").out == f"{site.host}\n"
    text = ask("host", "show", site.host).out
    assert text.startswith(f"host {site.host}: live, seen ")
    assert " of 4 in use\n" in text
    assert "kill switch  off" in text
    document = ask("host", "show", site.host, "-o", "json").document["host"]
    assert (document["live"], document["slots_limit"], document["halted"]) == (True, 4, None)
    assert document["by_state"]["orphaned"] >= 1
    assert "no worker ever served it, 1 VM" in ask("host", "show", "host-new").out


def test_breakers_are_tripped_and_reset_by_hand(site: Cluster, ask: Ask) -> None:
    scope = f"host:{site.host}"

    tripped = ask("breaker", "trip", scope, "--reason", "bad disk")

    assert tripped.out == f"{scope} is open: nothing of it is recovered until `reliability breaker reset {scope}`\n"
    headers, row = ask("breaker", "list").out.splitlines()
    assert headers.split() == ["SCOPE", "STATE", "NEXT", "PROBE", "WAITING"]
    assert row.split() == [scope, "open", "when", "reset", "0"]
    assert ask("breaker", "list", "--host", "host-q").err == "no breaker like that\n"
    assert ask("breaker", "list", "--host", site.host, "-o", "name").out == f"{scope}\n"
    assert "  open" in ask("host", "list", "-o", "wide").out
    assert f"{scope} is open" in ask("host", "show", site.host).out
    assert ask("breaker", "reset", f"{scope}x", "--reason", "x").err.endswith(f"did you mean {scope}?\n")
    assert ask("breaker", "reset", scope, "--reason", "new disk").status == 0
    assert ask("breaker", "list").err == "all breakers are closed\n"


def test_a_vm_that_was_given_up_is_reset_and_one_that_needs_none_is_refused(site: Cluster) -> None:
    failed, well = given_up(site, "reset"), keep(site, "well")

    said = execute(site, "reset", failed, well, "--reason", "kernel is back")

    assert (said.status, said.out) == (1, f"{failed} reset: it is watched and recovered again\n")
    assert said.err == f"reliability: {well} has no finished episode: there is nothing to reset\n"
    record = site.record(failed)
    assert record.state is State.ORPHANED
    assert record.episode is not None
    assert record.episode.attempt == 0


# --- lists


def test_lists_take_several_states_reasons_and_an_order(site: Cluster, ask: Ask) -> None:
    dead = keep(site, "s10", host="host-s", state=State.ORPHANED, since_ms=NOW_MS, episode=an_episode(id="s10@1"))
    hung = keep(
        site,
        "s2",
        host="host-s",
        state=State.ORPHANED,
        since_ms=NOW_MS - 1,
        episode=an_episode(id="s2@1", reason=Reason.HEALTH_CHECK_FAILED),
    )
    well = keep(site, "s3", host="host-s")
    here = ("vm", "list", "--host", "host-s")

    assert ask(*here, "--state", "orphaned", "--state", "healthy", "-o", "name").out.split() == [hung, well, dead]
    assert ask(*here, "--reason", "process_dead", "-o", "name").out.split() == [dead]
    assert ask(*here, "--state", "orphaned", "--sort", "since", "-o", "name").out.split() == [hung, dead]
    assert ask(*here, "--state", "orphaned", "--sort", "-since", "-o", "name").out.split() == [dead, hung]
    assert ask(*here, "--mode", "none", "-o", "name").out.split() == [hung, well, dead]


def test_a_watched_list_goes_on_in_plain_blocks_until_ctrl_c(site: Cluster) -> None:
    with program(site, "host", "list", "--watch", "0.2", name="watch") as process:
        process.wait_for_log("\n\nHOST")
        process.popen.send_signal(signal.SIGINT)

        assert process.popen.wait(10) == 130
        assert "Traceback" not in process.log()
        assert "\x1b" not in process.log()


# --- the audit


def test_events_are_found_by_who_what_and_when(site: Cluster, ask: Ask) -> None:
    vm_id = keep(site, "audit")
    ask("pause", vm_id, "--reason", "audited")

    def found(*options: str) -> list[tuple[str, str]]:
        lines = ask("events", *options, "--since", "10m", "-o", "jsonl").out.splitlines()
        return [(told["kind"], told["actor"].partition(":")[0]) for told in map(json.loads, lines)]

    assert found("--vm", vm_id) == [("registered", "test"), ("mode", "cli")]
    assert found("--vm", vm_id, "--actor", "cli") == [("mode", "cli")]
    assert found("--vm", vm_id, "--kind", "registered", "--kind", "recovered") == [("registered", "test")]
    assert found("--host", "host-nobody") == []
    assert found("--vm", vm_id, "--request", "none") == found("--vm", vm_id, "--trace", "none") == []
    assert ask("events", "--vm", vm_id, "--until", "10m", "--kind", "mode").err == "no events like that\n"
    ask("resume", vm_id)


def test_the_whole_stream_is_exported_as_json_lines(site: Cluster, ask: Ask) -> None:
    keep(site, "export1")
    keep(site, "export2")

    lines = [json.loads(line) for line in ask("events", "--all", "-o", "jsonl").out.splitlines()]

    assert [each["id"] for each in lines] == [entry.id for entry in site.fleet.events.since("0-0")]
    assert {"id", "at", "actor", "request_id", "trace_id", "kind", "why"} <= set(lines[0])
    assert len(ask("events", "--all", "-n", "2", "-o", "jsonl").out.splitlines()) == 2


# --- completion


def test_shells_complete_names_and_say_nothing_when_redis_is_away(
    site: Cluster, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm_id = keep(site, "complete")

    assert [item.value for item in names("vm", f"{ME}-compl", taken=())] == [vm_id]
    assert names("vm", f"{ME}-compl", taken=[vm_id]) == []
    assert [item.value for item in names("host", site.host, taken=())] == [site.host]
    for shell in ("bash", "zsh", "fish"):
        assert "_RELIABILITY_COMPLETE" in ask("completion", shell).out
    monkeypatch.setenv("RELIABILITY_REDIS__URL", f"redis://127.0.0.1:{free_port()}/0")
    assert names("vm", "", taken=()) == []


@pytest.mark.full
def test_a_shell_gets_the_names_by_the_program_itself(site: Cluster) -> None:
    vm_id = keep(site, "byshell")
    asked = {"_RELIABILITY_COMPLETE": "bash_complete", "COMP_WORDS": f"reliability pause {ME}-bysh", "COMP_CWORD": "2"}

    done = subprocess.run(
        PROGRAM, env=os.environ | environment(site) | asked, capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.stderr) == (f"plain,{vm_id}\n", "")
