"""What every store promises: one suite for the databases and for their twin in memory, and these against each other."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.support import receipt_of, run_of
from tests.test_store_postgres import postgres_server, postgres_state
from worker.errors import EtagConflictError, ObjectExistsError, ObjectMissingError, StoreError
from worker.model import Issue, Load, LoadRecord, LoadState, Receipt, Run, RunState, Secret, Tally
from worker.store import Lease, MemoryStore, RunQuery, Store, StoredFlow, StoredObject, open_store
from worker.store.base import CLOCK_TOLERANCE, SECOND
from worker.store.documents import decode_receipt, decode_run, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = ("memory", "sqlite", "postgresql")
NOW = datetime(2024, 3, 10, 9, 30, 0, 123456, tzinfo=UTC)
DAY = date(2024, 3, 9)
HOUR_SECONDS = 3600.0


@contextmanager
def new_state(kind: str) -> Iterator[str]:
    """The url of an empty state database."""
    if kind == "postgresql":
        with postgres_state() as url:
            yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/state.db"


@contextmanager
def opened(kind: str) -> Iterator[Store]:
    if kind == "memory":
        with MemoryStore() as memory:
            yield memory
        return
    with new_state(kind) as url, open_store(url) as database:
        yield database


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with opened(request.param) as opened_store:
        yield opened_store


def succeed(store: Store, load: Load) -> Receipt:
    receipt = receipt_of(load)
    store.save_load(load, LoadState.COMMITTING)
    store.save_load(load, LoadState.SUCCEEDED, receipt=receipt)
    return receipt


# Flows


def test_a_flow_is_saved_and_replaced(store: Store) -> None:
    store.save_flow("a", "Second", {"days": [1, {"x": None}]})
    store.save_flow("b", "First", {})
    store.save_flow("a", "Zeroth?", {"name": "Ωmega"})
    assert store.flows() == [StoredFlow("b", "First", {}), StoredFlow("a", "Zeroth?", {"name": "Ωmega"})]


def test_a_definition_that_was_saved_does_not_change_with_the_callers_object(store: Store) -> None:
    definition = {"events": ["Sign up"]}
    store.save_flow("a", "Flow", definition)
    definition["events"].append("Log in")
    assert store.flows() == [StoredFlow("a", "Flow", {"events": ["Sign up"]})]


def test_a_secret_cannot_be_saved(store: Store) -> None:
    with pytest.raises(TypeError):
        store.save_flow("a", "Flow", {"password": Secret("geheim")})
    assert store.flows() == []


# Runs

moments = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  hypothesis wants naive bounds
texts = st.text(max_size=20)
counts = st.integers(min_value=0, max_value=2**50)


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    output, failed, skipped, deduplicated, warnings = (draw(counts) for _ in range(5))
    return Tally(output + failed + skipped + deduplicated, output, failed, skipped, deduplicated, warnings)


all_runs = st.builds(
    Run,
    id=texts,
    flow_id=texts,
    flow_name=texts,
    dataset_id=texts,
    state=st.sampled_from(RunState),
    started_at=moments,
    first_day=st.dates(),
    last_day=st.dates(),
    window_start=moments,
    window_end=moments,
    completed_at=st.none() | moments,
    updated_at=st.none() | moments,
    days_committed=counts,
    tally=tallies(),
    input_bytes=counts,
    output_bytes=counts,
    input_files=counts,
    output_files=counts,
    batch_ids=st.lists(texts, max_size=3).map(tuple),
    issues=st.lists(st.builds(Issue, texts, texts, counts, st.none() | texts), max_size=3).map(tuple),
    error_code=st.none() | texts,
    error_message=st.none() | texts,
    extra=st.dictionaries(texts, texts, max_size=3),
)


@given(run=all_runs)
def test_a_run_comes_back_as_it_was(run: Run) -> None:
    again = decode_run(encode(run))
    assert again == run
    assert again.started_at.utcoffset() == timedelta(0)


def test_a_run_is_saved_and_replaced(store: Store) -> None:
    assert store.run("run-1") is None
    store.save_run(run_of())
    ended = run_of(
        state=RunState.FAILED,
        completed_at=NOW + timedelta(hours=1),
        tally=Tally(input=2, output=1, failed=1),
        batch_ids=("A", "B"),
        issues=(Issue("MAPPER-3700-199", "not a date", 1, '{"a": "\\u0000"}'),),
        error_code="WORKER-1000-500",
        error_message="broken\nin two lines",
        extra={"attempt": "2"},
    )
    store.save_run(ended)
    assert store.run("run-1") == ended
    assert store.runs(None, 10) == [ended]


def test_runs_come_newest_first_and_of_one_flow_or_of_all(store: Store) -> None:
    for number, name in enumerate(("a", "b", "a", "a")):
        store.save_run(run_of(id=f"run-{number}", flow_name=name, started_at=NOW + timedelta(microseconds=number)))
    assert [run.id for run in store.runs(None, 10)] == ["run-3", "run-2", "run-1", "run-0"]
    assert [run.id for run in store.runs("a", 2)] == ["run-3", "run-2"]
    assert store.runs("c", 10) == []


def test_times_come_back_in_utc(store: Store) -> None:
    started_at = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    store.save_run(run_of(started_at=started_at))
    found = store.run("run-1")
    assert found is not None
    assert (found.started_at, found.started_at.utcoffset()) == (NOW, timedelta(0))
    load = store.begin_load("flow", DAY, "run-1", started_at, 0)
    assert (load.started_at, load.started_at.utcoffset()) == (NOW, timedelta(0))


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(AssertionError):
        store.begin_load("flow", DAY, "run-1", NOW.replace(tzinfo=None), 0)
    with pytest.raises((AssertionError, TypeError)):
        store.save_run(run_of(started_at=NOW.replace(tzinfo=None)))
    assert store.runs(None, 10) == []


def test_a_record_of_another_version_is_read_without_what_is_unknown() -> None:
    document = orjson.loads(encode(run_of(issues=(Issue("A", "b", 1),))))
    document |= {"mood": "good", "tally": {"input": 1, "output": 1, "colour": "red"}}
    document["issues"][0]["severity"] = 3
    del document["extra"]
    run = decode_run(orjson.dumps(document).decode())
    assert run == run_of(issues=(Issue("A", "b", 1),), tally=Tally(input=1, output=1))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"state": "asleep"}', '{"started_at": 3}', '{"tally": {"input": 1}}']
)
@pytest.mark.parametrize("decode", [decode_run, decode_receipt])
def test_a_record_that_is_not_one_is_a_store_error(text: str, decode: Callable[[str], object]) -> None:
    with pytest.raises(StoreError, match="in the state database"):
        decode(text)


# Questions about runs


def ids(runs: list[Run]) -> list[str]:
    return [run.id for run in runs]


def save_six_runs(store: Store) -> None:
    """Two flows by turns; every third has failed; 2 and 3 start at the same moment."""
    for number, minutes in enumerate((0, 1, 2, 2, 4, 5)):
        store.save_run(
            run_of(
                id=f"run-{number}",
                flow_id="ab"[number % 2],
                state=RunState.SUCCESS if number % 3 else RunState.FAILED,
                started_at=NOW + timedelta(minutes=minutes),
            )
        )


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        (RunQuery(), "543210"),
        (RunQuery(newest_first=False), "012345"),
        (RunQuery(flow_ids=("a",)), "420"),
        (RunQuery(flow_ids=("b", "a", "missing")), "543210"),
        (RunQuery(flow_ids=()), ""),
        (RunQuery(states=(RunState.FAILED,)), "30"),
        (RunQuery(states=(RunState.FAILED, RunState.SUCCESS)), "543210"),
        (RunQuery(states=()), ""),
        (RunQuery(states=(RunState.IN_PROGRESS,)), ""),
        (RunQuery(started_after=NOW), "54321"),
        (RunQuery(started_after=NOW - timedelta(microseconds=1)), "543210"),
        (RunQuery(started_before=NOW + timedelta(minutes=2)), "10"),
        (RunQuery(started_after=NOW, started_before=NOW + timedelta(minutes=5)), "4321"),
        (RunQuery(started_after=NOW.astimezone(timezone(timedelta(hours=-7)))), "54321"),
        (RunQuery(flow_ids=("b",), states=(RunState.SUCCESS,), started_after=NOW + timedelta(minutes=1)), "5"),
        (RunQuery(after="run-3"), "210"),
        (RunQuery(after="run-2", newest_first=False), "345"),
        (RunQuery(after="run-0"), ""),
        (RunQuery(after="missing"), ""),
        (RunQuery(after="missing", newest_first=False), ""),
        (RunQuery(flow_ids=("a",), after="run-3"), "20"),
        (RunQuery(started_before=NOW + timedelta(minutes=2), after="run-4"), "10"),
    ],
)
def test_runs_are_found_by_all_that_is_asked(store: Store, query: RunQuery, numbers: str) -> None:
    save_six_runs(store)
    expected = [f"run-{number}" for number in numbers]
    assert ids(store.find_runs(query, 10)) == expected
    assert ids(store.find_runs(query, 2)) == expected[:2]
    assert store.find_runs(query, 0) == []
    everything = store.find_runs(replace(query, after=None), 10)
    assert store.count_runs(query) == len(everything)


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_neither_skip_nor_repeat_a_run_while_others_are_added_and_change(
    store: Store, newest_first: bool
) -> None:
    save_six_runs(store)
    query = RunQuery(newest_first=newest_first)
    before = ids(store.find_runs(query, 10))
    seen: list[str] = []
    while page := store.find_runs(replace(query, after=seen[-1] if seen else None), 2):
        seen += ids(page)
        # one at the end that has been read, one whose start is that of the run at the border
        read_end = page[0].started_at + timedelta(days=1 if newest_first else -1)
        store.save_run(run_of(id=f"added-{len(seen)}", started_at=read_end))
        store.save_run(replace(page[-1], state=RunState.FAILED, days_committed=9))
    assert seen == before


def test_the_newest_run_of_each_flow_is_found_at_once(store: Store) -> None:
    for number in range(6):
        for flow_id in ("a", "b", "é"):
            store.save_run(run_of(id=f"{flow_id}{number}", flow_id=flow_id, started_at=NOW + number % 5 * SECOND))
    store.save_run(run_of(id="a9", flow_id="a", started_at=NOW + 4 * SECOND))
    many = [f"none-{number}" for number in range(1200)]
    found = store.newest_runs(["é", "a", "a", *many, "x'\"x"])
    assert {flow_id: run.id for flow_id, run in found.items()} == {"a": "a9", "é": "é4"}
    assert found["a"] == store.run("a9")
    assert store.newest_runs([]) == {}


def test_a_question_that_the_run_behind_which_it_goes_on_no_longer_meets_is_answered(store: Store) -> None:
    save_six_runs(store)
    query = RunQuery(states=(RunState.SUCCESS,))
    first = store.find_runs(query, 1)
    store.save_run(replace(first[0], state=RunState.FAILED))
    assert ids(store.find_runs(replace(query, after=first[0].id), 10)) == ["run-4", "run-2", "run-1"]


# Objects

LATER = NOW + timedelta(seconds=1)


def test_an_object_is_created_found_replaced_and_deleted(store: Store) -> None:
    assert store.object("flows", "a") is None
    created = store.create_object("flows", "a", {"name": "Ωmega", "days": [1, {"x": None}]}, b"\x00\xff", NOW)
    assert created == StoredObject(
        "flows", "a", {"name": "Ωmega", "days": [1, {"x": None}]}, b"\x00\xff", created.etag, NOW, NOW
    )
    assert store.object("flows", "a") == created
    replaced = store.replace_object("flows", "a", {}, None, LATER, etag=created.etag)
    assert replaced == StoredObject("flows", "a", {}, None, replaced.etag, NOW, LATER)
    assert replaced.etag != created.etag
    assert store.object("flows", "a") == replaced
    assert store.delete_object("flows", "a")
    assert not store.delete_object("flows", "a")
    assert store.object("flows", "a") is None
    again = store.create_object("flows", "a", {}, b"", LATER)
    assert again.etag not in (created.etag, replaced.etag)
    assert store.object("flows", "a") == again


def test_objects_of_a_kind_come_oldest_first(store: Store) -> None:
    for name, age in (("c", 2), ("b", 3), ("d", 1), ("a", 2)):
        store.create_object("flows", name, {"name": name}, None, NOW - timedelta(seconds=age))
    store.create_object("connections", "z", {}, None, NOW)
    store.replace_object("flows", "b", {"name": "new"}, None, LATER, etag=None)
    assert [item.id for item in store.objects("flows")] == ["b", "a", "c", "d"]
    assert store.objects("flows")[0].document == {"name": "new"}
    assert store.objects("missing") == []
    assert [item.id for item in store.objects("flows", ["c", "b", "x", "c"])] == ["b", "c"]
    assert store.objects("flows", []) == []


def test_an_object_is_of_its_kind(store: Store) -> None:
    one = store.create_object("flows", "a", {"kind": 1}, None, NOW)
    other = store.create_object("connections", "a", {"kind": 2}, None, NOW)
    assert store.delete_object("flows", "a")
    assert store.object("connections", "a") == other
    assert one.etag != other.etag


def test_what_cannot_be_done_to_an_object_changes_nothing(store: Store) -> None:
    with pytest.raises(ObjectMissingError):
        store.replace_object("flows", "a", {}, None, NOW, etag=None)
    assert store.objects("flows") == []
    created = store.create_object("flows", "a", {"name": "A"}, b"s", NOW)
    with pytest.raises(ObjectExistsError):
        store.create_object("flows", "a", {}, None, LATER)
    with pytest.raises(EtagConflictError):
        store.replace_object("flows", "a", {}, None, LATER, etag="stale")
    with pytest.raises(EtagConflictError):
        store.replace_object("flows", "a", {}, None, LATER, etag="")
    with pytest.raises(TypeError):
        store.replace_object("flows", "a", {"password": Secret("geheim")}, None, LATER, etag=created.etag)
    with pytest.raises(AssertionError):
        store.replace_object("flows", "a", {}, None, NOW.replace(tzinfo=None), etag=created.etag)
    for etag in ("stale", ""):
        with pytest.raises(EtagConflictError):
            store.delete_object("flows", "a", etag=etag)
    assert not store.delete_object("flows", "missing", etag="stale")
    assert store.object("flows", "a") == created
    assert store.delete_object("flows", "a", etag=created.etag)
    assert store.objects("flows") == []


def test_an_etag_is_good_for_one_change_and_none_takes_any(store: Store) -> None:
    etag = store.create_object("flows", "a", {}, None, NOW).etag
    store.replace_object("flows", "a", {}, None, NOW, etag=etag)
    with pytest.raises(EtagConflictError):
        store.replace_object("flows", "a", {}, None, NOW, etag=etag)
    etags = {store.replace_object("flows", "a", {}, None, NOW, etag=None).etag for _ in range(5)}
    assert len(etags - {etag}) == 5


def test_nobody_changes_an_object_by_changing_what_was_given_or_got(store: Store) -> None:
    document: dict[str, Any] = {"events": ["Sign up"]}
    created = store.create_object("flows", "a", document, None, NOW)
    document["events"].append("Log in")
    created.document["events"].append("Log out")
    for found in (store.object("flows", "a"), store.objects("flows")[0]):
        assert found is not None
        assert found.document == {"events": ["Sign up"]}
        found.document["events"].clear()
    assert store.objects("flows")[0].document == {"events": ["Sign up"]}


# Leases


def test_a_lease_is_held_by_one_until_it_runs_out_or_is_given_back(store: Store) -> None:
    assert store.take_lease("flow", "one", NOW, 30)
    assert not store.take_lease("flow", "other", NOW, 30)
    assert store.take_lease("another flow", "other", NOW, 30)
    assert not store.take_lease("flow", "other", NOW + timedelta(seconds=29.999999), 30)
    assert store.take_lease("flow", "other", NOW + timedelta(seconds=30), 30)
    assert not store.take_lease("flow", "one", NOW + timedelta(seconds=30), 30)
    store.release_lease("flow", "one")
    assert not store.take_lease("flow", "one", NOW + timedelta(seconds=30), 30)
    store.release_lease("flow", "other")
    assert store.take_lease("flow", "one", NOW + timedelta(seconds=30), 30)


def test_a_lease_names_its_holder_until_it_is_given_back(store: Store) -> None:
    assert store.lease("flow") is None
    store.take_lease("flow", "one", NOW, 30)
    held = Lease("one", NOW + timedelta(seconds=30))
    assert store.lease("flow") == held
    store.take_lease("flow", "other", NOW + timedelta(seconds=29), 30)
    store.release_lease("flow", "other")
    assert store.lease("flow") == held
    assert store.take_lease("flow", "other", NOW + timedelta(minutes=1), 30)
    assert store.lease("flow") == Lease("other", NOW + timedelta(minutes=1, seconds=30))
    store.release_lease("flow", "other")
    assert store.lease("flow") is None


def test_a_lease_is_renewed_by_its_holder_and_may_be_shortened(store: Store) -> None:
    assert store.take_lease("flow", "one", NOW, 30)
    assert store.take_lease("flow", "one", NOW + timedelta(seconds=20), 30)
    assert not store.take_lease("flow", "other", NOW + timedelta(seconds=40), 30)
    assert store.take_lease("flow", "one", NOW + timedelta(seconds=40), 1)
    assert store.take_lease("flow", "other", NOW + timedelta(seconds=41), 30)


def test_f059_a_lease_of_a_clock_that_stepped_back_is_free_in_an_hour_at_most(store: Store) -> None:
    assert store.take_lease("flow", "one", NOW + timedelta(hours=1), 30)
    assert not store.take_lease("flow", "other", NOW, 30)
    assert store.take_lease("flow", "other", NOW - timedelta(microseconds=1), 30)


def test_a_lease_that_nobody_holds_is_released_without_a_word(store: Store) -> None:
    store.release_lease("flow", "one")
    assert store.take_lease("flow", "one", NOW, 30)
    store.release_lease("flow", "one")
    store.release_lease("flow", "one")


# Loads


def test_a_load_is_known_from_its_begin(store: Store) -> None:
    load = store.begin_load("flow", DAY, "run-1", NOW, 0)
    assert (load.flow_id, load.day, load.generation, load.run_id, load.started_at) == ("flow", DAY, 1, "run-1", NOW)
    assert len(load.batch_id) == 26
    assert store.load(load.batch_id) == LoadRecord(load, LoadState.STARTED)
    assert store.open_loads("flow") == [LoadRecord(load, LoadState.STARTED)]
    assert store.open_loads("other") == []


def test_the_generation_grows_over_what_is_known_here_and_in_the_target(store: Store) -> None:
    generations = [store.begin_load("flow", DAY, "r", NOW, after).generation for after in (0, 0, 7, 3, 0)]
    assert generations == [1, 2, 8, 9, 10]
    assert store.begin_load("flow", DAY + timedelta(days=1), "r", NOW, 0).generation == 1
    assert store.begin_load("other", DAY, "r", NOW, 0).generation == 1


def test_a_load_succeeds_with_its_receipt(store: Store) -> None:
    load = store.begin_load("flow", DAY, "run-1", NOW, 0)
    receipt = succeed(store, load)
    assert store.load(load.batch_id) == LoadRecord(load, LoadState.SUCCEEDED, receipt)
    assert store.succeeded_receipts("flow") == {DAY: receipt}
    assert store.open_loads("flow") == []


@pytest.mark.parametrize("before", [LoadState.STARTED, LoadState.COMMITTING])
def test_a_load_fails_with_its_error(store: Store, before: LoadState) -> None:
    load = store.begin_load("flow", DAY, "run-1", NOW, 0)
    store.save_load(load, before)
    store.save_load(load, LoadState.FAILED, error_code="CONNECTOR-1001-503", error_message="no answer")
    expected = LoadRecord(load, LoadState.FAILED, None, "CONNECTOR-1001-503", "no answer")
    assert store.load(load.batch_id) == expected
    assert store.open_loads("flow") == []
    assert store.succeeded_receipts("flow") == {}


def brought_to(store: Store, state: LoadState) -> Load:
    load = store.begin_load("flow", DAY, "run-1", NOW, 0)
    if state == LoadState.SUCCEEDED:
        succeed(store, load)
    else:
        store.save_load(load, state)
    return load


def save(store: Store, load: Load, state: LoadState) -> None:
    store.save_load(load, state, receipt=receipt_of(load) if state == LoadState.SUCCEEDED else None)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (LoadState.STARTED, LoadState.SUCCEEDED),
        (LoadState.COMMITTING, LoadState.STARTED),
        *((LoadState.SUCCEEDED, state) for state in LoadState if state != LoadState.SUCCEEDED),
        *((LoadState.FAILED, state) for state in LoadState if state != LoadState.FAILED),
    ],
)
def test_an_illegal_step_is_refused_and_changes_nothing(store: Store, before: LoadState, after: LoadState) -> None:
    load = brought_to(store, before)
    known = store.load(load.batch_id)
    with pytest.raises(StoreError, match=f"is {before}; it cannot become {after}"):
        save(store, load, after)
    assert store.load(load.batch_id) == known


@pytest.mark.parametrize("state", list(LoadState))
def test_saying_a_state_again_changes_nothing(store: Store, state: LoadState) -> None:
    load = brought_to(store, state)
    known = store.load(load.batch_id)
    save(store, load, state)
    assert store.load(load.batch_id) == known


def test_a_load_that_was_not_begun_here_is_refused(store: Store) -> None:
    load = store.begin_load("flow", DAY, "run-1", NOW, 0)
    for stranger in (replace(load, batch_id="X"), replace(load, generation=2), replace(load, run_id="run-2")):
        with pytest.raises(StoreError, match="is not in the state database"):
            store.save_load(stranger, LoadState.COMMITTING)
    assert store.load(load.batch_id) == LoadRecord(load, LoadState.STARTED)


def test_a_receipt_and_an_error_are_taken_only_where_they_belong(store: Store) -> None:
    load = brought_to(store, LoadState.COMMITTING)
    with pytest.raises(StoreError, match="needs a receipt"):
        store.save_load(load, LoadState.SUCCEEDED)
    with pytest.raises(StoreError, match="needs a receipt"):
        store.save_load(load, LoadState.FAILED, receipt=receipt_of(load))
    with pytest.raises(StoreError, match="was given the receipt of X"):
        store.save_load(load, LoadState.SUCCEEDED, receipt=receipt_of(load, batch_id="X"))
    with pytest.raises(StoreError, match="has an error"):
        store.save_load(load, LoadState.SUCCEEDED, receipt=receipt_of(load), error_code="A")
    assert store.open_loads("flow") == [LoadRecord(load, LoadState.COMMITTING)]


def test_an_older_attempt_that_ends_late_leaves_the_newer_one_alone(store: Store) -> None:
    old = store.begin_load("flow", DAY, "run-1", NOW, 0)
    new = store.begin_load("flow", DAY, "run-2", NOW, 0)
    receipt = succeed(store, new)
    store.save_load(old, LoadState.COMMITTING)
    assert store.open_loads("flow") == [LoadRecord(old, LoadState.COMMITTING)]
    store.save_load(old, LoadState.FAILED)
    assert store.load(new.batch_id) == LoadRecord(new, LoadState.SUCCEEDED, receipt)
    assert store.succeeded_receipts("flow") == {DAY: receipt}


def test_a_load_is_found_by_its_batch_whatever_became_of_it(store: Store) -> None:
    loads = [brought_to(store, state) for state in LoadState]
    foreign = receipt_of(loads[0], batch_id="foreign", generation=9)
    store.adopt(foreign)
    records = [store.load(load.batch_id) for load in loads]
    assert [(record.load, record.state) for record in records if record] == list(zip(loads, LoadState, strict=True))
    adopted = store.load("foreign")
    assert adopted is not None
    assert (adopted.state, adopted.receipt) == (LoadState.SUCCEEDED, foreign)
    assert store.load("none") is None


def test_open_loads_come_oldest_first(store: Store) -> None:
    days = [DAY + timedelta(days=number) for number in (2, 0, 1)]
    loads = [store.begin_load("flow", day, "r", NOW - timedelta(seconds=i), 0) for i, day in enumerate(days)]
    store.begin_load("other", DAY, "r", NOW, 0)
    assert [record.load for record in store.open_loads("flow")] == loads[::-1]


def test_the_newest_receipt_of_each_day_counts_and_a_later_failure_does_not_hide_it(store: Store) -> None:
    next_day = DAY + timedelta(days=1)
    later = succeed(store, store.begin_load("flow", next_day, "r", NOW, 0))
    succeed(store, store.begin_load("flow", DAY, "r", NOW, 0))
    newest = succeed(store, store.begin_load("flow", DAY, "r", NOW, 0))
    store.save_load(store.begin_load("flow", DAY, "r", NOW, 0), LoadState.FAILED)
    succeed(store, store.begin_load("other", DAY, "r", NOW, 0))
    receipts = store.succeeded_receipts("flow")
    assert receipts == {DAY: newest, next_day: later}
    assert list(receipts) == [DAY, next_day]


def test_the_newest_receipts_of_some_days_are_found_at_once(store: Store) -> None:
    expected = {}
    for flow_id in ("a", "b"):
        for number in range(3):
            day = DAY + timedelta(days=number)
            for _ in range(number):
                expected[flow_id, day] = succeed(store, store.begin_load(flow_id, day, "run-1", NOW, 0))
            store.save_load(store.begin_load(flow_id, day, "run-2", NOW, 0), LoadState.FAILED)
    del expected["b", DAY + timedelta(days=1)]
    asked = [*expected, ("a", DAY), ("x", DAY), *((f"{number}", DAY) for number in range(600))]
    assert store.newest_receipts(asked) == expected
    assert store.newest_receipts([]) == {}


@pytest.mark.parametrize("state", list(LoadState))
def test_f132_what_the_target_proves_is_adopted_whatever_was_known(store: Store, state: LoadState) -> None:
    load = brought_to(store, state)
    receipt = receipt_of(load, committed_at=NOW + timedelta(days=1))
    for _ in range(2):
        store.adopt(receipt)
        assert store.load(load.batch_id) == LoadRecord(load, LoadState.SUCCEEDED, receipt)
    assert store.open_loads("flow") == []


def test_f131_a_lost_database_is_rebuilt_from_the_receipts_of_the_target(store: Store) -> None:
    with MemoryStore() as lost:
        receipts = [succeed(lost, lost.begin_load("flow", DAY + timedelta(days=i), "r", NOW, i)) for i in range(4)]
    for receipt in [*receipts, *receipts]:
        store.adopt(receipt)
    assert store.succeeded_receipts("flow") == {receipt.day: receipt for receipt in receipts}
    assert store.open_loads("flow") == []
    assert store.begin_load("flow", DAY + timedelta(days=3), "r", NOW, 0).generation == receipts[3].generation + 1
    found = store.load(receipts[0].batch_id)
    assert found is not None
    assert found.load.started_at == receipts[0].exported_at


def test_a_foreign_load_of_the_same_generation_is_adopted_beside_the_one_begun_here(store: Store) -> None:
    mine = store.begin_load("flow", DAY, "mine", NOW, 0)
    foreign = receipt_of(mine, batch_id="0" * 26, run_id="foreign")
    store.adopt(foreign)
    assert store.succeeded_receipts("flow") == {DAY: foreign}
    adopted, begun = store.load(foreign.batch_id), store.load(mine.batch_id)
    assert adopted is not None
    assert adopted.receipt == foreign
    assert begun == LoadRecord(mine, LoadState.STARTED)
    store.save_load(mine, LoadState.FAILED)
    assert store.begin_load("flow", DAY, "mine", NOW, 0).generation == 2


# Request ledger


def test_requests_are_allowed_up_to_the_limits_and_a_refusal_records_nothing(store: Store) -> None:
    assert [store.reserve_request("p", NOW, 60, 3) for _ in range(5)] == [0.0, 0.0, 0.0, 1.0, 1.0]
    later = NOW + timedelta(seconds=0.25)
    assert store.reserve_request("p", later, 60, 3) == 0.75
    assert store.reserve_request("other", later, 60, 3) == 0.0
    assert [store.reserve_request("p", NOW + timedelta(seconds=1), 5, 3) for _ in range(3)] == [0.0, 0.0, 3599.0]
    assert store.reserve_request("p", NOW + timedelta(hours=1), 5, 3) == 0.0


def test_a_clock_reading_that_arrives_late_still_meets_the_requests_of_its_hour(store: Store) -> None:
    assert store.reserve_request("p", NOW, 2, 3) == 0.0
    assert store.reserve_request("p", NOW + timedelta(hours=1), 2, 3) == 0.0
    assert store.reserve_request("p", NOW + timedelta(minutes=59, seconds=59), 2, 3) == 1.0


def test_a_hold_is_kept_and_never_shortened(store: Store) -> None:
    store.hold_requests("p", NOW + timedelta(seconds=40))
    store.hold_requests("p", NOW + timedelta(seconds=20))
    assert store.reserve_request("p", NOW, 60, 3) == 40.0
    assert store.reserve_request("other", NOW, 60, 3) == 0.0
    assert store.reserve_request("p", NOW + timedelta(seconds=40), 60, 3) == 0.0


def test_a_hold_reaches_an_hour_ahead_at_most(store: Store) -> None:
    store.hold_requests("p", NOW + timedelta(days=300))
    assert store.reserve_request("p", NOW, 60, 3) == HOUR_SECONDS
    assert store.reserve_request("p", NOW + timedelta(minutes=59), 60, 3) == 60.0
    assert store.reserve_request("p", NOW + timedelta(hours=1), 60, 3) == 0.0


def test_requests_left_are_those_of_the_hour_and_none_during_a_hold(store: Store) -> None:
    assert store.requests_left("p", NOW, 60) == 60
    for _ in range(3):
        store.reserve_request("p", NOW, 60, 3)
    assert store.requests_left("p", NOW, 60) == 57
    assert store.requests_left("p", NOW, 2) == 0
    assert store.requests_left("other", NOW, 60) == 60
    store.hold_requests("p", NOW + timedelta(seconds=40))
    assert store.requests_left("p", NOW + timedelta(seconds=39), 60) == 0
    assert store.requests_left("p", NOW + timedelta(seconds=40), 60) == 57
    assert store.requests_left("p", NOW + timedelta(hours=1), 60) == 60


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(
    asked_minutes=st.lists(st.integers(0, 90), max_size=12),
    held_minutes=st.none() | st.integers(-10, 200),
    now_minutes=st.integers(-100, 200),
)
def test_as_many_requests_are_let_through_as_were_left(
    kind: str, asked_minutes: list[int], held_minutes: int | None, now_minutes: int
) -> None:
    now = NOW + timedelta(minutes=now_minutes)
    with opened(kind) as store:
        for minutes in asked_minutes:
            store.reserve_request("p", NOW + timedelta(minutes=minutes), 1000, 1000)
        if held_minutes is not None:
            store.hold_requests("p", NOW + timedelta(minutes=held_minutes))
        left = store.requests_left("p", now, 8)
        let_through = 0
        while store.reserve_request("p", now, 8, 1000) == 0:
            let_through += 1
    assert let_through == left


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0, 1, 200_000, 999_999, 1_000_000, 20_000_000, 1_700_000_000]), st.integers(0, 3)),
        max_size=60,
    ),
    per_hour=st.integers(1, 8),
    per_second=st.integers(1, 3),
)
def test_no_hour_and_no_second_gets_more_than_allowed_even_if_clock_readings_arrive_out_of_order(
    kind: str, steps: list[tuple[int, int]], per_hour: int, per_second: int
) -> None:
    allowed: list[datetime] = []
    clock = NOW
    with opened(kind) as store:
        for step_microseconds, late_seconds in steps:
            clock += timedelta(microseconds=step_microseconds)
            now = clock - timedelta(seconds=late_seconds)
            wait_seconds = store.reserve_request("p", now, per_hour, per_second)
            assert 0 <= wait_seconds <= HOUR_SECONDS
            if wait_seconds == 0:
                allowed.append(now)
    for end in allowed:
        assert sum(end - timedelta(hours=1) < moment <= end for moment in allowed) <= per_hour
        assert sum(end - timedelta(seconds=1) < moment <= end for moment in allowed) <= per_second


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    asked_minutes=st.lists(st.integers(0, 200), max_size=20),
    held_minutes=st.integers(-100, 10_000),
    step_minutes=st.integers(-100_000, 100),
)
def test_whoever_waits_as_told_is_served_within_an_hour_wherever_the_clock_stepped(
    kind: str, asked_minutes: list[int], held_minutes: int, step_minutes: int
) -> None:
    with opened(kind) as store:
        for minutes in sorted(asked_minutes):
            store.reserve_request("p", NOW + timedelta(minutes=minutes), 5, 1)
        store.hold_requests("p", NOW + timedelta(minutes=held_minutes))
        now = first = NOW + timedelta(minutes=step_minutes)
        while wait_seconds := store.reserve_request("p", now, 5, 1):
            now += timedelta(seconds=wait_seconds)
            assert now - first <= timedelta(hours=1) + CLOCK_TOLERANCE


# The twin


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except StoreError as error:
        return str(error)


class Twins(RuleBasedStateMachine):
    """Whatever is done to both stores, they answer alike, and generations strictly grow."""

    kind = "sqlite"
    loads = Bundle("loads")
    etags = Bundle("etags")
    kinds = st.sampled_from(["flows", "connections"])
    object_ids = st.sampled_from(["a", "B", "é"])
    flow_ids = st.sampled_from(["flow", "other"])
    days = st.sampled_from([DAY, DAY + timedelta(days=1)])
    projects = st.sampled_from(["p", "q"])

    @initialize()
    def begin(self) -> None:
        self.closing = ExitStack()
        self.url = self.closing.enter_context(new_state(self.kind))
        self.memory = MemoryStore()
        self.database = open_store(self.url)
        self.now = NOW
        self.count = 0
        self.generations: dict[tuple[str, date], int] = {}

    def teardown(self) -> None:
        self.database.close()
        self.closing.close()

    def both(self, call: Callable[[Store], object]) -> Any:
        one, other = outcome(lambda: call(self.memory)), outcome(lambda: call(self.database))
        assert one == other
        return one

    @rule(seconds=st.sampled_from([-7200, -30, 0, 0.5, 1, 600, 3600]))
    def clock_moves(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def worker_restarts(self) -> None:
        self.database.close()
        self.database = open_store(self.url)

    @rule(target=loads, flow_id=flow_ids, day=days, after_generation=st.integers(0, 5))
    def begin_load(self, flow_id: str, day: date, after_generation: int) -> Load:
        self.count += 1
        with patch("worker.store.base.ULID") as ulid:
            ulid.from_datetime.return_value = f"batch-{self.count:03}"
            load: Load = self.both(lambda store: store.begin_load(flow_id, day, "run", self.now, after_generation))
        assert load.generation > max(self.generations.get((flow_id, day), 0), after_generation)
        self.generations[flow_id, day] = load.generation
        return load

    @rule(load=loads, state=st.sampled_from(LoadState), with_receipt=st.booleans(), code=st.none() | st.just("A"))
    def save_load(self, load: Load, state: LoadState, with_receipt: bool, code: str | None) -> None:
        receipt = receipt_of(load) if with_receipt else None
        self.both(lambda store: store.save_load(load, state, receipt=receipt, error_code=code))

    @rule(load=loads)
    def commit_load(self, load: Load) -> None:
        self.both(lambda store: store.save_load(load, LoadState.COMMITTING))
        self.both(lambda store: store.save_load(load, LoadState.SUCCEEDED, receipt=receipt_of(load)))

    @rule(load=loads, prefix=st.sampled_from(["", "foreign-before-", "zz-foreign-after-"]))
    def adopt(self, load: Load, prefix: str) -> None:
        self.both(lambda store: store.adopt(receipt_of(load, batch_id=prefix + load.batch_id)))

    @rule(flow_id=flow_ids, day=days)
    def look_at_loads(self, flow_id: str, day: date) -> None:
        self.both(lambda store: store.open_loads(flow_id))
        self.both(lambda store: store.load(f"batch-{self.count:03}"))
        self.both(lambda store: list(store.succeeded_receipts(flow_id).items()))
        self.both(lambda store: store.newest_receipts([(flow_id, day), ("other", DAY)]))

    @rule(flow_id=flow_ids, name=st.sampled_from(["A", "B"]))
    def save_flow(self, flow_id: str, name: str) -> None:
        self.both(lambda store: store.save_flow(flow_id, name, {"name": name}))
        self.both(lambda store: store.flows())

    @rule(run_id=st.sampled_from(["1", "2", "3"]), flow_name=st.sampled_from(["A", "B"]))
    def save_run(self, run_id: str, flow_name: str) -> None:
        self.both(lambda store: store.save_run(run_of(id=run_id, flow_name=flow_name, started_at=self.now)))
        self.both(lambda store: [store.run("2"), store.runs(None, 2), store.runs("A", 3)])

    @rule(
        run_id=st.sampled_from(["é", "Z", "a", "_"]), flow_id=flow_ids, state=st.sampled_from(RunState), data=st.data()
    )
    def save_and_find_runs(self, run_id: str, flow_id: str, state: RunState, data: st.DataObject) -> None:
        self.both(lambda store: store.save_run(run_of(id=run_id, flow_id=flow_id, state=state, started_at=self.now)))
        moments_about_now = st.none() | st.integers(-4000, 4000).map(lambda seconds: self.now + seconds * SECOND)
        query = data.draw(
            st.builds(
                RunQuery,
                flow_ids=st.none() | st.lists(self.flow_ids, max_size=2).map(tuple),
                states=st.none() | st.lists(st.sampled_from(RunState), max_size=2).map(tuple),
                started_after=moments_about_now,
                started_before=moments_about_now,
                newest_first=st.booleans(),
                after=st.none() | st.sampled_from(["1", "2", "é", "Z", "missing"]),
            )
        )
        self.both(lambda store: [store.count_runs(query), store.find_runs(query, 2), store.find_runs(query, 20)])
        self.both(lambda store: store.newest_runs(["flow", "other", "missing"]))

    @rule(target=etags, kind=kinds, object_id=object_ids, sealed=st.none() | st.binary(max_size=3))
    def create_object(self, kind: str, object_id: str, sealed: bytes | None) -> str:
        return self.changed(lambda store: store.create_object(kind, object_id, {"id": object_id}, sealed, self.now))

    @rule(target=etags, kind=kinds, object_id=object_ids, etag=st.none() | etags)
    def replace_object(self, kind: str, object_id: str, etag: str | None) -> str:
        document = {"number": self.count}
        return self.changed(lambda store: store.replace_object(kind, object_id, document, None, self.now, etag=etag))

    def changed(self, change: Callable[[Store], StoredObject]) -> str:
        self.count += 1
        with patch("worker.store.base.uuid4", return_value=f"etag-{self.count:03}"):
            found = self.both(change)
        return found.etag if isinstance(found, StoredObject) else "none"

    @rule(kind=kinds, object_id=object_ids, etag=st.none() | etags)
    def delete_object(self, kind: str, object_id: str, etag: str | None) -> None:
        self.both(lambda store: store.delete_object(kind, object_id, etag=etag))

    @rule(kind=kinds, object_id=object_ids)
    def look_at_objects(self, kind: str, object_id: str) -> None:
        self.both(lambda store: [store.object(kind, object_id), *store.objects(kind)])

    @rule(name=flow_ids, holder=st.sampled_from(["one", "other"]), seconds=st.sampled_from([0.5, 30, 7000]))
    def take_lease(self, name: str, holder: str, seconds: float) -> None:
        self.both(lambda store: store.take_lease(name, holder, self.now, seconds))
        self.both(lambda store: store.lease(name))

    @rule(name=flow_ids, holder=st.sampled_from(["one", "other"]))
    def release_lease(self, name: str, holder: str) -> None:
        self.both(lambda store: store.release_lease(name, holder))

    @rule(project_id=projects, times=st.integers(1, 4))
    def reserve_request(self, project_id: str, times: int) -> None:
        for _ in range(times):
            self.both(lambda store: store.reserve_request(project_id, self.now, 6, 2))
        self.both(lambda store: store.requests_left(project_id, self.now, 6))

    @rule(project_id=projects, seconds=st.sampled_from([-10, 2, 90, 9000]))
    def hold_requests(self, project_id: str, seconds: int) -> None:
        self.both(lambda store: store.hold_requests(project_id, self.now + timedelta(seconds=seconds)))


class PostgresTwins(Twins):
    kind = "postgresql"


@pytest.mark.parametrize("machine", [Twins, PostgresTwins])
def test_whatever_is_done_to_two_stores_they_answer_alike(machine: type[Twins]) -> None:
    if machine is PostgresTwins:
        postgres_server()
    run_state_machine_as_test(machine, settings=settings(max_examples=50, stateful_step_count=40, deadline=None))
