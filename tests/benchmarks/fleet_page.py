"""Benchmark of the Fleet page: what a refresh costs the server and the wire, and how soon a browser shows the fleet.

Starts a server, a Flower and, where it is installed, Chromium; how to read the table stands in README.md.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.commandline import Options, end
from tests.benchmarks.figures import Figure, document, table, write
from tests.benchmarks.measures import cpu_of, median, memory_of
from tests.benchmarks.stage import Stage, ended_by_signals, say, stage
from tests.support.browser import CHROMIUM, chromium
from tests.support.populace import populate
from tests.support.processes import RunningProcess, start_process, wait_until
from workers.bootstrap import Fleet
from workers.domain.audit import EventKind, event
from workers.domain.vm import VmRecord
from workers.embedded import free_port
from workers.ports import Change

LOGIN = ("bench", "bench")
_EVERY_S = 2.0  # as the page asks
_TIMES = 30
_FIRST_PAINT, _PAINTED_MS = "first paint", 1000.0
_PER_NOTE = 500
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
_DRAWN = """new Promise((done) => {
  const look = () => document.querySelector('#vms tbody a') ? done(performance.now()) : requestAnimationFrame(look);
  look();
})"""


@dataclass(frozen=True, slots=True)
class Answer:
    ms: float
    size: int
    status: int


@dataclass(frozen=True, slots=True)
class Subject:
    fleet: Fleet
    records: list[VmRecord]
    flower: RunningProcess
    client: httpx.Client

    def ask(self, path: str, tag: str = "") -> tuple[Answer, str]:
        began = time.perf_counter()
        got = self.client.get(path, headers={"If-None-Match": tag} if tag else {})
        took = Answer((time.perf_counter() - began) * 1000, len(got.content), got.status_code)
        return took, got.headers.get("ETag", "")

    def typical(self, path: str) -> Answer:
        answers = [self.ask(path)[0] for _ in range(_TIMES)]
        return Answer(median([each.ms for each in answers]), answers[-1].size, answers[-1].status)

    def typical_unchanged(self, path: str) -> Answer:
        answers, tag = [], ""
        for _ in range(_TIMES):
            answer, tag = self.ask(path, tag)
            answers.append(answer)
        return Answer(median([each.ms for each in answers[1:]]), answers[-1].size, answers[-1].status)

    def touch(self, vms: int) -> None:
        """Let so many VMs change."""
        found = self.fleet.store.read([record.vm_id for record in self.records[:vms]]).found.values()
        changes = [
            Change(
                each.record.vm_id,
                each.rev,
                replace(each.record, since_ms=each.record.since_ms + 1000),
                (event(EventKind.DEFERRED, each.record, actor="bench", why="touched"),),
            )
            for each in found
        ]
        self.fleet.store.write(changes)


@contextmanager
def subject(on: Stage, vms: int, events: int) -> Iterator[Subject]:
    fleet = Fleet(on.settings())
    records = populate(fleet, vms)
    for start in range(0, events, _PER_NOTE):
        part = [records[number % vms] for number in range(start, min(events, start + _PER_NOTE))]
        fleet.store.note([event(EventKind.DEFERRED, each, actor="bench", why="something was put off") for each in part])
    port = free_port()
    environment = on.environment(flower__basic_auth=":".join(LOGIN))
    command = [sys.executable, "-m", "workers.cli", "flower", "--port", str(port)]
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=LOGIN, timeout=60)
    with start_process(command, log_path=on.folder / "flower.log", env=environment) as flower, client:
        wait_until(lambda: flower.is_alive and _answers(client), timeout_s=60, what="Flower to answer")
        yield Subject(fleet, records, flower, client)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthcheck").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def measure(on: Subject, seconds: float, browsers: int) -> dict[str, Any]:
    found: dict[str, Any] = {"first reading": on.ask("/api/fleet")[0]}
    counted = time.perf_counter()
    wait_until(lambda: on.client.get("/api/fleet").json()["figures"], timeout_s=120, what="the figures of the day")
    found["figures of the day after, ms"] = (time.perf_counter() - counted) * 1000
    found["overview"] = on.typical("/api/fleet")
    found["overview, unchanged"] = on.typical_unchanged("/api/fleet")
    found["page of the table"] = on.typical("/api/fleet/vms?sort=-since&page=3")
    found["search in the table"] = on.typical("/api/fleet/vms?q=77")
    vm = f"/api/fleet/vms/{on.records[7].vm_id}"
    found["VM, first time"] = on.ask(vm)[0]
    found["VM"] = on.typical(vm)
    found["why"] = on.typical(f"{vm}/why")
    for name, number, touched in (
        ("nobody looks", 0, 0),
        ("1 browser, nothing changes", 1, 0),
        (f"{browsers} browsers, nothing changes", browsers, 0),
        (f"{browsers} browsers, 100 VMs change a second", browsers, 100),
    ):
        say(f"{name} …")
        found[name] = load(on, seconds, number, touched)
    found["memory"] = memory_of(on.flower.pid).rss
    return found


def load(on: Subject, seconds: float, browsers: int, touched: int) -> dict[str, float]:
    """Ask as so many open pages do; returns the share of a core that Flower took, and bytes a second per browser."""
    ends = time.monotonic() + seconds
    sizes: list[int] = []
    threads = [threading.Thread(target=_look, args=(on, ends, sizes)) for _ in range(browsers)]
    before = cpu_of(on.flower.pid)
    for thread in threads:
        thread.start()
    while time.monotonic() < ends:
        if touched:
            on.touch(touched)
        time.sleep(1)
    for thread in threads:
        thread.join()
    share = (cpu_of(on.flower.pid) - before) / seconds
    return {"cpu_share": share, "bytes_s": sum(sizes) / seconds / browsers if browsers else 0}


def _look(on: Subject, ends: float, sizes: list[int]) -> None:
    tag = ""
    with httpx.Client(base_url=on.client.base_url, auth=LOGIN, timeout=60) as client:
        while time.monotonic() < ends:
            got = client.get("/api/fleet", headers={"If-None-Match": tag} if tag else {})
            tag = got.headers.get("ETag", "")
            sizes.append(len(got.content))
            if got.status_code == httpx.codes.OK:
                sizes.append(len(client.get("/api/fleet/vms").content))
            time.sleep(_EVERY_S)


def paint(on: Subject, folder: Path) -> dict[str, list[float]]:
    """First paint and the first row of the table, in ms after the address was entered; five pages."""
    folder.mkdir()
    shown: list[float] = []
    rows: list[float] = []
    with chromium(folder) as browser:
        for _ in range(5):
            page = browser.page(login=":".join(LOGIN))
            page.call("Page.navigate", url=f"{on.client.base_url}/fleet")
            page.wait("document.readyState === 'complete'")
            rows.append(float(page.js(_DRAWN)))
            shown.append(float(page.wait(_PAINT) and page.js(_PAINT)))
    return {_FIRST_PAINT: shown, "first row": rows}


def report(found: dict[str, Any], vms: int, events: int) -> Iterator[str]:
    yield f"{vms} VMs, {events} events"
    for name, value in found.items():
        match value:
            case Answer():
                yield f"  {name:45} {value.ms:8.1f} ms {value.size:8} bytes  {value.status}"
            case {"cpu_share": share, "bytes_s": size}:
                yield f"  {name:45} {share * 100:8.1f} % of a core {size:8.0f} bytes/s per browser"
            case list():
                yield f"  {name:45} {median(value):8.0f} ms ({', '.join(f'{each:.0f}' for each in value)})"
            case _:
                yield f"  {name:45} {value:8.0f}{' MiB' if name == 'memory' else ''}"


def figures(found: dict[str, Any], browsers: int) -> Iterator[Figure]:
    for name, beside in (("overview, unchanged", "overview"), ("VM", "VM, first time")):
        yield Figure(f"{name}, over {beside}", "ratio", [found[name].ms / found[beside].ms])
    for name, value in found.items():
        # Names without the numbers that options set.
        stable = name.removeprefix(f"{browsers} ") if browsers > 1 else name
        match value:
            case Answer():
                yield Figure(stable, "ms", [value.ms])
            case {"cpu_share": share}:
                yield Figure(f"Flower, {stable}", "% of a core", [share * 100])
            case list():
                yield Figure(stable, "ms", value, limit=_PAINTED_MS if name == _FIRST_PAINT else None)
            case _ if name == "memory":
                yield Figure("Flower", "MiB", [value])


def main() -> int:
    parser = Options(description=__doc__)
    parser.number("--vms", 10_000, "how many VMs")
    parser.number("--events", 80_000, "how many events are in the stream before")
    parser.number("--seconds", 20.0, "how long each load lasts")
    parser.number("--browsers", 20, "how many look at once")
    parser.json("the figures")
    given = parser.parse_args()
    with ended_by_signals(), stage() as on, subject(on, given.vms, given.events) as measured:
        found = measure(measured, given.seconds, given.browsers)
        if CHROMIUM is not None:
            found |= paint(measured, on.folder / "chromium")
    print("\n".join(report(found, given.vms, given.events)))
    print("\n" + table(list(figures(found, given.browsers))))
    if given.json:
        plain = {name: _plain(value) for name, value in found.items()}
        write(given.json, document("fleet_page", list(figures(found, given.browsers)), pages=plain))
    return 0


def _plain(value: Any) -> Any:
    return {"ms": value.ms, "size": value.size, "status": value.status} if isinstance(value, Answer) else value


if __name__ == "__main__":
    end(main)
