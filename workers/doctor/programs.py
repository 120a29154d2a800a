"""Checks of programs: what drivers run, and who has the ports of ours."""

import http.client
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from workers import bootstrap
from workers.doctor.finding import Finding, fine, listed, problem, warning
from workers.doctor.place import Place
from workers.settings import STANDIN, Settings
from workers.vmm.driver import UNKNOWN_VERSION

_ASK_S = 0.7
_MOST_READ = 4 << 20
_OUR_SERVER = "reliability"


@dataclass(frozen=True, slots=True)
class ProgramSeen:
    """The program of a driver: `path` None where there is none that can be run. `used`: a VM of this host needs it."""

    driver: str
    binary: str
    path: str | None
    version: str
    used: bool


def drivers(place: Place) -> Iterator[Finding]:
    known = bootstrap.drivers(place.settings)
    used = _used(place)
    own = place.settings.drivers
    seen = [
        ProgramSeen(name, binary, _path(binary), known[name].version(), name in used)
        for name, binary in (("firecracker", own.firecracker.binary), ("qemu", own.qemu.binary))
    ]
    yield from judge_drivers(seen)
    for name in sorted(known.keys() - {each.driver for each in seen}):
        yield fine("drivers", f"{name}: version {known[name].version()}")


def third_party(place: Place) -> Iterator[Finding]:
    for why in bootstrap.driver_problems(place.settings):
        yield problem("drivers", why, "mend or remove that package; all other drivers work on")


def _path(binary: str) -> str | None:
    return STANDIN if binary == STANDIN else shutil.which(binary)


def _used(place: Place) -> set[str]:
    try:
        runs = [place.files.current(vm_id) for vm_id in place.files.all_kept()]
    except FileNotFoundError:
        return set()
    return {run.driver for run in runs if run and run.driver}


def judge_drivers(seen: list[ProgramSeen]) -> Iterator[Finding]:
    """One that is not installed is no fault where another one is, and nothing here needs it."""
    none_found = all(each.path is None for each in seen)
    for each in seen:
        yield _judge_driver(each, needed=each.used or none_found)


def _judge_driver(seen: ProgramSeen, *, needed: bool) -> Finding:
    setting = f"drivers.{seen.driver}.binary"
    if seen.path is None:
        is_file = Path(seen.binary).is_file()
        why = "may not be executed" if is_file and not os.access(seen.binary, os.X_OK) else "is not found"
        says = f"{seen.driver}: {seen.binary} {why}"
        if needed:
            return problem("drivers", says, f"install it, or set {setting}")
        return fine("drivers", f"{says}, and no VM here needs it")
    if seen.version == UNKNOWN_VERSION:
        says = f"{seen.driver}: {seen.path} --version tells none"
        return warning("drivers", says, f"see whether it runs at all, or set {setting}")
    return fine("drivers", f"{seen.driver}: {seen.path}, version {seen.version}")


@dataclass(frozen=True, slots=True)
class Listener:
    """Who answers on a port: nobody, we (`document` is what /status says), or somebody else."""

    answers: bool
    document: Mapping[str, object] | None = None


def ports(place: Place) -> Iterator[Finding]:
    telemetry = place.settings.telemetry
    for process, port in (("worker", telemetry.worker_port), ("beat", telemetry.beat_port)):
        if telemetry.endpoints and port:
            yield judge_port(process, port, listener(telemetry.address, port))
    if not telemetry.endpoints:
        yield fine("ports", "telemetry.endpoints is off: nothing listens")


def judge_port(process: str, port: int, found: Listener) -> Finding:
    if not found.answers:
        return fine("ports", f"{port} is free for a {process}")
    if found.document is None:
        says = f"{port}, for the metrics of a {process}, is taken by another program"
        return problem("ports", says, f"free it, or set telemetry.{process}_port")
    theirs = found.document.get("process")
    if theirs != process:
        says = f"{port}, for the metrics of a {process}, is that of a {theirs}"
        return problem("ports", says, f"set telemetry.{process}_port")
    troubles = found.document.get("troubles")
    if isinstance(troubles, Mapping) and troubles:
        says = f"the {process} on {port} says: {listed([f'{what}: {why}' for what, why in troubles.items()])}"
        return warning("ports", says, f"look at the log of the {process}")
    return fine("ports", f"{port}: {process}, pid {found.document.get('pid')}, version {found.document.get('version')}")


def listener(address: str, port: int) -> Listener:
    try:
        is_ours, text = fetch(address, port, "/status")
        document = json.loads(text) if is_ours else None
    except ConnectionRefusedError:
        return Listener(answers=False)
    except (OSError, http.client.HTTPException, ValueError):
        return Listener(answers=True)
    return Listener(answers=True, document=document if isinstance(document, dict) else None)


def fetch(address: str, port: int, path: str) -> tuple[bool, bytes]:
    """Ask what listens on this machine: whether it is one of ours, and what it says. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(near(address), port, timeout=_ASK_S)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return (reply.getheader("Server") or "").startswith(_OUR_SERVER), reply.read(_MOST_READ)
    finally:
        connection.close()


def near(address: str) -> str:
    """Where to connect to what listens on this address of this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - asked, not bound


def flower(place: Place) -> Iterator[Finding]:
    own = place.settings.flower
    yield judge_flower(place.settings, listens=_is_taken(near(own.address), own.port))


def judge_flower(settings: Settings, *, listens: bool) -> Finding:
    own = settings.flower
    if own.basic_auth is not None:
        return fine("flower", "asks for a password")
    does = "set flower.basic_auth to user:password"
    if not _is_loopback(own.address):
        return problem("flower", f"no password, and flower.address is {own.address}: it refuses to start", does)
    if listens:
        says = f"no password: every user of this machine sees what is on port {own.port}"
        return warning("flower", says, does)
    return fine("flower", "no password is set: it would serve this machine only, and start nothing")


def _is_taken(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_ASK_S).close()
    except OSError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
