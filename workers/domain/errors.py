"""The tree of errors that a caller cannot plan for; each carries its ids as attributes.

ReliabilityError
├── IllegalTransition      a state change that the table of edges does not know
├── StoreUnavailable       Redis did not answer; nothing is known about whether the write happened
├── UnreadableRecord       a record of another schema version, or damaged; it is left untouched
├── UnknownVm              no record under this id
├── HostTaken              another worker serves this host name
├── GuardBusy              somebody holds the VM's lock file
├── StaleGeneration        the run directory has seen a higher generation
├── StartFailed            a VMM did not come up
├── StopFailed             a VMM could not be stopped
│   └── Unkillable         it is alive after SIGKILL (state D)
├── DriverUnavailable      the VMM's binary is missing or not usable
├── Refused                what was asked for is not done, and why; nothing was changed
├── Held                   an operator mode keeps anybody from acting on this VM
├── Unwanted               its manager told this host that it is to be stopped or deleted; Redis may not know yet
└── Paused                 the kill switch of this host is on
"""


class ReliabilityError(Exception):
    """Base of all errors of this project."""


class IllegalTransition(ReliabilityError):
    def __init__(self, vm_id: str, before: str, after: str) -> None:
        super().__init__(f"vm {vm_id}: no edge {before} -> {after}")
        self.vm_id, self.before, self.after = vm_id, before, after


class StoreUnavailable(ReliabilityError):
    """Redis is away, slow beyond the timeout, or refuses us. Fail closed."""


class UnreadableRecord(ReliabilityError):
    def __init__(self, vm_id: str, why: str) -> None:
        super().__init__(f"vm {vm_id}: record left untouched: {why}")
        self.vm_id, self.why = vm_id, why


class UnknownVm(ReliabilityError):
    def __init__(self, vm_id: str) -> None:
        super().__init__(f"no vm {vm_id!r} is registered; see `reliability vm list`")
        self.vm_id = vm_id


class GuardBusy(ReliabilityError):
    def __init__(self, vm_id: str) -> None:
        super().__init__(f"vm {vm_id}: its lock is held by a running process")
        self.vm_id = vm_id


class StaleGeneration(ReliabilityError):
    def __init__(self, vm_id: str, asked: int, seen: int) -> None:
        super().__init__(f"vm {vm_id}: generation {asked} refused, the host has seen {seen}")
        self.vm_id, self.asked, self.seen = vm_id, asked, seen


class StartFailed(ReliabilityError):
    """`cause` is how the new process ended, where it did and that is known: `exit 152`."""

    def __init__(self, vm_id: str, why: str, cause: str | None = None) -> None:
        super().__init__(f"vm {vm_id}: {why}")
        self.vm_id, self.why, self.cause = vm_id, why, cause


class StopFailed(ReliabilityError):
    def __init__(self, vm_id: str, why: str) -> None:
        super().__init__(f"vm {vm_id}: {why}")
        self.vm_id, self.why = vm_id, why


class Unkillable(StopFailed):
    """Nothing but the end of what it waits for in the kernel, or a reboot, gets rid of it."""


class Refused(ReliabilityError):
    """`why` stands for itself and says what to do instead; `hindrance` names it for programs."""

    def __init__(self, why: str, hindrance: str = "refused") -> None:
        super().__init__(why)
        self.why, self.hindrance = why, hindrance


class Held(ReliabilityError):
    def __init__(self, vm_id: str, words: str) -> None:
        super().__init__(f"vm {vm_id}: {words}")
        self.vm_id, self.words = vm_id, words


class Unwanted(ReliabilityError):
    def __init__(self, vm_id: str, why: str) -> None:
        super().__init__(f"vm {vm_id}: not started: {why}")
        self.vm_id, self.why = vm_id, why


class DriverUnavailable(ReliabilityError):
    def __init__(self, driver: str, why: str) -> None:
        super().__init__(f"driver {driver}: {why}")
        self.driver, self.why = driver, why


class Paused(ReliabilityError):
    def __init__(self, path: str) -> None:
        super().__init__(f"the kill switch {path} is on: no signal and no spawn on this host")
        self.path = path
