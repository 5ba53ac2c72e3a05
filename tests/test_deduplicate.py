"""Mixpanel's rule for duplicates against the plainest way to write it, in memory and on disk."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker import pipeline
from worker.mixpanel.deduplicate import RECORD, Deduplicator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from worker.mixpanel.deduplicate import Contents

Row = tuple[int, int, int, int]
"""The two halves of the key, when it was processed, what it holds."""

LARGEST = 2**64 - 1
# few values, so that keys meet; halves that differ in one bit, and those that end up in the first and the last part
HALVES = st.sampled_from([0, 1, 2, 1 << 56, (1 << 56) + 1, 255 << 56, LARGEST])
ROWS = st.lists(
    st.tuples(
        HALVES,
        HALVES,
        st.sampled_from([-1, 0, 1, 1_700_000_000_000, 10**18 - 1]),
        st.sampled_from([0, 1, 2, 1 << 63, LARGEST]),
    ),
    max_size=60,
)


def kept_slowly(rows: Sequence[Row]) -> list[bool]:
    """For each row whether none of its key beats it: processed later, else larger, else earlier in the export."""
    best: dict[tuple[int, int], int] = {}
    for number, (first, second, processed, content) in enumerate(rows):
        if (first, second) == (0, 0):
            continue
        rival = best.get((first, second))
        if rival is None or (processed, content) > rows[rival][2:]:
            best[first, second] = number
    winners = set(best.values())
    return [row[:2] == (0, 0) or number in winners for number, row in enumerate(rows)]


def kept_of(folder: Path, rows: Sequence[Row], *, memory_bytes: int = 1 << 20, block_rows: int = 7) -> list[bool]:
    with Deduplicator(folder, memory_bytes) as deduplicator:
        for start in range(0, len(rows), block_rows):
            add(deduplicator, rows[start : start + block_rows])
        kept: list[bool] = deduplicator.kept(contents_of(rows)).tolist()
    assert not list(folder.iterdir())
    return kept


def contents_of(rows: Sequence[Row]) -> Contents:
    """What rows hold, told only of those that have a rival that was processed at the same time."""
    rivals = Counter(row[:3] for row in rows)
    contents = np.array([row[3] for row in rows], dtype=np.uint64)

    def contents_of_some(asked: NDArray[np.int64]) -> NDArray[np.uint64]:
        assert (np.diff(asked) > 0).all()
        assert all(rivals[rows[row][:3]] > 1 and rows[row][:2] != (0, 0) for row in asked.tolist())
        return contents[asked]

    return contents_of_some


def add(deduplicator: Deduplicator, rows: Sequence[Row]) -> None:
    deduplicator.add(
        np.array([row[:2] for row in rows], dtype=np.uint64).reshape(-1, 2),
        np.array([row[2] for row in rows], dtype=np.int64),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@given(rows=ROWS, block_rows=st.integers(1, 70))
def test_F039_in_memory_it_is_the_rule(folder: Path, rows: list[Row], block_rows: int) -> None:
    assert kept_of(folder, rows, block_rows=block_rows) == kept_slowly(rows)


@settings(max_examples=25)  # each spill opens a file for each part
@given(rows=ROWS, block_rows=st.integers(1, 70), memory_records=st.integers(0, 30))
def test_F039_on_disk_it_is_the_same_rule(folder: Path, rows: list[Row], block_rows: int, memory_records: int) -> None:
    memory_bytes = memory_records * RECORD.itemsize
    assert kept_of(folder, rows, memory_bytes=memory_bytes, block_rows=block_rows) == kept_slowly(rows)


@given(rows=ROWS, order=st.randoms(use_true_random=False))
def test_F040_what_stays_does_not_hang_on_the_order(folder: Path, rows: list[Row], order: object) -> None:
    assert hasattr(order, "shuffle")
    shuffled = list(rows)
    order.shuffle(shuffled)
    kept, kept_shuffled = kept_of(folder, rows), kept_of(folder, shuffled, block_rows=3)
    assert Counter(row for row, stays in zip(rows, kept, strict=True) if stays) == Counter(
        row for row, stays in zip(shuffled, kept_shuffled, strict=True) if stays
    )


def test_F037_rows_without_an_insert_id_all_stay(folder: Path) -> None:
    rows: list[Row] = [(0, 0, 5, 9)] * 500
    assert all(kept_of(folder, rows))
    assert all(kept_of(folder, rows, memory_bytes=1))


def test_half_a_key_is_a_key(folder: Path) -> None:
    rows: list[Row] = [(0, 1, 1, 1), (0, 1, 2, 1), (1, 0, 2, 1), (1, 0, 1, 1), (0, 0, 1, 1), (1, 1, 1, 1)]
    assert kept_of(folder, rows) == [False, True, True, False, True, True]


def test_of_equal_rows_the_first_stays(folder: Path) -> None:
    rows: list[Row] = [(3, 4, -1, 7), (3, 4, -1, 7), (3, 4, -1, 7)]
    assert kept_of(folder, rows) == [True, False, False]


def test_the_content_decides_only_between_rows_processed_last(folder: Path) -> None:
    rows: list[Row] = [(3, 4, 2, 5), (3, 4, 1, 9), (3, 4, 2, LARGEST), (3, 4, 1, 8), (3, 4, 2, 1 << 63), (5, 6, 1, 1)]
    assert kept_of(folder, rows) == [False, False, True, False, False, True]
    assert kept_of(folder, rows, memory_bytes=1) == [False, False, True, False, False, True]


def test_nothing_is_a_day_too(folder: Path) -> None:
    assert kept_of(folder, []) == []
    with Deduplicator(folder, 1 << 20) as deduplicator:
        add(deduplicator, [])
        assert deduplicator.kept(contents_of([])).tolist() == []


@pytest.mark.parametrize("memory_bytes", [1 << 30, 20_000 * RECORD.itemsize])
def test_a_large_day(folder: Path, memory_bytes: int) -> None:
    chance = np.random.default_rng(39)
    keys = chance.integers(0, 2**64, (60_000, 2), dtype=np.uint64, endpoint=False)
    keys = keys[chance.integers(0, len(keys), 100_000)]
    keys[chance.integers(0, len(keys), 1_000)] = 0
    processed = chance.integers(-1, 3, len(keys))
    content = chance.integers(0, 3, len(keys), dtype=np.uint64)
    rows = [
        (int(key[0]), int(key[1]), int(at), int(hold)) for key, at, hold in zip(keys, processed, content, strict=True)
    ]
    kept = kept_of(folder, rows, memory_bytes=memory_bytes, block_rows=9_999)
    assert kept == kept_slowly(rows)
    assert 0 < kept.count(False) < len(rows)


def test_an_error_leaves_nothing_on_disk(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), Deduplicator(folder, 1) as deduplicator:  # noqa: PT012
        add(deduplicator, [(1, 1, 1, 1), (2, 2, 2, 2)])
        assert list(folder.iterdir())
        raise RuntimeError("stop")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("together", [1, 3, 100])
def test_what_rows_hold_is_found_in_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(pipeline, "HASHED_ROWS", together)
    inner = pa.struct([("name", pa.string()), ("count", pa.int64())])
    schema = pa.schema([pa.field("row", inner), pa.field("tags", pa.list_(pa.string()))])
    held = [
        {"row": {"name": str(number % 7), "count": number % 3}, "tags": ["x"] * (number % 2)} for number in range(21)
    ]
    paths, first = [], 0
    for file, sizes in enumerate([[5, 0, 4], [], [7], [1, 4]]):
        paths.append(tmp_path / f"rows-{file}")
        with pipeline._spill(paths[-1], schema) as writer:
            for size in sizes:
                writer.write_batch(pa.RecordBatch.from_pylist(held[first : first + size], schema=schema))
                first += size
    assert first == len(held)
    spilled = pipeline._Spilled(paths)
    every = spilled.contents(np.arange(len(held)))
    same = {(one, other) for one in range(21) for other in range(21) if held[one] == held[other]}
    assert {(one, other) for one in range(21) for other in range(21) if every[one] == every[other]} == same
    for asked in ([], [0], [20], [3, 4, 5, 8, 9, 16], [8, 9, 10, 11, 12, 13, 14, 15, 20]):
        assert spilled.contents(np.array(asked, dtype=np.int64)).tolist() == every[asked].tolist()
