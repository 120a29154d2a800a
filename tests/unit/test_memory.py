"""What a host remembers of the data in Redis over restarts of its worker, in a file that may be damaged."""

import json
from pathlib import Path

import pytest

from workers.domain.epoch import Known
from workers.host.memory import HostMemory

KNOWN = Known("epoch-1", "100-0")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "epoch.json"


def a_memory(file: Path, known: Known = KNOWN) -> HostMemory:
    memory = HostMemory(file.parent)
    memory.trust(known)
    memory.save()
    return memory


def test_a_new_host_knows_nothing_and_keeps_nothing(file: Path) -> None:
    memory = HostMemory(file.parent)
    memory.saw("5-0")
    memory.save()

    assert memory.known is None
    assert not file.exists()


def test_what_was_saved_is_known_after_a_restart_and_what_was_not_is_forgotten(file: Path) -> None:
    memory = a_memory(file)
    memory.saw("101-0")
    assert HostMemory(file.parent).known == KNOWN

    memory.save()

    assert HostMemory(file.parent).known == Known("epoch-1", "101-0")
    assert [each.name for each in file.parent.iterdir()] == ["epoch.json"], "nothing half written is left"


def test_an_older_event_does_not_set_it_back(file: Path) -> None:
    memory = a_memory(file)
    memory.saw("99-0")
    memory.trust(Known("epoch-1", "98-0"))

    assert memory.known == KNOWN


def test_other_data_that_are_trusted_replace_all_of_it(file: Path) -> None:
    memory = a_memory(file)
    memory.trust(Known("epoch-2", "1-0"))

    assert memory.known == Known("epoch-2", "1-0")


def test_nothing_is_written_while_nothing_changes(file: Path) -> None:
    memory = a_memory(file)
    file.unlink()
    memory.save()
    assert not file.exists()

    memory.saw("101-0")
    memory.save()

    assert json.loads(file.read_text(encoding="utf-8")) == {"epoch": "epoch-1", "last_event": "101-0"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"epoch": "epo',
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"{}",
        b'{"epoch": 7, "last_event": "1-0"}',
        b'{"epoch": "epoch-1"}',
    ],
)
def test_a_damaged_file_is_as_good_as_none_and_is_written_anew(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    memory = HostMemory(file.parent)
    assert memory.known is None

    memory.trust(KNOWN)
    memory.save()

    assert HostMemory(file.parent).known == KNOWN


def test_a_folder_that_cannot_be_written_is_told_and_tried_again(file: Path) -> None:
    memory = a_memory(file)
    memory.saw("101-0")
    moved = file.parent.rename(file.parent.with_name("moved"))
    with pytest.raises(FileNotFoundError):
        memory.save()
    moved.rename(file.parent)

    memory.save()

    assert HostMemory(file.parent).known == Known("epoch-1", "101-0")
