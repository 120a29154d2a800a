"""What every driver must do, as a suite that its author runs: a subclass, two fixtures, and a VMM that can be started.

    class TestAcme(DriverContract):
        @pytest.fixture
        def driver(self) -> Driver:
            return AcmeDriver(...)

        @pytest.fixture
        def spec(self, tmp_path: Path) -> VmSpec:
            return AcmeSpec(id="contract-1", kernel=...)

VMMs are started as a worker starts them, in a folder of the test, and are ended with it.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from workers.domain.errors import GuardBusy, StartFailed
from workers.domain.evidence import Evidence
from workers.domain.exits import ExitAction
from workers.domain.vm import Incarnation
from workers.host.identity import look_at, read_vantage
from workers.host.rundir import SOCKET_NAME, HostFiles
from workers.host.vmm_host import LocalVmmHost
from workers.setting_types import EXIT_CAUSE
from workers.specs import DRIVERS, VmSpec, dump_spec, image_paths
from workers.vmm.conversation import Conversation, T
from workers.vmm.driver import Claim, Driver, Finding
from workers.vmm.talk import Silence, connect, hold

_ANSWER_S = 15.0
_SILENT_S = 0.3
_CHUNKS_MAX = 1000
# What no VMM says: nothing, noise, an answer cut off, one of another protocol, one that never ends.
_NOISE = (
    b"",
    b"\0\xff" * 40,
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{",
    b'{"QMP": {}}\r\n{"return": {}}\r\n[]\r\n',
    b"[" * 5000 + b"\n",
    b"x" * (3 << 20),
)
_ODD_LINES: tuple[list[str], ...] = (
    [],
    [""],
    ["x"],
    ["x", "--id"],
    ["x", "-name", ""],
    ["x", "--", "-"],
    ["=", ",", "--="],
)


@dataclass(frozen=True, slots=True)
class Started:
    """A VMM of this driver that runs, on a host of its own."""

    host: LocalVmmHost
    files: HostFiles
    spec: VmSpec
    process: Incarnation

    @property
    def socket(self) -> Path:
        run = self.files.current(self.spec.id)
        assert run is not None
        return run.socket

    def ask(self, conversation: Conversation[T], timeout_s: float = _ANSWER_S) -> T:
        with connect(str(self.socket)) as sock:
            return hold(sock, conversation, timeout_s=timeout_s, between=lambda: None)

    def start_again(self, generation: int) -> Incarnation:
        return _start(self.host, self.spec, generation)


class DriverContract:
    start_timeout_s = 30.0

    @pytest.fixture
    def driver(self) -> Driver:
        raise NotImplementedError("give the driver, as make(settings) returns it")

    @pytest.fixture
    def spec(self) -> VmSpec:
        raise NotImplementedError("give the spec of a VM that can be started here, with images that exist")

    @pytest.fixture
    def vm(self, driver: Driver, spec: VmSpec, tmp_path: Path) -> Iterator[Started]:
        files = HostFiles(tmp_path / "state")
        files.prepare()
        host = LocalVmmHost(
            files,
            {driver.name: driver},
            read_vantage(files.state_dir),
            host_name=f"contract-{os.getpid()}",
            image_roots=sorted({path.resolve().parent for _, path in image_paths(spec)}),
            stop_grace_s=2.0,
            start_timeout_s=self.start_timeout_s,
        )
        try:
            yield Started(host, files, spec, _start(host, spec, 1))
        finally:
            if (left := host.running(spec.id)) is not None:
                host.fence(spec.id, left.process, before_signal=_nothing)

    def test_it_has_the_name_that_its_specs_give(self, driver: Driver, spec: VmSpec) -> None:
        assert driver.name == spec.driver

    def test_its_spec_comes_back_from_json_as_it_was(self, spec: VmSpec) -> None:
        assert type(spec).model_validate(json.loads(dump_spec(spec))) == spec

    def test_its_exit_table_is_written_as_causes_are_told(self, driver: Driver) -> None:
        assert all(EXIT_CAUSE.fullmatch(cause) for cause in driver.exits)
        assert all(isinstance(action, ExitAction) for action in driver.exits.values())

    def test_its_version_is_one_word(self, driver: Driver) -> None:
        assert len(driver.version().split()) == 1

    def test_it_launches_an_absolute_program_and_the_same_each_time(self, driver: Driver, spec: VmSpec) -> None:
        launch = driver.launch(spec)

        assert Path(launch.argv[0]).is_absolute()
        assert not any("\0" in word for word in launch.argv)
        assert "".join([*launch.argv, *launch.environment, *launch.environment.values()]), "all of it is text"
        assert list(driver.launch(spec).argv) == list(launch.argv)

    def test_it_refuses_the_spec_of_another_driver(self, driver: Driver, spec: VmSpec) -> None:
        other = next(kind for name, kind in DRIVERS.items() if name != driver.name)(id=spec.id, kernel=spec.kernel)

        with pytest.raises(StartFailed):
            _launch_and_configure(driver, other)

    def test_it_knows_its_own_command_line_and_no_other(self, driver: Driver, spec: VmSpec) -> None:
        argv = list(driver.launch(spec).argv)
        exe = os.path.realpath(argv[0])

        assert driver.identify(argv, exe) == Claim(spec.id, SOCKET_NAME)
        assert driver.identify(["/bin/sleep", "60"], "/bin/sleep") is None
        assert driver.identify([*argv[:1], "60"], "/bin/sleep") is None
        for line in _ODD_LINES:
            for program in (exe, "", "/bin/sleep"):
                driver.identify(line, program)

    @pytest.mark.parametrize("noise", _NOISE, ids=range(len(_NOISE)))
    def test_what_is_no_answer_is_a_finding_and_no_error(self, driver: Driver, noise: bytes) -> None:
        evidence, detail = _finding(driver.probe("contract-1"), noise)

        assert evidence is not Evidence.ANSWERS
        assert isinstance(detail, str)

    def test_what_it_starts_answers_as_this_vm_and_as_no_other(self, driver: Driver, vm: Started) -> None:
        assert vm.ask(driver.probe(vm.spec.id))[0] is Evidence.ANSWERS
        assert vm.ask(driver.probe("contract-other"))[0] is Evidence.OTHER_VM

    def test_what_it_starts_holds_the_lock_and_is_found_by_it(self, driver: Driver, vm: Started) -> None:
        (found,) = [each for each in vm.host.inventory() if each.vm_id == vm.spec.id]

        assert (found.process, found.driver, found.guarded) == (vm.process, driver.name, True)
        assert found.socket == str(vm.socket)
        with pytest.raises(GuardBusy):
            vm.start_again(2)

    def test_what_hangs_does_not_answer(self, driver: Driver, vm: Started) -> None:
        os.kill(vm.process.pid, signal.SIGSTOP)

        with pytest.raises(Silence):
            vm.ask(driver.probe(vm.spec.id), timeout_s=_SILENT_S)

        os.kill(vm.process.pid, signal.SIGCONT)
        assert vm.ask(driver.probe(vm.spec.id))[0] is Evidence.ANSWERS

    def test_what_ended_starts_again(self, driver: Driver, vm: Started) -> None:
        vm.host.fence(vm.spec.id, vm.process, before_signal=_nothing)

        again = vm.start_again(2)

        assert look_at(vm.process, read_vantage(vm.files.state_dir)) is not None
        assert vm.host.running(vm.spec.id) is not None
        assert again != vm.process
        assert vm.ask(driver.probe(vm.spec.id))[0] is Evidence.ANSWERS


def _launch_and_configure(driver: Driver, spec: VmSpec) -> None:
    driver.launch(spec)
    next(driver.configure(spec))


def _nothing() -> None:
    """Nobody takes a test's lease away."""


def _start(host: LocalVmmHost, spec: VmSpec, generation: int) -> Incarnation:
    return host.start(spec, generation, before_exec=_nothing, while_waiting=_nothing)


def _finding(conversation: Conversation[Finding], noise: bytes) -> Finding:
    """Say this, hang up, and return what was found."""
    with suppress(RuntimeError):
        try:
            next(conversation)
            conversation.send(noise)
            for _ in range(_CHUNKS_MAX):
                conversation.send(b"")
        except StopIteration as end:
            found: Finding = end.value
            return found
    raise AssertionError("the conversation goes on with a peer that has hung up")
