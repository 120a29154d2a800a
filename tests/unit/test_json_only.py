"""What others write is never run: no pickle, no eval, no shell in our code, and a Celery app that takes JSON alone."""

import ast
import io
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from kombu.exceptions import ContentDisallowed

from workers import specfiles
from workers.app import app

kombu: Any = import_module("kombu")  # untyped
ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("workers", "beat") for path in (ROOT / folder).rglob("*.py"))

# Modules that make objects, or code, of bytes.
MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "os.posix_spawnp", "subprocess.getoutput", "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell", "pty.spawn", "yaml.load", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "yaml.full_load", "yaml.full_load_all", "runpy.run_path", "runpy.run_module",
}  # fmt: skip
WORDS = re.compile(
    "|".join([*MODULES, *(rf"\b{each}\(" for each in BUILTINS), *map(re.escape, CALLS), "yaml.load_all", "shell="])
)
# With a loader of our own, which a test below looks at.
OURS = {"workers/specfiles.py: yaml.load_all"}


def found_in(source: str, name: str) -> Iterator[str]:
    """Give everything forbidden in a module, as `file: what`."""
    # Most modules need not be parsed.
    for node in ast.walk(ast.parse(source)) if WORDS.search(source) else ():
        for what in _forbidden(node):
            yield f"{name}: {what}"


def _forbidden(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (each.name for each in names if each.name.partition(".")[0] in MODULES)
        case ast.ImportFrom(module=str(module)):
            yield from [module] if module.partition(".")[0] in MODULES else []
        case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
            yield name
        case ast.Call(func=ast.Attribute() as function, keywords=keywords):
            called = ast.unparse(function)
            if called in CALLS or called == "yaml.load_all":
                yield called
            yield from _shells(called, keywords)
        case _:
            pass


def _shells(called: str, keywords: list[ast.keyword]) -> Iterator[str]:
    for each in keywords:
        if each.arg == "shell" and not (isinstance(each.value, ast.Constant) and each.value.value is False):
            yield f"{called}(shell=...)"


def test_no_module_makes_objects_or_code_of_bytes() -> None:
    found = {each for path in SOURCES for each in found_in(path.read_text("utf-8"), str(path.relative_to(ROOT)))}

    assert len(SOURCES) > 100
    assert found - OURS == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import marshal as m",
        "eval(text)",
        "exec(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load_all(text)",
        "yaml.unsafe_load(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.Popen(text, shell=flag)",
    ],
)
def test_what_is_forbidden_is_found(source: str) -> None:
    assert list(found_in(source, "module"))


@pytest.mark.parametrize("text", ["!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!own {}"])
def test_a_spec_file_makes_nothing_but_plain_values(text: str, tmp_path: Path) -> None:
    (tmp_path / "vms.yaml").write_text(f"id: {text}\n")

    with pytest.raises(specfiles.SpecFileError, match="could not determine a constructor"):
        specfiles.read_specs(str(tmp_path / "vms.yaml"), stdin=io.StringIO(), default_host="host-a")

    assert issubclass(specfiles._Loader, (yaml.SafeLoader, yaml.CSafeLoader))


def test_the_app_takes_and_sends_json_alone() -> None:
    conf = app.conf

    assert (conf.accept_content, conf.result_accept_content) == (["json"], ["json"])
    assert (conf.task_serializer, conf.result_serializer, conf.event_serializer) == ("json", "json", "json")


@pytest.fixture(params=["pickle", "yaml"])
def message(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A message of that kind, while something in the process has allowed it for everybody."""
    kombu.serialization.enable_insecure_serializers([request.param])
    kind, encoding, body = kombu.serialization.dumps([["vm-1"], {}, {}], serializer=request.param)
    yield kombu.Message(body=body, content_type=kind, content_encoding=encoding, accept=app.conf.accept_content)
    kombu.serialization.registry.disable(request.param)


def test_a_message_of_another_kind_is_never_read(message: Any) -> None:
    """What a running worker does with one is a test of test_celery_settings.py."""
    with pytest.raises(ContentDisallowed):
        message.decode()
