"""Reading specs from files, folders and standard input: all of them, or every mistake with its place."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.specfiles import SIZE_MAX, SpecFileError, read_specs
from workers.specs import VmSpec

EXAMPLE = Path(__file__).parents[2] / "config" / "vms.example.yaml"
VM = "driver: firecracker, kernel: /images/vmlinux"


def read(source: Path | str, stdin: str = "") -> list[VmSpec]:
    return read_specs(str(source), stdin=io.StringIO(stdin), default_host="node-1")


def ids(specs: list[VmSpec]) -> list[str]:
    return [spec.id for spec in specs]


def complaints(source: Path | str, stdin: str = "") -> list[str]:
    with pytest.raises(SpecFileError) as caught:
        read(source, stdin)
    return list(caught.value.lines)


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        f"{{id: a, {VM}}}\n---\n{{id: b, {VM}}}",
        f"- {{id: a, {VM}}}\n- {{id: b, {VM}}}",
        f"vms: [{{id: a, {VM}}}, {{id: b, {VM}}}]",
        f"---\n---\n- {{id: a, {VM}}}\n---\nvms:\n- {{id: b, {VM}}}\n---\n",
        f"\ufeff- {{id: a, {VM}}}\r\n- {{id: b, {VM}}}\r\n",
        f"- &x {{id: a, {VM}}}\n- {{<<: *x, id: b}}",
    ],
)
def test_one_vm_a_list_and_a_vms_table_are_read_also_in_several_documents(tmp_path: Path, text: str) -> None:
    assert ids(read(written(tmp_path / "vms.yaml", text))) == ["a", "b"]
    assert ids(read("-", text.removeprefix("\ufeff"))) == ["a", "b"]


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_is_read_from_files_and_from_standard_input(tmp_path: Path, indent: int | str | None) -> None:
    text = json.dumps({"vms": [{"id": "a", "driver": "qemu", "kernel": "/k"}]}, indent=indent)

    assert ids(read(written(tmp_path / "vms.json", text))) == ["a"]
    assert ids(read("-", text)) == ["a"]


def test_standard_input_is_utf_8_whatever_the_locale_is() -> None:
    raw = f"{{id: a, {VM}, labels: {{city: Köln}}}}".encode()
    stdin = io.TextIOWrapper(io.BytesIO(raw), encoding="ascii")

    (spec,) = read_specs("-", stdin=stdin, default_host="node-1")

    assert spec.labels == {"city": "Köln"}


def test_a_folder_gives_the_vms_of_its_spec_files_in_order(tmp_path: Path) -> None:
    written(tmp_path / "b.yml", f"{{id: b, {VM}}}")
    written(tmp_path / "a.yaml", f"{{id: a, {VM}}}")
    written(tmp_path / "c.json", '{"id": "c", "driver": "qemu", "kernel": "/k"}')
    written(tmp_path / "README.md", "not a spec")
    written(tmp_path / ".d.yaml", "not a spec")
    (tmp_path / "sub").mkdir()
    written(tmp_path / "sub" / "e.yaml", f"{{id: e, {VM}}}")

    assert ids(read(tmp_path)) == ["a", "b", "c"]


def test_a_vm_without_host_belongs_to_the_one_who_applies_it() -> None:
    one, other = read("-", f"- {{id: a, {VM}}}\n- {{id: b, host: node-2, {VM}}}")

    assert (one.host, other.host) == ("node-1", "node-2")


def test_an_unquoted_date_is_text() -> None:
    (spec,) = read("-", f"{{id: a, {VM}, labels: {{since: 2026-01-31}}}}")

    assert spec.labels == {"since": "2026-01-31"}


def test_the_example_file_is_right_and_shows_every_field() -> None:
    specs = read(EXAMPLE)

    text = EXAMPLE.read_text()
    assert ids(specs) == ["web-1", "build-1"]
    for spec in specs:
        assert all(f"{name}:" in text for name in type(spec).model_fields)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (f"{{id: a, {VM}, memory_mib: -5}}", ["memory_mib: must be at least 16 (got -5)"]),
        (f"- {{id: a, {VM}}}\n- {{id: B, {VM}}}", ["[1].id: must be 1 to 64 of the characters"]),
        (
            f"vms:\n- {{id: a, {VM}, vcpus: 0, memory_mib: -5}}\n- 5\n- {{id: c}}",
            [
                "vms[0].vcpus: must be at least 1 (got 0)",
                "vms[0].memory_mib: must be at least 16 (got -5)",
                "vms[1]: must be a mapping that describes one VM (got 5)",
                "vms[2].driver: must be firecracker or qemu",
            ],
        ),
        (f"{{id: a, {VM}}}\n---\n{{id: b, {VM}, vcpu: 2}}", ["document 2: vcpu: is unknown; did you mean vcpus?"]),
        (f"{{id: a, {VM}}}\n---\nvms: [{{id: b}}]", ["document 2: vms[0].driver: must be firecracker or qemu"]),
        (f"{{id: a, {VM}, labels: {{version: 1.10}}}}", ["labels.version: must be text: put it in quotes (got 1.1)"]),
        (f"- {{id: a, {VM}}}\n- {{id: a, {VM}}}", ["[1].id: a is already described at {name}: [0].id"]),
        ("hello", ['must be a mapping that describes one VM (got "hello")']),
        ("", ["describes no VM"]),
        ("# nothing yet\n---\n", ["describes no VM"]),
        ("vms: []", ["describes no VM"]),
        ("vms: 5", ["vms: must be a list of VMs"]),
        ("vms:", ["vms: must be a list of VMs"]),
        ("vms: []\nimages: []", ["images: is unknown; beside vms there can be nothing else"]),
        ("a: b\nc: [", ["line 2: is not YAML: "]),
        ("a: b\n\tc: d", ["line 2: is not YAML: "]),
        ("a: b\nd: *nope", ["line 2: is not YAML: found undefined alias"]),
        ("a: b\nd: !!python/object:os.system x", ["line 2: is not YAML: could not determine a constructor"]),
        ("a: b\nd: \x01", ["line 2: is not YAML: "]),
        ("id: a\nvcpus: 1\nvcpus: 2", ["line 3: is not YAML: vcpus is given twice"]),
        ("? [a]\n: b", ["line 1: is not YAML: "]),
        ("a: !!int b", ["cannot be understood: "]),
        ("a: &x [*x]", ["driver: must be firecracker or qemu"]),
        ("a:\n" + "- " * 40 + "b", ["line 2: is nested too deeply"]),
        ("- " * 2_000_000, ["line 1: is nested too deeply"]),
        ('{"id": "a",\n "id": "b"}', ["cannot be understood: id is given twice"]),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, text: str, lines: list[str]) -> None:
    path = written(tmp_path / "vms.yaml", text)

    found = complaints(path)

    if not text.startswith('{"'):  # JSON in a YAML file is YAML
        assert len(found) == len(lines)
        for line, start in zip(found, lines, strict=True):
            assert line.startswith(f"{path}: {start}".replace("{name}", str(path)))
    for line, start in zip(complaints("-", text), lines, strict=True):
        assert line.startswith(f"standard input: {start}".replace("{name}", "standard input"))
        assert "\n" not in line


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "line 1: is not JSON: "),
        ('{\n"id": }', "line 2: is not JSON: "),
        ('{"id": "a", "id": "b"}', "cannot be understood: id is given twice"),
        ("[" * 2_000_000, "is nested too deeply"),
        ("null", "describes no VM"),
        ("[{}]", "[0].driver: must be firecracker or qemu"),
    ],
)
def test_mistakes_in_json_are_named_with_their_place(tmp_path: Path, text: str, start: str) -> None:
    path = written(tmp_path / "vms.json", text)

    (line,) = complaints(path)

    assert line.startswith(f"{path}: {start}")


def test_the_mistakes_of_all_files_are_told_at_once_and_nothing_is_read(tmp_path: Path) -> None:
    a = written(tmp_path / "a.yaml", f"{{id: a, {VM}}}")
    b = written(tmp_path / "b.yaml", "[")
    c = written(tmp_path / "c.yaml", f"vms: [{{id: x, {VM}, vcpus: 0}}, {{id: a, {VM}}}]")
    d = written(tmp_path / "d.yaml", "")
    (tmp_path / "e.yaml").symlink_to("nowhere")
    (tmp_path / "f.yaml").mkdir()

    assert [line.removeprefix(f"{tmp_path}/") for line in complaints(tmp_path)] == [
        f"{b.name}: line 1: is not YAML: did not find expected node content",
        f"{c.name}: vms[0].vcpus: must be at least 1 (got 0)",
        f"{c.name}: vms[1].id: a is already described at {a}: id",
        f"{d.name}: describes no VM",
        "e.yaml: cannot be read: No such file or directory",
        "f.yaml: cannot be read: Is a directory",
    ]


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    assert complaints(tmp_path / "none.yaml") == [f"{tmp_path}/none.yaml: cannot be read: No such file or directory"]
    assert complaints(tmp_path) == [f"{tmp_path}: holds no .yaml, .yml or .json file"]
    assert complaints(written(tmp_path / "vms.toml", "")) == [
        f"{tmp_path}/vms.toml: must end in .yaml, .yml or .json, or be - for standard input"
    ]
    assert complaints(written(tmp_path / "vms.yaml", b"id: a\n\xff")) == [
        f"{tmp_path}/vms.yaml: line 2: is not UTF-8 text"
    ]


def test_a_file_without_permission_is_said_to_be_so(tmp_path: Path) -> None:
    path = written(tmp_path / "vms.yaml", "")
    path.chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root may read everything")

    assert complaints(path) == [f"{path}: cannot be read: Permission denied"]


def test_more_than_the_limit_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "vms.yaml"
    with path.open("wb") as file:
        file.truncate(SIZE_MAX + 1)

    assert complaints(path) == [f"{path}: is larger than 16 MiB: split it"]
    assert complaints("-", " " * (SIZE_MAX + 1)) == ["standard input: is larger than 16 MiB: split it"]


def test_aliases_that_multiply_are_refused_at_once() -> None:
    rows = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]

    lines = complaints("-", "\n".join(rows))

    assert lines == ["standard input: driver: must be firecracker or qemu"]
    assert complaints("-", "\n".join([*rows, f"id: a\n{VM.replace(', ', chr(10))}\nlabels: {{x: *a11}}"]))


def test_the_default_host_has_to_be_a_host() -> None:
    with pytest.raises(ValueError, match="must be 1 to 64 of the characters"):
        read_specs("-", stdin=io.StringIO(""), default_host="Node 1")


def test_reading_works_without_the_c_parser_too() -> None:
    code = (
        "import sys, yaml; vars(yaml).pop('CSafeLoader', None)\n"
        "from workers.specfiles import read_specs\n"
        "print([spec.id for spec in read_specs(sys.argv[1], stdin=sys.stdin, default_host='n')])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLE)], capture_output=True, text=True, check=True, timeout=30
    )

    assert done.stdout.strip() == str(ids(read(EXAMPLE)))


def test_nesting_without_end_is_refused_without_the_c_parser_too() -> None:
    code = (
        "import io, yaml; vars(yaml).pop('CSafeLoader', None)\n"
        "from workers.specfiles import read_specs\n"
        "read_specs('-', stdin=io.StringIO('[' * 100_000), default_host='n')"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)

    assert done.stderr.strip().endswith("is nested too deeply")
