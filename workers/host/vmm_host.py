"""The VmHost port: start, find and fence VMMs of this host, each VM's under its own lock (DESIGN section 8)."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import structlog

from workers.crashpoints import Point, reach
from workers.domain.errors import DriverUnavailable, GuardBusy, StartFailed, StopFailed
from workers.domain.vm import Incarnation, Vantage
from workers.host.bringup import NewVmm
from workers.host.identity import look_at, read_stat
from workers.host.inventory import HOST_VARIABLE, Inventory
from workers.host.pidfd import exit_cause, pidfd_of, terminate, wait_end
from workers.host.rundir import CONSOLE, VMM_LOG, HostFiles, Run
from workers.images import check_images
from workers.ports import Kept, Renew, Running
from workers.specs import VmSpec, dump_spec
from workers.vmm.driver import Driver, Launch

_log = structlog.get_logger(component="host")

_LOG_TAIL_BYTES = 400
# Somebody else's look at the lock, or a process between fork and exec, is over long before.
_LOCK_PATIENCE_S = 0.1


class LocalVmmHost:
    """`known_pids` gives the watched VMMs of all other VMs, so that looking for one need not read them again."""

    def __init__(
        self,
        files: HostFiles,
        drivers: Mapping[str, Driver],
        vantage: Vantage,
        *,
        host_name: str,
        image_roots: Sequence[Path],
        stop_grace_s: float,
        start_timeout_s: float,
        image_devices: Sequence[str] = (),
        cgroup: Path | None = None,
        tidy_grace_s: float = 86_400.0,
        known_pids: Callable[[str], Collection[int]] = lambda _vm_id: (),
    ) -> None:
        self._files, self._drivers, self._vantage = files, drivers, vantage
        self._inventory = Inventory(files, drivers, vantage, host_name=host_name)
        self._environment = {"PATH": os.defpath, "LANG": "C.UTF-8", HOST_VARIABLE: host_name}
        self._image_roots, self._image_devices = image_roots, image_devices
        self._stop_grace_s, self._start_timeout_s = stop_grace_s, start_timeout_s
        self._known_pids, self._cgroup, self._tidy_grace_s = known_pids, cgroup, tidy_grace_s

    def check_kill_switch(self) -> None:
        self._files.check_kill_switch()

    def inventory(self) -> list[Running]:
        return self._inventory.all()

    def driver_version(self, driver: str) -> str:
        known = self._drivers.get(driver)
        return f"{driver}@{known.version() if known else 'unknown'}"

    def kept(self, vm_id: str) -> Kept:
        return self._files.kept(vm_id)

    def all_kept(self) -> list[str]:
        return self._files.all_kept()

    def note_stopped(self, vm_id: str, at_ms: int) -> None:
        with _best_effort(vm_id):
            self._files.note_stopped(vm_id, at_ms)

    def note_forgotten(self, vm_id: str, at_ms: int) -> None:
        with _best_effort(vm_id):
            self._files.note_forgotten(vm_id, at_ms)

    def tidy(self, vm_id: str) -> bool:
        try:
            with self._files.lock(vm_id):
                self._files.tidy(vm_id, grace_s=self._tidy_grace_s)
        except GuardBusy:
            return False
        return True

    def running(self, vm_id: str) -> Running | None:
        """Return the live VMM of this VM: the holder of its lock first, else one that only says so.

        Raises GuardBusy when the lock is held by something that is no VMM we can see.
        """
        held = self._is_locked(vm_id)
        if held and (found := self._recorded(vm_id)):
            return found
        candidates = self._inventory.find(vm_id, known_pids=() if held else self._known_pids(vm_id))
        guarded = [running for running in candidates if running.guarded]
        if held and not guarded and self._is_locked(vm_id):
            raise GuardBusy(vm_id)
        return next(iter(guarded or candidates), None)

    def _is_locked(self, vm_id: str) -> bool:
        try:
            with self._files.lock(vm_id):
                return False
        except GuardBusy:
            return True

    def _recorded(self, vm_id: str) -> Running | None:
        """The newest generation's process, if its identity was written down and it lives."""
        run = self._files.current(vm_id)
        process = run.process if run else None
        if run is None or process is None or look_at(process, self._vantage) is not None:
            return None
        return Running(vm_id, run.driver or "", process, str(run.socket), guarded=True, generation=run.generation)

    def fence(self, vm_id: str, process: Incarnation, *, before_signal: Renew) -> str:
        def allowed() -> None:
            before_signal()
            # Last, for the other may have waited.
            self._files.check_kill_switch()

        with pidfd_of(process, self._vantage) as fd:
            if fd is None:
                return self._note_end(vm_id, process, None) or "gone already"
            if wait_end(fd, 0):
                return self._note_end(vm_id, process, exit_cause(fd)) or "gone already"
            if not self._inventory.is_vmm_of(process.pid, vm_id):
                raise StopFailed(vm_id, f"pid {process.pid} is no VMM of this vm; nothing was signalled")
            try:
                terminate(fd, process, grace_s=self._stop_grace_s, before_signal=allowed)
            except StopFailed as error:
                raise type(error)(vm_id, f"pid {process.pid}: {error.why}") from error
            return self._note_end(vm_id, process, exit_cause(fd)) or "ended by us"

    def _note_end(self, vm_id: str, process: Incarnation, cause: str | None) -> str | None:
        """Keep how this incarnation ended beside its logs; returns it, or what was kept before."""
        run = self._files.run_of(vm_id, process)
        if run is not None and cause is not None:
            with contextlib.suppress(OSError):
                run.write_exit(cause)
        return cause or (run.exit_cause if run else None)

    def start(self, spec: VmSpec, generation: int, *, before_exec: Renew, while_waiting: Renew) -> Incarnation:
        try:
            return self._start(spec, generation, before_exec, while_waiting)
        except OSError as error:
            # What could not be written is in the message; what may live already holds its lock and is found by it.
            raise StartFailed(spec.id, f"state folder {self._files.state_dir}: {error}") from error

    def _start(self, spec: VmSpec, generation: int, before_exec: Renew, while_waiting: Renew) -> Incarnation:
        driver = self._drivers.get(spec.driver)
        if driver is None:
            raise StartFailed(spec.id, f"no driver {spec.driver!r} on this host")
        launch = self._launch(driver, spec)
        with self._files.lock(spec.id, patience_s=_LOCK_PATIENCE_S) as lock_fd:
            reach(Point.LOCKED)
            self._refuse_beside_another(spec.id)
            reach(Point.BEFORE_INTENT)
            run = self._files.begin(spec.id, generation, driver=spec.driver, spec=dump_spec(spec))
            reach(Point.AFTER_INTENT)
            before_exec()
            self._files.check_wanted(spec.id)
            self._files.check_kill_switch()
            reach(Point.BEFORE_EXEC)
            process = self._exec(spec.id, launch, run, lock_fd)
        try:
            self._bring_up(driver, spec, run, process, while_waiting)
        except StartFailed as error:
            # Only here: whoever lost his lease or was paused leaves the new process to the one who comes next.
            ended = self.fence(spec.id, process, before_signal=while_waiting)
            raise StartFailed(spec.id, f"{error.why} ({ended}){_last_words(run)}", error.cause) from error
        return process

    def _bring_up(self, driver: Driver, spec: VmSpec, run: Run, process: Incarnation, while_waiting: Renew) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        with pidfd_of(process, self._vantage) as fd:
            if fd is None:
                raise StartFailed(spec.id, "ended at once")
            # Only now, while the VMM starts: a machine that ends before ends the VMM, too.
            run.keep()
            NewVmm(driver, spec, run, process, fd, deadline=deadline, while_waiting=while_waiting).bring_up()
        run.note_served()
        reach(Point.VERIFIED)

    def _launch(self, driver: Driver, spec: VmSpec) -> Launch:
        try:
            check_images(spec, self._image_roots, self._image_devices)
            return driver.launch(spec)
        except (ValueError, DriverUnavailable) as error:
            raise StartFailed(spec.id, str(error)) from error

    def _refuse_beside_another(self, vm_id: str) -> None:
        """A VMM that never took the lock (adopted, started by the manager) still is one."""
        others = self._inventory.find(vm_id, known_pids=self._known_pids(vm_id))
        if others:
            raise StartFailed(vm_id, f"pid {others[0].process.pid} already runs this vm without holding its lock")

    def _exec(self, vm_id: str, launch: Launch, run: Run, lock_fd: int) -> Incarnation:
        """Start the VMM in its own session, with the lock as stdin and append-only logs, and write its identity."""
        with (
            append_only(run.path / CONSOLE) as console,
            append_only(run.path / VMM_LOG) as log,
            self._members_of_cgroup(vm_id) as members,
        ):
            try:
                child = subprocess.Popen(
                    launch.argv,
                    cwd=run.path,
                    env={**launch.environment, **self._environment},
                    stdin=lock_fd,
                    stdout=console,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                raise StartFailed(vm_id, f"{launch.argv[0]}: {error.strerror}") from error
            if members is not None:
                os.write(members, str(child.pid).encode())
        reach(Point.AFTER_EXEC)
        # It outlives us on purpose, and whoever sees its pidfd end reaps it: Popen must neither warn nor wait.
        child.returncode = 0
        # Nobody else reaps it, so even if it has ended already its entry still tells who it was.
        stat = read_stat(child.pid)
        if stat is None:
            raise StartFailed(vm_id, f"pid {child.pid} vanished")
        vantage = self._vantage
        process = Incarnation(child.pid, stat.start_ticks, vantage.boot_id, vantage.machine_id, vantage.pid_ns)
        run.write_process(process)
        reach(Point.AFTER_IDENTITY)
        return process

    @contextlib.contextmanager
    def _members_of_cgroup(self, vm_id: str) -> Iterator[int | None]:
        """The file that takes a process over into the cgroup of VMMs, opened before there is a process to move."""
        if self._cgroup is None:
            yield None
            return
        try:
            fd = os.open(self._cgroup / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            why = f"vm_cgroup {self._cgroup}: {error.strerror}; create it and let the worker write its cgroup.procs"
            raise StartFailed(vm_id, why) from error
        try:
            yield fd
        finally:
            os.close(fd)


@contextlib.contextmanager
def append_only(path: Path) -> Iterator[int]:
    """A log that can be cut while it is written (a pipe, or a size limit, would end the guest)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _best_effort(vm_id: str) -> Iterator[None]:
    """A mark that cannot be kept costs a safeguard against lost data, not the VM's stop."""
    try:
        yield
    except OSError as error:
        _log.warning("mark not kept in the run directory", vm_id=vm_id, error=str(error))


def _last_words(run: Run) -> str:
    """The end of the VMM's log, for the one who has to find out why it did not start."""
    try:
        text = (run.path / VMM_LOG).read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""
    return f"; log: {text.splitlines()[-1]}" if text else ""
