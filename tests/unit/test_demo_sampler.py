"""When the sampler says that a VM was doubled: only if two of its processes were alive at one instant."""

from collections.abc import Callable, Mapping, Sequence

from workers.demo.sampler import Vmm, doubled

OLD, NEW = Vmm("vm-01", 10, 100), Vmm("vm-01", 11, 200)
OTHER = Vmm("vm-02", 12, 300)


def proc(answers: Mapping[int, Sequence[int | None]]) -> Callable[[int], int | None]:
    """Return a look at /proc that gives these start times, one after the other."""
    left = {pid: list(starts) for pid, starts in answers.items()}
    return lambda pid: left[pid].pop(0)


def test_two_processes_alive_through_both_rounds_are_a_double() -> None:
    looks = proc({10: [100, 100], 11: [200, 200]})

    assert list(doubled([OLD, NEW, OTHER], looks)) == [[OLD, NEW]]


def test_a_pass_that_spans_the_end_of_the_old_and_the_start_of_the_new_is_none() -> None:
    looks = proc({10: [None], 11: [200]})

    assert list(doubled([OLD, NEW], looks)) == []


def test_an_old_process_that_ends_between_the_rounds_is_no_proof() -> None:
    looks = proc({10: [100, None], 11: [200, 200]})

    assert list(doubled([OLD, NEW], looks)) == []


def test_a_pid_that_went_to_another_process_is_not_the_old_one() -> None:
    looks = proc({10: [999], 11: [200]})

    assert list(doubled([OLD, NEW], looks)) == []


def test_single_processes_are_not_even_looked_at() -> None:
    assert list(doubled([NEW, OTHER], proc({}))) == []


def test_of_three_the_two_that_live_are_named() -> None:
    third = Vmm("vm-01", 13, 400)
    looks = proc({10: [None], 11: [200, 200], 13: [400, 400]})

    assert list(doubled([OLD, NEW, third], looks)) == [[NEW, third]]
