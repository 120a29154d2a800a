"""Passwords in the settings are for the clients alone: no listing, complaint or traceback shows one."""

import pickle
import traceback
from pathlib import Path

import pytest

from workers.settings import Loaded, SettingsError, effective, load, value_of


def loaded(tmp_path: Path, **environ: str) -> Loaded:
    (tmp_path / "reliability.toml").write_text("")
    return load({f"RELIABILITY_{name}": value for name, value in environ.items()}, tmp_path)


SECRETS = {
    "REDIS__URL": "redis://user:s3cret@h/0?password=s3cret",
    "BROKER__URL": "redis://:s3cret@h/1",
    "FLOWER__BASIC_AUTH": "admin:s3cret",
    "DRIVERS__QEMU__ENVIRONMENT__TOKEN": "s3cret",
}


def test_secrets_are_in_no_listing_and_no_representation(tmp_path: Path) -> None:
    result = loaded(tmp_path, **SECRETS)

    listing = {each.key: each.value_text for each in effective(result)}
    assert listing["redis.url"] == "redis://user:***@h/0?password=***"
    assert listing["broker.url"] == "redis://:***@h/1"
    assert listing["flower.basic_auth"] == "***"
    assert listing["drivers.qemu.environment"] == "TOKEN=***"
    for text in (repr(result), str(result.settings), repr(effective(result)), result.settings.redis.model_dump_json()):
        assert "s3cret" not in text
    assert result.settings.redis.url.get_secret_value() == SECRETS["REDIS__URL"]


@pytest.mark.parametrize(
    "environ",
    [
        {"REDIS__URL": "http://user:s3cret@h/0"},
        {"REDIS__URL": "s3cret"},
        {"REDIS": "redis://user:s3cret@h/0"},
        {"REDIS_URL": "redis://user:s3cret@h/0"},
        {"BROKER__URL": "redis://user:s3cret@h/x"},
        {"BROKER__URL": "redis://user:s3cret@127.0.0.1/0"},
        {"FLOWER__BASIC_AUTH": "s3cret"},
        {"FLOWER": "s3cret"},
        {"DRIVERS__QEMU__ENVIRONMENT": "s3cret"},
        {"DRIVERS__QEMU__ENVIRONMENT__A-B": "s3cret"},
        {"REDIS__PREFIX": "REL", "REDIS__URL": "redis://user:s3cret@h/0"},
    ],
)
def test_secrets_are_in_no_complaint_and_no_traceback(tmp_path: Path, environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, **environ)

    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def complaints(tmp_path: Path, **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, **environ)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    return list(caught.value.lines)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("name", ["REDIS__URL", "BROKER__URL", "FLOWER__BASIC_AUTH"])
def test_a_secret_may_be_in_a_file_of_its_own(tmp_path: Path, name: str, end: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(SECRETS[name].encode() + end.encode())

    result = loaded(tmp_path, **{f"{name}_FILE": str(file)})

    key = name.lower().replace("__", ".")
    assert value_of(result.settings, key).get_secret_value() == SECRETS[name]
    assert result.sources[key] == f"file {file} (RELIABILITY_{name}_FILE)"


def test_a_file_named_in_the_environment_wins_over_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "reliability.toml").write_text('redis.url = "redis://:old@h/0"\nredis.prefix = "r"')
    (tmp_path / "secret").write_text(SECRETS["REDIS__URL"])

    settings = load({"RELIABILITY_REDIS__URL_FILE": str(tmp_path / "secret")}, tmp_path).settings

    assert (settings.redis.url.get_secret_value(), settings.redis.prefix) == (SECRETS["REDIS__URL"], "r")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"redis://:s3cret@h/0\n\n", "must hold one line of text in UTF-8, and nothing else"),
        (b"redis://:s3cret\xff@h/0", "must hold one line of text in UTF-8, and nothing else"),
        (b"redis://:s3cret\0@h/0", "must hold one line of text in UTF-8, and nothing else"),
        (b"redis://:" + 8192 * b"s3cret89" + b"@h/0", "is larger than 64 KiB"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)

    lines = complaints(tmp_path, REDIS__URL_FILE=str(file))

    assert lines == [f"redis.url: {file} {complaint} (from env RELIABILITY_REDIS__URL_FILE)"]


def test_all_files_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    lines = complaints(tmp_path, REDIS__URL_FILE="/nonexistent", BROKER__URL_FILE=str(tmp_path))

    assert lines == [
        f"broker.url: {tmp_path} cannot be read: Is a directory (from env RELIABILITY_BROKER__URL_FILE)",
        "redis.url: /nonexistent cannot be read: No such file or directory (from env RELIABILITY_REDIS__URL_FILE)",
    ]


@pytest.mark.parametrize("value", ["redis://:s3cret@h/0", "admin:s3cret", ""])
def test_a_secret_in_place_of_its_file_is_not_shown(tmp_path: Path, value: str) -> None:
    [line] = complaints(tmp_path, FLOWER__BASIC_AUTH_FILE=value)

    assert line == (
        "flower.basic_auth: must be in a file that is named by its absolute path "
        "(from env RELIABILITY_FLOWER__BASIC_AUTH_FILE)"
    )


@pytest.mark.parametrize("other", ["REDIS__URL", "redis__url"])
def test_a_secret_is_either_in_the_environment_or_in_a_file(tmp_path: Path, other: str) -> None:
    (tmp_path / "secret").write_text("redis://:s3cret@h/0")

    lines = complaints(tmp_path, **{other: "redis://:s3cret@h/0", "REDIS__URL_FILE": str(tmp_path / "secret")})

    assert lines == [
        f"redis.url: is set by env RELIABILITY_{other} and by env RELIABILITY_REDIS__URL_FILE: unset one of them"
    ]


def test_what_is_wrong_with_a_value_is_said_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("http://:s3cret@h/0")

    [line] = complaints(tmp_path, REDIS__URL_FILE=str(tmp_path / "secret"))

    assert line.endswith(f"(from file {tmp_path / 'secret'} (RELIABILITY_REDIS__URL_FILE))")


def test_only_secrets_are_read_from_files(tmp_path: Path) -> None:
    [line] = complaints(tmp_path, RECOVERY__LEASE_FILE="/etc/hostname")

    assert line.startswith("recovery.lease_file: is unknown; did you mean recovery.lease")


def test_settings_survive_pickling(tmp_path: Path) -> None:
    result = loaded(tmp_path, **SECRETS)

    assert pickle.loads(pickle.dumps(result)) == result  # noqa: S301 - our own bytes
