"""Addresses of Redis databases: secrets stay hidden, and two spellings of one database are recognised."""

import re

import pytest

from workers.redis_url import BROKER_SCHEMES, STORE_SCHEMES, RedisUrl, checked, redacted, same_database, verified


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://user:s3cret@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:s3cret@host/0", "redis://:***@host/0"),
        ("redis://s3cret@host/0", "redis://***@host/0"),
        ("rediss://u:s3@cr/et@host/0", "rediss://u:***@host/0"),
        ("unix://u:s3cret@/run/redis.sock?db=1", "unix://u:***@/run/redis.sock?db=1"),
        ("redis://host/0?password=s3cret&ssl_cert_reqs=none", "redis://host/0?password=***&ssl_cert_reqs=none"),
        ("redis://host/0?a=b&ssl_keyfile_password=s3cret", "redis://host/0?a=b&ssl_keyfile_password=***"),
        ("redis://u:s3cret@host/0?client_name=a@b", "redis://u:***@b"),
        ("u:s3cret@host", "u:***@host"),
        ("u:s3cret@redis://host", "u:***@redis://host"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert redacted(url) == shown
    assert "s3cret" not in f"{RedisUrl(url)} {RedisUrl(url)!r} {[RedisUrl(url)]}"


def test_the_whole_url_is_there_for_the_client() -> None:
    assert RedisUrl("redis://u:p@h/0").get_secret_value() == "redis://u:p@h/0"


@pytest.mark.parametrize(
    "url",
    ["redis://h", "redis://h/", "redis://h:1/15", "rediss://u:p@[::1]:1/2", "unix:///run/r.sock", "unix:///r?db=3"],
)
def test_every_form_the_store_s_client_reads_is_taken(url: str) -> None:
    assert checked(STORE_SCHEMES)(RedisUrl(url)).get_secret_value() == url


@pytest.mark.parametrize(
    "url", ["redis://h/1", "rediss://h/1?ssl_cert_reqs=none", "redis+socket:///run/r.sock?virtual_host=1"]
)
def test_every_form_the_broker_s_client_reads_is_taken(url: str) -> None:
    assert checked(BROKER_SCHEMES)(RedisUrl(url)).get_secret_value() == url


@pytest.mark.parametrize(
    ("schemes", "url", "complaint"),
    [
        (STORE_SCHEMES, "", "must begin with redis://, rediss:// or unix://"),
        (STORE_SCHEMES, "http://h/0", "must begin with"),
        (STORE_SCHEMES, "redis+socket:///run/r.sock", "must begin with"),
        (BROKER_SCHEMES, "unix:///run/r.sock", r"must begin with redis://, rediss:// or redis\+socket://"),
        (STORE_SCHEMES, "redis://h:port/0", "must be like redis://"),
        (STORE_SCHEMES, "redis://[::1/0", "must be like redis://"),
        (STORE_SCHEMES, "redis://h/zero", "must end in the number of a database"),
        (STORE_SCHEMES, "redis://h/-1", "must end in the number of a database"),
        (STORE_SCHEMES, "redis://h/0?db=1", r"by /0 at the end: db is not read here"),
        (STORE_SCHEMES, "unix://run/r.sock?db=a", "by its number"),
        (STORE_SCHEMES, "unix://?db=1", "must be like unix:///run/redis.sock"),
        (BROKER_SCHEMES, "redis+socket:///r?db=1", r"by \?virtual_host=0: db is not read here"),
    ],
)
def test_what_its_client_would_misread_is_refused(schemes: tuple[str, ...], url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        checked(schemes)(RedisUrl(url))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("redis://127.0.0.1:6379/0", "redis://localhost"),
        ("redis://h/1", "rediss://u:p@H:6379/1"),
        ("redis://[::1]/2", "redis://127.0.0.1/2"),
        ("unix:///run/r.sock?db=1", "redis+socket:///run/r.sock?virtual_host=1"),
        ("unix:///run/r.sock", "redis+socket://u:p@/run/r.sock?virtual_host=0"),
    ],
)
def test_two_spellings_of_one_database_are_recognised(one: str, other: str) -> None:
    assert same_database(RedisUrl(one), RedisUrl(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("redis://h/0", "redis://h/1"),
        ("redis://h/0", "redis://g/0"),
        ("redis://h:1/0", "redis://h:2/0"),
        ("unix:///run/r.sock?db=0", "redis+socket:///run/r.sock?virtual_host=1"),
        ("unix:///run/r.sock", "redis+socket:///run/s.sock"),
    ],
)
def test_different_databases_are_told_apart(one: str, other: str) -> None:
    assert not same_database(RedisUrl(one), RedisUrl(other))


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://h/0?ssl_ca_certs=/etc/hostname", "must begin with rediss:// to have ssl_ca_certs"),
        ("rediss://h/0?ssl_ca_cert=/etc/hostname", "has an unknown option ssl_ca_cert: there are ssl_ca_certs"),
        ("rediss://h/0?ssl_cert_reqs=CERT_NONE", "must have ssl_cert_reqs=required or optional or none, not CERT_NONE"),
        ("rediss://h/0?ssl_ca_certs=/no/such", "must name in ssl_ca_certs the absolute path"),
        ("rediss://h/0?ssl_keyfile=redis.key", "must name in ssl_keyfile the absolute path"),
    ],
)
def test_tls_options_that_would_check_nothing_or_end_in_an_exception_are_refused(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        checked(STORE_SCHEMES)(RedisUrl(url))


@pytest.mark.parametrize(
    ("url", "demanded"),
    [
        ("redis://h/1", "redis://h/1"),
        ("rediss://u:p%40@h/1", "rediss://u:p%40@h/1?ssl_cert_reqs=required"),
        ("rediss://h/1?ssl_check_hostname=true", "rediss://h/1?ssl_check_hostname=true&ssl_cert_reqs=required"),
        ("rediss://h/1?ssl_cert_reqs=none", "rediss://h/1?ssl_cert_reqs=none"),
    ],
)
def test_a_broker_s_certificate_is_demanded_unless_told_otherwise(url: str, demanded: str) -> None:
    assert verified(url) == demanded
