"""Settings: the environment, read once, as typed values. What the flow moves is in the flow file, not here.

`Settings` is what the code uses; `SETTINGS` is the table behind it, from which `--help`, the README and the tests come.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from worker.errors import ConfigurationError
from worker.model import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "console"]

HTTPS_PORT: Final = 443
SHORTEST_SECRET: Final = 16

_PREFIX = "WORKER_"
_MIB = 1024 * 1024
_BYTES_PER_UNIT = {"": 1, "kib": 1024, "mib": _MIB, "gib": 1024 * _MIB}
_WHOLE_NUMBER = re.compile(r"[0-9]{1,15}")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_BYTE_SIZE = re.compile(r"([0-9]{1,15}) ?(|kib|mib|gib)", re.IGNORECASE)
_LOOPBACK, _LOOPBACK_NETWORK = IPv6Address("::1"), IPv4Network("127.0.0.0/8")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,5}))?")
_HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_TOKEN = re.compile(rf"[!-~]{{{SHORTEST_SECRET},4096}}")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")


def split_authority(text: str) -> tuple[str, int | None]:
    """Take `host` or `host:port` apart; the host comes back in the one spelling that is compared and sent.

    Raises ValueError, with a reason that does not repeat `text`, for whatever two parsers could read as two hosts
    (F146): a user name, a trailing dot, letters beyond ASCII, an address that is not four plain decimal numbers.
    """
    if "@" in text:
        raise ValueError("a user name does not belong there")
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise ValueError("it takes host or host:port, in ASCII")
    host, port = match[1].lower(), match[2]
    if port is not None and not 1 <= int(port) <= 65535:
        raise ValueError("a port lies between 1 and 65535")
    try:
        if host.startswith("["):
            host = f"[{IPv6Address(host[1:-1]).compressed}]"
        elif _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
            host = str(IPv4Address(host))
        elif not _HOST_NAME.fullmatch(host):
            raise ValueError("that is not a host name (no dot at the end, no empty part)")
    except AddressValueError as error:
        raise ValueError("an address is written as four decimal numbers, or as IPv6 in brackets") from error
    return host, None if port is None else int(port)


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine itself; an IPv6 address with or without brackets."""
    if host == "localhost":
        return True
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return address == _LOOPBACK or address in _LOOPBACK_NETWORK


def _whole_number(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not _WHOLE_NUMBER.fullmatch(text) or int(text) < minimum:
            raise ValueError(f"it takes a whole number of at least {minimum}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    if not _NUMBER.fullmatch(text) or float(text) == 0:
        raise ValueError("it takes a number of seconds above 0")
    return float(text)


def _bytes(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        match = _BYTE_SIZE.fullmatch(text)
        size = int(match[1]) * _BYTES_PER_UNIT[match[2].lower()] if match else -1
        if size < minimum:
            raise ValueError(f"it takes at least {minimum} bytes, as a whole number or with KiB, MiB or GiB behind it")
        return size

    return parse


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"it takes one of {', '.join(choices)}")
        return text.lower()

    return parse


def _folder(text: str) -> Path:
    if "://" in text:
        raise ValueError("it takes a folder of this machine")
    return Path(text)


def _file(text: str) -> Path:
    return Path(text)


def _database_url(text: str) -> str:
    if not re.match(r"[a-z][a-z0-9+]*://", text):
        raise ValueError(
            "it takes a database URL such as sqlite:///./worker.db or postgresql://user:password@host/database"
        )
    return text


def _export_hosts(text: str) -> frozenset[str]:
    hosts = set()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        host, port = split_authority(entry)
        hosts.add(host if port in {None, HTTPS_PORT} else f"{host}:{port}")
    return frozenset(hosts)


def _address(text: str) -> tuple[str, int]:
    host, port = split_authority(text)
    if port is None:
        raise ValueError("it takes host:port")
    return host.strip("[]"), port


def _clients(text: str) -> tuple[tuple[str, Secret], ...]:
    clients = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, separator, secret = entry.partition(":")
        if not separator or not name or len(secret) < SHORTEST_SECRET:
            raise ValueError(f"it takes id:secret with a secret of at least {SHORTEST_SECRET} characters")
        clients.append((name, Secret(secret)))
    return tuple(clients)


def _tokens(text: str) -> tuple[Secret, ...]:
    tokens = [part.strip() for part in text.split(",") if part.strip()]
    if not all(_TOKEN.fullmatch(token) for token in tokens):
        raise ValueError(
            f"it takes tokens of at least {SHORTEST_SECRET} characters, which are printable ASCII without spaces"
        )
    return tuple(Secret(token) for token in tokens)


def _host_names(text: str) -> frozenset[str]:
    names = set()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, port = split_authority(entry)
        if port is not None:
            raise ValueError("it takes names without a port")
        names.add(name)
    return frozenset(names)


def _yes_or_no(text: str) -> bool:
    if text.lower() not in {"yes", "no"}:
        raise ValueError("it takes yes or no")
    return text.lower() == "yes"


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, made by `load_settings`. The field `days_ahead` is the variable `WORKER_DAYS_AHEAD`, and so on."""

    lake: Path
    state: str = field(repr=False)  # a database URL may hold a password
    spool: Path
    exports_per_hour: int
    exports_per_second: int
    export_hosts: frozenset[str]
    export_attempts: int
    connect_seconds: float
    first_byte_seconds: float
    idle_seconds: float
    retry_wait_max_seconds: float
    retry_after_max_seconds: float
    days_ahead: int
    max_memory_bytes: int
    max_line_bytes: int
    max_reject_bytes: int
    processors: int
    log_level: LogLevel
    log_format: LogFormat
    http: tuple[str, int]
    http_idle_seconds: float
    tick_seconds: float
    lease_seconds: float
    flows_at_once: int
    key_file: Path | None
    api_clients: tuple[tuple[str, Secret], ...]
    api_tokens: tuple[Secret, ...]
    http_hosts: frozenset[str]
    tls_certificate: Path | None
    tls_key: Path | None
    tls_proxy: bool


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as people read it, and how its text becomes a value; `unit` is empty where words are taken.

    `computed` gives the default where it depends on the machine; `default` then says so in words.
    """

    name: str
    default: str
    unit: str
    meaning: str
    parse: Callable[[str], object]
    computed: Callable[[], object] | None = None

    @property
    def field_name(self) -> str:
        return self.name.removeprefix(_PREFIX).lower()


SETTINGS: Final = (
    Setting("WORKER_LAKE", "./lake", "folder", "where the tables are", _folder),
    Setting(
        "WORKER_STATE",
        "sqlite:///./worker.db",
        "URL",
        "the state database, or postgresql://… for several replicas: runs, loads, the used-up quota",
        _database_url,
    ),
    Setting(
        "WORKER_SPOOL",
        "<temporary folder>/mixpanel-worker",
        "folder",
        "where exports are kept while they are worked on",
        _folder,
        lambda: Path(tempfile.gettempdir()) / "mixpanel-worker",
    ),
    Setting(
        "WORKER_EXPORTS_PER_HOUR", "60", "exports", "how many Mixpanel allows a project in an hour", _whole_number(1)
    ),
    Setting(
        "WORKER_EXPORTS_PER_SECOND", "3", "exports", "how many Mixpanel allows a project in a second", _whole_number(1)
    ),
    Setting(
        "WORKER_EXPORT_HOSTS",
        "",
        "host[:port]",
        "hosts beside Mixpanel's that may be asked, by https, with commas between; without a port, 443 is meant",
        _export_hosts,
    ),
    Setting("WORKER_EXPORT_ATTEMPTS", "5", "attempts", "to export one day, before the run fails", _whole_number(1)),
    Setting("WORKER_CONNECT_SECONDS", "30", "seconds", "longest wait for a connection", _seconds),
    Setting(
        "WORKER_FIRST_BYTE_SECONDS",
        "3600",
        "seconds",
        "longest wait for the first byte of an answer; Mixpanel may think for long",
        _seconds,
    ),
    Setting("WORKER_IDLE_SECONDS", "300", "seconds", "longest silence within an answer", _seconds),
    Setting(
        "WORKER_RETRY_WAIT_MAX_SECONDS",
        "300",
        "seconds",
        "longest wait between two attempts, where the server does not ask for one",
        _seconds,
    ),
    Setting("WORKER_RETRY_AFTER_MAX_SECONDS", "3600", "seconds", "longest wait that Retry-After can ask for", _seconds),
    Setting(
        "WORKER_DAYS_AHEAD", "1", "days", "how many are exported while the current one is worked on", _whole_number(0)
    ),
    Setting("WORKER_MAX_MEMORY_BYTES", "512MiB", "bytes", "memory that the worker may use", _bytes(256 * _MIB)),
    Setting(
        "WORKER_MAX_LINE_BYTES", "16MiB", "bytes", "longest line of an export; a longer one is a reject", _bytes(1024)
    ),
    Setting("WORKER_MAX_REJECT_BYTES", "64KiB", "bytes", "how much of its raw line a reject keeps", _bytes(256)),
    Setting(
        "WORKER_PROCESSORS",
        "number of usable CPUs",
        "threads",
        "how many decode and map",
        _whole_number(1),
        _usable_processors,
    ),
    Setting(
        "WORKER_LOG_LEVEL",
        "info",
        "",
        "the least that is logged: debug, info, warning or error",
        _choice("debug", "info", "warning", "error"),
    ),
    Setting(
        "WORKER_LOG_FORMAT",
        "auto",
        "",
        "json, console, or auto: console on a terminal, else json",
        _choice("auto", "json", "console"),
    ),
    Setting("WORKER_HTTP", "127.0.0.1:8080", "host:port", "where the service listens", _address),
    Setting(
        "WORKER_HTTP_IDLE_SECONDS",
        "30",
        "seconds",
        "after which a connection is closed that has not sent a whole request; a proxy in front should let go sooner",
        _seconds,
    ),
    Setting("WORKER_TICK_SECONDS", "5", "seconds", "between two looks at what is due", _seconds),
    Setting(
        "WORKER_LEASE_SECONDS",
        "30",
        "seconds",
        "after which another process takes the flows over of one that is dead or paused",
        _seconds,
    ),
    Setting("WORKER_FLOWS_AT_ONCE", "2", "flows", "how many the service runs at a time", _whole_number(1)),
    Setting(
        "WORKER_KEY_FILE",
        "<state>.key on loopback",
        "file",
        "the key that credentials given by API are encrypted with",
        _file,
        lambda: None,
    ),
    Setting(
        "WORKER_API_CLIENTS",
        "",
        "id:secret",
        "who may log in to the API, with commas between; beyond loopback there must be some, or tokens",
        _clients,
    ),
    Setting(
        "WORKER_API_TOKENS",
        "",
        "token",
        "bearer tokens that need no login, as for Prometheus, with commas between; 16 characters or more each",
        _tokens,
    ),
    Setting(
        "WORKER_HTTP_HOSTS",
        "",
        "host",
        "names by which requests may call the service beyond loopback, with commas between; none: any",
        _host_names,
    ),
    Setting(
        "WORKER_TLS_CERTIFICATE",
        "none",
        "file",
        "PEM chain with which the service speaks https itself",
        _file,
        lambda: None,
    ),
    Setting("WORKER_TLS_KEY", "none", "file", "PEM key of that certificate", _file, lambda: None),
    Setting(
        "WORKER_TLS_PROXY",
        "no",
        "",
        "yes: beyond loopback a proxy in front speaks TLS; the service listens there only then",
        _yes_or_no,
    ),
)


def load_settings(environ: Mapping[str, str]) -> Settings:
    """The settings in `environ`; a variable that is missing or blank leaves the default.

    A command-line option is put into `environ` by its caller, so that both are checked by one rule. Raises one
    ConfigurationError that lists every bad variable.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for setting in SETTINGS:
        text = environ.get(setting.name, "").strip()
        try:
            if text or setting.computed is None:
                values[setting.field_name] = setting.parse(text or setting.default)
            else:
                values[setting.field_name] = setting.computed()
        except ValueError as error:
            problems.append(f"{setting.name}: {error}")
    if problems:
        raise ConfigurationError("Settings that cannot be used:\n  " + "\n  ".join(problems))
    return Settings(**values)


def unknown_settings(environ: Mapping[str, str]) -> tuple[tuple[str, str | None], ...]:
    """The `WORKER_` variables of `environ` that nothing reads, sorted, each with the nearest name that is one."""
    known = [setting.name.removeprefix(_PREFIX) for setting in SETTINGS]
    found = sorted(name.removeprefix(_PREFIX) for name in environ if name.startswith(_PREFIX))
    nearest = {name: get_close_matches(name, known, n=1) for name in found if name not in known}
    return tuple((_PREFIX + name, _PREFIX + near[0] if near else None) for name, near in nearest.items())
