"""Where a VM manager keeps its VMs, as reconciliation reads it: a class of the manager's, or a folder of specs.

A provider runs in a thread of its own, with a deadline; whatever it does wrong is one `ListingFailed`.
"""

import io
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

from workers.domain.errors import ReliabilityError
from workers.specfiles import read_specs
from workers.specs import FirecrackerSpec, QemuSpec, ThirdPartySpec, VmSpec

# Far more than any host or manager lists; an endless list must not fill the memory of a worker.
_ENTRIES_MAX = 200_000

Entry = VmSpec | dict[str, object]


class VmProvider(Protocol):
    """What the setting `registry.provider` names: a class that is made without arguments, in each host's worker."""

    def list_vms(self) -> Iterable[VmSpec | Mapping[str, object]]:
        """Return all VMs of the fleet or of this host, as specs or as mappings like those in a spec file.

        Raises whatever it likes when it cannot tell; it must never return less than all instead. A VM that names no
        host belongs to the host that asks; one that shall not run says `desired: stopped`.
        """
        ...


class AllOf:
    """Several registries as one: it fails where one of them does."""

    def __init__(self, providers: Sequence[VmProvider]) -> None:
        self._providers = providers

    def list_vms(self) -> Iterable[VmSpec | Mapping[str, object]]:
        return chain.from_iterable(each.list_vms() for each in self._providers)


class ListingFailed(ReliabilityError):
    """The registry could not be read; nothing follows from it."""


class FolderRegistry:
    """A folder of spec files, as `reliability apply -f` takes it."""

    def __init__(self, folder: Path, *, host: str) -> None:
        self._folder, self._host = folder, host

    def list_vms(self) -> Iterable[VmSpec]:
        if not self._folder.is_dir():
            raise ListingFailed(f"{self._folder} is no folder")
        return read_specs(str(self._folder), stdin=io.StringIO(), default_host=self._host)


def load_provider(name: str) -> VmProvider:
    """Make the provider that `package.module:Class` names. Raises ListingFailed."""
    module, _, attribute = name.partition(":")
    try:
        made = getattr(import_module(module), attribute)()
    except (Exception, SystemExit) as error:
        raise ListingFailed(f"registry.provider {name} cannot be made: {type(error).__name__}: {error}") from error
    if not callable(getattr(made, "list_vms", None)):
        raise ListingFailed(f"registry.provider {name} has no list_vms()")
    provider: VmProvider = made
    return provider


def registry_of(provider: str | None, folder: Path | None, *, host: str) -> VmProvider:
    """Return the registry that the settings name. Raises ListingFailed."""
    providers = [load_provider(provider)] if provider else []
    return AllOf([*providers, *([FolderRegistry(folder, host=host)] if folder else [])])


@dataclass(slots=True)
class _Call:
    """One call of a provider: what came of it, once `ended` is set."""

    entries: list[Entry] = field(default_factory=list)
    failure: str = ""
    ended: threading.Event = field(default_factory=threading.Event)


class Listing:
    """Asks a provider, one call at a time; `make` is called in its thread too, until it has worked once."""

    def __init__(self, make: Callable[[], VmProvider], *, timeout_s: float) -> None:
        self._make, self._timeout_s = make, timeout_s
        self._provider: VmProvider | None = None
        self._call: _Call | None = None

    def entries(self) -> list[Entry]:
        """Raises ListingFailed, at the latest when the deadline passes."""
        if self._call is not None and not self._call.ended.is_set():
            raise ListingFailed("the registry is still being read since the last time")
        call = self._call = _Call()
        threading.Thread(target=self._run, args=[call], name="registry", daemon=True).start()
        if not call.ended.wait(self._timeout_s):
            raise ListingFailed(f"the registry gave no list within {self._timeout_s:g} s (registry.timeout)")
        if call.failure:
            raise ListingFailed(call.failure)
        return call.entries

    def _run(self, call: _Call) -> None:
        try:
            if self._provider is None:
                self._provider = self._make()
            listed = list(islice(self._provider.list_vms(), _ENTRIES_MAX + 1))
            call.entries = [_plain(number, each) for number, each in enumerate(listed)]
            if len(listed) > _ENTRIES_MAX:
                call.failure = f"the registry lists more than {_ENTRIES_MAX} VMs"
        except BaseException as error:  # noqa: BLE001 - of somebody else's code, in a thread that ends with it
            call.failure = _in_short(error)
        finally:
            call.ended.set()


def _plain(number: int, entry: object) -> Entry:
    if isinstance(entry, FirecrackerSpec | QemuSpec | ThirdPartySpec):
        return entry
    if isinstance(entry, Mapping):
        return dict(entry)
    raise ListingFailed(f"entry {number} of the registry is a {type(entry).__name__}, no spec and no mapping")


def _in_short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ListingFailed) else f"the registry failed: {type(error).__name__}: {text}"
