"""Everything that can happen to a simulated fleet, by the words a scenario says it with: `kill vm-1`, `cut host-a`."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any

from workers.domain.errors import ReliabilityError
from workers.domain.modes import Flag, Mode
from workers.domain.vm import Force
from workers.simulator.host import Faults, SimVmm
from workers.simulator.world import World

# Workers of one host, and one more of beats: others only wait, or share the same work.
_MOST = 2

_table: dict[str, "Happening"] = {}


@dataclass(frozen=True, slots=True)
class Happening:
    """`words` are its arguments, for whoever writes a scenario."""

    name: str
    act: Callable[..., None]
    says: str

    @property
    def words(self) -> str:
        parameters = list(signature(self.act).parameters.values())[1:]
        return " ".join(
            f"[{p.name.upper()}]" if p.default is not Parameter.empty else p.name.upper() for p in parameters
        )


class UnknownHappening(ValueError):
    """Words that no happening has."""


def happenings() -> Mapping[str, Happening]:
    return _table


def happen(world: World, text: str) -> None:
    """Let it happen now. Raises UnknownHappening."""
    act, words = _parsed(text)
    act(world, *words)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Callable[..., None], Sequence[str]]:
    name, *words = shlex.split(text) or [""]
    found = _table.get(name)
    if found is None:
        raise UnknownHappening(f"no happening {name!r}; known: {', '.join(sorted(_table))}")
    try:
        signature(found.act).bind(None, *words)
    except TypeError:
        raise UnknownHappening(f"{text!r} must be: {name} {found.words}") from None
    return found.act, words


def _happening(act: Callable[..., None]) -> Callable[..., None]:
    name = act.__name__.removeprefix("_").replace("_", "-")
    _table[name] = Happening(name, act, (act.__doc__ or "").strip())
    return act


def _vmm(world: World, vm_id: str) -> SimVmm | None:
    return world.machine_of(vm_id).sim.of(vm_id)


def _set(world: World, vm_id: str, **traits: Any) -> None:
    vmm = _vmm(world, vm_id)
    for name, value in traits.items():
        if vmm is not None:
            setattr(vmm, name, value)


def _faults(world: World, vm_id: str) -> Faults:
    return world.machine_of(vm_id).sim.faults.setdefault(vm_id, Faults())


# VMMs


@_happening
def _kill(world: World, vm: str, cause: str = "signal 9") -> None:
    """The VMM's process ends, by this cause."""
    world.machine_of(vm).sim.kill(vm, cause)


@_happening
def _hang(world: World, vm: str) -> None:
    """It does not answer any more."""
    _set(world, vm, hung=True)


@_happening
def _wake(world: World, vm: str) -> None:
    """It answers again."""
    _set(world, vm, hung=False)


@_happening
def _lose_socket(world: World, vm: str) -> None:
    """Its socket's file is gone; the process lives."""
    _set(world, vm, socket_gone=True)


@_happening
def _answer_as(world: World, vm: str, other: str) -> None:
    """Its API says that it is another VM."""
    _set(world, vm, answers_as=other)


@_happening
def _ignore_sigterm(world: World, vm: str) -> None:
    """Its process does nothing at SIGTERM."""
    _set(world, vm, ignores_sigterm=True)


@_happening
def _stick(world: World, vm: str) -> None:
    """Its process hangs in the kernel (state D): no signal ends it."""
    _set(world, vm, hung=True, unkillable=True)


@_happening
def _unstick(world: World, vm: str) -> None:
    """The kernel lets go of it, and it ends of what it was sent."""
    _set(world, vm, unkillable=False)


@_happening
def _refuse_starts(world: World, vm: str, times: str, cause: str = "exit 1") -> None:
    """Its next so many starts end by this cause."""
    faults = _faults(world, vm)
    faults.refuse_starts, faults.exit_cause = int(times), cause


@_happening
def _start_slowly(world: World, vm: str, seconds: str) -> None:
    """From now on it takes so long to start."""
    _faults(world, vm).boot_s = float(seconds)


@_happening
def _come_up_hung(world: World, vm: str, yes: str = "yes") -> None:
    """From now on it hangs as soon as it is started."""
    _faults(world, vm).comes_up = {"hung": True} if yes == "yes" else {}


@_happening
def _boot_by_hand(world: World, vm: str, host: str, guarded: str = "no") -> None:
    """Somebody starts a VMM that says it is this VM."""
    machine = world.machines[host]
    machine.sim.boot(vm, machine.sim.kept(vm).generation, guarded=guarded == "guarded")


# Hosts and their workers


@_happening
def _kill_worker(world: World, host: str) -> None:
    """SIGKILL for the worker that serves this host."""
    for worker in list(world.machines[host].workers):
        worker.kill()


@_happening
def _kill_serving_worker(world: World, host: str) -> None:
    """SIGKILL only for the worker that holds this host's name."""
    if (worker := world.machines[host].worker) is not None:
        worker.kill()


@_happening
def _kill_worker_after(world: World, host: str, calls: str) -> None:
    """The worker dies at its so many-th next contact with the outside."""
    for worker in world.machines[host].workers:
        worker.calls_to_live = int(calls)


@_happening
def _end_worker(world: World, host: str) -> None:
    """SIGTERM: it finishes what it does."""
    for worker in list(world.machines[host].workers):
        worker.end()


@_happening
def _start_worker(world: World, host: str) -> None:
    """One more worker for this host, where there are not two already."""
    if len(world.machines[host].workers) < _MOST:
        world.machines[host].start_worker()


@_happening
def _stop_worker(world: World, host: str) -> None:
    """SIGSTOP for its workers."""
    for worker in world.machines[host].workers:
        worker.stop()


@_happening
def _cont_worker(world: World, host: str) -> None:
    """SIGCONT."""
    for worker in list(world.machines[host].workers):
        worker.cont()


@_happening
def _reboot(world: World, host: str) -> None:
    """The machine boots anew: no process is left, and no worker runs until one is started."""
    world.machines[host].reboot()


@_happening
def _doubt(world: World, host: str, trouble: str = "") -> None:
    """The host cannot look properly, for this reason; without one it can again."""
    world.machines[host].trouble = trouble or None


@_happening
def _cut(world: World, host: str) -> None:
    """The host reaches Redis no more."""
    world.machines[host].is_cut_off = True


@_happening
def _join(world: World, host: str) -> None:
    """The host reaches Redis again."""
    world.machines[host].is_cut_off = False


# Redis, beat and the broker


@_happening
def _redis_away(world: World) -> None:
    """Redis answers nobody."""
    world.server.away = True


@_happening
def _redis_back(world: World) -> None:
    """Redis answers again; it was never restarted."""
    world.server.away = False


@_happening
def _redis_restarts(world: World) -> None:
    """Redis was restarted, with its data."""
    world.server.restart()
    world.server.away = False


@_happening
def _redis_loses_data(world: World) -> None:
    """Redis was restarted, without its data."""
    world.server.lose_data()
    world.server.away = False


@_happening
def _redis_saves(world: World) -> None:
    """A backup is made."""
    world.backup = world.server.save()


@_happening
def _redis_rolls_back(world: World) -> None:
    """Redis was restarted with the backup."""
    if world.backup is not None:
        world.server.restart(world.backup)
        world.backup = world.server.save()
    world.server.away = False


@_happening
def _server_clock(world: World, seconds: str) -> None:
    """The clock of the Redis host jumps by so much."""
    world.skew_us += round(float(seconds) * 1_000_000)


@_happening
def _lose_messages(world: World, share: str) -> None:
    """This share of all messages is lost."""
    world.broker.loss = float(share)


@_happening
def _double_messages(world: World, share: str) -> None:
    """This share of all messages comes twice."""
    world.broker.doubling = float(share)


@_happening
def _flush_broker(world: World) -> None:
    """Everything in the queues is gone, also what workers hold back for later."""
    world.broker.flush()


@_happening
def _kill_beat(world: World) -> None:
    """One beat dies."""
    for beat in world.beats[:1]:
        beat.kill()


@_happening
def _start_beat(world: World) -> None:
    """One more beat, where there are not three already."""
    if len(world.beats) <= _MOST:
        world.start_beat()


# People and the VM manager


@_happening
def _apply(world: World, vm: str, host: str, *fields: str) -> None:
    """The VM is registered, or changed; fields of its spec as name=value."""
    given = dict(field.split("=", 1) for field in fields)
    plain: dict[str, Any] = {name: int(value) if value.isdigit() else value for name, value in given.items()}
    if "disks" in plain:
        plain["durability"] = {"disks": plain.pop("disks")}
    world.apply(world.spec(vm, host, **plain))


@_happening
def _stop(world: World, vm: str) -> None:
    """It is to be stopped."""
    world.want(vm, "stopped")


@_happening
def _start(world: World, vm: str) -> None:
    """It is to run."""
    world.want(vm, "running")


@_happening
def _forget(world: World, vm: str) -> None:
    """Its record is dropped; its VMM runs on."""
    try:
        world.registry.forget(vm)
    except ReliabilityError as error:
        world.refusals.append(str(error))


@_happening
def _recover(world: World, vm: str, force: str = "plain") -> None:
    """A person asks for its recovery: `plain`, `force` or `kill-healthy`."""
    world.recover(vm, Force(force))


@_happening
def _hold(world: World, scope: str, mode: str, seconds: str = "0") -> None:
    """A person sets an operator mode on fleet, host:<h> or vm:<id>, for so long, or until it is lifted."""
    world.hold(scope, Mode(mode), float(seconds))


@_happening
def _lift(world: World, scope: str) -> None:
    """All that people hold there is lifted."""
    world.lift(scope)


@_happening
def _switch(world: World, flag: str, on: str, scope: str) -> None:
    """A part is switched `on` or `off` at run time."""
    world.switch(scope, Flag(flag), on=on == "on")


@_happening
def _pause(world: World, host: str) -> None:
    """The kill switch of the host is switched on."""
    world.machines[host].sim.paused = True


@_happening
def _unpause(world: World, host: str) -> None:
    """The kill switch is off."""
    world.machines[host].sim.paused = False


@_happening
def _confirm(world: World) -> None:
    """An operator confirms that the data in Redis are right."""
    world.confirm()


@_happening
def _rebuild(world: World) -> None:
    """An operator has records rebuilt from the hosts' run directories."""
    world.rebuild()


@_happening
def _nothing(world: World) -> None:
    """Time passes."""
    del world
