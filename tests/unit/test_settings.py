"""Settings: where values come from, and what is refused in which words."""

import re
import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from workers.domain.backoff import delay_ms
from workers.durations import format_duration
from workers.settings import KEYS, PROFILES, Loaded, Settings, SettingsError, default_state_dir, effective, load

EXAMPLE = Path(__file__).parents[2] / "config" / "reliability.example.toml"
NOWHERE = Path("/nonexistent")


def loaded(tmp_path: Path, toml: str = "", **environ: str) -> Loaded:
    """Load with this file; `RECOVERY__LEASE="3s"` stands for RELIABILITY_RECOVERY__LEASE."""
    path = tmp_path / "settings.toml"
    path.write_text(toml)
    return load({"RELIABILITY_CONFIG": str(path), **{f"RELIABILITY_{k}": v for k, v in environ.items()}}, NOWHERE)


def complaints(tmp_path: Path, toml: str = "", **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, toml, **environ)
    return list(caught.value.lines)


def test_without_file_and_environment_the_documented_defaults_hold(tmp_path: Path) -> None:
    settings = loaded(tmp_path).settings

    check, recovery = settings.health_check, settings.recovery
    assert (check.interval, check.timeout) == (timedelta(seconds=30), timedelta(seconds=5))
    assert (check.failure_threshold, check.recovery_threshold) == (3, 2)
    assert (recovery.max_retries, recovery.retry_interval) == (3, timedelta(seconds=30))
    assert (recovery.per_host, recovery.per_fleet) == (4, 64)
    assert settings.enabled
    assert not settings.allow_data_loss
    assert settings.image_roots == (settings.state_dir / "images",)
    assert settings.flower.basic_auth is None


def test_the_worst_case_for_a_hang_is_what_the_documents_promise(tmp_path: Path) -> None:
    def worst(settings: Settings) -> timedelta:
        check, tries = settings.health_check, settings.health_check.failure_threshold
        return check.interval + tries * check.timeout + (tries - 1) * check.failing_interval

    assert worst(loaded(tmp_path).settings) == timedelta(seconds=49)
    assert worst(loaded(tmp_path, PROFILE="fast").settings) == timedelta(seconds=12)


def test_the_example_file_names_every_setting_with_its_default(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    defaults = loaded(tmp_path).settings

    from_example = loaded(tmp_path, text, HOST=defaults.host).settings
    uncommented = re.sub(r"(?m)^# (\w+ = )", r"\1", text)
    given = tomllib.loads(uncommented)

    assert from_example == defaults
    for key in KEYS:
        node = given
        for part in key.split("."):
            assert part in node, f"{key} is missing in the example"
            node = node[part]
    loaded(tmp_path, uncommented)


def test_the_environment_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    toml = '[recovery]\nmax_retries = 5\nretry_interval = "1s"'

    result = loaded(tmp_path, toml, RECOVERY__MAX_RETRIES="7")

    assert result.settings.recovery.max_retries == 7
    assert result.settings.recovery.retry_interval == timedelta(seconds=1)
    assert result.sources["recovery.max_retries"] == "env RELIABILITY_RECOVERY__MAX_RETRIES"
    assert result.sources["recovery.retry_interval"] == f"file {tmp_path / 'settings.toml'}"
    assert result.sources["recovery.lease"] == "default"
    assert list(result.sources) == list(KEYS)


def test_a_profile_changes_defaults_only(tmp_path: Path) -> None:
    result = loaded(tmp_path, 'profile = "fast"', HEALTH_CHECK__INTERVAL="10s")

    assert result.settings.health_check.interval == timedelta(seconds=10)
    assert result.settings.health_check.timeout == timedelta(seconds=2)
    assert result.sources["health_check.interval"] == "env RELIABILITY_HEALTH_CHECK__INTERVAL"
    assert result.sources["health_check.failing_interval"] == "profile fast"


def test_every_profile_can_be_chosen_and_names_real_settings(tmp_path: Path) -> None:
    for name, values in PROFILES.items():
        assert loaded(tmp_path, PROFILE=name).settings.profile == name
        assert set(values) <= set(KEYS)


def test_short_values_for_demonstrations_are_legal(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        HEALTH_CHECK__INTERVAL="0.2s",
        HEALTH_CHECK__TIMEOUT="100ms",
        HEALTH_CHECK__FAILING_INTERVAL="50ms",
        HEALTH_CHECK__START_PERIOD="0s",
        RECOVERY__RETRY_INTERVAL="100ms",
        RECOVERY__MAX_RETRY_INTERVAL="1s",
        RECOVERY__DETECTION_INTERVAL="0.2s",
        RECOVERY__STOP_GRACE="500ms",
        RECOVERY__LEASE="3s",
        WORKER__HOST_LEASE="3s",
        RECONCILE_INTERVAL="1s",
        BEAT__MAX_INTERVAL="50ms",
        BROKER__POLLING_INTERVAL="50ms",
    ).settings

    assert settings.recovery.lease == timedelta(seconds=3)


def test_the_nearest_file_is_read_and_a_named_one_before_it(tmp_path: Path) -> None:
    (tmp_path / "reliability.toml").write_text('host = "local"')
    (tmp_path / "other.toml").write_text('host = "other"')

    assert load({}, tmp_path).settings.host == "local"
    assert load({"RELIABILITY_CONFIG": "other.toml"}, tmp_path).settings.host == "other"
    assert load({"RELIABILITY_CONFIG": "other.toml"}, tmp_path).sources["host"] == f"file {tmp_path / 'other.toml'}"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is no such file (from env RELIABILITY_CONFIG)"),
        (b"host = ", "is not TOML: "),
        (b"host = '\xff'", "is not TOML: "),
        (b"a = 1\nb = = 2", "is not TOML: Invalid value (at line 2"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingsError) as caught:
        load({"RELIABILITY_CONFIG": str(path)}, NOWHERE)

    assert caught.value.lines[0].startswith(f"{path}: {complaint}")


def test_a_folder_or_an_empty_name_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load({"RELIABILITY_CONFIG": str(tmp_path)}, NOWHERE)
    with pytest.raises(SettingsError, match="RELIABILITY_CONFIG is empty"):
        load({"RELIABILITY_CONFIG": ""}, NOWHERE)


def test_variables_of_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "reliability.toml"
    path.write_text("")

    assert load({"PATH": "/bin", "RELIABILITYX": "1", "reliability_host": "x"}, tmp_path) == load({}, tmp_path)


REFUSED = [
    ("RECOVERY__MAX_RETRIES", "0", "recovery.max_retries: must be at least 1 (got 0, "),
    ("RECOVERY__MAX_RETRIES", "-1", "recovery.max_retries: must be at least 1 (got -1, "),
    ("RECOVERY__MAX_RETRIES", "1000000000", "recovery.max_retries: must be at most 100 (got 1000000000, "),
    ("RECOVERY__MAX_RETRIES", "many", "recovery.max_retries: must be a whole number (got many, "),
    ("RECOVERY__MAX_RETRIES", "2.5", "recovery.max_retries: must be a whole number (got 2.5, "),
    ("RECOVERY__BACKOFF_FACTOR", "nan", "recovery.backoff_factor: must be a number (got nan, "),
    ("RECOVERY__BACKOFF_FACTOR", "inf", "recovery.backoff_factor: must be a number (got inf, "),
    ("RECOVERY__BACKOFF_FACTOR", "0.9", "recovery.backoff_factor: must be at least 1 (got 0.9, "),
    ("RECOVERY__LEASE", "0s", "recovery.lease: must be at least 1s (got 0s, "),
    ("RECOVERY__STOP_GRACE", "5", "recovery.stop_grace: must be a duration: write it with a unit"),
    ("HEALTH_CHECK__INTERVAL", "1000000000s", "health_check.interval: must be at most 1d (got 1000000000s, "),
    ("HEALTH_CHECK__BATCH_SIZE", "5001", "health_check.batch_size: must be at most 5000 (got 5001, "),
    ("WORKER__CONCURRENCY", "0", "worker.concurrency: must be at least 2 (got 0, "),
    ("ENABLED", "maybe", "enabled: must be true or false (got maybe, "),
    ("HOST", "Node 1", 'host: must be 1 to 64 of the characters a-z, 0-9, ".", "_" and "-"'),
    ("HOST", "node\n", 'host: must be 1 to 64 of the characters a-z, 0-9, ".", "_" and "-"'),
    ("STATE_DIR", "state", 'state_dir: must be an absolute path without ".." (got state, '),
    ("STATE_DIR", "/a/../b", 'state_dir: must be an absolute path without ".." (got /a/../b, '),
    ("IMAGE_ROOTS", "/a:b", 'image_roots[1]: must be an absolute path without ".." (got b, '),
    ("IMAGE_ROOTS", "/", "image_roots: must not contain /: "),
    ("IMAGE_ROOTS", "//", "image_roots: must not contain /: "),
    ("IMAGE_ROOTS", "[]", "image_roots: must name at least one folder"),
    ("IMAGE_DEVICES", "/dev/*", "image_devices[0]: must say which devices"),
    ("IMAGE_DEVICES", "/dev/**/x", "image_devices[0]: must say which devices"),
    ("IMAGE_DEVICES", "/srv/vm-1", "image_devices[0]: must be the path of block devices, such as /dev/vg0/vm-*"),
    ("IMAGE_DEVICES", "/dev/vg0/../sda", "image_devices[0]: must be the path of block devices"),
    ("IMAGE_DEVICES", '["/dev/vg0"', "image_devices: must be one path, or a list such as"),
    ("IMAGE_ROOTS", "[1", 'image_roots: must be folders separated by ":", or a list'),
    ("PROFILE", "slow", "profile: must be default or fast (got slow, "),
    ("LOG__LEVEL", "loud", "log.level: must be debug, info, warning, error or critical (got loud, "),
    ("LOG__FORMAT", "xml", "log.format: must be auto, logfmt, json or console (got xml, "),
    ("REDIS__PREFIX", "Rel:", "redis.prefix: must be 1 to 16 of a-z, 0-9 and - (got Rel:, "),
    ("REDIS__URL", "http://h", "redis.url: must begin with redis://, rediss:// or unix:// (from env "),
    ("BROKER__URL", "unix:///r", "broker.url: must begin with redis://, rediss:// or redis+socket:// (from env "),
    ("FLOWER__PORT", "70000", "flower.port: must be at most 65535 (got 70000, "),
    ("FLOWER__ADDRESS", "a b", "flower.address: must be an IP address or a host name"),
    ("FLOWER__BASIC_AUTH", "password", 'flower.basic_auth: must be "user:password"'),
    ("DRIVERS__QEMU__BINARY", "qemu -version", "drivers.qemu.binary: must be the name of a program"),
    ("DRIVERS__QEMU__BINARY", "./qemu", "drivers.qemu.binary: must be the name of a program"),
    ("DRIVERS__QEMU__BINARY", "-x", "drivers.qemu.binary: must be the name of a program"),
    ("DRIVERS__QEMU__ACCEL", "hvf", "drivers.qemu.accel: must be auto, kvm or tcg (got hvf, "),
    ("DRIVERS__QEMU__ENVIRONMENT__1A", "x", "drivers.qemu.environment: '1A' cannot be set"),
    ("DRIVERS__QEMU__ENVIRONMENT", "x", "drivers.qemu.environment: must be a mapping of names to values"),
    ("RECOVERY", "3", "recovery: must be a mapping of names to values (got 3, "),
    ("REDIS__RECORD_VERSION", "3", "redis.record_version: must be at most 2 (got 3, "),
    ("RECOVERY__RESTART_BURST", "-1", "recovery.restart_burst: must be at least 0 (got -1, "),
    ("BREAKER__FAILURE_RATE", "0", "breaker.failure_rate: must be at least 0.01 (got 0, "),
    ("BREAKER__MIN_CALLS", "0", "breaker.min_calls: must be at least 1 (got 0, "),
    ("BREAKER__PROBES", "0", "breaker.probes: must be at least 1 (got 0, "),
    ("STORM__HOST_SHARE", "1.5", "storm.host_share: must be at most 1 (got 1.5, "),
    ("STORM__AT_LEAST", "0", "storm.at_least: must be at least 1 (got 0, "),
    ("STRAYS__POLICY", "kill", "strays.policy: must be report, adopt or reap (got kill, "),
    ("STRAYS__REAPED_PER_HOUR", "0", "strays.reaped_per_hour: must be at least 1 (got 0, "),
    ("HOOKS__GROUP", "me ta", "hooks.group: must be the name of a group of this host, such as metald (got "),
    ("DRIVERS__QEMU__EXITS", '{"152": "never"}', "drivers.qemu.exits: '152' must be like \"exit 152\""),
    ("DRIVERS__QEMU__EXITS", '{"exit 1": "retry"}', "drivers.qemu.exits.exit 1: must be restart, never or default"),
]


@pytest.mark.parametrize(("name", "value", "complaint"), REFUSED)
def test_nonsense_is_refused_with_key_value_and_source(tmp_path: Path, name: str, value: str, complaint: str) -> None:
    lines = complaints(tmp_path, **{name: value})

    assert len(lines) == 1
    assert lines[0].startswith(complaint)
    assert lines[0].endswith(f"from env RELIABILITY_{name})")
    assert "\n" not in lines[0]


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("recovery.max_retries = true", "recovery.max_retries: must be a number (got true, from file "),
        ("health_check.interval = 30", "health_check.interval: must be a duration: write it with a unit, such as 30s"),
        ("host = 5", "host: must be text: put it in quotes (got 5, from file "),
        ("recovery = 5", "recovery: must be a mapping of names to values (got 5, from file "),
        ("image_roots = [5]", "image_roots[0]: must be an absolute path"),
        ("drivers.qemu.environment.A = 5", "drivers.qemu.environment.A: must be text: put it in quotes (from file "),
    ],
)
def test_a_value_of_the_wrong_kind_in_the_file_is_refused(tmp_path: Path, toml: str, complaint: str) -> None:
    lines = complaints(tmp_path, toml)

    assert len(lines) == 1
    assert lines[0].startswith(complaint)
    assert lines[0].endswith(f"from file {tmp_path / 'settings.toml'})")


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        (
            "recovery.max_retires = 3",
            "recovery.max_retires: is unknown; did you mean recovery.max_retries? (from file ",
        ),
        ("max_retries = 3", "max_retries: is unknown; did you mean recovery.max_retries? (from file "),
        ("[healthcheck]", "healthcheck: is unknown; did you mean health_check? (from file "),
        (
            'recovery.interval = "1s"',
            "recovery.interval: is unknown; did you mean health_check.interval or registry.interval? (from ",
        ),
        ("enabeld = true", "enabeld: is unknown; did you mean enabled? (from file "),
        ("xyzzy = 1", "xyzzy: is unknown; known here: allow_data_loss, "),
        ("redis.xyzzy = 1", "redis.xyzzy: is unknown; "),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path, toml: str, complaint: str) -> None:
    lines = complaints(tmp_path, toml)

    assert len(lines) == 1
    assert lines[0].startswith(complaint)


def test_an_unknown_variable_is_refused_with_the_right_spelling(tmp_path: Path) -> None:
    (line,) = complaints(tmp_path, RECOVERY_MAX_RETRIES="3")

    assert line == (
        "recovery_max_retries: is unknown; did you mean recovery.max_retries (RELIABILITY_RECOVERY__MAX_RETRIES)? "
        "(from env RELIABILITY_RECOVERY_MAX_RETRIES)"
    )


@pytest.mark.parametrize(
    ("environ", "key", "part"),
    [
        ({"HEALTH_CHECK__TIMEOUT": "30s"}, "health_check.timeout", "less than health_check.interval, which is 30s"),
        ({"HEALTH_CHECK__FAILING_INTERVAL": "31s"}, "health_check.failing_interval", "at most health_check.interval"),
        ({"RECOVERY__RETRY_INTERVAL": "6m"}, "recovery.retry_interval", "at most recovery.max_retry_interval"),
        ({"RECOVERY__DETECTION_INTERVAL": "11m"}, "recovery.detection_interval", "at most recovery.recovery_timeout"),
        (
            {"RECOVERY__START_TIMEOUT": "2m", "RECOVERY__RECOVERY_TIMEOUT": "1m"},
            "recovery.start_timeout",
            "at most recovery.recovery_timeout, which is 1m",
        ),
        ({"RECOVERY__PER_FLEET": "3"}, "recovery.per_host", "at most recovery.per_fleet, which is 3"),
        ({"RECOVERY__PER_HOST": "8"}, "recovery.per_host", "less than worker.concurrency, which is 8"),
        ({"RECOVERY__LEASE": "15s"}, "recovery.lease", "more than 15s"),
        ({"RECOVERY__STOP_GRACE": "13s"}, "recovery.lease", "more than 31s"),
        ({"RECOVERY__LEASE": "3s"}, "recovery.lease", "more than 11.5s"),
        ({"BREAKER__COOLDOWN": "11m"}, "breaker.cooldown", "at most breaker.max_cooldown, which is 10m"),
        ({"BREAKER__PROBES": "65"}, "breaker.probes", "at most recovery.per_fleet, which is 64"),
        ({"BROKER__URL": "redis://localhost/0"}, "broker.url", "not be the database of redis.url"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, environ: dict[str, str], key: str, part: str
) -> None:
    lines = complaints(tmp_path, **environ)

    assert len(lines) == 1
    assert lines[0].startswith(f"{key}: must ")
    assert part in lines[0]
    assert "(from " in lines[0] or ", from " in lines[0]


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    assert len(complaints(tmp_path, "x = 1\ny = 2", HOST="-", PROFILE="z", STATE_DIR="s")) == 5
    assert len(complaints(tmp_path, HEALTH_CHECK__INTERVAL="1s", RECOVERY__PER_HOST="100")) == 4


def test_the_same_checks_hold_for_settings_made_in_code(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"must be less than worker\.concurrency"):
        Settings.model_validate({"host": "h", "state_dir": tmp_path, "recovery": {"per_host": 8}})


def test_environments_of_drivers_keep_their_case_and_are_merged(tmp_path: Path) -> None:
    toml = '[drivers.qemu.environment]\nA = "1"\nB = "1"'

    environ = {"DRIVERS__QEMU__ENVIRONMENT__B": "2", "DRIVERS__QEMU__ENVIRONMENT__lower__C": "3"}
    settings = loaded(tmp_path, toml, **environ, DRIVERS__FIRECRACKER__ENVIRONMENT='{"D": "4"}').settings

    assert settings.drivers.qemu.environment == {"A": "1", "B": "2", "lower__C": "3"}
    assert settings.drivers.firecracker.environment == {"D": "4"}


def test_image_devices_are_none_unless_named(tmp_path: Path) -> None:
    assert loaded(tmp_path).settings.image_devices == ()
    assert loaded(tmp_path, IMAGE_DEVICES="/dev/vg0/vm-*").settings.image_devices == ("/dev/vg0/vm-*",)
    named = loaded(tmp_path, IMAGE_DEVICES='["/dev/vg0/a", "/dev/disk/by-path/pci-0000:00"]').settings.image_devices
    assert named == ("/dev/vg0/a", "/dev/disk/by-path/pci-0000:00")


@pytest.mark.parametrize("value", ["/a:/b/c", '["/a", "//b/c/"]'])
def test_image_roots_can_be_given_as_a_path_list_or_as_json(tmp_path: Path, value: str) -> None:
    assert loaded(tmp_path, IMAGE_ROOTS=value).settings.image_roots == (Path("/a"), Path("/b/c"))


def test_a_whole_section_can_be_given_as_json(tmp_path: Path) -> None:
    result = loaded(tmp_path, "[recovery]\nper_host = 2", RECOVERY='{"max_retries": 9}')

    assert (result.settings.recovery.max_retries, result.settings.recovery.per_host) == (9, 2)
    assert result.sources["recovery.max_retries"] == "env RELIABILITY_RECOVERY"


def test_levels_and_formats_may_be_written_in_capitals(tmp_path: Path) -> None:
    log = loaded(tmp_path, LOG__LEVEL="INFO", LOG__FORMAT="JSON").settings.log

    assert (log.level, log.format) == ("info", "json")


def test_the_image_root_follows_the_state_folder(tmp_path: Path) -> None:
    assert loaded(tmp_path, STATE_DIR="/srv/x").settings.image_roots == (Path("/srv/x/images"),)


@pytest.mark.parametrize(
    ("environ", "uid", "folder"),
    [
        ({"HOME": "/home/a"}, 0, "/var/lib/metald-reliability"),
        ({"HOME": "/home/a"}, 1000, "/home/a/.local/state/metald-reliability"),
        ({"HOME": "/home/a", "XDG_STATE_HOME": "/state"}, 1000, "/state/metald-reliability"),
        ({"HOME": "/home/a", "XDG_STATE_HOME": "relative"}, 1000, "/home/a/.local/state/metald-reliability"),
    ],
)
def test_the_state_folder_suits_the_account(environ: dict[str, str], uid: int, folder: str) -> None:
    assert default_state_dir(environ, uid) == Path(folder)


def test_the_listing_shows_every_setting_as_it_would_be_written(tmp_path: Path) -> None:
    listing = {each.key: each for each in effective(loaded(tmp_path, HEALTH_CHECK__INTERVAL="90s"))}

    assert list(listing) == list(KEYS)
    assert listing["health_check.interval"].value_text == "1m30s"
    assert listing["health_check.interval"].source == "env RELIABILITY_HEALTH_CHECK__INTERVAL"
    assert listing["enabled"].value_text == "true"
    assert listing["flower.basic_auth"].value_text == "none"
    assert listing["drivers.qemu.environment"].value_text == "none"


def test_settings_cannot_be_changed_after_loading(tmp_path: Path) -> None:
    settings = loaded(tmp_path).settings

    with pytest.raises(ValidationError, match="frozen"):
        settings.recovery.max_retries = 9  # type: ignore[misc] # that it is refused is the point


def test_attempts_are_given_back_by_the_broker_only_after_the_longest_wait_and_attempt(tmp_path: Path) -> None:
    settings = loaded(tmp_path).settings
    recovery = settings.recovery

    longest_wait = timedelta(
        milliseconds=delay_ms(
            99,
            base_ms=recovery.retry_interval // timedelta(milliseconds=1),
            factor=recovery.backoff_factor,
            cap_ms=recovery.max_retry_interval // timedelta(milliseconds=1),
            jitter=0.999999,
        )
    )

    assert settings.attempt_deadline == timedelta(seconds=50)
    assert settings.visibility_timeout >= longest_wait + settings.attempt_deadline + timedelta(seconds=30)
    assert settings.visibility_timeout == timedelta(seconds=330 + 50 + 30)


@given(st.timedeltas(timedelta(milliseconds=10), timedelta(days=1)))
def test_the_broker_s_patience_grows_with_the_longest_wait(longest: timedelta) -> None:
    text = format_duration(longest)
    given_values = {"retry_interval": "10ms", "max_retry_interval": text}

    settings = Settings.model_validate({"host": "h", "state_dir": "/s", "recovery": given_values})

    assert settings.visibility_timeout > longest + settings.attempt_deadline


def test_importing_the_settings_is_cheap() -> None:
    heavy = ("celery", "kombu", "rich", "redis", "yaml", "asyncio", "opentelemetry")
    code = f"import sys, workers.settings; print([name for name in {heavy!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)

    assert done.stdout.strip() == "[]"
