"""`worker`, `beat`, `flower` and `demo`: long-running programs. How they are made stands in `processes` and `demo`."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import click


@click.command()
def worker() -> int:
    """Run the worker of this host.

    It checks the VMs of this host, notices at once when one dies, and recovers it. One worker serves a host: a second
    one under the same name (setting `host`) stays passive until the first has gone. VMs run on when it ends.

    SIGTERM or Ctrl-C: it finishes what it is doing and ends with status 0; a second Ctrl-C does not wait.
    """
    return _run("run_worker")


@click.command()
def beat() -> int:
    """Run a beat: it schedules health checks and sweeps.

    Any number of beats may run side by side: what is due is handed to exactly one of them, and one alone suffices. A
    beat keeps nothing on disk.
    """
    return _run("run_beat")


@click.command()
@click.option("--address", metavar="ADDRESS", help="Listen here.  [default: setting flower.address]")
@click.option("--port", type=click.IntRange(1, 65535), help="Listen on this port.  [default: setting flower.port]")
def flower(address: str | None, port: int | None) -> int:
    """Run the Flower dashboard.

    Shows recoveries as Celery tasks; with flower.basic_auth set it also starts them: POST {"args": ["vm-1"]} to
    /api/task/async-apply/workers.tasks.recovery.recover_vm. Without a password it listens on loopback addresses only.
    Flower's other options are read from FLOWER_... variables, such as FLOWER_URL_PREFIX.
    """
    return _run("run_flower", address=address, port=port)


def _run(program: str, **options: object) -> int:
    # Loading takes a second, in which nobody else listens for signals, and in which there is nothing to tidy up.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    from workers import processes  # noqa: PLC0415 - only now

    run: Callable[..., int] = getattr(processes, program)
    return run(**options)


def _leave(_number: int, _frame: FrameType | None) -> None:
    # No exception: code that is being loaded would make something else of it.
    os._exit(0)


@click.command()
@click.option("--vms", type=click.IntRange(min=1), default=20, show_default=True, help="How many VMs.")
@click.option("--faults", type=click.IntRange(min=1), default=12, show_default=True, help="How many faults.")
@click.option(
    "--driver",
    type=click.Choice(["firecracker", "qemu"]),
    default="firecracker",
    show_default=True,
    help="Kind of VMs; firecracker runs the project's stand-in VMM, which needs no KVM.",
)
@click.option("--seed", type=int, help="Repeat the faults of an earlier run.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write what was measured.")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65534),
    help="Port of the worker's metrics, for a Prometheus of yours; the beat's is the next one.  [default: free ones]",
)
@click.option("--keep", is_flag=True, help="Leave the fleet running until Ctrl-C, to try things.")
def demo(
    vms: int,
    faults: int,
    driver: str,
    seed: int | None,
    json_file: Path | None,
    *,
    metrics_port: int | None,
    keep: bool,
) -> int:
    """Watch a small fleet being broken and mended, on this machine.

    Starts its own Redis, worker and beat in a temporary folder, and touches nothing else.
    """
    from workers.demo import run  # noqa: PLC0415 - the demo loads much

    return int(
        run(
            vms=vms,
            faults=faults,
            driver=driver,
            seed=seed,
            json_file=json_file,
            keep=keep,
            metrics_port=metrics_port,
        )
    )
