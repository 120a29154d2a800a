"""Which Redis commands our Lua scripts call, and on which keys, read from their text.

Keys that a script makes at run time get `x` for what only then is known. What cannot be read is an AssertionError.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parents[2] / "workers/store/scripts"
_PREFIX = "rel"
_CALL = re.compile(r"redis\.call\('([A-Z]+)'(?:, *((?:[^,()]|\((?:[^()]|\([^()]*\))*\))+))?")
# Names that are arguments, or differ from one place of a script to the other.
_NAMED = {
    ("breaker", "from"): "breaker:x:ok:1",
    ("breaker", "to"): "breaker:x:ko:1",
    ("breaker", "ok"): "breaker:x:ok:1",
    ("breaker", "ko"): "breaker:x:ko:1",
    ("breaker", "key"): "breaker:x:ok:1",
    ("budget", "KEYS[1]"): "budget:x",
    ("claim", "due"): "due",
    ("epoch", "key"): "epoch",
    ("epoch", "past"): "epochs",
    ("host_lease", "KEYS[1]"): "host:x",
    ("host_lease", "KEYS[2]"): "hosts",
    ("host_lease", "KEYS[3]"): "due",
    ("put_scope", "key"): "modes",
    ("read", "ARGV[2]"): "modes",
    ("read", "key"): "vm:x",
    ("write", "due"): "due",
    ("write", "vms"): "vms",
    ("write", "key"): "vm:x",
}
# What stands before and after the key, where it is not the key and two more.
_FORMS = {
    "INFO": ("", "server"),
    "TIME": ("", ""),
    "XINFO": ("STREAM", ""),
    "SINTERCARD": ("1", ""),
    "XADD": ("", "* e 1"),
    **dict.fromkeys(
        ("HGET", "HEXISTS", "ZSCORE", "HMGET", "SADD", "SREM", "ZREM", "HDEL", "PEXPIRE", "SET"), ("", "1")
    ),
    **dict.fromkeys(("GET", "EXISTS", "SCARD", "ZCARD", "HVALS", "HGETALL", "SMEMBERS"), ("", "")),
    **dict.fromkeys(("PERSIST", "DEL", "SINTER"), ("", "")),
}


@dataclass(frozen=True, slots=True, order=True)
class LuaCall:
    command: str
    key: str | None

    @property
    def words(self) -> list[str]:
        """The command with as many arguments as it needs at least."""
        before, after = _FORMS.get(self.command, ("", "1 1"))
        return [self.command, *before.split(), *([self.key] if self.key else []), *after.split()]


def scripts() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.lua"))


def calls_in(script: str) -> list[LuaCall]:
    """Everything that a script may call, with its shared parts; one that says it changes nothing has them to read."""
    text = (_FOLDER / f"{script}.lua").read_text()
    first = text.partition("\n")[0]
    parts = first.removeprefix("-- parts: ").split() if first.startswith("-- parts: ") else []
    found = {LuaCall("TIME", None), *_calls(script, text)}
    for part in parts if "Changes nothing." not in text else ():
        found |= set(_calls(part, (_FOLDER / f"parts/{part}.lua").read_text()))
    return sorted(found, key=str)


def _calls(script: str, text: str) -> Iterator[LuaCall]:
    for found in _CALL.finditer(text):
        command, expression = found[1], (found[2] or "").strip()
        match command:
            case "INFO":
                yield LuaCall(command, None)
            case "XINFO" | "SINTERCARD":  # their key is no first argument; both only read
                yield LuaCall(command, f"{_PREFIX}:x")
            case _:
                yield LuaCall(command, _key(script, expression))


def _key(script: str, expression: str) -> str:
    if expression == "stream":
        return f"{_PREFIX}:events"
    if named := _NAMED.get((script, expression)):
        return f"{_PREFIX}:{named}"
    first, *rest = (part.strip() for part in expression.split(".."))
    if first.endswith(")") and (function := re.match(r"(\w+)_key\(", first)):
        key = f"{_PREFIX}:{function[1]}:x"
    else:
        assert first == "prefix", f"{script}.lua: which key is {expression!r}? say so in {Path(__file__).name}"
        key = _PREFIX
    return key + "".join(part.strip("'") if part.startswith("'") else "x" for part in rest)
