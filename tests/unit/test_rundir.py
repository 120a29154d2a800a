"""The files of a VM on its host: what is begun, kept, marked and swept, and what damage does to them."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.builders import a_process, a_spec
from workers.domain.errors import GuardBusy, Paused, StaleGeneration, Unwanted
from workers.host.files import drop_half_written
from workers.host.rundir import GENERATIONS_KEPT, HostFiles, Run
from workers.ports import Kept
from workers.specs import dump_spec

VM = "vm-1"
SPEC = a_spec(VM)
MONTH_S = 30 * 24 * 3600


@pytest.fixture
def files(tmp_path: Path) -> HostFiles:
    made = HostFiles(tmp_path / "state")
    made.prepare()
    return made


def begin(files: HostFiles, *generations: int) -> Run:
    run = None
    for generation in generations:
        run = files.begin(VM, generation, driver="firecracker", spec=dump_spec(SPEC))
        run.socket.touch()
    assert run is not None
    return run


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def generations(files: HostFiles) -> list[int]:
    return [run.generation for run in files.runs(VM)]


def test_what_was_begun_is_told_again_whoever_reads_it(files: HostFiles) -> None:
    run = begin(files, 7)
    run.write_process(a_process())
    run.note_served()

    kept = HostFiles(files.state_dir).kept(VM)

    assert kept == Kept(VM, 7, "firecracker", SPEC, a_process(), served=True)
    assert files.all_kept() == [VM]
    assert (files.runs_dir / VM / "current").readlink() == Path("7")


def test_of_a_vm_that_never_ran_here_nothing_is_kept(files: HostFiles) -> None:
    files.note_stopped(VM, 5)
    files.note_forgotten(VM, 5)

    assert files.kept(VM) == Kept(VM)
    assert files.all_kept() == []


@pytest.mark.parametrize("generation", [6, 7])
def test_a_generation_that_was_begun_is_never_begun_again_nor_one_below_it(files: HostFiles, generation: int) -> None:
    begin(files, 7)

    with pytest.raises(StaleGeneration):
        begin(files, generation)

    assert generations(files) == [7]


def test_the_last_generations_are_kept_and_only_the_newest_has_a_socket(files: HostFiles) -> None:
    begin(files, 1, 2, 3, 4, 5)

    runs = files.runs(VM)

    assert [run.generation for run in runs] == [3, 4, 5]
    assert len(runs) == GENERATIONS_KEPT
    assert [run.socket.exists() for run in runs] == [False, False, True]


def test_a_new_start_takes_back_that_it_was_stopped_or_forgotten(files: HostFiles) -> None:
    begin(files, 7)
    files.note_stopped(VM, 1234)
    files.note_forgotten(VM, 5678)
    assert (files.kept(VM).stopped_ms, files.kept(VM).forgotten_ms) == (1234, 5678)

    begin(files, 8)

    assert (files.kept(VM).stopped_ms, files.kept(VM).forgotten_ms) == (0, 0)


def test_tidying_leaves_what_is_younger_than_the_grace(files: HostFiles) -> None:
    run = begin(files, 7)
    files.note_forgotten(VM, 1)

    files.tidy(VM, grace_s=3600)

    assert run.socket.exists()
    assert generations(files) == [7]


def test_tidying_drops_the_socket_of_a_vm_that_is_gone_and_keeps_its_last_incarnations(files: HostFiles) -> None:
    run = begin(files, 5, 6, 7)
    for each in files.runs(VM):
        age(each.path, 3601)

    files.tidy(VM, grace_s=3600)

    assert not run.socket.exists()
    assert generations(files) == [5, 6, 7]


def test_of_a_forgotten_vm_only_that_it_was_forgotten_outlasts_the_grace(files: HostFiles) -> None:
    begin(files, 6, 7)
    files.note_forgotten(VM, 5678)
    age(files.run(VM, 6).path, 3601)

    files.tidy(VM, grace_s=3600)
    assert generations(files) == [7], "the younger one is still within its grace"
    age(files.run(VM, 7).path, 3601)
    files.tidy(VM, grace_s=3600)

    assert generations(files) == []
    assert files.kept(VM) == Kept(VM, forgotten_ms=5678)


@pytest.mark.parametrize(("seconds", "kept"), [(MONTH_S - 60, [VM]), (MONTH_S + 60, [])])
def test_that_it_was_forgotten_is_known_for_a_month(files: HostFiles, seconds: float, kept: list[str]) -> None:
    run = begin(files, 7)
    files.note_forgotten(VM, 5678)
    age(run.path, seconds)
    age(files.runs_dir / VM / "forgotten.json", seconds)

    files.tidy(VM, grace_s=3600)

    assert files.all_kept() == kept


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"driver": 1}'])
def test_damage_is_as_good_as_nothing_and_raises_nothing(files: HostFiles, content: bytes) -> None:
    run = begin(files, 7)
    for name in ("intent.json", "identity.json", "exit.json"):
        (run.path / name).write_bytes(content)
    for name in ("stopped.json", "forgotten.json"):
        (run.path.parent / name).write_bytes(content)

    kept = files.kept(VM)

    assert (kept.generation, kept.spec, kept.process, kept.stopped_ms, kept.forgotten_ms) == (7, None, None, 0, 0)
    assert run.exit_cause is None


def test_folders_that_are_no_vms_are_left_alone(files: HostFiles) -> None:
    begin(files, 7)
    (files.runs_dir / "Lost+Found").mkdir()
    (files.runs_dir / "notes.txt").touch()
    (files.runs_dir / VM / "7.bak").mkdir()

    assert files.all_kept() == [VM]
    assert generations(files) == [7]


def test_the_lock_has_one_holder_and_is_free_again_after_it(files: HostFiles) -> None:
    with files.lock(VM), pytest.raises(GuardBusy), files.lock(VM):
        pass

    with files.lock(VM) as fd:
        assert not os.get_inheritable(fd)
    assert files.lock_path(VM).exists(), "a lock file is never unlinked"


def test_a_lock_that_is_a_link_to_somewhere_else_is_not_opened(files: HostFiles, tmp_path: Path) -> None:
    files.lock_path(VM).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic links"), files.lock(VM):
        pass

    assert not (tmp_path / "elsewhere").exists()


def test_the_kill_switch_is_any_file_of_its_name_also_a_dead_link(files: HostFiles) -> None:
    files.check_kill_switch()
    (files.state_dir / "PAUSE").symlink_to("nowhere")

    with pytest.raises(Paused, match="PAUSE is on"):
        files.check_kill_switch()


def test_a_state_folder_that_is_gone_counts_as_paused(tmp_path: Path) -> None:
    with pytest.raises(Paused, match="the state folder is gone"):
        HostFiles(tmp_path / "gone").check_kill_switch()


def test_what_a_dead_writer_left_half_written_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    folder = tmp_path / "runs" / "vm-1" / "7"
    folder.mkdir(parents=True)
    left, ours, other = folder / f"exit.{ended.pid}-1.new", folder / f"exit.{os.getpid()}-1.new", folder / "spec.new"
    for path in (left, ours, other, folder / "exit.json"):
        path.touch()

    drop_half_written(tmp_path)

    assert sorted(folder.iterdir()) == sorted([ours, other, folder / "exit.json"])


def told(files: HostFiles, text: str) -> Path:
    hooks = files.state_dir / "hooks"
    hooks.mkdir(exist_ok=True)
    path = hooks / f"{VM}.json"
    path.write_text(text)
    return path


def test_a_vm_is_wanted_where_its_manager_has_not_told_otherwise(files: HostFiles) -> None:
    files.check_wanted(VM)
    told(files, '{"unwanted": null, "entries": []}')
    files.check_wanted(VM)


def test_a_vm_is_unwanted_while_its_manager_has_told_so(files: HostFiles) -> None:
    path = told(files, '{"unwanted": "on_vm_stopped", "entries": []}')
    with pytest.raises(Unwanted, match="vm-1: not started: its manager told on_vm_stopped"):
        files.check_wanted(VM)
    path.unlink()
    files.check_wanted(VM)


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", "null"])
def test_a_vm_is_not_started_where_nobody_can_read_what_was_told(files: HostFiles, damage: str) -> None:
    told(files, damage)
    with pytest.raises(Unwanted, match="cannot be read"):
        files.check_wanted(VM)


def test_a_link_or_a_pipe_in_its_place_is_neither_followed_nor_waited_for(files: HostFiles, tmp_path: Path) -> None:
    path = told(files, "")
    path.unlink()
    path.symlink_to(tmp_path / "nothing")
    with pytest.raises(Unwanted, match="symbolic links"):
        files.check_wanted(VM)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Unwanted, match="cannot be read"):
        files.check_wanted(VM)
