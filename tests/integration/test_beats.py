"""Beats as processes, side by side and killed, and what then stands in the queues of the hosts."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
import redis

from tests.benchmarks.check_mail import Mail, doubles, kill_between_claim_and_message, most_missed, turns
from tests.benchmarks.due_fleet import DueFleet
from tests.benchmarks.stage import BROKER_DB, STANDIN, Stage, beat_command
from tests.support.figures import Page
from tests.support.processes import RunningProcess, wait_until
from workers.embedded import EmbeddedServer, free_port
from workers.telemetry import instruments as m

_VMS = 500


class Site:
    """A fleet whose VMs are all in their places, and the mail of its hosts."""

    def __init__(self, folder: Path, server: EmbeddedServer, broker: EmbeddedServer, interval_ms: int) -> None:
        (folder / "state").mkdir()
        (folder / "reliability.toml").touch()
        self._stage = Stage(folder, server, STANDIN)
        self._options = {
            "health_check__interval": f"{interval_ms}ms",
            "health_check__timeout": "500ms",
            "health_check__failing_interval": "500ms",
            "broker__url": broker.url(BROKER_DB),
        }
        self.interval_ms = interval_ms
        self.broker = redis.Redis.from_url(broker.url(BROKER_DB))
        self.mail = Mail(self.broker, BROKER_DB, interval_ms)
        self.fleet = DueFleet(self._stage.settings(**self._options))
        self.fleet.grow(_VMS)
        self.fleet.settle()
        self.places = self.fleet.places(interval_ms)

    @contextmanager
    def beat(self, name: str) -> Iterator[tuple[RunningProcess, str]]:
        """Run a beat; gives where its metrics are, too."""
        port = free_port()
        options = self._options | {"host": name, "telemetry__beat_port": str(port)}
        with self._stage.process(beat_command(), name, self._stage.environment(**options)) as beat:
            yield beat, f"http://127.0.0.1:{port}/metrics"

    def turns(self) -> dict[str, list[int]]:
        return turns(list(self.mail.letters), self.places, self.interval_ms)

    def wait_for_turns(self, times: int) -> None:
        """Wait until each VM was given out so often again."""
        before = self.turns()

        def all_came() -> bool:
            now = self.turns()
            return all(len(now.get(vm_id, ())) >= len(before.get(vm_id, ())) + times for vm_id in self.places)

        wait_until(all_came, timeout_s=30, what=f"each VM {times} times in the mail")


def claimed(metrics: str) -> float:
    """Return how many VMs a beat has claimed; none before it listens."""
    with suppress(OSError), urlopen(metrics, timeout=5) as reply:  # noqa: S310 - of our own beat
        return Page(reply.read().decode()).total(m.BEAT_CLAIMED.name)
    return 0


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.full)])
def test_beats_side_by_side_all_claim_and_give_out_no_vm_twice(
    tmp_path: Path, fresh_server: EmbeddedServer, number: int
) -> None:
    site = Site(tmp_path, fresh_server, fresh_server, 1000)
    with site.mail.read(), ExitStack() as running:
        metrics = [running.enter_context(site.beat(f"beat-{which}"))[1] for which in range(number)]
        site.wait_for_turns(2)
        wait_until(lambda: all(claimed(each) for each in metrics), timeout_s=30, what="every beat to claim something")

    assert doubles(site.turns().values()) == 0


@pytest.mark.full
def test_what_a_killed_beat_had_claimed_and_not_sent_comes_in_the_next_interval(
    tmp_path: Path, fresh_server: EmbeddedServer
) -> None:
    (tmp_path / "broker").mkdir()
    with EmbeddedServer(tmp_path / "broker") as broker:
        site = Site(tmp_path, fresh_server, broker, 3000)
        with site.mail.read(), site.beat("beat-1") as (victim, _), site.beat("beat-2"):
            site.wait_for_turns(1)
            kill_between_claim_and_message(victim, site.broker, "beat-1")
            site.wait_for_turns(2)

    assert most_missed(site.turns().values()) == 1
    assert doubles(site.turns().values()) == 0
