"""The flow file: what one flow moves, from where to where. YAML or JSON, checked whole before anything starts.

Its five parts are the request bodies with which Adobe's Mixpanel source is set up (Flow Service: `POST /connections`,
`/sourceConnections`, `/targetConnections`, `/flows`; Data Prep: `POST /conversion/mappingSets`), so that a file can be
put together from them. Every problem is reported at once, each with its path, and no secret is printed.
"""

from __future__ import annotations

import json
import math
import re
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import yaml
from yaml.reader import ReaderError

from worker.errors import ConfigurationError
from worker.mixpanel.calendar import parse_timezone
from worker.model import Credentials, Options, Schedule, Secret, Source, Target, flow_id_of
from worker.settings import HTTPS_PORT, is_loopback, split_authority

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from zoneinfo import ZoneInfo

    from worker.model import Deduplication, TimeBasis
    from worker.settings import Settings

EXPORT_URLS: Final = {
    "us": "https://data.mixpanel.com",
    "eu": "https://data-eu.mixpanel.com",
    "in": "https://data-in.mixpanel.com",
}
"""Base URL of the raw export by the region where the project lives (Mixpanel, data residency)."""

_MIXPANEL_HOSTS = tuple(url.removeprefix("https://") for url in EXPORT_URLS.values())
_DEFAULT_PORTS = {"http": 80, "https": HTTPS_PORT}

_MAX_FILE_BYTES = 1024 * 1024
_MAX_DEPTH = 64
_MAX_SHOWN_CHARACTERS = 80
_MAX_NAME_CHARACTERS = 200
_DEFAULT_LOOKBACK_DAYS = 5
_MAX_LOOKBACK_DAYS = 60
_MIN_INTERVAL_MINUTES = 15
_MAX_INTERVAL = 525_600
_MILLISECONDS_FROM = 100_000_000_000
"""Epoch seconds reach this in the year 5138, epoch milliseconds were past it in 1973."""

Frequency = Literal["once", "minute", "hour", "day", "week"]

_MASK = "***"
_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_REFERENCE_BODY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_$-]{1,60}")
_YAML_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_YAML_DECIMAL = re.compile(r"[-+]?[0-9]{1,18}\.[0-9]{1,18}")
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")
_PROJECT_ID = re.compile(r"[0-9]{1,20}")
_DATASET_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

_DOCUMENT_KEYS = ("baseConnection", "sourceConnection", "targetConnection", "mappingSet", "flow")
_SPEC_KEYS = ("id", "version")
_CREDENTIALS_PATH = "baseConnection.auth.params"


@dataclass(frozen=True, slots=True)
class FlowFile:
    """One flow, checked. Exactly one of `mapping_document` and `mapping_path` (an existing file) is there.

    `definition` is the document as it was written, `${NAME}` kept, with the credentials masked: it may be stored.
    """

    name: str
    flow_id: str
    description: str
    source: Source
    target: Target
    schedule: Schedule | None
    options: Options
    mapping_document: dict[str, Any] | None
    mapping_path: Path | None
    definition: dict[str, Any]


def load_flow(
    path: Path, environ: Mapping[str, str], settings: Settings, *, listens_beyond_loopback: bool = False
) -> FlowFile:
    """Read and check the flow file at `path`; `environ` fills `${NAME}` and `${NAME:-default}` in its texts.

    `listens_beyond_loopback` says whether this process can be reached from other machines; then a loopback host is
    refused, or anyone who may post a flow could have the worker ask its neighbours. The mapping set is found, but not
    read. Raises one ConfigurationError that lists every problem, one line each, with its path.
    """
    document = _parse(path)
    reader = Reader()
    values = reader.resolve(document, environ)
    root = reader.section("", values, _DOCUMENT_KEYS, required=_DOCUMENT_KEYS)
    source = read_source(root, settings, allow_loopback=not listens_beyond_loopback)
    target = read_target(root)
    mapping = _read_mapping_set(root, path)
    name, description, schedule, options = read_flow(root)
    if reader.problems:
        raise ConfigurationError(f"{path} is not a flow file that can be run:\n  " + "\n  ".join(reader.problems))
    assert source is not None
    assert target is not None
    return FlowFile(
        name=name,
        flow_id=flow_id_of(name),
        description=description,
        source=source,
        target=target,
        schedule=schedule,
        options=options,
        mapping_document=mapping if isinstance(mapping, dict) else None,
        mapping_path=mapping if isinstance(mapping, Path) else None,
        definition=_masked(document, source.credentials),
    )


def _masked(document: dict[str, Any], credentials: Credentials) -> dict[str, Any]:
    definition = deepcopy(document)
    params = definition["baseConnection"]["auth"]["params"]
    secrets = ("password", "username") if credentials.is_project_secret else ("password",)
    params.update((key, _MASK) for key in secrets if key in params)
    return definition


def check_export_host(url: str, export_hosts: Collection[str], *, allow_loopback: bool) -> str:
    """The base URL `scheme://host[:port]` that `url` means, in one spelling, if the worker may send credentials there.

    Allowed are Mixpanel's hosts by https, loopback by http or https on any port with `allow_loopback`, and by https
    what `export_hosts` names (`host` means port 443, else `host:port`). Raises ConfigurationError otherwise, and for
    every spelling that could mean one host to this check and another to the network (F146). The message repeats a host
    only once it is known to be one.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _DEFAULT_PORTS:
        raise ConfigurationError("a host begins with https://")
    try:
        host, given_port = split_authority(rest.removesuffix("/"))
    except ValueError as error:
        raise ConfigurationError(f"a host is https://host or https://host:port and nothing else; {error}") from error
    port = given_port or _DEFAULT_PORTS[scheme]
    authority = host if port == _DEFAULT_PORTS[scheme] else f"{host}:{port}"
    if allow_loopback and is_loopback(host):
        return f"{scheme}://{authority}"
    if scheme != "https":
        raise ConfigurationError(f"{host} must be asked by https")
    if authority in _MIXPANEL_HOSTS or authority in export_hosts:
        return f"https://{authority}"
    if host in _MIXPANEL_HOSTS:
        raise ConfigurationError(f"{host} is asked on port {HTTPS_PORT} only")
    raise ConfigurationError(
        f"{authority} is not a host of Mixpanel ({', '.join(_MIXPANEL_HOSTS)}) nor named in WORKER_EXPORT_HOSTS"
    )


# The text


def _parse(path: Path) -> dict[str, Any]:
    """The document in the file: JSON where it is JSON, else YAML."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"The flow file {path} cannot be read: {error.strerror}.") from error
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {_MAX_FILE_BYTES} bytes: that is not a flow file.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {line}: the text is not UTF-8.") from None
    try:
        document = _parse_json(text)
    except json.JSONDecodeError as error:
        if path.suffix == ".json":
            raise ConfigurationError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from None
        document = _parse_yaml(path, text)
    except RecursionError:
        raise ConfigurationError(f"{path}: nested more than {_MAX_DEPTH} deep.") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}.") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} has no keys; a flow file has {', '.join(_DOCUMENT_KEYS)}.")
    return document


def _parse_json(text: str) -> Any:  # noqa: ANN401  # a document can be anything until it is checked
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {_key(key)} is given twice")
            found[key] = value
        return found

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def _parse_yaml(path: Path, text: str) -> Any:  # noqa: ANN401  # a document can be anything until it is checked
    """YAML without what surprises: no aliases (they multiply), no tags, no key twice, and only JSON's plain types.

    YAML 1.1 reads `0123` as 83, `12:30:00` as 45000, `no` as false and `2024-01-01` as a date; here those stay text.
    """
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    try:
        return _yaml_document(events)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # Of what it stumbled over PyYAML quotes one character, or a whole tag, which may be a piece of a password.
        problem = re.sub(r"'![^']*'", "'!…'", error.problem or "not YAML")
        raise ConfigurationError(f"{path}{place}: {problem}.") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigurationError(f"{path}, line {line}: a control character.") from None


def _yaml_document(events: Iterator[yaml.Event]) -> Any:  # noqa: ANN401  # as above
    next(events)
    if isinstance(next(events), yaml.StreamEndEvent):
        return None
    document = _yaml_value(next(events), events, depth=1)
    next(events)
    after = next(events)
    if not isinstance(after, yaml.StreamEndEvent):
        raise _yaml_error(after, "a second document begins")
    return document


def _yaml_error(event: yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=cast("yaml.Mark", event.start_mark))


def _yaml_value(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Any:  # noqa: ANN401  # as above
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise _yaml_error(event, "anchors and aliases are not taken; a text that begins with & or * needs quotes")
    if getattr(event, "tag", None):
        raise _yaml_error(event, "tags are not taken; a text that begins with ! needs quotes")
    if depth > _MAX_DEPTH:
        raise _yaml_error(event, f"nested more than {_MAX_DEPTH} deep")
    if isinstance(event, yaml.MappingStartEvent):
        found: dict[str, Any] = {}
        while not isinstance(key_event := next(events), yaml.MappingEndEvent):
            _yaml_value(key_event, events, depth + 1)
            if not isinstance(key_event, yaml.ScalarEvent):
                raise _yaml_error(key_event, "a key is a text; a text that begins with { or [ needs quotes")
            if key_event.value in found:
                raise _yaml_error(key_event, "this key is given twice")
            found[key_event.value] = _yaml_value(next(events), events, depth + 1)
        return found
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(item_event := next(events), yaml.SequenceEndEvent):
            items.append(_yaml_value(item_event, events, depth + 1))
        return items
    assert isinstance(event, yaml.ScalarEvent)
    return event.value if event.style else _yaml_plain(event.value)


def _yaml_plain(text: str) -> str | int | float | bool | None:
    if text in {"", "~", "null"}:
        return None
    if text in {"true", "false"}:
        return text == "true"
    if _YAML_INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _YAML_DECIMAL.fullmatch(text) else text


# The values


class _Unusable:
    """Stands where a value was whose problem is reported already."""


_UNUSABLE = _Unusable()


def _key(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(key) else ascii(key[:_MAX_SHOWN_CHARACTERS])


def _join(path: str, key: str) -> str:
    return f"{path}.{_key(key)}" if path else _key(key)


def _nearest(text: str, known: Iterable[str]) -> str | None:
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(text.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


class Reader:
    """Puts the environment into a document, hands out its sections, and collects in `problems` what is wrong.

    A document that came by another way than a file is read without `resolve`: `section("", document, …)` is its root.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._as_written: dict[str, str] = {}

    def problem(self, path: str, text: str) -> None:
        """Report what is wrong at `path`."""
        self.problems.append(f"{path}: {text}")

    def show(self, path: str, value: object) -> str:
        """`value` for a message; what came from the environment is shown as the file has it."""
        if isinstance(value, dict | list):
            return "that"
        text = self._as_written.get(path, value)
        shown = repr(text) if isinstance(text, str) else json.dumps(text)
        return shown if len(shown) <= _MAX_SHOWN_CHARACTERS else f"{shown[:_MAX_SHOWN_CHARACTERS]}…"

    def resolve(self, document: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
        """A copy with `environ` in its texts.

        A mapping set is copied as it is: there `${First Name}` is how Data Prep writes a field's name.
        """
        return {
            key: self._resolve(value, _key(key), None if key == "mappingSet" and isinstance(value, dict) else environ)
            for key, value in document.items()
        }

    def _resolve(self, value: Any, path: str, environ: Mapping[str, str] | None, depth: int = 1) -> Any:  # noqa: ANN401
        if depth > _MAX_DEPTH:
            self.problem(path[:_MAX_SHOWN_CHARACTERS], f"nested more than {_MAX_DEPTH} deep")
            return _UNUSABLE
        if isinstance(value, dict):
            return {key: self._resolve(item, _join(path, key), environ, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self._resolve(item, f"{path}[{index}]", environ, depth + 1) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        text = value if environ is None else self._substitute(value, path, environ)
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            self.problem(path, "is not valid Unicode")
            return _UNUSABLE
        return _UNUSABLE if text is None else text

    def _substitute(self, text: str, path: str, environ: Mapping[str, str]) -> str | None:
        reported = len(self.problems)

        def replacement(match: re.Match[str]) -> str:
            if match[1] is None:
                return "${"
            body = _REFERENCE_BODY.fullmatch(match[1]) if match[2] else None
            if body is None or "${" in match[1]:
                self.problem(path, "takes ${NAME} or ${NAME:-default}; the two characters themselves are written $${")
                return ""
            name, default = body[1], body[2]
            if default is not None:
                return environ.get(name) or default
            if name not in environ:
                self.problem(path, f"the environment variable {name} is not set")
            return environ.get(name, "")

        result = _REFERENCE.sub(replacement, text)
        if result != text:
            self._as_written[path] = text
        return result if len(self.problems) == reported else None

    def section(self, path: str, value: object, allowed: Collection[str], required: Iterable[str] = ()) -> Section:
        """The keys and values at `path`, checked for keys that are unknown or missing.

        Where there is nothing to read, the section is empty, and asking it for a value reports nothing more.
        """
        if not isinstance(value, dict):
            if value is not None and value is not _UNUSABLE:
                self.problem(path, f"must have keys below it: {', '.join(allowed)}")
            return Section(self, path, {})
        for key in value:
            if key not in allowed:
                self._unknown_key(path, key, allowed)
        known = {key: item for key, item in value.items() if key in allowed and item is not None}
        for key in required:
            if key not in known:
                self.problem(_join(path, key), "is missing")
        return Section(self, path, known)

    def _unknown_key(self, path: str, key: str, allowed: Collection[str]) -> None:
        nearest = _nearest(key, allowed)
        if nearest:
            self.problem(_join(path, key), f"there is no such key; did you mean {nearest}?")
        elif path == _CREDENTIALS_PATH:
            # In YAML, {password: abc,def} has a key def: what is behind the comma may be half a password.
            self.problem(path, f"the keys are {', '.join(allowed)}; a text with a comma in it needs quotes")
        else:
            self.problem(_join(path, key), f"there is no such key; the keys are {', '.join(allowed)}")


class Section:
    """The values below one path. Each getter gives None for what is left out, and, once reported, for what is wrong."""

    def __init__(self, reader: Reader, path: str, values: dict[str, Any]) -> None:
        self._reader = reader
        self._path = path
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def problem(self, key: str, text: str) -> None:
        self._reader.problem(_join(self._path, key), text)

    def show(self, key: str) -> str:
        return self._reader.show(_join(self._path, key), self._values[key])

    def value(self, key: str) -> Any:  # noqa: ANN401  # not checked yet
        value = self._values.get(key)
        return None if value is _UNUSABLE else value

    def section(self, key: str, allowed: Collection[str], required: Iterable[str] = ()) -> Section:
        return self._reader.section(_join(self._path, key), self._values.get(key), allowed, required)

    def sections(self, key: str, allowed: Collection[str]) -> None:
        """Check a list of sections that nothing is read from."""
        value = self.value(key)
        if value is not None and not isinstance(value, list):
            self.problem(key, "must be a list")
            return
        for index, item in enumerate(value or ()):
            self._reader.section(f"{_join(self._path, key)}[{index}]", item, allowed)

    def text(self, key: str, *, may_be_empty: bool = False) -> str | None:
        value = self.value(key)
        if value is None or (isinstance(value, str) and (value or may_be_empty)):
            return value
        self.problem(key, "must not be empty" if value == "" else "must be a text; put it in quotes")
        return None

    def matching(self, key: str, pattern: re.Pattern[str], kind: str) -> str | None:
        """A text, or a number that is written like one, which is `kind`."""
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, str | int) and not isinstance(value, bool) and pattern.fullmatch(str(value)):
            return str(value)
        self.problem(key, f"{self.show(key)} is not {kind}")
        return None

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, or one text with commas between them. No text twice."""
        value = self.value(key)
        if value is None:
            return ()
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        if isinstance(items, list) and _UNUSABLE in items:
            return ()
        if not isinstance(items, list) or not items or not all(isinstance(item, str) and item for item in items):
            self.problem(key, "must be a list of one or more texts, or one text with commas between")
            return ()
        return tuple(dict.fromkeys(items))

    def choice(self, key: str, choices: Collection[str]) -> str | None:
        value = self.value(key)
        if value is None or (isinstance(value, str) and value in choices):
            return value
        nearest = _nearest(value, choices) if isinstance(value, str) else None
        advice = f"did you mean {nearest}?" if nearest and len(choices) > 1 else f"it takes {' or '.join(choices)}"
        self.problem(key, f"{self.show(key)} is not taken; {advice}")
        return None

    def boolean(self, key: str) -> bool | None:
        value = self.value(key)
        if value is None or isinstance(value, bool):
            return value
        if value in {"true", "false"}:
            return bool(value == "true")
        self.problem(key, f"{self.show(key)} is neither true nor false")
        return None

    def number(self, key: str) -> int | float | None:
        """A number, or a text that is one: Adobe's tutorials write numbers both ways."""
        value = self.value(key)
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value) if "." in value else int(value)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)):
            return value
        self.problem(key, f"{self.show(key)} is not a number")
        return None

    def integer(self, key: str, minimum: int, maximum: int | None = None) -> int | None:
        number = self.number(key)
        if number is None:
            return None
        if number == int(number) and minimum <= number and (maximum is None or number <= maximum):
            return int(number)
        span = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        self.problem(key, f"{self.show(key)} is not a whole number {span}")
        return None


# The sections


def _check_labels(section: Section, spec_key: str) -> None:
    """What a request body also holds, for Adobe's sake: nothing follows from it here."""
    section.text("name", may_be_empty=True)
    section.text("description", may_be_empty=True)
    section.section(spec_key, _SPEC_KEYS)


def read_source(root: Section, settings: Settings, *, allow_loopback: bool) -> Source | None:
    """The source that the sections `baseConnection` and `sourceConnection` of `root` make together.

    What is wrong is reported to the reader of `root`; None only after such a report. `allow_loopback`: a loopback host
    may be asked.
    """
    base = root.section("baseConnection", ("name", "description", "connectionSpec", "auth"), required=("auth",))
    _check_labels(base, "connectionSpec")
    auth = base.section("auth", ("specName", "params"), required=("specName", "params"))
    auth.choice("specName", ("Basic Authentication",))
    access = auth.section("params", ("username", "password", "host", "region"), required=("username",))
    credentials = _read_credentials(access)
    base_url = _read_base_url(access, settings, allow_loopback=allow_loopback)

    connection = root.section(
        "sourceConnection",
        ("name", "description", "baseConnectionId", "connectionSpec", "data", "params"),
        required=("data", "params"),
    )
    _check_labels(connection, "connectionSpec")
    connection.text("baseConnectionId")
    connection.section("data", ("format",), required=("format",)).choice("format", ("json",))
    params = connection.section(
        "params",
        ("projectId", "timezone", "events", "where", "timeBasis", "lookbackDays", "deduplicate"),
        required=("projectId", "timezone"),
    )
    project_id = params.matching("projectId", _PROJECT_ID, "a project id, which is digits")
    timezone = _read_timezone(params)
    time_basis = params.choice("timeBasis", ("utc", "project")) or "utc"
    events = params.texts("events")
    where = params.text("where")
    lookback_days = params.integer("lookbackDays", 0, _MAX_LOOKBACK_DAYS)
    deduplicate = params.choice("deduplicate", ("mixpanel", "none")) or "mixpanel"
    if credentials is None or base_url is None or project_id is None or timezone is None:
        return None
    return Source(
        base_url=base_url,
        credentials=credentials,
        project_id=project_id,
        timezone=timezone,
        time_basis=cast("TimeBasis", time_basis),
        events=events,
        where=where,
        lookback_days=_DEFAULT_LOOKBACK_DAYS if lookback_days is None else lookback_days,
        deduplicate=cast("Deduplication", deduplicate),
    )


def _read_credentials(access: Section) -> Credentials | None:
    username = access.text("username")
    password = access.text("password", may_be_empty=True)
    if username and (":" in username or not username.isprintable()):
        access.problem("username", "a colon or a control character cannot be sent as a user name (RFC 7617)")
        return None
    return Credentials(username, Secret(password or "")) if username else None


def _read_base_url(access: Section, settings: Settings, *, allow_loopback: bool) -> str | None:
    region = access.choice("region", EXPORT_URLS)
    host = access.text("host")
    if "host" not in access:
        return EXPORT_URLS[region or "us"]
    if "region" in access:
        access.problem("host", "give host or region, not both")
    if host is None:
        return None
    try:
        return check_export_host(host, settings.export_hosts, allow_loopback=allow_loopback)
    except ConfigurationError as error:
        access.problem("host", error.message)
        return None


def _read_timezone(params: Section) -> ZoneInfo | None:
    name = params.text("timezone")
    if name is None:
        return None
    try:
        return parse_timezone(name)
    except ConfigurationError as error:
        params.problem("timezone", error.message.replace(repr(name), params.show("timezone")))
        return None


def read_target(root: Section) -> Target | None:
    """The target in the section `targetConnection` of `root`; what is wrong is reported, None only after a report."""
    connection = root.section(
        "targetConnection", ("name", "description", "connectionSpec", "data", "params"), required=("data", "params")
    )
    _check_labels(connection, "connectionSpec")
    connection.section("data", ("format",), required=("format",)).choice("format", ("delta",))
    params = connection.section("params", ("dataSetId",), required=("dataSetId",))
    dataset_id = params.matching("dataSetId", _DATASET_ID, "a table name: up to 64 of A-Z, a-z, 0-9, _ and -")
    if dataset_id is None:
        return None
    target = Target(dataset_id)
    if dataset_id.lower().endswith("_rejects"):
        params.problem("dataSetId", "a name that ends in _rejects is the table of another data set's rejects")
    return target


def _read_mapping_set(root: Section, flow_path: Path) -> dict[str, Any] | Path | None:
    value = root.value("mappingSet")
    if value is None or isinstance(value, dict):
        return value
    name = root.text("mappingSet")
    if name is None:
        return None
    places = []
    for folder in (flow_path.parent.absolute(), Path.cwd()):
        place = folder / name
        try:
            if place.is_dir():
                place /= "mapping.json"
            if place.is_file():
                return place
        except OSError as error:
            root.problem("mappingSet", f"{place} cannot be read: {error.strerror}")
            return None
        places.append(str(place))
    root.problem("mappingSet", f"there is no file {' and none '.join(dict.fromkeys(places))}")
    return None


def read_flow(root: Section) -> tuple[str, str, Schedule | None, Options]:
    """Name, description, schedule and options in the section `flow` of `root`.

    What is wrong is reported; the values mean something only where nothing was.
    """
    flow = root.section(
        "flow",
        (
            "name",
            "description",
            "flowSpec",
            "sourceConnectionIds",
            "targetConnectionIds",
            "transformations",
            "scheduleParams",
            "options",
        ),
        required=("name",),
    )
    flow.section("flowSpec", _SPEC_KEYS)
    flow.texts("sourceConnectionIds")
    flow.texts("targetConnectionIds")
    flow.sections("transformations", ("name", "params"))
    name = flow.text("name") or ""
    if name and (len(name) > _MAX_NAME_CHARACTERS or not name.isprintable() or name != name.strip()):
        flow.problem("name", f"takes up to {_MAX_NAME_CHARACTERS} printable characters, without spaces around them")
    options = flow.section("options", ("partialIngestionPercent", "errorDiagnosticsEnabled"))
    percent = options.number("partialIngestionPercent")
    if percent is not None and not 0 < percent <= 100:
        options.problem(
            "partialIngestionPercent", f"{options.show('partialIngestionPercent')} is not above 0 and up to 100"
        )
    diagnostics = options.boolean("errorDiagnosticsEnabled")
    return (
        name,
        flow.text("description", may_be_empty=True) or "",
        _read_schedule(flow),
        Options(percent, True if diagnostics is None else diagnostics),
    )


def _read_schedule(flow: Section) -> Schedule | None:
    """`scheduleParams` by the rules of the flow spec RestStorageToAEP.

    They differ from the tutorial's text, which asks for an interval of 15 or more at every frequency and then changes
    one to days.
    """
    params = flow.section(
        "scheduleParams", ("startTime", "frequency", "interval", "backfill"), required=("startTime", "frequency")
    )
    start_time = params.integer("startTime", 0)
    if start_time is not None and start_time >= _MILLISECONDS_FROM:
        params.problem("startTime", f"{params.show('startTime')} looks like milliseconds; it takes seconds since 1970")
    frequency = params.choice("frequency", get_args(Frequency))
    interval = params.integer("interval", _MIN_INTERVAL_MINUTES if frequency == "minute" else 1, _MAX_INTERVAL)
    backfill = params.boolean("backfill")
    if frequency == "once":
        for key in ("interval", "backfill"):
            if key in params:
                params.problem(key, "must be left out where frequency is once")
    elif frequency is not None and "interval" not in params:
        params.problem("interval", f"is missing; how often, counted in frequency {frequency}")
    if start_time is None or frequency is None:
        return None
    return Schedule(start_time, cast("Frequency", frequency), interval, backfill)
