"""Which commands there are, in which order, and where each is found when it is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

import click

from workers.cli.failures import STATUSES

HELP_NAMES = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_EPILOG = f"""\
Settings come from defaults, a file (reliability.toml here, or /etc/metald-reliability/reliability.toml, or the one
named by RELIABILITY_CONFIG) and the environment (RELIABILITY_REDIS__URL is redis.url); `reliability config` shows all.

{STATUSES}"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A command that is not loaded yet: `module` of this package holds it under the name `attribute`."""

    module: str
    attribute: str
    says: str
    section: str = "Commands"


class LazyGroup(click.Group):
    """Shows its commands without loading them."""

    def __init__(self, name: str, entries: Mapping[str, Entry], **options: object) -> None:
        super().__init__(name, **options)  # type: ignore[arg-type] # handed through as it is
        self.entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(import_module(f"workers.cli.{entry.module}"), entry.attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.entries and not args[0].startswith("-"):
            close = get_close_matches(args[0], self.entries, n=1)
            raise click.UsageError(f"no command {args[0]!r}" + (f"; did you mean {close[0]}?" if close else ""), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        for section in dict.fromkeys(entry.section for entry in self.entries.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(name, entry.says) for name, entry in self.entries.items() if entry.section == section]
                )


_SEE, _DECLARE, _RUN = "See", "Declare and act", "Run"

vm = LazyGroup(
    "vm",
    {
        "list": Entry("vm", "list_vms", "List VMs, all of them or by state, host and labels."),
        "show": Entry("vm", "show", "Show all that is known about a VM."),
        "logs": Entry("logs", "logs", "Show console, VMM log and exit cause of a VM's incarnations."),
    },
    help="Look at single VMs.",
    context_settings=HELP_NAMES,
)

host = LazyGroup(
    "host",
    {
        "list": Entry("host", "list_hosts", "List hosts: who serves them, how their VMs are, what holds them."),
        "show": Entry("host", "show", "Show all that is known about a host."),
    },
    help="Look at hosts.",
    context_settings=HELP_NAMES,
)

breaker = LazyGroup(
    "breaker",
    {
        "list": Entry("breaker", "list_breakers", "List circuit breakers that are not closed, and who waits for them."),
        "trip": Entry("breaker", "trip", "Open a breaker by hand: nothing of its scope is recovered."),
        "reset": Entry("breaker", "reset", "Close a breaker by hand."),
    },
    help="Circuit breakers: see, trip, reset.",
    context_settings=HELP_NAMES,
)

flag = LazyGroup(
    "flag",
    {
        "list": Entry("flag", "list_flags", "List the parts that can be switched at run time, and where they are."),
        "set": Entry("flag", "set_flag", "Switch a part on or off for the fleet, a host or a VM."),
        "clear": Entry("flag", "clear", "Take a switch back."),
    },
    help="Switch single parts at run time.",
    context_settings=HELP_NAMES,
)

state = LazyGroup(
    "state",
    {
        "show": Entry("state", "show", "Show whether the hosts trust the data in Redis."),
        "rebuild": Entry("state", "rebuild", "Make records again from the hosts' run directories."),
        "confirm": Entry("state", "confirm", "Say that the data in Redis are right."),
    },
    help="After Redis lost its data: look, rebuild, confirm.",
    context_settings=HELP_NAMES,
)

reliability = LazyGroup(
    "reliability",
    {
        "status": Entry("status", "status", "Show the fleet on one screen, and what needs a person.", _SEE),
        "vm": Entry("menu", "vm", "Look at single VMs.", _SEE),
        "why": Entry("why", "why", "Say why a VM is as it is, and what happens next.", _SEE),
        "host": Entry("menu", "host", "Look at hosts.", _SEE),
        "breaker": Entry("menu", "breaker", "Circuit breakers: see, trip, reset.", _SEE),
        "events": Entry("events", "events", "Show what was decided about VMs, and why.", _SEE),
        "agreement": Entry(
            "agreement", "agreement", "Show what observe-only would have done, and what came of it.", _SEE
        ),
        "discover": Entry("discover", "discover", "Find running VMMs of this host, and draft their specs.", _SEE),
        "config": Entry("config", "config", "Show every setting as it is in force, and who set it.", _SEE),
        "doctor": Entry(
            "doctor", "doctor", "Look for what would keep this host from working, and say what to do.", _SEE
        ),
        "support-bundle": Entry(
            "bundle", "support_bundle", "Collect what a person who helps needs, without secrets.", _SEE
        ),
        "apply": Entry("declare", "apply", "Declare VMs: create or change all that a file describes.", _DECLARE),
        "forget": Entry("declare", "forget", "Drop the record of a VM; its VMM runs on.", _DECLARE),
        "recover": Entry("recover", "recover", "Ask for the recovery of a VM.", _DECLARE),
        "reset": Entry("reset", "reset", "Clear a finished episode: the VM is watched and recovered again.", _DECLARE),
        "pause": Entry("modes", "pause", "Neither judge nor touch VMs, until it is lifted.", _DECLARE),
        "maintenance": Entry("modes", "maintenance", "Judge VMs, and do nothing to them, for a time.", _DECLARE),
        "observe": Entry("modes", "observe", "Decide everything, write it down, and do nothing.", _DECLARE),
        "resume": Entry("modes", "resume", "Lift a pause, a maintenance or observe-only.", _DECLARE),
        "flag": Entry("menu", "flag", "Switch single parts at run time.", _DECLARE),
        "state": Entry("menu", "state", "After Redis lost its data: look, rebuild, confirm.", _DECLARE),
        "worker": Entry("run", "worker", "Run the worker of this host.", _RUN),
        "beat": Entry("run", "beat", "Run a beat: it schedules health checks and sweeps.", _RUN),
        "flower": Entry("run", "flower", "Run the Flower dashboard.", _RUN),
        "simulate": Entry("simulate", "simulate", "Replay a scenario in the terminal.", _RUN),
        "demo": Entry("run", "demo", "Watch a small fleet being broken and mended, on this machine.", _RUN),
        "bench": Entry("bench", "bench", "Measure on this host what checks and recoveries cost and take.", _RUN),
        "completion": Entry(
            "completion", "completion", "Print the script that lets a shell complete commands and names.", _RUN
        ),
    },
    help="Keep microVMs alive: declare them, see how they are, bring them back.",
    epilog=_EPILOG,
    context_settings=HELP_NAMES,
)
click.version_option(package_name="metald-reliability", prog_name="reliability")(reliability)
