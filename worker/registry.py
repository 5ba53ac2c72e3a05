"""The objects of the API: connections, flows, mapping sets and what they refer to, and the rules that bind them.

Every door and the flow files change objects here only. A document is a body of Adobe's API (Flow Service, Data Prep,
Schema Registry, Catalog) with `state` where the object has one, and holds no secret: of `auth.params` only the user
name, host and region stay readable. Everything else there, and the user name where it is a project's secret, is sealed,
and `***` stands in its place. A document that comes back with `***` keeps what is sealed, as long as the host stays the
same: else whoever may change a connection, but not read it, could have the secret sent elsewhere.

Numbers of refusals are those of the Flow Service's table (`FLOW-`) and of its sources provider (`CONNECTOR-`).
"""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from uuid import UUID, uuid4, uuid5

from worker.errors import (
    ConfigurationError,
    EtagConflictError,
    ObjectExistsError,
    ObjectMissingError,
    WorkerError,
)
from worker.flow_file import (
    EXPORT_URLS,
    Reader,
    read_flow,
    read_source,
    read_target,
)
from worker.mapping.mapper import compile_mapper
from worker.mapping.mapping_set import load_mapping_set, parse_mapping_set
from worker.mapping.xdm import XdmSchema
from worker.model import Flow, flow_id_of
from worker.service import PreparedFlow

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from worker.flow_file import FlowFile
    from worker.mapping.mapper import Mapper
    from worker.model import Options, Schedule, Source, Target
    from worker.settings import Settings
    from worker.store import Store, StoredObject

CONNECTIONS: Final = "connections"
SOURCES: Final = "sourceConnections"
TARGETS: Final = "targetConnections"
FLOWS: Final = "flows"
MAPPING_SETS: Final = "mappingSets"
SCHEMAS: Final = "schemas"
DATASETS: Final = "dataSets"

OLD_MAPPING_SETS: Final = "mappingSetVersions"
"""What mapping sets were before they were replaced, under `{id}_{version}`: a flow names the version it uses."""

MIXPANEL_SPEC: Final = "fd2c8ff3-1de0-4f6b-8fa8-4264784870eb"
DATA_LAKE_SPEC: Final = "c604ff05-7f1a-43c0-8e18-33bf874cb11c"
FLOW_SPEC: Final = "6499120c-0b15-42dc-936e-847ea3c24d72"

MASK: Final = "***"
ENABLED: Final = "enabled"
DISABLED: Final = "disabled"

_OBJECT_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_STATUS = re.compile(r"-([45][0-9]{2})$")
_READABLE = ("username", "host", "region")
_BASIC = "Basic Authentication"
_TARGET_FORMATS = ("json", "delta", "parquet", "parquet_xdm")
_IDLE_SCHEDULE_KEYS = ("foldernameTemplate", "timeUnit", "exportMode")
"""aepp sends these with every schedule; they speak of exports of data sets."""
_MOST_NAME_CHARACTERS = 200
_MOST_ATTEMPTS = 20
_MOST_REFERENCES = 20
"""How many schemas may stand within each other."""
_VERSION = re.compile(r"[0-9]{1,9}")

_EXPERIENCE_EVENT: Final = {
    "type": "object",
    "properties": {
        "_id": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
        "eventType": {"type": "string"},
        "eventMergeId": {"type": "string"},
        "producedBy": {"type": "string"},
    },
}
_STANDARD_SCHEMAS: Final = {
    "https://ns.adobe.com/xdm/context/experienceevent": _EXPERIENCE_EVENT,
    "https://ns.adobe.com/xdm/data/time-series": _EXPERIENCE_EVENT,
    "https://ns.adobe.com/xdm/data/record": {"type": "object"},
    "https://ns.adobe.com/xdm/context/profile": {"type": "object"},
}
"""The classes that a schema of events names, as far as they give fields. Nothing in them is required: the tutorial's
own mapping sets neither `_id` nor `timestamp` (facts, 2)."""


class SecretBox(Protocol):
    """Seals secrets for the store."""

    def seal(self, secrets: Mapping[str, str]) -> bytes:
        """The secrets as bytes that tell nothing without the key."""

    def open(self, sealed: bytes) -> dict[str, str]:
        """What `seal` was given. Raises ConfigurationError."""


class RefusedError(WorkerError):
    """The request asks for something that the rules do not allow; nothing was changed.

    `code` ends with the status of the answer. `problems` are all that is wrong, where that is more than one thing.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        title: str | None = None,
        kind: str | None = None,
        object_id: str | None = None,
        problems: Collection[str] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        found = _STATUS.search(code)
        assert found is not None, code
        self.status = int(found[1])
        self.title = title or ("Bad Request" if code.startswith("CONNECTOR-") else "Invalid request")
        self.kind = kind
        self.object_id = object_id
        self.problems = tuple(problems)


class FlowEntry(NamedTuple):
    """What the scheduler has to know of a flow. `schedule` is None for a flow that runs only when asked to."""

    flow_id: str
    name: str
    state: str
    schedule: Schedule | None


class _FlowBody(NamedTuple):
    """What a flow's document says, apart from what it refers to."""

    name: str
    description: str
    schedule: Schedule | None
    options: Options


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a flow refers to. `mapping_set` is the version that it names."""

    source: StoredObject
    base: StoredObject
    target: StoredObject
    mapping_set: StoredObject


def compile_document(document: Mapping[str, Any], schema: XdmSchema | None) -> Mapper:
    """A mapping set's document, compiled. Raises ConfigurationError."""
    return compile_mapper(parse_mapping_set(dict(document)), schema)


class Registry:
    """All objects, over a store that several processes may share.

    Methods block on the store and may be called from any thread. Those that change an object give it back as stored.
    Refusals are RefusedError; the store's own troubles are StoreError. `hooks` checks the bodies of kinds that belong
    to other doors (`schemas`, `dataSets`): each takes a body and gives the document to store, or raises.
    `allow_loopback` is False where the service is reachable from other machines.
    """

    def __init__(
        self,
        store: Store,
        box: SecretBox,
        settings: Settings,
        *,
        allow_loopback: bool,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._box = box
        self._settings = settings
        self._allow_loopback = allow_loopback
        self._clock = clock
        self.hooks: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
        self._entries: dict[str, tuple[str, FlowEntry]] = {}

    # Any kind

    def find(self, kind: str, object_id: str) -> StoredObject | None:
        """The object, or None; also for what cannot be an id."""
        return self._store.object(kind, object_id) if _OBJECT_ID.fullmatch(object_id) else None

    def get(self, kind: str, object_id: str) -> StoredObject:
        """The object. Raises RefusedError (404)."""
        found = self.find(kind, object_id)
        if found is None:
            raise _missing(kind, object_id)
        return found

    def list(self, kind: str, object_ids: Collection[str] | None = None) -> list[StoredObject]:
        """All objects of a kind, or those of these ids that are here, oldest first."""
        return self._store.objects(kind, object_ids)

    def create(self, kind: str, body: Mapping[str, Any], *, object_id: str | None = None) -> StoredObject:
        """Check `body` and keep it as a new object.

        Without `object_id` it gets one: a flow that of its name, as long as that is free, so that a flow that was
        deleted, or lost with the state, and is made again still owns its table; a mapping set 32 hexadecimal digits;
        all others a UUID.
        """
        if kind == FLOWS:
            self._check_flow_request(body)
        document, secrets = self._checked(kind, dict(body), None, object_id)
        if kind == MAPPING_SETS:
            document["version"] = 0
        sealed = self._box.seal(secrets) if secrets else None
        for new_id in self._ids(kind, document, object_id):
            try:
                return self._store.create_object(kind, new_id, document, sealed, self._clock())
            except ObjectExistsError:
                continue
        raise RefusedError(
            "FLOW-1100-409", f"There is a {kind} resource {object_id} already.", title="Conflict", kind=kind
        )

    def replace(self, kind: str, object_id: str, body: Mapping[str, Any], *, etag: str | None) -> StoredObject:
        """Check `body` and put it in place of the object's document, if its etag is still `etag` (None: whatever).

        Raises RefusedError: 404, 412, and 400 for a change that is not allowed any more. A mapping set gets the next
        version, and the old one stays for the flows that name it.
        """
        for _ in range(_MOST_ATTEMPTS):
            known = self.get(kind, object_id)
            if etag is not None and known.etag != etag:
                raise _stale(known, etag)
            document, secrets = self._checked(kind, dict(body), known, object_id)
            if kind == MAPPING_SETS:
                document["version"] = self._keep_version(known) + 1
            try:
                return self._save(known, document, secrets)
            except EtagConflictError:
                continue
            except ObjectMissingError:
                raise _missing(kind, object_id) from None
        raise _stale(self.get(kind, object_id), etag or "*")

    def delete(self, kind: str, object_id: str, *, etag: str | None = None) -> None:
        """Remove the object, if its etag is still `etag` (None: whatever), and unless others need it.

        Raises RefusedError: 404, 412, 1418-400, 1447-400.
        """
        for _ in range(_MOST_ATTEMPTS):
            known = self.get(kind, object_id)
            if etag is not None and known.etag != etag:
                raise _stale(known, etag)
            self._check_unused(known)
            try:
                found = self._store.delete_object(kind, object_id, etag=known.etag)
            except EtagConflictError:
                continue
            if not found:
                raise _missing(kind, object_id)
            if kind == MAPPING_SETS:
                for version in range(_version_of(known.document)):
                    self._store.delete_object(OLD_MAPPING_SETS, f"{object_id}_{version}")
            return
        raise _stale(self.get(kind, object_id), etag or "*")

    def mapping_set(self, mapping_id: str, version: int | None) -> StoredObject:
        """A mapping set in its newest version (None) or an older one. Raises RefusedError (404)."""
        newest = self.get(MAPPING_SETS, mapping_id)
        if version in (None, _version_of(newest.document)):
            return newest
        old = self.find(OLD_MAPPING_SETS, f"{mapping_id}_{version}")
        if old is None:
            raise _missing(MAPPING_SETS, mapping_id)
        return old

    # Flows

    def flows(self) -> Sequence[FlowEntry]:
        """All flows, for the scheduler. A schedule is read again only after its flow was changed."""
        entries: dict[str, tuple[str, FlowEntry]] = {}
        for stored in self._store.objects(FLOWS):
            known = self._entries.get(stored.id)
            if known is None or known[0] != stored.etag:
                document = stored.document
                try:
                    schedule = _read_flow_document(document).schedule
                except RefusedError:
                    # kept by a version with other rules: the other flows go on
                    schedule = None
                known = stored.etag, FlowEntry(stored.id, document["name"], document["state"], schedule)
            entries[stored.id] = known
        self._entries = entries
        return [entry for _, entry in entries.values()]

    def set_state(self, flow_id: str, state: str, etag: str | None = None) -> StoredObject:
        """Enable or disable a flow. One that is in this state already stays as it is, with its etag."""
        assert state in (ENABLED, DISABLED), state
        for _ in range(_MOST_ATTEMPTS):
            known = self.get(FLOWS, flow_id)
            if etag is not None and known.etag != etag:
                raise _stale(known, etag)
            if known.document["state"] == state:
                return known
            try:
                return self._save(known, {**known.document, "state": state}, {})
            except EtagConflictError:
                continue
            except ObjectMissingError:
                break
        raise _missing(FLOWS, flow_id)

    def prepared(self, flow_id: str) -> PreparedFlow:
        """The flow, with everything that it refers to, ready to be run. Raises ConfigurationError when it is not."""
        try:
            flow = self.get(FLOWS, flow_id)
            return self._prepared(flow, self._parts(flow.document))
        except RefusedError as error:
            raise ConfigurationError(f"The flow {flow_id} cannot be run: {error.message}") from error

    def source_of(self, connection_id: str, params: Mapping[str, Any] | None) -> Source:
        """The base connection with the parameters of a source connection.

        Without them, those of the oldest source connection that uses it count; where there is none either, the project
        id is empty. Raises RefusedError.
        """
        base = self.get(CONNECTIONS, connection_id)
        if params is None:
            found = (one for one in self._store.objects(SOURCES) if one.document["baseConnectionId"] == connection_id)
            params = next((one.document["params"] for one in found), None)
        source = self._read_source(
            self._opened(base),
            {"params": {"projectId": "0", "timezone": "UTC"} if params is None else dict(params)},
            "sourceParams",
        )
        return source if params is not None else replace(source, project_id="")

    def apply_file(self, file: FlowFile) -> None:
        """Make the objects that a flow file describes, or bring them to what it says now.

        Their ids follow from the flow's name, so that applying a file again, here or on another replica, changes
        nothing. Whether the flow is enabled is not the file's to say. Raises RefusedError and ConfigurationError.
        """
        namespace = UUID(file.flow_id)
        ids = {kind: str(uuid5(namespace, kind)) for kind in (CONNECTIONS, SOURCES, TARGETS, SCHEMAS)}
        mapping_id = uuid5(namespace, MAPPING_SETS).hex
        schema = None
        if file.mapping_path is not None:
            mapping_set, schema = load_mapping_set(file.mapping_path)
            mapping_document = mapping_set.document
        else:
            mapping_document = dict(file.mapping_document or {})
        compile_document(mapping_document, schema)
        self._check_dataset_free(file.target.dataset_id, file.flow_id)
        self._apply_schema(file, ids[SCHEMAS], schema)

        source = file.source
        secrets = {"password": source.credentials.password.reveal()} if source.credentials.password else {}
        access: dict[str, Any] = {"username": source.credentials.username, "host": source.base_url, **secrets}
        written = file.definition
        self._upsert(
            CONNECTIONS,
            ids[CONNECTIONS],
            {
                **_labels(written.get("baseConnection"), f"{file.name}: base connection"),
                "connectionSpec": {"id": MIXPANEL_SPEC, "version": "1.0"},
                "auth": {"specName": _BASIC, "params": access},
            },
        )
        params: dict[str, Any] = {
            "projectId": source.project_id,
            "timezone": source.timezone.key,
            "timeBasis": source.time_basis,
            "lookbackDays": source.lookback_days,
            "deduplicate": source.deduplicate,
        }
        if source.events:
            params["events"] = list(source.events)
        if source.where is not None:
            params["where"] = source.where
        self._upsert(
            SOURCES,
            ids[SOURCES],
            {
                **_labels(written.get("sourceConnection"), f"{file.name}: source connection"),
                "baseConnectionId": ids[CONNECTIONS],
                "connectionSpec": {"id": MIXPANEL_SPEC, "version": "1.0"},
                "data": {"format": "json"},
                "params": params,
            },
        )
        self._upsert(
            TARGETS,
            ids[TARGETS],
            {
                **_labels(written.get("targetConnection"), f"{file.name}: target connection"),
                "connectionSpec": {"id": DATA_LAKE_SPEC, "version": "1.0"},
                "data": {"format": file.target.format},
                "params": {"dataSetId": file.target.dataset_id},
            },
        )
        mapping = self._upsert(MAPPING_SETS, mapping_id, mapping_document)
        flow: dict[str, Any] = {
            "name": file.name,
            "description": file.description,
            "flowSpec": {"id": FLOW_SPEC, "version": "1.0"},
            "sourceConnectionIds": [ids[SOURCES]],
            "targetConnectionIds": [ids[TARGETS]],
            "transformations": [
                {
                    "name": "Mapping",
                    "params": {"mappingId": mapping_id, "mappingVersion": str(_version_of(mapping.document))},
                }
            ],
            "options": _options_document(file.options),
        }
        if file.schedule is not None:
            flow["scheduleParams"] = _schedule_document(file.schedule)
        self._upsert(FLOWS, file.flow_id, flow)

    # Flow files

    def _apply_schema(self, file: FlowFile, schema_id: str, schema: XdmSchema | None) -> None:
        dataset_id = file.target.dataset_id
        known = self._store.object(DATASETS, dataset_id)
        if schema is not None:
            self._upsert_plain(SCHEMAS, schema_id, {"title": file.name, **schema.document})
            content_type = "application/vnd.adobe.xed-full+json;version=1"
            dataset = {"name": dataset_id, "schemaRef": {"id": schema_id, "contentType": content_type}}
            self._upsert_plain(DATASETS, dataset_id, {**(known.document if known else {}), **dataset})
        elif known is not None and _reference(known.document) == schema_id:
            self._store.delete_object(DATASETS, dataset_id)
            self._store.delete_object(SCHEMAS, schema_id)

    def _upsert_plain(self, kind: str, object_id: str, document: dict[str, Any]) -> None:
        known = self._store.object(kind, object_id)
        if known is None:
            self._store.create_object(kind, object_id, document, None, self._clock())
        elif known.document != document:
            self._store.replace_object(kind, object_id, document, None, self._clock(), etag=None)

    def _upsert(self, kind: str, object_id: str, body: dict[str, Any]) -> StoredObject:
        """The object with this body; it is written only if it has another one."""
        for _ in range(_MOST_ATTEMPTS):
            known = self._store.object(kind, object_id)
            state = {} if kind == MAPPING_SETS else {"state": known.document["state"] if known else ENABLED}
            # a file says everything anew, also what may not be changed by a request
            document, secrets = self._checked(kind, {**body, **state}, None, object_id)
            if kind == MAPPING_SETS:
                document["version"] = _version_of(known.document) if known else 0
            try:
                if known is None:
                    sealed = self._box.seal(secrets) if secrets else None
                    return self._store.create_object(kind, object_id, document, sealed, self._clock())
                if known.document == document and self._has_secrets(known, secrets):
                    return known
                if kind == MAPPING_SETS:
                    document["version"] = self._keep_version(known) + 1
                return self._save(known, document, secrets)
            except (ObjectExistsError, ObjectMissingError, EtagConflictError):
                # another replica applies the same file
                continue
        raise ConfigurationError(f"The {kind} of the flow file are being changed all the time.")

    # Writing

    def _ids(self, kind: str, document: Mapping[str, Any], object_id: str | None) -> Iterable[str]:
        if object_id is not None:
            if _OBJECT_ID.fullmatch(object_id):
                yield object_id
            return
        if kind == FLOWS:
            yield flow_id_of(document["name"])
        for _ in range(_MOST_ATTEMPTS):
            new_id = uuid4()
            yield new_id.hex if kind == MAPPING_SETS else str(new_id)

    def _save(self, known: StoredObject, document: Mapping[str, Any], secrets: Mapping[str, str]) -> StoredObject:
        if secrets and self._has_secrets(known, secrets):
            sealed = known.sealed
        else:
            sealed = self._box.seal(secrets) if secrets else None
        return self._store.replace_object(known.kind, known.id, document, sealed, self._clock(), etag=known.etag)

    def _keep_version(self, known: StoredObject) -> int:
        """Keep what the mapping set is now beside what it becomes; give its version."""
        version = _version_of(known.document)
        old_id = f"{known.id}_{version}"
        try:
            self._store.create_object(OLD_MAPPING_SETS, old_id, known.document, None, self._clock())
        except ObjectExistsError:
            # left by an attempt that lost: only a winner moves on to the next version
            self._store.replace_object(OLD_MAPPING_SETS, old_id, known.document, None, self._clock(), etag=None)
        return version

    def _check_unused(self, known: StoredObject) -> None:
        match known.kind:
            case "connections":
                sources = {
                    one.id for one in self._store.objects(SOURCES) if one.document["baseConnectionId"] == known.id
                }
                if any(sources & set(flow.document["sourceConnectionIds"]) for flow in self._store.objects(FLOWS)):
                    raise RefusedError(
                        "FLOW-1418-400",
                        f"The base connection with the ID {known.id} cannot be deleted because the base connection is "
                        "being used in one or more flows. Please ensure that corresponding flows are deleted before "
                        "deleting a base connection.",
                    )
                return
            case "sourceConnections" | "targetConnections" | "mappingSets" as kind:
                used = any(known.id in _references(flow.document, kind) for flow in self._store.objects(FLOWS))
            case "dataSets":
                targets = {
                    one.id for one in self._store.objects(TARGETS) if one.document["params"]["dataSetId"] == known.id
                }
                used = any(targets & set(flow.document["targetConnectionIds"]) for flow in self._store.objects(FLOWS))
            case "schemas":
                used = any(self._is_of(one.document, known) for one in self._store.objects(DATASETS))
            case _:
                return
        if used:
            raise RefusedError("FLOW-1447-400", f"Found active flows containing id {known.id}.")

    # Checking

    def _checked(
        self, kind: str, body: dict[str, Any], known: StoredObject | None, object_id: str | None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The document to keep for `body`, and the secrets that were in it.

        `known` is the object as it is, where the change of it is to be judged; `object_id` the id, where it has one.
        """
        match kind:
            case "connections":
                return self._checked_connection(body, known)
            case "sourceConnections":
                return self._checked_source(body, known), {}
            case "targetConnections":
                return self._checked_target(body, known), {}
            case "flows":
                return self._checked_flow(body, known, object_id), {}
            case "mappingSets":
                return _checked_mapping_set(body), {}
        hook = self.hooks.get(kind)
        return (hook(body) if hook else body), {}

    def _checked_connection(
        self, body: dict[str, Any], known: StoredObject | None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        _check_spec(body, "connectionSpec", (MIXPANEL_SPEC,), known)
        auth = _section(body, "auth")
        params = _section(auth, "params", "auth.params")
        if isinstance(auth.get("specName"), str) and auth["specName"] != _BASIC:
            raise RefusedError(
                "FLOW-1415-400",
                f"The auth spec '{_shown(auth['specName'])}' could not be found for the connection spec ID "
                f"{MIXPANEL_SPEC}.",
            )
        opened = self._unmasked(params, known)
        document = _with_state(body, known)
        self._read_source(
            {**document, "auth": {**auth, "params": opened}}, {"params": {"projectId": "0", "timezone": "UTC"}}, ""
        )
        readable = _READABLE if opened.get("password") else _READABLE[1:]
        others = {key: value for key, value in opened.items() if key not in readable}
        if not all(isinstance(value, str) for value in others.values()):
            raise _wrong(["auth.params: must be texts"])
        secrets = {key: value for key, value in others.items() if value}
        masked = {key: MASK if key in secrets else value for key, value in opened.items()}
        document["auth"] = {**auth, "params": masked}
        return document, secrets

    def _unmasked(self, params: dict[str, Any], known: StoredObject | None) -> dict[str, Any]:
        """The parameters with the sealed secrets where `***` stands for them."""
        masked = {key for key, value in params.items() if value == MASK}
        if not masked:
            return dict(params)
        sealed = self._secrets(known) if known is not None else {}
        kept = masked & sealed.keys()
        if known is None or kept != masked:
            raise _wrong([f"auth.params: {MASK} stands for a secret that is not known; give the secret"])
        if _base_url(params) != _base_url(known.document["auth"]["params"]):
            raise _wrong(["auth.params: give the credentials too where the host changes"])
        if "username" in kept and params.get("password"):
            # it was a project's secret, and would become readable as the name of a user
            raise _wrong(["auth.params.username: is needed where a password is given"])
        return {key: sealed[key] if key in kept else value for key, value in params.items()}

    def _checked_source(self, body: dict[str, Any], known: StoredObject | None) -> dict[str, Any]:
        _check_spec(body, "connectionSpec", (MIXPANEL_SPEC,), known)
        base_id = body.get("baseConnectionId")
        if not isinstance(base_id, str) or not base_id:
            raise _provider(
                "1320-400",
                "The baseConnectionId cannot be null or empty. Please provide valid baseConnectionId and try again.",
            )
        if self.find(CONNECTIONS, base_id) is None:
            raise _unknown_reference(CONNECTIONS, base_id)
        document = _with_state(body, known)
        wanted = _section(body, "data").get("format")
        if isinstance(wanted, str) and wanted != "json":
            raise _provider(
                "1327-400",
                f"The format of source data supplied={_shown(wanted)} in SourceConnection is not supported. "
                "The allowed values are: json. Please provide allowed values and try again.",
            )
        self._read_source({"auth": {"specName": _BASIC, "params": {"username": "x"}}}, document, "")
        return document

    def _checked_target(self, body: dict[str, Any], known: StoredObject | None) -> dict[str, Any]:
        try:
            _check_spec(body, "connectionSpec", (DATA_LAKE_SPEC, MIXPANEL_SPEC), known)
        except RefusedError as error:
            if error.code != "FLOW-1413-400":
                raise
            raise _provider(
                "1307-400",
                f"The target connection spec ID is not valid={_shown(body['connectionSpec'].get('id'))}. "
                f"The allowed value is: `{DATA_LAKE_SPEC}`.",
            ) from None
        data = _section(body, "data")
        if data.get("format") not in _TARGET_FORMATS:
            raise _wrong([f"data.format: it takes {' or '.join(_TARGET_FORMATS)}"])
        if not _section(body, "params").get("dataSetId"):
            raise _provider(
                "1325-400",
                "The dataSetId param cannot be null or empty in target connection. "
                "Please provide valid dataSetId param and try again.",
            )
        document = _with_state(body, known)
        # a name of digits may come as a number
        document["params"] = {"dataSetId": _read_target_document(document).dataset_id}
        if known is not None and known.document["params"] != document["params"]:
            for flow in self._store.objects(FLOWS):
                if known.id in flow.document["targetConnectionIds"]:
                    self._check_dataset_free(document["params"]["dataSetId"], flow.id)
        return document

    def _check_flow_request(self, body: Mapping[str, Any]) -> None:
        if "state" in body:
            raise RefusedError("FLOW-1410-400", "`State` is not allowed in the create flow request.")
        if not body.get("scheduleParams"):
            raise _provider(
                "1317-400",
                "The provided schedule params are empty but should not be empty. "
                "Please provide valid schedule params and try again.",
            )

    def _checked_flow(self, body: dict[str, Any], known: StoredObject | None, object_id: str | None) -> dict[str, Any]:
        _check_spec(body, "flowSpec", (FLOW_SPEC,), known)
        document = _with_state(body, known)
        before = (known.document.get("scheduleParams") if known is not None else None) or {}
        begun = "startTime" in before and self._clock().timestamp() >= before["startTime"]
        asked = document.get("scheduleParams")
        if begun and isinstance(asked, dict) and asked.get("frequency") == "once" != before["frequency"]:
            raise _provider("1403-400", "The start time has passed and you can no longer change the frequency to once.")
        parts = self._parts(document)
        _check_schedule(asked)
        flow = _read_flow_document(document)
        if flow.schedule is not None and isinstance(asked, dict):
            idle = {key: asked[key] for key in _IDLE_SCHEDULE_KEYS if key in asked}
            document["scheduleParams"] = {**_schedule_document(flow.schedule), **idle}
        for transformation in document["transformations"]:
            params = transformation.get("params") if isinstance(transformation, dict) else None
            # a text in the OpenAPI document; aepp sends a number
            if isinstance(params, dict) and isinstance(params.get("mappingVersion"), int):
                params["mappingVersion"] = str(params["mappingVersion"])
        if document.get("options"):
            given = document["options"]
            document["options"] = {key: value for key, value in _options_document(flow.options).items() if key in given}
        if begun:
            _check_begun(before, document.get("scheduleParams") or {})
        self._check_dataset_free(parts.target.document["params"]["dataSetId"], object_id)
        if known is None or known.document["transformations"] != document["transformations"]:
            self._compiled(parts)
        return document

    def _check_dataset_free(self, dataset_id: str, own_id: str | None) -> None:
        """No two flows have one dataset: a run replaces whole days of it."""
        targets = {
            one.id
            for one in self._store.objects(TARGETS)
            if one.document["params"]["dataSetId"].lower() == dataset_id.lower()
        }
        for other in self._store.objects(FLOWS) if targets else ():
            if other.id != own_id and targets & set(other.document["targetConnectionIds"]):
                raise RefusedError(
                    "FLOW-1100-400",
                    f"The dataset {dataset_id} belongs to the flow {other.id}: a run replaces whole days of it. "
                    "Give each flow a dataset of its own.",
                )

    # Reading

    def _secrets(self, stored: StoredObject) -> dict[str, str]:
        return self._box.open(stored.sealed) if stored.sealed is not None else {}

    def _has_secrets(self, stored: StoredObject, secrets: Mapping[str, str]) -> bool:
        """Whether these are sealed there. Not with another key: who gives all secrets anew does not need it."""
        try:
            return self._secrets(stored) == secrets
        except ConfigurationError:
            return False

    def _opened(self, base: StoredObject) -> dict[str, Any]:
        """The document of a base connection with its secrets; it does not leave this object."""
        document = deepcopy(dict(base.document))
        document["auth"]["params"].update(self._secrets(base))
        return document

    def _read_source(self, base: Mapping[str, Any], source: Mapping[str, Any], where: str) -> Source:
        """The source that a base connection with its secrets, and a source connection, make together.

        `where` is what the parameters of the source connection are called in the request, if not `params`.
        """
        auth = base["auth"]
        params = {key: auth["params"][key] for key in (*_READABLE, "password") if key in auth["params"]}
        sections = {
            "baseConnection": {**_body(base), "auth": {**auth, "params": params}},
            "sourceConnection": {"data": {"format": "json"}, **_body(source)},
        }
        reader = Reader()
        found = read_source(reader.section("", sections, sections), self._settings, allow_loopback=self._allow_loopback)
        if reader.problems:
            names = {"baseConnection.": "", "sourceConnection.params": where or "params", "sourceConnection.": ""}
            raise _wrong([_renamed(problem, names) for problem in reader.problems])
        assert found is not None
        return found

    def _parts(self, document: Mapping[str, Any]) -> _Parts:
        """What a flow refers to. Raises RefusedError for what is not there."""
        source = self._referred(document, "sourceConnectionIds", SOURCES)
        target = self._referred(document, "targetConnectionIds", TARGETS)
        base = self.find(CONNECTIONS, source.document["baseConnectionId"])
        if base is None:
            raise _unknown_reference(CONNECTIONS, source.document["baseConnectionId"])
        mapping_id, version = _mapping_reference(document)
        if self.find(MAPPING_SETS, mapping_id) is None:
            raise _unknown_reference(MAPPING_SETS, mapping_id)
        try:
            mapping_set = self.mapping_set(mapping_id, version)
        except RefusedError:
            raise RefusedError(
                "FLOW-1412-400", "Invalid Mapping Version in request. Please provide correct mapping version."
            ) from None
        return _Parts(source, base, target, mapping_set)

    def _referred(self, document: Mapping[str, Any], key: str, kind: str) -> StoredObject:
        ids = document.get(key)
        if not ids:
            raise _provider("1320-400", f"The {key} cannot be null or empty. Please provide valid {key} and try again.")
        if not isinstance(ids, list) or len(ids) != 1:
            size = len(ids) if isinstance(ids, list) else 0
            raise _provider(
                "1321-400",
                f"The length of {key} should be one, supplied size is {size}. Please provide valid size and try again.",
            )
        found = self.find(kind, ids[0]) if isinstance(ids[0], str) else None
        if found is None:
            raise _unknown_reference(kind, str(ids[0]))
        return found

    def _compiled(self, parts: _Parts) -> Mapper:
        document = parts.mapping_set.document
        try:
            return compile_document(document, self.schema_of(parts.target.document["params"]["dataSetId"]))
        except ConfigurationError as error:
            raise RefusedError(
                "FLOW-1419-400",
                f"Error while validating mapping with id {parts.mapping_set.id.partition('_')[0]}, version "
                f"{_version_of(document)}: {error}",
            ) from error

    def _prepared(self, stored: StoredObject, parts: _Parts) -> PreparedFlow:
        body = _read_flow_document(stored.document)
        flow = Flow(
            stored.id,
            body.name,
            self._read_source(self._opened(parts.base), parts.source.document, ""),
            _read_target_document(parts.target.document),
            body.options,
            body.schedule,
            body.description,
        )
        definition = {
            "baseConnection": dict(parts.base.document),
            "sourceConnection": dict(parts.source.document),
            "targetConnection": dict(parts.target.document),
            "mappingSet": dict(parts.mapping_set.document),
            "flow": dict(stored.document),
        }
        return PreparedFlow(flow, self._compiled(parts), definition)

    # Schemas

    def schema_of(self, dataset_id: str) -> XdmSchema | None:
        """The schema that gives the columns of a dataset their types, or None where there is none that says enough.

        A schema that refers to field groups or classes which are not here says too little: its other fields are not
        known. Raises ConfigurationError for a schema that is wrong.
        """
        dataset = self.find(DATASETS, dataset_id)
        reference = _reference(dataset.document) if dataset else None
        if reference is None:
            return None
        stored = self.find_schema(reference)
        if stored is None:
            return None
        document = self.resolved_schema(stored.document)
        return None if document is None else XdmSchema(document)

    def find_schema(self, reference: str) -> StoredObject | None:
        """The schema with this id, `$id` or `meta:altId`; the `$id` is an address, whose end may be the id."""
        found = self.find(SCHEMAS, reference) or self.find(SCHEMAS, reference.rpartition("/")[2])
        if found is not None:
            return found
        keys = ("$id", "meta:altId")
        every = self._store.objects(SCHEMAS)
        return next((one for one in every if reference in [one.document.get(key) for key in keys]), None)

    def resolved_schema(self, document: Mapping[str, Any]) -> dict[str, Any] | None:
        """A copy in which references to other schemas are replaced by them, or None where one is not here."""
        resolved = self._resolved(dict(document), None, (), {})
        return resolved if isinstance(resolved, dict) and _has_fields(resolved) else None

    def _resolved(
        self,
        node: Any,  # noqa: ANN401 - any JSON
        inside: Mapping[str, Any] | None,
        within: tuple[str, ...],
        known: dict[str, Any],
    ) -> Any:  # noqa: ANN401 - any JSON
        """`inside` is the schema that is being put into another one: what it says of itself is meant there.

        Each schema is resolved once, for `known`: a few lines may refer to one many times.
        """
        if isinstance(node, list):
            items = [self._resolved(item, inside, within, known) for item in node]
            return _UNKNOWN if any(item is _UNKNOWN for item in items) else items
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if isinstance(reference, str) and (inside is not None or not reference.startswith("#")):
            place = f"{id(inside)}{reference}" if reference.startswith("#") else reference
            if place not in known:
                too_far = place in within or len(within) == _MOST_REFERENCES
                known[place] = _UNKNOWN if too_far else self._target(reference, inside, (*within, place), known)
            return known[place]
        found = {key: self._resolved(value, inside, within, known) for key, value in node.items()}
        return _UNKNOWN if any(value is _UNKNOWN for value in found.values()) else found

    def _target(
        self, reference: str, inside: Mapping[str, Any] | None, within: tuple[str, ...], known: dict[str, Any]
    ) -> Any:  # noqa: ANN401 - any JSON
        if reference in _STANDARD_SCHEMAS:
            return _STANDARD_SCHEMAS[reference]
        if reference.startswith("#"):
            return self._resolved(_pointed(inside, reference), inside, within, known)
        stored = self.find_schema(reference)
        if stored is None:
            return _UNKNOWN
        # held in `known` too, for its address in memory is part of the places within it
        known[f"document {reference}"] = stored.document
        return self._resolved(dict(stored.document), stored.document, within, known)

    def _is_of(self, dataset: Mapping[str, Any], schema: StoredObject) -> bool:
        reference = _reference(dataset)
        return reference is not None and (
            reference in (schema.id, schema.document.get("$id"), schema.document.get("meta:altId"))
            or reference.rpartition("/")[2] == schema.id
        )


class _Unknown:
    """Stands where a schema is that is not here."""


_UNKNOWN = _Unknown()


# Refusals


def _missing(kind: str, object_id: str) -> RefusedError:
    shown = _shown(object_id)
    return RefusedError(
        "FLOW-1439-404",
        f"The requested {kind} resource {shown} is not found. Verify the resource ID before trying again.",
        title="Resource not found",
        kind=kind,
        object_id=shown,
    )


def _unknown_reference(kind: str, object_id: str) -> RefusedError:
    shown = _shown(object_id)
    return RefusedError(
        "FLOW-1439-400",
        f"The requested {kind} resource {shown} is not found. Verify the resource ID before trying again.",
        title="Resource not found",
        kind=kind,
        object_id=shown,
    )


def _stale(known: StoredObject, supplied: str) -> RefusedError:
    return RefusedError(
        "FLOW-1404-412",
        f"The supplied version '{_shown(supplied)}' does not match the current version on entity '{known.etag}'. "
        "Please ensure that the supplied version matches the current version on entity and try again.",
        title="Version not matching",
        kind=known.kind,
        object_id=known.id,
    )


def _provider(code: str, message: str) -> RefusedError:
    return RefusedError(f"CONNECTOR-{code}", message)


def _wrong(problems: Collection[str]) -> RefusedError:
    """A body that does not fit; each problem begins with its place."""
    return RefusedError(
        "FLOW-1100-400",
        f"The request could not be processed. Error from flow provider: {'; '.join(problems)}",
        problems=problems,
    )


def _shown(text: object) -> str:
    """A value of the request that may be shown again: printable ASCII, and not long."""
    return re.sub(r"[^ -~]", "?", str(text)[:100])


# Bodies


def _section(body: Mapping[str, Any], key: str, path: str | None = None) -> dict[str, Any]:
    value = body.get(key)
    if isinstance(value, dict):
        return value
    raise _wrong([f"{path or key}: {'must have keys below it' if value is not None else 'is missing'}"])


def _check_spec(body: Mapping[str, Any], key: str, allowed: Collection[str], known: StoredObject | None) -> None:
    spec = _section(body, key)
    if spec.get("id") not in allowed or not isinstance(spec.get("version", "1.0"), str):
        if known is not None and spec != known.document[key]:
            raise _changed_spec(key)
        raise RefusedError(
            "FLOW-1413-400", "The spec ID provided is invalid. Please provide a valid spec ID and try again."
        )
    if known is not None and spec != known.document[key]:
        raise _changed_spec(key)


def _changed_spec(key: str) -> RefusedError:
    if key == "flowSpec":
        return _wrong(["flowSpec: cannot be updated"])
    return RefusedError("FLOW-1414-400", "The connection spec of a connection cannot be updated.")


def _with_state(body: Mapping[str, Any], known: StoredObject | None) -> dict[str, Any]:
    """A copy with the state of the object, checked, and with a name that can be shown anywhere."""
    document = deepcopy(dict(body))
    state = document.setdefault("state", known.document["state"] if known else ENABLED)
    if state not in (ENABLED, DISABLED):
        raise RefusedError(
            "FLOW-1456-400", f"State {_shown(state)} is not a valid value. Allowed values are [enabled, disabled]."
        )
    name = document.get("name")
    if isinstance(name, str) and (len(name) > _MOST_NAME_CHARACTERS or not name.isprintable()):
        raise _wrong([f"name: takes up to {_MOST_NAME_CHARACTERS} printable characters"])
    return document


def _renamed(problem: str, names: Mapping[str, str]) -> str:
    """A problem whose place is called as in the request."""
    for name, other in names.items():
        if problem.startswith(name):
            return other + problem.removeprefix(name)
    return problem


def _body(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in ("state", "labels")}


def _base_url(params: Mapping[str, Any]) -> object:
    return params.get("host") or EXPORT_URLS.get(str(params.get("region") or "us"))


def _labels(section: object, name: str) -> dict[str, str]:
    """Name and description of a part of a flow file."""
    written = section if isinstance(section, dict) else {}
    labels = {"name": str(written.get("name") or name)[:_MOST_NAME_CHARACTERS]}
    if written.get("description"):
        labels["description"] = str(written["description"])
    return labels


def _check_schedule(params: object) -> None:
    """What the provider has numbers of its own for; the rest is `flow_file`'s to say."""
    if not isinstance(params, dict):
        return
    frequency, interval = params.get("frequency"), params.get("interval")
    if frequency == "once":
        if interval is not None:
            raise _provider(
                "1361-400",
                "Interval is not allowed with one time ingestion. "
                "Please remove interval or change frequency and then try again.",
            )
        if params.get("backfill") is not None:
            raise _provider(
                "1364-400",
                "The backfill flag is not allowed when frequency is set to once. "
                "Please remove the backfill flag when frequency is set to once and try again.",
            )
    elif isinstance(frequency, str) and frequency not in ("minute", "hour", "day", "week"):
        raise _provider(
            "1397-400",
            f"The provided frequency : {_shown(frequency)} is invalid. Please provide a valid frequency and try again.",
        )
    elif interval is not None and re.fullmatch(r"-?[0-9]{1,18}", str(interval)):
        least = 15 if frequency == "minute" else 1
        if int(interval) < least:
            raise _provider(
                "1362-400",
                f"Interval cannot be less than {least}. Please provide a valid interval value and try again.",
            )


def _read_flow_document(document: Mapping[str, Any]) -> _FlowBody:
    """Raises RefusedError for what is wrong."""
    body = _body(document)
    if isinstance(body.get("scheduleParams"), dict):
        params = body["scheduleParams"]
        body["scheduleParams"] = {key: params[key] for key in params if key not in _IDLE_SCHEDULE_KEYS}
    labels = document.get("labels")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise _wrong(["labels: must be a list of texts"])
    reader = Reader()
    name, description, schedule, options = read_flow(reader.section("", {"flow": body}, ("flow",)))
    if reader.problems:
        raise _wrong([_renamed(problem, {"flow.": ""}) for problem in reader.problems])
    return _FlowBody(name, description, schedule, options)


def _check_begun(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """What may not be changed of a schedule that has begun."""
    if after.get("startTime") != before["startTime"]:
        raise _provider("1366-400", "The start time has passed and the update operation is no longer allowed.")
    if after.get("backfill") != before.get("backfill"):
        raise _provider("1404-400", "The start time has passed and you can no longer update backfill.")


def _read_target_document(document: Mapping[str, Any]) -> Target:
    body = _body(document)
    data = body["data"]
    unknown = [key for key in data if key not in ("format", "schema")]
    if unknown:
        raise _wrong([f"data.{_shown(unknown[0])}: there is no such key; the keys are format, schema"])
    reader = Reader()
    target = read_target(
        reader.section("", {"targetConnection": {**body, "data": {"format": "delta"}}}, ("targetConnection",))
    )
    if reader.problems:
        raise _wrong([_renamed(problem, {"targetConnection.": ""}) for problem in reader.problems])
    assert target is not None
    return target


def _checked_mapping_set(body: dict[str, Any]) -> dict[str, Any]:
    try:
        parse_mapping_set(body)
    except ConfigurationError as error:
        raise _wrong([str(error)]) from None
    document = {key: value for key, value in body.items() if key != "id"}
    document["version"] = _version_of(document)
    return document


def _version_of(document: Mapping[str, Any]) -> int:
    version = document.get("version")
    return version if isinstance(version, int) and not isinstance(version, bool) and version >= 0 else 0


def _mapping_reference(document: Mapping[str, Any]) -> tuple[str, int]:
    """Id and version of the mapping set; the version is 0 where it is left out (tutorial, "Create a flow")."""
    transformations = document.get("transformations")
    for transformation in transformations if isinstance(transformations, list) else ():
        params = transformation.get("params") if isinstance(transformation, dict) else None
        if isinstance(params, dict) and params.get("mappingId"):
            version = str(params.get("mappingVersion") or 0)
            if not _VERSION.fullmatch(version):
                raise RefusedError(
                    "FLOW-1412-400", "Invalid Mapping Version in request. Please provide correct mapping version."
                )
            return str(params["mappingId"]), int(version)
    raise _provider(
        "1328-400",
        "The mapping transformation cannot be null when extracting mappingId. "
        "Please provide valid mapping transformation and try again.",
    )


def _references(flow: Mapping[str, Any], kind: str) -> Collection[str]:
    match kind:
        case "sourceConnections":
            return list(flow["sourceConnectionIds"])
        case "targetConnections":
            return list(flow["targetConnectionIds"])
    return [_mapping_reference(flow)[0]]


def _schedule_document(schedule: Schedule) -> dict[str, Any]:
    """In the types of the OpenAPI document: the interval is a text there."""
    document: dict[str, Any] = {"startTime": schedule.start_time, "frequency": schedule.frequency}
    if schedule.interval is not None:
        document["interval"] = str(schedule.interval)
    if schedule.backfill is not None and schedule.frequency != "once":
        document["backfill"] = schedule.backfill
    return document


def _options_document(options: Options) -> dict[str, Any]:
    document: dict[str, Any] = {"errorDiagnosticsEnabled": options.error_diagnostics_enabled}
    if options.partial_ingestion_percent is not None:
        document["partialIngestionPercent"] = options.partial_ingestion_percent
    return document


def _reference(dataset: Mapping[str, Any]) -> str | None:
    """What a dataset calls its schema."""
    reference = dataset.get("schemaRef")
    found = reference.get("id") if isinstance(reference, dict) else None
    return found if isinstance(found, str) and found else None


def _pointed(document: Any, reference: str) -> Any:  # noqa: ANN401 - any JSON
    """What `#/definitions/name` means in the document, or `_UNKNOWN`."""
    for key in reference[1:].split("/")[1:]:
        document = (
            document.get(key.replace("~1", "/").replace("~0", "~"), _UNKNOWN)
            if isinstance(document, dict)
            else _UNKNOWN
        )
    return document


def _has_fields(document: Mapping[str, Any]) -> bool:
    return bool(document.get("properties")) or any(
        isinstance(part, dict) and ("$ref" in part or _has_fields(part)) for part in document.get("allOf") or ()
    )
