"""Reads VM specs from a file, a folder or standard input: all of them, or one error that says everything wrong.

What a spec may contain is decided in `specs`; applying specs is left to the caller.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

import yaml

from workers.complaints import Loc, place
from workers.specs import SpecError, VmSpec, check_vm_id, spec_from

SIZE_MAX = 16 * 1024 * 1024  # bytes a file may have; about 150,000 VMs
_DEPTH_MAX = 32  # a spec is 5 deep; libyaml's loader runs out of stack, without an exception, at some thousands
_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
_STDIN = "standard input"

# The C parser is about five times faster, but not every build of PyYAML has it.
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class SpecFileError(ValueError):
    """Nothing was read. `lines` say where and why, one thing each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


class _Unreadable(Exception):
    """One source could not be read or parsed; the text says why, for people."""


class _Syntax(StrEnum):
    JSON = "json"
    YAML = "yaml"
    EITHER = "either"


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    text: str
    syntax: _Syntax


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Something that should describe one VM, and where it stands in its source."""

    loc: Loc
    value: object
    document: str


class _Loader(_BaseLoader):  # type: ignore[misc] # chosen at run time
    """A safe loader that refuses a name given twice, where YAML would silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen = set()
        for key, _ in getattr(node, "value", ()):
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep=deep)


# A label such as 2026-01-31 is meant as text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _BaseLoader.yaml_implicit_resolvers.items()
}


@dataclass(slots=True)
class _Reading:
    """What has been read so far, over all sources."""

    default_host: str
    specs: list[VmSpec] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    first_seen: dict[str, str] = field(default_factory=dict)

    def add_source(self, source: _Source) -> None:
        try:
            candidates = list(_candidates(_documents(source)))
        except _Unreadable as error:
            self.lines.append(f"{source.name}: {error}")
            return
        if not candidates:
            self.lines.append(f"{source.name}: describes no VM")
        for candidate in candidates:
            self._add_vm(f"{source.name}: {candidate.document}", candidate)

    def _add_vm(self, where: str, candidate: _Candidate) -> None:
        try:
            spec = spec_from(candidate.value)
        except SpecError as error:
            self.lines += [f"{where}{each.under(*candidate.loc).line}" for each in error.complaints]
            return
        here = f"{where}{place((*candidate.loc, 'id'))}"
        if spec.id in self.first_seen:
            self.lines.append(f"{here}: {spec.id} is already described at {self.first_seen[spec.id]}")
        self.first_seen.setdefault(spec.id, here)
        self.specs.append(spec if spec.host else spec.model_copy(update={"host": self.default_host}))


def read_specs(source: str, *, stdin: TextIO, default_host: str) -> list[VmSpec]:
    """Read every VM of FILE, DIR (its .yaml, .yml and .json files) or - (standard input); raises SpecFileError.

    A VM that names no host gets `default_host`.
    """
    reading = _Reading(default_host=check_vm_id(default_host))
    for name in _names(source, reading.lines):
        try:
            reading.add_source(_read_stdin(stdin) if name == "-" else _read_file(Path(name)))
        except _Unreadable as error:
            reading.lines.append(f"{_STDIN if name == '-' else name}: {error}")
    if reading.lines:
        raise SpecFileError(reading.lines)
    return reading.specs


def _names(source: str, lines: list[str]) -> list[str]:
    if source == "-" or not Path(source).is_dir():
        return [source]
    try:
        inside = sorted(Path(source).iterdir())
    except OSError as error:
        lines.append(f"{source}: cannot be read: {error.strerror}")
        return []
    found = [str(path) for path in inside if path.suffix in _SUFFIXES and not path.name.startswith(".")]
    if not found:
        lines.append(f"{source}: holds no .yaml, .yml or .json file")
    return found


def _read_file(path: Path) -> _Source:
    if path.suffix not in _SUFFIXES:
        raise _Unreadable("must end in .yaml, .yml or .json, or be - for standard input")
    try:
        with path.open("rb") as file:
            text = _decoded(file.read(SIZE_MAX + 1))
    except OSError as error:
        raise _Unreadable(f"cannot be read: {error.strerror}") from error
    return _Source(str(path), text, _Syntax.JSON if path.suffix == ".json" else _Syntax.YAML)


def _read_stdin(stdin: TextIO) -> _Source:
    # The bytes, where there are any: the text layer decodes by the locale, specs are UTF-8 everywhere.
    raw = stdin.buffer.read(SIZE_MAX + 1) if hasattr(stdin, "buffer") else stdin.read(SIZE_MAX + 1).encode()
    text = _decoded(raw)
    return _Source(_STDIN, text, _Syntax.EITHER if text.lstrip()[:1] in {"{", "["} else _Syntax.YAML)


def _decoded(raw: bytes) -> str:
    if len(raw) > SIZE_MAX:
        raise _Unreadable(f"is larger than {SIZE_MAX // 1024 // 1024} MiB: split it")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _Unreadable(f"line {line}: is not UTF-8 text") from error


def _documents(source: _Source) -> list[object]:
    try:
        if source.syntax is _Syntax.YAML:
            return _load_yaml(source.text)
        return [json.loads(source.text, object_pairs_hook=_without_repeats)]
    except json.JSONDecodeError as error:
        if source.syntax is _Syntax.EITHER:
            return _documents(replace(source, syntax=_Syntax.YAML))
        raise _Unreadable(f"line {error.lineno}: is not JSON: {error.msg}") from error
    except yaml.MarkedYAMLError as error:
        raise _Unreadable(f"{_line(error.problem_mark, source.text)}is not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = source.text.count("\n", 0, error.position) + 1
        raise _Unreadable(f"line {line}: is not YAML: {error.reason}") from error
    except RecursionError as error:
        raise _Unreadable("is nested too deeply") from error
    except ValueError as error:  # a tagged scalar such as `!!int x`, a name given twice in JSON
        raise _Unreadable(f"cannot be understood: {error}") from error


def _line(mark: Any, text: str) -> str:
    if not mark:
        return ""
    # At the end of the text the parser counts one line more than there is.
    last = text.count("\n", 0, len(text) - 1) + 1
    return f"line {min(mark.line + 1, last)}: "


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is given twice")
    return mapping


def _load_yaml(text: str) -> list[object]:
    depth = 0
    for event in yaml.parse(text, Loader=_BaseLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH_MAX:
            raise _Unreadable(f"{_line(event.start_mark, text)}is nested too deeply")
    return list(yaml.load_all(text, Loader=_Loader))


def _candidates(documents: list[object]) -> Iterator[_Candidate]:
    """Find the descriptions of VMs: a document is one, a list of them, or {vms: [...]}; an empty one is skipped."""
    for number, document in enumerate(documents, start=1):
        name = f"document {number}: " if len(documents) > 1 else ""
        if isinstance(document, dict) and "vms" in document:
            vms = _only_vms(name, document)
            yield from (_Candidate(("vms", index), value, name) for index, value in enumerate(vms))
        elif isinstance(document, list):
            yield from (_Candidate((index,), value, name) for index, value in enumerate(document))
        elif document is not None:
            yield _Candidate((), document, name)


def _only_vms(name: str, document: dict[object, object]) -> list[object]:
    others = sorted(str(key) for key in document if key != "vms")
    if others:
        raise _Unreadable(f"{name}{others[0]}: is unknown; beside vms there can be nothing else")
    vms = document["vms"]
    if not isinstance(vms, list):
        raise _Unreadable(f"{name}vms: must be a list of VMs")
    return vms
