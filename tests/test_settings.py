"""Settings: from text to typed values, or one error that lists what is wrong."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ConfigurationError
from worker.model import Secret
from worker.settings import SETTINGS, Settings, load_settings, split_authority, unknown_settings


def test_the_table_and_the_fields_are_the_same_settings() -> None:
    assert [setting.field_name for setting in SETTINGS] == [field.name for field in fields(Settings)]
    assert all(setting.meaning for setting in SETTINGS)


def test_each_value_has_the_type_of_its_field() -> None:
    settings = load_settings({})
    for name, hint in get_type_hints(Settings, localns={"Path": Path}).items():
        value = getattr(settings, name)
        if str in map(type, get_args(hint)):
            assert value in get_args(hint)
        elif type(None) in get_args(hint):
            assert value is None
        else:
            assert type(value) is type(Path()) if hint is Path else type(value) is (get_origin(hint) or hint)


def test_defaults() -> None:
    settings = load_settings({"PATH": "/bin", "WORKER_LAKE": "", "WORKER_EXPORT_ATTEMPTS": "  "})
    assert settings.lake == Path("lake")
    assert settings.state == "sqlite:///./worker.db"
    assert settings.spool == Path(tempfile.gettempdir()) / "mixpanel-worker"
    assert (settings.exports_per_hour, settings.exports_per_second, settings.export_attempts) == (60, 3, 5)
    assert settings.export_hosts == frozenset()
    assert (settings.connect_seconds, settings.first_byte_seconds, settings.idle_seconds) == (30, 3600, 300)
    assert (settings.retry_wait_max_seconds, settings.retry_after_max_seconds) == (300, 3600)
    assert settings.days_ahead == 1
    assert settings.max_memory_bytes == 512 * 1024 * 1024
    assert settings.max_line_bytes == 16 * 1024 * 1024
    assert settings.max_reject_bytes == 65536
    assert settings.processors >= 1
    assert (settings.log_level, settings.log_format) == ("info", "auto")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("WORKER_LAKE", " /data/lake ", Path("/data/lake")),
        ("WORKER_IDLE_SECONDS", "0.25", 0.25),
        ("WORKER_DAYS_AHEAD", "0", 0),
        ("WORKER_MAX_MEMORY_BYTES", "268435456", 256 * 1024 * 1024),
        ("WORKER_MAX_MEMORY_BYTES", "1 GiB", 1024**3),
        ("WORKER_MAX_LINE_BYTES", "64kib", 65536),
        ("WORKER_LOG_LEVEL", "WARNING", "warning"),
        (
            "WORKER_EXPORT_HOSTS",
            "Proxy.example, 10.0.0.5:8443,[FD00:0::1]:9000,other.example:443,",
            frozenset({"proxy.example", "10.0.0.5:8443", "[fd00::1]:9000", "other.example"}),
        ),
        ("WORKER_API_TOKENS", " 0123456789abcdef, ", (Secret("0123456789abcdef"),)),
        ("WORKER_HTTP_HOSTS", "Worker.example,[FD00:0::1]", frozenset({"worker.example", "[fd00::1]"})),
    ],
)
def test_values(name: str, text: str, value: object) -> None:
    setting = next(setting for setting in SETTINGS if setting.name == name)
    assert getattr(load_settings({name: text}), setting.field_name) == value


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("WORKER_LAKE", "s3://bucket/lake", "it takes a folder of this machine"),
        (
            "WORKER_STATE",
            "worker.db",
            "it takes a database URL such as sqlite:///./worker.db or postgresql://user:password@host/database",
        ),
        ("WORKER_EXPORTS_PER_HOUR", "0", "it takes a whole number of at least 1"),
        ("WORKER_EXPORTS_PER_HOUR", "1_000", "it takes a whole number of at least 1"),
        ("WORKER_EXPORTS_PER_HOUR", "٣", "it takes a whole number of at least 1"),
        ("WORKER_DAYS_AHEAD", "-1", "it takes a whole number of at least 0"),
        ("WORKER_IDLE_SECONDS", "0", "it takes a number of seconds above 0"),
        ("WORKER_IDLE_SECONDS", "inf", "it takes a number of seconds above 0"),
        ("WORKER_IDLE_SECONDS", "5m", "it takes a number of seconds above 0"),
        (
            "WORKER_MAX_MEMORY_BYTES",
            "255MiB",
            "it takes at least 268435456 bytes, as a whole number or with KiB, MiB or GiB behind it",
        ),
        (
            "WORKER_MAX_LINE_BYTES",
            "16MB",
            "it takes at least 1024 bytes, as a whole number or with KiB, MiB or GiB behind it",
        ),
        ("WORKER_LOG_FORMAT", "xml", "it takes one of auto, json, console"),
        ("WORKER_EXPORT_HOSTS", "https://proxy.example", "it takes host or host:port, in ASCII"),
        ("WORKER_EXPORT_HOSTS", "user@proxy.example", "a user name does not belong there"),
        (
            "WORKER_API_TOKENS",
            "0123456789abcdef,tooshort",
            "it takes tokens of at least 16 characters, which are printable ASCII without spaces",
        ),
        (
            "WORKER_API_TOKENS",
            "0123456789 abcdef",
            "it takes tokens of at least 16 characters, which are printable ASCII without spaces",
        ),
        ("WORKER_HTTP_HOSTS", "worker.example:443", "it takes names without a port"),
        ("WORKER_HTTP_HOSTS", "https://worker.example", "it takes host or host:port, in ASCII"),
        ("WORKER_EXPORT_HOSTS", "proxy.example:0", "a port lies between 1 and 65535"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_good(name: str, text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({name: text})
    assert str(caught.value) == f"Settings that cannot be used:\n  {name}: {problem}"


def test_all_bad_values_are_listed_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"WORKER_LOG_LEVEL": "loud", "WORKER_PROCESSORS": "many"})
    assert [line.partition(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "WORKER_PROCESSORS",
        "WORKER_LOG_LEVEL",
    ]


def test_a_password_in_the_database_url_is_not_printed() -> None:
    assert "hunter2" not in repr(load_settings({"WORKER_STATE": "postgresql://worker:hunter2@db/worker"}))
    with pytest.raises(ConfigurationError) as caught:
        load_settings({"WORKER_STATE": "worker:hunter2@db"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["hunter2", "canary-hunter2-0123456789", "canary hunter2 0123456789"])
def test_a_token_is_not_printed(text: str) -> None:
    try:
        told = repr(load_settings({"WORKER_API_TOKENS": text, "WORKER_API_CLIENTS": "me:canary-hunter2-9876543210"}))
    except ConfigurationError as error:
        told = str(error)
    assert "hunter2" not in told


def test_a_variable_that_nothing_reads_is_told_with_the_nearest_that_is_read() -> None:
    environ = {"WORKER_LAKES": "x", "WORKER_MAX_MEMORY": "x", "WORKER_QZX": "x", "WORKER_LAKE": "x", "HOME": "x"}
    assert unknown_settings(environ) == (
        ("WORKER_LAKES", "WORKER_LAKE"),
        ("WORKER_MAX_MEMORY", "WORKER_MAX_MEMORY_BYTES"),
        ("WORKER_QZX", None),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host.",
        ".host",
        "a..b",
        "-host",
        "host-.example",
        "host:",
        "host:65536",
        "host:80:80",
        "host name",
        "host\n",
        "höst.example",
        "host/",
        "host\\x",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "127.0.0.01",
        "1.2.3.4.5",
        "[127.0.0.1]",
        "[::1",
        "[::1%eth0]",
        "::1",
    ],
)
def test_f146_an_authority_with_two_readings_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"takes|port|host name|address"):
        split_authority(text)


@given(st.text(alphabet="aZ09.:-[]@%/\\x #?", max_size=24))
def test_f146_an_authority_that_is_taken_reads_the_same_again(text: str) -> None:
    try:
        host, port = split_authority(text)
    except ValueError:
        return
    assert split_authority(host if port is None else f"{host}:{port}") == (host, port)
