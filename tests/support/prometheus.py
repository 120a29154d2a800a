"""A real Prometheus with our configuration, made fast: seconds instead of minutes, and targets that a test names."""

import json
import math
import shutil
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.processes import start_process, wait_until
from workers.embedded import free_port

CONFIG = Path(__file__).parents[2] / "config" / "prometheus"
BINARY = shutil.which("prometheus")


@dataclass(frozen=True)
class Prometheus:
    folder: Path
    url: str

    def scrape(self, job: str, *urls: str) -> None:
        """Name the targets of a job; taken up at once."""
        targets = [urllib.parse.urlsplit(url).netloc for url in urls]
        waiting = self.folder / f"{job}.tmp"
        waiting.write_text(json.dumps([{"targets": targets}]))
        waiting.rename(self.folder / f"{job}.json")

    def get(self, path: str, **query: str) -> Any:
        return httpx.get(self.url + path, params=query, timeout=10).raise_for_status().json()["data"]

    def query(self, expr: str) -> list[tuple[Mapping[str, str], float]]:
        """Return labels and value of each series, of a vector or a scalar."""
        found = self.get("/api/v1/query", query=expr)
        if found["resultType"] == "scalar":
            return [({}, float(found["result"][1]))]
        return [(each["metric"], float(each["value"][1])) for each in found["result"]]

    def value(self, expr: str) -> float | None:
        """Return the value of the only series there is; None where there is none, or it is no number."""
        found = self.query(expr)
        assert len(found) <= 1, found
        return found[0][1] if found and not math.isnan(found[0][1]) else None

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def firing(self, name: str) -> list[Mapping[str, str]]:
        alerts = self.get("/api/v1/alerts")["alerts"]
        return [each["labels"] for each in alerts if each["labels"]["alertname"] == name and each["state"] == "firing"]


def _configured(folder: Path, replace: Mapping[str, str]) -> Path:
    """Our files, with other intervals, targets from files, and `replace` in the texts of the rules."""
    config = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "1s"}
    config.pop("alerting")
    for job in config["scrape_configs"]:
        del job["static_configs"]
        job["file_sd_configs"] = [{"files": [f"{job['job_name']}.json"]}]
    rules = folder / "rules"
    rules.mkdir()
    for source in (CONFIG / "rules").glob("*.yml"):
        text = source.read_text()
        for before, after in {"interval: 30s": "interval: 1s", **replace}.items():
            text = text.replace(before, after)
        (rules / source.name).write_text(text)
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    return file


@contextmanager
def prometheus(folder: Path, replace: Mapping[str, str] | None = None) -> Iterator[Prometheus]:
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    command = [
        BINARY or "prometheus",
        f"--config.file={_configured(folder, replace or {})}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with start_process(command, log_path=folder / "prometheus.log", env={}, cwd=folder) as process:
        process.wait_for_log("Server is ready", timeout_s=30)
        yield Prometheus(folder, f"http://{address}")


def wait_scraped(server: Prometheus, job: str) -> None:
    wait_until(lambda: server.value(f'max(up{{job="{job}"}})') == 1, timeout_s=20, what=f"{job} to be scraped")
