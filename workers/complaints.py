"""What is wrong with a settings file or a VM spec, in words for the one who wrote it.

Turns pydantic's errors into places and plain sentences. Where the value came from, and whether it may be
shown at all, is known only to the readers of settings and specs.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

Loc = tuple[str | int, ...]

_SHOWN_MAX = 60  # characters of a wrong value: enough to recognise it, short enough for one line
_KEY_MARK = "[key]"  # pydantic's last location part when the name, not the value, is wrong
_NO_VALUE = frozenset({"missing", "extra_forbidden"})

_WHOLE, _NUMBER, _SWITCH = "must be a whole number", "must be a number", "must be true or false"
_LIST, _MAPPING = "must be a list", "must be a mapping of names to values"
_TEXTS = {
    "missing": "is required",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": _NUMBER,
    "bool_type": _SWITCH,
    "bool_parsing": _SWITCH,
    "string_type": "must be text",
    "list_type": _LIST,
    "tuple_type": _LIST,
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "invalid_key": "must be a name in quotes",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
}


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing that is wrong. `value` is what was given, None where there is nothing to show."""

    loc: Loc
    text: str
    value: object = None
    unknown: bool = False

    @property
    def line(self) -> str:
        got = shown(self.value)
        says = f"{self.text} (got {got})" if got else self.text
        return f"{place(self.loc)}: {says}" if self.loc else says

    def under(self, *loc: str | int) -> "Complaint":
        return replace(self, loc=(*loc, *self.loc))


class SeveralComplaints(ValueError):
    """Raised inside a pydantic validator that finds more than one thing wrong."""

    def __init__(self, complaints: Sequence[Complaint]) -> None:
        super().__init__("\n".join(each.line for each in complaints))
        self.complaints = tuple(complaints)


def complaints_in(error: ValidationError, model: type[BaseModel]) -> list[Complaint]:
    """Translate what pydantic found wrong with a `model`."""
    found: list[Complaint] = []
    for details in error.errors(include_url=False):
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, SeveralComplaints):
            found += [each.under(*details["loc"]) for each in cause.complaints]
        elif details["type"] != "default_factory_not_called":  # only the echo of another error
            found.append(_complaint(details["type"], details["loc"], details, model))
    return found


def _complaint(kind: str, loc: Loc, details: Any, model: type[BaseModel]) -> Complaint:
    if loc and loc[-1] == _KEY_MARK:
        loc = loc[:-1]
    if kind == "extra_forbidden":
        return Complaint(loc, unknown_name(str(loc[-1]), field_names(model, loc[:-1])), unknown=True)
    return Complaint(loc, _text(kind, details), None if kind in _NO_VALUE else details["input"])


def _text(kind: str, details: Any) -> str:
    context = details.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_type" and shown(details["input"]):
        return "must be text: put it in quotes"
    if kind not in _TEXTS:
        return str(details["msg"]).replace("Input should", "must")
    return _TEXTS[kind].format_map({name: str(value).replace("'", "") for name, value in context.items()})


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Say that a name is not known, and which one was probably meant."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    return f"is unknown; did you mean {close[0]}?" if close else f"is unknown; known here: {', '.join(names)}"


def field_names(model: type[BaseModel], loc: Loc) -> list[str]:
    """Return the names that are allowed at a place inside a model."""
    for part in loc:
        if isinstance(part, str):
            model = _model_of(model.model_fields[part].annotation)
    return list(model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel]:
    candidates = (annotation, *get_args(annotation))
    return next(each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel))


def place(loc: Loc) -> str:
    """Write a place the way people do: `vms[2].memory_mib`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).removeprefix(".")


def shown(value: object) -> str | None:
    """Write a wrong value on one short line; None if there is none or it is more than one value."""
    if value is None or not isinstance(value, bool | int | float | str):
        return None
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"
