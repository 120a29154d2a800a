"""Round trips to the user's own Redis, syncs of the disk below state_dir, and whether a worker runs here already.

Nothing is changed: Redis is asked for the time and to run `return 1`, and the file on the disk never has a name.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import redis
from redis.exceptions import RedisError, ResponseError

from workers.bench.found import Disk, Server
from workers.doctor.place import Place
from workers.doctor.programs import listener
from workers.settings import Loaded, Settings

_SCRIPT = "return 1"
_WRITTEN = b"x" * 400  # about what is written for each start of a VM
_LONGEST_S = 3.0  # for all round trips, or all syncs: whoever is so slow is known well enough by then

Check = Callable[[], None]


def round_trips(loaded: Loaded, times: int, check: Check) -> Server:
    """Ask the Redis of these settings; `check` is called now and then, and may raise."""
    url = str(loaded.settings.redis.url)
    is_default = loaded.sources.get("redis.url", "default") == "default"
    client = Place(loaded).redis
    try:
        client.ping()
        calls, refused = _calls(client)
        return Server(url, is_default, _timed(calls, times, check), refused)
    except (RedisError, OSError) as error:
        return Server(url, is_default, {}, " ".join(str(error).split()))
    finally:
        client.close()


def _calls(client: redis.Redis) -> tuple[Mapping[str, Callable[[], object]], str]:
    calls: dict[str, Callable[[], object]] = {"PING": client.ping, "TIME": client.time}
    try:
        sha = client.script_load(_SCRIPT)
        client.evalsha(sha, 0)
    except ResponseError as error:  # this user may run no scripts
        return calls, " ".join(str(error).split())
    return calls | {"EVALSHA": lambda: client.evalsha(sha, 0)}, ""


def _timed(calls: Mapping[str, Callable[[], object]], times: int, check: Check) -> dict[str, list[float]]:
    """Each in turn, so that a disturbance hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    until = time.monotonic() + _LONGEST_S
    for _ in range(times):
        check()
        for name, call in calls.items():
            found[name].append(_seconds(call))
        if time.monotonic() > until:
            break
    return found


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def syncs(state_dir: Path, times: int, check: Check) -> Disk:
    """Write and sync a nameless file on the file system of state_dir, or of where it would be made."""
    folder = next(each for each in (state_dir, *state_dir.parents) if os.path.isdir(each))  # noqa: PTH112 - false, too, where we may not look
    try:
        return Disk(str(folder), list(_syncs(folder, times, check)))
    except OSError as error:
        return Disk(str(folder), [], error.strerror or str(error))


def _syncs(folder: Path, times: int, check: Check) -> Iterator[float]:
    until = time.monotonic() + _LONGEST_S
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(times):
            check()
            file.write(_WRITTEN)
            yield _seconds(lambda: os.fsync(file.fileno()))
            if time.monotonic() > until:
                return


def worker_here(settings: Settings) -> int | None:
    """Return the pid of the worker that serves its metrics where these settings say, if one does."""
    telemetry = settings.telemetry
    if not (telemetry.endpoints and telemetry.worker_port):
        return None
    document = listener(telemetry.address, telemetry.worker_port).document or {}
    pid = document.get("pid")
    return pid if isinstance(pid, int) and document.get("process") == "worker" else None
