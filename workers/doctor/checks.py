"""Every check there is, in the order in which the report has them, and how they build on each other."""

from collections.abc import Sequence

from workers.doctor import fleet, host, machine, programs, server
from workers.doctor.examination import DEADLINE_S, Check, Group, Report, examine
from workers.doctor.finding import Finding, Level
from workers.doctor.place import Place

# Without an answer here, nothing else can be asked of Redis.
_REACHABLE = Check("redis", Group.REDIS, server.reachable, late=Level.PROBLEM)
_BROKER_REACHABLE = Check("broker", Group.REDIS, server.broker_reachable, late=Level.PROBLEM)

ON_THE_HOST: Sequence[Check] = (
    Check("state folder", Group.HOST, host.state_folder),
    Check("disk space", Group.HOST, host.space),
    Check("kill switch", Group.HOST, host.kill_switch),
    Check("run folders", Group.HOST, host.folders),
    Check("leftovers", Group.HOST, host.leftovers),
    Check("images", Group.HOST, host.images),
    Check("passwords", Group.HOST, host.secret_files),
    Check("switches", Group.HOST, fleet.switched_off),
    Check("ports", Group.HOST, programs.ports),
    Check("flower", Group.HOST, programs.flower),
    Check("kernel", Group.MACHINE, machine.kernel),
    Check("limits", Group.MACHINE, machine.descriptors),
    Check("tasks", Group.MACHINE, machine.tasks),
    Check("kvm", Group.MACHINE, machine.kvm),
    Check("cgroup", Group.MACHINE, machine.cgroup),
    Check("drivers", Group.MACHINE, programs.drivers),
    Check("third-party drivers", Group.MACHINE, programs.third_party),
    Check("packages", Group.MACHINE, machine.packages),
)
OF_REDIS: Sequence[Check] = (
    Check("redis version", Group.REDIS, server.version),
    Check("persistence", Group.REDIS, server.persistence),
    Check("redis memory", Group.REDIS, server.memory),
    Check("redis latency", Group.REDIS, server.latency),
    Check("redis rights", Group.REDIS, server.rights),
    Check("clocks", Group.REDIS, server.clock),
    Check("records", Group.FLEET, fleet.records),
    Check("workers", Group.FLEET, fleet.workers),
    Check("versions", Group.FLEET, fleet.versions),
    Check("beat", Group.FLEET, fleet.beat),
    Check("checks", Group.FLEET, fleet.checks),
    Check("halted hosts", Group.FLEET, fleet.halted),
    Check("modes", Group.FLEET, fleet.modes),
    Check("breakers", Group.FLEET, fleet.held_back),
    Check("strays", Group.FLEET, fleet.strays),
    Check("failed vms", Group.FLEET, fleet.failed),
    Check("folders without record", Group.HOST, host.without_record),
)
_OF_BOTH: Sequence[Check] = (Check("broker database", Group.REDIS, server.broker),)


def run_checks(place: Place, *, host_only: bool = False, deadline_s: float = DEADLINE_S) -> Report:
    """Look at everything; raises nothing. What needs Redis is left out where it does not answer, or by `host_only`."""
    if host_only:
        return Report(examine(ON_THE_HOST, place, deadline_s=deadline_s))
    first = examine((_REACHABLE, _BROKER_REACHABLE, *ON_THE_HOST), place, deadline_s=deadline_s)
    later = [*(OF_REDIS if _is_well(first, _REACHABLE) else ())]
    later += _OF_BOTH if _is_well(first, _REACHABLE) and _is_well(first, _BROKER_REACHABLE) else ()
    skipped = [check.name for check in (*OF_REDIS, *_OF_BOTH) if check not in later]
    return Report([*first, *examine(later, place, deadline_s=deadline_s)], skipped)


def _is_well(found: Sequence[tuple[Group, Finding]], check: Check) -> bool:
    return any(each.name == check.name and each.level is Level.OK for _, each in found)
