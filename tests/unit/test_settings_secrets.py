"""Passwords in the settings are for the clients alone: no listing, complaint or traceback shows one."""

import pickle
import traceback
from pathlib import Path

import pytest

from workers.settings import Loaded, SettingsError, effective, load


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


def test_settings_survive_pickling(tmp_path: Path) -> None:
    result = loaded(tmp_path, **SECRETS)

    assert pickle.loads(pickle.dumps(result)) == result  # noqa: S301 - our own bytes
