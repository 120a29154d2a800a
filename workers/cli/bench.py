"""`bench`: what checks, deaths and hangs cost and take on this host. How it is measured stands in `workers.bench`."""

import os
from pathlib import Path

import click


@click.command()
@click.option("--vms", type=click.IntRange(2, 500), help="How many stand-in VMs.  [default: 40, or 8 with --quick]")
@click.option("--quick", is_flag=True, help="A first look, in about half a minute.")
@click.option(
    "--only",
    metavar="PARTS",
    help="Measure these alone, with commas between them: check, idle, recovery, hang, redis, disk.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write what was measured.")
@click.option("--keep", is_flag=True, help="Leave the stand-in fleet running until Ctrl-C, to try things.")
def bench(vms: int | None, only: str | None, json_file: Path | None, *, quick: bool, keep: bool) -> int:
    """Measure on this host what checks and recoveries cost and take.

    Starts a Redis, a worker, a beat and stand-in VMs of its own in a temporary folder, for about a minute, in which
    they take half a processor on average, and all of them for moments; VMs, worker and records of yours are left
    alone. From what it finds it says what 10, 100 and 1,000 VMs would cost with your settings, and what to do where a
    figure is bad.

    Your Redis, if it answers at redis.url, is asked for some hundred round trips (PING, TIME, and a script that only
    returns 1); nothing is written there. On the disk of state_dir a file without a name is synced.

    Exit status: 0 all was measured, whatever came out; 1 something could not be.
    """
    from workers.bench import run  # noqa: PLC0415 - it loads much
    from workers.bench.wish import QUICK, QUICK_VMS, VMS, WHOLE, Part, Wish, parts_of  # noqa: PLC0415
    from workers.settings import load  # noqa: PLC0415

    try:
        parts = parts_of(only) if only is not None else frozenset(Part)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--only") from error
    wish = Wish(vms or (QUICK_VMS if quick else VMS), parts, QUICK if quick else WHOLE, json_file, keep)
    return int(run(wish, load(os.environ, Path.cwd())))
