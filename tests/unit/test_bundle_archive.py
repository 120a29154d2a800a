"""What a support bundle is made of: texts freed of secrets, safe names, bounds, and one new file."""

import gzip
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from tests.support.builders import a_spec
from workers.doctor.archive import MANIFEST, Archive, BundleFull, NotHere, write_new
from workers.doctor.host_parts import Tail, log_tail, tail
from workers.doctor.secret_values import secrets_of, secrets_of_spec
from workers.settings import load

SECRET = "correct-horse-7"  # noqa: S105 - of a test


def an_archive(most_bytes: int = 10_000) -> Archive:
    archive = Archive("bundle", made_s=1_800_000_000, most_bytes=most_bytes)
    archive.hide({SECRET})
    return archive


def contents(made: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(made)) as tar:
        return {each.name: tar.extractfile(each).read().decode() for each in tar}  # type: ignore[union-attr] # files only


def test_secrets_leave_documents_texts_and_reasons() -> None:
    archive = an_archive()
    archive.add_document("a.json", {"url": f"redis://:{SECRET}@h", "password": "x", "deep": [{"why": f"<{SECRET}>"}]})
    archive.add_text("b.log", f"login {SECRET} ok\nboot: api_key=abc token: 'tik tok'\n")
    archive.leave_out("c", f"it said {SECRET}")

    made = archive.close({"note": SECRET})

    assert SECRET not in gzip.decompress(made).decode()
    read = contents(made)
    assert json.loads(read["bundle/a.json"]) == {"url": "redis://:***@h", "password": "***", "deep": [{"why": "<***>"}]}
    assert read["bundle/b.log"].startswith("login *** ok\nboot: api_key=*** token: '***")
    assert json.loads(read[f"bundle/{MANIFEST}"])["left_out"] == [{"what": "c", "why": "it said ***"}]


@pytest.mark.parametrize("text", [f"{SECRET[5:]} rest of its line\nnext\n", SECRET[5:] + " no line ends " + "x" * 200])
def test_a_text_without_its_beginning_does_not_begin_with_half_a_secret(text: str) -> None:
    archive = an_archive()

    archive.add_text("a.log", text, is_cut=True)

    assert SECRET[5:] not in contents(archive.close({}))["bundle/a.log"]


def test_names_stay_below_the_folder_of_the_bundle() -> None:
    for name in ("/etc/passwd", "../x", "runs/../../x"):
        with pytest.raises(ValueError, match="is no name"):
            an_archive().add_text(name, "")


def test_what_does_not_fit_is_refused_and_the_manifest_still_fits() -> None:
    archive = an_archive(most_bytes=10)
    archive.add_text("small", "12345")

    with pytest.raises(BundleFull, match="do not fit"):
        archive.add_text("large", "123456")

    manifest = json.loads(contents(archive.close({}))[f"bundle/{MANIFEST}"])
    assert manifest["files"] == [{"name": "small", "bytes": 5, "is_cut": False}]


def test_a_bundle_is_its_owners_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "b.tar.gz"
    write_new(path, b"first")

    with pytest.raises(FileExistsError):
        write_new(path, b"second")

    assert path.read_bytes() == b"first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["b.tar.gz"]


def test_only_the_end_of_a_regular_file_is_read(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("0123456789")

    assert tail(tmp_path / "none", 4) is None
    cut, whole = tail(log, 4), tail(log, 10)
    assert cut is not None
    assert whole is not None
    assert (cut.text, cut.is_cut, whole.is_cut) == ("6789", True, False)


def test_of_a_log_that_was_cut_in_two_no_half_line_is_kept(tmp_path: Path) -> None:
    new, old = tmp_path / "console.log", tmp_path / "console.log.old"
    new.write_text("orse-7\nlogin:\n")
    assert log_tail(new, 100) == Tail("orse-7\nlogin:\n", is_cut=False)

    old.write_text("half\nwhole\ncorrect-h")

    assert log_tail(old, 100) == Tail("half\nwhole\n", is_cut=True)
    assert log_tail(new, 100) == Tail("orse-7\nlogin:\n", is_cut=True)


def test_what_a_vmm_put_in_the_place_of_its_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OSError, match="symbolic links"):
        tail(tmp_path / "link", 100)
    with pytest.raises(NotHere, match="no regular file"):
        tail(tmp_path / "pipe", 100)


def test_every_secret_of_settings_and_environment_is_known(tmp_path: Path) -> None:
    environ = {
        "RELIABILITY_HOST": "host-a",
        "RELIABILITY_STATE_DIR": str(tmp_path),
        "RELIABILITY_REDIS__URL": "redis://u:redis-pw@h/0",
        "RELIABILITY_BROKER__URL": "redis://:broker-pw@h/1",
        "RELIABILITY_FLOWER__BASIC_AUTH": "ann:flower-pw",
        "RELIABILITY_DRIVERS__QEMU__ENVIRONMENT__KEY": "driver-pw",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x=otlp-pw",
        "FLOWER_OAUTH2_SECRET": "oauth-pw",
        "HTTPS_PROXY": "http://me:proxy-pw@proxy:3128",
    }

    found = secrets_of(load(environ, tmp_path).settings, environ)

    named = {"redis-pw", "broker-pw", "ann:flower-pw", "flower-pw", "driver-pw", "otlp-pw", "oauth-pw", "proxy-pw"}
    assert named <= found
    assert not {"host-a", str(tmp_path)} & found


def test_a_kernel_command_line_is_a_secret_and_so_is_what_it_calls_one() -> None:
    spec = a_spec(kernel_args='console=ttyS0 join_token="abc-123" ro')

    assert secrets_of_spec(spec) == {spec.kernel_args, "abc-123"}
    assert secrets_of_spec(a_spec()) == set()
