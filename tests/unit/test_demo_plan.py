"""Which faults the demo plans, on whom, and what it promises about them."""

import random
from datetime import timedelta
from pathlib import Path

import pytest

from workers.demo.plan import Fault, Step, names, plan
from workers.demo.profile import known_within, production, waits

VMS = names(20)


def planned(vms: int = 20, faults: int = 12, seed: int = 1) -> list[Step]:
    return plan(names(vms), faults, tuple(Fault), random.Random(seed))  # noqa: S311 - a game


def victims(steps: list[Step]) -> list[str]:
    return [step.vm_id for step in steps if step.vm_id is not None]


def test_each_kind_comes_once_before_any_comes_twice() -> None:
    assert [step.fault for step in planned()[:7]] == list(Fault)


def test_fewer_faults_than_kinds_are_the_first_kinds() -> None:
    assert [step.fault for step in planned(faults=3)] == [Fault.SIGKILL, Fault.SIGSTOP, Fault.SOCKET_REMOVED]


def test_no_vm_is_hit_twice_while_there_are_others() -> None:
    hit = victims(planned(faults=22))

    assert len(hit) == len(set(hit)) == 20


def test_with_too_few_vms_each_has_the_longest_rest_there_can_be() -> None:
    hit = victims(planned(vms=3, faults=20))

    assert all(len(set(hit[at : at + 3])) == 3 for at in range(len(hit) - 2))


def test_after_the_first_round_only_vms_are_hit() -> None:
    assert all(step.vm_id is not None for step in planned(faults=40)[7:])


def test_faults_of_worker_and_redis_name_no_vm() -> None:
    steps = {step.fault: step for step in planned()}

    assert steps[Fault.WORKER_KILLED] == Step(Fault.WORKER_KILLED, None)
    assert steps[Fault.WORKER_KILLED].target == "worker"
    assert steps[Fault.REDIS_KILLED].target == "redis"


def test_the_same_seed_gives_the_same_faults_on_the_same_vms() -> None:
    assert planned(seed=7) == planned(seed=7)
    assert planned(seed=7) != planned(seed=8)


def test_one_vm_takes_every_fault() -> None:
    assert victims(planned(vms=1, faults=9)) == ["vm-01"] * 7


def test_names_are_as_wide_as_the_largest() -> None:
    assert names(2) == ["vm-01", "vm-02"]
    assert names(100)[-1] == "vm-100"
    assert names(1, "ab-") == ["vm-ab-01"]


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (Fault.SIGKILL, None),
        (Fault.SIGSTOP, 49),
        (Fault.SOCKET_REMOVED, 34),
        (Fault.OTHER_VM, 32),
        (Fault.REFUSES_STARTS, None),
    ],
)
def test_production_defaults_promise_what_the_documents_say(fault: Fault, seconds: int | None, tmp_path: Path) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)

    assert known_within(fault, production(tmp_path)) == expected


def test_two_refused_starts_cost_two_waits_with_their_jitter(tmp_path: Path) -> None:
    assert waits(production(tmp_path)) == timedelta(seconds=99)
