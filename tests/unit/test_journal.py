"""What hooks told is on the disk when they return: through kills, damage, full disks and other processes."""

import itertools
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import randint

import pytest

from workers.host.files import drop_half_written
from workers.integration.entries import Entry, Kind
from workers.integration.journal import Journal, Make

VM = "vm-1"

# Tells each VM in turn to run and to stop, and says so when it is kept: `<vm> <number> <kind>`.
TELLER = """
import itertools, sys
from functools import partial
from pathlib import Path
from workers.integration.entries import Entry, Kind
from workers.integration.journal import Journal

journal = Journal(Path(sys.argv[1]))
for call in range(int(sys.argv[2])):
    vm_id, kind = f"vm-{call % 3}", (Kind.RUNNING, Kind.STOPPED)[call // 3 % 2]
    number = journal.add(vm_id, partial(Entry, kind=kind, hook="on_vm_" + kind))
    print(vm_id, number, kind, flush=True)
"""


def told(kind: Kind) -> Make:
    return partial(Entry, kind=kind, hook=f"on_vm_{kind}")


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def journal(state_dir: Path) -> Journal:
    made = Journal(state_dir)
    made.prepare()
    return made


def kinds(journal: Journal, vm_id: str = VM) -> list[Kind]:
    return [entry.kind for entry in journal.read(vm_id)]


def names(journal: Journal) -> list[str]:
    return sorted(path.name for path in journal.folder.iterdir() if not path.name.startswith(".lock"))


def test_numbers_grow_over_the_end_of_a_process_and_of_what_was_kept(journal: Journal, state_dir: Path) -> None:
    first = journal.add(VM, told(Kind.RUNNING), told(Kind.STOPPED))
    journal.settle(VM, [each.number for each in journal.read(VM)])
    assert Journal(state_dir).add(VM, told(Kind.STOPPED)) > first


def test_a_number_is_above_the_last_one_also_where_the_clock_went_back(journal: Journal, state_dir: Path) -> None:
    journal.add(VM, told(Kind.RUNNING))
    (lock,) = journal.folder.glob(".lock.*")
    far_ahead = 2**60
    lock.write_text(str(far_ahead))
    assert Journal(state_dir).add(VM, told(Kind.STOPPED)) == far_ahead + 1


def test_what_was_taken_is_gone_and_what_came_meanwhile_is_left(journal: Journal) -> None:
    taken = journal.add(VM, told(Kind.RUNNING))
    journal.add(VM, partial(Entry, kind=Kind.ERROR, hook="on_vm_error", error="x"))
    journal.settle(VM, [taken])
    assert kinds(journal) == [Kind.ERROR]
    journal.settle(VM, [each.number for each in journal.read(VM)])
    assert (journal.waiting(), names(journal)) == ([], [])


def test_only_the_account_of_the_worker_may_read_it(journal: Journal) -> None:
    journal.add(VM, told(Kind.RUNNING))
    assert stat.S_IMODE(journal.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((journal.folder / f"{VM}.json").stat().st_mode) == 0o600


def test_with_a_group_its_members_may_write_too(state_dir: Path) -> None:
    gid = os.getgroups()[0] if os.getgroups() else os.getgid()
    journal = Journal(state_dir, gid=gid)
    journal.prepare()
    journal.add(VM, told(Kind.RUNNING))
    assert stat.S_IMODE(journal.folder.stat().st_mode) == 0o2770
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o710
    found = (journal.folder / f"{VM}.json").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, gid)


@pytest.mark.parametrize("damage", [b"", b'{"unwanted": null, "entr', b"\0" * 100])
def test_a_damaged_file_is_put_aside_and_keeps_nobody_from_telling_more(journal: Journal, damage: bytes) -> None:
    (journal.folder / f"{VM}.json").write_bytes(damage)
    assert journal.read(VM) == ()
    journal.add(VM, told(Kind.STOPPED))
    assert kinds(journal) == [Kind.STOPPED]
    assert names(journal) == ["vm-1.damaged", "vm-1.json"]


def test_a_link_in_the_place_of_a_file_is_not_followed(journal: Journal, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("untouched")
    (journal.folder / f"{VM}.json").symlink_to(target)
    journal.add(VM, told(Kind.STOPPED))
    assert (kinds(journal), target.read_text()) == ([Kind.STOPPED], "untouched")


def test_a_pipe_or_a_folder_in_the_place_of_a_file_holds_nobody_up(journal: Journal) -> None:
    os.mkfifo(journal.folder / f"{VM}.json")
    (journal.folder / "vm-2.json").mkdir()
    for vm_id in (VM, "vm-2"):
        journal.add(vm_id, told(Kind.STOPPED))
        assert kinds(journal, vm_id) == [Kind.STOPPED]


@pytest.mark.parametrize("wrong", ["", "../x", "a/b", "VM"])
def test_no_other_name_becomes_a_path(journal: Journal, wrong: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 64"):
        journal.add(wrong, told(Kind.STOPPED))


def test_one_process_at_a_time_delivers(journal: Journal, state_dir: Path) -> None:
    with journal.turn() as first, Journal(state_dir).turn() as second:
        assert (first, second) == (True, False)
    with Journal(state_dir).turn() as third:
        assert third


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """No file can be made: what a full disk does, and a folder that somebody else owns."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.symlink_to("/proc/self/fdinfo")
    yield
    folder.unlink()
    aside.rename(folder)


def test_what_the_disk_does_not_take_is_kept_in_memory_and_saved_with_the_next(
    journal: Journal, state_dir: Path
) -> None:
    journal.add(VM, told(Kind.RUNNING))
    with full(journal.folder):
        number = journal.add(VM, told(Kind.STOPPED))
        assert (kinds(journal), VM in journal.waiting()) == ([Kind.STOPPED], True)
    assert kinds(journal) == [Kind.STOPPED]
    journal.add(VM, partial(Entry, kind=Kind.ERROR, hook="on_vm_error", error="x"))
    assert kinds(Journal(state_dir)) == [Kind.STOPPED, Kind.ERROR]
    assert journal.read(VM)[0].number == number


def test_without_any_folder_hooks_are_kept_and_settled_in_memory(state_dir: Path) -> None:
    journal = Journal(state_dir)
    number = journal.add(VM, told(Kind.STOPPED))
    with journal.turn() as ours:
        assert ours
    assert (journal.waiting(), kinds(journal)) == ([VM], [Kind.STOPPED])
    journal.settle(VM, [number])
    assert journal.waiting() == []


def test_a_teller_without_room_for_a_byte_goes_on(journal: Journal, state_dir: Path) -> None:
    limited = ["prlimit", "--fsize=0", sys.executable, "-c", TELLER, str(state_dir), "6"]
    ended = subprocess.run(limited, capture_output=True, check=True, text=True)
    assert [line.split()[0] for line in ended.stdout.splitlines() if line.startswith("vm-")] == [
        "vm-0",
        "vm-1",
        "vm-2",
    ] * 2
    assert ended.stdout.count("hook is kept in memory only") == 6
    assert journal.waiting() == []


def teller(state_dir: Path, calls: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", TELLER, str(state_dir), str(calls)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kept_of(output: str) -> dict[str, tuple[int, str]]:
    """The last that was said to be kept of each VM; a line that was cut off was not said."""
    lines = [line.split() for line in output.split("\n")[:-1]]
    return {vm_id: (int(number), kind) for vm_id, number, kind in lines}


def check_kill(journal: Journal, state_dir: Path, lines: int) -> None:
    with teller(state_dir, 10_000) as process:
        assert process.stdout is not None
        head = "".join(itertools.islice(process.stdout, lines))
        os.kill(process.pid, signal.SIGKILL)
        kept = kept_of(head + process.stdout.read())
    for vm_id, (number, kind) in kept.items():
        (left,) = journal.read(vm_id)
        assert left.number >= number, vm_id
        assert left.number > number or left.kind == kind, vm_id
        json.loads((journal.folder / f"{vm_id}.json").read_text())


def test_a_kill_at_any_moment_loses_nothing_that_was_kept(journal: Journal, state_dir: Path) -> None:
    for _ in range(2):
        check_kill(journal, state_dir, randint(1, 60))  # noqa: S311 - any moment will do
    drop_half_written(state_dir)
    assert all(name.endswith(".json") for name in names(journal))


@pytest.mark.timeout(120)
@pytest.mark.full
def test_many_kills_lose_nothing_that_was_kept(journal: Journal, state_dir: Path) -> None:
    for _ in range(30):
        check_kill(journal, state_dir, randint(1, 200))  # noqa: S311 - the same


def test_two_processes_tell_at_once_and_every_number_is_given_once(journal: Journal, state_dir: Path) -> None:
    tellers = [teller(state_dir, 45) for _ in range(2)]
    said = []
    for process in tellers:
        output, _ = process.communicate(timeout=30)
        said.append([(vm, int(number), kind) for vm, number, kind in map(str.split, output.splitlines())])
    calls = [*said[0], *said[1]]
    assert len(calls) == 90
    assert len({(vm_id, number) for vm_id, number, _ in calls}) == 90
    for vm_id in journal.waiting():
        newest = max((number, kind) for vm, number, kind in calls if vm == vm_id)
        (left,) = journal.read(vm_id)
        assert (left.number, left.kind) == newest
    for each in said:
        assert [number for vm, number, _ in each if vm == "vm-0"] == sorted(n for vm, n, _ in each if vm == "vm-0")
