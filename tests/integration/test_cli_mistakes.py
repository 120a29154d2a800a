"""A stranger's mistakes: each is one line that says what is wrong and what to do, and an exit status; never a trace."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.support.builders import NOW_MS, a_process
from tests.support.cli import Answer, Ask, asking, cli_site, declare
from tests.support.cluster import Cluster
from workers.embedded import free_port
from workers.store.hosts import HostWorker

_NOBODY = 65534
VM, IDLE_VM = "web-1", "web-idle"  # on a host with a worker, and on one without


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cli_site(tmp_path_factory.mktemp("mistakes")) as made:
        made.fleet.hosts.hold(HostWorker("me", made.host, a_process(), NOW_MS, "1"), ttl_ms=10**9)
        declare(made, VM)
        declare(made, IDLE_VM, host="rack-1")
        (made.folder / "broken.yaml").write_text("id: [web")
        (made.folder / "wrong.json").write_text(json.dumps({"id": "web-9", "driver": "vmware"}))
        (made.folder / "note.txt").write_text("hello")
        yield made


@pytest.fixture
def ask(site: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    return asking(site, monkeypatch, capsys)


@dataclass(frozen=True, slots=True)
class Mistake:
    """`{host}`, `{folder}` and `{redis}` stand for those of the site, `{vm list}` for the help of that command.

    `…` in `said` stands for the rest of a list, and for what Python, a library or the system has to say.
    """

    what: str
    arguments: str
    status: int
    said: str
    settings: dict[str, str] = field(default_factory=dict)


GONE = f"redis://:secret@127.0.0.1:{free_port()}/0"
SHOWN = GONE.replace("secret", "***")

MISTAKES = (
    # --- commands and options
    Mistake("unknown command", "stauts", 2, "no command 'stauts'; did you mean status? (see {})"),
    Mistake("unknown part", "vm lst", 2, "no command 'lst'; did you mean list? (see {vm})"),
    Mistake(
        "unknown option",
        "status --wach",
        2,
        "No such option '--wach'. Did you mean '--watch'? (see {status})",
    ),
    Mistake(
        "unknown form",
        "vm list -o xml",
        2,
        "Invalid value for '-o' / '--output': 'xml' is not one of 'table', 'wide', 'json', 'name' (see {vm list})",
    ),
    Mistake(
        "unknown state",
        "vm list --state ill",
        2,
        "Invalid value for '--state': 'ill' is not one of 'starting', 'healthy', …, 'unknown' (see {vm list})",
    ),
    Mistake(
        "unknown column",
        "vm list --sort stat",
        2,
        "Invalid value for '--sort': no column 'stat'; did you mean state? (see {vm list})",
    ),
    Mistake(
        "unknown shell",
        "completion tcsh",
        2,
        "Invalid value for 'bash|zsh|fish': 'tcsh' is not one of 'bash', 'zsh', 'fish' (see {completion})",
    ),
    # --- names
    Mistake("wrong id", "vm show web-l", 1, "no vm 'web-l' is registered; did you mean web-1?"),
    Mistake("wrong id, to pause", "pause web-l --reason x", 1, "no vm 'web-l' is registered; did you mean web-1?"),
    Mistake("wrong id, to reset", "reset web-l --reason x", 1, "no vm 'web-l' is registered; did you mean web-1?"),
    Mistake("wrong id, to recover", "recover web-l", 1, "no vm 'web-l' is registered; did you mean web-1?"),
    Mistake(
        "impossible id",
        "vm show Web/1",
        2,
        "Invalid value for 'VM': 'Web/1' must be 1 to 64 of the characters … (see {vm show})",
    ),
    Mistake(
        "wrong host",
        "host show rack-2",
        1,
        "no host 'rack-2' is known: it has no VM, and no worker ever served it; see `reliability host list`",
    ),
    Mistake(
        "wrong host, almost right",
        "pause --host {host}x --reason y",
        1,
        "no host '{host}x' is known: it has no VM, and no worker ever served it; did you mean {host}?",
    ),
    Mistake(
        "wrong breaker",
        "breaker trip rack-1 --reason x",
        2,
        "Invalid value for SCOPE: 'rack-1' must be fleet, host:HOST, … (see {breaker trip})",
    ),
    Mistake(
        "breaker that is closed",
        "breaker reset fleet --reason x",
        1,
        "no breaker 'fleet' is open or half-open; see `reliability breaker list`",
    ),
    Mistake(
        "wrong part",
        "flag set checks off --fleet --reason x",
        2,
        "Invalid value for 'FLAG': 'checks' is not one of 'health_checks', 'orphan_detection', … (see {flag set})",
    ),
    # --- what is missing, or too much
    Mistake("no reason", "pause web-1", 2, "Missing option '--reason' (see {pause})"),
    Mistake(
        "empty reason",
        "pause web-1 --reason ''",
        2,
        "Invalid value for '--reason': must be one line of 1 to 200 characters (see {pause})",
    ),
    Mistake(
        "no target",
        "pause --reason x",
        2,
        "say what it is about: VM ids, --host HOST or --fleet (see {pause})",
    ),
    Mistake(
        "two targets",
        "pause web-1 --fleet --reason x",
        2,
        "only one of VM ids, --host and --fleet goes (see {pause})",
    ),
    Mistake(
        "no end",
        "maintenance web-1 --reason x",
        2,
        "a maintenance has to end: say --for 2h, or --until 2026-11-24T18:00Z (see {maintenance})",
    ),
    Mistake(
        "wrong duration",
        "pause web-1 --reason x --for 2",
        2,
        "Invalid value for '--for': '2' must be a duration: write it with a unit, such as 30s, 5m, … (see {pause})",
    ),
    Mistake(
        "no time zone",
        "pause web-1 --reason x --until 2030-01-01T00:00",
        2,
        "Invalid value for '--until': '2030-01-01T00:00' must say its time zone: … (see {pause})",
    ),
    Mistake("nothing to lift", "resume web-1", 1, "nothing of that kind holds vm:web-1; see `reliability status`"),
    Mistake(
        "nothing to take back",
        "flag clear recovery --fleet",
        1,
        "recovery is not set on fleet; see `reliability flag list`",
    ),
    Mistake(
        "nothing to reset", "reset web-1 --reason x", 1, "web-1 has no finished episode: there is nothing to reset"
    ),
    Mistake("whom to recover", "recover", 2, "say which: VM ids, or --host HOST (see {recover})"),
    Mistake(
        "whole host without a reason",
        "recover --host rack-1",
        2,
        "a whole host needs a --reason (see {recover})",
    ),
    Mistake(
        "whole host, nobody to ask",
        "recover --host {host} --reason x",
        2,
        "nobody can be asked here: look at the list, then say --yes (see {recover})",
    ),
    Mistake(
        "whole host, well or not",
        "recover --host rack-1 --reason x --kill-healthy",
        2,
        "--kill-healthy is for single VMs: name them (see {recover})",
    ),
    Mistake(
        "export and range",
        "events --all --since 2h",
        2,
        "only one of --all and --since goes (see {events})",
    ),
    # --- what is not there
    Mistake(
        "host without a worker",
        "recover web-idle",
        1,
        "no worker serves host rack-1: start `reliability worker` there first; nothing was sent",
    ),
    Mistake(
        "whole host without a worker",
        "recover --host rack-1 --reason x --yes",
        1,
        "no worker serves host rack-1: start `reliability worker` there first; nothing was sent",
    ),
    Mistake(
        "logs of elsewhere", "vm logs web-idle", 1, "web-idle belongs to host rack-1, this is {host}: run it there"
    ),
    # --- files and rights
    Mistake(
        "no such file",
        "apply -f {folder}/nothing.yaml",
        2,
        "{folder}/nothing.yaml: cannot be read: No such file or directory",
    ),
    Mistake(
        "kind of file",
        "apply -f {folder}/note.txt",
        2,
        "{folder}/note.txt: must end in .yaml, .yml or .json, or be - for standard input",
    ),
    Mistake("wrong field", "apply -f {folder}/wrong.json", 2, "{folder}/wrong.json: driver: …"),
    Mistake("broken file", "apply -f {folder}/broken.yaml", 2, "{folder}/broken.yaml: …"),
    # --- settings
    Mistake("unknown setting", "status", 2, "…RECOVERY__RETRYS…", {"RECOVERY__RETRYS": "2"}),
    Mistake(
        "settings that contradict",
        "status",
        2,
        "recovery.per_host: must be less than worker.concurrency…",
        {"WORKER__CONCURRENCY": "2"},
    ),
    Mistake(
        "age of events",
        "status",
        2,
        "events.max_age: must be 0s, for no limit by age, or at least 1h: …",
        {"EVENTS__MAX_AGE": "5m"},
    ),
    Mistake("Redis down", "vm list", 3, f"Redis at {SHOWN} does not answer: …; check redis.url", {"REDIS__URL": GONE}),
    Mistake(
        "Redis down, to pause",
        "pause web-1 --reason x",
        3,
        f"Redis at {SHOWN} does not answer: …; check redis.url",
        {"REDIS__URL": GONE},
    ),
    Mistake(
        "wrong password",
        "host list",
        3,
        "Redis at {redis} refuses us: …; check redis.url",
        {"REDIS__URL": "wrong password"},
    ),
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.what for mistake in MISTAKES])
def test_a_mistake_is_one_line_and_a_status(
    mistake: Mistake, site: Cluster, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in mistake.settings.items():
        monkeypatch.setenv(f"RELIABILITY_{name}", wrong_password(site) if value == "wrong password" else value)

    answer = ask(*arguments_of(mistake.arguments, site))

    assert_one_line(answer, mistake.status, filled(mistake.said, site))


def arguments_of(text: str, site: Cluster) -> Sequence[str]:
    return [filled(part.replace("''", ""), site) for part in text.split(" ")]


def filled(text: str, site: Cluster) -> str:
    redis = re.sub(r":[^:@/]*@", ":***@", wrong_password(site))
    known = {"host": site.host, "folder": str(site.folder), "redis": redis}
    return re.sub(r"\{([a-z ]*)\}", lambda found: known.get(found[1]) or f"`{_help_of(found[1])}`", text)


def _help_of(command: str) -> str:
    return " ".join(["reliability", *command.split(), "--help"])


def wrong_password(site: Cluster) -> str:
    return re.sub(r":[^:@/]*@", ":sesame@", site.server.url(0))


def assert_one_line(answer: Answer, status: int, said: str) -> None:
    """A preview may stand before a refusal."""
    pattern = ".*".join(re.escape(part) for part in said.split("…"))
    assert re.fullmatch(f"reliability: {pattern}\n", answer.err), answer.err
    assert answer.status == status
    assert answer.out == "" or " to recover\n" in answer.out


# --- rights


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything: to have no rights is to be somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_who_has_no_rights_hears_on_what(site: Cluster, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = site.folder / "secret.yaml"
    secret.write_text("id: web-8")
    secret.chmod(0o000)
    closed = site.folder / "closed"
    closed.mkdir(mode=0o000, exist_ok=True)
    monkeypatch.chdir("/")
    monkeypatch.setenv("RELIABILITY_STATE_DIR", str(closed / "state"))
    asked = (("apply", "-f", str(secret)), ("vm", "logs", VM), ("status",), ("host", "show", site.host))
    for command in asked:
        ask(*command)  # what is loaded only now must not be loaded without rights

    with as_nobody():
        applied, logs, status, host = (ask(*command) for command in asked)

    assert_one_line(applied, 1, f"{secret}: Permission denied")
    assert_one_line(logs, 1, f"{closed}/state…: Permission denied")
    for answer in (status, host):
        assert answer.status == 0
        assert f"cannot be looked at: {closed}/state/PAUSE: Permission denied" in answer.out
