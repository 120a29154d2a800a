"""Virtual time: happenings in their order, and tasks of which one runs at a time until it sleeps or ends.

Services are plain functions that block, so each task has a thread of its own; a baton goes round, and nothing depends
on how fast anything runs. The same seed gives the same run.
"""

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

_US = 1_000_000


class Killed(BaseException):
    """SIGKILL for a task: nothing in the product may catch it."""


@dataclass(order=True)
class _Due:
    at_us: int
    number: int
    act: Callable[[], None] = field(compare=False)


class _Runner:
    """A thread that is used for one task after the other."""

    def __init__(self, clockwork: "Clockwork") -> None:
        self._clockwork = clockwork
        # Bare locks, taken from the start and released by the other side: nothing hands over faster.
        self._baton, self._done = threading.Lock(), threading.Lock()
        self._baton.acquire()
        self._done.acquire()
        self.task: Task | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Hand the baton over, and wait until it comes back."""
        self._baton.release()
        self._done.acquire()

    def pause(self) -> None:
        """Called in the thread itself: give the baton back, and wait for it."""
        self._done.release()
        self._baton.acquire()

    def _serve(self) -> None:
        while True:
            self._baton.acquire()
            task = self.task
            if task is None:
                return
            task.run()
            self.task = None
            self._clockwork.spare.append(self)
            self._done.release()

    def end(self) -> None:
        self._baton.release()


class Task:
    """What one worker does for one message. `owner` is whom a kill takes down with it.

    For whoever watches: when it last read the record of each VM, in server time (ms).
    """

    def __init__(self, clockwork: "Clockwork", owner: object, work: Callable[[], None], runner: _Runner) -> None:
        self.owner = owner
        self.is_killed = self.is_stopped = False
        self._clockwork, self._work, self._runner = clockwork, work, runner
        self._missed: Callable[[], None] | None = None
        self.read_ms: dict[str, int] = {}
        self.read_us: dict[str, int] = {}  # the same in time that nobody sets back

    def run(self) -> None:
        try:
            if not self.is_killed:
                self._work()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - told in the thread that drives the clock
            self._clockwork.failures.append(error)
        self._clockwork.tasks.discard(self)

    def sleep(self, seconds: float) -> None:
        self._clockwork.after(seconds, self.wake)
        self._runner.pause()
        if self.is_killed:
            raise Killed

    def wake(self) -> None:
        """Go on, unless the task has ended, or its process is stopped (SIGSTOP): then when it is continued."""
        if self not in self._clockwork.tasks:
            return
        if self.is_stopped and not self.is_killed:
            self._missed = self.wake
            return
        self._clockwork.switch_to(self, self._runner)

    def stop(self) -> None:
        self.is_stopped = True

    def cont(self) -> None:
        self.is_stopped, missed, self._missed = False, self._missed, None
        if missed is not None:
            self._clockwork.after(0, missed)

    def kill(self) -> None:
        """Let it unwind now; what it would do on the way out of its frames must not reach the outside."""
        if not self.is_killed:
            self.is_killed = True
            if self is not self._clockwork.current:
                self._clockwork.switch_to(self, self._runner)


class Clockwork:
    def __init__(self, start_us: int) -> None:
        self.now_us = start_us
        self.current: Task | None = None
        self.tasks: set[Task] = set()
        self.spare: list[_Runner] = []
        self.failures: list[BaseException] = []
        self._due: list[_Due] = []
        self._numbers = 0

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._due, _Due(self.now_us + max(0, round(seconds * _US)), self._numbers, act))

    def spawn(self, owner: object, work: Callable[[], None]) -> Task:
        """Begin a task now; it runs until its first sleep before this returns."""
        runner = self.spare.pop() if self.spare else _Runner(self)
        runner.task = task = Task(self, owner, work, runner)
        self.tasks.add(task)
        self.switch_to(task, runner)
        return task

    def switch_to(self, task: Task, runner: _Runner) -> None:
        before, self.current = self.current, task
        runner.go_on()
        self.current = before

    def run_for(self, seconds: float) -> None:
        """Let time pass. Raises what a task raised."""
        until_us = self.now_us + round(seconds * _US)
        while self._due and self._due[0].at_us <= until_us:
            due = heapq.heappop(self._due)
            self.now_us = max(self.now_us, due.at_us)
            due.act()
            if self.failures:
                raise self.failures[0]
        self.now_us = until_us

    def sleep(self, seconds: float) -> None:
        """In a task: until then others run. Elsewhere time just passes, and nothing else happens."""
        if self.current is not None:
            self.current.sleep(seconds)
        else:
            self.now_us += round(seconds * _US)

    def of(self, owner: object) -> list[Task]:
        return [task for task in self.tasks if task.owner is owner]

    def close(self) -> None:
        for task in list(self.tasks):
            task.kill()
        for runner in self.spare:
            runner.task = None
            runner.end()
        self.spare.clear()
