"""Columns of values: what rearranges the items of arrays and objects, against plain lists and dicts."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.mapping.values import Items, Kind, Values

SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
ARRAYS = st.none() | st.lists(SCALARS, max_size=4)
MEMBERS = st.none() | st.lists(st.tuples(st.sampled_from("abcd"), SCALARS), max_size=6)


def arrays_of(rows: list[list[Any] | None]) -> Items:
    return Values.from_python(rows).trees(Kind.ARRAY)


def objects_of(rows: list[list[tuple[str, Any]] | None]) -> Items:
    """Objects in which a key may come more than once."""
    pairs = Values.from_python(rows).trees(Kind.ARRAY)
    both = pairs.values.trees(Kind.ARRAY)
    keys = both.item(np.zeros(len(both), dtype=np.int64))
    values = both.item(np.ones(len(both), dtype=np.int64))
    return Items(pairs.offsets, pairs.valid, values, keys.arrow(Kind.STRING))


def members_of(items: Items) -> list[list[tuple[str, Any]] | None]:
    keys = items.keys.to_pylist() if items.keys is not None else []
    pairs = list(zip(keys, items.values.to_pylist(), strict=True))
    starts = items.offsets.tolist()
    return [
        pairs[start:end] if valid else None
        for start, end, valid in zip(starts, starts[1:], items.valid.tolist(), strict=False)
    ]


@settings(deadline=None)
@given(st.lists(st.tuples(ARRAYS, ARRAYS, ARRAYS), min_size=1, max_size=8))
def test_the_items_of_several_arrays_side_by_side(rows: list[tuple[list[Any] | None, ...]]) -> None:
    together = Items.side_by_side([arrays_of(list(column)) for column in zip(*rows, strict=True)])
    expected = [None if None in row else list(chain.from_iterable(row)) for row in rows]  # type: ignore[arg-type]
    assert Values.items(together).to_pylist() == expected


@settings(deadline=None)
@given(st.lists(st.tuples(MEMBERS, MEMBERS), min_size=1, max_size=8))
def test_the_members_of_several_objects_side_by_side(rows: list[tuple[Any, Any]]) -> None:
    together = Items.side_by_side([objects_of([row[0] for row in rows]), objects_of([row[1] for row in rows])])
    assert members_of(together) == [None if None in row else row[0] + row[1] for row in rows]


@settings(deadline=None)
@given(st.lists(MEMBERS, max_size=8))
def test_of_equal_keys_the_last_or_the_first_counts(rows: list[list[tuple[str, Any]] | None]) -> None:
    objects = objects_of(rows)
    assert members_of(objects.without_older()) == [None if row is None else list(dict(row).items()) for row in rows]
    firsts = [None if row is None else dict(reversed(row)) for row in rows]
    kept = members_of(objects.without_newer())
    assert [None if row is None else dict(row) for row in kept] == firsts
    assert all(row is None or len(row) == len(dict(row)) for row in kept)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[1e400,-1e400,NaN,"a"]', ["Infinity", "-Infinity", "NaN", "a"]),
        ('{"a":Infinity,"b":-5}', {"a": "Infinity", "b": -5}),
        (f"[NaN,{'9' * 5000},9223372036854775807]", ["NaN", "Infinity", 2**63 - 1]),
        ("[12345678901234567890]", [12345678901234567890.0]),
    ],
)
def test_trees_are_read_as_leniently_as_lines_are(text: str, expected: object) -> None:
    kinds = np.array([ord(text[0])], dtype=np.uint8)
    assert Values.from_json(pa.array([text]), kinds).to_pylist() == [expected]


def test_numbers_that_json_has_not_are_strings() -> None:
    texts = ["NaN", "-inf", "1e400", "Infinity", "5", "2.5", None, "x", "-1e999"]
    kinds = np.array([ord(text[0]) if text else 0 for text in texts], dtype=np.uint8)
    kinds[7] = ord('"')
    expected = ["NaN", "-Infinity", "Infinity", "Infinity", 5, 2.5, None, "x", "-Infinity"]
    assert Values.from_json(pa.array(texts), kinds).to_pylist() == expected
    for row in range(len(texts)):
        alone = Values.from_json(pa.array(texts[row : row + 1], pa.string()), kinds[row : row + 1])
        assert alone.to_pylist() == [expected[row]]
