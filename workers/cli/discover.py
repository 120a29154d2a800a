"""`discover`: which VMMs run on this host, and the specs by which `apply` would take them over."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from workers.bootstrap import drivers
from workers.cli.failures import Failure
from workers.cli.output import (
    clean,
    output_option,
    say,
    show_json,
    show_names,
    show_table,
)
from workers.cli.session import Session, session
from workers.domain.vm import VmRecord
from workers.domain.words import counted
from workers.host.discovery import Discovery
from workers.host.identity import read_vantage
from workers.host.inventory import Inventory
from workers.images import ImageRefused, check_images
from workers.services.adoption import Candidate, Finding, draft_text, judge
from workers.settings import Settings
from workers.specs import VmSpec, is_vm_id

_PIDS_SHOWN = 8


@click.command()
@click.option("--write", "folder", metavar="DIR", type=click.Path(file_okay=False), help="Write one spec per VM there.")
@output_option("table", "json", "name")
def discover(folder: str | None, output: str) -> None:
    """Find running VMMs of this host, and draft their specs.

    Asks each VMM what it is made of (Firecracker: GET /vm/config, QEMU: QMP and its command line); none is changed or
    signalled. --write writes ID.yaml for each that can be taken over as it is, which `reliability apply -f DIR` does
    without a restart, and ID.PID.draft for each that needs a hand first; files that are there already are left alone.
    """
    with session() as here:
        found, hidden = _look(here)
        written = _write(Path(folder), found) if folder is not None else {}
    _show(found, written, hidden, output)
    if hidden:
        pids = ", ".join(map(str, hidden[:_PIDS_SHOWN])) + ("…" if len(hidden) > _PIDS_SHOWN else "")
        say(f"warning: {counted(len(hidden), 'VMM')} of other users cannot be looked into (pid {pids}): run it as root")


def _look(here: Session) -> tuple[list[Candidate], list[int]]:
    settings = here.settings
    vantage = read_vantage(settings.state_dir)
    inventory = Inventory(here.files, drivers(settings), vantage, host_name=settings.host)
    discovery = Discovery(inventory, timeout_s=settings.health_check.timeout.total_seconds())
    sightings = inventory.sightings()
    ids = sorted({seen.vm_id for seen in sightings if is_vm_id(seen.vm_id)})
    records: dict[str, VmRecord] = {}
    unreadable: dict[str, str] = {}
    for snapshot in here.snapshots(ids):
        records |= {vm_id: stored.record for vm_id, stored in snapshot.found.items()}
        unreadable |= snapshot.unreadable
    looks = discovery.look(
        sightings,
        is_known=lambda seen: seen.vm_id in records and records[seen.vm_id].process == seen.process,
    )
    found = judge(
        looks, records, unreadable, host=settings.host, images_refused=lambda spec: _images_refused(spec, settings)
    )
    return sorted(found, key=lambda each: (each.finding, each.look.vm_id, each.look.process.pid)), discovery.unseen()


def _images_refused(spec: VmSpec, settings: Settings) -> str | None:
    try:
        check_images(spec, settings.image_roots, settings.image_devices)
    except ImageRefused as error:
        return str(error)
    return None


def _write(folder: Path, found: Sequence[Candidate]) -> dict[str, Candidate]:
    """Write all of them, or none where one is there already. Raises Failure, OSError."""
    texts = {folder / each.file_name: each for each in found if each.file_name is not None}
    _refuse_over([path for path in texts if os.path.lexists(path)])
    if texts:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, each in texts.items():
        _write_once(path, draft_text(each))
    return {str(path): each for path, each in texts.items()}


def _refuse_over(there: Sequence[Path]) -> None:
    if there:
        lines = [
            f"{path} is there already and is left alone: move it away, or write to another folder" for path in there
        ]
        raise Failure(*lines, "nothing was written")


def _write_once(path: Path, text: str) -> None:
    """The whole file or none, and never over another one; `apply` reads no name that begins with a dot."""
    made = path.with_name(f".{path.name}.{os.getpid()}.new")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.link(made, path)
    except FileExistsError:
        raise Failure(
            f"{path} was made by somebody else meanwhile, and is left alone; those before it are written"
        ) from None
    finally:
        made.unlink(missing_ok=True)


def _show(found: Sequence[Candidate], written: dict[str, Candidate], hidden: Sequence[int], output: str) -> None:
    match output:
        case "json":
            file_of = {id(each): path for path, each in written.items()}
            show_json({"vms": [_document(each, file_of.get(id(each))) for each in found], "hidden_pids": list(hidden)})
        case "name":
            show_names([each.look.vm_id for each in found if each.finding is Finding.NEW])
        case _ if not found:
            click.echo("no running VMM found")
        case _:
            rows = [(each.look.vm_id, each.look.process.pid, each.look.driver, each.finding) for each in found]
            show_table(["SAYS IT IS", "PID", "DRIVER", "FINDING"], rows)
            for each in found:
                _show_details(each)
            for path in written:
                click.echo(f"written: {clean(path)}")


def _show_details(each: Candidate) -> None:
    facts = list(_facts(each))
    if facts:
        click.echo(clean(f"{each.look.vm_id or '-'} (pid {each.look.process.pid}):"))
        click.echo("\n".join(f"  {clean(fact)}" for fact in facts))


def _facts(each: Candidate) -> Iterator[str]:
    draft = each.draft
    if each.note:
        yield each.note
    if each.finding is Finding.KNOWN:
        return
    yield f"read: {', '.join(draft.read)}"
    yield from (f"could not be read: {line}" for line in draft.unread)
    yield from (f"guessed: {name}: {why}" for name, why in draft.guessed.items())
    yield from (f"lost when it is started again: {line}" for line in draft.lost)
    yield from (f"in the way: {line}" for line in draft.obstacles)


def _document(each: Candidate, file: str | None) -> dict[str, Any]:
    look, draft = each.look, each.draft
    return {
        "says_it_is": look.vm_id,
        "pid": look.process.pid,
        "driver": look.driver,
        "socket": look.socket,
        "guarded": look.guarded,
        "finding": each.finding,
        "note": each.note,
        "spec": draft.fields if each.finding is not Finding.KNOWN else None,
        "read": draft.read,
        "unread": draft.unread,
        "guessed": draft.guessed,
        "lost": draft.lost,
        "obstacles": draft.obstacles,
        "file": file,
    }
